"""CIELAB, CIE76 and CIEDE2000 of tensors against numpy's, colour-science and finite differences."""

import io

import colour
import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd import gradcheck

from mcml.base.errors import UsageError
from mcml.metrics import color
from mcml.metrics import distortion as metrics
from mcml.metrics.color_difference import cie76, ciede2000, ciede2000_lab, lab

torch.set_num_threads(1)

BOTH = pytest.mark.parametrize("difference", [cie76, ciede2000])
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 5e-6)])
EQUAL = 0.001  # what equal colours differ by
SHARMA_2005 = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425      50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412      50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000     50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669                        50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792   50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195   50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045   50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461   50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492                   50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030                   50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000             50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000             50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def tensor(image, dtype=torch.float64):
    """(H, W, 3) uint8 to (1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).to(dtype).permute(2, 0, 1)[None] / 255


def lattice():
    """18 levels of each of R, G and B, black and white among them."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(18, -1, 3)


def colours(*rgb):
    """Colours in 0..1 as a (1, 3, 1, n) tensor that wants a gradient."""
    return torch.tensor(rgb, dtype=torch.float32).T[None, :, None].requires_grad_()


def random_lab(count, seed=0):
    return np.random.default_rng(seed).uniform([0, -128, -128], [100, 128, 128], (count, 3))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_lab_is_that_of_the_metrics(dtype, tolerance, astronaut):
    for image in (lattice(), astronaut):
        got = lab(tensor(image, dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got[0].permute(1, 2, 0), color.rgb_to_lab(image), atol=tolerance)


def test_lab_goes_on_beyond_the_ends_with_finite_slopes_that_point_back():
    value = torch.linspace(-1, 2, 3001, dtype=torch.float64).requires_grad_()
    lightness = lab(value.expand(1, 3, 1, -1))[0, 0, 0]
    slope = torch.autograd.grad(lightness.sum(), value)[0]
    assert torch.isfinite(slope).all() and slope.min() > 1
    assert lightness.detach().diff().min() > 0
    assert lightness.detach().diff().max() < 0.001 * 300  # no jump where one piece takes over from another


@pytest.mark.parametrize("end", [0, 0.04045, 1, -5, 50])
def test_lab_has_a_finite_slope_at_the_ends_of_its_pieces(end):
    rgb = colours((end, end, end), (end, 0.5, 0), (1, end, 0))
    weights = torch.tensor([1, 0.3, -0.2]).reshape(1, 3, 1, 1)
    slope = torch.autograd.grad((weights * lab(rgb)).sum(), rgb)[0]
    assert torch.isfinite(slope).all() and (slope.abs().amax(1) > 0).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 2e-5)])
def test_differences_are_those_of_the_metrics(dtype, tolerance, astronaut):
    buffer = io.BytesIO()
    Image.fromarray(astronaut).save(buffer, "JPEG", quality=15)
    decoded = np.array(Image.open(buffer))
    row, a, b = metrics.compare(astronaut, decoded), tensor(astronaut, dtype), tensor(decoded, dtype)
    assert cie76(a, b).dtype == ciede2000(a, b).dtype == dtype
    assert cie76(a, b).shape == ciede2000(a, b).shape == (1, *astronaut.shape[:2])
    assert float(cie76(a, b).mean()) == pytest.approx(row.delta_e76, abs=tolerance)
    assert float(ciede2000(a, b).mean()) == pytest.approx(row.ciede2000, abs=tolerance)


def test_cie76_agrees_with_colour_science_pixel_by_pixel():
    """Its sRGB matrix has four digits: up to 0.02 units apart in each of L*, a* and b*."""
    image = lattice()
    other = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    expected = colour.difference.delta_E_CIE1976(
        *(colour.XYZ_to_Lab(colour.sRGB_to_XYZ(x / 255)) for x in (image, other))
    )
    np.testing.assert_allclose(cie76(tensor(image), tensor(other))[0], expected, atol=0.05)


@pytest.mark.parametrize("swapped", [False, True])
def test_ciede2000_of_the_34_pairs_of_sharma_2005(swapped):
    table = np.array(SHARMA_2005.split(), float).reshape(34, 7)
    pair = (table[:, 3:6], table[:, :3]) if swapped else (table[:, :3], table[:, 3:6])
    got = ciede2000_lab(*map(torch.from_numpy, pair)).numpy()
    np.testing.assert_allclose(got, table[:, 6], atol=6e-5)  # four decimals, and 1e-5 for a grey
    np.testing.assert_allclose(got, colour.difference.delta_E_CIE2000(*pair), atol=1e-5)


@PRECISIONS
@pytest.mark.parametrize("spread", [0.3, 5, None])
def test_ciede2000_agrees_with_colour_science_on_random_colours(dtype, tolerance, spread):
    a = random_lab(20_000)
    noise = np.random.default_rng(1).normal(size=a.shape)
    b = random_lab(20_000, seed=2) if spread is None else a + spread * noise
    got = ciede2000_lab(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    assert got.dtype == dtype
    expected = np.hypot(colour.difference.delta_E_CIE2000(a, b), EQUAL)
    np.testing.assert_allclose(got, expected, atol=tolerance)


@PRECISIONS
def test_ciede2000_of_an_exact_grey_has_no_hue_difference(dtype, tolerance):
    grey, other = random_lab(5000) * (1, 0, 0), random_lab(5000, seed=1)
    for a, b in ((grey, other), (other, grey), (grey, grey[::-1])):
        expected = np.hypot(colour.difference.delta_E_CIE2000(a, b), EQUAL)
        got = ciede2000_lab(torch.tensor(a.copy(), dtype=dtype), torch.tensor(b.copy(), dtype=dtype))
        np.testing.assert_allclose(got, expected, atol=max(tolerance, 1.1e-5))  # a grey's chroma is 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_decide_which_way_round_opposite_hues_lie(dtype):
    """Opposite hues differ by 180 degrees, which is not more than 180: as a little less, not as more."""
    hue = torch.linspace(0.01, torch.pi - 0.01, 20_000, dtype=dtype)  # the second then lies in pi..2 pi
    lightness, a, b = torch.full_like(hue, 50), 30 * hue.cos(), 30 * hue.sin()
    first, nudged = torch.stack((lightness, a, b), 1), hue + torch.pi - 1e-4
    exact = ciede2000_lab(first, torch.stack((lightness, -a, -b), 1))
    less = ciede2000_lab(first, torch.stack((lightness, 30 * nudged.cos(), 30 * nudged.sin()), 1))
    np.testing.assert_allclose(exact, less, atol=0.02)


GREYS = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.04045, 0.04045, 0.04045), (-0.1, -0.1, -0.1)]
STRONG = [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.2, 0.9, 0.1), (0.0, 1.0, 1.0), (1.3, -0.2, 0.5)]


@BOTH
@pytest.mark.parametrize(
    "a, b", [(GREYS, GREYS[::-1]), (GREYS, STRONG), (STRONG, GREYS), (STRONG, STRONG[::-1])]
)
def test_gradients_are_finite_at_black_at_grey_and_outside(difference, a, b):
    a, b = colours(*a), colours(*b)
    for slope in torch.autograd.grad(difference(a, b).sum(), (a, b)):
        assert torch.isfinite(slope).all()
        assert (slope[..., [0, 1, 3, 4]].abs().amax(1) > 0).all()  # the middle pair may be equal


@BOTH
def test_equal_colours_differ_by_a_thousandth_and_have_no_slope(difference):
    a, b = colours(*GREYS, *STRONG), colours(*GREYS, *STRONG)
    got = difference(a, b)
    np.testing.assert_allclose(got.detach(), EQUAL, rtol=1e-4)
    for slope in torch.autograd.grad(got.sum(), (a, b)):
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ciede2000_has_bounded_slopes_on_the_way_to_grey(dtype):
    """Exactly grey in CIELAB, which no sRGB colour is in six digits, and ever less colour."""
    chroma = torch.cat((torch.zeros(100), torch.logspace(-30, 1, 20_000))).to(dtype)
    torch.manual_seed(0)
    hue = torch.rand(len(chroma), dtype=dtype) * 2 * torch.pi
    dull = torch.stack((torch.full_like(hue, 50), chroma * hue.cos(), chroma * hue.sin()), 1).requires_grad_()
    strong = torch.tensor(random_lab(len(chroma)), dtype=dtype).requires_grad_()
    slopes = torch.autograd.grad(ciede2000_lab(dull, strong).sum(), (dull, strong))
    assert torch.isfinite(slopes[0]).all() and slopes[0].abs().max() < 2000
    assert torch.isfinite(slopes[1]).all() and slopes[1].abs().max() < 5
    torch.set_flush_denormal(True)  # as a GPU may: chroma^7 is then 0 well before chroma is
    try:
        slope = torch.autograd.grad(ciede2000_lab(dull, 0.5 * dull).sum(), dull)[0]
    finally:
        torch.set_flush_denormal(False)
    assert torch.isfinite(slope).all()


@BOTH
def test_slopes_agree_with_finite_differences(difference):
    torch.manual_seed(0)
    a, b = (torch.rand(2, 3, 2, 2, dtype=torch.float64) * 0.9 + 0.07 for _ in range(2))
    dark = torch.rand(1, 3, 2, 2, dtype=torch.float64) * 0.03 + 0.003
    for pair in ((a, b), (a, a + 0.01), (dark, a[:1]), (dark, dark.flip(1))):
        assert gradcheck(
            difference, [x.clone().requires_grad_() for x in pair], eps=1e-7, rtol=1e-3, atol=1e-3
        )


@BOTH
def test_half_precision_loses_nothing_but_the_inputs_rounding(difference, astronaut):
    a, b = tensor(astronaut, torch.float32), tensor(astronaut[::-1], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = difference(a, b)
    torch.testing.assert_close(under_autocast, difference(a, b), rtol=0, atol=0)
    got = difference(a.bfloat16(), b.bfloat16())
    torch.testing.assert_close(got, difference(a.bfloat16().float(), b.bfloat16().float()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 4), r"\(1, 3, 2, 2\) and \(1, 3, 2, 4\)"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), r"\(1, 1, 2, 2\).*\(B, 3, H, W\)"),
        (torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), r"\(4, 3, 2\).*\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8),) * 2 + ("torch.uint8.*floating",),
    ],
)
@BOTH
def test_what_is_not_a_pair_of_rgb_tensors_is_named(difference, a, b, message):
    with pytest.raises(UsageError, match=message):
        difference(a, b)
