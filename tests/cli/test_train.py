"""`mcml train`, `train-entropy` and `info` as a user starts them: what they write, refuse and survive."""

import csv
import math
import os
import re
import shutil
import subprocess
import sys

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
        ("--data small", 1, "patch of 32 x 32: the nearest is 31 x 20"),
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
