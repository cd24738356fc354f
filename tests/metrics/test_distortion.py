"""Every column of `compare` against another implementation, and its edge cases."""

import io
import math

import colour
import numpy as np
import pytest
import skimage.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy import ndimage
from skimage import data
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure

from mcml.base.errors import DataError
from mcml.metrics import artifacts, distortion
from mcml.metrics.distortion import compare, mean_row

pytestmark = pytest.mark.filterwarnings("error")

ASTRONAUT = data.astronaut()
BT601 = {"K": colour.WEIGHTS_YCBCR["ITU-R BT.601"], "in_bits": 8, "out_bits": 8}


def jpeg(image, quality=15):
    """Decode of a 4:2:0 JPEG: blocks, ringing and colour bias for every metric to see."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.array(Image.open(buffer))


@pytest.fixture(scope="module")
def pair():
    """A 176 x 192 crop of the astronaut (five even scales) and its JPEG."""
    crop = np.ascontiguousarray(ASTRONAUT[28:204, 120:312])
    return crop, jpeg(crop)


@pytest.fixture(scope="module")
def small_pair():
    """A crop with odd sides, small enough for loops over pixels."""
    crop = np.ascontiguousarray(ASTRONAUT[60:105, 170:241])
    return crop, jpeg(crop)


@pytest.fixture(scope="module")
def row(pair):
    return compare(*pair)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(level, height=48, width=40):
    return np.full((height, width, 3), level, np.uint8)


def reference_luma(image):
    ycbcr = colour.RGB_to_YCbCr(image / 255, in_int=False, out_int=False, out_legal=False, **BT601)
    return ycbcr[..., 0] * 255


def reference_lab(image):
    """CIELAB by colour-science, whose sRGB matrix has four digits (scikit-image's has six)."""
    return colour.XYZ_to_Lab(colour.sRGB_to_XYZ(image / 255))


# ------------------------------------------------------------------- mse, psnr and similarity


def test_mse_and_psnr_agree_with_skimage_of_rgb_and_of_unrounded_luma(pair, row):
    assert row.mse == pytest.approx(skimage.metrics.mean_squared_error(*pair), rel=1e-12)
    assert row.psnr == pytest.approx(skimage.metrics.peak_signal_noise_ratio(*pair), rel=1e-12)
    y_psnr = skimage.metrics.peak_signal_noise_ratio(*map(reference_luma, pair), data_range=255)
    assert row.y_psnr == pytest.approx(y_psnr, rel=1e-9)


@pytest.mark.parametrize("shape", [(192, 256), (45, 71), (11, 11), (11, 30)])
def test_ssim_agrees_with_skimage(shape):
    a = np.ascontiguousarray(ASTRONAUT[60 : 60 + shape[0], 170 : 170 + shape[1]])
    b = jpeg(a)
    expected = skimage.metrics.structural_similarity(
        a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert compare(a, b).ssim == pytest.approx(expected, abs=1e-10)


def torch_ms_ssim(a, b):
    """MS-SSIM of each (H, W) plane from torchmetrics' terms; equal to ours where every scale is even.

    Its own multi-scale function averages the coarsest scale's SSIM over mirrored borders
    too; here, as in Wang et al. and for its contrast terms, only whole windows count.
    """
    a, b = (torch.from_numpy(np.asarray(x, np.float64)).unsqueeze(1) for x in (a, b))
    product = 1
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        last = {"return_full_image": True} if scale == 4 else {"return_contrast_sensitivity": True}
        _, term = structural_similarity_index_measure(
            a, b, sigma=1.5, kernel_size=11, data_range=255.0, reduction="none", **last
        )
        term = term[..., 5:-5, 5:-5].mean((1, 2, 3)) if scale == 4 else term
        product = product * term.clamp(min=0) ** weight
    return product.numpy()


@pytest.mark.parametrize("quality", [3, 90])
def test_ms_ssim_agrees_with_torchmetrics(pair, quality):
    a, b = pair[0], jpeg(pair[0], quality)
    expected = torch_ms_ssim(a.transpose(2, 0, 1), b.transpose(2, 0, 1)).mean()
    assert compare(a, b).ms_ssim == pytest.approx(expected, abs=1e-9)


def slow_ms_ssim(a, b):
    """MS-SSIM of planes under 161 pixels by whole 11 x 11 windows; odd sides repeat their last line."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 4.5)
    window /= window.sum()
    c1, c2 = 2.55**2, 7.65**2
    contrasts, similarity = [], []
    while len(contrasts) < 5 and min(a.shape) >= 11:
        x, y = sliding_window_view(a, (11, 11)), sliding_window_view(b, (11, 11))
        mean_x, mean_y = ((v * window).sum((-1, -2))[..., None, None] for v in (x, y))
        var_x, var_y = (((v - m) ** 2 * window).sum((-1, -2)) for v, m in ((x, mean_x), (y, mean_y)))
        cov = ((x - mean_x) * (y - mean_y) * window).sum((-1, -2))
        mean_x, mean_y = mean_x[..., 0, 0], mean_y[..., 0, 0]
        contrast = (2 * cov + c2) / (var_x + var_y + c2)
        contrasts.append(contrast.mean())
        similarity.append((contrast * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)).mean())
        a, b = (np.pad(v, [(0, side % 2) for side in v.shape], "edge") for v in (a, b))
        a, b = (v.reshape(len(v) // 2, 2, -1, 2).mean((1, 3)) for v in (a, b))
    assert len(contrasts) < 5  # five weights are used as published: they sum to 1.0001
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: len(contrasts)])
    terms = np.maximum(contrasts[:-1] + similarity[-1:], 0)
    return float(np.prod(terms ** (weights / weights.sum()))), len(contrasts)


@pytest.mark.parametrize("shape", [(45, 71), (11, 90), (21, 22), (100, 87)])
def test_ms_ssim_of_odd_and_small_sides_agrees_with_whole_windows(shape):
    a = np.ascontiguousarray(ASTRONAUT[60 : 60 + shape[0], 170 : 170 + shape[1]])
    b = jpeg(a)
    planes = [slow_ms_ssim(a[..., c].astype(float), b[..., c].astype(float)) for c in range(3)]
    got = compare(a, b)
    assert got.ms_ssim == pytest.approx(np.mean([p[0] for p in planes]), abs=1e-9)
    assert got.ms_ssim_scales == planes[0][1]


@pytest.mark.parametrize("side, scales", [(10, 0), (11, 1), (20, 1), (21, 2), (160, 4), (161, 5), (400, 5)])
def test_number_of_scales_by_the_shorter_side(side, scales):
    plane = np.zeros((side, max(side, 30)))
    assert len(distortion.ssim_scales(plane, plane)) == scales


def test_negative_contrast_is_clipped_to_zero():
    a = noise(192, 192)
    got = compare(a, 255 - a)
    assert got.ssim < 0
    assert got.ms_ssim == 0
    assert got.cmssim == 0


# ------------------------------------------------------------------------------------ colour


def test_cmssim_is_share_of_invisible_pixels_to_the_0_7_times_luma_ms_ssim(pair, row):
    a, b = pair
    difference = colour.difference.delta_E_CIE1976(reference_lab(a), reference_lab(b))
    structure = torch_ms_ssim(reference_luma(a)[None], reference_luma(b)[None])[0]
    expected = np.mean(difference <= 2.3) ** 0.7 * structure
    assert 0.1 < expected < 0.9
    assert row.cmssim == pytest.approx(expected, abs=1e-3)  # pixels at 2.3 may fall on either side


def test_colour_differences_agree_with_colour_science(pair, row):
    """Its sRGB matrix differs from scikit-image's in the fourth digit."""
    a, b = map(reference_lab, pair)
    assert row.delta_e76 == pytest.approx(np.mean(colour.difference.delta_E_CIE1976(a, b)), rel=1e-3)
    assert row.ciede2000 == pytest.approx(np.mean(colour.difference.delta_E_CIE2000(a, b)), rel=1e-3)


SHARMA_2005 = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425   50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412   50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000   50 -0.9009 -85.5211 50 0 -82.7485 1.0000   50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669   50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792   50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195   50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045   50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065   50 2.5 0 73 25 -18 27.1492   50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030   50 2.5 0 58 24 15 19.4535   50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000   50 2.5 0 50 1.8634 0.5757 1.0000   50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377   2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_ciede2000_gives_the_34_published_differences_of_sharma_2005():
    table = np.array(SHARMA_2005.split(), float).reshape(34, 7)
    got = distortion.ciede2000_map(table[:, :3], table[:, 3:6])
    np.testing.assert_allclose(got, table[:, 6], atol=5.1e-5)  # published with four decimals


def test_rgb_angle_agrees_with_a_loop_over_pixels(small_pair):
    a, b = (x.reshape(-1, 3).tolist() for x in small_pair)
    total = 0.0
    for p, q in zip(a, b, strict=True):
        if any(p) and any(q):
            cosine = sum(x * y for x, y in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))
            total += math.degrees(math.acos(min(cosine, 1)))
    assert compare(*small_pair).rgb_angle == pytest.approx(total / len(a), abs=1e-5)  # acos is coarser


def test_rgb_angle_of_known_pixels():
    a = np.array([(255, 0, 0), (10, 10, 0), (7, 7, 7), (0, 0, 0), (1, 2, 3)], np.uint8)
    b = np.array([(0, 255, 0), (0, 200, 0), (255, 255, 255), (9, 0, 0), (0, 0, 0)], np.uint8)
    np.testing.assert_allclose(distortion.rgb_angle_map(a, b), [90, 45, 0, 0, 0], atol=1e-12)


def test_constant_colours_give_exactly_their_difference_as_bias():
    a, b = flat((120, 130, 140)), flat((150, 120, 110))
    shift = (reference_lab(b) - reference_lab(a))[0, 0]
    got = compare(a, b)
    assert (got.bias_l, got.bias_a, got.bias_b) == pytest.approx(tuple(shift), abs=0.02)
    assert got.bias_block == pytest.approx(got.delta_e76, rel=1e-9)
    assert got.bias_block == pytest.approx(np.linalg.norm(shift), abs=0.02)


def test_worst_block_is_one_shifted_block_that_the_mean_dilutes():
    a = flat(128, 96, 128)
    b = a.copy()
    b[32:64, 96:128] = (150, 120, 110)
    shift = (reference_lab(b) - reference_lab(a))[40, 100]
    got = compare(a, b)
    assert got.bias_block == pytest.approx(np.linalg.norm(shift), abs=0.02)
    assert (got.bias_l, got.bias_a, got.bias_b) == pytest.approx(tuple(shift / 12), abs=0.002)


@pytest.mark.parametrize("shape", [(70, 45), (31, 64), (33, 100), (1, 1)])
def test_block_bias_agrees_with_a_loop_that_gives_leftovers_to_the_last_block(shape):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 20, (2, *shape, 3))
    rows, columns = (max(side // 32, 1) for side in shape)
    got = artifacts.block_bias(a, b)
    assert got.shape == (rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            bottom = shape[0] if i == rows - 1 else 32 * (i + 1)
            right = shape[1] if j == columns - 1 else 32 * (j + 1)
            part = np.s_[32 * i : bottom, 32 * j : right]
            np.testing.assert_allclose(got[i, j], b[part].mean((0, 1)) - a[part].mean((0, 1)), atol=1e-10)


def test_bias_of_a_photograph_agrees_with_colour_science(pair, row):
    shift = (reference_lab(pair[1]) - reference_lab(pair[0])).mean((0, 1))
    assert (row.bias_l, row.bias_a, row.bias_b) == pytest.approx(tuple(shift), abs=2e-3)


# ---------------------------------------------------------------------------------- blocking


def slow_psnr_b(reference, decode, block=8):
    """Yim & Bovik 2011, equations 3 to 10, one pixel pair at a time (decode measured)."""
    height, width = decode.shape
    at_edge, inside = [], []
    for i in range(height):
        for j in range(width - 1):
            (at_edge if (j + 1) % block == 0 else inside).append((decode[i, j] - decode[i, j + 1]) ** 2)
    for j in range(width):
        for i in range(height - 1):
            (at_edge if (i + 1) % block == 0 else inside).append((decode[i, j] - decode[i + 1, j]) ** 2)
    boundary, rest = sum(at_edge) / len(at_edge), sum(inside) / len(inside)
    eta = math.log2(block) / math.log2(min(height, width)) if boundary > rest else 0
    mse = sum((p - q) ** 2 for p, q in zip(reference.flat, decode.flat, strict=True)) / decode.size
    return 10 * math.log10(255**2 / (mse + eta * (boundary - rest)))


def test_psnr_b_agrees_with_a_loop_over_pixel_pairs(small_pair):
    expected, got = slow_psnr_b(*map(reference_luma, small_pair)), compare(*small_pair)
    assert expected < got.y_psnr - 0.1  # the JPEG does block
    assert got.psnr_b == pytest.approx(expected, abs=1e-8)


def test_blocking_effect_of_known_steps():
    """Steps of 4 only at columns 8, 16, 24 of 32 x 32: (0.5 * 16 - 0) * 3 / 5."""
    plane = np.repeat(np.array([10.0, 14.0, 10.0, 14.0]), 8)[None].repeat(32, axis=0)
    assert artifacts.blocking_effect(plane) == pytest.approx(0.5 * 16 * 3 / 5)
    assert artifacts.blocking_effect(np.roll(plane, 3, axis=1)) == 0
    assert artifacts.blocking_effect(np.add.outer(np.arange(40.0), np.arange(48.0))) == 0  # equal steps


def test_psnr_b_of_equal_images_counts_the_decodes_own_blocks():
    blocky = np.repeat(np.repeat(noise(6, 6), 8, axis=0), 8, axis=1)
    got = compare(blocky, blocky)
    assert got.psnr == math.inf
    assert math.isfinite(got.psnr_b)


# -------------------------------------------------------------------------- blur and ringing


def step_edge(height=40, width=64, low=50.0, high=200.0):
    plane = np.full((height, width), low)
    plane[:, width // 2 :] = high
    return plane


@pytest.mark.parametrize("support", [1, 3, 5, 9])
@pytest.mark.parametrize("turn", [np.asarray, np.transpose, np.fliplr], ids=["columns", "rows", "falling"])
def test_blur_of_a_step_averaged_over_k_pixels_is_k(support, turn):
    edge = turn(step_edge())
    soft = ndimage.uniform_filter(edge, support, mode="nearest")
    assert artifacts.edge_artifacts(edge, soft).blur == pytest.approx(support)
    assert artifacts.edge_artifacts(edge, edge).blur == 1


def test_blur_counts_each_edge_once_whatever_its_shape():
    """A sharp step (two equal gradients) and a soft edge of width 4; only the step is blurred, to 3."""
    soft_edge = np.cumsum([0.0] * 15 + [20, 40, 40, 20] + [0] * 13)
    row = np.concatenate([np.full(16, 100.0), np.full(16, 0.0), soft_edge])
    blurred = row.copy()
    blurred[13:19] = ndimage.uniform_filter1d(row, 3)[13:19]
    plane, decode = (np.repeat(x[None], 20, axis=0) for x in (row, blurred))
    assert artifacts.edge_artifacts(plane, decode).blur == pytest.approx((3 + 4) / (1 + 4))


def test_blur_follows_an_edge_16_pixels_to_each_side_at_most():
    ramp = step_edge(width=128)
    soft = ndimage.uniform_filter(ramp, (1, 61), mode="nearest")
    assert artifacts.edge_artifacts(ramp, soft).blur == 32


def slow_edges(a, b):
    """`edge_artifacts` from its docstring, one pixel at a time."""

    def at(x, i, j):
        return x[min(max(i, 0), x.shape[0] - 1), min(max(j, 0), x.shape[1] - 1)]

    def gradient(x, i, j):
        rows = ((i - 1, 1), (i, 2), (i + 1, 1))
        return sum(w * (at(x, r, j + 1) - at(x, r, j - 1)) for r, w in rows) / 8

    def width(x, i, j, sign):
        distance = 0
        for step in (1, -1):
            k = j
            while abs(k - j) < 16 and 0 <= k + step < x.shape[1]:
                if (x[i, k + step] - x[i, k]) * sign * step <= 0:
                    break
                k += step
            distance += abs(k - j)
        return distance

    widths_a, widths_b, strong = [], [], np.zeros(a.shape, bool)
    for x, y, mark in ((a, b, strong), (a.T, b.T, strong.T)):
        for i, j in np.ndindex(x.shape):
            slope = gradient(x, i, j)
            if abs(slope) <= 16:
                continue
            mark[i, j] = True
            left = abs(gradient(x, i, j - 1)) if j > 0 else -1
            right = abs(gradient(x, i, j + 1)) if j + 1 < x.shape[1] else -1
            if abs(slope) >= left and abs(slope) > right:
                widths_a.append(width(x, i, j, np.sign(slope)))
                widths_b.append(width(y, i, j, np.sign(slope)))

    edges, added = np.argwhere(strong), []
    for i, j in np.ndindex(a.shape):
        nearest = np.abs(edges - (i, j)).max(axis=1).min()
        if 4 <= nearest <= 8:
            near = [(r, c) for r in (i - 1, i, i + 1) for c in (j - 1, j, j + 1)]
            variance_a, variance_b = (np.var([at(x, r, c) for r, c in near]) for x in (a, b))
            if variance_a < 16:
                added.append(variance_b - variance_a)
    return sum(widths_b) / sum(widths_a), np.mean(added)


def test_blur_and_ringing_of_a_photograph_agree_with_loops(small_pair):
    got = compare(*small_pair)
    blur, ringing = slow_edges(*map(reference_luma, small_pair))
    assert got.blur == pytest.approx(blur, rel=1e-9)
    assert got.ringing == pytest.approx(ringing, rel=1e-6)


@pytest.mark.parametrize("before, after, ringing", [(0, 6, 36), (0, 0, 0), (3, 0, -9), (5, 0, math.nan)])
def test_ringing_of_a_checker_is_its_variance_where_the_reference_is_flat(before, after, ringing):
    """Plus and minus d in a 3 x 3 window (5 and 4 of them): variance d^2 * 80 / 81; flat is below 16."""
    rows, columns = np.indices(step_edge().shape)
    checker = np.where((rows + columns) % 2, 1, -1)
    got = artifacts.edge_artifacts(step_edge() + before * checker, step_edge() + after * checker)
    assert got.ringing == pytest.approx(ringing * 80 / 81, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("distance, columns", [(2, 0), (3, 1), (6, 3), (9, 1), (10, 0)])
def test_ringing_looks_only_4_to_8_pixels_from_the_edge(distance, columns):
    """A stripe of +9 gives three columns of windows a variance of 81 * 2 / 9; the band has 10 columns."""
    edge = step_edge()
    striped = edge.copy()
    striped[:, edge.shape[1] // 2 + distance] += 9
    assert artifacts.edge_artifacts(edge, striped).ringing == pytest.approx(18 * columns / 10, abs=1e-9)


# ------------------------------------------------------------------------------- edge cases


def test_identical_images_are_perfect_in_every_column(pair):
    got = compare(pair[0], pair[0].copy())
    assert (got.mse, got.psnr, got.y_psnr) == (0, math.inf, math.inf)
    assert (got.ssim, got.ms_ssim, got.cmssim) == pytest.approx((1, 1, 1), abs=1e-12)
    assert (got.delta_e76, got.ciede2000, got.bias_l, got.bias_a, got.bias_b, got.bias_block) == (0,) * 6
    assert got.rgb_angle == pytest.approx(0, abs=1e-9)
    assert (got.blur, got.ringing, got.ms_ssim_scales) == (1, 0, 5)


@pytest.mark.parametrize("level", [0, 1, 128, 255, (7, 200, 31)])
@pytest.mark.parametrize("shape", [(40, 48), (33, 47), (8, 8), (1, 1)])
def test_a_flat_image_equals_itself(level, shape):
    got = compare(flat(level, *shape), flat(level, *shape))
    assert (got.psnr, got.y_psnr, got.psnr_b) == (math.inf,) * 3
    assert (got.delta_e76, got.bias_block) == (0, 0)
    assert math.isnan(got.blur) and math.isnan(got.ringing)  # no major edge


def test_black_decoded_as_almost_black_is_no_error_of_hue():
    got = compare(flat(0), flat(1))
    assert (got.mse, got.rgb_angle) == (1, 0)
    assert got.psnr == pytest.approx(48.1308, abs=1e-4)
    assert 0 < got.delta_e76 < 1
    assert got.cmssim == pytest.approx(got.ms_ssim)  # every pixel within one just-noticeable difference


MAY_BE_NAN = {"blur", "ringing"}
WINDOWED = {"ssim", "ms_ssim", "cmssim"}


@pytest.mark.parametrize("height", [1, 2, 3, 7, 8, 9, 10, 11, 12, 17, 21])
def test_small_sizes_give_finite_numbers_or_the_documented_nan(height):
    for width in (1, 2, 3, 7, 8, 9, 10, 11, 12, 17, 21):
        a, b = noise(height, width, 1), noise(height, width, 2)
        row = vars(compare(a, b))
        undefined = {name for name, value in row.items() if not math.isfinite(value)}
        assert undefined - MAY_BE_NAN == (WINDOWED if min(height, width) < 11 else set())
        compare(np.zeros_like(a), np.ones_like(a))  # no exception, no warning


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_distances_are_symmetric_and_in_range(height, width, seed, spread):
    a = noise(height, width, seed)
    b = np.clip(a + np.random.default_rng(seed + 1).normal(0, spread, a.shape), 0, 255).astype(np.uint8)
    there, back = compare(a, b), compare(b, a)
    for column in ("mse", "delta_e76", "ciede2000", "rgb_angle", "bias_block"):
        assert getattr(there, column) == pytest.approx(getattr(back, column), rel=1e-9, abs=1e-12)
    assert there.bias_l == pytest.approx(-back.bias_l, abs=1e-12)
    assert 0 <= there.rgb_angle <= 90
    assert there.bias_block <= 101 * math.sqrt(7)
    assert there.psnr_b <= there.y_psnr
    assert there.delta_e76 >= math.hypot(there.bias_l, there.bias_a, there.bias_b) - 1e-9


def test_different_sizes_are_refused_by_width_x_height():
    with pytest.raises(DataError, match="30 x 20 and 31 x 20"):
        compare(noise(20, 30), noise(20, 31))


SHAPES = {"float": (8, 8, 3), "int16": (8, 8, 3), "grey": (8, 8), "rgba": (8, 8, 4), "empty": (0, 8, 3)}


@pytest.mark.parametrize("kind", [*SHAPES, "list"])
def test_what_is_not_8_bit_rgb_is_refused(kind):
    dtype = {"float": np.float64, "int16": np.int16}.get(kind, np.uint8)
    bad = np.zeros(SHAPES[kind], dtype) if kind in SHAPES else [[[0, 0, 0]]]
    with pytest.raises(DataError, match="decoded: expected"):
        compare(np.zeros((8, 8, 3), np.uint8), bad)
    with pytest.raises(DataError, match="reference: expected"):
        compare(bad, np.zeros((8, 8, 3), np.uint8))


# ------------------------------------------------------------------------------------- means


SOME = [
    {"image": "a", "mse": 0.0, "psnr": math.inf, "ssim": math.nan, "blur": math.nan, "scales": 5},
    {"image": "b", "mse": 4.0, "psnr": 30.0, "ssim": 0.5, "blur": math.nan, "scales": 5},
    {"image": "c", "mse": 2.0, "psnr": 40.0, "ssim": 0.75, "blur": math.nan, "scales": 2},
]
MEAN = {"mse": 2, "psnr": 35, "ssim": 0.625, "blur": math.nan, "scales": 4, "images": 3, "identical": 1}


@pytest.mark.parametrize(
    "rows, mean",
    [
        (SOME, MEAN),
        ([], {"images": 0, "identical": 0}),
        ([{"mse": 0.0, "psnr": math.inf}] * 2, {"mse": 0, "psnr": math.inf, "images": 2, "identical": 2}),
        ([{"x": np.int64(5)}, {"x": np.float32(2)}], {"x": 3.5, "images": 2, "identical": 0}),
    ],
    ids=["several", "nothing", "all identical", "numpy's numbers"],
)
def test_mean_row_leaves_out_infinite_and_undefined_values_and_counts_them(rows, mean):
    assert mean_row(rows) == pytest.approx(mean, nan_ok=True)


def test_columns_are_those_of_the_conventions_in_order():
    conventional = "mse, psnr, y_psnr, ssim, ms_ssim, cmssim, delta_e76, ciede2000, rgb_angle, psnr_b"
    assert ", ".join(distortion.COLUMNS[:10]) == conventional
