"""Run the ordered notebooks headlessly: checked parameters, resume, and nothing half-written.

A notebook writes into a scratch folder of this run; only when it has finished does that
folder become ``results/<profile>/<notebook>/``, with a `complete.json` that says what it
was made from. Killed at any moment, a run leaves whole results or none.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mcml.base.errors import DataError, McmlError, UsageError
from mcml.base.files import atomic_write, replace_folder, sha256
from mcml.data.sets import data_folders
from mcml.lab.jobs import Job, notebooks, plan
from mcml.lab.output import command_line, results_root

Progress = Callable[[str, int, int], None]  # notebook, cells done, cells in all


class NotebookError(McmlError):
    """A cell failed; the text holds the cell, its traceback and what to do."""


# ------------------------------------------------------------------------------------- run


def is_finished(job: Job, folder: Path, fingerprint: str) -> bool:
    """Say whether a job's results are there, whole, and made from exactly what is there now."""
    try:
        done = json.loads((folder / job.name / "complete.json").read_text("utf-8"))
        intact = all(sha256(folder / job.name / name) == digest for name, digest in done["files"].items())
    except (OSError, ValueError, KeyError, DataError):
        return False
    return done["fingerprint"] == fingerprint and intact


def run_job(job: Job, folder: Path, fingerprint: str, progress: Progress | None = None) -> None:
    """Execute one notebook and put its results in place.

    Raises:
        NotebookError: if a cell fails; the partly executed notebook is kept under
            ``<folder>/.failed/`` for reading.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from papermill.exceptions import PapermillExecutionError

    scratch = folder / ".scratch" / uuid.uuid4().hex[:12]
    executed, results = scratch / f"{job.name}.ipynb", scratch / folder.name / job.name
    began = time.perf_counter()
    try:
        scratch.mkdir(parents=True)
        _register_engine(job.name, progress)
        with _environment(_kernel_environment(scratch)):
            papermill.execute_notebook(
                str(job.path),
                str(executed),
                parameters=dict(job.parameters),
                engine_name="mcml",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=str(job.path.parent),
                start_timeout=180,
                extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about local TCP
            )
        if not (results / "run.json").is_file():
            raise NotebookError(f"{job.name} ended without saving its results (Output.finish was not called)")
        _strip_machine(executed)
        executed.rename(results / executed.name)
        files = {p.name: sha256(p) for p in sorted(results.iterdir())}
        record = {
            "fingerprint": fingerprint,
            "seconds": round(time.perf_counter() - began, 1),
            "files": files,
        }
        atomic_write(results / "complete.json", json.dumps(record, indent=2) + "\n")
        replace_folder(results, folder / job.name)
        (folder / ".failed" / executed.name).unlink(missing_ok=True)
    except PapermillExecutionError as error:
        _raise_cell_error(job, error, _keep(executed, folder))
    except McmlError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: results cannot be written there ({error.strerror or error})") from error
    except (RuntimeError, TimeoutError, NoSuchKernel) as error:  # nbclient's dead kernel and timeouts
        raise NotebookError(
            f"{job.name}: its kernel did not start, or died ({type(error).__name__}), most often for want of "
            f"memory; as far as it ran, the notebook is kept in {_keep(executed, folder)}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _kernel_environment(scratch: Path) -> dict[str, str]:
    environment = {
        "MCML_RESULTS": str(scratch),
        "MCML_COMMAND": command_line(),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the user's folder
    }
    if "MCML_DATA" in os.environ:
        environment["MCML_DATA"] = os.pathsep.join(str(p.resolve()) for p in data_folders())
    return environment


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
    force: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Run a profile's notebooks in order, skip what is finished, and write the report.

    Args:
        profile, only, overrides: see `plan`.
        force: run even what is finished.
        progress: called after every cell.
        say: receives one line for each notebook.

    Returns:
        The report's path.

    Raises:
        UsageError, DataError, NotebookError: one sentence each, before anything is half-written.
    """
    from mcml.lab.report import build_report

    jobs = plan(profile, only, overrides)
    folder = results_root() / profile
    with _lock(folder, say):
        shutil.rmtree(folder / ".scratch", ignore_errors=True)  # left by a run that was killed
        for job in jobs:
            job.check_data()
        for job in jobs:
            fingerprint = job.fingerprint()
            if not force and is_finished(job, folder, fingerprint):
                say(f"{job.name}: finished before and unchanged, skipped")
                continue
            start = time.perf_counter()
            run_job(job, folder, fingerprint, progress)
            say(f"{job.name}: done in {time.perf_counter() - start:.0f} s")
        usual = {job.name: job.parameters for job in plan(profile)}
        have = [p.stem for p in notebooks() if (folder / p.stem / "complete.json").is_file()]
        return build_report(folder, {name: usual.get(name, {}) for name in have})


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one run at a time work on a profile; the kernel frees the lock of a killed one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+")  # noqa: SIM115  (held while the run lasts)
    except OSError as error:
        raise DataError(
            f"{folder}: results cannot be written there ({error.strerror}); MCML_RESULTS names another"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is at work on profile '{folder.name}': waiting for it to end")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _register_engine(name: str, progress: Progress | None) -> None:
    """Register a papermill engine that reports each finished cell."""
    from papermill.engines import NBClientEngine, papermill_engines

    class ProgressEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
            finish, total = nb_man.cell_complete, len(nb_man.nb.cells)

            def cell_complete(cell: Any, cell_index: int | None = None, **options: Any) -> None:
                finish(cell, cell_index=cell_index, **options)
                if progress and cell_index is not None:
                    progress(name, cell_index + 1, total)

            nb_man.cell_complete = cell_complete
            if progress:
                progress(name, 0, total)
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    papermill_engines.register("mcml", ProgressEngine)


def _strip_machine(path: Path) -> None:
    """Take times and this machine's paths out of an executed notebook's metadata."""
    notebook = json.loads(path.read_text("utf-8"))
    notebook["metadata"].pop("papermill", None)
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def _raise_cell_error(job: Job, error: Any, kept: Path) -> NoReturn:
    """Turn papermill's error into ours: one sentence for bad input, the cell for anything else."""
    again = "then run the same command again: finished notebooks are skipped"
    ours = {"UsageError": UsageError, "DataError": DataError}.get(str(error.ename))
    if ours is not None:
        raise ours(f"{job.name}: {error.evalue}; mend that, {again}") from error
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).strip().splitlines()[-12:]
    source = error.source.strip().splitlines()[:15]
    raise NotebookError(
        f"{job.name}: cell In [{error.exec_count}] failed with {error.ename}: {error.evalue}\n"
        + "\n".join(["  the cell:", *("    " + line for line in source)])
        + "\n"
        + "\n".join(["  its traceback, last lines:", *("    " + line for line in trace)])
        + f"\n  what to do: open {kept}, the notebook as far as it ran, to look into it; {again}"
    ) from error
