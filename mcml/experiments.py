"""What the training notebooks share: short runs, rate curves, equal-rate comparison."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mcml.checkpoints import read_log
from mcml.color import luma
from mcml.config import UsageError
from mcml.models import Model
from mcml.patches import PatchStore
from mcml.recipes import Recipe
from mcml.training import Trainer

LUMA_QUALITIES: dict[str, Sequence[float]] = {
    "jpeg": (3, 5, 8, 12, 18, 25, 35, 50),
    "jpeg2000": (160, 96, 64, 40, 26, 18, 12),  # ratios to 8 bits a pixel
}


def run(
    recipe: Recipe, images: Sequence[np.ndarray], *, initial: Model | None = None, threads: int = 1
) -> tuple[Model, list[dict[str, float]]]:
    """Train in a scratch folder; the same loop as `mcml train`, without what it keeps.

    Args:
        recipe: what to train and how.
        images: (H, W, 3) uint8 each.
        initial: a model whose streams are taken over.
        threads: of torch, in this process.

    Returns:
        The model of averaged weights, and the log's rows (a row every 10 steps).
    """
    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, PatchStore(images), Path(folder), initial=initial)
        trainer.fit(log_every=10)
        return trainer.averaged.eval(), read_log(Path(folder))


def luma_codec(
    images: Sequence[np.ndarray], codec: str, qualities: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """Code luma alone as a grey image: means over images by quality.

    Args:
        images: (H, W, 3) uint8 each.
        codec: "jpeg" (optimised Huffman tables) or "jpeg2000" (irreversible, ratios).
        qualities: JPEG qualities or JPEG 2000 ratios; `LUMA_QUALITIES` by default.

    Returns:
        Rows of codec, quality, bpp (bytes of the whole file), psnr_Y (of unrounded luma, as
        for the networks).
    """
    if codec not in LUMA_QUALITIES:
        raise UsageError(f"luma codec '{codec}': known are {', '.join(LUMA_QUALITIES)}")
    rows = []
    for quality in qualities or LUMA_QUALITIES[codec]:
        found = [_code_luma(image, codec, quality) for image in images]
        rows.append(
            {
                "codec": codec,
                "quality": quality,
                "bpp": float(np.mean([f[0] for f in found])),
                "psnr_Y": float(np.mean([f[1] for f in found])),
            }
        )
    return rows


def _code_luma(image: np.ndarray, codec: str, quality: float) -> tuple[float, float]:
    plane = luma(image)
    grey = Image.fromarray(np.clip(np.round(plane), 0, 255).astype(np.uint8))
    file = io.BytesIO()
    if codec == "jpeg":
        grey.save(file, "JPEG", quality=int(quality), optimize=True)
    else:
        grey.save(file, "JPEG2000", quality_mode="rates", quality_layers=[quality], irreversible=True)
    error = np.asarray(Image.open(file), dtype=np.float64) - plane
    return 8 * file.tell() / plane.size, 10 * math.log10(255**2 / float(np.mean(error**2)))


def at_rate(rows: Sequence[Mapping[str, Any]], rate: float, column: str, rate_column: str) -> float:
    """Read a curve at a rate by straight lines over log rate; NaN outside the curve.

    Args:
        rows: points of one system.
        rate: in the unit of `rate_column`, above 0.
        column: what is read.
        rate_column: "estimated_bpp", "bpp", ...
    """
    points = sorted((float(row[rate_column]), float(row[column])) for row in rows)
    rates, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    if not rates[0] <= rate <= rates[-1]:
        return math.nan
    return float(np.interp(math.log(rate), np.log(rates), values))
