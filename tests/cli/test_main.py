"""The command line as a user meets it: what it prints, writes, refuses, and with which exit code."""

import csv
import json
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from mcml import __version__
from mcml.codec import interface as codec
from mcml.data import sets as data
from mcml.data.images import read_image
from mcml.lab import evaluate as evaluation
from mcml.lab.output import format_value
from mcml.metrics import distortion as metrics

PLAIN = {"_TYPER_FORCE_DISABLE_TERMINAL": "1"}  # GitHub's runners make typer colour its help


def strict(text):
    """Parse JSON as other languages do: without the words NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def failed(result, code, *words):
    """Assert one sentence on stderr and nothing else, and return it."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("mcml: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr


def fails_as_usage(result, *words):
    """Assert an error of the option parser: exit code 2, all of it on stderr."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def decoded(tmp_path, photo_folder):
    """A folder of JPEG copies of the two photographs."""
    folder = tmp_path / "decoded"
    folder.mkdir()
    for path in photo_folder.iterdir():
        Image.open(path).save(folder / f"{path.stem}.jpg", quality=40)
    return folder


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --------------------------------------------------------------------------------- compare


def test_compare_of_two_files_prints_a_rounded_table_and_nothing_else(mcml, photo_folder, decoded):
    result = mcml("compare", "photos/one.png", "decoded/one.jpg")
    assert (result.returncode, result.stderr) == (0, "")
    header, line = (text.split() for text in result.stdout.splitlines())
    assert header == ["image", *metrics.COLUMNS]
    row = metrics.compare(read_image(photo_folder / "one.png"), read_image(decoded / "one.jpg"))
    assert line == ["one", *(format_value(name, value) for name, value in vars(row).items())]


def test_compare_of_folders_as_json_holds_every_pair_and_their_mean(mcml, photo_folder, decoded):
    result = mcml("compare", "photos", "decoded", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    content = strict(result.stdout)
    assert list(content) == ["rows", "mean"]
    assert [row.pop("image") for row in content["rows"]] == ["one", "two"]
    for row, name in zip(content["rows"], ("one", "two"), strict=True):
        pair = read_image(photo_folder / f"{name}.png"), read_image(decoded / f"{name}.jpg")
        assert row == vars(metrics.compare(*pair))
    assert content["mean"].pop("images") == 2
    assert content["mean"].pop("identical") == 0
    first, second = content["rows"]
    assert content["mean"] == pytest.approx({name: (first[name] + second[name]) / 2 for name in first})


def test_folders_with_an_identical_pair_say_what_the_mean_leaves_out(mcml, photo_folder, decoded):
    (decoded / "one.jpg").unlink()
    shutil.copy(photo_folder / "one.png", decoded)
    result = mcml("compare", "photos", "decoded")
    assert (result.returncode, result.stderr) == (0, "")
    header, first, second, mean, note = result.stdout.splitlines()
    psnr = header.split().index("psnr")
    assert first.split()[psnr] == "inf"
    assert mean.startswith("mean of 2")
    assert mean.split()[psnr + 2] == second.split()[psnr]
    assert note == "1 of 2 pairs are identical: infinite dB are not in the mean."


def test_json_of_identical_and_of_tiny_images_is_valid(mcml, photo_folder, tmp_path):
    result = mcml("compare", "photos/one.png", "photos/one.png", "--json")
    assert result.returncode == 0
    assert '"psnr": 1e999' in result.stdout
    content = strict(result.stdout)
    assert content["rows"][0]["psnr"] == content["mean"]["psnr"] == math.inf
    assert content["rows"][0]["ciede2000"] == 0
    assert content["mean"]["identical"] == 1
    for name, value in (("a", 3), ("b", 9)):
        Image.new("RGB", (5, 4), (value, value, 0)).save(tmp_path / f"{name}.png")
    content = strict(mcml("compare", "a.png", "b.png", "--json").stdout)
    assert content["rows"][0]["ssim"] is content["mean"]["ssim"] is None  # no window fits
    assert content["rows"][0]["mse"] == 24


@pytest.mark.parametrize(
    "second, code, words",
    [
        ("nowhere.png", 1, ["nowhere.png: no such file or folder"]),
        ("photos", 2, ["photos/one.png and photos: give two files or two folders"]),
        ("text.png", 1, ["text.png: not an image"]),
        ("photos/two.png", 1, ["one.png is 160 x 128", "two.png is 96 x 128", "sizes must be equal"]),
    ],
)
def test_compare_of_a_file_with_something_unfit_is_refused(mcml, photo_folder, tmp_path, second, code, words):
    (tmp_path / "text.png").write_text("no picture")
    failed(mcml("compare", "photos/one.png", second), code, *words)


def test_folders_that_do_not_pair_are_refused_by_name(mcml, photo_folder, decoded):
    (decoded / "two.jpg").rename(decoded / "three.jpg")
    failed(mcml("compare", "photos", "decoded"), 1, "names differ: 'three' is only in decoded (2 without")
    shutil.copy(decoded / "one.jpg", photo_folder)
    failed(mcml("compare", "photos", "decoded"), 1, "one.png", "one.jpg", "have one name")


# --------------------------------------------------------------------------------- evaluate


def test_evaluate_writes_the_table_and_its_run_beside_it(mcml, photo_folder, tmp_path):
    command = ["evaluate", "photos", "--codecs", "webp,jpeg420", "--bpp", "0.2,1.5", "--csv", "new/t.csv"]
    result = mcml(*command)
    assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "new") == ["t.csv", "t.csv.run.json"]
    with (tmp_path / "new" / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*evaluation.KEYS, *metrics.COLUMNS]
    paths = sorted(photo_folder.iterdir())
    expected = evaluation.evaluate(paths, ["webp", "jpeg420"], [0.2, 1.5], workers=1)
    assert len(rows) == 8
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        assert (row["image"], row["codec"]) == (wanted["image"], wanted["codec"])
        assert row["reached"] == str(wanted["reached"])
        for name in ("quality", "target_bpp", "bpp", *metrics.COLUMNS):
            assert float(row[name]) == pytest.approx(wanted[name], rel=1e-15, nan_ok=True)

    run = strict((tmp_path / "new" / "t.csv.run.json").read_text())
    assert run["parameters"] == {
        "folder": "photos",
        "codecs": ["webp", "jpeg420"],
        "target_bpp": [0.2, 1.5],
    }
    assert run["data_hash"] == data.image_set(str(photo_folder)).digest
    assert run["images"] == 2

    header, *means = result.stdout.splitlines()
    assert header.split()[:4] == ["codec", "target_bpp", "quality", "bpp"]
    shown = [tuple(line.split()[:2]) for line in means]
    assert shown == [("webp", "0.200"), ("webp", "1.500"), ("jpeg420", "0.200"), ("jpeg420", "1.500")]
    *notes, last = result.stderr.splitlines()
    assert notes == [f"note: {sentence}" for sentence in evaluation.misses(expected)]
    assert any("jpeg420 missed 0.2 bpp" in note for note in notes)
    assert last == "8 rows in new/t.csv"


def test_without_rates_each_codec_runs_its_own_qualities_and_the_run_names_the_whole_command(
    mcml, photo_folder, tmp_path
):
    command = "evaluate photos --codecs webp --workers 1 --csv t.csv"
    assert mcml(*command.split()).returncode == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        qualities = [float(row["quality"]) for row in csv.DictReader(file) if row["image"] == "two"]
    assert tuple(qualities) == codec.get_codec("webp").qualities
    run = strict((tmp_path / "t.csv.run.json").read_text())
    assert run["parameters"]["target_bpp"] is None
    assert run["command"].endswith(command)


def test_run_json_holds_what_explains_a_table(mcml, photo_folder, tmp_path):
    mcml("evaluate", "photos", "--codecs", "webp", "--bpp", "1", "--workers", "1", "--csv", "t.csv")
    run = strict((tmp_path / "t.csv.run.json").read_text())
    assert {"command", "parameters", "commit", "dirty", "versions"} <= set(run)
    assert {"data_hash", "device", "threads", "seconds"} <= set(run)


def test_existing_table_is_kept_unless_overwrite_is_given(mcml, photo_folder, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("mine\n")
    command = ["evaluate", "photos", "--codecs", "webp", "--bpp", "1", "--workers", "1", "--csv", "t.csv"]
    failed(mcml(*command), 2, "t.csv exists: give --overwrite to replace it")
    assert table.read_text() == "mine\n"
    assert not (tmp_path / "t.csv.run.json").exists()
    assert mcml(*command, "--overwrite").returncode == 0
    assert table.read_text().startswith("image,codec,")


def test_existing_run_json_of_another_table_is_kept_unless_overwrite_is_given(mcml, photo_folder, tmp_path):
    (tmp_path / "t.csv.run.json").write_text("mine")
    result = mcml("evaluate", "photos", "--codecs", "webp", "--bpp", "1", "--workers", "1", "--csv", "t.csv")
    assert (tmp_path / "t.csv.run.json").read_text() == "mine"
    failed(result, 2, "t.csv.run.json exists")


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["photos", "--codecs", "wepb"], 2, ["unknown codec 'wepb': did you mean 'webp'?"]),
        (["photos", "--codecs", " , "], 2, ["--codecs is empty"]),
        (["photos", "--codecs", "webp", "--bpp", "0.3,x"], 2, ["bpp list '0.3,x': expected rates above 0"]),
        (["photos", "--codecs", "webp", "--bpp", "-1"], 2, ["bpp list '-1': expected rates above 0"]),
        (["empty", "--codecs", "webp"], 1, ["empty: holds no image"]),
        (["./nowhere", "--codecs", "webp"], 1, ["nowhere: no such folder"]),
        (["kodac", "--codecs", "webp"], 2, ["unknown data set 'kodac': did you mean 'kodak'?"]),
        (["train", "--codecs", "webp"], 1, ["data set 'train' not found (MCML_DATA is not set)"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) > 1 else "",
)
def test_evaluate_refuses_with_one_sentence_and_writes_nothing(
    mcml, photo_folder, tmp_path, arguments, code, words
):
    (tmp_path / "empty").mkdir()
    before = files_of(tmp_path)
    failed(mcml("evaluate", *arguments, "--csv", "out/t.csv", MCML_DATA=""), code, *words)
    assert files_of(tmp_path) == before


def test_rate_out_of_reach_is_an_error_after_the_table_with_the_others_is_written(
    mcml, photo_folder, tmp_path
):
    result = mcml("evaluate", "photos", "--codecs", "webp", "--bpp", "0.5,0.001", "--csv", "t.csv")
    assert result.returncode == 1
    assert "target 0.001 bpp is out of reach" in result.stderr.splitlines()[-1]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 5


def test_unreadable_image_among_good_ones_leaves_no_table(mcml, photo_folder, tmp_path):
    (photo_folder / "zoo.png").write_text("no picture")
    before = files_of(tmp_path)
    result = mcml("evaluate", "photos", "--codecs", "webp", "--bpp", "1", "--workers", "1", "--csv", "t.csv")
    failed(result, 1, "photos/zoo.png: not an image")
    assert files_of(tmp_path) == before


def test_table_that_cannot_be_written_is_named_and_nothing_is_left(mcml, photo_folder, tmp_path):
    before = files_of(tmp_path)
    result = mcml(
        "evaluate",
        "photos",
        "--codecs",
        "webp",
        "--bpp",
        "1",
        "--workers",
        "1",
        "--csv",
        "photos/one.png/t.csv",
    )
    failed(result, 1, "photos/one.png/t.csv: cannot be written")
    assert files_of(tmp_path) == before


def test_folder_given_as_table_is_refused_as_such(mcml, photo_folder):
    failed(mcml("evaluate", "photos", "--codecs", "webp", "--csv", "photos"), 2, "photos is a folder")


# ---------------------------------------------------------------------- data, help, parsing


def test_data_lists_every_set_with_its_state_and_licence(mcml):
    result = mcml("data", MCML_DATA="")
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["data", "set", "images", "state", "what", "licence"]
    by_name = {line.split()[0]: line for line in lines}
    assert list(by_name) == list(data.registry())
    for name, line in by_name.items():
        assert data.registry()[name]["title"] in line
        assert data.registry()[name]["licence"] in line
    assert by_name["embedded"].split()[1] == "7"
    assert "here, hash as registered" in by_name["embedded"]
    assert "downloaded on first use, or set MCML_DATA" in by_name["kodak"]
    assert "not here: set MCML_DATA" in by_name["train"]


def test_data_tells_another_folder_of_the_name_from_the_registered_one(mcml, photo_folder, tmp_path):
    sets = tmp_path / "sets"
    (sets / "kodak").mkdir(parents=True)
    shutil.copytree(photo_folder, sets / "train")
    for i in range(1, 25):
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(sets / "kodak" / f"kodim{i:02}.png")
    lines = mcml("data", MCML_DATA=os.fspath(sets)).stdout.splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert "2  here, differs from the registry" in by_name["train"]
    assert "damaged" in by_name["kodak"]
    assert "not here: set MCML_DATA" in by_name["valid"]


def test_data_does_not_ask_for_mcml_data_where_a_file_of_the_set_is_missing(mcml, tmp_path):
    (tmp_path / "kodak").mkdir()
    lines = mcml("data", MCML_DATA=os.fspath(tmp_path)).stdout.splitlines()
    (kodak,) = [line for line in lines if line.startswith("kodak")]
    assert "set MCML_DATA" not in kodak


def test_help_and_version_go_to_stdout_only(mcml):
    result = mcml("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"mcml {__version__}\n", "")
    result = mcml("-h", **PLAIN)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[0] == "Usage:"
    for word in ("compare", "evaluate", "reproduce", "data", "--debug", "--version"):
        assert word in result.stdout
    result = mcml("evaluate", "--help", **PLAIN)
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("--codecs", "--csv", "--bpp", "--workers", "--overwrite"):
        assert word in result.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["frobnicate"], ["No such command 'frobnicate'"]),
        (["compare", "a.png", "b.png", "--jason"], ["No such option", "--jason"]),
        (["evaluate", "photos", "--codecs", "webp"], ["Missing option '--csv'"]),
        (
            ["evaluate", "photos", "--codecs", "webp", "--csv", "t.csv", "--workers", "-1"],
            ["--workers", "greater than or equal to 0"],
        ),
    ],
    ids=["command", "option", "missing", "value"],
)
def test_unknown_commands_and_options_are_refused_by_name(mcml, arguments, words):
    fails_as_usage(mcml(*arguments, **PLAIN), *words)


def test_debug_shows_where_an_error_came_from(mcml):
    result = mcml("--debug", "compare", "a.png", "b.png")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("DataError: a.png: no such file or folder")
