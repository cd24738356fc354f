"""What learned files consist of and cost: bits by stream, estimates against bytes, seconds by phase."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mcml.codec import container as bitstream
from mcml.codec import interface as codecs
from mcml.codec.interface import bits_per_pixel, encode_at_bpp, get_codec
from mcml.codec.learned import LearnedCodec
from mcml.lab.workers import one_thread, side_by_side
from mcml.metrics import distortion as metrics
from mcml.metrics.color import rgb_to_lab, rgb_to_ycbcr


def bit_rows(
    coder: LearnedCodec,
    images: Mapping[str, np.ndarray],
    qualities: Sequence[float],
    kinds: Sequence[str] = ("uniform", "adaptive"),
) -> list[dict[str, Any]]:
    """Count what each part of each file takes, before and after entropy coding.

    Args:
        coder: a learned codec.
        images: (H, W, 3) uint8 by name.
        qualities: percentages of luma's groups.
        kinds: "uniform" (no importance map is sent) and "adaptive" (maps are sent).

    Returns:
        Rows of image, kind, quality, part, raw_bits, coded_bits, file_bits, pixels. A part is a
        stream or "<stream> map" (coded_bits: an ideal coder's), or "framing" (header, lengths and
        checksums), or "coder" (what the range coder adds to the ideal); the last two have no raw_bits.
        The parts' coded_bits sum to file_bits.
    """
    rows = []
    for name, image in images.items():
        analysis, pixels = coder.analyse(image), image.shape[0] * image.shape[1]
        for kind, quality in product(kinds, qualities):
            encoded = coder.pack(analysis, quality, adaptive=kind == "adaptive")
            size, framing = 8 * len(encoded.data), 8 * framing_bytes(encoded.data)
            parts = {part: (encoded.raw_bits[part], bits) for part, bits in encoded.ideal_bits.items()}
            parts["framing"] = (0.0, framing)
            parts["coder"] = (0.0, size - framing - sum(encoded.ideal_bits.values()))
            rows += [
                {"image": name, "kind": kind, "quality": quality, "part": part,
                 "raw_bits": raw, "coded_bits": bits, "file_bits": size, "pixels": pixels}
                for part, (raw, bits) in parts.items()
            ]  # fmt: skip
    return rows


def file_totals(rows: Sequence[Mapping[str, Any]], slack: float = 0.01) -> list[dict[str, Any]]:
    """Compare each file of `bit_rows` with its estimate.

    Returns:
        Rows of image, kind, quality, ideal_bytes, framing_bytes, file_bytes and holds: the file is
        its estimate, give or take `slack` of it, a last word of 4 bytes a chunk, and the framing.
    """
    files: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        file = (row["image"], row["kind"], row["quality"], row["file_bits"] // 8)
        files.setdefault(file, {})[row["part"]] = row["coded_bits"]
    totals = []
    for (image, kind, quality, size), bits in files.items():
        framing, coder = bits.pop("framing"), bits.pop("coder")
        ideal = sum(bits.values())
        holds = bool(-slack * ideal <= coder <= slack * ideal + 32 * len(bits))
        totals.append(
            {"image": image, "kind": kind, "quality": quality, "ideal_bytes": ideal / 8,
             "framing_bytes": framing / 8, "file_bytes": size, "holds": holds}
        )  # fmt: skip
    return totals


def framing_bytes(data: bytes) -> int:
    """Return a learned file's bytes outside its chunks' contents: header, lengths, checksums."""
    _, chunks = bitstream.read(data)
    return len(data) - sum(len(chunk) for chunk in chunks)


def integers_survive(coder: LearnedCodec, image: np.ndarray, quality: float, *, adaptive: bool) -> bool:
    """Say whether a file gives back each opened bit and each level that the encoder meant."""
    analysis = coder.analyse(image)
    data = coder.pack(analysis, quality, adaptive=adaptive).data
    header, chunks = bitstream.read(data)
    codes, _ = coder.coder.read(header, chunks)
    for key, (packed, opened) in codes.items():
        logits = analysis.logits[key]
        levels = coder.coder.adaptive(key, logits, quality) if adaptive else coder.coder.uniform(header, key)
        mask = np.packbits(coder.coder.channel_groups(key) <= levels[..., None], axis=-1)
        if not (np.array_equal(opened, levels) and np.array_equal(packed, analysis.bits[key] & mask)):
            return False
    return True


def same_chunks(first: bytes, second: bytes) -> bool:
    """Say whether two learned files differ in nothing but the model's name and the checksums."""
    return len(first) == len(second) and bitstream.read(first)[1] == bitstream.read(second)[1]


def file_rows(
    systems: Mapping[str, Path | str],
    images: Mapping[str, np.ndarray],
    qualities: Sequence[float],
    *,
    kinds: Sequence[str] = ("uniform",),
    workers: int = 0,
    colors_only: bool = False,
) -> list[dict[str, Any]]:
    """Encode to files, decode and measure: a row for each system, kind, image and quality.

    Args:
        systems: model folders (or released names) by a name of theirs.
        images: (H, W, 3) uint8 by name.
        qualities: percentages of luma's groups.
        kinds: "uniform", "adaptive" or both, as in `bit_rows`.
        workers: processes, 0 for as many as there are cores.
        colors_only: leave out all metrics but PSNR by plane and CIEDE2000.

    Returns:
        Rows of codec (the system's name), kind, image, quality, file_bytes, bpp, ideal_bpp, raw_bpp,
        psnr_Y, psnr_Cb, psnr_Cr, then the metrics' columns.
    """
    calls = [
        partial(_file_rows, name, str(folder), kind, images, qualities, colors_only)
        for (name, folder), kind in product(systems.items(), kinds)
    ]
    return [row for rows in side_by_side(calls, workers) for row in rows]


def _file_rows(
    name: str,
    folder: str,
    kind: str,
    images: Mapping[str, np.ndarray],
    qualities: Sequence[float],
    colors_only: bool,
) -> list[dict[str, Any]]:
    coder, rows = LearnedCodec(folder), []
    for image_name, image in images.items():
        analysis, pixels = coder.analyse(image), image.shape[0] * image.shape[1]
        for quality in qualities:
            encoded = coder.pack(analysis, quality, adaptive=kind == "adaptive")
            decoded = coder.decode(encoded.data)
            rows.append(
                {
                    "codec": name,
                    "kind": kind,
                    "image": image_name,
                    "quality": quality,
                    "file_bytes": len(encoded.data),
                    "bpp": bits_per_pixel(encoded.data, image),
                    "ideal_bpp": sum(encoded.ideal_bits.values()) / pixels,
                    "raw_bpp": sum(encoded.raw_bits.values()) / pixels,
                    **_planes(image, decoded),
                    **(_colors(image, decoded) if colors_only else vars(metrics.compare(image, decoded))),
                }
            )
    return rows


def _planes(image: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    error = np.mean((rgb_to_ycbcr(image) - rgb_to_ycbcr(decoded)) ** 2, axis=(0, 1))
    keys = ("psnr_Y", "psnr_Cb", "psnr_Cr")
    return {key: metrics.psnr_from_mse(float(e)) for key, e in zip(keys, error, strict=True)}


def _colors(image: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    square = float(np.mean((image.astype(np.float64) - decoded) ** 2))
    difference = metrics.ciede2000_map(rgb_to_lab(image), rgb_to_lab(decoded))
    return {"psnr": metrics.psnr_from_mse(square), "ciede2000": float(difference.mean())}


@one_thread()
def time_codecs(
    names: Sequence[str], image: np.ndarray, target_bpp: float, repeats: int = 5
) -> list[dict[str, Any]]:
    """Time encoding and decoding of one image at one rate, on one thread, codec after codec.

    The quality is searched for beforehand, networks are loaded and run once before the clock
    starts. Turns go round robin, so that a busy machine slows all codecs alike.

    Args:
        names: codecs.
        image: (H, W, 3) uint8.
        target_bpp: rate of all files.
        repeats: of which the median counts.

    Returns:
        Rows of codec, direction ("encode", "decode"), phase ("networks", "entropy", or "all" of a
        classical codec), seconds (median), bpp.
    """
    files = {name: encode_at_bpp(get_codec(name), image, target_bpp) for name in names}
    for name in names:
        get_codec(name).decode(files[name].data)
    spent: dict[tuple[str, str, str], list[float]] = {}
    for _, name in product(range(repeats), names):
        for key, seconds in _once(get_codec(name), image, files[name].quality).items():
            spent.setdefault((name, *key), []).append(seconds)
    return [
        {"codec": name, "direction": direction, "phase": phase, "seconds": statistics.median(values),
         "bpp": files[name].bpp}
        for (name, direction, phase), values in spent.items()
    ]  # fmt: skip


def _once(coder: codecs.Codec, image: np.ndarray, quality: float) -> dict[tuple[str, str], float]:
    if isinstance(coder, LearnedCodec):
        encoded = coder.pack(coder.analyse(image), quality)
        decoded = coder.decode_detailed(encoded.data)
        both = (("encode", encoded.seconds), ("decode", decoded.seconds))
        return {(direction, phase): s for direction, of in both for phase, s in of.items()}
    began = time.perf_counter()
    data = coder.encode(image, quality)
    middle = time.perf_counter()
    coder.decode(data)
    return {("encode", "all"): middle - began, ("decode", "all"): time.perf_counter() - middle}
