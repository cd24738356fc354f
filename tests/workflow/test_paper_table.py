"""The paper's table: the poster's rows as printed, and curves read at its rates."""

import importlib.util
import json

import pandas as pd
import pytest
from helpers import ROOT

from mcml.base.files import sha256
from mcml.metrics.distortion import COLUMNS

spec = importlib.util.spec_from_file_location("paper_table", ROOT / "workflow/scripts/paper_table.py")
paper_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_table)


def curve(codec, image, ends, level):
    """Return points whose PSNR is 8 log2(bpp) + level, and whose other metrics are that rate's logarithm."""
    rows = []
    for power in range(-4, ends + 1):
        metrics = dict.fromkeys(COLUMNS, power) | {"psnr": 8 * power + level}
        rows.append({"image": image, "codec": codec, "quality": power, "bpp": 2.0**power, **metrics})
    return rows


@pytest.fixture
def table(tmp_path):
    """The table's rows by system and rate, of curves that end at 0.5 or 1 bpp."""
    rows = []
    for codec, ends in (
        ("webp", (0, 0, 0)),
        ("fusion", (-1, -1, 0)),
        ("independent", (0, -1, 0)),
        ("png", (0, 0, 0)),
    ):
        for image, (level, end) in zip("abc", zip((50, 53, 56), ends, strict=True), strict=True):
            rows += curve(codec, image, end, level)
    (tmp_path / "short").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "points.csv", index=False)
    joint = [row for image in "abc" for row in curve("runs/joint/model", image, 0, 40)]
    pd.DataFrame(joint).to_csv(tmp_path / "short" / "points.csv", index=False)
    words = [
        "--points",
        tmp_path / "points.csv",
        "--published",
        ROOT / "data/published",
        "--rates",
        "0.25,0.75",
    ]
    words += ["--more", tmp_path / "short", "equal short training, 7 steps", "--out", tmp_path / "out"]
    paper_table.main(list(map(str, words)))
    read = pd.read_csv(tmp_path / "out" / "paper_table.csv", keep_default_na=False)
    return {(row["system"], float(row["bpp"])): row for row in read.to_dict("records")}


def test_curves_are_read_picture_by_picture_and_blank_where_most_end_before(table):
    assert float(table["webp", 0.25]["psnr"]) == pytest.approx(8 * -2 + 53)  # the mean of three levels
    assert float(table["webp", 0.25]["delta_e76"]) == pytest.approx(-2)
    half = table["independent", 0.75]  # one of three curves goes on in a straight line: the same numbers
    assert float(half["psnr"]) == pytest.approx(8 * -0.4150375 + 53, abs=1e-6)
    assert half["note"] == "1 of 3 curves end before, continued"
    ended = table["fusion", 0.75]
    assert (ended["psnr"], ended["cmssim"], ended["note"]) == ("", "", "2 of 3 curves end before")
    assert not any(system == "png" for system, _ in table)
    short = table["joint", 0.25]
    assert (short["kind"], short["note"]) == ("ours, short", "equal short training, 7 steps")
    assert float(short["psnr"]) == pytest.approx(24)


def test_the_posters_rows_are_as_printed_and_say_what_does_not_fit(table):
    row = table["three streams, with fusion", 0.596]
    assert [row[name] for name in ("mse", "psnr", "delta_e76", "ciede2000")] == [
        "28.503",
        "31.451",
        "2.346",
        "",
    ]
    assert row["kind"] == "poster, as printed" and row["note"].endswith("its MSE: 33.58 dB")  # 65025 / 28.503
    assert table["[7], model 5, joint RGB", 0.671]["ssim"] == ""


def test_the_table_is_written_three_times_with_where_it_comes_from(table, tmp_path):
    out, record = tmp_path / "out", json.loads((tmp_path / "out" / "paper_table.json").read_text())
    assert record["files"] == {
        f"paper_table.{end}": sha256(out / f"paper_table.{end}") for end in ("csv", "md", "tex")
    }
    assert record["inputs"][str(tmp_path / "points.csv")] == sha256(tmp_path / "points.csv")
    markdown, latex = ((out / f"paper_table.{end}").read_text() for end in ("md", "tex"))
    assert "| webp | 0.250 | -2.00 | 37.00 |" in markdown and "n/a" not in markdown + latex
    assert r"\toprule" in latex and "three streams, with fusion" in latex
