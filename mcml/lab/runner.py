"""Run the ordered notebooks headlessly: checked parameters, resume, and nothing half-written.

A notebook writes into a scratch folder of this run; only when it has finished does that
folder become ``results/<profile>/<notebook>/``, with a `complete.json` that says what it
was made from. Killed at any moment, a run leaves whole results or none.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from mcml.base.errors import DataError, McmlError, StoppedError, UsageError, choose
from mcml.base.files import atomic_write, check_writable, replace_folder, repo_root, sha256
from mcml.codec.interface import get_codec
from mcml.data.sets import data_folders, image_set, registry
from mcml.lab.output import command_line, results_root
from mcml.lab.parameters import CHECKS, CODECS, DATA_SETS, check_parameters, load_profile, parse_names

Progress = Callable[[str, int, int], None]  # notebook, cells done, cells in all
NO_NUMBERS = ("__main__.py", "cli/*", "lab/runner.py", "lab/report.py", "lab/templates/*")  # decide none


class NotebookError(McmlError):
    """A cell failed; the text holds the cell, its traceback and what to do."""


# ------------------------------------------------------------------------------------ plan


@dataclass(frozen=True, kw_only=True)
class NotebookRun:
    """A notebook with the parameters that it is to run with."""

    path: Path
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The notebook's stem, as in ``01_data_preparation``."""
        return self.path.stem

    def data_sets(self) -> list[str]:
        """Return the data sets and folders that it reads."""
        return [self.parameters[name] for name in DATA_SETS if self.parameters.get(name)]

    def absent_sets(self) -> list[str]:
        """Return the registered data sets that it reads and that are nowhere and cannot be downloaded."""
        own = {name for name in self.data_sets() if "files" not in registry().get(name, {"files": []})}
        return sorted(name for name in own if not any((folder / name).is_dir() for folder in data_folders()))

    def check_data(self) -> None:
        """Find the data sets and the sample image now rather than in a kernel."""
        sets = {name: image_set(name) for name in self.data_sets()}
        if self.parameters.get("sample_image") and "dataset" in self.parameters:
            paths = sets[self.parameters["dataset"]].paths[: self.parameters.get("max_images") or None]
            choose("image", self.parameters["sample_image"], [path.stem for path in paths])

    def fingerprint(self) -> str:
        """Hash of all that decides the results: notebook, code, models, lock, parameters, data."""
        root, codecs = repo_root(), {c for n in CODECS for c in parse_names(self.parameters.get(n, ""))}
        code = _contents(root / "mcml")
        parts = {
            "cells": [cell["source"] for cell in json.loads(self.path.read_text("utf-8"))["cells"]],
            "code": {n: h for n, h in code.items() if not any(fnmatch(n, p) for p in NO_NUMBERS)},
            "lock": _contents(root, "requirements.lock"),
            "published": _contents(root / "data"),
            "parameters": dict(self.parameters),
            "data": {name: image_set(name).digest for name in self.data_sets()},
            "models": {codec: _contents(Path(codec)) for codec in codecs if Path(codec).is_dir()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _contents(folder: Path, pattern: str = "**/*") -> dict[str, str]:
    """Return the hashes of a folder's files by name; hidden ones and caches are left out."""
    paths = {p.relative_to(folder): p for p in sorted(folder.glob(pattern)) if p.is_file()}
    return {
        name.as_posix(): sha256(path)
        for name, path in paths.items()
        if not any(part.startswith(".") or part in ("__pycache__", "cache") for part in name.parts)
    }


def notebooks() -> list[Path]:
    """Return the numbered notebooks in reading order."""
    return sorted((repo_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Read the defaults in a notebook's parameters cell, by name.

    Raises:
        UsageError: if the notebook has no cell tagged ``parameters``.
    """
    import papermill

    parameters = papermill.inspect_notebook(str(path))
    if not parameters:
        raise UsageError(f"{path.name} has no cell tagged 'parameters' with parameters in it")
    return {name: ast.literal_eval(about["default"]) for name, about in parameters.items()}


def merge_parameters(path: Path, profile: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay profile and command-line values over a notebook's defaults, refusing unknown names.

    papermill itself only warns of an unknown parameter and goes on.

    Raises:
        UsageError: for a name that the notebook lacks, or a value of another type.
    """
    defaults = notebook_parameters(path)
    values = defaults | ({"profile": profile} if "profile" in defaults else {})
    for name, value in (item for layer in layers for item in layer.items()):
        default = defaults[choose(f"parameter of {path.stem}", name, defaults)]
        if isinstance(value, str) and not isinstance(default, str):
            with suppress(ValueError, SyntaxError):  # a command line's text
                value = ast.literal_eval(value)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise UsageError(
                f"parameter {name} of {path.stem} is {value!r}: expected {type(default).__name__}, "
                f"as in its default {default!r}"
            )
        values[name] = value
    return values


def _settle(values: dict[str, Any]) -> dict[str, Any]:
    """Check values before any kernel starts, and make places absolute: kernels run in another folder."""
    check_parameters(**{name: value for name, value in values.items() if name in CHECKS})
    for name in CODECS:
        if name in values:
            values[name] = ",".join(_absolute(codec) for codec in parse_names(values[name]))
    for codec in parse_names(values.get("codecs", "")):
        get_codec(codec)
    for name in DATA_SETS:
        if values.get(name) and values[name] not in registry():
            image_set(values[name])
            values[name] = _absolute(values[name])
    return values


def _absolute(word: str) -> str:
    folder = Path(word).expanduser()
    return str(folder.resolve()) if folder.is_dir() else word


def plan(
    profile: str, only: list[str] | None = None, overrides: Mapping[str, Any] | None = None
) -> list[NotebookRun]:
    """Return the notebooks of a profile in order, with their parameters.

    Args:
        profile: a file of ``notebooks/profiles``.
        only: notebooks by number or stem (``"01"``); None takes those that the profile names.
        overrides: parameters that lie over the profile's; each must be known to at least
            one chosen notebook. Folders are meant from the current one.
    """
    content, overrides = load_profile(profile), dict(overrides or {})
    by_name = {path.stem: path for path in notebooks()}
    for name in content:
        choose(f"notebook in profile {profile}", name, by_name)
    chosen = [name for name in by_name if name in content]
    if only:
        short = {name[:2]: name for name in by_name} | {name: name for name in by_name}
        chosen = sorted({short[choose("notebook", n.removesuffix(".ipynb").zfill(2), short)] for n in only})
    known = {name: notebook_parameters(by_name[name]) for name in chosen}
    for name in overrides:
        choose("parameter", name, {p for parameters in known.values() for p in parameters})
    runs = []
    for name in chosen:
        mine = {k: v for k, v in overrides.items() if k in known[name]}
        values = merge_parameters(by_name[name], profile, content.get(name, {}), mine)
        runs.append(NotebookRun(path=by_name[name], parameters=_settle(values)))
    return runs


def leave_out(runs: Sequence[NotebookRun]) -> tuple[list[NotebookRun], str]:
    """Return the runs whose data sets are here, and a sentence about the others ("" without any)."""
    absent = {run.name: names for run in runs if (names := run.absent_sets())}
    sets = ", ".join(sorted({name for names in absent.values() for name in names}))
    sentence = f"left out, MCML_DATA names no folder that holds the data set {sets}: {', '.join(absent)}"
    return [run for run in runs if run.name not in absent], sentence if absent else ""


# ------------------------------------------------------------------------------------- run


def is_finished(run: NotebookRun, folder: Path, fingerprint: str) -> bool:
    """Say whether a run's results are there, whole, and made from exactly what is there now."""
    try:
        done = json.loads((folder / run.name / "complete.json").read_text("utf-8"))
        intact = all(sha256(folder / run.name / name) == digest for name, digest in done["files"].items())
    except (OSError, ValueError, KeyError, DataError):
        return False
    return done["fingerprint"] == fingerprint and intact


def execute(run: NotebookRun, folder: Path, fingerprint: str, progress: Progress) -> None:
    """Execute one notebook and put its results in place.

    Raises:
        NotebookError: if a cell fails; the partly executed notebook is kept under
            ``<folder>/.failed/`` for reading.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from papermill.exceptions import PapermillExecutionError

    scratch = folder / ".scratch" / uuid.uuid4().hex[:12]
    executed, results = scratch / f"{run.name}.ipynb", scratch / folder.name / run.name
    cells = 1 + len(json.loads(run.path.read_text("utf-8"))["cells"])  # papermill adds one: the parameters
    began = time.perf_counter()
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log becomes our sentence
    try:
        scratch.mkdir(parents=True)
        with _environment(scratch):
            papermill.execute_notebook(
                str(run.path),
                str(executed),
                parameters=dict(run.parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=str(run.path.parent),
                start_timeout=180,
                on_cell_start=lambda cell, cell_index: progress(run.name, cell_index, cells),
                extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about local TCP
            )
        progress(run.name, cells, cells)
        if not (results / "run.json").is_file():
            raise NotebookError(f"{run.name} ended without saving its results (Output.finish was not called)")
        _strip_machine(executed)
        executed.rename(results / executed.name)
        record = {
            "fingerprint": fingerprint,
            "seconds": round(time.perf_counter() - began, 1),
            "files": {p.name: sha256(p) for p in sorted(results.iterdir())},
        }
        atomic_write(results / "complete.json", json.dumps(record, indent=2) + "\n")
        replace_folder(results, folder / run.name)
        (folder / ".failed" / executed.name).unlink(missing_ok=True)
    except PapermillExecutionError as error:
        _raise_cell_error(run, error, _keep(executed, folder))
    except McmlError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: results cannot be written there ({error.strerror or error})") from error
    except (RuntimeError, TimeoutError, NoSuchKernel) as error:  # nbclient's dead kernel and timeouts
        raise NotebookError(
            f"{run.name}: its kernel did not start, or died ({type(error).__name__}), most often for want of "
            f"memory; as far as it ran, the notebook is kept in {_keep(executed, folder)}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep(executed: Path, folder: Path) -> Path:
    """Copy a partly executed notebook to where a person can open it."""
    kept = folder / ".failed" / executed.name
    if executed.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(executed, kept)
    return kept


def reproduce(
    profile: str,
    only: list[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run a profile's notebooks in order, skip what is finished, and write the report.

    Notebooks whose data sets are not here and cannot be downloaded are left out, with a sentence,
    unless they were asked for by `only`.

    Args:
        profile, only, overrides: see `plan`.
        progress: called after every cell.
        say: receives one line for each notebook.

    Returns:
        The report's path.

    Raises:
        UsageError, DataError, NotebookError: one sentence each, before anything is half-written.
        StoppedError: after Ctrl-C or SIGTERM, when the kernel and its workers have ended.
    """
    from mcml.lab.report import build_report

    planned = plan(profile, only, overrides)
    runs, missing = leave_out(planned)
    if missing and (only or not runs):
        raise DataError(f"notebooks {missing}")
    folder = results_root() / profile
    with _stopped_by_signals() as check_signals, _lock(folder, say):
        shutil.rmtree(folder / ".scratch", ignore_errors=True)  # left by a run that was killed
        for run in runs:
            run.check_data()
        say(f"profile {profile}: {len(runs)} notebook{'s' * (len(runs) != 1)}")
        if missing:
            say(missing)

        def show(name: str, done: int, total: int) -> None:
            check_signals()
            if progress:
                progress(name, done, total)

        for run in runs:
            check_signals()
            fingerprint = run.fingerprint()
            if is_finished(run, folder, fingerprint):
                say(f"{run.name}: finished before and unchanged, skipped")
                continue
            start = time.perf_counter()
            execute(run, folder, fingerprint, show)
            say(f"{run.name}: done in {time.perf_counter() - start:.0f} s")
        usual = {run.name: run.parameters for run in plan(profile)}
        have = [p.stem for p in notebooks() if (folder / p.stem / "complete.json").is_file()]
        return build_report(folder, {name: usual.get(name, {}) for name in have}, missing)


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Turn Ctrl-C and SIGTERM into `StoppedError`, with no kernel and no worker left behind.

    An exception out of a handler would break into the event loop of the kernel's client, which may
    swallow it; so what runs beside is killed, and the client finds that out by itself.

    Yields:
        A function that raises if a signal has come.
    """
    import psutil

    caught: list[int] = []

    def check() -> None:
        if caught:
            raise StoppedError(caught[0])

    def stop(number: int, _: Any) -> None:
        caught.append(number)
        children = psutil.Process().children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if not children:
            check()

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    except Exception as error:
        if caught:
            raise StoppedError(caught[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one run at a time work on a profile; the kernel frees the lock of a killed one."""
    check_writable(folder / ".lock")
    with open(folder / ".lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is at work on profile '{folder.name}': waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(scratch: Path) -> Iterator[None]:
    """Set what the kernel is to inherit."""
    before = dict(os.environ)
    os.environ |= {
        "MCML_RESULTS": str(scratch),
        "MCML_COMMAND": command_line(),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's folder
        "OMP_NUM_THREADS": before.get("OMP_NUM_THREADS", "1"),  # cores are for workers, one each
    }
    if "MCML_DATA" in before:
        os.environ["MCML_DATA"] = os.pathsep.join(str(p.resolve()) for p in data_folders())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _strip_machine(path: Path) -> None:
    """Take times and this machine's paths out of an executed notebook's metadata."""
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _raise_cell_error(run: NotebookRun, error: Any, kept: Path) -> NoReturn:
    """Turn papermill's error into ours: one sentence for bad input, the cell for anything else."""
    again = "then run the same command again: finished notebooks are skipped"
    ours = {"UsageError": UsageError, "DataError": DataError}.get(str(error.ename))
    if ours is not None:
        raise ours(f"{run.name}: {error.evalue}; mend that, {again}") from error
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).strip().splitlines()[-12:]
    source = error.source.strip().splitlines()[:15]
    raise NotebookError(
        f"{run.name}: cell In [{error.exec_count}] failed with {error.ename}: {error.evalue}\n"
        + "\n".join(["  the cell:", *("    " + line for line in source)])
        + "\n"
        + "\n".join(["  its traceback, last lines:", *("    " + line for line in trace)])
        + f"\n  what to do: open {kept}, the notebook as far as it ran, to look into it; {again}"
    ) from error
