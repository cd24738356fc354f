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

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import atheris

with atheris.instrument_imports(include=["mcml.codec"]):
    from mcml.codec import container, learned  # and all that it imports

import numpy as np
import torch
from helpers import tiny_codec, tiny_scalar

from mcml.base.errors import CorruptStreamError, UnsupportedStreamError
from mcml.codec.prior import DIALS

REPAIRED, PARTIAL, LUMA_ONLY, FIRST_LAYER, FUSION, FITTING = 0x03, 0x04, 0x08, 0x10, 0x20, 0x40
SCALAR = 0x80
MOST_PX = 48  # of a repaired file's sides
SLOW_S = 2.0  # an input that takes longer is a crash
SPARE_BYTES = 1 << 30  # address space beyond what the empty program takes
SEGMENT = 30_000  # inputs a process: atheris' own tracing keeps about 15 KB of each
SIZES = {"width": 4, "code_channels": 4, "levels": 3}
SMALL = {f"model.{stream}.{name}": value for stream in ("luma", "color") for name, value in SIZES.items()}
NARROW = {f"model.{stream}.prior_width": 4 for stream in ("luma", "color")}


def repair(data: bytes, codec: learned.LearnedCodec, fitting: bool) -> bytes:
    """Return a file that passes as far as its integers: identity, size, rates if fitting, checksums."""
    front, streams = bytearray(data[:18].ljust(18, b"\0")), len(codec.coder.keys)
    version, kept = (container.LATENTS, 0x07) if codec.scalar else (container.BITS, 0x1F)
    front[:6] = b"MCML" + bytes([version, front[5] & kept | 0x20 * (streams == 3)])
    width, height = struct.unpack_from("<HH", front, 6)
    struct.pack_into("<HH", front, 6, 1 + (width - 1) % MOST_PX, 1 + (height - 1) % MOST_PX)
    front[10:18] = codec.identity
    layered, adaptive = bool(front[5] & container.LAYERED), bool(front[5] & container.ADAPTIVE)
    width, rate = (1, "B") if adaptive else (2, "<H")
    end = 18 + layered + width * streams + container.DIGEST_BYTES
    rest = bytearray(data[18:end].ljust(end - 18, b"\0"))
    if fitting:
        if layered:
            rest[0] = 2 + rest[0] % 4
        for at, key in zip(range(layered, end, width), codec.coder.keys, strict=False):
            (value,) = struct.unpack_from(rate, rest, at)
            most = DIALS if codec.scalar else codec.coder.tops[key] * (1 if adaptive else 256)
            struct.pack_into(rate, rest, at, value % (1 + most))
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
        names = ("luma", "fusion")
        self.codecs = [tiny_codec(folder / "models" / name, name, **SMALL) for name in names]
        self.codecs += [
            tiny_scalar(folder / "models" / f"scalar_{name}", name, **SMALL, **NARROW) for name in names
        ]
        self.kept, self.runs, self.ends, self.slowest = folder / "crashes", runs, float("inf"), 0.0
        self.counts = Counter()  # reached: all chunks whole, so that the range coder saw them

    def corpus(self, folder: Path) -> None:
        """Write valid files of every kind, each with a few switches."""
        folder.mkdir()
        rng = np.random.default_rng(0)
        sizes = [(8, 8), (17, 9), (24, 32)]
        switches = (0x01, FITTING, FITTING | PARTIAL, LUMA_ONLY, FITTING | FIRST_LAYER)
        kinds = product(range(len(self.codecs)), sizes, (False, True), (1, 2))
        for number, (which, size, adaptive, layers) in enumerate(kinds):
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            codec = self.codecs[which]
            options = {} if codec.scalar else {"adaptive": adaptive, "layers": layers}
            data = codec.encode(image, 30 + 20 * layers + 25 * adaptive, **options)
            for switch in switches:
                switch |= FUSION * (which % 2) | SCALAR * codec.scalar
                (folder / f"{number:02}-{switch:02x}").write_bytes(bytes([switch]) + data)

    def __call__(self, data: bytes) -> None:
        """Decode one input, keep one that crashes; leave the program when runs or seconds are spent."""
        if self.counts["trials"] >= self.runs or time.monotonic() >= self.ends:
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps([self.counts, {"slowest_s": self.slowest, "peak_mib": peak_mib}]), flush=True)
            os._exit(0)  # atheris never returns
        began, why = time.process_time(), ""  # machines are shared
        self.counts["trials"] += 1
        try:
            self.counts[self.decode(data)] += 1
        except Exception:
            why = traceback.format_exc()
        spent = time.process_time() - began
        self.slowest = max(self.slowest, spent)
        if spent > SLOW_S:
            why += f"took {spent:.1f} s"
        if why:
            self.counts["crashes"] += 1
            self.kept.mkdir(exist_ok=True)
            (self.kept / f"{zlib.crc32(data):08x}").write_bytes(data)
            print(f"crash: {data.hex()}\n{why}", file=sys.stderr, flush=True)

    def decode(self, data: bytes) -> str:
        """Return what became of an input: "corrupt", "unsupported" or "decoded"."""
        switches, data = data[0] if data else 0, data[1:]
        codec = self.codecs[bool(switches & FUSION) + 2 * bool(switches & SCALAR)]
        if not switches & REPAIRED:
            data = repair(data, codec, bool(switches & FITTING))
        partial, luma_only = bool(switches & PARTIAL), bool(switches & LUMA_ONLY)
        layers = 1 if switches & FIRST_LAYER else None
        try:
            header, chunks = container.read(data, partial=partial)
            self.counts["reached"] += 1
            small, own = header.width * header.height <= MOST_PX**2, header.model == codec.identity
            if small and not own and (header.version == container.LATENTS) == codec.scalar:
                codec.coder.read(header, chunks, luma_only=luma_only, layers=layers)  # as decode would
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
    limits = ["-max_len=600", "-timeout=30", "-rss_limit_mb=4096", f"-seed={seed}"]
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
    began, total, most, died = time.monotonic(), Counter(trials=0, crashes=0), Counter(), False
    ends = began + options.seconds
    while not died and total["trials"] < options.runs and (left := ends - time.monotonic()) > 0:
        words = ["--runs", min(SEGMENT, options.runs - total["trials"]), "--seconds", left]
        words += ["--seed", options.seed + total["trials"], "--folder", folder]
        command = [sys.executable, __file__, *map(str, words)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        died = ran.returncode != 0  # the process itself: a crash of the worst kind
        counts, extremes = ({"crashes": 1}, {}) if died else json.loads(ran.stdout.splitlines()[-1])
        total.update(counts)
        most |= Counter(extremes)  # the larger of each
        if counts.get("crashes"):
            print(ran.stderr[-3000:], file=sys.stderr)
        print(f"{total['trials']} inputs, {total['crashes']} crashes", flush=True)
    spent = time.monotonic() - began
    counted = ", ".join(f"{count} {name}" for name, count in total.items())
    speed = (
        f"{spent:.0f} s, {total['trials'] / spent:.0f} inputs/s, slowest {1000 * most['slowest_s']:.0f} ms"
    )
    print(f"{counted}; {speed}, peak {most['peak_mib']:.0f} MiB")
    if total["crashes"]:
        sys.exit(f"inputs that crashed are in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
