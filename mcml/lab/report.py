"""One self-contained page of a profile: what was found, the paper's table, its notebooks as they ran."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from PIL import Image

from mcml.base.errors import DataError
from mcml.base.files import atomic_write, repo_root
from mcml.lab.output import format_value, provenance
from mcml.lab.prose import Prose

WEBP_PX = 16383  # the longest side that a WebP can have
MAX_ROWS = 12  # longer tables show their first rows and link to the CSV
FIRST = (  # columns of numbers that matter first; texts stand before them, remarks last
    *("target_bpp", "quality", "bpp", "estimated_bpp", "bytes_percent", "gain", "bd_rate_percent"),
    *("psnr", "ciede2000", "ms_ssim", "cmssim", "delta_e76", "rgb_angle", "mse", "y_psnr", "ssim"),
)
UNJUDGED = ("gallery", "patches", "places", "importance")  # photographs, no decodes: the page's are AVIF
PEERS = (
    *("scalar_fusion", "scalar_independent", "fusion", "jpeg444", "jpeg2000", "webp", "jpegxl"),
    *("avif444_speed6", "avif444", "hevc444", "vvc420"),
)


def build_report(folder: Path, expected: Mapping[str, Mapping[str, Any]], note: str = "") -> Path:
    """Write ``report.html`` into a profile's results folder and return its path.

    Args:
        folder: ``results/<profile>``, holding one folder for each notebook.
        expected: the profile's parameters by notebook, in order; the page says where a run
            had others.
        note: a sentence for the top of the page, as on what was left out.

    Raises:
        DataError: if a notebook's ``run.json`` is missing or the page cannot be written.
    """
    loader = PackageLoader("mcml.lab", "templates")
    page = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    kept = repo_root() / "results" / "released"
    html = page.get_template("report.html").render(
        **tomllib.loads((repo_root() / "workflow" / "claims.toml").read_text("utf-8")),
        profile=folder.name,
        notebooks=[_section(folder / name, own, expected) for name, own in expected.items()],
        about=provenance(),
        note=note,
        prose=Prose("", folder, expected, {}),
        standing=_standing(kept / "rate_distortion_kodak" / "means.csv"),
        paper=_table(kept / "paper_table.csv", ("system", "kind", "note"), ("kind", "note"), most=None),
    )
    atomic_write(folder / "report.html", html)
    return folder / "report.html"


def _section(here: Path, expected: Mapping[str, Any], notebooks: Collection[str]) -> dict[str, Any]:
    if not (here / "run.json").is_file():
        raise DataError(f"{here / 'run.json'}: missing; run `mcml reproduce` again for notebook {here.name}")
    run = json.loads((here / "run.json").read_text("utf-8"))
    figures, tables = ({e["name"]: e for e in run[kind]} for kind in ("figures", "tables"))
    for name, figure in figures.items():
        figure["number"] = number = (re.match(r"(Figure \w+\.\w+):", figure["caption"]) or [""])[0][:-1]
        figure["id"] = number.replace(" ", "-").lower() or f"{here.name}-figure-{name}"
    for name, table in tables.items():
        table["id"] = f"{here.name}-table-{name}"
    places = {f["number"]: f["id"] for f in figures.values()} | {n: t["id"] for n, t in tables.items()}
    prose = Prose(here.name, here.parent, notebooks, places)
    return {
        "name": here.name,
        "number": here.name.partition("_")[0],
        "run": run,
        "other": {k: v for k, v in run["parameters"].items() if k in expected and expected[k] != v},
        "blocks": list(_blocks(here, figures, tables, prose)),
        "headings": prose.headings,
    }


def _blocks(here: Path, figures: dict, tables: dict, prose: Prose) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of a notebook, in its order: text, code, figures, tables, what is printed.

    What the set-up and the last cell print is folded away with their code. A data frame that a cell
    shows stands for the table that it saves, whose rows are folded under it.
    """
    cells = nbformat.read(here / f"{here.name}.ipynb", as_version=4).cells
    count, code, begun = itertools.count(1), [], False

    def figure(entry: dict[str, Any], after: Any) -> dict[str, Any]:
        caption = escape(entry["caption"], quote=False)
        if entry["number"] and after.source.startswith(entry["number"] + ":"):  # what we see, said at length
            caption, _, after.source = after.source.partition("\n\n")
        shown = _picture((here / f"{entry['name']}.png").read_bytes(), entry["name"] not in UNJUDGED)
        about = {"alt": entry.get("alt") or entry["caption"], "csv": f"{here.name}/{entry['name']}.csv"}
        return {"kind": "figure", **shown, **entry, **about, "caption": prose.line(caption)}

    def table(entry: dict[str, Any], views: Sequence[str]) -> dict[str, Any]:
        number = f"{here.name.partition('_')[0].lstrip('0') or 0}.{next(count)}"
        about = {"kind": "table", "number": number, "views": views, "id": f"table-{number}", **entry}
        about["caption"] = prose.line(escape(entry["caption"], quote=False))
        if "name" in entry:
            path = here / f"{entry['name']}.csv"
            about |= {"csv": f"{here.name}/{path.name}", **_table(path, entry["text_columns"])}
        return about

    for cell, after in itertools.pairwise([*cells, nbformat.v4.new_markdown_cell()]):
        if cell.cell_type == "markdown":
            if code:
                yield {"kind": "code", "cells": code}
            code = []
            yield {"kind": "prose", "html": prose.html(cell.source)}
        if cell.cell_type != "code":
            continue
        code.append(cell.source)
        names = re.findall(r'output\.(?:figure|table)\(\s*"(\w+)"', cell.source)
        drawn = [figures.pop(name) for name in names if name in figures]
        saved = [tables.pop(name) for name in names if name in tables]
        texts, others, views = _outputs(cell.outputs, not drawn)
        if not begun or "output.finish(" in cell.source:
            code, texts, begun = [*code, *texts], [], begun or "Output(" in cell.source
        blocks = [{"kind": "text", "text": text} for text in texts]
        blocks += [*(figure(entry, after) for entry in drawn), *others]
        blocks += [table(entry, views if entry is saved[-1] else ()) for entry in saved]
        if views and not saved:
            blocks.append(table({"caption": prose.headings[-1][1] if prose.headings else ""}, views))
        if blocks:
            yield from ({"kind": "code", "cells": code}, *blocks)
            code = []
    if code:
        yield {"kind": "code", "cells": code}
    yield from (figure(entry, after) for entry in figures.values())  # whose names no cell spells out
    yield from (table(entry, ()) for entry in tables.values())


def _outputs(outputs: Sequence[Any], pictures: bool) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Return a cell's texts, its pictures (if wanted) and other HTML as blocks, and data frames as HTML."""
    texts, others, views = [], [], []
    for output in outputs:
        data = output.get("data", {})
        image = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
        if 'class="dataframe"' in (html := data.get("text/html", "")):
            bare = re.sub(r'(?s)<style.*?</style>| border="1"| style="[^"]*"', "", html)
            rows = re.findall(r"<tr>\s*<th>(.*?)</th>", bare)  # a nameless count is no column
            if rows[1:] and rows == ["", *map(str, range(len(rows) - 1))]:
                bare = re.sub(r"(<tr>\s*)<th>\d*</th>", r"\1", bare)
            views.append(Markup(bare))
        elif html:
            others.append({"kind": "html", "html": Markup(html)})
        elif image and pictures:
            alt = output.metadata.get(image, {}).get("alt", "a picture without a caption")
            others.append({"kind": "figure", "alt": alt, **_picture(base64.b64decode(data[image]))})
        elif not (image or output.get("name") == "stderr" or any("jupyter.widget" in kind for kind in data)):
            texts.append(re.sub(r"\x1b\[[0-9;]*m", "", output.get("text") or data.get("text/plain", "")))
    return [text for text in texts if text.strip()], others, views


def _picture(raw: bytes, lossless: bool = True) -> dict[str, Any]:
    """Return an image's address and size in pixels; a PNG becomes a WebP of the very same pixels, or AVIF.

    One too long for a WebP stays as it is.
    """
    with Image.open(io.BytesIO(raw)) as image:
        kind, (width, height) = image.format.lower(), image.size
        if kind == "png" and max(image.size) <= WEBP_PX:
            how = {"lossless": True, "method": 4} if lossless else {"quality": 80, "subsampling": "4:4:4"}
            kind, buffer = "webp" if lossless else "avif", io.BytesIO()
            image.save(buffer, kind, **how)
            raw = buffer.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
    return {"src": source, "width": width, "height": height}


def _table(
    path: Path, text_columns: Collection[str], last: Collection[str] = ("note",), most: int | None = MAX_ROWS
) -> dict[str, Any]:
    """Return a header, the first rows of (text, whether it is a number), and how many rows there are."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    ranks = list(dict.fromkeys([*(name for name in text_columns if name not in last), *FIRST, *header]))
    order = sorted(range(len(header)), key=lambda i: ranks.index(header[i]))
    rows = [[_cell(header[i], line[i], header[i] in text_columns) for i in order] for line in lines[:most]]
    return {"header": [header[i] for i in order], "rows": rows, "total": len(lines)}


def _cell(column: str, text: str, is_text: bool) -> tuple[str, bool]:
    if is_text or text in ("", "True", "False"):
        return text, False
    return format_value(column, int(text) if text.lstrip("-").isdigit() else float(text)), True


def _standing(path: Path) -> Markup:
    """Return the table of codecs on Kodak at equal bytes as HTML."""
    means = pd.read_csv(path).query("codec in @PEERS and bpp in (0.15, 0.3, 0.5)")
    metrics = {"psnr": "RGB PSNR (dB), higher is better", "ciede2000": "CIEDE2000, lower is better"}
    stars = means.extended.gt(0).map({True: "*", False: ""})
    texts = {label: means[m].map("{:.2f}".format, na_action="ignore") + stars for m, label in metrics.items()}
    wide = means.assign(**texts).pivot(index="codec", columns="bpp", values=list(texts)).reindex(PEERS)
    return Markup(wide.rename_axis(None).to_html(na_rep="", border=0))
