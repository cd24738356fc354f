"""Run the suite as other machines would: older instruction sets, other numbers of threads.

Run by `make test-portable`; the notebooks are left out, `make test` compares them. Further arguments
go to pytest. The last lines are a table: setting, what pytest counted, seconds.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (
    {"ATEN_CPU_CAPABILITY": "default"},  # torch's kernels for any x86-64
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},  # convolutions without AVX-512 and AMX
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "4"},
)


def main() -> int:
    """Run the settings one after another; return 1 if a test failed under any."""
    rows, failed = [], False
    for setting in SETTINGS:
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        print(f"== {name}", flush=True)
        began = time.monotonic()
        command = [
            *(sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadscope", "-m", "not slow", "-q"),
            *(sys.argv[1:] or ["tests"]),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **setting}, capture_output=True, text=True, check=False
        )
        counted = re.findall(r"^=*\s*(\d+ (?:passed|failed|error).*?) in [\d.]+", done.stdout, re.M)
        failed |= done.returncode != 0
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
        rows.append((name, counted[-1] if counted else "no test was run", time.monotonic() - began))
    for name, counted, seconds in rows:
        print(f"{name:32}{counted:44}{seconds:6.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
