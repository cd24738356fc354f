"""A model's networks at work on one tile: 8-bit pixels to bits, and bits to pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.metrics.color import to_uint8
from mcml.model.model import Model, pad_to_multiple
from mcml.model.validate import to_tensor


@torch.no_grad()
def analysis_transform(model: Model, image: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Run the encoders on (H, W, 3) uint8.

    Returns:
        By stream, bits (h, w, n) uint8 in {0, 1} and the importance map's logits (h, w) float32.
    """
    rgb = pad_to_multiple(to_tensor(image), STRIDE)[0].to(model.rate_slope.device)
    outputs = {key: model.streams[key].encode(plane) for key, plane in model.planes(rgb).items()}
    return {
        key: (bits[0].permute(1, 2, 0).byte().cpu().numpy(), logits[0, 0].float().cpu().numpy())
        for key, (bits, logits) in outputs.items()
    }


@torch.no_grad()
def latent_transform(model: Model, image: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Run a scalar model's encoders on (H, W, 3) uint8.

    Returns:
        By stream, latents (h, w, n) float32 and, if it has a hyperprior, what that rounds (h / 4, w / 4, 32).
    """
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    rgb = pad_to_multiple(to_tensor(image), STRIDE)[0].to(model.rate_slope.device)
    for key, plane in model.planes(rgb).items():
        stream = model.streams[key]
        latents = stream.analysis(plane)
        z = None if stream.hyperprior is None else stream.hyperprior.analysis(latents)
        found[key] = tuple(None if t is None else t[0].permute(1, 2, 0).cpu().numpy() for t in (latents, z))
    return found


@torch.no_grad()
def synthesis_transform(
    model: Model, codes: Mapping[str, np.ndarray], dials: Mapping[str, float] | None = None,
    shown: Mapping[str, np.ndarray] | None = None, planes: dict[str, Tensor] | None = None,
) -> np.ndarray:  # fmt: skip
    """Run the decoders on masked bits (h, w, n) in {-1, 0, +1} by stream, or on latents.

    Args:
        model: the networks.
        codes: by stream.
        dials: a scalar model's, by stream.
        shown: (h, w) whether a position's plane is there, by stream; all are by default.
        planes: (1, C, 8 h, 8 w) of streams decoded before, which are not decoded anew; the others are added.

    Returns:
        (8 h, 8 w, 3) uint8 sRGB; grey where only luma is given, middle grey where nothing is.
    """
    device, planes = model.rate_slope.device, {} if planes is None else planes
    tensors = {
        key: torch.from_numpy(code.astype(np.float32)).permute(2, 0, 1)[None].to(device)
        for key, code in codes.items()
    }
    for key, code in tensors.items():
        if key in planes:
            continue
        stream, luma = model.streams[key], tensors.get("Y")
        if dials is None:
            planes[key] = stream.decoder(code, luma)
        else:
            dial = torch.tensor([dials[key]], dtype=torch.float32, device=device)
            planes[key] = stream.decode(code, dial, luma if key in ("Cb", "Cr") else None)
        if shown is not None:
            there = np.kron(shown[key], np.ones((STRIDE, STRIDE), np.float32))
            planes[key] = planes[key] * torch.from_numpy(there).to(device)
    return to_uint8(255 * model.join(planes)[0].permute(1, 2, 0).cpu().numpy())
