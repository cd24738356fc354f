"""Which notebook runs with which parameters, and what its results depend on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mcml.base.errors import UsageError, choose
from mcml.base.files import repo_root, sha256
from mcml.codec.interface import get_codec
from mcml.data.sets import image_set, registry
from mcml.lab.parameters import CHECKS, check_parameters, load_profile, parse_names

NOT_CODE = ("cli.py", "jobs.py", "runner.py", "report.py")  # what a notebook's numbers cannot depend on


class Parameter(NamedTuple):
    """A line of a notebook's parameters cell."""

    default: Any
    type_name: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A notebook with the parameters that it is to run with."""

    path: Path
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The notebook's stem, as in ``01_data_preparation``."""
        return self.path.stem

    def check_data(self) -> None:
        """Find the data set and the sample image now rather than in a kernel."""
        if "dataset" in self.parameters:
            found = image_set(self.parameters["dataset"], self.parameters.get("max_images", 0))
            if self.parameters.get("sample_image"):
                choose("image", self.parameters["sample_image"], [path.stem for path in found.paths])

    def fingerprint(self) -> str:
        """Hash of all that decides the results: notebook, code, lock, parameters, data."""
        root = repo_root()
        code = [p for p in sorted((root / "mcml").rglob("*.py")) if p.name not in NOT_CODE]
        files = [*code, root / "requirements.lock", *sorted((root / "data").rglob("*.csv"))]
        files += sorted((root / "mcml").rglob("*.toml"))
        files += sorted((root / "mcml" / "model" / "released").rglob("*.*"))  # what the codecs among them are
        cells = [cell["source"] for cell in json.loads(self.path.read_text("utf-8"))["cells"]]
        parts = {
            "cells": cells,
            "code": {str(p.relative_to(root)): sha256(p) for p in files if p.is_file()},
            "parameters": dict(self.parameters),
            "data": image_set(self.parameters["dataset"]).digest if "dataset" in self.parameters else "",
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def notebooks() -> list[Path]:
    """Return the numbered notebooks in reading order."""
    return sorted((repo_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def notebook_parameters(path: Path) -> dict[str, Parameter]:
    """Read a notebook's parameters cell: ``{name: Parameter}``.

    Raises:
        UsageError: if the notebook has no cell tagged ``parameters``.
    """
    cells = json.loads(path.read_text("utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", ())]
    if not tagged:
        raise UsageError(f"{path.name} has no cell tagged 'parameters'")
    source = "".join(tagged[0]["source"])
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            line = source.splitlines()[node.lineno - 1]
            about = line.partition("#")[2].strip()
            found[node.target.id] = Parameter(
                ast.literal_eval(node.value), ast.unparse(node.annotation), about
            )
    return found


def merge_parameters(path: Path, profile: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay profile and command-line values over a notebook's defaults, refusing unknown names.

    papermill itself only warns of an unknown parameter and goes on.

    Raises:
        UsageError: for a name that the notebook lacks, or a value of another type.
    """
    known = notebook_parameters(path)
    values = {name: parameter.default for name, parameter in known.items()}
    if "profile" in known:
        values["profile"] = profile
    for layer in layers:
        for name, value in layer.items():
            choose(f"parameter of {path.stem}", name, known)
            default = known[name].default
            if isinstance(value, str) and not isinstance(default, str):
                value = _literal(value)
            if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if type(value) is not type(default):
                raise UsageError(
                    f"parameter {name} of {path.stem} is {value!r}: expected {known[name].type_name}, "
                    f"as in its default {default!r}"
                )
            values[name] = value
    return values


def _literal(text: str) -> Any:
    """A command line's text as a Python literal; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check(values: dict[str, Any]) -> None:
    """Check values by `config.CHECKS` before any kernel starts; make folders absolute."""
    check_parameters(**{name: value for name, value in values.items() if name in CHECKS})
    for codec in parse_names(values.get("codecs", "")):
        get_codec(codec)
    dataset = values.get("dataset", "")
    if dataset and dataset not in registry() and Path(dataset).is_dir():
        values["dataset"] = str(Path(dataset).resolve())  # kernels run in another folder


def plan(
    profile: str, only: list[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> list[Job]:
    """Return the jobs of a profile in order.

    Args:
        profile: a file of ``notebooks/profiles``.
        only: notebooks by number or stem (``"01"``); None takes those that the profile names.
        overrides: parameters that lie over the profile's; each must be known to at least
            one chosen notebook.
    """
    content, overrides = load_profile(profile), dict(overrides or {})
    by_name = {path.stem: path for path in notebooks()}
    for name in content:
        choose(f"notebook in profile {profile}", name, by_name)
    chosen = [name for name in by_name if name in content]
    if only:
        short = {name[:2]: name for name in by_name} | {name: name for name in by_name}
        chosen = sorted({short[choose("notebook", n.removesuffix(".ipynb").zfill(2), short)] for n in only})
    every = {p for name in chosen for p in notebook_parameters(by_name[name])}
    for name in overrides:
        choose("parameter", name, every)
    jobs = []
    for name in chosen:
        mine = {k: v for k, v in overrides.items() if k in notebook_parameters(by_name[name])}
        values = merge_parameters(by_name[name], profile, content.get(name, {}), mine)
        _check(values)
        jobs.append(Job(path=by_name[name], parameters=values))
    return jobs
