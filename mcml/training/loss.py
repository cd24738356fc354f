"""The poster's multi-loss: weighted distortion of every stream plus lambda times the importance maps' sum.

    L = sum over images x of |Y - Y^|_1 + gamma |Cb - Cb^|_1 + gamma |Cr - Cr^|_1 + lambda sum_ij p_ij

Nothing here waits for the device: values are checked where they are host numbers, tensors by shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcml.base.errors import UsageError, choose
from mcml.metrics.color_difference import cie76, ciede2000

CHANNELS = {"Y": 1, "Cb": 1, "Cr": 1, "RGB": 3}  # streams and their planes
COLOR_STREAMS = ("Cb", "Cr")
LUMA_STREAMS = ("Y", "RGB")  # RGB: the baseline's one stream carries luma
COLOR_DIFFERENCES = {"cielab": cie76, "ciede2000": ciede2000}
PEAK = 255  # distortions are told in grey levels of 8 bits
LMBDA_RANGE = (1e-4, 1e6)  # where RateTarget keeps lambda: from no pull at all to no bits at all


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the loss is made of; the defaults are the poster's L1 with every stream's rate.

    Raises:
        UsageError: for an unknown name or a number outside its range.
    """

    # "l1" in grey levels (the poster), or "l2" in squared grey levels (Li et al.; favours PSNR)
    distortion: str = "l1"
    # weight of Cb's and Cr's distortion against Y's, from 0; no unit. The poster does not give its value
    gamma: float = 1.0
    # whose importance maps cost: "all", or "luma" as the poster prints it (colour bits are then free)
    rate_streams: str = "all"
    # Li et al.'s r as a share of the largest possible sum of p, 0 to below 1; 0: every p costs
    threshold: float = 0.0
    # a colour difference on RGB, against the colour bias that a per-plane loss does not see
    color_difference: str = "none"  # "none", "cielab" (CIE76) or "ciede2000"
    # grey levels (squared ones for "l2") per unit of colour difference, from 0; 0 only reports it
    color_weight: float = 0.0

    def __post_init__(self) -> None:
        choose("distortion", self.distortion, ("l1", "l2"))
        choose("rate_streams", self.rate_streams, ("all", "luma"))
        choose("color_difference", self.color_difference, ("none", *COLOR_DIFFERENCES))
        for name in ("gamma", "threshold", "color_weight"):
            value = getattr(self, name)
            if not _is_finite(value) or value < 0:
                raise UsageError(f"{name} is {value!r}: expected a finite number from 0")
        if self.threshold >= 1:
            raise UsageError(f"threshold is {self.threshold!r}: expected a share from 0 to below 1")
        if self.color_weight > 0 and self.color_difference == "none":
            raise UsageError(f"color_weight is {self.color_weight!r} without a color_difference to weigh")


class LossTerms(NamedTuple):
    """Scalars on the loss' device: `total` = `distortion` + `weighted_rate` + color_weight * `color`.

    `distortion` is weighted by gamma, `distortion_per_stream` not; `rate` is after the threshold,
    `rate_per_stream` (of every map given, whether it costs or not) before it. All are batch means.
    """

    total: Tensor
    distortion: Tensor
    rate: Tensor
    weighted_rate: Tensor
    color: Tensor
    distortion_per_stream: dict[str, Tensor]
    rate_per_stream: dict[str, Tensor]


def multi_loss(
    x: Mapping[str, Tensor],
    x_hat: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    lmbda: Tensor | float,
    config: LossConfig,
    *,
    rgb: Tensor | None = None,
    rgb_hat: Tensor | None = None,
) -> LossTerms:
    """Return the multi-loss of a batch: mean over b of (D_b + lmbda_b R_b), plus the colour term.

    D_b = sum over streams of w * mean over pixels of |x - x_hat| (or its square), w = gamma for Cb
    and Cr, else 1; RGB's three channels are averaged. R_b = max(0, sum over the S streams that cost
    of mean over positions of p, less threshold * S): the streams share one allowance.

    The poster sums where this averages. With N pixels, a map of N / 64 positions (stride 8) and
    planes in 0..1, its |x - x_hat|_1 is N D_b / 255 and its sum of p is N R_b / 64, so
    D_b + lmbda R_b is 255 / N times its loss where lmbda = lambda_poster * 255 / 64. For squared
    errors: 255^2 / N times, and lambda_poster * 255^2 / 64; for planes in 0..255, without the factors
    255; for RGB, whose poster form sums three channels, 1 / 3 of both. Li et al.'s r is
    threshold * S * N / 64.

    Args:
        x: the originals' planes, any of "Y", "Cb", "Cr", or "RGB": (B, 1 or 3, H, W) floating, 0..1.
        x_hat: the decodes' planes, the same keys and shapes, unclipped.
        importance: stream to p, (B, 1, h, w) floating, 0..1. Its keys are its own: a frozen stream's
            map may be given without its planes, and a stream without a map costs no rate.
        lmbda: grey levels (squared ones for l2) per unit of R, from 0: (B,), 0-d, or a number.
        config: what the loss is made of.
        rgb: (B, 3, H, W) floating, 0..1; needed for, and only used by, a colour difference.
        rgb_hat: the same shape.

    Returns:
        Terms in float32, or float64 for float64 planes.

    Raises:
        UsageError: for a missing or unknown stream, a shape that does not fit, or a colour
            difference without `rgb` and `rgb_hat`.

    Source: the poster's loss (METHOD.md, section 1); threshold: Li et al. 2018.
    """
    batch = _check_planes(x, x_hat)
    for stream, p in importance.items():
        _check_shape(f"importance['{choose('stream', stream, CHANNELS)}']", p, (batch, 1))
    _check_lmbda(lmbda, batch)
    distortions = {s: _distortion(x[s], x_hat[s], config.distortion) for s in x}
    rates = {s: _wide(p).mean((1, 2, 3)) for s, p in importance.items()}

    nothing = next(iter(distortions.values())).new_zeros(batch)
    distortion = sum(
        ((config.gamma if s in COLOR_STREAMS else 1) * d for s, d in distortions.items()), nothing
    )
    costing = [r for s, r in rates.items() if config.rate_streams == "all" or s in LUMA_STREAMS]
    rate = torch.relu(sum(costing, nothing) - config.threshold * len(costing))
    distortion, weighted_rate = distortion.mean(), (lmbda * rate).mean()
    total, color = distortion + weighted_rate, nothing.mean()
    if config.color_difference != "none":
        color = _color(config.color_difference, rgb, rgb_hat, batch)
        total = total + config.color_weight * color
    return LossTerms(
        total=total,
        distortion=distortion,
        rate=rate.mean(),
        weighted_rate=weighted_rate,
        color=color,
        distortion_per_stream={s: d.mean() for s, d in distortions.items()},
        rate_per_stream={s: r.mean() for s, r in rates.items()},
    )


def _wide(values: Tensor) -> Tensor:
    """At least float32: a mean over many half-precision values loses what training is after."""
    return values if values.dtype == torch.float64 else values.float()


def _distortion(x: Tensor, x_hat: Tensor, kind: str) -> Tensor:
    """Per-sample distortion: (B, C, H, W) in 0..1 to (B,) in grey levels or squared ones."""
    error = PEAK * (_wide(x) - _wide(x_hat))
    return (error.abs() if kind == "l1" else error.square()).mean((1, 2, 3))


def _color(kind: str, rgb: Tensor | None, rgb_hat: Tensor | None, batch: int) -> Tensor:
    if rgb is None or rgb_hat is None:
        raise UsageError(f"color_difference '{kind}' compares RGB: give rgb and rgb_hat")
    if rgb.shape[:1] != (batch,):
        raise UsageError(f"rgb of shape {tuple(rgb.shape)}: expected ({batch}, 3, H, W), as many as planes")
    return COLOR_DIFFERENCES[kind](rgb, rgb_hat).mean()


def _check_planes(x: Mapping[str, Tensor], x_hat: Mapping[str, Tensor]) -> int:
    """Return the batch size of planes whose keys and shapes agree."""
    if x.keys() != x_hat.keys() or not x:
        raise UsageError(f"x has streams {sorted(x)}, x_hat {sorted(x_hat)}: expected the same, at least one")
    batch = len(next(iter(x.values())))
    for stream, plane in x.items():
        channels = CHANNELS[choose("stream", stream, CHANNELS)]
        _check_shape(f"x['{stream}']", plane, (batch, channels))
        _check_shape(f"x_hat['{stream}']", x_hat[stream], tuple(plane.shape))
    return batch


def _check_shape(name: str, values: Tensor, start: tuple[int, ...]) -> None:
    """Expect four dimensions that begin with `start`, something in them, and no integers."""
    shape = tuple(values.shape)
    if len(shape) != 4 or shape[: len(start)] != start or 0 in shape or not values.is_floating_point():
        expected = ", ".join(map(str, (*start, "H", "W")[:4]))
        raise UsageError(
            f"{name} of shape {shape}, {values.dtype}: expected ({expected}), floating, not empty"
        )


def _check_lmbda(lmbda: Tensor | float, batch: int) -> None:
    if not isinstance(lmbda, Tensor):
        if not _is_finite(lmbda) or lmbda < 0:
            raise UsageError(f"lmbda is {lmbda!r}: expected a tensor or a finite number from 0")
    elif tuple(lmbda.shape) not in {(), (batch,)}:
        raise UsageError(f"lmbda of shape {tuple(lmbda.shape)}: expected ({batch},) or one number")


class RateTarget(torch.nn.Module):
    """Lambda that rises while the rate is above a wanted one and falls while it is below.

    Dual ascent on log lambda: the multiplier of the constraint rate = target. Its only state is the
    buffer `log_lambda`, 0-d, so a checkpoint resumes exactly; keep it in float32 or wider.
    """

    def __init__(self, target: float, *, lmbda: float = 1.0, step: float = 0.01) -> None:
        """Start from `lmbda`.

        Args:
            target: wanted rate, above 0, in the unit that `update` is given (mean p, or bpp).
            lmbda: first lambda, within `LMBDA_RANGE`.
            step: change of log lambda per update and per unit of rate / target - 1, above 0.

        Raises:
            UsageError: for a number outside its range.
        """
        super().__init__()
        for name, value in {"target": target, "step": step}.items():
            if not _is_finite(value) or value <= 0:
                raise UsageError(f"{name} is {value!r}: expected a finite number above 0")
        low, high = LMBDA_RANGE
        if not _is_finite(lmbda) or not low <= lmbda <= high:
            raise UsageError(f"lmbda is {lmbda!r}: expected a number from {low:g} to {high:g}")
        self.target, self.step = target, step
        self.register_buffer("log_lambda", torch.tensor(math.log(lmbda)))

    @property
    def lmbda(self) -> Tensor:
        """Lambda now: 0-d, a copy that later updates leave alone."""
        return self.log_lambda.exp()

    @torch.no_grad()
    def update(self, rate: Tensor) -> None:
        """Move log lambda by step * (rate / target - 1), in place on its device, within `LMBDA_RANGE`.

        Args:
            rate: the rate just measured, 0-d, or any shape to be averaged. One that is not finite
                (a step that mixed precision skips) changes nothing.
        """
        change = self.step * (_wide(rate).mean() / self.target - 1)
        change = torch.where(torch.isfinite(change), change, 0.0)
        self.log_lambda.add_(change).clamp_(math.log(LMBDA_RANGE[0]), math.log(LMBDA_RANGE[1]))
