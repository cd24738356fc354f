"""A model's networks at work on one tile: 8-bit pixels to bits, and bits to pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

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
def synthesis_transform(model: Model, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run the decoders on masked bits (h, w, n) in {-1, 0, +1} by stream.

    Returns:
        (8 h, 8 w, 3) uint8 sRGB; grey where only luma's bits are given.
    """
    device = model.rate_slope.device
    tensors = {
        key: torch.from_numpy(code.astype(np.float32)).permute(2, 0, 1)[None].to(device)
        for key, code in codes.items()
    }
    planes = {key: model.streams[key].decoder(code, tensors.get("Y")) for key, code in tensors.items()}
    return to_uint8(255 * model.join(planes)[0].permute(1, 2, 0).cpu().numpy())
