"""What a variant costs: parameters and multiply-accumulates, by stream and part."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from mcml.base import STRIDE
from mcml.model.model import Model, ModelConfig

GRID = 8  # positions a side of the code that is counted


@cache
def layout(config: ModelConfig) -> list[dict[str, Any]]:
    """Count each part of a variant without allocating anything (torch's meta device).

    The context models estimate rates; they are listed, and are no part of the codec's cost.

    Returns:
        Rows of stream, part, parameters, macs_per_pixel (of the whole image, multiply and
        add counted as one), forward pass only.
    """
    with torch.device("meta"):
        model = Model(config)
    rows = []
    for key, stream in model.streams.items():
        settings = stream.config
        plane = _meta(3 if key == "RGB" else 1, GRID * STRIDE)
        features = _meta(settings.width, GRID)
        code = _meta(settings.code_channels, GRID)
        luma = _meta(config.luma.code_channels, GRID) if key in ("Cb", "Cr") else None
        level = torch.zeros(1, GRID, GRID, dtype=torch.int64, device="meta")
        parts: list[tuple[str, nn.Module | None, Callable[[], Any]]] = [
            ("encoder", stream.encoder, lambda s=stream, p=plane: s.encoder(p)),
            ("importance", stream.importance, lambda s=stream, f=features: s.importance(f)),
            ("decoder", stream.decoder, lambda s=stream, c=code, y=luma: s.decoder(c, y)),
            ("bit_model", stream.bit_model, lambda s=stream, c=code, q=level, y=luma: s.bit_model(c, q, y)),
            ("level_model", stream.level_model, lambda: None),
        ]
        for part, module, run in parts:
            if module is not None:
                rows.append(
                    {
                        "stream": key,
                        "part": part,
                        "parameters": sum(p.numel() for p in module.parameters()),
                        "macs_per_pixel": _macs(run) / (GRID * STRIDE) ** 2,
                    }
                )
    return rows


def _meta(channels: int, side: int) -> torch.Tensor:
    return torch.empty(1, channels, side, side, device="meta")


def _macs(run: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def codec_cost(config: ModelConfig) -> tuple[int, float]:
    """Return parameters and MACs a pixel of the networks, context models left out."""
    rows = [row for row in layout(config) if not row["part"].endswith("_model")]
    return sum(row["parameters"] for row in rows), sum(row["macs_per_pixel"] for row in rows)


def equal_cost_rgb(config: ModelConfig) -> ModelConfig:
    """Return the rgb variant whose width brings its MACs a pixel nearest to `config`'s.

    Its code has as many bits as the three streams together, on the luma stream's levels.
    """
    wanted = codec_cost(config)[1]
    bits = config.luma.code_channels + 2 * config.color.code_channels

    def of(width: int) -> ModelConfig:
        return replace(config, variant="rgb", luma=replace(config.luma, width=width, code_channels=bits))

    widths = range(8, 512, 4)
    above = bisect_left(widths, wanted, key=lambda width: codec_cost(of(width))[1])  # it rises with the width
    near = widths[max(above - 1, 0) : above + 1]
    return min((of(width) for width in near), key=lambda c: abs(codec_cost(c)[1] - wanted))
