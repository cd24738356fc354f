"""Files written whole or not at all, tables that read back, and what `run.json` records."""

import hashlib
import json
import math
import os
import resource
import sys
import time

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

from mcml.base import files
from mcml.base.errors import DataError
from mcml.lab import output as output_


def test_rows_come_from_a_dataframe_or_from_dicts():
    rows = [{"image": "a", "bpp": 0.5}, {"image": "b", "bpp": 1.0}]
    assert output_.as_rows(pandas.DataFrame(rows)) == output_.as_rows(iter(rows)) == rows


@pytest.mark.parametrize(
    "column, value, text",
    [
        *(("ssim", 0.91249, "0.912"), ("psnr", 31.456, "31.46"), ("quality", 12.34, "12.3")),
        *(("ms_ssim_scales", 5.0, "5"), ("images", 24, "24"), ("bpp", np.float64(0.25), "0.250")),
        *(("psnr", math.inf, "inf"), ("bias_l", -math.inf, "-inf"), ("blur", math.nan, "n/a")),
        *(("reached", True, "True"), ("codec", "webp", "webp"), ("quality", None, "")),
    ],
)
def test_values_are_rounded_by_column(column, value, text):
    assert output_.format_value(column, value) == text


def test_markdown_is_rounded_escaped_blank_where_missing_and_one_line_a_row():
    rows = [{"codec": "a|b", "psnr": 30.126}, {"psnr": math.inf, "a|n": "two\nlines"}]
    expected = "| codec | psnr | a\\|n |\n| --- | --- | --- |\n| a\\|b | 30.13 |  |\n|  | inf | two lines |\n"
    assert output_.to_markdown(rows) == expected


def test_latex_is_a_booktabs_table_with_numbers_to_the_right():
    lines = output_.to_latex([{"codec": "jpeg_420", "psnr": 30.126}], "50 % of A & B #1").splitlines()
    assert lines[:3] == [r"\begin{table}", r"\caption{50 \% of A \& B \#1}", r"\begin{tabular}{lr}"]
    assert lines[3:5] == [r"\toprule", r"codec & psnr \\"]
    assert lines[5:8] == [r"\midrule", r"jpeg\_420 & 30.13 \\", r"\bottomrule"]
    assert lines[8:] == [r"\end{tabular}", r"\end{table}"]


@pytest.mark.parametrize("character", [*"_%&#${}~^\\"])
def test_latex_never_passes_a_special_character_as_it_stands(character):
    cell = output_.to_latex([{"image": f"a{character}b"}]).splitlines()[4]
    caption = output_.to_latex([{"image": 1}], f"a{character}b").splitlines()[1]
    for line, plain in ((cell, rf"a{character}b \\"), (caption, rf"\caption{{a{character}b}}")):
        assert "a\\" in line and line != plain


def test_on_a_terminal_one_row_and_rows_too_wide_are_lists_and_only_long_names_are_cut(monkeypatch, capsys):
    long, wide = {"file": "f" * 99, "n": 1}, {f"column_{i}": i for i in range(9)}
    monkeypatch.setenv("COLUMNS", "80")
    output_.print_table([wide, wide])
    assert len(capsys.readouterr().out.splitlines()) == 3  # what another program reads
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output_.print_table([long])
    assert capsys.readouterr().out == f"file  {'f' * 99}\nn     1\n"
    output_.print_table([wide, wide])
    assert capsys.readouterr().out.startswith("column_0  0\ncolumn_1  1\n")
    output_.print_table([long, long])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len(lines[1]) == 80 and lines[1].startswith("..f")


# -------------------------------------------------------------------------------- provenance


@pytest.fixture
def output(monkeypatch, tmp_path):
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path))
    monkeypatch.setenv("MCML_COMMAND", "mcml run 02")
    return lambda: output_.Output("02_demo", "quick", {"target_bpp": 0.3}, data_hash="abc", seed=7)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_output_writes_all_files_with_their_hashes_and_says_what_was_run_and_where(output, tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    out = output()
    out.table("means", [{"codec": "webp", "psnr": 30.123456789}], "Means & more")
    out.figure("curve", figure, "Figure 1.1: a curve", [{"x": 1, "y": 2.5}])
    with pytest.raises(ValueError, match=r"curve\.csv was saved before"):
        out.table("curve", [{"x": 1}], "The same name")
    assert not out.folder.exists()  # whole or not at all
    folder = out.finish()
    assert folder == output_.results_root() / "quick" / "02_demo" == tmp_path / "quick" / "02_demo"
    written = contents(folder)
    record = json.loads(written.pop("run.json"))
    assert sorted(written) == ["curve.csv", "curve.png", "means.csv", "means.md", "means.tex"]
    assert record["files"] == {name: hashlib.sha256(raw).hexdigest() for name, raw in written.items()}
    assert written["means.csv"] == b"codec,psnr\nwebp,30.123456789\n"
    assert b"| webp | 30.12 |" in written["means.md"]
    assert rb"\caption{Means \& more}" in written["means.tex"]
    assert written["curve.csv"] == b"x,y\n1,2.5\n"
    assert written["curve.png"].startswith(b"\x89PNG")
    assert {"commit", "dirty", "versions", "device", "threads", "machine", "cores", "load"} <= set(record)
    about = {"notebook": "02_demo", "profile": "quick", "parameters": {"target_bpp": 0.3}}
    about |= {"data_hash": "abc", "seed": 7, "command": "mcml run 02"}
    about |= {"tables": [{"name": "means", "caption": "Means & more", "text_columns": ["codec"]}]}
    about |= {"figures": [{"name": "curve", "caption": "Figure 1.1: a curve", "alt": "a curve"}]}
    assert about.items() <= record.items()
    assert record["versions"]["numpy"] == np.__version__
    assert record["seconds"] >= 0


def test_sessions_of_one_notebook_do_not_meet_and_the_last_to_finish_stays(output):
    first, second, third = output(), output(), output()
    first.table("means", [{"x": 1}], "Means")
    second.table("means", [{"x": 2}], "Means")
    third.table("other", [{"x": 3}], "Other")
    first.finish()
    assert (first.folder / "means.csv").read_text() == "x\n1\n"
    before = contents(first.folder)
    second.table("more", [{"x": 2}], "More")
    assert contents(first.folder) == before
    del second  # stopped half way
    third.finish()
    assert set(contents(first.folder)) == {"other.csv", "other.md", "other.tex", "run.json"}
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_only_what_killed_runs_left_behind_long_ago_is_removed(output):
    parent = output().folder.parent
    for name, age_s in (("old", 30 * 86400), ("young", 3600)):
        folder = parent / f".02_demo.{name}.partial"
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s,) * 2)
    output()
    assert [path.name for path in parent.iterdir()] == [".02_demo.young.partial"]


def test_a_full_disk_is_one_sentence_and_leaves_no_results(output):
    out, limits = output(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(DataError, match=r"big\.csv: cannot be written \(File too large\)"):
            out.table("big", [{"n": i} for i in range(1000)], "Too big.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not out.folder.exists()


@pytest.mark.parametrize("mask, file_mode, folder_mode", [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_results_follow_the_umask(output, mask, file_mode, folder_mode):
    before = os.umask(mask)
    try:
        out = output()
        out.table("means", [{"x": 1}], "Means")
        folder = out.finish()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {file_mode}
    assert folder.stat().st_mode & 0o777 == folder_mode


def test_provenance_names_commit_versions_and_machine_and_results_are_the_checkout_s(monkeypatch):
    monkeypatch.delenv("MCML_COMMAND", raising=False)
    monkeypatch.setenv("MCML_RESULTS", "")
    assert output_.results_root() == files.repo_root() / "results"
    record = output_.provenance()
    assert record["command"] == output_.command_line() != ""
    assert len(record["commit"]) == 40 or record["commit"] == "unknown"
    assert isinstance(record["dirty"], bool)
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(output_.PACKAGES) <= set(record["versions"])
    json.dumps(record)


@pytest.mark.parametrize("threads", ["", "2", "4,2"])  # a list is OpenMP's way to say it by nesting level
def test_provenance_takes_every_legal_omp_num_threads(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert output_.provenance()["threads"] == (threads or "default")


RELEASED = sorted((files.repo_root() / "results" / "released").rglob("run.json"))


@pytest.mark.parametrize("record", RELEASED, ids=lambda path: path.parent.name)
def test_released_tables_are_those_of_a_clean_run(record):
    run = json.loads(record.read_text("utf-8"))
    if "commit" in run.get("not recorded", ()):  # measured before records were kept
        assert run["what"] and run["judged by"] and run["first published"]
        return
    assert run["dirty"] is False and len(run["commit"]) == 40
    kept = list(record.parent.glob("*.csv"))
    assert kept
    for path in kept:
        assert run["files"][path.name] == files.sha256(path), path.name
