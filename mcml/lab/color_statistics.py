"""Where a photograph's energy lies, where a codec's visible error lies, what 4:2:0 costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from mcml.codec import interface as codecs
from mcml.metrics import distortion as metrics
from mcml.metrics.color import chroma_420, rgb_to_lab, rgb_to_ycbcr

STREAMS = ("Y", "Cb", "Cr")
ROUNDING = 1e-9  # squared levels: variance below this is floating-point noise
Images = Mapping[str, np.ndarray]  # (H, W, 3) uint8 by name


class ErrorShares(NamedTuple):
    """Shares of the mean squared CIE76 difference, 0..1, summing to 1."""

    lightness: float
    chroma: float


def stream_statistics(images: Images) -> pd.DataFrame:
    """Mean and standard deviation of Y, Cb and Cr (levels), and mean chroma C*ab, by image."""
    rows = []
    for name, image in images.items():
        ycbcr, lab = rgb_to_ycbcr(image), rgb_to_lab(image)
        row: dict[str, object] = {"image": name}
        for index, stream in enumerate(STREAMS):
            row[f"{stream}_mean"] = float(ycbcr[..., index].mean())
            row[f"{stream}_std"] = float(ycbcr[..., index].std())
        row["L_mean"] = float(lab[..., 0].mean())
        row["chroma_mean"] = float(np.hypot(lab[..., 1], lab[..., 2]).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def energy_shares(images: Images) -> pd.DataFrame:
    """Share of each stream in the variance of Y, Cb and Cr about their means, by image.

    All shares of a flat picture are 0: it has no energy to share.
    """
    rows = []
    for name, image in images.items():
        variance = rgb_to_ycbcr(image).reshape(-1, 3).var(axis=0)
        variance[variance < ROUNDING] = 0
        total = max(float(variance.sum()), ROUNDING)
        rows.append({"image": name} | {s: float(v) / total for s, v in zip(STREAMS, variance, strict=True)})
    return pd.DataFrame(rows).set_index("image")


def error_shares(reference: np.ndarray, decoded: np.ndarray) -> ErrorShares:
    """Split the mean squared CIE76 difference into lightness (dL*) and chroma (da*, db*).

    Args:
        reference, decoded: (H, W, 3) uint8 sRGB.
    """
    squares = ((rgb_to_lab(decoded) - rgb_to_lab(reference)) ** 2).mean(axis=(0, 1))
    total = max(float(squares.sum()), np.finfo(float).tiny)
    return ErrorShares(float(squares[0]) / total, float(squares[1] + squares[2]) / total)


def visible_error(images: Images, codec_name: str, target_bpp: float) -> pd.DataFrame:
    """Encode every image at one rate and split its error, in levels and in CIELAB.

    Args:
        images: by name.
        codec_name: see `mcml.codec.names`.
        target_bpp: bits per pixel to search for.

    Returns:
        One row an image: `bpp`, the share of chroma in the squared YCbCr error
        (`chroma_of_signal_error`) and in the squared CIELAB error
        (`chroma_of_visible_error`), and `ciede2000`.
    """
    codec, rows = codecs.get_codec(codec_name), []
    for name, image in images.items():
        found = codecs.encode_at_bpp(codec, image, target_bpp)
        decoded = codec.decode(found.data)
        squares = ((rgb_to_ycbcr(decoded) - rgb_to_ycbcr(image)) ** 2).mean(axis=(0, 1))
        rows.append(
            {
                "image": name,
                "codec": codec_name,
                "bpp": found.bpp,
                "chroma_of_signal_error": float(squares[1:].sum() / max(squares.sum(), 1e-12)),
                "chroma_of_visible_error": error_shares(image, decoded).chroma,
                "ciede2000": metrics.compare(image, decoded).ciede2000,
            }
        )
    return pd.DataFrame(rows)


def subsampling_cost(images: Images) -> pd.DataFrame:
    """What 4:2:0 alone does to each image, without any quantisation.

    Returns:
        One row an image: `psnr`, `y_psnr`, `delta_e76`, `ciede2000`, the 99th percentile
        of CIEDE2000 and the share of pixels past one just-noticeable difference (`visible`).
    """
    rows = []
    for name, image in images.items():
        halved = chroma_420(image)
        row = metrics.compare(image, halved)
        lab, lab_halved = rgb_to_lab(image), rgb_to_lab(halved)
        delta_e76 = np.sqrt(((lab - lab_halved) ** 2).sum(axis=-1))
        rows.append(
            {
                "image": name,
                "psnr": row.psnr,
                "y_psnr": row.y_psnr,
                "delta_e76": row.delta_e76,
                "ciede2000": row.ciede2000,
                "ciede2000_p99": float(np.percentile(metrics.ciede2000_map(lab, lab_halved), 99)),
                "visible": float((delta_e76 > metrics.JND_DELTA_E76).mean()),
            }
        )
    return pd.DataFrame(rows)
