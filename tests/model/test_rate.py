"""Context models: what each may look at, sums against loops, and that they learn what is predictable."""

import math

import numpy as np
import pytest
import torch

from mcml.model.model import build
from mcml.model.quantization import channel_groups, masked_bits, nested_mask
from mcml.model.rate import BITS_PER_NAT, BitModel, LevelModel, bits_of
from mcml.model.settings import ModelConfig, StreamConfig

SIZES = (1, 3, 2)
HEIGHT, WIDTH = 3, 4
FOUR = ((-1, 0), (0, -1), (0, 1), (1, 0))
EIGHT = (*FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1))


def seeded(model, seed=0):
    """Draw every weight at random: none is then zero by chance or by the start."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, generator=generator)
    return model


def random_code(batch, sizes=SIZES):
    """Return bits, mask, code and levels of a nested code that nobody designed."""
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(batch, 1, HEIGHT, WIDTH, generator=generator)
    mask = nested_mask(p, channel_groups(sizes), len(sizes) + 1)
    bits = (torch.rand(mask.shape, generator=generator) < 0.4).float()
    return bits, mask, masked_bits(bits, mask), (p[:, 0] * (len(sizes) + 1)).long()


def inside(i, j, height=HEIGHT, width=WIDTH):
    return 0 <= i < height and 0 <= j < width


def context(k, i, j, groups):
    """Return what the docstring lets bit k at (i, j) look at: {(k', i', j')}."""
    seen = {(q, i, j) for q in range(k)}
    around = [(i + di, j + dj) for di, dj in EIGHT if inside(i + di, j + dj)]
    seen |= {(q, *place) for place in around for q in range(len(groups)) if groups[q] < groups[k]}
    if (i + j) % 2:  # the second pass
        seen |= {(k, i + di, j + dj) for di, dj in FOUR if inside(i + di, j + dj)}
    return seen


@pytest.mark.parametrize("sizes", [SIZES, (6,), (1,) * 6])
def test_a_bit_looks_at_exactly_the_context_that_the_docstring_names_and_never_ahead(sizes):
    """Order: bit by bit of the nested code, each in two checkerboard passes."""
    model = seeded(BitModel(channel_groups(sizes), len(sizes) + 1, context_channels=2))
    _, _, code, level = random_code(1, sizes)
    other, groups = torch.ones(1, 2, HEIGHT, WIDTH), channel_groups(sizes).tolist()
    slope = torch.autograd.functional.jacobian(lambda c: model(c, level, other)[0], code)[:, :, :, 0]
    # No weight that `seeded` draws is below 1e-5; a fast convolution may leave rounding where there is none.
    slope = slope.abs() > 1e-5
    for k, i, j in np.ndindex(len(groups), HEIGHT, WIDTH):
        looked = {tuple(place) for place in slope[k, i, j].nonzero().tolist()}
        assert looked == context(k, i, j, groups), (k, i, j)
        assert all((q, (row + column) % 2) < (k, (i + j) % 2) for q, row, column in looked)


@torch.no_grad()
def test_logits_are_the_sum_that_the_docstring_tells():
    model = seeded(BitModel(channel_groups(SIZES), 4, context_channels=2))
    _, _, code, level = random_code(2)
    other = torch.randn(2, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5)).sign()
    got = model(code, level, other)
    groups, weight = channel_groups(SIZES).tolist(), model.causal.weight
    for b, k, i, j in np.ndindex(*got.shape):
        expected = model.causal.bias[k] + model.level.weight[level[b, i, j], k]
        expected = expected + sum(model.other.weight[k, c, 0, 0] * other[b, c, i, j] for c in range(2))
        for q, row, column in context(k, i, j, groups):
            if q == k:
                tap = model.beside[k, FOUR.index((row - i, column - j))]
            else:
                tap = weight[k, q, row - i + 1, column - j + 1]
            expected = expected + tap * code[b, q, row, column]
        assert float(got[b, k, i, j]) == pytest.approx(float(expected), abs=1e-4)


def test_other_groups_give_other_contexts():
    model, fresh = (seeded(BitModel(channel_groups(sizes), 4)) for sizes in ((2, 2, 2), SIZES))
    _, _, code, level = random_code(1)
    assert not torch.equal(model(code, level), fresh(code, level))
    model.set_groups(channel_groups(SIZES))
    assert torch.equal(model(code, level), fresh(code, level))


def test_bits_cost_what_their_odds_say_and_masked_ones_nothing():
    bits, mask, code, level = random_code(2)
    logits = 3 * torch.randn(bits.shape, generator=torch.Generator().manual_seed(3))
    got = bits_of(logits, bits, mask)
    for b in range(2):
        expected = 0.0
        for where in np.ndindex(*bits.shape[1:]):
            one = 1 / (1 + math.exp(-float(logits[b][where])))
            if mask[b][where]:
                expected -= math.log2(one if bits[b][where] else 1 - one)
        assert float(got[b]) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(bits_of(logits + 5 * (1 - mask), bits, mask), got)
    fresh = BitModel(channel_groups(SIZES), 4)(code, level)  # charges one bit for each open bit
    torch.testing.assert_close(bits_of(fresh, bits, mask), mask.sum((1, 2, 3)))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (4, 1), (4, 5)])
@torch.no_grad()
def test_a_level_costs_the_softmax_of_its_four_neighbours_tables(height, width):
    """They come earlier on waves of two columns a row: left, above, above left, above right."""
    model = seeded(LevelModel(3))
    level = torch.randint(3, (2, height, width), generator=torch.Generator().manual_seed(2))
    got = model(level)
    for b, i, j in np.ndindex(*got.shape):
        odds = torch.zeros(3)
        for table, (di, dj) in zip(model.tables, ((0, -1), (-1, 0), (-1, -1), (-1, 1)), strict=True):
            there = inside(i + di, j + dj, height, width)
            odds = odds + table[int(level[b, i + di, j + dj]) if there else 3]
        shares = [math.exp(float(x)) for x in odds]
        expected = -math.log(shares[int(level[b, i, j])] / sum(shares))
        assert float(got[b, i, j]) == pytest.approx(expected, abs=1e-5)


def test_a_fresh_level_model_prefers_levels_like_the_neighbours():
    flat, rough = torch.full((1, 6, 6), 2), torch.arange(36).view(1, 6, 6) * 3 % 5
    model = LevelModel(5)
    assert model(flat).mean() < math.log(5) < model(rough).mean()


def test_a_streams_estimate_is_the_sum_of_its_bits_and_levels():
    for importance in ("adaptive", "uniform"):
        config = StreamConfig(width=4, code_channels=6, levels=4, groups=1, blocks=1, importance=importance)
        stream = seeded(build(ModelConfig(variant="luma", luma=config)).streams["Y"])
        bits, mask, code, level = random_code(2, (2, 2, 2))
        expected = bits_of(stream.bit_model(code, level), bits, mask)
        if importance == "adaptive":  # a map that the dial alone decides costs nothing
            expected = expected + stream.level_model(level).sum((1, 2)) / math.log(2)
        torch.testing.assert_close(stream.estimated_bits(bits, level, mask, None), expected)


def fit(model, cost, steps=60):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        cost().backward()
        optimizer.step()
    return float(cost().detach())


def test_skewed_bits_come_to_cost_their_entropy():
    share = 0.1
    generator = torch.Generator().manual_seed(0)
    bits = (torch.rand(16, 4, 12, 12, generator=generator) < share).float()
    mask, level = torch.ones_like(bits), torch.full((16, 12, 12), 2)
    model, code = BitModel(channel_groups((2, 2)), 3), masked_bits(bits, mask)
    got = fit(model, lambda: bits_of(model(code, level), bits, mask).sum() / bits.numel())
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert entropy * 0.97 < got < entropy * 1.03  # 0.469


def test_bits_that_the_context_tells_come_to_cost_almost_nothing():
    """The second bit repeats the first, the third the position to the left's first, the fourth luma's."""
    generator = torch.Generator().manual_seed(1)
    coins = (torch.rand(8, 3, 10, 10, generator=generator) < 0.5).float()
    first, own, luma = coins.split(1, dim=1)
    bits = torch.cat([first, 1 - first, first.roll(1, dims=3), luma, own], dim=1)
    mask, level = torch.ones_like(bits), torch.full((8, 10, 10), 3)
    model, code = BitModel(channel_groups((1, 1, 3)), 4, context_channels=1), masked_bits(bits, mask)

    def costs():
        return [
            bits_of(model(code, level, 2 * luma - 1), bits, mask * chosen).sum() / 800 for chosen in kinds
        ]

    kinds = torch.eye(5)[:, None, :, None, None]
    fit(model, lambda: sum(costs()), steps=100)
    fair, repeated, neighbour, of_luma, free = (float(cost.detach()) for cost in costs())
    assert fair > 0.95 and free > 0.9  # an honest coin stays one bit, within what 800 can be fitted to
    assert repeated < 0.05 and of_luma < 0.05
    assert neighbour < 0.25  # the first column has no neighbour


def test_smooth_levels_come_to_cost_less_than_their_entropy():
    generator = torch.Generator().manual_seed(2)
    steps = (torch.rand(6, 1, 24, generator=generator) < 0.15).long().cumsum(2) % 4
    level = steps.expand(6, 20, 24)
    counts = torch.bincount(level.flatten(), minlength=4) / level.numel()
    entropy = float(-(counts * counts.log2()).sum())
    model = LevelModel(4)
    assert entropy > 1.5
    assert fit(model, lambda: model(level).mean() * BITS_PER_NAT) < 0.2
