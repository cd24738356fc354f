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
@pytest.mark.parametrize("changes", [{}, {"importance": "uniform"}], ids=["adaptive", "uniform"])
def test_parameters_are_those_of_a_built_model(variant, changes):
    config = tiny(variant, **changes)
    model = build(config)
    rows = part_costs(config)
    for row in rows:
        part = getattr(model.streams[row["stream"]], row["part"])
        assert row["parameters"] == sum(p.numel() for p in part.parameters()), row
    total = sum(p.numel() for p in model.parameters())
    assert sum(row["parameters"] for row in rows) == total
    context = sum(p.numel() for n, p in model.named_parameters() if "bit_model" in n or "level_model" in n)
    by_part = macs(config)
    spent = sum(v for (_, part), v in by_part.items() if not part.endswith("_model"))
    assert codec_cost(config) == (total - context, pytest.approx(spent / 64))


def test_nothing_is_counted_for_a_map_that_does_not_exist():
    parts = {row["part"] for row in part_costs(tiny(importance="uniform"))}
    assert parts == {"encoder", "decoder", "bit_model", "level_model"}
    assert "importance" in {row["part"] for row in part_costs(tiny())}


def test_macs_of_luma_by_hand():
    """Width 8, 12 bits; trunks of 2 groups of 1 block and 1 more: 6 convolutions 3 x 3."""
    got = macs(tiny("luma"))
    trunk = 6 * 9 * 8 * 8
    assert got["Y", "encoder"] == 64 * 8 + trunk + 8 * 12
    assert got["Y", "importance"] == 9 * 8 * 8 + 8
    assert got["Y", "decoder"] == 12 * 24 + 9 * 24 * 8 + trunk + 8 * 64
    assert got["Y", "bit_model"] >= 12 * 12


def test_macs_of_a_fusion_decoder_by_hand():
    """Width 6, 9 bits; trunk of 1 group of 2 blocks and none more: 4 convolutions 3 x 3."""
    trunk, exit_ = 4 * 9 * 6 * 6, 6 * 64
    own = 9 * 18 + 9 * 18 * 6
    codes, alone = macs(tiny()), macs(tiny("independent"))
    for key in ("Cb", "Cr"):
        assert codes[key, "decoder"] == own + 12 * 24 + 9 * 24 * 6 + trunk + exit_
        assert alone[key, "decoder"] == own + trunk + 2 * 9 * 6 * 6 + exit_
    assert codes["Y", "decoder"] == alone["Y", "decoder"]


def test_macs_of_the_rgb_variant_by_hand():
    got = macs(tiny("rgb"))
    trunk = 6 * 9 * 8 * 8
    assert got["RGB", "encoder"] == 3 * 64 * 8 + trunk + 8 * 12
    assert got["RGB", "decoder"] == 12 * 24 + 9 * 24 * 8 + trunk + 8 * 192


def test_counting_draws_no_random_numbers():
    before = torch.get_rng_state()
    part_costs(tiny(levels=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_rgb_network_of_equal_cost_is_within_five_percent():
    config = tiny(width=48)
    rgb = equal_cost_rgb(config)
    assert rgb.variant == "rgb"
    assert rgb.luma.code_channels == 12 + 9 + 9
    assert codec_cost(rgb)[1] == pytest.approx(codec_cost(config)[1], rel=0.05)
    assert build(rgb).config == rgb


@pytest.mark.slow
def test_an_rgb_network_of_the_default_fusions_cost_is_within_five_percent():
    config = ModelConfig()
    assert codec_cost(equal_cost_rgb(config))[1] == pytest.approx(codec_cost(config)[1], rel=0.05)
