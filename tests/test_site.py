"""`make site`: every page, link, anchor and public name is there, and nothing comes from the network."""

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pytest
from helpers import ROOT, notebooks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
MODULES = [p for p in sorted((ROOT / "mcml").rglob("*.py")) if p.parent != ROOT / "mcml"]


class Page(HTMLParser):
    """A page's elements, in order, as names and attributes."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.feed(path.read_text("utf-8"))
        self.ids = {attributes["id"] for _, attributes in self.elements if "id" in attributes}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site as `make site` does, with a report of one run."""
    if not find_spec("myst_nb") or not find_spec("furo"):
        pytest.skip(
            "the site's packages are not installed: make site, or pip install -r docs/requirements.txt"
        )
    folder = tmp_path_factory.mktemp("site")
    (folder / "results" / "quick").mkdir(parents=True)
    links = "<a href='#a' id=a>up</a> <a class=x href=\"1/m.csv\">\n<b>rows</b></a> <a href='../a.md'>b</a>"
    (folder / "results" / "quick" / "report.html").write_text(f"<title>of a run</title>{links}", "utf-8")
    (recipe,) = re.findall("(-m sphinx .*)", (ROOT / "Makefile").read_text("utf-8"))
    words = [word.replace("docs/_build", str(folder)) for word in recipe.split()]
    environment = {**os.environ, "MCML_RESULTS": str(folder / "results")}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    """Return every page by its path."""
    return {path.resolve(): Page(path) for path in site.rglob("*.html") if path.parts[-2] != "_static"}


def test_every_notebook_and_document_has_a_page(site):
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *notebooks()]
    assert len(documents) > 15
    for path in documents:
        assert (site / path.relative_to(ROOT).with_suffix(".html")).is_file()
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()
    report = (site / "reports" / "quick.html").read_text("utf-8")
    assert report == "<title>of a run</title><a href='#a' id=a>up</a> \n<b>rows</b> b"  # no file is beside it


def test_no_link_is_dead(pages):
    tested = 0
    for path, page in pages.items():
        for tag, attributes in page.elements:
            for target in (attributes.get("href"), attributes.get("src")):
                parts = urlsplit(target or "")
                if target is None or parts.scheme or tag == "base":
                    continue
                found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert found.is_file(), f"{path.name} to {target}"
                if parts.fragment and found in pages:
                    assert unquote(parts.fragment) in pages[found].ids, f"{path.name} to {target}"
                tested += 1
    assert tested > 5000


def test_no_link_leads_to_a_file_that_a_browser_would_only_save(pages):
    for path, page in pages.items():
        for _, attributes in page.elements:
            saved = "download" in attributes and attributes["href"]
            assert not saved or saved.endswith(".csv"), f"{path.name} to {saved}"


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for path, page in pages.items():
        for tag, attributes in page.elements:
            assert not urlsplit(attributes.get(LOADS.get(tag), "")).netloc, f"{path.name}: {attributes}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s\"']*(https?:)?//", path.read_text("utf-8")), path.name


def test_every_picture_is_told_in_words(pages):
    for path, page in pages.items():
        for tag, attributes in page.elements:
            words = attributes.get("alt", "")
            assert tag != "img" or (words and "/" not in words.split()[0]), f"{path.name}: {attributes}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_every_public_name_is_in_the_api(path, site, pages):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    ids = pages[site / "docs" / "api" / f"mcml.{path.parent.name}.html"].ids
    wanted, kinds = {f"module-{name}"}, (ast.FunctionDef, ast.ClassDef)
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            inner = [part.name for part in node.body if isinstance(part, kinds)]
            wanted |= {f"{name}.{node.name}"}
            if isinstance(node, ast.ClassDef):
                wanted |= {f"{name}.{node.name}.{part}" for part in inner if not part.startswith("_")}
    assert wanted <= ids


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_browser_finds_a_word_offline_and_a_phone_shows_no_page_wider_than_itself(site, pages):
    from playwright.sync_api import sync_playwright

    asked = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        for path in (path for path in pages if "_modules" not in path.parts):  # source code as it is
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        page.goto(f"{(site / 'search.html').as_uri()}?q=quadtree")
        page.wait_for_selector("#search-results li a")
        browser.close()
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)
