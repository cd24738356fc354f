"""Several calls side by side in processes of one thread each, none of which outlives its parent."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError, UsageError, explained

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there are no semaphores: `side_by_side` does without
    import joblib


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, and as many as before afterwards; also a decorator, ``@one_thread()``."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(
    calls: Sequence[Callable[[], Any]],
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    keep: Callable[[Any], None] | None = None,
) -> list[Any]:
    """Make several calls, on one thread each, and return their results in order.

    Args:
        calls: functions without arguments (`functools.partial`).
        workers: processes, 0 for as many as there are cores, never more than calls; 1 stays in
            this process, as all do where the system lends them no memory to share.
        progress: called with (done, total) after each call, in order.
        keep: called with each result before that.

    Raises:
        DataError: if the system ended a process.
    """
    count, results = min(joblib.effective_n_jobs(workers or -1), max(len(calls), 1)), []
    with one_thread():
        try:
            for result in _results(calls, count):
                results.append(result)
                if keep:
                    keep(result)
                if progress:
                    progress(len(results), len(calls))
        except BrokenExecutor as error:
            advice = "most often for want of memory: take fewer workers"
            raise DataError(f"the system ended one of {count} processes, {advice}") from error
    return results


def _results(calls: Sequence[Callable[[], Any]], count: int) -> Iterator[Any]:
    """Yield what calls return; what is left where the system starts no processes is done in this one."""
    done, processes = 0, _in_processes(calls, count) if count > 1 else iter(())
    while done < len(calls):
        try:
            result, error = next(processes)
        except (OSError, StopIteration):
            yield from (call() for call in calls[done:])
            return
        if error is not None:
            raise error
        done += 1
        yield result


def _in_processes(calls: Sequence[Callable[[], Any]], count: int) -> Iterator[tuple[Any, Exception | None]]:
    pool = {"inner_max_num_threads": 1, "initializer": _watch, "initargs": (os.getpid(),)}
    with warnings.catch_warnings(), joblib.parallel_config("loky", **pool):
        warnings.filterwarnings("ignore", message="A worker stopped")  # one grown large starts anew
        yield from joblib.Parallel(count, return_as="generator")(
            map(joblib.delayed(partial(_in_folder, Path.cwd())), calls)
        )


def attempt(call: Callable[[], Any]) -> Any:
    """Make a call; an error that is of its data alone is returned, as one of ours, with its traceback."""
    try:
        return call()
    except UsageError:
        raise
    except Exception as error:
        ours = explained(error)
        ours.add_note(traceback.format_exc())
        return ours


def _in_folder(folder: Path, call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Make a call in a folder, since a pool that is used again may have been started in another.

    Returns:
        Its result and None, or None and its error, which is thus none of the pool's.
    """
    os.chdir(folder)
    try:
        return call(), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error


def _watch(parent: int) -> None:
    """End this process soon after its parent: joblib's workers would wait for work for minutes."""

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=poll, daemon=True).start()
