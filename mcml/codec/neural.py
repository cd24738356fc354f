"""A codec's networks at work: pictures to bits and bits to pictures, piece by piece of large ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mcml.base import STRIDE
from mcml.model.model import Model, pad_to_multiple
from mcml.model.validate import to_tensor

HALO = 16  # positions (128 pixels) beyond a piece's edges that its networks see


@torch.no_grad()
def analyse(model: Model, image: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Run the encoders on (H, W, 3) uint8.

    Returns:
        By stream, bits (h, w, n) uint8 in {0, 1} and the importance map's logits (h, w) float32.
    """
    rgb = pad_to_multiple(to_tensor(image), STRIDE)[0].to(model.rate_slope.device)
    found = {}
    for key, plane in model.planes(rgb).items():
        stream = model.streams[key]
        features, e = stream.encoder(plane)
        logit = torch.zeros(features.shape[-2:])
        if stream.importance is not None:
            logit = stream.importance(features)[0, 0]
        bits = (e[0] > 0.5).permute(1, 2, 0).byte()
        found[key] = (bits.cpu().numpy(), logit.float().cpu().numpy())
    return found


@torch.no_grad()
def synthesise(model: Model, codes: Mapping[str, np.ndarray]) -> np.ndarray:
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
    rgb = model.join(planes)[0].permute(1, 2, 0)
    return (255 * rgb).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
