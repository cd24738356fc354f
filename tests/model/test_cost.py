"""Costs of a variant: parameters of a built model, multiply-accumulates counted by hand."""

from dataclasses import replace

import pytest
import torch

from mcml.model.cost import codec_cost, equal_cost_rgb, part_costs
from mcml.model.model import build
from mcml.model.settings import VARIANTS, ModelConfig, StreamConfig

LUMA = StreamConfig(width=8, code_channels=12, levels=5, groups=2, blocks=1)
COLOR = StreamConfig(width=6, code_channels=9, levels=4, groups=1, blocks=2)


def tiny(variant="fusion", **changes):
    return ModelConfig(variant=variant, luma=replace(LUMA, **changes), color=replace(COLOR, **changes))


def macs(config):
    """Return multiply-accumulates per position of the code, by stream and part."""
    return {(row["stream"], row["part"]): 64 * row["macs_per_pixel"] for row in part_costs(config)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("importance", ["adaptive", "uniform"])
def test_parameters_are_those_of_a_built_model_and_counting_draws_no_random_numbers(variant, importance):
    config = tiny(variant, importance=importance)
    before = torch.get_rng_state()
    rows = part_costs.__wrapped__(config)  # not what is cached
    assert torch.equal(torch.get_rng_state(), before)
    model = build(config)
    for row in rows:
        part = getattr(model.streams[row["stream"]], row["part"])
        assert row["parameters"] == sum(p.numel() for p in part.parameters()), row
    maps = {"importance"} if importance == "adaptive" else set()  # nothing for a map that does not exist
    assert {row["part"] for row in rows} == {"encoder", "decoder", "bit_model", "level_model"} | maps
    total = sum(p.numel() for p in model.parameters())
    assert sum(row["parameters"] for row in rows) == total
    context = sum(p.numel() for n, p in model.named_parameters() if "bit_model" in n or "level_model" in n)
    spent = sum(count for (_, part), count in macs(config).items() if not part.endswith("_model"))
    assert codec_cost(config) == (total - context, pytest.approx(spent / 64))


def test_macs_by_hand():
    """Y's trunks: 2 groups of 1 block and 1 more, 6 convolutions 3 x 3; a fusion decoder's: 4 of them."""
    luma, rgb, fusion, alone = (macs(tiny(name)) for name in ("luma", "rgb", "fusion", "independent"))
    trunk, entry = 6 * 9 * 8 * 8, 12 * 24 + 9 * 24 * 8
    assert luma["Y", "encoder"] == 64 * 8 + trunk + 8 * 12
    assert luma["Y", "importance"] == 9 * 8 * 8 + 8
    assert luma["Y", "decoder"] == fusion["Y", "decoder"] == alone["Y", "decoder"] == entry + trunk + 8 * 64
    assert luma["Y", "bit_model"] >= 12 * 12
    assert rgb["RGB", "encoder"] == 3 * 64 * 8 + trunk + 8 * 12
    assert rgb["RGB", "decoder"] == entry + trunk + 8 * 192
    trunk, own, exit_ = 4 * 9 * 6 * 6, 9 * 18 + 9 * 18 * 6, 6 * 64
    for key in ("Cb", "Cr"):
        assert fusion[key, "decoder"] == own + 12 * 24 + 9 * 24 * 6 + trunk + exit_
        assert alone[key, "decoder"] == own + trunk + 2 * 9 * 6 * 6 + exit_


@pytest.mark.parametrize("config", [tiny(width=48), pytest.param(ModelConfig(), marks=pytest.mark.slow)])
def test_an_rgb_network_of_equal_cost_is_within_five_percent(config):
    rgb = equal_cost_rgb(config)
    assert rgb == replace(config, variant="rgb", luma=rgb.luma)
    assert rgb.luma.code_channels == config.luma.code_channels + 2 * config.color.code_channels
    assert codec_cost(rgb)[1] == pytest.approx(codec_cost(config)[1], rel=0.05)


@pytest.mark.parametrize("variant, condition", [*((v, "luma") for v in VARIANTS), ("fusion", "none")])
def test_scalar_costs_are_of_every_weight_and_the_priors_of_all_its_steps(variant, condition):
    small = {"quantizer": "scalar", "width": 8, "groups": 1, "blocks": 1, "prior_width": 6}
    luma, color = (
        StreamConfig(**small, code_channels=12),
        StreamConfig(**small, code_channels=8, prior_steps=2),
    )
    config = ModelConfig(variant=variant, luma=luma, color=color, condition=condition)
    rows, spent = part_costs(config), macs(config)
    assert {row["part"] for row in rows} == {"encoder", "gain", "prior", "decoder"}
    total = sum(p.numel() for p in build(config).parameters())
    assert sum(row["parameters"] for row in rows) == total
    assert codec_cost(config) == (total, pytest.approx(sum(spent.values()) / 64))
    first = config.streams[0]
    steps = 3 * 9 * 12 * 6 + 7 * 12 + 3 * 13 * 12 + 4 * 12 * 24  # see latents; mix side and dial; predict
    analysis, synthesis = 9 * 12 * 6 / 4 + 9 * 6 * 32 / 16, 9 * 32 * 24 / 16 + 6 * 24 / 4
    assert spent[first, "prior"] == steps + analysis + synthesis
    if variant == "fusion":
        steps = 9 * 8 * 6 + 7 * 12 + 13 * 12 + 2 * 12 * 16
        side = 9 * (12 + 8) * 6 if condition == "luma" else 9 * 8 * 6 / 4 + 9 * 6 * 32 / 16 + synthesis
        assert spent["Cr", "prior"] == steps + side
    rgb = equal_cost_rgb(config)
    assert (rgb.quantizer, rgb.luma.code_channels) == ("scalar", 28)
