"""CIELAB and CIEDE2000 of tensors against numpy's and colour-science; their slopes."""

import colour
import numpy as np
import pytest
import torch

from mcml.metrics import color
from mcml.training.color_difference import ciede2000, ciede2000_lab, lab

EQUAL = 0.001  # what equal colours differ by
GREYS = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.04045, 0.04045, 0.04045), (-0.1, -0.1, -0.1)]
STRONG = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.2, 0.9, 0.1), (0.0, 1.0, 1.0), (1.3, -0.2, 0.5)]


def colours(*rgb):
    """Colours in 0..1 as a (1, 3, 1, n) tensor that wants a gradient."""
    return torch.tensor(rgb, dtype=torch.float32).T[None, :, None].requires_grad_()


def random_lab(count, seed=0):
    return np.random.default_rng(seed).uniform([0, -128, -128], [100, 128, 128], (count, 3))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_lab_is_that_of_the_metrics(dtype, tolerance, astronaut):
    got = lab(torch.from_numpy(astronaut).to(dtype).permute(2, 0, 1)[None] / 255)
    assert got.dtype == dtype
    np.testing.assert_allclose(got[0].permute(1, 2, 0), color.rgb_to_lab(astronaut), atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1.1e-5)])
@pytest.mark.parametrize("spread", [0.3, 5, None])
def test_ciede2000_agrees_with_colour_science(dtype, tolerance, spread):
    a, other = random_lab(5000), random_lab(5000, seed=2)
    b = other if spread is None else a + spread * np.random.default_rng(1).normal(size=a.shape)
    for one, two in ((a, b), (a * (1, 0, 0), b), (b, a * (1, 0, 0))):  # a grey has no hue
        expected = np.hypot(colour.difference.delta_E_CIE2000(one, two), EQUAL)
        got = ciede2000_lab(torch.tensor(one, dtype=dtype), torch.tensor(two, dtype=dtype))
        np.testing.assert_allclose(got, expected, atol=tolerance)


@pytest.mark.parametrize(
    "a, b", [(GREYS, GREYS[::-1]), (GREYS, STRONG), (STRONG, GREYS), (STRONG, STRONG[::-1])]
)
def test_gradients_are_finite_at_black_at_grey_and_outside(a, b):
    a, b = colours(*a), colours(*b)
    for slope in torch.autograd.grad(ciede2000(a, b).sum(), (a, b)):
        assert torch.isfinite(slope).all()
        assert (slope[..., [0, 1, 3, 4]].abs().amax(1) > 0).all()  # the middle pair may be equal


def test_equal_colours_differ_by_a_thousandth_and_have_no_slope():
    a, b = colours(*GREYS, *STRONG), colours(*GREYS, *STRONG)
    got = ciede2000(a, b)
    np.testing.assert_allclose(got.detach(), EQUAL, rtol=1e-4)
    for slope in torch.autograd.grad(got.sum(), (a, b)):
        np.testing.assert_array_equal(slope, 0)
