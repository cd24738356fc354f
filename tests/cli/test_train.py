"""`mcml train`, `train-entropy` and `info` as a user starts them: what they write, refuse and survive."""

import csv
import json
import math
import os
import shutil
import signal
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
from mcml.data.sets import image_set
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.settings import VARIANTS, Recipe
from mcml.training import run as training_run


def arguments(data, run_dir, steps=3, *more, **settings):
    words = ["train", "--data", data, "--run-dir", run_dir, "--steps", steps, "--log-every", 1]
    return [*map(str, words), *tiny_arguments(**settings), *map(str, more)]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------- train


def test_train_writes_a_model_a_log_and_its_validation(mcml, photo_folder, tmp_path):
    valid = tmp_path / "valid"
    valid.mkdir()
    (photo_folder / "two.png").rename(valid / "two.png")
    options = ("--valid", "./valid", "--variant", "fusion", "--threads", 1)
    done = mcml(*arguments("photos", "run", 4, *options))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    names = ["checkpoint-00000004", "log.csv", "model", "validation.csv"]
    assert sorted(p.name for p in run.iterdir()) == names
    log = training_run.read_log(run)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert log[-1]["spent"] == 1
    assert all(math.isfinite(v) for row in log for k, v in row.items() if not k.startswith("estimated_bpp"))
    assert math.isfinite(log[0]["estimated_bpp_Cr"])

    model = weights.load(run / "model")
    averaged = training_run.read_checkpoint(run / "checkpoint-00000004")["averaged"]
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in averaged.items()}
    assert equal_tensors(model.state_dict(), rounded)
    config, record = weights.load_config(run / "model")
    assert config.variant == "fusion" and Recipe().changed(**record["recipe"]).model == config
    assert (record["steps"], record["photographs"], record["ended"]) == (4, 1, "finished")
    assert (record["processes"], record["threads"], record["trained"]) == (1, 1, ["Y", "Cb", "Cr"])
    assert record["command"].startswith("mcml train --data photos")
    assert record["data_hash"] == image_set(str(photo_folder)).digest  # as everywhere
    assert record["torch"] == torch.__version__

    validation = rows_of(run / "validation.csv")
    bpp = [float(row["estimated_bpp"]) for row in validation]
    assert [float(row["dial"]) for row in validation] == sorted(float(row["dial"]) for row in validation)
    assert len(bpp) == 6 and bpp == sorted(bpp) and bpp[0] < bpp[-1]  # the dial opens the mask
    parts = [sum(float(row[f"estimated_bpp_{key}"]) for key in ("Y", "Cb", "Cr")) for row in validation]
    assert parts == pytest.approx(bpp)
    assert {"psnr", "psnr_Y", "psnr_Cb", "psnr_Cr", "importance_Y"} <= validation[0].keys()
    header, *lines = (line.split() for line in done.stdout.splitlines())
    shown = [dict(zip(header, line, strict=True)) for line in lines]
    assert [float(row["psnr"]) for row in shown] == pytest.approx(
        [float(row["psnr"]) for row in validation], abs=0.006
    )
    assert "finished at step 4" in done.stderr


def saved_step(run):
    """The step of the newest checkpoint, 0 for none."""
    newest = training_run.latest(run)
    return 0 if newest is None else int(newest.name.removeprefix("checkpoint-"))


def wait_for(process, condition):
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def start(words):
    return subprocess.Popen(
        [sys.executable, "-m", "mcml", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_run_that_was_killed_and_then_terminated_goes_on_to_the_same_end(mcml, photo_folder, tmp_path):
    """SIGKILL leaves the last checkpoint, SIGTERM writes one; the same command goes on from either."""
    run, whole, steps = tmp_path / "run", tmp_path / "whole", 120
    same = arguments(photo_folder, run, steps, **{"stage.encoder_from": 0.0})
    first = start([*same, "--save-minutes", "0"])
    wait_for(first, lambda: saved_step(run) > 5)
    first.kill()
    first.communicate()
    killed_at = saved_step(run)
    assert first.returncode == -signal.SIGKILL and 5 < killed_at < steps
    assert not (run / "model").exists()

    second = start(same)
    log = run / training_run.LOG
    wait_for(second, lambda: int(rows_of(log)[-1]["step"] or 0) > killed_at + 5)
    second.terminate()
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 143, said
    assert f"resumed at step {killed_at}" in said
    assert said.endswith("mcml: terminated; the same command goes on from here\n")
    assert killed_at < saved_step(run) < steps
    assert weights.load_config(run / "model")[1]["ended"] == "interrupted"

    assert mcml(*same).returncode == 0
    assert weights.load_config(run / "model")[1]["ended"] == "finished"
    assert [int(row["step"]) for row in rows_of(log)] == list(range(1, steps + 1))
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


@pytest.mark.parametrize(
    "options, steps, minutes",
    [
        (["--steps", 7], 7, 0.0),
        (["--minutes", 0.5], 0, 0.5),
        (["--steps", 7, "--minutes", 0.5], 7, 0.5),
        (["--steps", 7, "--set=train.steps=3"], 7, 0.0),
    ],
)
def test_budgets_of_the_command_line_replace_the_profile(
    mcml, photo_folder, tmp_path, options, steps, minutes
):
    """A checkpoint that has spent every budget ends the run at once; its record tells the settings."""
    base = ["train", "--data", "photos", "--run-dir", "run", *tiny_arguments()]
    assert mcml(*base, "--steps", 1).returncode == 0
    state = training_run.read_checkpoint(training_run.latest(tmp_path / "run"))
    training_run.write_checkpoint(tmp_path / "run", state | {"step": 10**6, "elapsed_s": 1e6})
    assert mcml(*base, *options).returncode == 0
    train = weights.load_config(tmp_path / "run" / "model")[1]["recipe"]["train"]
    assert (train["steps"], train["minutes"]) == (steps, minutes)


@pytest.mark.parametrize(
    "more, code, words",
    [
        (["--variant", "fuson"], 2, ["unknown variant 'fuson': did you mean 'fusion'"]),
        (["--profile", "qick"], 2, ["unknown training profile 'qick': did you mean 'quick'"]),
        (["--set", "train.stepps=3"], 2, ["did you mean 'train.steps'"]),
        (["--set", "train.steps"], 2, ["expected table.name=value"]),
        (["--train", "Y,Cd"], 2, ["unknown stream 'Cd'"]),
        (["--threads", 0], 2, ["--threads", "expected a whole number from 1"]),
        (["--data", "nowhere"], 2, ["nowhere"]),
        (["--data", "./nowhere"], 1, ["nowhere"]),
        (["--from", "none"], 2, ["unknown model 'none'"]),
        (["--from", "runs/none"], 1, ["none: no such folder"]),
        (["--data", "empty"], 1, ["empty"]),
        (["--valid", "empty"], 1, ["empty"]),
        (["--data", "small"], 1, ["patch of 32 x 32", "31 x 20"]),
        (["--data", "broken"], 1, ["three.png: not an image"]),
        (["--run-dir", "file"], 1, ["file", "cannot be written"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_sentence_before_anything_is_written(
    mcml, photo_folder, tmp_path, more, code, words
):
    for name in ("empty", "small", "broken"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "small" / "a.png")
    (tmp_path / "broken" / "three.png").write_text("no picture")
    (tmp_path / "file").write_text("kept")
    failed(mcml(*arguments("photos", "run", 3, *more)), code, *words)
    assert not files_of(tmp_path / "run")


def test_a_run_folder_of_another_run_or_model_is_refused(mcml, photo_folder, tmp_path):
    assert mcml(*arguments("photos", "run")).returncode == 0
    changed = mcml(*arguments("photos", "run", 3, "--set", "train.seed=1"))
    failed(changed, 2, "train.seed was 0, now 1", "--run-dir")
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "model").rename(tmp_path / "other" / "model")
    before = (tmp_path / "other" / "model" / "config.json").read_bytes()
    failed(mcml(*arguments("photos", "other")), 2, "other/model: holds a model", "--run-dir")
    assert (tmp_path / "other" / "model" / "config.json").read_bytes() == before


def test_a_run_goes_on_only_on_the_photographs_and_the_model_that_it_was_begun_with(
    mcml, photo_folder, tmp_path
):
    assert mcml(*arguments("photos", "luma")).returncode == 0
    begun = ("--from", "luma/model")
    assert mcml(*arguments("photos", "run", 3, *begun)).returncode == 0
    failed(mcml(*arguments("photos", "run")), 2, "--from was 'model@", "now None; give another --run-dir")
    photo_folder.rename(tmp_path / "moved")
    assert mcml(*arguments("moved", "run", 3, *begun)).returncode == 0
    (tmp_path / "moved" / "two.png").unlink()
    result = mcml(*arguments("moved", "run", 3, *begun))
    failed(result, 2, "--data was 'moved@", "now 'moved@", "give another --run-dir")


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


BRIEFLY = ("--data", "photos", "--side", 4, "--batch", 2)


def test_a_model_gets_a_coder_and_writes_files(mcml, model_of, photo_folder, tmp_path):
    words = ("train-entropy", "--model", model_of("fusion"), *BRIEFLY, "--steps", 3, "--run-dir", "run")
    assert mcml(*words).returncode == 0
    out = tmp_path / "run" / "model"
    _, record = weights.load_config(out)
    assert record["steps"] == 1 and record["entropy"]["steps"] == 3
    assert record["entropy"]["data_hash"] == image_set(str(photo_folder)).digest
    image = images.read_image(photo_folder / "one.png")[:40, :56]
    coder = LearnedCodec(out)
    assert coder.decode(coder.encode(image, 50.0)).shape == image.shape
    assert equal_tensors(weights.load(out).state_dict(), weights.load(model_of("fusion")).state_dict())
    before = model_files.entropy_tensors(out)
    assert mcml(*words).returncode == 0  # a finished run is left as it is
    after = model_files.entropy_tensors(out)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    shutil.rmtree(out)
    result = mcml(*words, "--model", model_of("fusion", 8))
    assert result.returncode == 2 and "--model was 'fusion5@" in result.stderr
    assert "now 'fusion8@" in result.stderr and "give another --run-dir" in result.stderr


def test_a_coder_is_taken_over_only_where_bits_are_the_same(mcml, model_of, photo_folder, tmp_path):
    base = ("train-entropy", "--model", model_of("independent"))
    assert mcml(*base, *BRIEFLY, "--steps", 1, "--run-dir", "a").returncode == 0
    source = tmp_path / "a" / "model"
    other = ("train-entropy", "--model", model_of("independent", 6))
    failed(mcml(*other, "--like", source, "--run-dir", "b"), 2, "--like: the models differ")
    failed(mcml(*other, *BRIEFLY, "--steps", 1, "--run-dir", "a"), 2, "a/model: holds another model")
    fused, mine = weights.load(model_of("fusion", 7)), weights.load(source)
    for key, stream in fused.streams.items():
        stream.encoder.load_state_dict(mine.streams[key].encoder.state_dict())
        if stream.importance is not None:
            stream.importance.load_state_dict(mine.streams[key].importance.state_dict())
    weights.save_model(fused, tmp_path / "same", {}, half=False)
    result = mcml("train-entropy", "--model", tmp_path / "same", "--like", source, "--run-dir", "c")
    assert result.returncode == 0, result.stderr
    image = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)
    first = LearnedCodec(source).encode(image, 60.0)
    second = LearnedCodec(tmp_path / "c" / "model").encode(image, 60.0)
    assert len(first) == len(second) and first[24:28] == second[24:28]


@pytest.mark.parametrize(
    "words", [(), ("--steps", 1, "--threads", 0), ("--steps", 1, "--data", "nowhere")], ids=str
)
def test_mistakes_of_train_entropy_are_named(mcml, model_of, tmp_path, words):
    failed(mcml("train-entropy", "--model", model_of("luma"), "--run-dir", "run", *words), 2)
    assert not (tmp_path / "run" / "model").exists()


# ------------------------------------------------------------------------------------ info


def test_info_s_totals_are_the_sums_of_the_rows_that_it_prints(mcml):
    contents = json.loads(mcml("info", "--json").stdout)
    assert list(contents) == list(VARIANTS)
    said = mcml("info").stdout
    for variant, content in contents.items():
        assert f"{variant}: {VARIANTS[variant]}\n  {content['parameters']:,} parameters, " in said
        rows = [row for row in content["rows"] if not row["part"].endswith("_model")]
        assert content["parameters"] == sum(row["parameters"] for row in rows) > 0
        assert content["macs_per_pixel"] == pytest.approx(sum(row["macs_per_pixel"] for row in rows))
        assert content["config"]["variant"] == variant


def test_info_refuses_what_it_does_not_know(mcml):
    known = ", ".join(sorted(VARIANTS))
    failed(
        mcml("info", "--variant", "luna"),
        2,
        f"unknown variant 'luna': did you mean 'luma'? known are {known}",
    )
    failed(mcml("info", "--profile", "x"), 2, "unknown training profile")
    failed(mcml("info", "--set", "model.luma.widht=3"), 2, "did you mean 'model.luma.width'")
