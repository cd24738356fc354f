"""A run's folder: numbered checkpoints, each whole or absent, and the log as CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcml.base.errors import DataError, UsageError
from mcml.base.files import atomic_write
from mcml.model.model import Model
from mcml.model.settings import Recipe, dotted
from mcml.model.weights import load_into, load_tensors, new_folder, save_tensors

KEPT = 2  # checkpoints; older ones are removed


def latest(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, or None. A hidden folder is one that was cut off."""
    found = sorted(run_dir.glob("checkpoint-*/state.json"))
    return found[-1].parent if found else None


def write(
    run_dir: Path,
    model: Model,
    averaged: Model,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write checkpoint-<step> in files under 16 MiB each and drop the oldest.

    Raises:
        DataError: if it cannot be written; nothing of it is kept, earlier ones are.
    """
    folder = run_dir / f"checkpoint-{state['step']:08d}"
    with new_folder(folder) as place:
        save_tensors(place, "model", model.state_dict())
        save_tensors(place, "averaged", averaged.state_dict())
        moments = {
            f"{index}.{name}": value
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        save_tensors(place, "optimizer", moments)
        save_tensors(place, "extra", extra)
        (place / "state.json").write_text(json.dumps(state, indent=2) + "\n", "utf-8")
    for old in [*sorted(run_dir.glob("checkpoint-*"))[:-KEPT], *run_dir.glob(".checkpoint-*")]:
        shutil.rmtree(old, ignore_errors=True)  # older ones, and what a kill cut off
    return folder


def read(
    folder: Path, recipe: Recipe, model: Model, averaged: Model, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load a checkpoint into what it was written from.

    Raises:
        UsageError: if it is of another recipe (the budget alone may differ).
        DataError: if it is damaged.
    """
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        then = dotted(state["recipe"])
        _ = state["step"], state["elapsed_s"], state["best"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: not a whole checkpoint ({error})") from error
    for name, value in dotted(recipe.to_dict()).items():
        if value != then.get(name) and name not in ("train.steps", "train.minutes"):
            raise UsageError(
                f"{folder} is of another configuration: {name} was {then.get(name)!r}, now {value!r}; "
                "give another --run-dir"
            )
    load_into(model, load_tensors(folder, "model"), str(folder))
    load_into(averaged, load_tensors(folder, "averaged"), str(folder))
    content = optimizer.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_tensors(folder, "optimizer").items():
        index, _, field = name.partition(".")
        moments.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": moments, "param_groups": content["param_groups"]})
    for parameter, entry in optimizer.state.items():  # in the parameter's memory format, as it was
        for name, value in entry.items():
            if value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter).copy_(value)
    return load_tensors(folder, "extra"), state


def log_file(run_dir: Path) -> Path:
    """Return the log's place."""
    return run_dir / "log.csv"


def append_log(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Add a row to log.csv, with a header if it is the first."""
    path = log_file(run_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or path.stat().st_size == 0
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """Return the log's rows as numbers."""
    with log_file(run_dir).open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def trim_log(run_dir: Path, step: int) -> None:
    """Drop rows after `step`, and one that was cut off: the resumed run writes them again."""
    path = log_file(run_dir)
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        whole = [row for row in reader if None not in row.values()]  # a killed process may leave half a row
    rows = [row for row in whole if int(row["step"]) <= step]
    if not rows:
        path.unlink()
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
