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
    """Write ``report.html`` into a profile's results folder.

    Args:
        folder: ``results/<profile>``, holding one folder for each notebook.
        expected: the profile's parameters by notebook, in order; the page says where a run
            had others.
        note: a sentence for the top of the page, as on what was left out.

    Returns:
        The page's path.

    Raises:
        DataError: if a notebook's ``run.json`` is missing or the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    loader = PackageLoader("mcml.lab", "templates")
    page = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    html = page.get_template("report.html").render(
        profile=folder.name,
        notebooks=[_notebook(folder, name, parameters) for name, parameters in expected.items()],
        about=provenance(),
        note=note,
    )
    path = folder / "report.html"
    atomic_write(path, html)
    return path


def _notebook(folder: Path, name: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    here = folder / name
    if not (here / "run.json").is_file():
        raise DataError(f"{here / 'run.json'}: missing; run `mcml reproduce` again for notebook {name}")
    run = json.loads((here / "run.json").read_text("utf-8"))
    notebook = here / f"{name}.ipynb"
    return {
        "name": name,
        "title": _title(notebook) or name,
        "executed": f"{name}/{name}.ipynb",
        "run": run,
        "other": {k: v for k, v in run["parameters"].items() if k in expected and expected[k] != v},
        "tables": [_table(here, name, entry) for entry in run["tables"]],
        "figures": [_figure(here, name, entry) for entry in run["figures"]],
    }


def _figure(here: Path, name: str, entry: dict[str, str]) -> dict[str, str]:
    image = base64.b64encode((here / f"{entry['name']}.png").read_bytes()).decode()
    return {**entry, "image": image, "csv": f"{name}/{entry['name']}.csv"}


def _title(notebook: Path) -> str:
    if not notebook.is_file():
        return ""
    first = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    return first.splitlines()[0].lstrip("# ").strip()


def _table(here: Path, name: str, entry: dict[str, str]) -> dict[str, Any]:
    with open(here / f"{entry['name']}.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    text = set(entry["text_columns"])
    cells = [[_cell(c, value, c in text) for c, value in zip(header, row, strict=True)] for row in rows]
    table = {"header": header, "rows": cells[:MAX_ROWS], "hidden": max(len(rows) - MAX_ROWS, 0)}
    return {**entry, **table, "csv": f"{name}/{entry['name']}.csv"}


def _cell(column: str, text: str, is_text: bool) -> dict[str, Any]:
    if is_text or text == "" or text in ("True", "False"):
        return {"text": text, "number": False}
    value = int(text) if text.lstrip("-").isdigit() else float(text)
    return {"text": format_value(column, value), "number": True}
