"""The report is one page that needs no network, answers first, and it looks right in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import tomllib

import nbformat
import numpy as np
import pytest
from helpers import ROOT
from matplotlib.figure import Figure
from nbformat import v4
from PIL import Image

from mcml.base.errors import DataError
from mcml.lab import report
from mcml.lab.output import Output

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CURTAIN = '<div class="curtain"></div><script>document.title += "";</script>'
WARNING = v4.new_output("stream", name="stderr", text="/here/module.py: UserWarning")
WIDGET = "application/vnd.jupyter.widget-view+json"
FRAME = (
    '<div><style scoped>td {}</style><table border="1" class="dataframe"><thead><tr style="">'
    "<th></th><th>a</th></tr></thead><tbody><tr> <th>0</th> <td>5</td></tr></tbody></table></div>"
)


def ran(source, *outputs):
    return v4.new_code_cell(source, outputs=list(outputs))


def shown(data, **about):
    return v4.new_output("display_data", data, **about)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A profile with two notebooks' results: tables, a figure, and what else a cell may show."""
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path))
    figure = Figure(figsize=(3, 2))
    figure.subplots().imshow(np.random.default_rng(0).random((40, 60, 3)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    png = base64.b64encode(buffer.getvalue()).decode()
    for name in ("01_first", "02b_second"):
        output = Output(name, "small", {"profile": "small"}, data_hash="abc", seed=7)
        output.table("short", [{"mse": 2.5, "psnr": 31.456, "codec": "a<b", "note": "n"}], "A <short> table.")
        output.table("long", [{"image": "0001", "n": n, "psnr": float("inf")} for n in range(60)], "Long.")
        number = name[1:].partition("_")[0]
        output.figure("line", figure, f"Figure {number}.1: a line.", [{"x": 0, "y": 1}])
        output.figure("unnamed", figure, "A figure <b by a name that no cell spells.", [{"x": 0}])
        output.finish()
        cells = [
            v4.new_markdown_cell(f"# {number}. First & foremost\n\ntext of `short`, Notebook 01"),
            ran("output = lab.Output(1)", v4.new_output("stream", text="set up")),
            v4.new_markdown_cell(f"## Why so?\n\n$$\\frac12$$ and $x^2$. See [there](01_first.ipynb#Why-so?) "
                                 f"and [models](../docs/MODELS.md), Figure {number}.1."),
            ran('output.table("long", rows)\noutput.table(\n    "short", r)', shown({"text/html": FRAME})),
            ran('output.figure("line", figure, "")', shown({"image/png": png, "text/plain": "<Figure>"})),
            v4.new_markdown_cell(f"Figure {number}.1: a line that falls.\n\nMore text."),
            ran("curtain", shown({"text/html": CURTAIN})),
            ran("plt.show()", shown({"image/png": png}, metadata={"image/png": {"alt": "it"}})),
            ran("slider", shown({WIDGET: {}, "text/plain": "IntSlider()"})),
            ran("print(1 < 2)", v4.new_output("stream", text="1 < 2: True"), WARNING),
            ran("output.finish()", v4.new_output("stream", text="saved all")),
        ]  # fmt: skip
        nbformat.write(v4.new_notebook(cells=cells), tmp_path / "small" / name / f"{name}.ipynb")
    return tmp_path / "small"


def build(folder, note="", **expected):
    names = {"01_first": {}, "02b_second": {}} | {f"0{n[1:]}": own for n, own in expected.items()}
    return report.build_report(folder, names, note).read_text("utf-8")


def test_the_answers_come_first_then_the_paper_s_table_then_the_notebooks_in_order(folder):
    html = build(folder)
    places = [html.index(f'<section id="{name}">') for name in ("found", "paper", "01_first", "02b_second")]
    assert places == sorted(places) and html.index("<main>") < places[0] < html.index("<main>") + 200
    box = html[places[0] : places[1]]
    claims = tomllib.loads((ROOT / "workflow" / "claims.toml").read_text("utf-8"))["claim"]
    assert box.count("<tr><td>") == len(claims) and "does not hold" in box and "−3.75&nbsp;%" in box
    assert "<td>27.25*</td>" in box and "scalar_fusion" in box  # WebP on Kodak at 0.15 bpp
    assert html[places[1] : places[2]].count("<tr>") == 60  # the paper's table is whole
    own = html[places[2] : places[3]]
    order = ["First &amp; foremost", "Why", "Table 1.1:</b> Long.", "Table 1.2:</b> A &lt;short&gt; table.",
             "a line that falls", "More text", CURTAIN, "1 &lt; 2: True", "no cell spells",
             "Provenance"]  # fmt: skip
    assert [own.index(text) for text in order] == sorted(own.index(text) for text in order)
    assert "IntSlider" not in own and "UserWarning" not in own and "style scoped" not in own


def test_tables_have_their_first_columns_first_and_long_ones_are_cut(folder):
    html = build(folder)
    assert re.search(r"<thead><tr><th>a</th></tr></thead><tbody><tr>\s*<td>5</td></tr>", html)  # no count
    assert "First 12 of 60 rows, 3 columns" in html and "All 1 rows, 4 columns" in html
    row = r'<tr><th>a&lt;b</th><td class="n">31\.46</td><td class="n">2\.50</td><td>n</td></tr>'
    assert len(re.findall(row, html)) == 2  # codec, psnr, mse, note
    assert '<th>0001</th><td class="n">inf</td>' in html  # a name stays a name, whatever it looks like
    style = html[: html.index("</style>")]
    assert re.search(r"tbody th:last-of-type[^}]*position: sticky; left: 0", style)


def test_code_and_set_up_are_folded_and_formulas_are_mathml(folder):
    html = build(folder)
    shut = "".join(re.findall(r'<details class="code">.*?</details>', html, re.DOTALL))
    for text in ("output.finish()", "set up", "saved all"):
        assert shut.count(text) == html.count(text) == 2
    assert "<mfrac>" in html and "$" not in re.sub(r"(?s)<script>.*?</script>|<pre>.*?</pre>", "", html)


def test_every_link_leads_somewhere_and_nothing_is_fetched(folder):
    html = build(folder)
    ids = re.findall(r'\bid=["\']([^"\']+)', html)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href=["\']([^"\']+)', html):
        path, _, place = target.partition("#")
        assert place in ids if not path else (folder / path).exists(), target
    assert 'href="#01_first-why-so"' in html and '<a href="#01_first">Notebook 01</a>' in html
    assert '<a href="#02b_second-table-short"><code>short</code></a>' in html
    assert '<a href="#figure-2b.1">Figure 2b.1</a>' in html
    sources = re.findall(r'src="([^"]+)"', html)
    assert len(sources) == 6 and all(source.startswith("data:image/") for source in sources)
    assert "@import" not in html and "url(" not in html and "http-equiv" not in html


def test_pictures_keep_their_pixels_and_say_what_they_show(folder):
    html = build(folder)
    alts = ["a line.", "it", "A figure &lt;b by a name that no cell spells."]
    assert re.findall(r'<img [^>]*alt="([^"]*)"', html)[:3] == alts
    source = re.search(r'src="data:image/webp;base64,([^"]+)"', html)[1]
    pixels = [
        np.asarray(Image.open(file).convert("RGB"))
        for file in (io.BytesIO(base64.b64decode(source)), folder / "01_first" / "line.png")
    ]
    assert np.array_equal(*pixels)
    assert "A figure <b" not in html and html.count("A figure &lt;b by") == 4  # as caption and alt of two
    assert len(html) < 150_000 + sum(map(len, re.findall(r'src="([^"]+)"', html)))


def test_a_picture_too_long_for_a_webp_stays_a_png():
    buffer = io.BytesIO()
    Image.new("L", (report.WEBP_PX + 1, 1)).save(buffer, "png")
    src = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert report._picture(buffer.getvalue()) == {"src": src, "width": report.WEBP_PX + 1, "height": 1}


def test_parameters_that_differ_and_what_was_left_out_are_said(folder):
    html = build(folder, "Left out: <02>", n1_first={"profile": "large"}, n2b_second={"profile": "small"})
    assert "Left out: &lt;02&gt;." in html and html.count("Not the profile's own parameters") == 1
    assert "profile = small." in html and html.count('"data_hash": "abc"') == 2
    html = build(folder, n1_first={"profile": "small"})
    assert "own parameters" not in html


def test_missing_results_are_one_sentence(folder):
    with pytest.raises(DataError, match=r"03_third.*run\.json: missing; run `mcml reproduce` again"):
        build(folder, n3_third={})


@pytest.mark.parametrize("profile", ["released", "cpu"])
def test_a_profile_of_which_one_notebook_ran_has_its_report_too(folder, profile):
    other = folder.with_name(profile)
    shutil.copytree(folder / "02b_second", other / "02b_second")
    html = report.build_report(other, {"02b_second": {}}).read_text("utf-8")
    assert "1 notebook," in html and 'id="01_first"' not in html
    assert f"{(ROOT / 'notebooks').name}/04_fusion_ablation.ipynb" in html  # claims lead to the repository


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_pictures_and_columns_without_overflow(folder, tmp_path, width):
    html = build(folder)
    probe = """<script>addEventListener("load", () => {
      const table = document.querySelector("#paper table"), box = table.parentNode;
      const left = () => Math.round(table.rows[3].cells[0].getBoundingClientRect().left);
      const before = left(); box.scrollLeft = 80;
      document.title = JSON.stringify({
        pictures: [...document.images].every(i => i.naturalWidth > 100 && i.clientWidth > 100),
        overflow: document.documentElement.scrollWidth > innerWidth, fixed: left() === before,
        scrolls: box.scrollLeft === 80,
        place: document.querySelector("nav .here").innerText }); });</script>"""
    probed = folder / "probed.html"
    frame = f'<iframe src="page.html" style="width: {width}px; height: 900px"></iframe>'
    probed.write_text(
        frame
        + """<script>addEventListener("load", () => setTimeout(() => {
      document.title = frames[0].document.title; }, 500));</script>"""
    )
    (folder / "page.html").write_text(html.replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,950"]
    flags += ["--allow-file-access-from-files"]
    command = [BROWSER, *flags, "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    place = "What we found" if width > 900 else "Found"
    assert seen == {"pictures": True, "overflow": False, "fixed": True, "scrolls": True, "place": place}
