"""Fuzz the decoder with atheris: `make fuzz`, or python tests/fuzz_decode.py --runs 1000000 --seconds 900.

An input is a byte of switches and a file. A quarter of the files get the model's identity, a size
of at most 48 x 48 and right checksums, so that what is damaged reaches the range coder and, where
no digest tells, the networks. Whatever is not refused in a sentence is a crash; its input is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import atheris

with atheris.instrument_imports(include=["mcml.codec"]):
    from mcml.codec import container, learned

import numpy as np
import torch
from helpers import tiny_codec

from mcml.base.errors import CorruptStreamError, UnsupportedStreamError

REPAIRED, PARTIAL, LUMA_ONLY, FIRST_LAYER, FUSION, FITTING = 0x03, 0x04, 0x08, 0x10, 0x20, 0x40
MOST_BYTES = 600  # of an input
MOST_PX = 48  # of a repaired file's sides
SLOW_S = 2.0  # an input that takes longer is a crash
SPARE_BYTES = 1 << 30  # address space beyond what the empty program takes
SEGMENT = 30_000  # inputs a process: atheris' own tracing keeps about 15 KB of each
SMALL = {
    f"model.{stream}.{name}": value
    for stream in ("luma", "color")
    for name, value in {"width": 4, "code_channels": 4, "levels": 3}.items()
}


def repair(data: bytes, model: bytes, tops: list[int], fitting: bool) -> bytes:
    """Return a file that passes as far as its integers: identity, size, rates if fitting, checksums."""
    front = bytearray(data[:18].ljust(18, b"\0"))
    front[:6] = b"MCML\x01" + bytes([front[5] & 0x1F | 0x20 * (len(tops) == 3)])
    width, height = struct.unpack_from("<HH", front, 6)
    struct.pack_into("<HH", front, 6, 1 + (width - 1) % MOST_PX, 1 + (height - 1) % MOST_PX)
    front[10:18] = model
    layered, adaptive = bool(front[5] & container.LAYERED), bool(front[5] & container.ADAPTIVE)
    width, rate = (1, "B") if adaptive else (2, "<H")
    end = 18 + layered + width * len(tops) + container.DIGEST_BYTES
    rest = bytearray(data[18:end].ljust(end - 18, b"\0"))
    if fitting:
        if layered:
            rest[0] = 2 + rest[0] % 4
        for at, top in zip(range(layered, end, width), tops, strict=False):
            (value,) = struct.unpack_from(rate, rest, at)
            struct.pack_into(rate, rest, at, value % (1 + (top if adaptive else 256 * top)))
    out = bytes(front + rest)
    crc, position = zlib.crc32(out), end
    while position < len(data):
        length, begin = data[position], position + 1  # longer forms of a length are left to the raw files
        if length > 0x7F or begin + length > len(data):
            return out + data[position:]
        body = data[position : begin + length]
        crc = zlib.crc32(body, crc)
        out += body + crc.to_bytes(4, "little")
        position = begin + length + 4
    return out


class Target:
    """Codecs, counters, and what one input does."""

    def __init__(self, folder: Path, runs: int) -> None:
        (folder / "models").mkdir(exist_ok=True)
        self.codecs: list[learned.LearnedCodec] = [
            tiny_codec(folder / "models" / name, name, **SMALL) for name in ("luma", "fusion")
        ]
        self.kept, self.runs, self.ends = folder / "crashes", runs, float("inf")
        names = ("trials", "corrupt", "unsupported", "decoded", "crashes", "reached")
        self.counts = dict.fromkeys(names, 0)  # reached: all chunks whole, so that the range coder saw them
        self.slowest = 0.0

    def corpus(self, folder: Path) -> None:
        """Write valid files of every kind, each with a few switches."""
        folder.mkdir()
        rng = np.random.default_rng(0)
        sizes, more = [(8, 8), (17, 9), (24, 32)], (0x01, FITTING, FITTING | PARTIAL, LUMA_ONLY)
        for codec, switch in zip(self.codecs, (0, FUSION), strict=True):
            for size, adaptive, layers in product(sizes, (False, True), (1, 2)):
                image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                data = codec.encode(image, 75, adaptive=adaptive, layers=layers)
                for switches in (*more, FITTING | FIRST_LAYER):
                    name = f"{len(list(folder.iterdir())):03}"
                    (folder / name).write_bytes(bytes([switch | switches]) + data)

    def __call__(self, data: bytes) -> None:
        """Decode one input, keep one that crashes; leave the program when runs or seconds are spent."""
        if self.counts["trials"] >= self.runs or time.monotonic() >= self.ends:
            row = self.counts | {"slowest_s": self.slowest}
            row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"COUNTERS {json.dumps(row)}", flush=True)
            os._exit(0)  # atheris never returns
        began, why = time.perf_counter(), ""
        self.counts["trials"] += 1
        try:
            self.counts[self.decode(data)] += 1
        except Exception:
            why = traceback.format_exc()
        spent = time.perf_counter() - began
        self.slowest = max(self.slowest, spent)
        if spent > SLOW_S:
            why += f"took {spent:.1f} s"
        if why:
            self.counts["crashes"] += 1
        if why and self.counts["crashes"] <= 20:
            self.kept.mkdir(exist_ok=True)
            (self.kept / f"{zlib.crc32(data):08x}").write_bytes(data)
            print(f"crash: {data.hex()}\n{why}", file=sys.stderr, flush=True)

    def decode(self, data: bytes) -> str:
        """Return what became of an input: "corrupt", "unsupported" or "decoded"."""
        switches, data = data[0] if data else 0, data[1:]
        codec = self.codecs[bool(switches & FUSION)]
        if not switches & REPAIRED:
            data = repair(data, codec.identity, list(codec.coder.tops.values()), bool(switches & FITTING))
        partial, luma_only = bool(switches & PARTIAL), bool(switches & LUMA_ONLY)
        layers = 1 if switches & FIRST_LAYER else None
        try:
            header, chunks = container.read(data, partial=partial)
            self.counts["reached"] += 1
            if header.width * header.height <= MOST_PX**2:  # raw files: of models that are not here, too
                codec.coder.read(header, chunks, luma_only=luma_only, layers=layers)
            image = codec.decode(data, partial=partial, luma_only=luma_only, layers=layers)
        except (CorruptStreamError, UnsupportedStreamError) as error:
            text = str(error)
            assert 10 < len(text) < 300 and "\n" not in text, text
            return "corrupt" if isinstance(error, CorruptStreamError) else "unsupported"
        assert image.shape == (header.height, header.width, 3) and image.dtype == np.uint8
        return "decoded"


def segment(folder: Path, runs: int, seconds: float, seed: int) -> None:
    """Fuzz in this process, going on from the corpus of the segments before it."""
    torch.set_num_threads(1)
    target, corpus = Target(folder, runs), folder / "corpus"
    if not corpus.exists():
        target.corpus(corpus)
    for path in sorted(corpus.iterdir())[:120]:
        target.decode(path.read_bytes())  # networks are loaded before memory is capped
    target.counts["reached"], target.ends = 0, time.monotonic() + seconds
    statm = Path("/proc/self/statm")
    if statm.exists():  # on Linux, a hostile size fails as `MemoryError` instead of filling the machine
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, resource.RLIM_INFINITY))
    limits = [f"-max_len={MOST_BYTES}", "-timeout=30", "-rss_limit_mb=4096", f"-seed={seed}"]
    quiet = ["-verbosity=0", "-close_fd_mask=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, *quiet, str(corpus)], target)
    atheris.Fuzz()


def main() -> None:
    """Fuzz in one process after the other, and print the counters of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        segment(options.folder, options.runs, options.seconds, options.seed)
    folder = Path(tempfile.mkdtemp(prefix="mcml-fuzz-"))
    began, total, number = time.monotonic(), Counter(trials=0, crashes=0), 0
    most = {"slowest_s": 0.0, "peak_mib": 0.0}
    while total["trials"] < options.runs and (left := began + options.seconds - time.monotonic()) > 0:
        number += 1
        words = ["--runs", min(SEGMENT, options.runs - total["trials"]), "--seconds", left]
        words += ["--seed", options.seed + number, "--folder", folder]
        command = [sys.executable, __file__, *map(str, words)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [line for line in ran.stdout.splitlines() if line.startswith("COUNTERS ")]
        row = json.loads(rows[-1].removeprefix("COUNTERS ")) if rows else {"crashes": 1}
        if row["crashes"]:
            print(ran.stderr[-3000:], file=sys.stderr)
        if not rows:  # the process itself died: a crash of the worst kind
            total["crashes"] += 1
            break
        most = {name: max(value, row.pop(name)) for name, value in most.items()}
        total.update(row)
        print(f"{total['trials']} inputs, {total['crashes']} crashes", flush=True)
    spent = time.monotonic() - began
    print(
        f"{', '.join(f'{count} {name}' for name, count in total.items())}; {spent:.0f} s, "
        f"{total['trials'] / spent:.0f} inputs/s, slowest {1000 * most['slowest_s']:.0f} ms, "
        f"peak {most['peak_mib']:.0f} MiB"
    )
    if total["crashes"]:
        sys.exit(f"inputs that crashed are in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
