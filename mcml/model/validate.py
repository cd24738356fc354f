"""Estimated rate and PSNR of a model over whole photographs, dial by dial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcml.model.model import Model, ModelOutput

DIALS = {"binary": (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0), "scalar": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}


def to_tensor(image: np.ndarray) -> Tensor:
    """Turn (H, W, 3) uint8 into (1, 3, H, W) float32 in [0, 1]."""
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def validate(
    model: Model, images: Sequence[np.ndarray], dials: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Encode and decode whole images, (H, W, 3) uint8; means over images of each one's own figures.

    Returns:
        A row a dial: dial, estimated_bpp, estimated_bpp_<stream>, importance_<stream> (binary: mean p),
        psnr_<stream> of unrounded planes clipped to 0..255, psnr of R, G, B rounded to 8 bits (not for the
        luma variant).
    """
    model.eval()
    rows: list[dict[str, Any]] = []
    for dial in DIALS[model.config.quantizer] if dials is None else dials:
        pictures = [to_tensor(image).to(model.rate_slope.device) for image in images]
        figures = [measure_output(model, rgb, model(rgb, dial)) for rgb in pictures]
        rows.append({"dial": dial, **{k: sum(of[k] for of in figures) / len(figures) for k in figures[0]}})
    return rows


def measure_output(model: Model, rgb: Tensor, output: ModelOutput) -> dict[str, float]:
    """Return one picture's columns of `validate`, given (1, 3, H, W) RGB and what the model made of it."""
    pixels = rgb.shape[-1] * rgb.shape[-2]
    row = {"estimated_bpp": float(output.estimated_bpp)}
    for key, plane in model.planes(rgb).items():
        stream = output.streams[key]
        error = stream.x_hat.clamp(-0.5, 0.5) - plane
        row[f"estimated_bpp_{key}"] = float(stream.estimated_bits) / pixels
        if stream.importance is not None:
            row[f"importance_{key}"] = float(stream.importance.mean())
        row[f"psnr_{key}"] = psnr(error)
    if model.config.variant != "luma":
        row["psnr"] = psnr((255 * output.x_hat).round().clamp(0, 255) / 255 - rgb)
    return row


def psnr(error: Tensor) -> float:
    """Return dB of an error in units of the peak."""
    return -10 * float(torch.log10(error.double().square().mean().clamp(min=1e-12)))
