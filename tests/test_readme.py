"""README and pages: commands exist, links lead somewhere, figures and tables are the project's."""

import io
import re
import shlex
import tomllib
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import regenerate
import yaml
from helpers import ROOT, notebooks
from PIL import Image

from mcml import __version__
from mcml.cli.main import run
from mcml.codec import interface as codec
from mcml.lab import parameters, runner
from mcml.metrics import distortion as metrics
from mcml.model.settings import VARIANTS, training_profiles

CURVES = ROOT / "results" / "released" / "rate_distortion_kodak"
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text("utf-8")
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("[A-Z]*.md"), ROOT / "results" / "README.md")
}
README = PAGES["README.md"]
EVERY = "\n".join(PAGES.values())
SHELL = (
    "\n".join(re.findall(r"```sh\n(.*?)```", EVERY, re.S))
    + "\n"
    + "\n".join(re.findall(r"`([^`\n]+)`", EVERY.replace("```", "")))
)


def anchors(text):
    """Return the names by which a page's headings are linked to, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(heading, text=README):
    """Return what stands under a heading of the second level."""
    return re.search(rf"^## {heading}$\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_left_to_fill_in(page):
    assert "@@" not in PAGES[page] and "TODO" not in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{target}#{anchor}"


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is():
    linked = {
        name for page in PAGES for name in PAGES if f"{name.rsplit('/')[-1]}" in PAGES[page] and name != page
    }
    assert linked >= PAGES.keys() - {"README.md"}


def test_the_citation_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    entry = " ".join(section("Cite").split())
    assert cited["version"] == __version__ and f"version = {{{__version__}}}" in entry
    assert f"title = {{{cited['title']}}}" in entry and cited["authors"][0]["name"] in entry


def test_the_readme_is_read_in_about_five_minutes():
    assert len(README.split()) <= 1300


def test_the_readme_s_table_is_that_of_the_kept_curves():
    means = pd.read_csv(CURVES / "means.csv").set_index(["codec", "bpp"])
    rows = re.findall(r"^\| `(\w+)`[^|]*((?:\| [*\d.-]+ )+)\|$", section("What we found"), re.M)
    assert [name for name, _ in rows][:2] == ["scalar_fusion", "fusion"] and len(rows) == 8
    for name, cells in rows:
        shown = [cell.strip(" *") for cell in cells.split("|")[1:]]
        values = [
            means.loc[(name, bpp), column] for column in ("psnr", "ciede2000") for bpp in (0.15, 0.3, 0.5)
        ]
        assert shown == ["-" if np.isnan(value) else f"{value:.2f}" for value in values], name


def test_each_figure_of_what_we_found_is_a_claim_s_or_the_poster_s():
    said = re.findall(r"(\d+(?:\.\d+)?) (?:%|dB)", section("What we found").split("The 24 Kodak")[0])
    claims = tomllib.loads((ROOT / "workflow" / "claims.toml").read_text("utf-8"))["claim"]
    known = [abs(claim["value"]) for claim in claims]
    poster = pd.read_csv(ROOT / "data" / "published" / "poster.csv").psnr
    known += [*poster, poster.iloc[2] - poster.iloc[1]]
    assert len(said) >= 8
    for text in said:
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])  # of the last digit that is printed
        assert any(abs(float(text) - value) <= 1.001 * half for value in known), text


def test_the_drawing_is_well_formed_and_says_what_it_shows():
    drawing = ElementTree.parse(ROOT / "docs" / "figures" / "method.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert drawing.find(f"{space}title").text and len(drawing.find(f"{space}desc").text) > 100
    sizes = [float(text.get("font-size")) for text in drawing.iter(f"{space}text")]
    assert float(drawing.get("width")) <= 900 and min(sizes) >= 13


def test_every_picture_has_a_text_that_stands_for_it():
    pictures = re.findall(r"!\[([^\]]*)\]", README)
    assert len(pictures) >= 2 and all(len(text) > 40 for text in pictures)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", SHELL))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"(?<=\.venv/bin/)mcml [^`#\n]+", SHELL))))
def test_commands_and_options_exist(line, capsys, monkeypatch):
    words = shlex.split(line)
    monkeypatch.setenv("COLUMNS", "200")
    code, text = run([words[1], "--help"]), capsys.readouterr().out
    assert code == 0, text
    for option in (word for word in words if word.startswith("-")):
        assert option in text, option


@pytest.mark.parametrize("line", sorted(set(re.findall(r"(?<=\.venv/bin/)mcml train [^`#\n]+", SHELL))))
def test_training_commands_name_known_variants_and_profiles(line):
    words = shlex.split(line)
    assert words[words.index("--variant") + 1] in VARIANTS
    assert words[words.index("--profile") + 1] in training_profiles()


def test_parameters_in_commands_are_the_notebooks():
    every = {name for path in notebooks() for name in runner.notebook_parameters(path)}
    named = re.findall(r"-p (\w+)[ =]", EVERY)
    assert named and set(named) <= every


def test_every_metric_codec_profile_and_notebook_is_named():
    for column in metrics.COLUMNS:
        assert f"`{column}`" in PAGES["docs/METRICS.md"], column
    for name in codec.names():
        assert f"`{name}`" in PAGES["docs/CODEC.md"], name
    for name in parameters.profiles():
        assert f"`{name}`" in PAGES["docs/REPRODUCING.md"], name
    for path in notebooks():
        assert f"(notebooks/{path.name})" in README


def test_the_figure_is_what_the_code_draws():
    shown = np.asarray(Image.open(ROOT / "docs" / "figures" / "artefacts.png").convert("RGB")).astype(int)
    drawn = np.asarray(Image.open(io.BytesIO(regenerate.draw_artefacts())).convert("RGB")).astype(int)
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1  # levels; other CPUs may round a decoder's pixel differently


EXAMPLES = {
    ("weights" if "model.load" in text else "codec"): text
    for text in re.findall(r"```python\n(.*?)```", EVERY, re.S)
}


def test_the_codec_example_runs(capsys):
    exec(compile(EXAMPLES["codec"], "docs/CODEC.md", "exec"), {})
    bpp, ciede2000 = map(float, capsys.readouterr().out.split())
    assert abs(bpp / 0.3 - 1) < 0.02 and 0 < ciede2000 < 10


def test_the_weights_example_runs(capsys):
    exec(compile(EXAMPLES["weights"], "docs/TRAINING.md", "exec"), {})
    bpp, shape = capsys.readouterr().out.split(" ", 1)
    assert 0.1 < float(bpp) < 1 and shape.strip() == "torch.Size([1, 3, 400, 600])"
