"""A start for scalar streams that is a transform coder: an 8 x 8 DCT with uniform steps.

Latents are coefficients over their standard deviations, trunks are the identity, gains are such that each
dial's step is the one at which its lambda is the slope of distortion over rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mcml.base import STRIDE
from mcml.model.model import Model
from mcml.model.networks import FusionDecoder
from mcml.model.scalar import ANCHORS, ScalarStream, lmbda_of
from mcml.training.threshold_start import dct_basis

FINER = 0.8  # share of the step that high-rate theory gives: contexts make small symbols cheap


@torch.no_grad()
def start(model: Model, patches: Tensor, keys: Sequence[str] = ()) -> None:
    """Set the weights of a scalar model's streams, all by default, from patches (B, 3, S, S) in [0, 1]."""
    for key, plane in model.planes(patches).items():
        if key in (keys or model.config.streams):
            _start(model.streams[key], plane)


def _start(stream: ScalarStream, plane: Tensor) -> None:
    encoder, decoder = stream.encoder, stream.decoder
    basis = dct_basis(plane.shape[1]).to(plane.device)
    sigma = functional.conv2d(plane, basis, stride=STRIDE).square().mean((0, 2, 3)).sqrt().clamp(min=1e-4)
    kept = sigma.argsort(descending=True)[: min(stream.config.width, stream.config.code_channels)]
    basis, sigma, count = basis[kept], sigma[kept], len(kept)
    for weight in (encoder.stem.weight, encoder.code.weight, decoder.entry.weight, decoder.exit.weight):
        weight.mul_(0.1)  # channels beyond the basis
    for bias in (encoder.stem.bias, encoder.code.bias, decoder.entry.bias, decoder.exit.bias):
        bias.zero_()
    encoder.trunk.zero_()
    decoder.trunk.zero_()
    encoder.stem.weight[:count] = basis / sigma[:, None, None, None]
    own = torch.arange(count, device=plane.device)
    for weight in (encoder.code.weight, decoder.entry.weight):
        weight[:count] = weight[:, :count] = 0
        weight[own, own, weight.shape[2] // 2, weight.shape[3] // 2] = 1
    decoder.entry.weight[:, stream.config.code_channels :] = 0  # the dial's
    decoder.exit.weight[:, :count, 0, 0] = (basis * sigma[:, None, None, None]).flatten(1).T
    if isinstance(decoder, FusionDecoder):
        decoder.luma.weight.zero_()
        decoder.luma.bias.zero_()
    lmbda = lmbda_of(torch.linspace(0, 1, ANCHORS, device=plane.device))
    step = FINER * torch.sqrt(6 / (math.log(2) * 255**2 * lmbda))
    stream.log_gain.copy_(-step.log()[:, None].expand_as(stream.log_gain) + sigma.min().log())
    stream.log_gain[:, :count] = torch.log(sigma / step[:, None])
