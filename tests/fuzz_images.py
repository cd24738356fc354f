"""Fuzz the reading of pictures: `make fuzz-images`, or python tests/fuzz_images.py --count 100000.

Inputs are the pictures of tests/data/kinds.py with changed headers: bits, bytes, lengths, cuts, splices,
repeated and lost parts; half of the PNGs get right checksums again. Each must give an array or `DataError`,
write nothing on standard error, and end in five seconds. An input is told by format, seed and number alone.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from data.kinds import KINDS

from mcml.base.errors import DataError
from mcml.data.images import decode_image

SLOW_S, HANGS_S = 5, 20  # of processor time: a fault; of the clock: the process ends
SPARE_BYTES = 3 << 30  # address space beyond the program's own
MOST_MIB = 1024  # resident, beyond the program's own
SEGMENT = 10_000  # inputs a process
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
STARTS = {
    "PNG": b"\x89PNG", "JPEG": b"\xff\xd8", "TIFF": b"II*\0", "TIFF, big-endian": b"MM\0*",
    "BigTIFF": b"II+\0", "GIF": b"GIF8", "WebP": b"RIFF", "BMP": b"BM", "JPEG 2000": b"\0\0\0\x0cjP",
    "J2K": b"\xff\x4f", "JPEG XL": b"\xff\x0a", "JPEG XL in boxes": b"\0\0\0\x0cJXL", "Netpbm": b"P",
}  # fmt: skip


def format_of(raw: bytes) -> str:
    """Return a format's name by the first bytes."""
    if raw[4:8] == b"ftyp":
        return "HEIC" if b"hvc1" in raw[:999] else "AVIF"
    return next((name for name, start in STARTS.items() if raw.startswith(start)), "other")


def seeds() -> dict[str, list[bytes]]:
    """Return small sound and odd pictures by format, of every kind."""
    found: dict[str, list[bytes]] = {}
    for title, (cases, _) in KINDS.items():
        for case in cases() if title not in ("Damage", "Flat pictures, whose data is zeros") else ():
            if len(case.raw) < 6000:
                found.setdefault(format_of(case.raw), []).append(case.raw)
    return {name: list(dict.fromkeys(raws)) for name, raws in sorted(found.items()) if name != "other"}


def mutated(raws: list[bytes], draw: random.Random) -> bytes:
    """Return a picture of the list with one to four changes, most of them in its first bytes."""
    raw = draw.choice(raws)
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 1, 2, 4))):
        reach = min(len(data), draw.choice((32, 64, 200, 600, len(data))))
        at, size = draw.randrange(max(reach, 1)), draw.choice((1, 2, 4, 8, 12, 20, 64))
        match draw.randrange(9):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
            case 1 | 2:
                data[at : at + 1] = bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
            case 3 | 4:  # a length or an offset
                value = draw.choice(
                    (*EXTREMES, len(data), len(data) - at, len(data) - at + 1, draw.randrange(99))
                )
                kind = draw.choice(("<H", ">H", "<I", ">I"))
                field = struct.pack(kind, value & (0xFFFF if kind[1] == "H" else 0xFFFFFFFF))
                data[at : at + len(field)] = field
            case 5:
                del data[draw.randrange(len(data) + 1) :]
            case 6:
                other = draw.choice(raws)
                data = data[:at] + other[draw.choice((at, draw.randrange(len(other)))) :]
            case 7:  # a part twice
                data[at:at] = data[at : at + size]
            case 8:
                del data[at : at + size]
    return repaired(bytes(data)) if raw.startswith(STARTS["PNG"]) and draw.random() < 0.5 else bytes(data)


def repaired(raw: bytes) -> bytes:
    """Return a PNG with right checksums."""
    out, at = raw[:8], 8
    while at + 12 <= len(raw):
        size = int.from_bytes(raw[at : at + 4])
        body = raw[at + 4 : at + 8 + size]
        out += raw[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return out + raw[at:]


def child(raws: list[bytes], name: str, numbers: range, seed: int, pipe: int, limit: int) -> None:
    """Read inputs; tell each by a line: number, milliseconds, KiB beyond the start, end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + limit, own + limit))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryFile() as said, os.fdopen(pipe, "w") as out:
        os.dup2(said.fileno(), 2)
        for number in numbers:
            raw = mutated(raws, random.Random(f"{name} {seed} {number}"))
            signal.setitimer(signal.ITIMER_REAL, HANGS_S)
            began, end = time.process_time(), "read"
            try:
                got = decode_image(raw, "picture")
                if got.ndim != 3 or got.shape[2] != 3 or not got.size or got.dtype.name != "uint8":
                    end = f"fault: read as {got.dtype} {got.shape}"
            except DataError as error:
                end = "refused" if "\n" not in str(error) else f"fault: lines: {str(error)!r}"
            except BaseException:
                end = "fault: " + " | ".join(traceback.format_exc().splitlines()[-5:])
            spent = time.process_time() - began
            sys.stderr.flush()
            if os.lseek(2, 0, os.SEEK_END):
                text = os.pread(2, 300, 0)
                os.ftruncate(2, 0)
                os.lseek(2, 0, os.SEEK_SET)
                end = f"fault: on standard error: {text!r}"
            if spent > SLOW_S:
                end = f"fault: took {spent:.1f} s"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
            if peak > MOST_MIB * 1024:
                end = f"fault: {peak / 1024:.0f} MiB"
            out.write(f"{number}\t{1000 * spent:.3f}\t{peak}\t{end[:2000]}\n")
            out.flush()
            if peak > MOST_MIB * 1024:  # that of the next ones would not be seen
                break


def ends(
    raws: list[bytes], name: str, count: int, seed: int, until: float
) -> Iterator[tuple[int, float, float, str]]:
    """Yield number, milliseconds, peak MiB and end of each input; processes that die are replaced."""
    number = 0
    while number < count and time.monotonic() < until:
        to_read, to_write = os.pipe()
        start = number
        if not (process := os.fork()):
            try:
                os.close(to_read)
                child(raws, name, range(number, min(count, number + SEGMENT)), seed, to_write, SPARE_BYTES)
            finally:
                os._exit(0)
        os.close(to_write)
        with os.fdopen(to_read) as lines:
            for line in lines:
                told, ms, peak, end = line.rstrip("\n").split("\t", 3)
                number = int(told) + 1
                yield int(told), float(ms), int(peak) / 1024, end
                if time.monotonic() > until:
                    os.kill(process, signal.SIGKILL)
                    break
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status and number < min(count, start + SEGMENT) and time.monotonic() < until:  # it died
            yield number, 0.0, 0.0, f"fault: the process ended: {status}"
            number += 1


def main() -> None:
    """Fuzz every format in turn, print a table, keep what is at fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="inputs, shared among the formats")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="a format")
    options = parser.parse_args()
    pictures = {k: v for k, v in seeds().items() if options.only in (None, k)}
    began, faults, folder = time.monotonic(), 0, Path(tempfile.gettempdir()) / "mcml-fuzz-images"
    print("| format | seeds | inputs | read | refused | faults | slowest, ms | peak, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for place, (name, raws) in enumerate(pictures.items()):
        share = 60 * options.minutes - (time.monotonic() - began)
        until = time.monotonic() + share / (len(pictures) - place)
        counts, slowest, peak, seen = Counter(), 0.0, 0.0, set()
        for number, ms, over, end in ends(
            raws, name, -(-options.count // len(pictures)), options.seed, until
        ):
            counts[end.split(":")[0]] += 1
            slowest, peak = max(slowest, ms), max(peak, over)
            if end.startswith("fault") and end not in seen:
                seen.add(end)
                folder.mkdir(exist_ok=True)
                kept = folder / f"{name.replace(' ', '_')}-{options.seed}-{number}"
                kept.write_bytes(mutated(raws, random.Random(f"{name} {options.seed} {number}")))
                print(f"{kept}: {end}", file=sys.stderr)
        faults += counts["fault"]
        numbers = counts.total(), counts["read"], counts["refused"], counts["fault"]
        print(
            f"| {name} | {len(raws)} | {' | '.join(map(str, numbers))} | {slowest:.0f} | {peak:.0f} |",
            flush=True,
        )
    print(f"{time.monotonic() - began:.0f} s")
    if faults:
        sys.exit(f"{faults} faults; inputs are in {folder}")


if __name__ == "__main__":
    main()
