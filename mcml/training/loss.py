"""The poster's multi-loss: weighted distortion of every stream plus lambda times the importance maps' sum.

    L = sum over images x of |Y - Y^|_1 + gamma |Cb - Cb^|_1 + gamma |Cr - Cr^|_1 + lambda sum_ij p_ij

Distortion pulls towards more bits, the maps towards fewer; lambda says at which exchange rate. The rate
in it is no bit count, which has no slope, but the maps p, whose levels open groups of about equal coded
length: their sum is proportional to the bits. Nothing here waits for the device: tensors are checked by
shape, host numbers by value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mcml.base.errors import UsageError, choose
from mcml.model.perceptual import RGB_SHARES, mixed
from mcml.model.settings import LossConfig

CHANNELS = {"Y": 1, "Cb": 1, "Cr": 1, "RGB": 3}  # streams and their planes


class LossTerms(NamedTuple):
    """Batch means on the loss' device: `total` = `distortion` + `weighted_rate`.

    `distortion` is weighted by gamma, `distortion_per_stream` not.
    """

    total: Tensor
    distortion: Tensor
    rate: Tensor
    weighted_rate: Tensor
    distortion_per_stream: dict[str, Tensor]


def multi_loss(
    x: Mapping[str, Tensor], x_hat: Mapping[str, Tensor], importance: Mapping[str, Tensor],
    lmbda: Tensor | float, config: LossConfig,
) -> LossTerms:  # fmt: skip
    """Return the multi-loss of a batch: mean over b of (D_b + lmbda_b R_b).

    D_b = sum over streams of w * mean over pixels of |x - x_hat| (or its square), w = gamma for Cb
    and Cr, else 1; RGB's three channels are averaged. R_b = sum over the streams that cost of mean
    over positions of p.

    The poster sums where this averages. With N pixels, a map of N / 64 positions (stride 8) and
    planes in 0..1, its |x - x_hat|_1 is N D_b / 255 and its sum of p is N R_b / 64, so
    D_b + lmbda R_b is 255 / N times its loss where lmbda = lambda_poster * 255 / 64. For squared
    errors: 255^2 / N times, and lambda_poster * 255^2 / 64; for RGB, whose poster form sums three
    channels, 1 / 3 of both. (Li et al.'s threshold r on the sum is left out.)

    Args:
        x, x_hat: planes of originals and (unclipped) decodes, any of "Y", "Cb", "Cr", or "RGB":
            (B, 1 or 3, H, W) floating, 0..1.
        importance: stream to p, (B, 1, h, w) floating, 0..1. Its keys are its own: a frozen stream's
            map may be given without its planes, and a stream without a map costs no rate.
        lmbda: grey levels (squared ones for l2) per unit of R, from 0: (B,), 0-d, or a number.
        config: what the loss is made of.

    Returns:
        Terms in float32, or float64 for float64 planes.

    Raises:
        UsageError: for a missing or unknown stream, or a shape that does not fit.
    """
    if x.keys() != x_hat.keys() or not x:
        raise UsageError(f"x has streams {sorted(x)}, x_hat {sorted(x_hat)}: expected the same, at least one")
    batch = len(next(iter(x.values())))
    for key, plane in x.items():
        _check(f"x['{key}']", plane, (batch, CHANNELS[choose("stream", key, CHANNELS)]))
        _check(f"x_hat['{key}']", x_hat[key], tuple(plane.shape))
    for key, p in importance.items():
        _check(f"importance['{choose('stream', key, CHANNELS)}']", p, (batch, 1))
    if isinstance(lmbda, Tensor) and tuple(lmbda.shape) not in {(), (batch,)}:
        raise UsageError(f"lmbda of shape {tuple(lmbda.shape)}: expected ({batch},) or one number")
    if not isinstance(lmbda, Tensor) and not 0 <= lmbda < math.inf:
        raise UsageError(f"lmbda is {lmbda!r}: expected a tensor or a finite number from 0")

    distortions = {}  # (B,) each, as the rate
    for key, plane in x.items():
        error = 255 * (plane.to(_wide(plane)) - x_hat[key])  # in grey levels of 8 bits
        distortions[key] = (error.abs() if config.distortion == "l1" else error.square()).mean((1, 2, 3))
    distortion = sum(d * (config.gamma if key in ("Cb", "Cr") else 1) for key, d in distortions.items())
    rate = torch.zeros_like(distortion)
    for key, p in importance.items():
        if config.rate_streams == "all" or key in ("Y", "RGB"):  # RGB carries luma
            rate = rate + p.mean((1, 2, 3), dtype=_wide(p))
    distortion, weighted_rate = distortion.mean(), (lmbda * rate).mean()
    per_stream = {key: d.mean() for key, d in distortions.items()}
    return LossTerms(distortion + weighted_rate, distortion, rate.mean(), weighted_rate, per_stream)


def rate_distortion_loss(
    x: Mapping[str, Tensor], x_hat: Mapping[str, Tensor], estimated_bpp: Mapping[str, Tensor],
    lmbda: Tensor, config: LossConfig, seen: Mapping[str, Tensor] = {},
) -> LossTerms:  # fmt: skip
    """Return the loss of scalar latents: mean over b of lmbda_b^-0.35 (lmbda_b D_b + R_b).

    D_b sums the streams' mean squared errors in grey levels, each with its share in RGB's (`RGB_SHARES`),
    Cb's and Cr's times gamma; R_b is bits a pixel. The power evens out what dials weigh: at the optimum,
    lmbda D and R shrink together as lmbda falls.

    Other distortions count beside D_b as `mixed` says.

    Args:
        x, x_hat: as in `multi_loss`.
        estimated_bpp: (B,) by stream.
        lmbda: (B,), bits a pixel for a squared grey level.
        config: gamma, and the weights of `seen`.
        seen: (B,) distortions by their names in `config`.
    """
    per_stream = {
        key: 255**2 * (plane - x_hat[key]).float().square().mean((1, 2, 3)) for key, plane in x.items()
    }
    weights = {key: RGB_SHARES[key] * (config.gamma if key in ("Cb", "Cr") else 1) for key in x}
    distortion = torch.stack([weights[key] * error for key, error in per_stream.items()]).sum(0)
    rate, evened = torch.stack(list(estimated_bpp.values())).sum(0), lmbda**-0.35
    weighted = (evened * rate).mean()
    total = (evened * lmbda * mixed(distortion, seen, config)).mean() + weighted
    means = {key: error.mean() for key, error in per_stream.items()}
    return LossTerms(total, distortion.mean(), rate.mean(), weighted, means)


def _wide(values: Tensor) -> torch.dtype:
    """At least float32: a mean over many half-precision values loses what training is after."""
    return torch.promote_types(values.dtype, torch.float32)


def _check(name: str, values: Tensor, start: tuple[int, ...]) -> None:
    """Expect four dimensions that begin with `start`, something in them, and no integers."""
    shape = tuple(values.shape)
    if len(shape) != 4 or shape[: len(start)] != start or 0 in shape or not values.is_floating_point():
        wanted = ", ".join(map(str, (*start, "H", "W")[:4]))
        raise UsageError(f"{name} of shape {shape}, {values.dtype}: expected ({wanted}), floating, not empty")
