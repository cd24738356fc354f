"""Run the ordered notebooks headlessly: checked parameters, resume, and nothing half-written.

A notebook writes into a scratch folder of this run; only when it has finished does that
folder become ``results/<profile>/<notebook>/``, with a `complete.json` that says what it
was made from. Killed at any moment, a run leaves whole results or none.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

import psutil

from mcml.base.errors import DataError, McmlError, StoppedError, UsageError, choose
from mcml.base.files import (
    atomic_write,
    check_writable,
    expanded,
    legible,
    lock,
    replace_folder,
    repo_root,
    sha256,
)
from mcml.codec.interface import get_codec
from mcml.data.sets import data_folders, image_set, registry
from mcml.lab.output import command_line, results_root
from mcml.lab.parameters import CHECKS, CODECS, DATA_SETS, check_parameters, load_profile, parse_names

Progress = Callable[[str, int, int], None]  # notebook, cells done, cells in all
KEPT = "finished notebooks are kept; the same command goes on from there"
NO_NUMBERS = (  # what decides none: caches, hidden files, and what runs notebooks and prints
    *("*__pycache__*", "cache/*", ".*", "*/.*"),
    *("__main__.py", "cli/*", "lab/runner.py", "lab/report.py", "lab/prose.py", "lab/templates/*"),
)


class NotebookError(McmlError):
    """A cell failed; the text holds the cell, its traceback and what to do."""


# ------------------------------------------------------------------------------------ plan


class NotebookRun(NamedTuple):
    """A notebook with the parameters that it is to run with."""

    path: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """The notebook's stem, as in ``01_data_preparation``."""
        return self.path.stem

    def data_sets(self) -> list[str]:
        """Return the data sets and folders that it reads."""
        return [self.parameters[name] for name in DATA_SETS if self.parameters.get(name)]

    def absent_sets(self) -> set[str]:
        """Return the registered data sets that it reads and that are nowhere and cannot be downloaded."""
        own = {name for name in self.data_sets() if "files" not in registry().get(name, {"files": []})}
        return {name for name in own if not any((folder / name).is_dir() for folder in data_folders())}

    def check_data(self) -> None:
        """Find the data sets and the sample image now rather than in a kernel."""
        sets = {name: image_set(name) for name in self.data_sets()}
        for path in [results_root(), *(path for images in sets.values() for path in images.paths)]:
            if legible(str(path)) != str(path):
                raise DataError(f"{path}: its name is not UTF-8, which notebooks cannot print: rename it")
        if self.parameters.get("sample_image"):
            paths = sets[self.parameters["dataset"]].paths[: self.parameters.get("max_images") or None]
            choose("image", self.parameters["sample_image"], [path.stem for path in paths])

    def fingerprint(self) -> str:
        """Hash of all that decides the results: notebook, code, models, lock, parameters, data."""
        root, codecs = repo_root(), {c for n in CODECS for c in parse_names(self.parameters.get(n, ""))}
        parts = {
            "cells": [cell["source"] for cell in json.loads(self.path.read_text("utf-8"))["cells"]],
            "code": _contents(root / "mcml"),
            "lock": sha256(root / "requirements.lock"),
            "published": _contents(root / "data"),
            "kept": {path.name: sha256(path) for path in (root / "results" / "released").glob("*.csv")},
            "parameters": self.parameters,
            "data": {name: image_set(name).digest for name in self.data_sets()},
            "measured": _contents(root / self.parameters["measured"])
            if "measured" in self.parameters
            else {},
            "models": {codec: _contents(Path(codec)) for codec in codecs if Path(codec).is_dir()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _contents(folder: Path) -> dict[str, str]:
    """Return the hashes of those of a folder's files that may decide a number."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {n: sha256(p) for n, p in paths.items() if not any(fnmatch(n, no) for no in NO_NUMBERS)}


def notebooks() -> list[Path]:
    """Return the numbered notebooks in reading order."""
    return sorted((repo_root() / "notebooks").glob("[0-9][0-9]*_*.ipynb"))


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Read the defaults in a notebook's parameters cell, by name; `UsageError` if there is no such cell."""
    import papermill

    parameters = papermill.inspect_notebook(_literal(path))
    if not parameters:
        raise UsageError(f"{path.name} has no cell tagged 'parameters' with parameters in it")
    return {name: ast.literal_eval(about["default"]) for name, about in parameters.items()}


def _literal(path: Path) -> str:
    """Return a path as papermill takes it, which fills in what braces hold."""
    return str(path).replace("{", "{{").replace("}", "}}")


def plan(
    profile: str, only: Sequence[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> list[NotebookRun]:
    """Return the notebooks of a profile in order, with their parameters.

    Args:
        profile: a file of ``notebooks/profiles``.
        only: notebooks by number or stem (``"01"``, ``"02b"``); None takes those that the profile names.
        overrides: parameters that lie over the profile's; each must be known to at least
            one chosen notebook. Folders are meant from the current one.
    """
    content, overrides = load_profile(profile), overrides or {}
    by_name = {path.stem: path for path in notebooks()}
    for name in content:
        choose(f"notebook in profile {profile}", name, by_name)
    short = {name.partition("_")[0]: name for name in by_name} | {name: name for name in by_name}
    asked = {short[choose("notebook", n.removesuffix(".ipynb").zfill(2), short)] for n in only or content}
    defaults = {name: notebook_parameters(by_name[name]) for name in sorted(asked)}
    for name in overrides:
        choose("parameter", name, {known for own in defaults.values() for known in own})
    runs = []
    for name, own in defaults.items():
        given = {known: overrides[known] for known in own if known in overrides}
        values = {"profile": profile} | content.get(name, {}) | given
        runs.append(NotebookRun(by_name[name], _parameters(name, own, values)))
    return runs


def _parameters(notebook: str, defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Lay values over a notebook's defaults and check all, before any kernel starts."""
    merged = dict(defaults)
    for name, value in values.items():
        default = defaults[choose(f"parameter of {notebook}", name, defaults)]
        if isinstance(value, str) and not isinstance(default, str):
            with suppress(ValueError, SyntaxError):  # a command line's text
                value = ast.literal_eval(value)
        merged[name] = value
    check_parameters(**{name: value for name, value in merged.items() if name in CHECKS})
    for name in set(CODECS) & merged.keys():
        merged[name] = ",".join(map(_absolute, parse_names(merged[name])))
    for codec in parse_names(merged.get("codecs", "")):
        get_codec(codec)
    for name in DATA_SETS:
        if merged.get(name) and merged[name] not in registry():
            image_set(merged[name])
            merged[name] = _absolute(merged[name])
    return merged


def _absolute(word: str) -> str:
    """Make a folder's path absolute, since kernels run in another folder; leave a name as it is."""
    folder = expanded(word)
    return str(folder.resolve()) if folder.is_dir() else word


# ------------------------------------------------------------------------------------- run


def reproduce(
    profile: str,
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    progress: Progress = lambda *_: None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run a profile's notebooks in order, skip what is finished; write the report and return its path.

    Notebooks whose data sets are not here and cannot be downloaded are left out, with a sentence,
    unless they were asked for by `only`.

    Args:
        profile, only, overrides: see `plan`.
        progress: called after every cell.
        say: receives one line for each notebook.

    Raises:
        UsageError, DataError, NotebookError: one sentence each, before anything is half-written.
        StoppedError: after Ctrl-C or SIGTERM, when the kernel and its workers have ended.
    """
    runs, missing = plan(profile, only, overrides), ""
    if absent := {run.name: sets for run in runs if (sets := run.absent_sets())}:
        sets = ", ".join(sorted(set().union(*absent.values())))
        missing = f"left out, MCML_DATA names no folder that holds the data set {sets}: {', '.join(absent)}"
        runs = [run for run in runs if run.name not in absent]
        if only or not runs:
            raise DataError(f"notebooks {missing}")
    folder = results_root() / profile
    with _stopped_by_signals() as caught:
        for run in runs:
            run.check_data()
        say(f"profile {profile}: {len(runs)} notebook{'s' * (len(runs) != 1)}")
        if missing:
            say(missing)
        for run in runs:
            if caught:  # while no kernel ran that could end by it
                raise StoppedError(caught[0], KEPT)
            with _lock(folder, run.name, say):
                fingerprint, start = run.fingerprint(), time.perf_counter()
                if _is_finished(folder / run.name, fingerprint):
                    say(f"{run.name}: finished before and unchanged, skipped")
                else:
                    _execute(run, folder, fingerprint, progress)
                    say(f"{run.name}: done in {time.perf_counter() - start:.0f} s")
        from mcml.lab.report import build_report

        with _lock(folder, "report"):
            usual = {run.name: run.parameters for run in plan(profile)}
            have = [p.stem for p in notebooks() if (folder / p.stem / "complete.json").is_file()]
            return build_report(folder, {name: usual.get(name, {}) for name in have}, missing)


def _is_finished(results: Path, fingerprint: str) -> bool:
    """Say whether results are there, whole, and made from exactly what is there now."""
    try:
        done = json.loads((results / "complete.json").read_text("utf-8"))
        intact = all(sha256(results / name) == digest for name, digest in done["files"].items())
    except (OSError, ValueError, KeyError, DataError):
        return False
    return done["fingerprint"] == fingerprint and intact


def _execute(run: NotebookRun, folder: Path, fingerprint: str, progress: Progress) -> None:
    """Execute one notebook and put its results in place, or keep it, half run, in ``<folder>/.failed``."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    own = folder / ".scratch" / run.name
    shutil.rmtree(own, ignore_errors=True)  # left by a run that was killed, whose kernel may still be ending
    scratch = own / uuid.uuid4().hex[:12]
    executed, results = scratch / f"{run.name}.ipynb", scratch / folder.name / run.name
    kept = folder / ".failed" / executed.name
    cells = 1 + len(json.loads(run.path.read_text("utf-8"))["cells"])  # papermill adds one: the parameters
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log becomes our sentence
    before = dict(os.environ)
    os.environ |= {  # the kernel inherits it
        "MCML_RESULTS": str(scratch),
        "MCML_COMMAND": command_line(),
        "MCML_DATA": os.pathsep.join(str(path.resolve()) for path in data_folders()),
        "IPYTHONDIR": str(scratch / "ipython"),  # not the user's: its start-up files are no part of a run
        "JUPYTER_RUNTIME_DIR": str(scratch / "jupyter"),
        "OMP_NUM_THREADS": before.get("OMP_NUM_THREADS", "1"),  # cores are for workers, one each
    }
    for name in ("PYTHONSTARTUP", "MPLBACKEND"):
        os.environ.pop(name, None)
    if os.path.expanduser("~") == "~":  # noqa: PTH111  (Path's raises where the user has no home)
        os.environ["HOME"] = str(scratch)
    try:
        scratch.mkdir(parents=True)
        options = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 180}
        options["kernel_manager_class"] = _own_kernel()
        options["extra_arguments"] = ["--IPKernelApp.log_level=50", "--HistoryManager.enabled=False"]
        options["on_cell_start"] = lambda cell, cell_index: progress(run.name, cell_index, cells)
        papermill.execute_notebook(
            _literal(run.path), _literal(executed), run.parameters, cwd=str(run.path.parent), **options
        )
        progress(run.name, cells, cells)
        if not (results / "run.json").is_file():
            raise NotebookError(f"{run.name} ended without saving its results (Output.finish was not called)")
        _strip_machine(executed, results / executed.name)
        files = {path.name: sha256(path) for path in sorted(results.iterdir())}
        record = {"fingerprint": fingerprint, "files": files}
        atomic_write(results / "complete.json", json.dumps(record, indent=2) + "\n")
        with _lock(folder, "report"):  # which reads it
            replace_folder(results, folder / run.name)
        kept.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: results cannot be written there ({error.strerror or error})") from error
    except (PapermillExecutionError, RuntimeError) as error:  # a failed cell, or nbclient's dead kernel
        if executed.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(executed, kept)
        raise _explained(run.name, error, kept) from error
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(own, ignore_errors=True)


def _own_kernel() -> type:
    """Return what starts this interpreter as the kernel, whatever the user's kernels are called."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    class Own(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")

    return Own


def _explained(name: str, error: Any, kept: Path) -> McmlError:
    """Turn papermill's error into ours: one sentence for bad input, the cell for anything else."""
    again = "then run the same command again: finished notebooks are skipped"
    if isinstance(error, RuntimeError):
        return NotebookError(
            f"{name}: its kernel did not start, or died, most often for want of memory; as far as it ran, "
            f"the notebook is kept in {kept}"
        )
    if ours := {"UsageError": UsageError, "DataError": DataError}.get(error.ename):
        return ours(f"{name}: {error.evalue}; mend that, {again}")
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).strip().splitlines()[-12:]
    return NotebookError(
        f"{name}: cell In [{error.exec_count}] failed with {error.ename}: {error.evalue}\n"
        f"  the cell:\n{indent(error.source.strip(), '    ')}\n"
        f"  its traceback, last lines:\n{indent(chr(10).join(trace), '    ')}\n"
        f"  what to do: open {kept}, the notebook as far as it ran, to look into it; {again}"
    )


def _strip_machine(executed: Path, path: Path) -> None:
    """Write an executed notebook anew, without times and this machine's paths in its metadata."""
    notebook = json.loads(executed.read_text("utf-8"))
    for part in (notebook, *notebook["cells"]):
        for key in ("papermill", "execution", "widgets"):
            part["metadata"].pop(key, None)
    atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


@contextmanager
def _stopped_by_signals() -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into `StoppedError`, with no kernel and no worker left behind.

    An exception out of a handler would break into the event loop of the kernel's client, which may
    swallow it; so what runs beside is killed, and the client finds that out by itself.

    Yields:
        The numbers of the signals that have come.
    """
    caught: list[int] = []

    def stop(number: int, _: Any) -> None:
        caught.append(number)
        children = psutil.Process().children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if not children:
            raise StoppedError(number, KEPT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    except Exception as error:
        if caught:
            raise StoppedError(caught[0], KEPT) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _lock(folder: Path, name: str, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Let one run at a time work on a notebook, or the report; the system frees the lock of a killed one."""
    check_writable(file := folder / f".{name}.lock")
    with lock(file, lambda: say(f"{name}: another run is at work on it, waiting for its end")):
        yield
