"""What learned files consist of and cost: bits by part, estimates against bytes, quality by plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mcml.codec import container
from mcml.codec.interface import get_codec
from mcml.codec.learned import LearnedCodec
from mcml.lab.workers import side_by_side
from mcml.metrics.color import rgb_to_lab, rgb_to_ycbcr
from mcml.metrics.distortion import ciede2000_map, psnr_from_mse

KINDS = ("uniform", "adaptive")  # without and with importance maps


def bit_rows(
    coder: LearnedCodec, images: Mapping[str, np.ndarray], qualities: Sequence[float]
) -> list[dict[str, Any]]:
    """Count what each part of each file takes, before and after entropy coding.

    Args:
        coder: a learned codec.
        images: (H, W, 3) uint8 by name.
        qualities: percentages of luma's groups.

    Returns:
        Rows of image, kind (of `KINDS`), quality, part, raw_bits, coded_bits, file_bits, pixels. A part
        is a stream or "<stream> map" (coded_bits: an ideal coder's), or "framing" (header, lengths and
        checksums), or "coder" (what the range coder adds to the ideal); the last two have no raw_bits.
        The parts' coded_bits sum to file_bits.
    """
    rows = []
    for name, image in images.items():
        analysis = coder.analyse(image)
        for kind, quality in product(KINDS, qualities):
            encoded = coder.pack(analysis, quality, adaptive=kind == "adaptive")
            size, ideal = 8 * len(encoded.data), encoded.ideal_bits
            framing = size - 8 * sum(map(len, container.read(encoded.data)[1]))
            coded = ideal | {"framing": framing, "coder": size - framing - sum(ideal.values())}
            rows += [
                {"image": name, "kind": kind, "quality": quality, "part": part,
                 "raw_bits": encoded.raw_bits.get(part, 0.0), "coded_bits": bits,
                 "file_bits": size, "pixels": image[..., 0].size}
                for part, bits in coded.items()
            ]  # fmt: skip
    return rows


def file_rows(
    systems: Mapping[str, Path | str],
    images: Mapping[str, np.ndarray],
    qualities: Sequence[float],
    *,
    kinds: Sequence[str] = KINDS[:1],
    workers: int = 0,
) -> list[dict[str, Any]]:
    """Encode to files, decode and measure: a row for each system, kind, image and quality.

    Args:
        systems: model folders (or released names) by a name of theirs.
        images: (H, W, 3) uint8 by name.
        qualities: percentages of luma's groups.
        kinds: of `KINDS`.
        workers: processes, 0 for as many as there are cores.

    Returns:
        Rows of codec (the system's name), kind, image, quality, file_bytes, bpp, ideal_bpp, raw_bpp,
        psnr, psnr_Y, psnr_Cb, psnr_Cr, ciede2000.
    """
    calls = [
        partial(_file_rows, name, folder, kind, images, qualities)
        for (name, folder), kind in product(systems.items(), kinds)
    ]
    return [row for rows in side_by_side(calls, workers) for row in rows]


def _file_rows(
    name: str, folder: Path | str, kind: str, images: Mapping[str, np.ndarray], qualities: Sequence[float]
) -> list[dict[str, Any]]:
    coder, rows = get_codec(folder), []
    for image_name, image in images.items():
        analysis, pixels = coder.analyse(image), image[..., 0].size
        for quality in qualities:
            encoded = coder.pack(analysis, quality, adaptive=kind == "adaptive")
            decoded, size = coder.decode(encoded.data), len(encoded.data)
            planes = np.mean((rgb_to_ycbcr(image) - rgb_to_ycbcr(decoded)) ** 2, axis=(0, 1))
            row = {
                "codec": name, "kind": kind, "image": image_name, "quality": quality,
                "file_bytes": size, "bpp": 8 * size / pixels,
                "ideal_bpp": sum(encoded.ideal_bits.values()) / pixels,
                "raw_bpp": sum(encoded.raw_bits.values()) / pixels,
                "psnr": psnr_from_mse(float(np.mean((image.astype(np.float64) - decoded) ** 2))),
                "ciede2000": float(ciede2000_map(rgb_to_lab(image), rgb_to_lab(decoded)).mean()),
            }  # fmt: skip
            row |= zip(("psnr_Y", "psnr_Cb", "psnr_Cr"), map(psnr_from_mse, planes.tolist()), strict=True)
            rows.append(row)
    return rows
