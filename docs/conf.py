"""Static pages of README, documents, notebooks, kept tables, commands and API: `make site`.

The repository's root is the source folder, so that links between its files lead on. What a file says on
its own page alone (lists of pages, tables, sources) is added here while it is read.
"""

import base64
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mcml import __version__  # noqa: E402
from mcml.cli.main import parser  # noqa: E402
from mcml.lab.output import results_root  # noqa: E402

os.environ["COLUMNS"] = "80"  # of the commands' help
ROOMS = ("base", "data", "metrics", "model", "codec", "training", "lab", "cli")  # as imports point
PAGES = ("*.md", "docs/*.md", "notebooks/*.ipynb", "results/README.md")
FOLDERS = {"mcml": "/docs/api.md", "notebooks": "/README.md#explore"}
KEPT = ROOT / "results" / "released"
SHOWN_BYTES = 25_000  # of a table that is shown; a larger one is linked
LINK = re.compile(r"(?<=\]\()[^)#\s:]+(?=\))")  # of Markdown, to a file, without an anchor

AWAY = re.compile(  # a report's link to a file beside it, not into the page or to an address
    r"""(?s)<a\b[^>]*?\bhref=(["'])(?!#|data:|[a-z]+:|//)[^>]*?\1[^>]*>(.*?)</a>"""
)
MARKS = re.compile(r"[*|](?=(?:[^`]*`[^`]*`)*[^`]*$)")  # outside of backticks

project = "mcml"
copyright = "the mcml authors; Apache-2.0"
release = version = __version__
root_doc = "README"
extensions = [
    *("myst_nb", "sphinx_copybutton"),
    *(f"sphinx.ext.{name}" for name in ("apidoc", "autodoc", "napoleon", "viewcode")),
]
include_patterns = [*PAGES, "docs/api/mcml.*.rst"]
exclude_patterns = [f"{p.name}/**" for p in ROOT.iterdir() if p.name not in ("docs", "notebooks", "results")]
exclude_patterns += [".*", "docs/_build", "notebooks/text", "results/[!R]*"]

apidoc_modules = [
    {
        "path": "../mcml",
        "destination": "docs/api",
        "automodule_options": {"members"},
        "module_first": True,
        "exclude_patterns": ["**/__main__.py"],
    }
]
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

nb_execution_mode = "off"
nb_merge_streams = True
# A widget's JavaScript would come from the network; beside it stands what a page shows without a kernel.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = "mcml"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""
html_theme_options = {"top_of_page_buttons": ["view"]}


def pages(folder, pattern, without=()):
    """Return the names of documents, as a list of pages wants them."""
    found = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / folder).glob(pattern))
    return [f"/{name}" for name in map(str, found) if name.rpartition("/")[2] not in without]


def contents(caption, names):
    """Return the part of the side bar under a caption."""
    caption = f":caption: {caption}\n" if caption else ""
    return f"\n\n```{{toctree}}\n:hidden:\n{caption}\n" + "\n".join(names) + "\n```\n"


def readme():
    """Return the lists of all pages."""
    own = ("api", "commands", "files", "report")
    return (
        contents(
            "Results", ["What was found </docs/RESULTS>", "/docs/report", "Kept tables </results/README>"]
        )
        + contents("Notebooks", pages("notebooks", "*.ipynb"))
        + contents("Documents", pages("docs", "*.md", (*own, "RESULTS")) + pages(".", "C*.md"))
        + contents("Reference", ["/docs/commands", "/docs/api", "/docs/files"])
    )


def api():
    """Return the list of rooms, each with its purpose."""
    modules = [import_module(f"mcml.{room}") for room in ROOMS]
    lines = [f"- [{m.__name__}](api/{m.__name__}.rst): {m.__doc__.splitlines()[0]}\n" for m in modules]
    return "".join(lines) + contents("", [f"/docs/api/mcml.{room}" for room in ROOMS])


def commands():
    """Return every command's help."""
    helps = {"mcml": parser(), **{f"mcml {name}": p for name, p in parser().get_default("commands").items()}}
    return "".join(f"\n## {name}\n\n```text\n{helps[name].format_help()}```\n" for name in helps)


def tables():
    """Return every small kept table to four digits."""
    text = "\n## Tables\n"
    for path in sorted(KEPT.rglob("*.csv"), key=lambda path: (path.parent, path.name)):
        name = path.relative_to(KEPT).as_posix()
        text += f"\n({label(path)})=\n### {name}\n\n{{download}}`All digits <released/{name}>`\n"
        if path.stat().st_size < SHOWN_BYTES:
            rows = pd.read_csv(path).to_html(index=False, float_format="{:.4g}".format, na_rep="", border=0)
            text += f'\n<div class="kept" tabindex="0">{rows}</div>\n'
    return text


def sources():
    """Return the text of files that pages link to and that are no pages."""
    linked = set()
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        links = LINK.findall(path.read_text("utf-8"))
        linked |= {(path.parent / x).resolve() for x in links if place(x, path.parent).startswith("#file-")}
    text = ""
    for path in sorted(linked):
        text += f"\n({label(path)})=\n## {path.relative_to(ROOT).as_posix()}\n"
        for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file()):
            text += f"\n```{{literalinclude}} /{file.relative_to(ROOT).as_posix()}\n"
            text += (
                f":caption: {file.name}\n:language: {LANGUAGES.get(file.suffix or file.name, 'text')}\n```\n"
            )
    return text


def reports():
    """Return the reports that are here, by profile."""
    return {path.parent.name: path for path in sorted(results_root().glob("*/report.html"))}


def report():
    """Return links to the reports that are here."""
    links = [f'- <a href="../reports/{name}.html">{name}</a>\n' for name in reports()]
    return "\n" + ("".join(links) or "None was here when these pages were made.\n")


ADDED = {
    "README": readme, "docs/api": api, "docs/commands": commands, "docs/files": sources,
    "docs/report": report, "results/README": tables,
}  # fmt: skip
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".cff": "yaml", "Snakefile": "python"}


def label(path):
    """Return the name by which pages link to a file that is shown on another page."""
    kind = "table" if path.is_relative_to(KEPT) else "file"
    return re.sub(r"\W+", "-", f"{kind}-{path.relative_to(ROOT).as_posix()}").lower()


def place(target, folder):
    """Return where a link to a file of the repository leads on these pages."""
    path = (folder / target).resolve()
    inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path()
    if path.is_relative_to(KEPT) and path.exists():
        return f"#{label(path.with_suffix('.csv') if path.is_file() else min(path.rglob('*.csv')))}"
    if str(inside) in FOLDERS:
        return FOLDERS[str(inside)]
    if inside.parts[:1] == ("mcml",) and path.suffix in (".py", ""):
        return "#" + ".".join(inside.with_suffix("").parts)
    shown = path.exists() and path.suffix not in (".md", ".ipynb", ".png", ".svg")
    return f"#{label(path)}" if shown else target


def read(app, docname, source):
    """Add what a page says here alone, and let its links lead to pages."""
    folder = (ROOT / docname).parent
    source[0] = LINK.sub(lambda match: place(match[0], folder), source[0])
    source[0] += ADDED.get(docname, str)()
    if docname.startswith("docs/api/"):  # apidoc's headings
        source[0] = re.sub(r"(?m)^Submodules\n-+\n|(?<=\w) (module|package)$", "", source[0])


def name_pictures(app, doctree):
    """Give a notebook's figures the alternative text of their outputs' metadata, or their section's title."""
    path = ROOT / f"{app.env.docname}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.exists() else []
    texts = {}
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        for kind in output.get("data", {}).keys() & {"image/png", "image/jpeg"}:
            name = hashlib.sha256(base64.b64decode(output["data"][kind])).hexdigest()
            texts[name] = output["metadata"].get(kind, {}).get("alt")
    for image in doctree.findall(nodes.image):
        if "alt" not in image:
            section = image.parent
            while not isinstance(section, nodes.section):
                section = section.parent
            image["alt"] = texts.get(Path(image["uri"]).stem) or f"Figure: {section[0].astext()}"


def read_docstring(app, what, name, module, options, lines):
    """Take stars and bars of a docstring as they stand, and name what a room's face lends from its files."""
    lines[:] = [MARKS.sub(r"\\\g<0>", line) for line in lines]
    if what == "module" and hasattr(module, "__getattr__"):
        homes = inspect.getclosurevars(module.__getattr__).nonlocals["homes"]
        names = [f":py:obj:`{x} <{name}.{home}.{x}>`" for x, home in homes.items()]
        lines += ["", f"Callable as ``{name.rpartition('.')[2]}.NAME``: {', '.join(names)}.", ""]


def visit_math(display):
    """Return a translator's method that writes MathML."""

    def visit(self, node):
        formula = convert(node.astext(), display=display)
        self.body.append(formula if display == "inline" else f'<div class="math">{formula}</div>')
        raise nodes.SkipNode

    return visit


def finish(app, error):
    """Make the README the first page, and put the reports beside it."""
    if not error and app.builder.name == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")
        (app.outdir / "reports").mkdir(exist_ok=True)
        for name, path in reports().items():
            html = AWAY.sub(r"\2", path.read_text("utf-8"))  # the files beside it stay where they are
            (app.outdir / "reports" / f"{name}.html").write_text(html, "utf-8")


def setup(app):
    """Connect the above."""
    app.add_html_math_renderer("mathml", (visit_math("inline"), None), (visit_math("block"), None))
    app.connect("env-get-outdated", lambda *_: list(ADDED))  # what they show may have changed
    app.connect("source-read", read)
    app.connect("doctree-read", name_pictures)
    alias = "Alias for field"  # of a named tuple, whose signature has it
    app.connect("autodoc-skip-member", lambda *a: str(a[3].__doc__).startswith(alias) or None)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("build-finished", finish)
