"""The report is one page that needs no network, and it looks right in a browser."""

import json
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from mcml.base.errors import DataError
from mcml.lab import report
from mcml.lab.output import Output

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A profile with one notebook's results: two tables and a figure."""
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path))
    output = Output("01_first", "small", {"profile": "small"}, data_hash="abc", seed=7)
    output.table("short", [{"image": "0001", "codec": "a<b", "psnr": 31.456}], "A <short> table.")
    output.table("long", [{"n": n, "psnr": float("inf")} for n in range(60)], "A long table.")
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    output.figure("line", figure, "Figure 1.1: a line.", [{"x": 0, "y": 1}, {"x": 1, "y": 0}])
    output.finish()
    cells = [{"cell_type": "markdown", "source": ["# 1. First & foremost\n", "text"]}]
    (tmp_path / "small" / "01_first" / "01_first.ipynb").write_text(json.dumps({"cells": cells}))
    return tmp_path / "small"


def test_every_table_and_figure_is_there_with_its_provenance(folder):
    html = report.build_report(folder, {"01_first": {"profile": "large"}}, "Left out: <02>").read_text(
        "utf-8"
    )
    assert "1. First &amp; foremost" in html and "a&lt;b" in html and "A &lt;short&gt; table." in html
    assert "<td>0001</td>" in html  # a name stays a name, whatever it looks like
    assert '<td class="n">31.46</td>' in html and '<td class="n">inf</td>' in html
    assert "First rows; 20 more in the file." in html
    assert "Not the profile's own parameters" in html and "profile = small." in html
    assert '"data_hash": "abc"' in html and '"seed": 7' in html and "Left out: &lt;02&gt;." in html
    for target in re.findall(r'href="([^"#]+)"', html):
        assert (folder / target).exists(), target


def test_it_is_self_contained_and_a_profile_s_own_parameters_need_no_warning(folder):
    html = report.build_report(folder, {"01_first": {"profile": "small"}}).read_text("utf-8")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert "<script" not in html and "@import" not in html and "own parameters" not in html
    (source,) = re.findall(r'src="([^"]+)"', html)
    assert source.startswith("data:image/png;base64,") and html.count(source) == 1


def test_missing_results_are_one_sentence(folder):
    with pytest.raises(DataError, match=r"02_second.*run\.json: missing; run `mcml reproduce` again"):
        report.build_report(folder, {"01_first": {}, "02_second": {}})


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_shows_pictures_and_columns_without_overflow(folder, tmp_path):
    page = report.build_report(folder, {"01_first": {"profile": "small"}})
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
      pictures: [...document.images].map(i => i.naturalWidth > 100 && i.clientWidth > 100),
      overflow: document.documentElement.scrollWidth > innerWidth,
      rows: document.querySelectorAll("tbody tr").length }); });</script>"""
    probed = folder / "probed.html"
    probed.write_text(page.read_text("utf-8").replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,900"]
    command = [BROWSER, *flags, "--virtual-time-budget=3000", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert seen == {"pictures": [True], "overflow": False, "rows": 41}
