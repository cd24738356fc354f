"""One self-contained page of a profile's tables and figures, with where each came from."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError
from mcml.base.files import atomic_write
from mcml.lab.output import format_value, provenance

MAX_ROWS = 40  # longer tables show their first rows and link to the CSV


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
    from jinja2 import Environment, PackageLoader, select_autoescape

    loader = PackageLoader("mcml.lab", "templates")
    page = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    sections = [_section(folder / name, parameters) for name, parameters in expected.items()]
    html = page.get_template("report.html").render(
        profile=folder.name, notebooks=sections, about=provenance(), note=note
    )
    atomic_write(folder / "report.html", html)
    return folder / "report.html"


def _section(here: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    if not (here / "run.json").is_file():
        raise DataError(f"{here / 'run.json'}: missing; run `mcml reproduce` again for notebook {here.name}")
    run = json.loads((here / "run.json").read_text("utf-8"))
    first = json.loads((here / f"{here.name}.ipynb").read_text("utf-8"))["cells"][0]
    images = {e["name"]: (here / f"{e['name']}.png").read_bytes() for e in run["figures"]}
    return {
        "name": here.name,
        "title": "".join(first["source"]).splitlines()[0].lstrip("# "),
        "run": run,
        "other": {k: v for k, v in run["parameters"].items() if k in expected and expected[k] != v},
        "tables": [e | _table(here / f"{e['name']}.csv", e["text_columns"]) for e in run["tables"]],
        "images": {name: base64.b64encode(png).decode() for name, png in images.items()},
    }


def _table(path: Path, text_columns: list[str]) -> dict[str, Any]:
    """Return a header, the first rows of (text, whether it is a number), and how many are left out."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    is_text = [column in text_columns for column in header]
    cells = [list(map(_cell, header, row, is_text)) for row in rows[:MAX_ROWS]]
    return {"header": header, "rows": cells, "hidden": len(rows) - len(cells)}


def _cell(column: str, text: str, is_text: bool) -> tuple[str, bool]:
    if is_text or text in ("", "True", "False"):
        return text, False
    return format_value(column, int(text) if text.lstrip("-").isdigit() else float(text)), True
