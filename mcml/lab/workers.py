"""Several calls side by side in processes of one thread each, none of which outlives its parent."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib

_watched: set[int] = set()  # this process, once it watches its parent


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
) -> list[Any]:
    """Make several calls, on one thread each, and return their results in order.

    Args:
        calls: functions without arguments (`functools.partial`).
        workers: processes, 0 for as many as there are cores, never more than calls; 1 stays in
            this process.
        progress: called with (done, total) after each call, in order.
    """
    count, results = min(workers or joblib.cpu_count(), max(len(calls), 1)), []
    with warnings.catch_warnings(), joblib.parallel_config("loky", inner_max_num_threads=1), one_thread():
        warnings.filterwarnings("ignore", message="A worker stopped")  # one grown large starts anew
        pool = joblib.Parallel(n_jobs=count, return_as="generator")
        for result in pool(joblib.delayed(_work)(call, os.getpid()) for call in calls):
            results.append(result)
            if progress:
                progress(len(results), len(calls))
    return results


def _work(call: Callable[[], Any], parent: int) -> Any:
    if os.getpid() not in {parent, *_watched}:
        _watched.add(os.getpid())
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return call()


def _end_with(parent: int) -> None:
    """End this process soon after its parent: joblib's would wait for work for minutes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
