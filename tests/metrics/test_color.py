"""Colour spaces against colour-science and Pillow, and round trips."""

import doctest

import colour
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage import data

from mcml.metrics import color

ASTRONAUT = data.astronaut()[20:212, 100:356]
BT601 = colour.WEIGHTS_YCBCR["ITU-R BT.601"]
pixels = arrays.arrays(np.uint8, st.tuples(st.integers(1, 17), st.integers(1, 17), st.just(3)))


def test_docstrings_tell_the_truth():
    failed, tried = doctest.testmod(color)
    assert tried > 0
    assert failed == 0


def test_ycbcr_agrees_with_colour_science_bt601_full_range():
    expected = (
        colour.RGB_to_YCbCr(ASTRONAUT / 255, K=BT601, in_int=False, out_int=False, out_legal=False) * 255
    )
    expected[..., 1:] += 128
    np.testing.assert_allclose(color.rgb_to_ycbcr(ASTRONAUT), expected, atol=1e-9)
    np.testing.assert_allclose(color.luma(ASTRONAUT), expected[..., 0], atol=1e-9)


def test_rgb_agrees_with_colour_science_bt601_full_range():
    ycbcr = np.random.default_rng(0).uniform(0, 255, (50, 3))
    centred = (ycbcr - (0, 128, 128)) / 255
    expected = colour.YCbCr_to_RGB(centred, K=BT601, in_int=False, in_legal=False, out_int=False) * 255
    np.testing.assert_allclose(color.ycbcr_to_rgb(ycbcr), expected, atol=1e-9)


def test_ycbcr_is_within_one_level_of_pillows_jpeg_tables():
    theirs = np.array(Image.fromarray(ASTRONAUT).convert("YCbCr"), int)
    assert np.abs(color.to_uint8(color.rgb_to_ycbcr(ASTRONAUT)) - theirs).max() <= 1


@settings(deadline=None)
@given(pixels)
def test_round_trip_through_ycbcr_is_exact(image):
    there = color.rgb_to_ycbcr(image)
    assert there.dtype == np.float64
    np.testing.assert_allclose(color.ycbcr_to_rgb(there), image, atol=1e-10)
    np.testing.assert_array_equal(color.to_uint8(color.ycbcr_to_rgb(there)), image)


def test_to_uint8_rounds_to_nearest_and_clips():
    got = color.to_uint8(np.array([-3.0, 0.4, 0.6, 254.6, 300.0]))
    assert got.dtype == np.uint8
    assert got.tolist() == [0, 0, 1, 255, 255]


def test_lab_agrees_with_colour_science():
    """Its sRGB matrix has four digits, scikit-image's six: up to 0.02 units apart."""
    expected = colour.XYZ_to_Lab(colour.sRGB_to_XYZ(ASTRONAUT / 255))
    np.testing.assert_allclose(color.rgb_to_lab(ASTRONAUT), expected, atol=0.02)
