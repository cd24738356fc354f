"""Several calls side by side in processes of one thread each, none of which outlives its parent."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
            this process.
        progress: called with (done, total) after each call, in order.
        keep: called with each result before that.
    """
    count, results = min(workers or joblib.cpu_count(), max(len(calls), 1)), []
    pool = {"inner_max_num_threads": 1, "initializer": _watch, "initargs": (os.getpid(),)}
    with warnings.catch_warnings(), joblib.parallel_config("loky", **pool), one_thread():
        warnings.filterwarnings("ignore", message="A worker stopped")  # one grown large starts anew
        for result in joblib.Parallel(count, return_as="generator")(
            map(joblib.delayed(partial(_in_folder, Path.cwd())), calls)
        ):
            results.append(result)
            if keep:
                keep(result)
            if progress:
                progress(len(results), len(calls))
    return results


def _in_folder(folder: Path, call: Callable[[], Any]) -> Any:
    """Make a call in a folder: a pool that is used again may have been started in another."""
    os.chdir(folder)
    return call()


def _watch(parent: int) -> None:
    """End this process soon after its parent: joblib's workers would wait for work for minutes."""

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=poll, daemon=True).start()
