"""What a variant costs: parameters and multiply-accumulates, by stream and part."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from mcml.model.model import Model
from mcml.model.settings import ModelConfig

SIDE = 64  # pixels a side of what is counted
PARTS = {  # of a stream, and the names of what they are made of
    "binary": {p: (p,) for p in ("encoder", "importance", "decoder", "bit_model", "level_model")},
    "scalar": {
        "encoder": ("encoder",), "gain": ("log_gain",), "decoder": ("decoder",),
        "prior": ("prior", "hyperprior", "side"),
    },
}  # fmt: skip


@cache
def part_costs(config: ModelConfig) -> list[dict[str, Any]]:
    """Count each part of a variant without allocating anything (torch's meta device).

    Returns:
        Rows of stream, part, parameters, macs_per_pixel (forward, of the whole image; multiply and add are
        one). Binary: the context models, which estimate rates, too. Scalar: the gain has no convolution, the
        prior is all of its steps and what makes its side features.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, dial, codes, rows = Model(config), torch.zeros(1), {}, []
    for key, stream in model.streams.items():
        plane = torch.empty(1, 3 if key == "RGB" else 1, SIDE, SIDE, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            codes[key] = stream(plane, dial, codes).code
        flops = {name.partition(".")[2]: sum(of.values()) for name, of in counter.get_flop_counts().items()}
        for part, prefixes in PARTS[config.quantizer].items():
            mine = [p.numel() for name, p in stream.named_parameters() if name.startswith(prefixes)]
            if mine:
                macs = sum(flops.get(name, 0) for name in prefixes) / 2 / SIDE**2
                rows.append({"stream": key, "part": part, "parameters": sum(mine), "macs_per_pixel": macs})
    return rows


def codec_cost(config: ModelConfig) -> tuple[int, float]:
    """Return parameters and MACs a pixel of the networks that a codec needs.

    Binary: without the context models, which only estimate rates (files have an entropy coder of their own).
    Scalar: with the prior, without which no symbol can be read.
    """
    rows = [row for row in part_costs(config) if not row["part"].endswith("_model")]
    return sum(row["parameters"] for row in rows), sum(row["macs_per_pixel"] for row in rows)


def equal_cost_rgb(config: ModelConfig) -> ModelConfig:
    """Return the rgb variant whose width brings its MACs a pixel nearest to `config`'s.

    Its code has as many channels as the three streams' together; all else is the luma stream's.
    """
    wanted = codec_cost(config)[1]
    bits = config.luma.code_channels + 2 * config.color.code_channels

    def of(width: int) -> ModelConfig:
        return replace(config, variant="rgb", luma=replace(config.luma, width=width, code_channels=bits))

    widths = range(8, 512, 4)
    above = bisect_left(widths, wanted, key=lambda width: codec_cost(of(width))[1])  # it rises with the width
    near = widths[max(above - 1, 0) : above + 1]
    return min((of(width) for width in near), key=lambda c: abs(codec_cost(c)[1] - wanted))
