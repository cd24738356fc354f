"""Binarizer, importance quantiser and nested mask: values and surrogate gradients against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import UsageError
from mcml.model.quantization import binarize, channel_groups, importance_levels, masked_bits, nested_mask


def test_binarizer_is_one_above_a_half():
    e = torch.tensor([-3.0, 0.0, 0.25, 0.5, math.nextafter(0.5, 1), 0.75, 1.0, 7.0], dtype=torch.float64)
    assert binarize(e).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_binarizers_gradient_is_that_of_the_clipped_identity():
    e = torch.tensor([-1e9, -1e-6, 0.0, 1e-6, 0.3, 0.5, 0.9, 1.0, 1 + 1e-6, 1e9], requires_grad=True)
    incoming = torch.linspace(-2, 3, 10)
    binarize(e).backward(incoming)
    inside = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    assert torch.equal(e.grad, incoming * inside)


def test_behind_a_sigmoid_the_binarizer_passes_everything():
    logit = torch.linspace(-30, 30, 61, requires_grad=True)
    binarize(torch.sigmoid(logit)).sum().backward()
    s = torch.sigmoid(logit.detach())
    torch.testing.assert_close(logit.grad, s * (1 - s))


@pytest.mark.parametrize("levels", [2, 5, 16, 256])
def test_levels_are_floor_of_L_p_one_belongs_to_the_last_and_no_gradient_passes(levels):
    """Li et al. 2018: Q(p) = l - 1 if (l - 1) / L <= p < l / L; borders of powers of two are exact."""
    middles = ((torch.arange(levels) + 0.5) / levels).requires_grad_()
    got = importance_levels(middles, levels)
    assert got.tolist() == list(range(levels))
    assert got.dtype == torch.int64 and not got.requires_grad
    assert importance_levels(torch.tensor([0.0, 1.0]), levels).tolist() == [0, levels - 1]
    if levels != 5:
        borders = torch.arange(levels) / levels
        assert importance_levels(borders, levels).tolist() == list(range(levels))
        below = torch.nextafter(borders[1:], torch.tensor(0.0))
        assert importance_levels(below, levels).tolist() == list(range(levels - 1))


@pytest.mark.parametrize("sizes", [[], [0], [2, 0, 1], [1, -1]])
def test_groups_count_from_one_and_refuse_empty_ones(sizes):
    with pytest.raises(UsageError, match="group sizes"):
        channel_groups(sizes)
    assert channel_groups((2, 3, 1)).tolist() == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("sizes", [[2] * 7, [1, 4, 1, 2, 3, 1, 5]], ids=["even", "unequal"])
def test_mask_gradient_is_L_within_one_and_a_half_levels_of_the_step(sizes):
    """As wide as the window of Li et al. 2018, L p - 1 <= ceil(k L / n) < L p + 2; its borders are tried."""
    generator = torch.Generator().manual_seed(0)
    p = torch.cat([torch.arange(17) / 16, torch.rand(100, generator=generator)]).view(1, 1, 9, 13)
    groups = channel_groups(sizes)
    incoming = torch.randn(1, sum(sizes), 9, 13, generator=generator)
    nested_mask(p.requires_grad_(), groups, 8).backward(incoming)
    for i, j in np.ndindex(9, 13):
        near = [abs(8 * p[0, 0, i, j].item() - group) <= 1.5 for group in groups.tolist()]
        expected = 8 * incoming[0, near, i, j].sum().item()
        assert p.grad[0, 0, i, j].item() == pytest.approx(expected, abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), max_size=12), st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_mask_is_nested_and_never_shrinks_as_p_grows(values, sizes):
    levels = len(sizes) + 1
    p = torch.tensor([0.0, *sorted(values), 1.0]).view(1, 1, 1, -1)
    mask = nested_mask(p, channel_groups(sizes), levels)[0, :, 0]
    assert set(mask.flatten().tolist()) <= {0.0, 1.0}
    assert (mask.diff(dim=0) <= 0).all()  # along the code
    assert (mask.diff(dim=1) >= 0).all()  # along p
    level = importance_levels(p, levels).flatten()
    opened = mask.sum(0).tolist()
    assert opened == [sum(sizes[:q]) for q in level.tolist()]
    assert (opened[0], opened[-1]) == (0, sum(sizes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_keep_the_dtype_and_that_of_their_gradients(dtype):
    p = torch.rand(1, 1, 2, 2).to(dtype).requires_grad_()
    mask, bits = nested_mask(p, channel_groups([2] * 7), 8), binarize(p)
    (mask.sum() + bits.sum()).backward()
    assert (mask.dtype, bits.dtype, p.grad.dtype, p.grad.shape) == (dtype, dtype, dtype, p.shape)


def test_masked_bits_tell_one_zero_and_masked_apart_and_pass_the_products_gradients():
    bits = torch.tensor([0.0, 1, 0, 1], requires_grad=True)
    mask = torch.tensor([1.0, 1, 0, 0], requires_grad=True)
    code = masked_bits(bits, mask)
    assert code.tolist() == [-1, 1, 0, 0]
    code.sum().backward()
    assert bits.grad.tolist() == [2, 2, 0, 0]
    assert mask.grad.tolist() == [-1, 1, -1, 1]
