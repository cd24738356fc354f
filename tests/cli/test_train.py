"""`mcml train` and `mcml info` as a user starts them: what they write, refuse and survive."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, equal_tensors, tiny_arguments
from PIL import Image

from mcml.cli import train as train_cli
from mcml.data.sets import image_set
from mcml.model import weights
from mcml.model.settings import VARIANTS, Recipe
from mcml.training import run as training_run


def command(*arguments):
    return [sys.executable, "-m", "mcml", *map(str, arguments)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def arguments(data, run_dir, steps=3, *more, **settings):
    return [
        *("train", "--data", str(data), "--run-dir", str(run_dir), "--steps", str(steps), "--log-every", "1"),
        *tiny_arguments(**settings),
        *more,
    ]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------- train


def test_train_writes_a_model_a_log_and_its_validation(photo_folder, tmp_path):
    valid = tmp_path / "valid"
    valid.mkdir()
    (photo_folder / "two.png").rename(valid / "two.png")
    options = ["--valid", "valid", "--variant", "fusion", "--threads", "1"]
    done = subprocess.run(
        command(*arguments("photos", "run", 4, *options)),
        capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoint-00000004", "log.csv", "model", "validation.csv",
    ]  # fmt: skip
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
    assert record["data_hash"] == image_set(str(photo_folder)).digest  # as evaluate and the notebooks say
    assert record["torch"] == torch.__version__

    validation = rows_of(run / "validation.csv")
    bpp = [float(row["estimated_bpp"]) for row in validation]
    assert [float(row["dial"]) for row in validation] == sorted(float(row["dial"]) for row in validation)
    assert len(bpp) == 6 and bpp == sorted(bpp) and bpp[0] < bpp[-1]  # the dial opens the mask
    parts = [sum(float(row[f"estimated_bpp_{key}"]) for key in ("Y", "Cb", "Cr")) for row in validation]
    assert parts == pytest.approx(bpp)
    assert {"psnr", "psnr_Y", "psnr_Cb", "psnr_Cr", "importance_Y"} <= validation[0].keys()
    shown = list(csv.DictReader(done.stdout.splitlines(), delimiter="\t"))
    assert [float(row["psnr"]) for row in shown] == pytest.approx(
        [float(row["psnr"]) for row in validation], abs=1e-4
    )
    assert "finished at step 4" in done.stderr


def saved_step(run):
    """The step of the newest checkpoint, 0 for none."""
    found = training_run.latest(run)
    return 0 if found is None else int(found.name.removeprefix("checkpoint-"))


def wait_for(process, condition):
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_run_that_was_killed_and_then_terminated_goes_on_to_the_same_end(photo_folder, tmp_path):
    """SIGKILL leaves the last checkpoint, SIGTERM writes one; the same command goes on from either."""
    run = tmp_path / "run"
    steps = 200
    same = arguments(photo_folder, run, steps, **{"stage.encoder_from": 0.0})
    first = subprocess.Popen(
        command(*same, "--save-minutes", "0"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    wait_for(first, lambda: saved_step(run) > 5)
    first.kill()
    first.communicate()
    killed_at = saved_step(run)
    assert first.returncode == -signal.SIGKILL and 5 < killed_at < steps
    assert not (run / "model").exists()

    second = subprocess.Popen(
        command(*same), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
    )
    log = training_run.log_file(run)
    wait_for(second, lambda: int(rows_of(log)[-1]["step"] or 0) > killed_at + 5)
    second.terminate()
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 0, said
    assert f"resumed at step {killed_at}" in said and "the same command goes on" in said
    assert killed_at < saved_step(run) < steps
    assert weights.load_config(run / "model")[1]["ended"] == "interrupted"

    assert train_cli.main(same) == 0
    assert weights.load_config(run / "model")[1]["ended"] == "finished"
    assert [int(row["step"]) for row in rows_of(log)] == list(range(1, steps + 1))
    whole = tmp_path / "whole"
    assert train_cli.main(arguments(photo_folder, whole, steps, **{"stage.encoder_from": 0.0})) == 0
    ended, expected = (training_run.read_checkpoint(training_run.latest(folder)) for folder in (run, whole))
    for name in ("learner", "averaged"):
        assert equal_tensors(ended[name], expected[name]), name
    moments = [state["optimizer"]["state"] for state in (ended, expected)]
    assert all(equal_tensors(moments[0][index], moments[1][index]) for index in moments[1])


def test_colour_is_trained_on_the_luma_of_another_run(photo_folder, tmp_path):
    assert train_cli.main(arguments(photo_folder, tmp_path / "luma")) == 0
    luma = weights.load(tmp_path / "luma" / "model")
    more = ["--variant", "fusion", "--from", str(tmp_path / "luma" / "model"), "--train", "Cb,Cr"]
    assert train_cli.main(arguments(photo_folder, tmp_path / "fusion", 3, *more)) == 0
    fusion = weights.load(tmp_path / "fusion" / "model")
    assert equal_tensors(fusion.streams["Y"].state_dict(), luma.streams["Y"].state_dict())
    record = weights.load_config(tmp_path / "fusion" / "model")[1]
    assert record["from"] == {"name": "model", "sha256": weights.digest(luma)}
    assert record["trained"] == ["Cb", "Cr"]


@pytest.mark.parametrize(
    "options, steps, minutes",
    [
        (["--steps", "7"], 7, 0.0),
        (["--minutes", "0.5"], 0, 0.5),
        (["--steps", "7", "--minutes", "0.5"], 7, 0.5),
        (["--steps", "7", "--set=train.steps=3"], 7, 0.0),
    ],
)
def test_budgets_of_the_command_line_replace_the_profile(photo_folder, tmp_path, options, steps, minutes):
    """A checkpoint that has spent every budget ends the run at once; its record tells the settings."""
    base = ["train", "--data", str(photo_folder), "--run-dir", str(tmp_path / "run"), *tiny_arguments()]
    assert train_cli.main([*base, "--steps", "1"]) == 0
    state = training_run.read_checkpoint(training_run.latest(tmp_path / "run"))
    training_run.write_checkpoint(tmp_path / "run", state | {"step": 10**6, "elapsed_s": 1e6})
    assert train_cli.main([*base, *options]) == 0
    train = weights.load_config(tmp_path / "run" / "model")[1]["recipe"]["train"]
    assert (train["steps"], train["minutes"]) == (steps, minutes)


def refused(capsys, code, *arguments):
    """Return the one line that the command says before it ends with `code`."""
    assert train_cli.main([str(a) for a in arguments]) == code
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert not said.out and "Traceback" not in said.err
    return line


def test_photographs_smaller_than_a_patch_are_refused(capsys, tmp_path):
    (tmp_path / "small").mkdir()
    Image.fromarray(np.zeros((20, 31, 3), np.uint8)).save(tmp_path / "small" / "a.png")
    line = refused(capsys, 1, *arguments(tmp_path / "small", tmp_path / "run"))
    assert "patch of 32 x 32" in line and "31 x 20" in line


def test_folders_without_photographs_are_refused(capsys, photo_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, 1, *arguments(tmp_path / "empty", tmp_path / "run"))
    line = refused(capsys, 1, *arguments(photo_folder, tmp_path / "run", 3, "--valid", tmp_path / "empty"))
    assert "empty" in line
    (photo_folder / "three.png").write_text("no picture")
    assert "three.png: not an image" in refused(capsys, 1, *arguments(photo_folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_mistakes_on_the_command_line_are_told_by_name(capsys, photo_folder, tmp_path):
    def say(code, *more, data=photo_folder):
        return refused(capsys, code, *arguments(data, tmp_path / "run", 3, *more))

    assert "unknown variant 'fuson': did you mean 'fusion'" in say(2, "--variant", "fuson")
    assert "unknown training profile 'qick': did you mean 'quick'" in say(2, "--profile", "qick")
    assert "did you mean 'train.steps'" in say(2, "--set", "train.stepps=3")
    assert "expected table.name=value" in say(2, "--set", "train.steps")
    assert "unknown stream 'Cd'" in say(2, "--train", "Y,Cd")
    assert "--threads" in say(2, "--threads", "0")
    assert "nowhere" in say(2, data="nowhere")
    assert "nowhere" in say(1, data=tmp_path / "nowhere")
    assert "unknown model 'none'" in say(2, "--from", "none")
    assert "none: no such folder" in say(1, "--from", tmp_path / "none")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_configuration_or_in_a_file_s_place_is_refused(
    capsys, photo_folder, tmp_path
):
    assert train_cli.main(arguments(photo_folder, tmp_path / "run")) == 0
    capsys.readouterr()
    line = refused(capsys, 2, *arguments(photo_folder, tmp_path / "run", 3, "--set", "train.seed=1"))
    assert "train.seed was 0, now 1" in line and "--run-dir" in line
    (tmp_path / "file").write_text("kept")
    line = refused(capsys, 1, *arguments(photo_folder, tmp_path / "file"))
    assert str(tmp_path / "file") in line and "cannot be written" in line


def test_a_run_goes_on_only_on_the_photographs_and_the_model_that_it_was_begun_with(
    capsys, photo_folder, tmp_path
):
    assert train_cli.main(arguments(photo_folder, tmp_path / "luma")) == 0
    begun = ("--from", str(tmp_path / "luma" / "model"))
    assert train_cli.main(arguments(photo_folder, tmp_path / "run", 3, *begun)) == 0
    capsys.readouterr()
    line = refused(capsys, 2, *arguments(photo_folder, tmp_path / "run"))
    assert "--from was 'model@" in line and line.endswith("now None; give another --run-dir")
    photos = photo_folder.rename(tmp_path / "moved")
    assert train_cli.main(arguments(photos, tmp_path / "run", 3, *begun)) == 0
    (photos / "two.png").unlink()
    capsys.readouterr()
    line = refused(capsys, 2, *arguments(photos, tmp_path / "run", 3, *begun))
    assert "--data was 'moved@" in line and "now 'moved@" in line and "give another --run-dir" in line


def test_a_run_that_diverges_ends_with_a_sentence(capsys, photo_folder, tmp_path):
    settings = {"train.lr": 1e9, "stage.encoder_from": 0.0}
    line = refused(capsys, 1, *arguments(photo_folder, tmp_path / "run", 30, **settings))
    assert line.startswith("error: step ") and "smaller learning rate (lr)" in line
    assert not (tmp_path / "run" / "model").exists()


def test_argparse_ends_with_2_and_debug_shows_the_traceback(capsys, tmp_path):
    for wrong in (["train"], ["train", "--run-dir", "x", "--steps", "few"], ["trian"], []):
        with pytest.raises(SystemExit) as ended:
            train_cli.main(wrong)
        assert ended.value.code == 2
    with pytest.raises(Exception, match="unknown variant"):
        train_cli.main(["info", "--variant", "none", "--debug"])


# ------------------------------------------------------------------------------------ info


def test_info_prints_every_variant_and_what_it_costs(capsys):
    assert train_cli.main(["info"]) == 0
    said = capsys.readouterr().out
    for variant, meaning in VARIANTS.items():
        assert f"{variant}: {meaning}" in said
    assert said.count("parameters, ") == len(VARIANTS)


def test_info_s_totals_are_the_sums_of_its_rows(capsys):
    assert train_cli.main(["info", "--json", "--profile", "gpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(VARIANTS)
    for variant, content in found.items():
        rows = [row for row in content["rows"] if not row["part"].endswith("_model")]
        assert content["parameters"] == sum(row["parameters"] for row in rows) > 0
        assert content["macs_per_pixel"] == pytest.approx(sum(row["macs_per_pixel"] for row in rows))
        assert content["config"]["variant"] == variant


def test_info_counts_the_parameters_of_the_networks_that_are_trained(capsys):
    assert train_cli.main(["info", "--variant", "fusion", "--json", *tiny_arguments()]) == 0
    rows = json.loads(capsys.readouterr().out)["fusion"]["rows"]
    from mcml.model.model import build
    from mcml.model.settings import load_recipe

    settings = [argument.removeprefix("--set=") for argument in tiny_arguments()]
    model = build(load_recipe("quick", "fusion", settings).model)
    counted = {
        (key, part): sum(p.numel() for p in getattr(stream, part).parameters())
        for key, stream in model.streams.items()
        for part in ("encoder", "importance", "decoder", "bit_model", "level_model")
    }
    assert {(row["stream"], row["part"]): row["parameters"] for row in rows} == counted


def test_info_refuses_what_it_does_not_know(capsys):
    assert "did you mean 'fusion'" in refused(capsys, 2, "info", "--variant", "fuson")
    assert "unknown training profile" in refused(capsys, 2, "info", "--profile", "x")
    assert "did you mean 'model.luma.width'" in refused(capsys, 2, "info", "--set", "model.luma.widht=3")


def test_python_m_mcml_hands_train_and_info_over():
    done = subprocess.run(
        command("info", "--variant", "luna"), capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 2 and not done.stdout
    assert (
        done.stderr.strip()
        == "error: unknown variant 'luna': did you mean 'luma'? known are " + ", ".join(sorted(VARIANTS))
    )
