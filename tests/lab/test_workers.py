"""Calls side by side: in order, on one thread each, and gone with the process that made them."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from mcml.lab.workers import one_thread, side_by_side


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def about(number):
    return number, torch.get_num_threads(), os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_and_each_call_has_one_thread(three_threads, workers):
    ticks, kept = [], []
    calls = [partial(about, n) for n in range(5)]
    rows = side_by_side(calls, workers, lambda *tick: ticks.append((*tick, len(kept))), kept.append)
    assert [row[:2] for row in rows] == [(n, 1) for n in range(5)]
    assert kept == rows and ticks == [(n, 5, n) for n in range(1, 6)]
    assert ({row[2] for row in rows} == {os.getpid()}) == (workers == 1)
    assert torch.get_num_threads() == 3
    assert side_by_side([], workers) == []
    with pytest.raises(ValueError, match="invalid literal"):  # an error comes back as it is
        side_by_side([partial(int, "1"), partial(int, "one")], workers)


def test_one_thread_ends_with_its_block_whatever_happens_there(three_threads):
    @one_thread()
    def fail():
        assert torch.get_num_threads() == 1
        raise ValueError

    for _ in range(2):  # a decorator works more than once
        with pytest.raises(ValueError):
            fail()
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_are_gone_within_seconds_after_their_parent(number):
    code = """import time
from functools import partial
from mcml.lab.workers import side_by_side
side_by_side([partial(abs, 1)] * 4, 2)  # they wait for more now
print("ready", flush=True)
time.sleep(600)"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.send_signal(number)
    assert not psutil.wait_procs(children, timeout=60)[1]
    parent.wait(timeout=60)


def test_workers_of_a_pool_that_is_used_again_are_in_the_caller_s_folder(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert side_by_side([Path.cwd] * 2, 2) == [tmp_path / name] * 2
