"""Bits in the order of what they save: the same code, other groups, nothing lost."""

import numpy as np
import pytest
import torch
from helpers import tiny_recipe

from mcml import bit_order, neural, threshold_code
from mcml.context_model import ContextModel
from mcml.models import build


@pytest.fixture(scope="module")
def model():
    found = build(tiny_recipe("fusion").model, 3).eval()
    patches = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(patches, 5, 1, 2)
    threshold_code.start(found, smooth)
    return found


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(1).integers(0, 256, (40, 56, 3))
    return ((noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) // 3).astype(np.uint8)


def contexts_of(model):
    found = {}
    for key, stream in model.streams.items():
        found[key] = ContextModel(stream.groups, 8, [8] * len(found))
    return found


def test_the_best_order_takes_the_steepest_average_first():
    coefficient = np.array([0, 0, 1, 1])
    cost = np.array([1.0, 1.0, 1.0, 1.0])
    saved = np.array([1.0, 9.0, 4.0, 0.1])  # a dear first bit opens the way to the best one
    assert bit_order.best_order(coefficient, cost, saved).tolist() == [0, 1, 2, 3]
    assert bit_order.best_order(coefficient, cost, saved[[2, 3, 1, 0]]).tolist() == [2, 0, 3, 1]


def test_groups_of_equal_cost():
    cost = np.array([4.0, 1, 1, 1, 1, 2, 2])
    assert bit_order.equal_groups(cost, 3) == [1, 4, 2]
    assert bit_order.equal_groups(np.ones(5), 5) == [1] * 5


def test_savings_are_those_of_cell_means():
    x = np.array([[0.0, 1.0, 2.0, 10.0]])
    found = bit_order._savings(x, np.array([0, 0]), np.array([5.0, 0.5]))
    assert found[0] == pytest.approx((x.var() * 4 - 2.0) / 4)
    assert found[1] == pytest.approx((2.0 - 0.5) / 4)


def test_costs_and_savings_say_something_of_each_bit(model, image):
    found = bit_order.costs_and_savings(model, contexts_of(model), [image])
    for key, (coefficient, cost, saved) in found.items():
        n = model.config.stream(key).code_channels
        assert coefficient.shape == cost.shape == saved.shape == (n,)
        assert (cost > 0).all() and (saved >= 0).all() and saved.sum() > 0


def test_a_reordered_model_says_and_decodes_the_same(model, image):
    import copy

    changed = copy.deepcopy(model)
    generator = np.random.default_rng(0)
    orders = {}
    for key, stream in model.streams.items():
        n, count = stream.config.code_channels, stream.config.group_count
        orders[key] = generator.permutation(n)
        bit_order.reorder(changed, key, orders[key], [1] * (count - 1) + [n - count + 1])
    before, after = neural.analyse(model, image), neural.analyse(changed, image)
    for key, order in orders.items():
        assert (after[key][0] == before[key][0][..., order]).all()
    codes = [{k: 2 * bits.astype(np.int8) - 1 for k, (bits, _) in said.items()} for said in (before, after)]
    first, second = neural.synthesise(model, codes[0]), neural.synthesise(changed, codes[1])
    assert np.abs(first.astype(int) - second).max() <= 1  # sums in another order
    assert int(changed.streams["Y"].groups.max()) == changed.streams["Y"].config.group_count


def test_a_reordered_context_model_keeps_what_order_allows():
    groups = torch.tensor([1, 1, 2, 2, 3, 3])
    context = ContextModel(groups, 4)
    for parameter in context.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    order = np.array([1, 0, 2, 3, 5, 4])
    found = bit_order.reorder_context(context, order, [2, 2, 2])
    assert torch.equal(found.bias, context.bias[torch.from_numpy(order)])
    assert torch.equal(found.readout, context.readout[torch.from_numpy(order)])
    assert float(found.before[4, 0].detach()) == float(context.before[5, 1].detach())
    assert not found.before[0, 1].detach()
