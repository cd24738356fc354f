"""Binarizer, importance quantiser and nested mask: values and surrogate gradients against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import UsageError
from mcml.model.quantization import binarize, channel_groups, importance_levels, masked_bits, nested_mask

LEVELS = 8
EVEN, UNEVEN = [2] * 7, [1, 4, 1, 2, 3, 1, 5]
FORMS = [pytest.param(EVEN, id="even"), pytest.param(UNEVEN, id="unequal")]
shares = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12)


def column(values, **options):
    """Turn numbers into an importance map (1, 1, 1, many)."""
    return torch.tensor(values, **options).view(1, 1, 1, -1)


def every_kind_of_share():
    """Many p, the levels' exact borders and the ends among them."""
    generator = torch.Generator().manual_seed(0)
    borders = torch.arange(2 * LEVELS + 1) / (2 * LEVELS)
    return torch.cat([borders, torch.rand(100, generator=generator)]).view(1, 1, 9, 13)


def test_binarizer_is_one_above_a_half():
    e = torch.tensor([-3.0, 0.0, 0.25, 0.5, math.nextafter(0.5, 1), 0.75, 1.0, 7.0], dtype=torch.float64)
    assert binarize(e).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_binarizer_keeps_the_dtype(dtype):
    assert binarize(torch.rand(2, 3).to(dtype)).dtype == dtype


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
def test_levels_are_floor_of_L_p_and_one_belongs_to_the_last(levels):
    middles = (torch.arange(levels) + 0.5) / levels
    assert importance_levels(middles, levels).tolist() == list(range(levels))
    ends = importance_levels(torch.tensor([0.0, 1.0]), levels)
    assert ends.tolist() == [0, levels - 1]
    assert ends.dtype == torch.int64


def test_levels_begin_at_their_lower_border():
    """Li et al. 2018: Q(p) = l - 1 if (l - 1) / L <= p < l / L; borders of sixteenths are exact."""
    borders = torch.arange(16) / 16
    assert importance_levels(borders, 16).tolist() == list(range(16))
    below = torch.nextafter(borders[1:], torch.tensor(0.0))
    assert importance_levels(below, 16).tolist() == list(range(15))


def test_levels_pass_no_gradient():
    assert not importance_levels(torch.rand(3, requires_grad=True), 4).requires_grad


def test_groups_count_from_one():
    assert channel_groups((2, 3, 1)).tolist() == [1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("sizes", [[], [0], [2, 0, 1], [1, -1]])
def test_groups_refuse_empty_ones(sizes):
    with pytest.raises(UsageError, match="group sizes"):
        channel_groups(sizes)


@pytest.mark.parametrize("levels", [1, 0, -3])
def test_one_level_is_refused(levels):
    with pytest.raises(UsageError, match="at least 2"):
        importance_levels(torch.rand(2), levels)


@pytest.mark.parametrize("wrong", [8, 6])
def test_a_mask_refuses_groups_that_do_not_fit_its_levels(wrong):
    with pytest.raises(UsageError, match=f"need 7 groups of bits, got {wrong}"):
        nested_mask(torch.rand(1, 1, 2, 2), channel_groups([1] * wrong), 8)


@pytest.mark.parametrize("sizes", FORMS)
def test_mask_opens_the_groups_that_the_level_says(sizes):
    p = every_kind_of_share()
    mask = nested_mask(p, channel_groups(sizes), LEVELS)
    assert mask.shape == (1, sum(sizes), 9, 13)
    for i in range(9):
        for j in range(13):
            level = min(int(LEVELS * p[0, 0, i, j].item()), LEVELS - 1)  # L p is exact: L is a power of 2
            kept = sum(sizes[:level])
            assert mask[0, :, i, j].tolist() == [1] * kept + [0] * (sum(sizes) - kept)


@pytest.mark.parametrize("sizes", FORMS)
def test_mask_gradient_is_L_within_one_and_a_half_levels_of_the_step(sizes):
    p = every_kind_of_share().requires_grad_()
    groups = channel_groups(sizes)
    incoming = torch.randn(1, sum(sizes), 9, 13, generator=torch.Generator().manual_seed(1))
    nested_mask(p, groups, LEVELS).backward(incoming)
    for i in range(9):
        for j in range(13):
            expected = 0.0
            for k, group in enumerate(groups.tolist()):
                if abs(LEVELS * p[0, 0, i, j].item() - group) <= 1.5:
                    expected += LEVELS * incoming[0, k, i, j].item()
            assert p.grad[0, 0, i, j].item() == pytest.approx(expected, abs=1e-4)


def test_mask_gradients_window_is_three_levels_wide_and_centred_on_the_step():
    """As wide as the window of Li et al. 2018, L p - 1 <= ceil(k L / n) < L p + 2."""
    groups = channel_groups([1] * (LEVELS - 1))
    p = torch.linspace(0, 1, 8001).view(1, 1, 1, -1).requires_grad_()
    mask = nested_mask(p, groups, LEVELS)
    mask[:, 3].sum().backward()  # a channel whose window lies inside 0..1
    touched = p.detach()[p.grad != 0]
    changes = p.detach()[0, 0, 0, mask.detach()[0, 3, 0].argmax()]
    assert float(touched.max() - touched.min()) == pytest.approx(3 / LEVELS, abs=3e-4)
    assert float(touched.max() + touched.min()) / 2 == pytest.approx(float(changes), abs=3e-4)
    assert set(p.grad[p.grad != 0].tolist()) == {LEVELS}


@pytest.mark.parametrize("sizes", FORMS)
def test_the_ends_open_nothing_and_everything(sizes):
    opened = nested_mask(column([0.0, 1.0]), channel_groups(sizes), LEVELS)
    assert opened.sum(1).flatten().tolist() == [0, sum(sizes)]


@settings(deadline=None)
@given(shares, st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_mask_is_nested_and_never_shrinks_as_p_grows(values, sizes):
    levels = len(sizes) + 1
    p = column(sorted(values))
    mask = nested_mask(p, channel_groups(sizes), levels)[0, :, 0]
    assert set(mask.flatten().tolist()) <= {0.0, 1.0}
    assert (mask.diff(dim=0) <= 0).all()  # along the code
    assert (mask.diff(dim=1) >= 0).all()  # along p
    level = importance_levels(p, levels).flatten()
    assert mask.sum(0).tolist() == [sum(sizes[:q]) for q in level.tolist()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mask_keeps_ps_dtype_and_its_gradients(dtype):
    p = torch.rand(1, 1, 2, 2).to(dtype).requires_grad_()
    mask = nested_mask(p, channel_groups(EVEN), LEVELS)
    mask.sum().backward()
    assert (mask.dtype, p.grad.dtype, p.grad.shape) == (dtype, dtype, p.shape)


def test_masked_bits_tell_one_zero_and_masked_apart():
    bits = torch.tensor([0.0, 1, 0, 1])
    assert masked_bits(bits, torch.tensor([1.0, 1, 0, 0])).tolist() == [-1, 1, 0, 0]


def test_masked_bits_gradients_are_those_of_the_product():
    bits = torch.tensor([0.0, 1, 0, 1], requires_grad=True)
    mask = torch.tensor([1.0, 1, 0, 0], requires_grad=True)
    masked_bits(bits, mask).sum().backward()
    assert bits.grad.tolist() == [2, 2, 0, 0]
    assert mask.grad.tolist() == [-1, 1, -1, 1]
