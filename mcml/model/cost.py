"""What a variant costs: parameters and multiply-accumulates, by stream and part."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from mcml.base import STRIDE
from mcml.model.model import Model
from mcml.model.settings import ModelConfig

GRID = 8  # positions a side of the code that is counted


@cache
def part_costs(config: ModelConfig) -> list[dict[str, Any]]:
    """Count each part of a variant without allocating anything (torch's meta device).

    Returns:
        Rows of stream, part (the context models, which estimate rates, too), parameters, macs_per_pixel
        (forward, of the whole image; multiply and add are one).
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = Model(config)
        level = torch.zeros(1, GRID, GRID, dtype=torch.int64)
        luma = torch.empty(1, config.luma.code_channels, GRID, GRID)
    rows = []
    for key, stream in model.streams.items():
        plane = torch.empty(1, 3 if key == "RGB" else 1, GRID * STRIDE, GRID * STRIDE, device="meta")
        features = torch.empty(1, stream.config.width, GRID, GRID, device="meta")
        code = torch.empty(1, stream.config.code_channels, GRID, GRID, device="meta")
        other = luma if key in ("Cb", "Cr") else None
        inputs = {
            "encoder": (plane,), "importance": (features,), "decoder": (code, other),
            "bit_model": (code, level, other), "level_model": (level,),
        }  # fmt: skip
        for part, given in inputs.items():
            module = getattr(stream, part)
            if module is not None:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    module(*given)
                count = sum(p.numel() for p in module.parameters())
                macs = counter.get_total_flops() / 2 / (GRID * STRIDE) ** 2
                rows.append({"stream": key, "part": part, "parameters": count, "macs_per_pixel": macs})
    return rows


def codec_cost(config: ModelConfig) -> tuple[int, float]:
    """Return parameters and MACs a pixel of the networks, context models left out."""
    rows = [row for row in part_costs(config) if not row["part"].endswith("_model")]
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
