"""`mcml train`, `train-entropy` and `info` as a user starts them: what they write, refuse and survive."""

import csv
import io
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, equal_tensors, failed, files_of, tiny_arguments, tiny_recipe
from PIL import Image

from mcml.codec.learned import LearnedCodec
from mcml.data import images
from mcml.data.patches import PatchStore
from mcml.data.sets import image_set
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.settings import VARIANTS, Recipe
from mcml.training import run as training_run
from mcml.training.trainer import Trainer


def arguments(data, run_dir, steps=3, *more, **settings):
    words = ["train", "--data", data, "--run-dir", run_dir, "--steps", steps, *tiny_arguments(**settings)]
    return [*map(str, words), *map(str, more)]


# ----------------------------------------------------------------------------------- train


@pytest.mark.parametrize("quantizer", ["binary", "scalar"])
def test_train_writes_a_model_a_log_and_its_validation(mcml, photo_folder, tmp_path, quantizer):
    valid = tmp_path / "valid"
    valid.mkdir()
    (photo_folder / "two.png").rename(valid / "two.png")
    words = ("--valid", "./valid", "--variant", "fusion", "--quantizer", quantizer)
    done = mcml(*arguments("photos", "run", 4, *words))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    names = ["checkpoint-00000004", "log.csv", "model", "validation.csv"]
    assert sorted(p.name for p in run.iterdir()) == names
    (row,) = training_run.read_log(run)
    assert (row["step"], row["spent"]) == (4, 1) and all(map(math.isfinite, row.values()))
    assert {"loss", "gradient_norm", "estimated_bpp_Cr", "psnr_Cr"} < row.keys()

    model = weights.load(run / "model")
    averaged = training_run.read_checkpoint(run / "checkpoint-00000004")["averaged"]
    rounded = {k: weights.compacted(k, v).to(v.dtype) for k, v in averaged.items()}
    assert equal_tensors(model.state_dict(), rounded)
    config, record = weights.load_config(run / "model")
    assert (config.variant, config.quantizer) == ("fusion", quantizer)
    assert Recipe().changed(**record["recipe"]).model == config
    assert (record["steps"], record["photographs"], record["ended"]) == (4, 1, "finished")
    assert (record["processes"], record["threads"], record["trained"]) == (1, 1, ["Y", "Cb", "Cr"])
    assert record["command"].startswith("mcml train --data photos")
    assert record["data_hash"] == image_set(str(photo_folder)).digest  # as everywhere
    assert record["torch"] == torch.__version__

    validation = list(csv.DictReader((run / "validation.csv").read_text().splitlines()))
    bpp = [float(row["estimated_bpp"]) for row in validation]
    assert [float(row["dial"]) for row in validation] == sorted(float(row["dial"]) for row in validation)
    assert len(bpp) == 6 and bpp == sorted(bpp) and bpp[0] < bpp[-1]  # the dial opens the mask
    parts = [sum(float(row[f"estimated_bpp_{key}"]) for key in ("Y", "Cb", "Cr")) for row in validation]
    assert parts == pytest.approx(bpp)
    assert {"psnr", "psnr_Y", "psnr_Cb", "psnr_Cr"} <= validation[0].keys()
    assert ("importance_Y" in validation[0]) is (quantizer == "binary")
    header, *lines = (line.split() for line in done.stdout.splitlines())
    shown = [dict(zip(header, line, strict=True)) for line in lines]
    assert [float(row["psnr"]) for row in shown] == pytest.approx(
        [float(row["psnr"]) for row in validation], abs=0.006
    )
    assert "finished at step 4" in done.stderr


def test_a_run_that_was_terminated_goes_on_to_the_same_end(mcml, photo_folder, tmp_path):
    run, steps = tmp_path / "run", 200
    same = arguments(photo_folder, run, steps, **{"stage.encoder_from": 0.0})
    process = subprocess.Popen(
        [sys.executable, "-m", "mcml", *same], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "  step 20  " in process.stderr.readline()  # its first line
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert said.endswith("mcml: terminated; the same command goes on from here\n")
    assert weights.load_config(run / "model")[1]["ended"] == "interrupted"
    stopped = training_run.read_log(run)[-1]["step"]
    assert 20 <= stopped < steps and training_run.latest(run).name == f"checkpoint-{stopped:08d}"

    log = run / training_run.LOG  # SIGKILL later on would leave rows that no checkpoint covers
    log.write_text(log.read_text() + log.read_text().splitlines()[-1].replace(str(stopped), "199", 1) + "\n")
    assert mcml(*same).stderr.startswith(f"resumed at step {stopped}\n")
    assert weights.load_config(run / "model")[1]["ended"] == "finished"
    rows = sorted({stopped, *range(20, steps + 1, 20)})
    assert [row["step"] for row in training_run.read_log(run)] == rows
    whole = tmp_path / "whole"
    assert mcml(*arguments(photo_folder, whole, steps, **{"stage.encoder_from": 0.0})).returncode == 0
    ended, expected = (training_run.read_checkpoint(training_run.latest(folder)) for folder in (run, whole))
    for name in ("learner", "averaged"):
        assert equal_tensors(ended[name], expected[name]), name
    moments = [state["optimizer"]["state"] for state in (ended, expected)]
    assert all(equal_tensors(moments[0][index], moments[1][index]) for index in moments[1])


def test_colour_is_trained_on_the_luma_of_another_run(mcml, photo_folder, tmp_path):
    assert mcml(*arguments("photos", "luma")).returncode == 0
    luma = weights.load(tmp_path / "luma" / "model")
    more = ("--variant", "fusion", "--from", "luma/model", "--train", "Cb,Cr")
    assert mcml(*arguments("photos", "fusion", 3, *more)).returncode == 0
    fusion = weights.load(tmp_path / "fusion" / "model")
    assert equal_tensors(fusion.streams["Y"].state_dict(), luma.streams["Y"].state_dict())
    record = weights.load_config(tmp_path / "fusion" / "model")[1]
    assert record["from"] == {"name": "model", "sha256": weights.digest(luma)}
    assert record["trained"] == ["Cb", "Cr"]


def test_chosen_streams_alone_are_taken_over(mcml, photo_folder, tmp_path):
    assert mcml(*arguments("photos", "first", 3, "--variant", "fusion")).returncode == 0
    first = weights.load(tmp_path / "first" / "model").streams
    more = ("--variant", "fusion", "--from", "first/model", "--set", "train.seed=1", "--train", "Cr")
    for taken, same in (("Y", {"Y"}), ("Y,Cb", {"Y", "Cb"})):
        assert mcml(*arguments("photos", taken, 3, *more, "--take", taken)).returncode == 0
        own = weights.load(tmp_path / taken / "model").streams
        assert same == {k for k in own if equal_tensors(own[k].state_dict(), first[k].state_dict())}
    failed(mcml(*arguments("photos", "Y", 3, *more)), 2, "--from was", "give another --run-dir")
    record = weights.load_config(tmp_path / "Y" / "model")[1]["from"]
    assert record["sha256"] == weights.digest(weights.load(tmp_path / "first" / "model"))
    failed(mcml(*arguments("photos", "other", 3, *more, "--take", "Cd")), 2, "unknown stream 'Cd'")
    failed(mcml(*arguments("photos", "other", 3, "--take", "Y")), 2, "--take Y", "give --from")


def test_budgets_of_the_command_line_replace_the_profile(mcml, photo_folder, tmp_path):
    """A checkpoint that has spent every budget ends the run at once; its record tells the settings."""
    base = ["train", "--data", "photos", "--run-dir", "run", *tiny_arguments()]
    assert mcml(*base, "--steps", 1).returncode == 0
    state = training_run.read_checkpoint(training_run.latest(tmp_path / "run"))
    training_run.write_checkpoint(tmp_path / "run", state | {"step": 10**6, "elapsed_s": 1e6})
    for options, budget in (
        ("--steps 7", (7, 0.0)),
        ("--minutes 0.5", (0, 0.5)),
        ("--steps 7 --minutes 0.5", (7, 0.5)),
        ("--steps 7 --set=train.steps=3", (7, 0.0)),
    ):
        assert mcml(*base, *options.split()).returncode == 0
        train = weights.load_config(tmp_path / "run" / "model")[1]["recipe"]["train"]
        assert (train["steps"], train["minutes"]) == budget


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("--variant fuson", 2, "unknown variant 'fuson': did you mean 'fusion'"),
        ("--quantizer scaler", 2, "unknown quantizer 'scaler': did you mean 'scalar'"),
        ("--profile qick", 2, "unknown training profile 'qick': did you mean 'quick'"),
        ("--set train.stepps=3", 2, "did you mean 'train.steps'"),
        ("--set train.steps", 2, "expected table.name=value"),
        ("--train Y,Cd", 2, "unknown stream 'Cd'"),
        ("--threads 0", 2, "--threads: expected a whole number from 1"),
        ("--data nowhere", 2, "nowhere"),
        ("--data ./nowhere", 1, "nowhere"),
        ("--from none", 2, "unknown model 'none'"),
        ("--from runs/none", 1, "none: no such folder"),
        ("--data empty", 1, "empty"),
        ("--valid empty", 1, "empty"),
        ("--data small", 1, "small/a.png: 31 x 20 pixels; give pictures of 32 x 32 or more"),
        ("--data broken", 1, "three.png: not an image"),
        ("--run-dir file", 1, "file.*cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_written(
    mcml, photo_folder, tmp_path, words, code, said
):
    for name in ("empty", "small", "broken"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "small" / "a.png")
    (tmp_path / "broken" / "three.png").write_text("no picture")
    (tmp_path / "file").write_text("kept")
    result = mcml(*arguments("photos", "run", 3, *words.split()))
    failed(result, code)
    assert re.search(said, result.stderr) and not files_of(tmp_path / "run")


def test_a_run_goes_on_only_with_what_it_was_begun_with(mcml, photo_folder, tmp_path):
    assert mcml(*arguments("photos", "luma")).returncode == 0
    changed = mcml(*arguments("photos", "luma", 3, "--set", "train.seed=1"))
    failed(changed, 2, "train.seed was 0, now 1", "--run-dir")
    begun = ("--from", "luma/model")
    assert mcml(*arguments("photos", "run", 3, *begun)).returncode == 0
    failed(mcml(*arguments("photos", "run")), 2, "--from was 'model@", "now None; give another --run-dir")
    photo_folder.rename(tmp_path / "moved")
    assert mcml(*arguments("moved", "run", 3, *begun)).returncode == 0
    (tmp_path / "moved" / "two.png").unlink()
    result = mcml(*arguments("moved", "run", 3, *begun))
    failed(result, 2, "--data was 'moved@", "now 'moved@", "give another --run-dir")
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "other" / "model")
    before = (tmp_path / "other" / "model" / "config.json").read_bytes()
    failed(mcml(*arguments("moved", "other")), 2, "other/model: holds a model", "--run-dir")
    assert (tmp_path / "other" / "model" / "config.json").read_bytes() == before


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def odd_folder(photo_folder):
    """The two photographs, four pictures that are refused, and two that are tiny."""
    noise = Image.effect_noise((48, 40), 90).convert("RGB")
    files = {
        "clear.png": encoded(noise.convert("RGBA").point(lambda value: value // 2)),
        "cut.png": encoded(noise)[:900],
        "empty.jpg": b"",
        "line.png": encoded(noise.crop((0, 0, 48, 1))),
        "moving.gif": encoded(noise, "GIF", save_all=True, append_images=[noise.rotate(180)]),
        "tiny.png": encoded(noise.crop((0, 0, 31, 40))),
    }
    for name, content in files.items():
        (photo_folder / name).write_bytes(content)
    return photo_folder


REFUSED = ["clear.png", "cut.png", "empty.jpg", "moving.gif"]


def test_pictures_that_cannot_be_used_are_left_out_and_counted_or_with_strict_refused(
    mcml, odd_folder, tmp_path
):
    good = tmp_path / "good"
    good.mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(odd_folder / name, good)
    done = mcml(*arguments("photos", "run", 2, "--valid", "photos"))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "6 of 8 pictures of photos are left out (--strict refuses them):"
    assert [line.split(": ")[0] for line in lines[1:6]] == [
        f"  photos/{name}" for name in sorted([*REFUSED, "line.png"])
    ]
    assert lines[4] == "  photos/line.png: 48 x 1 pixels; give pictures of 32 x 32 or more"
    assert lines[6] == "  and 1 more" and "4 of 8 pictures of photos" in lines[7]
    record = weights.load_config(tmp_path / "run" / "model")[1]
    assert (record["photographs"], record["data_hash"]) == (2, image_set("good").digest)
    assert record["left_out"] == sorted([*REFUSED, "line.png", "tiny.png"])
    assert (record["valid"]["photographs"], record["valid"]["left_out"]) == (4, REFUSED)
    log = training_run.read_log(tmp_path / "run")
    assert mcml(*arguments("good", "run", 2)).returncode == 0  # the same photographs
    assert training_run.read_log(tmp_path / "run") == log
    assert "valid" not in weights.load_config(tmp_path / "run" / "model")[1]
    for words in (("photos", "new", 2), ("good", "new", 2, "--valid", "photos")):
        failed(
            mcml(*arguments(*words, "--strict")), 1, "of 8 pictures of photos cannot be used: photos/clear"
        )
    assert not (tmp_path / "new").exists()
    assert mcml(*arguments("good", "new", 2, "--valid", "good", "--strict")).returncode == 0


def test_names_that_are_not_utf8_are_told_and_recorded_legibly(mcml, photo_folder, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9\n")
    try:
        photo_folder.rename(folder)
        (folder / os.fsdecode(b"\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    words = arguments(folder.name, os.fsdecode(b"run\xe9"), 1, "--valid", folder.name)
    for steps in ("1", "2"):
        done = mcml(*words, "--steps", steps)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("1 of 3 pictures of caf\\xe9\\n are left out")
        assert "at step" in done.stderr and ": run\\xe9/model\n" in done.stderr
    record = weights.load_config(tmp_path / os.fsdecode(b"run\xe9") / "model")[1]
    assert (record["left_out"], record["valid"]["name"]) == (["\\xe9.png"], "caf\\xe9\n")
    assert "--data caf\\xe9\n --run-dir run\\xe9 " in record["command"]


def test_a_folder_in_which_no_picture_can_be_used_is_refused(mcml, odd_folder):
    for name in ("one.png", "two.png"):
        (odd_folder / name).unlink()
    failed(
        mcml(*arguments("photos", "run", 2)), 1, "6 of 6 pictures of photos cannot be used: photos/clear.png:"
    )


@pytest.mark.parametrize("quantizer", ["binary", "scalar"])
@pytest.mark.parametrize("color", ["black", "white", "#ff0000"])
def test_constant_pictures_are_trained_on_without_nan(mcml, photo_folder, tmp_path, quantizer, color):
    for path in photo_folder.iterdir():
        path.unlink()
    Image.new("RGB", (40, 33), color).save(photo_folder / "one.png")
    words = ("--quantizer", quantizer, "--variant", "fusion", "--valid", "photos", "--log-every", 1)
    assert mcml(*arguments("photos", "run", 3, *words), **{}).returncode == 0
    model = weights.load(tmp_path / "run" / "model")
    assert all(value.isfinite().all() for value in model.state_dict().values())
    named = {"estimated_bpp_Y", "estimated_bpp_Cb", "estimated_bpp_Cr"}  # not measured in every step
    for row in training_run.read_log(tmp_path / "run"):
        assert all(math.isfinite(value) for name, value in row.items() if name not in named)
    text = (tmp_path / "run" / "validation.csv").read_text()
    assert all(
        math.isfinite(float(value)) for row in csv.DictReader(text.splitlines()) for value in row.values()
    )


def test_a_threshold_start_from_constant_pictures_says_what_to_do(mcml, photo_folder):
    Image.new("RGB", (160, 128), "grey").save(photo_folder / "three.png")
    threshold = {"stage.start": "threshold"}
    assert mcml(*arguments("photos", "some", 1, **threshold)).returncode == 0
    for name in ("one.png", "two.png"):
        (photo_folder / name).unlink()
    result = mcml(*arguments("photos", "all", 1, **threshold))
    failed(result, 1, "too uniform for a threshold code of 16 bits (0 found)", "--set stage.start=plain")


@pytest.mark.parametrize("mask, most", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_the_run_is_as_umask_says(mcml, photo_folder, tmp_path, mask, most):
    before = os.umask(mask)
    try:
        assert mcml(*arguments("photos", "run", 1, "--valid", "photos", "--variant", "luma")).returncode == 0
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run").rglob("*")}
    assert {path.name for path in modes} >= {
        "weights-0.safetensors.gz",
        "config.json",
        "state-000.pt",
        "log.csv",
    }
    assert {mode for path, mode in modes.items() if path.is_file()} == {most}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~mask}


def test_rows_and_checkpoints_come_as_often_as_one_says(mcml, photo_folder, tmp_path):
    often = ("--log-every", 2, "--save-minutes", 0)
    assert mcml(*arguments("photos", "run", 7, *often)).returncode == 0
    assert [row["step"] for row in training_run.read_log(tmp_path / "run")] == [2, 4, 6, 7]
    kept = ["checkpoint-00000006", "checkpoint-00000007"]
    assert [path.name for path in training_run.checkpoints(tmp_path / "run")] == kept
    assert mcml(*arguments("photos", "seldom", 7)).returncode == 0
    assert [path.name for path in training_run.checkpoints(tmp_path / "seldom")] == kept[1:]
    failed(
        mcml(*arguments("photos", "x", 7, "--log-every", 0)), 2, "--log-every: expected a whole number from 1"
    )
    failed(
        mcml(*arguments("photos", "x", 7, "--save-minutes", -1)),
        2,
        "--save-minutes: expected a number from 0",
    )


def test_a_damaged_newest_checkpoint_is_passed_over_and_that_is_said(mcml, photo_folder, tmp_path):
    often = ("--log-every", 1, "--save-minutes", 0)
    assert mcml(*arguments("photos", "run", 4, *often)).returncode == 0
    path = tmp_path / "run" / "checkpoint-00000004" / "state-000.pt"
    path.write_bytes(path.read_bytes()[:-1])
    shutil.copytree(tmp_path / "run" / "checkpoint-00000003", tmp_path / "run" / "checkpoint-best")
    done = mcml(*arguments("photos", "run", 5, *often))
    assert done.returncode == 0
    said = "run/checkpoint-00000004: not a whole checkpoint (its files differ from SHA256SUMS)"
    assert done.stderr.splitlines()[:2] == [f"{said}; the one before it is taken", "resumed at step 3"]
    for path in (tmp_path / "run").glob("checkpoint-*/state-000.pt"):
        path.write_bytes(b"")
    damaged = "run/checkpoint-00000005: not a whole checkpoint (its files differ from SHA256SUMS), nor is any"
    failed(mcml(*arguments("photos", "run", 5, *often)), 1, damaged)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(mcml, photo_folder, tmp_path, value):
    model = build(tiny_recipe().model, 1)
    next(model.streams["Y"].encoder.parameters()).data[0] = value
    weights.save_model(model, tmp_path / "bad", {})
    for words in (arguments("photos", "run", 1, "--from", "./bad"), ("train-entropy", "--steps", 1, "--data",
                  "photos", "--model", "./bad", "--run-dir", "run")):  # fmt: skip
        failed(mcml(*words), 1, "bad: streams.Y.encoder.", "not finite")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--variant independent", "model.variant was 'fusion', now 'independent'"),
        ("--quantizer scalar", "model.luma."),
        ("--train Cr", "stage.train was 'Cb,Cr', now 'Cr'"),
        ("--set train.precision=bf16", "train.precision was '32', now 'bf16'"),
        ("--set model.color.width=9", "model.color.width was 8, now 9"),
        ("--data other", "--data was 'photos@"),
        ("--from second/model", "--from was 'model@"),
        ("--take Y", "--from was 'model@"),
    ],
)
def test_what_differs_from_how_the_run_was_begun_is_refused_by_name(begun, mcml, tmp_path, words, said):
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}
    more = ("--variant", "fusion", "--from", "first/model", "--train", "Cb,Cr", *words.split())
    failed(mcml(*arguments("photos", "run", 2, *more)), 2, said, "give another --run-dir")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}


@pytest.fixture(scope="module")
def begun(tmp_path_factory, astronaut):
    """A folder with photographs, luma of two seeds and a run of colour on the first."""
    folder = tmp_path_factory.mktemp("begun")
    for name, picture in (("photos", astronaut), ("other", astronaut[::-1])):
        (folder / name).mkdir()
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / name / "one.png")
    for name, seed in (("first", 1), ("second", 2)):
        weights.save_model(build(tiny_recipe().model, seed), folder / name / "model", {})
    store = PatchStore([astronaut])
    initial = weights.load(folder / "first" / "model")
    sources = {"--data": f"photos@{image_set(str(folder / 'photos')).digest}"}
    sources["--from"] = f"model@{weights.digest(initial)}"
    recipe = tiny_recipe("fusion", **{"stage.train": "Cb,Cr", "train.steps": 1})
    Trainer(recipe, store, folder / "run", initial=initial, sources=sources).fit()
    return folder


def test_a_coder_is_trained_on_what_can_be_used_or_with_strict_refused(mcml, odd_folder, tmp_path):
    weights.save_model(build(tiny_recipe().model, 1), tmp_path / "model", {})
    Image.open(odd_folder / "one.png").resize((200, 192)).save(odd_folder / "one.png")
    words = ("train-entropy", "--model", "./model", "--data", "photos", "--steps", 1, "--run-dir", "run")
    failed(mcml(*words, "--strict"), 1, "5 of 8 pictures of photos cannot be used: photos/clear.png: ")
    done = mcml(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("5 of 8 pictures of photos are left out (--strict refuses them):\n")
    record = weights.load_config(tmp_path / "run" / "model")[1]["entropy"]
    assert (record["photographs"], record["left_out"]) == (3, sorted([*REFUSED, "line.png"]))
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint-00000001", "log.csv", "model"]


def test_the_second_training_in_a_folder_is_told_and_goes_on_when_the_first_was_killed(
    mcml, photo_folder, tmp_path
):
    words = arguments(photo_folder, tmp_path / "run", 4000, "--log-every", 1, "--save-minutes", 0)
    command, place = [sys.executable, "-m", "mcml", *words], {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=place, stderr=subprocess.DEVNULL)
    try:
        while not training_run.checkpoints(tmp_path / "run"):
            assert first.poll() is None
            time.sleep(0.05)
        failed(mcml(*words), 1, f"lock: process {first.pid} is training in this folder; wait")
    finally:
        first.kill()  # nothing is tidied up
    first.wait()
    reached = training_run.read_log(tmp_path / "run")[-1]["step"]
    second = mcml(*arguments(photo_folder, tmp_path / "run", reached + 1))
    assert second.returncode == 0 and "resumed at step" in second.stderr
    assert not (tmp_path / "run" / training_run.LOCK).exists()


# --------------------------------------------------------------------------- train-entropy


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def make(variant, seed=5):
        path = folder / f"{variant}{seed}"
        if not path.exists():
            weights.save_model(build(tiny_recipe(variant).model, seed), path, {"steps": 1})
        return path

    return make


@pytest.fixture
def large_folder(photo_folder):
    """A photograph that holds the crops of 192 x 192 pixels."""
    for path in photo_folder.iterdir():
        Image.open(path).resize((200, 192)).save(path)
    return photo_folder


def test_a_model_gets_a_coder_and_writes_files(mcml, model_of, large_folder, tmp_path):
    words = ("train-entropy", "--model", model_of("fusion"), "--data", "photos", "--steps", 3)
    words += ("--run-dir", "run")
    assert mcml(*words).returncode == 0
    out = tmp_path / "run" / "model"
    _, record = weights.load_config(out)
    assert record["steps"] == 1 and record["entropy"]["steps"] == 3
    assert record["entropy"]["data_hash"] == image_set(str(large_folder)).digest
    image = images.read_image(large_folder / "one.png")[:40, :56]
    coder = LearnedCodec(out)
    assert coder.decode(coder.encode(image, 50.0)).shape == image.shape
    assert equal_tensors(weights.load(out).state_dict(), weights.load(model_of("fusion")).state_dict())
    before = model_files.entropy_tensors(out)
    assert mcml(*words).returncode == 0  # a finished run is left as it is
    after = model_files.entropy_tensors(out)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    shutil.rmtree(out)
    result = mcml(*words, "--model", model_of("fusion", 8))
    assert result.returncode == 2
    assert re.search("--model was 'fusion5@.*now 'fusion8@.*give another --run-dir", result.stderr)


def test_a_coder_is_taken_over_only_where_bits_are_the_same(mcml, model_of, large_folder, tmp_path):
    words = ("--data", "photos", "--steps", 1, "--run-dir", "a")
    assert mcml("train-entropy", "--model", model_of("independent"), *words).returncode == 0
    source = tmp_path / "a" / "model"
    other = ("train-entropy", "--model", model_of("independent", 6))
    failed(mcml(*other, "--like", source, "--run-dir", "b"), 2, "--like: the models differ")
    failed(mcml(*other, *words), 2, "a/model: holds another model")
    fused, mine = weights.load(model_of("fusion", 7)), weights.load(source)
    for key, stream in fused.streams.items():
        stream.encoder.load_state_dict(mine.streams[key].encoder.state_dict())
        if stream.importance is not None:
            stream.importance.load_state_dict(mine.streams[key].importance.state_dict())
    weights.save_model(fused, tmp_path / "same", {}, compact=False)
    result = mcml("train-entropy", "--model", tmp_path / "same", "--like", source, "--run-dir", "c")
    assert result.returncode == 0, result.stderr
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    first = LearnedCodec(source).encode(image, 60.0)
    second = LearnedCodec(tmp_path / "c" / "model").encode(image, 60.0)
    assert len(first) == len(second) and first[24:28] == second[24:28]


def test_colours_coder_learns_without_luma_beside_the_luma_of_another(mcml, model_of, large_folder, tmp_path):
    words = ("train-entropy", "--model", model_of("fusion"), "--data", "photos", "--steps", 1, "--run-dir")
    assert mcml(*words, "a").returncode == 0
    more = ("--like", "a/model", "--train", "Cb,Cr", "--condition", "color")
    assert mcml(*words, "b", *more).returncode == 0
    first, second = (model_files.entropy_tensors(tmp_path / name / "model") for name in "ab")
    assert all(np.array_equal(first[name], second[name]) for name in first if name.startswith("Y."))
    assert not second["Cb.inherit_0"].any() and second["Cr.inherit_1"].any()
    entropy = weights.load_config(tmp_path / "b" / "model")[1]["entropy"]
    assert (entropy["condition"], entropy["like"], entropy["trained"]) == ("color", "model", ["Cb", "Cr"])
    failed(mcml(*words, "c", "--train", "Cb,Cr"), 2, "--train: give --like")
    shared = ("train", "--variant", "rgb", "--data", "photos", "--steps", 1, *tiny_arguments())
    for quantizer in ("binary", "scalar"):  # the joint baseline's files
        assert mcml(*shared, "--quantizer", quantizer, "--run-dir", quantizer).returncode == 0
    joint = "binary/model"
    assert mcml("train-entropy", "--model", joint, *words[3:], "coder").returncode == 0
    for model in ("coder", "scalar"):
        same = ("--model", f"{model}/model", "-o")
        assert mcml("compress", "photos/one.png", "--quality", 40, *same, f"{model}.mcml").returncode == 0
        assert "stream 1 " in mcml("identify", f"{model}.mcml").stdout
        assert mcml("decompress", f"{model}.mcml", *same, f"{model}.png").returncode == 0
        assert images.read_image(tmp_path / f"{model}.png").shape == (192, 200, 3)
        table = ("evaluate", "photos", "--codecs", f"{model}/model", "--csv", f"{model}.csv")
        assert mcml(*table).returncode == 0


@pytest.mark.parametrize(
    "words", [(), ("--steps", 1, "--threads", 0), ("--steps", 1, "--data", "nowhere")], ids=str
)
def test_mistakes_of_train_entropy_are_named(mcml, model_of, tmp_path, words):
    failed(mcml("train-entropy", "--model", model_of("luma"), "--run-dir", "run", *words), 2)
    assert not (tmp_path / "run" / "model").exists()


# ------------------------------------------------------------------------------------ info


@pytest.mark.parametrize("quantizer", ["binary", "scalar"])
def test_info_s_totals_are_the_sums_of_the_rows_that_it_prints(mcml, quantizer):
    said = mcml("info", "--quantizer", quantizer).stdout
    about = "|".join(map(re.escape, VARIANTS.values()))
    parts = re.split(rf"^(\w+): (?:{about})\n", said, flags=re.MULTILINE)
    assert parts[1::2] == list(VARIANTS)
    for variant, text in zip(parts[1::2], parts[2::2], strict=True):
        parameters, macs = re.match(r"  ([\d,]+) parameters, ([\d,]+) MACs a pixel\n", text).groups()
        rows = re.findall(r"^(?:Y|Cb|Cr|RGB) +(\w+) +(\d+) +(\d+)$", text, re.MULTILINE)
        own = [(int(count), int(cost)) for part, count, cost in rows if not part.endswith("_model")]
        assert int(parameters.replace(",", "")) == sum(count for count, _ in own) > 0
        assert int(macs.replace(",", "")) == pytest.approx(sum(cost for _, cost in own), abs=len(own))
        assert (len(own) < len(rows)) is (quantizer == "binary")
        assert ("  color: " in text) == (variant in ("independent", "fusion"))
    assert (
        mcml("info", "--variant", "rgb", "--quantizer", quantizer).stdout.splitlines()[:-1]
        == said.splitlines()[-len(rows) - 5 : -1]
    )


def test_info_refuses_what_it_does_not_know(mcml):
    known = f"unknown variant 'luna': did you mean 'luma'? known are {', '.join(sorted(VARIANTS))}"
    failed(mcml("info", "--variant", "luna"), 2, known)
    failed(mcml("info", "--profile", "x"), 2, "unknown training profile")
    failed(mcml("info", "--set", "model.luma.widht=3"), 2, "did you mean 'model.luma.width'")
