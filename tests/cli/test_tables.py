"""Tables from the command line: what compare, evaluate and data print, write and refuse."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from helpers import failed, files_of
from PIL import Image

from mcml.codec import interface as codec
from mcml.codec.learned import LearnedCodec
from mcml.data import sets as data
from mcml.data.images import read_image
from mcml.lab import evaluate as evaluation
from mcml.lab.output import format_value
from mcml.metrics import distortion as metrics


def strict(text):
    """Parse JSON as other languages do: without the words NaN and Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture
def decoded(tmp_path, photo_folder):
    """A folder of JPEG copies of the two photographs."""
    folder = tmp_path / "decoded"
    folder.mkdir()
    for path in photo_folder.iterdir():
        Image.open(path).save(folder / f"{path.stem}.jpg", quality=40)
    return folder


def rows_of(path, image):
    return [row for row in csv.DictReader(path.read_text().splitlines()) if row["image"] == image]


# --------------------------------------------------------------------------------- compare


@pytest.mark.parametrize("more", ["", "--all"])
def test_compare_of_two_files_prints_a_rounded_list_and_nothing_else(mcml, photo_folder, decoded, more):
    result = mcml("compare", "photos/one.png", "decoded/one.jpg", *more.split())
    assert (result.returncode, result.stderr) == (0, "")
    row = vars(metrics.compare(read_image(photo_folder / "one.png"), read_image(decoded / "one.jpg")))
    names = metrics.COLUMNS if more else ("psnr", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle")
    expected = {"image": "one"} | {name: format_value(name, row[name]) for name in names}
    assert dict(line.split() for line in result.stdout.splitlines()) == expected


def test_a_table_fits_80_columns_and_with_all_every_metric_is_there(mcml, photo_folder, decoded):
    lines = mcml("compare", "photos", "decoded").stdout.splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    header, *_ = mcml("compare", "photos", "decoded", "--all").stdout.splitlines()
    assert header.split() == ["image", *metrics.COLUMNS]


def test_compare_decodes_mcml_files_on_either_side(mcml, photo_folder, tmp_path):
    fusion = LearnedCodec("fusion")
    (tmp_path / "files").mkdir()
    for name in ("one", "two"):
        file = fusion.encode(read_image(photo_folder / f"{name}.png"), 40)
        (tmp_path / "files" / f"{name}.mcml").write_bytes(file)
    pair = read_image(photo_folder / "two.png"), fusion.decode(file)
    for words, images in (
        (["photos/two.png", "files/two.mcml"], pair), (["files/two.mcml", "photos/two.png"], pair[::-1]),
        (["photos", "files"], pair), (["photos", "files", "--model", fusion.folder], pair),
    ):  # fmt: skip
        row = strict(mcml("compare", *words, "--json").stdout)["rows"][-1]
        assert row == {"image": "two", **vars(metrics.compare(*images))}
    wrong = mcml("compare", "photos/one.png", "files/one.mcml", "--model", "scalar_fusion")
    failed(wrong, 1, "files/one.mcml: the file was written by fusion: scalar_fusion cannot decode it")
    failed(mcml("compare", "photos/one.png", "files/two.mcml"), 1, "sizes must be equal")
    (tmp_path / "files" / "two.mcml").write_bytes(file[:-5])
    failed(mcml("compare", "photos/two.png", "files/two.mcml"), 1, "files/two.mcml: the file ends within")


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
    result = mcml("compare", "photos/one.png", "--json", "photos/one.png")  # options may stand anywhere
    assert result.returncode == 0
    content = strict(result.stdout)
    assert content["rows"][0]["psnr"] is content["mean"]["psnr"] is None
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
        ("a.mcml", 1, ["a.mcml: not an mcml file: it does not begin with 'MCML'"]),
        ("photos/two.png", 1, ["one.png is 160 x 128", "two.png is 96 x 128", "sizes must be equal"]),
    ],
)
def test_compare_of_a_file_with_something_unfit_is_refused(mcml, photo_folder, tmp_path, second, code, words):
    for name in ("text.png", "a.mcml"):
        (tmp_path / name).write_text("no picture")
    failed(mcml("compare", "photos/one.png", second), code, *words)


def test_what_has_no_partner_is_told_and_the_others_are_measured(mcml, photo_folder, decoded):
    (decoded / "two.jpg").rename(decoded / "three.jpg")
    result = mcml("compare", "photos", "decoded")
    assert result.returncode == 1 and "one" in result.stdout
    assert result.stderr.splitlines() == [
        "mcml: decoded/three.jpg: has no partner in photos",
        "mcml: photos/two.png: has no partner in decoded",
    ]
    shutil.copy(decoded / "one.jpg", photo_folder)
    failed(mcml("compare", "photos", "decoded"), 1, "two images are named one")


def test_folders_without_a_pair_end_in_1_and_print_nothing(mcml, photo_folder, decoded):
    for name in ("one", "two"):
        (decoded / f"{name}.jpg").rename(decoded / f"other {name}.jpg")
    result = mcml("compare", "photos", "decoded")
    assert (result.returncode, result.stdout, result.stderr.count("has no partner")) == (1, "", 4)


# --------------------------------------------------------------------------------- evaluate


def test_evaluate_writes_the_table_and_its_run_beside_it(mcml, photo_folder, tmp_path):
    command = "evaluate photos --codecs webp,jpeg420 --bpp 0.2,1.5 --csv new/t.csv"
    result = mcml(*command.split())
    assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "new") == ["t.csv", "t.csv.run.json"]
    rows = [row for name in ("one", "two") for row in rows_of(tmp_path / "new" / "t.csv", name)]
    assert list(rows[0]) == [*evaluation.KEYS, *metrics.COLUMNS]
    paths = sorted(photo_folder.iterdir())
    expected = evaluation.evaluate(paths, ["webp", "jpeg420"], [0.2, 1.5], workers=1)
    assert len(rows) == 8
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        assert [row[name] for name in ("image", "codec")] == [wanted[name] for name in ("image", "codec")]
        assert row["reached"] == str(wanted["reached"])
        for name in ("quality", "target_bpp", "bpp", *metrics.COLUMNS):
            assert float(row[name]) == pytest.approx(wanted[name], rel=1e-9, nan_ok=True)
    run = strict((tmp_path / "new" / "t.csv.run.json").read_text())
    assert run["parameters"] == {"folder": "photos", "codecs": ["webp", "jpeg420"], "target_bpp": [0.2, 1.5]}
    assert run["data_hash"] == data.image_set(str(photo_folder)).digest and run["images"] == 2
    assert run["command"] == f"mcml {command}"
    assert {"commit", "dirty", "versions", "device", "threads", "seconds"} <= set(run)
    header, *means = result.stdout.splitlines()
    columns = ["codec", "target_bpp", "quality", "bpp", "psnr", "ms_ssim", "ciede2000"]
    assert header.split() == columns and len(header) <= 80
    shown = [tuple(line.split()[:2]) for line in means]
    assert shown == [("webp", "0.200"), ("webp", "1.500"), ("jpeg420", "0.200"), ("jpeg420", "1.500")]
    *notes, last = result.stderr.splitlines()
    assert notes == [f"note: {sentence}" for sentence in evaluation.misses(expected)]
    assert any("jpeg420 missed 0.2 bpp" in note for note in notes)
    assert last == "8 rows in new/t.csv"


def test_a_learned_codec_is_searched_or_without_rates_runs_its_own_qualities(mcml, photo_folder, tmp_path):
    fusion, image = LearnedCodec("fusion"), read_image(photo_folder / "two.png")
    shutil.copytree(fusion.folder, tmp_path / "mine")
    for name, rates in (("fusion", ["--bpp", "0.2"]), ("mine", [])):
        words = ["evaluate", "photos", "--codecs", name, *rates, "--csv", f"{name}.csv", "--workers", 1]
        assert mcml(*words).returncode == 0
    searched, own = (rows_of(tmp_path / f"{name}.csv", "two") for name in ("fusion", "mine"))
    nearest = codec.encode_at_bpp(fusion, image, 0.2)
    assert [(row["quality"], row["bpp"]) for row in searched] == [(str(nearest.quality), str(nearest.bpp))]
    psnr = metrics.compare(image, fusion.decode(nearest.data)).psnr
    assert float(searched[0]["psnr"]) == pytest.approx(psnr)
    assert strict((tmp_path / "mine.csv.run.json").read_text())["parameters"]["target_bpp"] is None
    assert [float(row["quality"]) for row in own] == list(fusion.qualities)
    encode = fusion.encoder(image)
    for row in own:
        assert float(row["bpp"]) == codec.bits_per_pixel(encode(float(row["quality"])), image)


@pytest.mark.parametrize("words", ["photos", "photos/*.png", "photos/one.png photos/two.png"])
def test_evaluate_of_files_and_folders_prints_without_writing(mcml, photo_folder, tmp_path, words):
    before = files_of(tmp_path)
    shared = ["evaluate", *words.split(), "--codecs", "webp,jpeg444", "--bpp", "0.5", "--workers", 1]
    content = strict(mcml(*shared, "--json").stdout)
    expected = evaluation.evaluate(sorted(photo_folder.iterdir()), ["webp", "jpeg444"], [0.5], workers=1)
    assert content["rows"] == expected.to_dict("records")
    assert [(row["codec"], row["images"]) for row in content["means"]] == [("webp", 2), ("jpeg444", 2)]
    header, *means = mcml(*shared, "--all").stdout.splitlines()
    assert set(metrics.COLUMNS) < set(header.split()) and len(means) == 2
    assert files_of(tmp_path) == before


def test_one_evaluated_codec_and_rate_is_a_list_and_transparency_has_a_background(mcml, tmp_path):
    Image.new("RGBA", (48, 40), (250, 0, 0, 100)).save(tmp_path / "a.png")
    shared = ["evaluate", "a.png", "--codecs", "webp", "--bpp", "1", "--workers", "1"]
    failed(mcml(*shared), 1, "a.png: has transparent pixels", "--background white")
    result = mcml(*shared, "--background", "black", "--csv", "t.csv")
    assert dict(line.split() for line in result.stdout.splitlines())["codec"] == "webp"
    assert strict((tmp_path / "t.csv.run.json").read_text())["parameters"]["background"] == [0, 0, 0]


WEBP = ["evaluate", "photos", "--codecs", "webp", "--bpp", "1", "--workers", "1"]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.run.json"])
def test_an_existing_table_and_its_record_are_kept_unless_overwrite_is_given(
    mcml, photo_folder, tmp_path, name
):
    (tmp_path / name).write_text("mine")
    before = files_of(tmp_path)
    sentence = f"{name} exists: name another with --csv, or --overwrite replaces it"
    failed(mcml(*WEBP, "--csv", "t.csv"), 2, sentence)
    assert (tmp_path / name).read_text() == "mine" and files_of(tmp_path) == before
    assert mcml(*WEBP, "--csv", "t.csv", "--overwrite").returncode == 0
    assert (tmp_path / "t.csv").read_text().startswith("image,codec,")


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("photos --codecs wepb", 2, "unknown codec 'wepb': did you mean 'webp'?"),
        ("photos --codecs ,", 2, "--codecs is empty"),
        ("photos --bpp 0.3,x", 2, "bpp list '0.3,x': expected rates above 0"),
        ("photos --bpp -1", 2, "bpp list '-1': expected rates above 0"),
        ("empty", 1, "empty: holds no image"),
        ("broken/one.png", 1, "broken/one.png: not an image"),
        ("./nowhere", 1, "nowhere: no such folder"),
        ("kodac", 2, "unknown data set 'kodac': did you mean 'kodak'?"),
        ("train", 1, "data set 'train' not found (MCML_DATA is not set)"),
        ("photos --csv photos/one.png/t.csv", 1, "photos/one.png/t.csv: cannot be written"),
        ("photos --csv photos/one.png", 2, "--csv photos/one.png: a table's name ends in .csv"),
        ("photos --csv photos", 2, "--csv photos: a table's name ends in .csv"),
        ("photos --csv folder.csv", 2, "folder.csv exists"),
        ("none.png", 1, "none.png: no such file"),
        ("photos/one.png none.png", 1, "none.png: no such file"),
        ("photos no*.png", 1, "no*.png: no file has a name of this pattern"),
        ("embedded photos/one.png", 2, "embedded is a data set, which stands alone: data sets and files"),
        ("photos/one.png embedded", 2, "embedded is a data set, which stands alone: data sets and files"),
        ("no*.png", 1, "no*.png: no file has a name of this pattern"),
        ("photos/one.png broken/one.png", 1, "two images are named one"),
    ],
)
def test_evaluate_refuses_with_one_sentence_and_writes_nothing(
    mcml, photo_folder, tmp_path, words, code, said
):
    for name in ("empty", "broken", "folder.csv"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "zoo.png").write_text("no picture")
    (tmp_path / "broken" / "one.png").write_text("no picture")
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    base = ["evaluate", "--codecs", "webp", "--csv", "out/t.csv", "--workers", 1, "--overwrite"]
    failed(mcml(*base, *words.split(), MCML_DATA=""), code, said)
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before


def test_rate_out_of_reach_is_an_error_after_the_table_with_the_others_is_written(
    mcml, photo_folder, tmp_path
):
    result = mcml(*WEBP, "--bpp", "0.5,0.001", "--csv", "t.csv")
    assert result.returncode == 1
    assert "target 0.001 bpp is out of reach" in result.stderr.splitlines()[-1]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 5


def test_evaluate_at_equal_bytes_adds_codecs_to_a_folder_and_says_where_curves_end(
    mcml, photo_folder, tmp_path
):
    words = ["evaluate", "photos", "--out", "new/curves", "--at-bpp", "1,0.4,0.01", "--workers", 1]
    assert mcml(*words, "--codecs", "webp").returncode == 0
    result = mcml(*words, "--codecs", "jpeg2000,webp")
    assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "new/curves") == ["bd_rate.csv", "means.csv", "points.csv", "run.json"]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [tuple(line[:2]) for line in lines[1:7]] == [
        (name, rate) for name in ("webp", "jpeg2000") for rate in ("0.010", "0.400", "1.000")
    ]
    assert lines[0] == ["codec", "bpp", "psnr", "ms_ssim", "ciede2000", "extended"]
    assert lines[7] == ["codec", "anchor", "column", "bd_rate_percent", "overlap", "images"]
    assert "note: webp: at 0.01 bpp the curves of 2 of 2 pictures end before: left blank" in result.stderr
    assert strict((tmp_path / "new/curves/run.json").read_text())["runs"][1]["rates_bpp"] == [0.01, 0.4, 1]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--csv t.csv --out t", "--csv for a table of files or --out for a folder of curves: give one"),
        ("--out t --bpp 0.3", "--at-bpp goes with --out, --bpp and --background without it"),
        ("--out t --background red", "--at-bpp goes with --out, --bpp and --background without it"),
        ("--csv t.csv --at-bpp 0.3", "--at-bpp goes with --out, --bpp and --background without it"),
        ("--out t --at-bpp 0", "bpp list '0': expected rates above 0"),
    ],
)
def test_a_table_of_files_and_a_folder_of_curves_are_asked_for_apart(mcml, photo_folder, words, said):
    failed(mcml("evaluate", "photos", "--codecs", "webp", *words.split()), 2, said)


# ------------------------------------------------------------------------------------ data


def test_data_lists_every_set_with_its_state_and_licence(mcml):
    result = mcml("data", MCML_DATA="")
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["name", "images", "state"] and max(map(len, lines)) <= 80
    for row in strict(mcml("data", "--json", MCML_DATA="").stdout)["rows"]:
        entry = data.registry()[row["name"]]
        assert (row["title"], row["licence"]) == (entry["title"], entry["licence"])
        assert row["images"] == (7 if row["name"] == "embedded" else None)
    assert mcml("data", "--all").stdout.splitlines()[0].split() == list(row)
    by_name = {line.split()[0]: line for line in lines}
    assert list(by_name) == list(data.registry())
    assert by_name["embedded"].split()[1] == "7"
    assert "here, hash as registered" in by_name["embedded"]
    assert "downloaded on first use, or set MCML_DATA" in by_name["kodak"]
    assert "not here: set MCML_DATA" in by_name["train"]


@pytest.mark.parametrize("pictures", [24, 0])
def test_data_tells_another_folder_of_the_name_from_the_registered_one(
    mcml, photo_folder, tmp_path, pictures
):
    sets = tmp_path / "sets"
    (sets / "kodak").mkdir(parents=True)
    shutil.copytree(photo_folder, sets / "train")
    for i in range(pictures):
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(sets / "kodak" / f"kodim{i + 1:02}.png")
    lines = mcml("data", MCML_DATA=os.fspath(sets)).stdout.splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert "2  here, differs from the registry" in by_name["train"]
    assert "damaged or incomplete" in by_name["kodak"] and "set MCML_DATA" not in by_name["kodak"]
    assert "not here: set MCML_DATA" in by_name["valid"]


def test_a_picture_without_a_suffix_is_evaluated_as_any_other(mcml, photo_folder):
    shutil.copy(photo_folder / "one.png", photo_folder.parent / "plain")
    result = mcml("evaluate", "plain", "--codecs", "jpeg420", "--bpp", "1.5", "--json")
    assert result.returncode == 0 and '"image": "plain"' in result.stdout
