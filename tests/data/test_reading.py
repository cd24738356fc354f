"""Pictures of every kind are read as their standards say, or refused; changed headers harm nothing."""

import os
import subprocess
import sys

import pytest
from data.kinds import KINDS, measure
from helpers import ROOT

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux tells it")
FALSE_SIZES = """
import resource, time
from data.kinds import measure, sizes
cases = [case for case in sizes() if case.want is None]
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for case in cases:
    assert measure(case) is None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - began)
"""


def python(*words):
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind, record_property):
    wrong, errors, cases = [], [0.0], list(KINDS[kind][0]())
    for case in cases:
        try:
            errors.append(measure(case) or 0)
        except AssertionError as fault:
            wrong.append(str(fault))
    record_property("largest error", max(errors))
    assert not wrong, "\n".join([f"{len(wrong)} wrong:", *wrong])
    assert f"| {kind} | {len(cases)} |" in (ROOT / "docs/READING.md").read_text("utf-8")


@LINUX
def test_false_sizes_are_refused_without_memory_or_time():
    ran = python("-c", FALSE_SIZES)
    assert ran.returncode == 0, ran.stderr
    kib, seconds = map(float, ran.stdout.split())
    assert kib < 300 * 1024
    assert seconds < 5


@LINUX
def test_changed_headers_give_a_picture_or_a_sentence():
    ran = python(ROOT / "tests/fuzz_images.py", "--count", 600, "--seed", 7)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("\n| ") >= 14
