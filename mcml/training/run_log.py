"""The figures of a training log, and the check that they are still those of a sane run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from mcml.base.errors import McmlError

DIVERGED = 20.0  # a mean loss this many times the best so far stops the run
HEAD = ("loss", "distortion", "rate", "weighted_rate", "gradient_norm")
PER_STREAM = ("distortion", "importance", "open", "mse", "estimated_bpp")


class DivergedError(McmlError):
    """Training ended in NaN or ran away; the last good checkpoint is kept (exit code 1)."""


def name_figures(values: Sequence[float], streams: Sequence[str]) -> dict[str, float]:
    """Name a step's figures: `HEAD`, then `PER_STREAM` of each stream, mse told as PSNR in dB."""
    names = [*HEAD, *(f"{name}_{key}" for key in streams for name in PER_STREAM)]
    found = dict(zip(names, values, strict=True))
    for key in streams:
        mse = found.pop(f"mse_{key}")
        found[f"psnr_{key}"] = -10 * math.log10(max(mse, 1e-12)) if math.isfinite(mse) else math.nan
    return found


def check(
    row: Mapping[str, float],
    model: nn.Module,
    step: int,
    best: float,
    kept: Path | None,
) -> None:
    """Stop a run whose figures or weights are not finite, or whose loss ran away.

    Raises:
        DivergedError: with the step, what is wrong, what to try and what is kept.
    """
    last = "no checkpoint had been written" if kept is None else f"the last good checkpoint is {kept}"
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad or not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise DivergedError(
            f"step {step}: {', '.join(bad) or 'the weights'} not finite (gradient norm "
            f"{row['gradient_norm']:.3g}); try a smaller train.lr or train.clip; {last}"
        )
    if row["loss"] > DIVERGED * best:
        raise DivergedError(
            f"step {step}: the loss is {row['loss']:.3g} after a best of {best:.3g}; "
            f"try a smaller train.lr; {last}"
        )
