"""Files written whole or not at all, tables that read back, and what `run.json` records."""

import hashlib
import json
import math
import sys

import matplotlib
import numpy as np
import pandas
import pytest

from mcml.base import files
from mcml.lab import output as output_

matplotlib.use("Agg")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_rows_come_from_a_dataframe_or_from_dicts():
    rows = [{"image": "a", "bpp": 0.5}, {"image": "b", "bpp": 1.0}]
    assert output_.as_rows(pandas.DataFrame(rows)) == output_.as_rows(iter(rows)) == rows


@pytest.mark.parametrize(
    "column, value, text",
    [
        ("ssim", 0.91249, "0.912"),
        ("psnr", 31.456, "31.46"),
        ("quality", 12.34, "12.3"),
        ("ms_ssim_scales", 5.0, "5"),
        ("psnr", math.inf, "inf"),
        ("bias_l", -math.inf, "-inf"),
        ("blur", math.nan, "n/a"),
        ("images", 24, "24"),
        ("bpp", np.float64(0.25), "0.250"),
        ("reached", True, "True"),
        ("codec", "webp", "webp"),
        ("quality", None, ""),
    ],
)
def test_values_are_rounded_by_column(column, value, text):
    assert output_.format_value(column, value) == text


def test_markdown_is_rounded_escaped_and_blank_where_missing():
    rows = [{"codec": "a|b", "psnr": 30.126}, {"psnr": math.inf, "n": 2}]
    assert output_.to_markdown(rows) == (
        "| codec | psnr | n |\n| --- | --- | --- |\n| a\\|b | 30.13 |  |\n|  | inf | 2 |\n"
    )


def test_markdown_rows_stay_on_one_line_and_columns_apart():
    lines = output_.to_markdown([{"a|b": "two\nlines"}]).splitlines()
    assert len(lines) == 3
    assert all(line.replace(r"\|", "").count("|") == 2 for line in lines)


def test_latex_is_a_booktabs_table_with_numbers_to_the_right():
    text = output_.to_latex([{"codec": "jpeg_420", "psnr": 30.126}], "50 % of A & B #1")
    assert text.splitlines() == [
        r"\begin{table}",
        r"\caption{50 \% of A \& B \#1}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"codec & psnr \\",
        r"\midrule",
        r"jpeg\_420 & 30.13 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize("character", [*"_%&#${}~^\\"])
def test_latex_never_passes_a_special_character_as_it_stands(character):
    line = output_.to_latex([{"image": f"a{character}b"}]).splitlines()[6]
    assert line.startswith("a\\")
    assert line != rf"a{character}b \\"


# -------------------------------------------------------------------------------- provenance


@pytest.fixture
def output(monkeypatch, tmp_path):
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path))
    monkeypatch.delenv("MCML_COMMAND", raising=False)
    return lambda: output_.Output("02_demo", "quick", {"target_bpp": 0.3}, data_hash="abc", seed=7)


def save_all(out):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    out.table("means", [{"codec": "webp", "psnr": 30.123456789}], "Means & more")
    out.figure("curve", figure, "A curve", [{"x": 1, "y": 2.5}])


def test_output_writes_all_files_and_their_hashes(output, tmp_path):
    out = output()
    save_all(out)
    folder = out.finish()
    assert folder == tmp_path / "quick" / "02_demo"
    written = ["curve.csv", "curve.png", "means.csv", "means.md", "means.tex"]
    assert names(folder) == sorted([*written, "run.json"])
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record["files"] == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in written}
    assert (folder / "means.csv").read_text() == "codec,psnr\nwebp,30.123456789\n"
    assert "| webp | 30.12 |" in (folder / "means.md").read_text()
    assert r"\caption{Means \& more}" in (folder / "means.tex").read_text()
    assert (folder / "curve.csv").read_text() == "x,y\n1,2.5\n"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_run_json_says_what_was_run_and_where(output):
    out = output()
    save_all(out)
    record = json.loads((out.finish() / "run.json").read_text("utf-8"))
    wanted = {"command", "parameters", "commit", "dirty", "versions"}
    assert wanted | {"data_hash", "seed", "device", "threads", "seconds"} <= set(record)
    assert record["parameters"] == {"target_bpp": 0.3}
    assert (record["notebook"], record["profile"]) == ("02_demo", "quick")
    assert (record["data_hash"], record["seed"]) == ("abc", 7)
    assert record["tables"] == [{"name": "means", "caption": "Means & more", "text_columns": ["codec"]}]
    assert record["figures"] == [{"name": "curve", "caption": "A curve"}]
    assert record["versions"]["numpy"] == np.__version__
    assert record["seconds"] >= 0


def test_run_json_appears_only_when_all_is_written(output):
    out = output()
    save_all(out)
    assert not (out.folder / "run.json").exists()
    out.finish()
    assert (out.folder / "run.json").exists()


def test_a_second_run_that_stops_half_way_leaves_the_first_ones_results_whole(output):
    first = output()
    save_all(first)
    first.finish()
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    second = output()
    second.table("means", [{"codec": "webp", "psnr": 1.0}], "Other means")
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    third = output()
    third.table("other", [{"codec": "webp"}], "Other")
    third.finish()
    assert {path.name for path in first.folder.iterdir()} == {
        "other.csv",
        "other.md",
        "other.tex",
        "run.json",
    }
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_run_json_names_only_this_runs_files(output):
    first = output()
    first.table("dropped", [{"x": 1}], "Not made any more")
    first.finish()
    second = output()
    second.table("means", [{"x": 1}], "Means")
    record = json.loads((second.finish() / "run.json").read_text("utf-8"))
    assert set(record["files"]) == {"means.csv", "means.md", "means.tex"}


def test_the_command_can_be_given_by_who_started_the_notebook(output, monkeypatch):
    monkeypatch.setenv("MCML_COMMAND", "mcml run 02")
    out = output()
    out.table("means", [{"x": 1}], "Means")
    assert json.loads((out.finish() / "run.json").read_text("utf-8"))["command"] == "mcml run 02"


def test_a_run_that_saves_nothing_still_records_itself(output):
    assert json.loads((output().finish() / "run.json").read_text("utf-8"))["files"] == {}


def test_provenance_names_commit_versions_and_machine():
    record = output_.provenance()
    keys = {"command", "commit", "dirty", "versions", "device", "machine", "cores", "threads", "load"}
    assert keys <= set(record)
    assert len(record["commit"]) == 40 or record["commit"] == "unknown"
    assert isinstance(record["dirty"], bool)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(output_.PACKAGES) <= set(record["versions"])
    json.dumps(record)


@pytest.mark.parametrize("threads", ["", "2", "4,2"])  # a list is OpenMP's way to say it by nesting level
def test_provenance_takes_every_legal_omp_num_threads(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert output_.provenance()["threads"] in ("default", 2, 4, "4,2")


RELEASED = sorted((files.repo_root() / "results" / "released").glob("*/run.json"))


@pytest.mark.parametrize("record", RELEASED, ids=lambda path: path.parent.name)
def test_released_tables_are_those_of_a_clean_run(record):
    run = json.loads(record.read_text("utf-8"))
    assert run["dirty"] is False and len(run["commit"]) == 40
    kept = [path for path in record.parent.iterdir() if path.name != "run.json"]
    assert kept
    for path in kept:
        assert run["files"][path.name] == files.sha256(path), path.name
