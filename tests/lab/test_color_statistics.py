"""Shares of energy and of visible error, against images whose answer is known."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from mcml.base.errors import UsageError
from mcml.codec import interface as codec
from mcml.lab.color_statistics import (
    STREAMS,
    energy_shares,
    error_shares,
    stream_statistics,
    subsampling_cost,
    visible_error,
)
from mcml.metrics import distortion as metrics
from mcml.metrics.color import chroma_420

GREY = np.random.default_rng(0).integers(0, 256, (40, 50, 1), dtype=np.uint8).repeat(3, axis=2)
CONSTANTS = [(0, 0, 0), (77, 77, 77), (200, 30, 90), (13, 200, 77)]


def constant(colour, size=(37, 53)):
    return np.full((*size, 3), colour, np.uint8)


def test_energy_shares_sum_to_one_and_are_the_variances_of_jfif_streams(astronaut):
    table = energy_shares({"a": astronaut, "b": astronaut[:50, :70]})
    assert list(table.index) == ["a", "b"]
    np.testing.assert_allclose(table[list(STREAMS)].sum(axis=1), 1)
    red, green, blue = astronaut.astype(float).transpose(2, 0, 1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-T T.871
    variances = np.array([luma.var(), ((blue - luma) / 1.772).var(), ((red - luma) / 1.402).var()])
    np.testing.assert_allclose(table.loc["a", list(STREAMS)].astype(float), variances / variances.sum())


def test_grey_image_has_all_its_energy_in_luma():
    shares = energy_shares({"grey": GREY}).loc["grey"]
    assert shares["Y"] == pytest.approx(1)
    assert shares["Cb"] + shares["Cr"] == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("colour", CONSTANTS)
def test_constant_image_has_no_energy_to_share(colour):
    shares = energy_shares({"flat": constant(colour)}).loc["flat", list(STREAMS)].astype(float)
    np.testing.assert_array_equal(np.nan_to_num(shares), 0)


def test_stream_statistics_of_a_constant_and_of_a_grey_image():
    table = stream_statistics({"red": constant((255, 0, 0)), "grey": GREY}).set_index("image")
    red, grey = table.loc["red"], table.loc["grey"]
    assert (red.Y_mean, red.Cb_mean, red.Cr_mean) == pytest.approx((76.245, 84.97, 255.5), abs=0.01)
    assert (red.Y_std, red.Cb_std, red.Cr_std) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (red.L_mean, red.chroma_mean) == pytest.approx((53.24, 104.55), abs=0.02)  # CIE, sRGB red
    assert (grey.Cb_mean, grey.Cr_mean, grey.chroma_mean) == pytest.approx((128, 128, 0), abs=0.01)
    assert grey.Y_mean == pytest.approx(GREY.mean())
    assert grey.Y_std == pytest.approx(GREY[..., 0].std())


def test_pure_lightness_change_is_all_lightness():
    darker = (GREY * 0.8).astype(np.uint8)
    shares = error_shares(GREY, darker)
    assert shares.lightness == pytest.approx(1, abs=1e-6)
    assert shares.chroma == pytest.approx(0, abs=1e-6)


def test_pure_chroma_change_is_all_chroma():
    levels = np.arange(0, 256, 5)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3).astype(np.uint8)
    lab = rgb2lab(colours)
    close = np.flatnonzero(np.abs(lab[:, 0] - 60) < 0.02)
    green, red = close[lab[close, 1].argmin()], close[lab[close, 1].argmax()]
    assert lab[red, 1] - lab[green, 1] > 100
    shares = error_shares(constant(colours[red]), constant(colours[green]))
    assert shares.chroma == pytest.approx(1, abs=1e-6)
    assert shares.lightness == pytest.approx(0, abs=1e-6)


def test_error_shares_of_a_photograph_sum_to_one_and_match_the_definition(astronaut):
    jpeg = codec.get_codec("jpeg420")
    decoded = jpeg.decode(jpeg.encode(astronaut, 20))
    shares = error_shares(astronaut, decoded)
    assert sum(shares) == pytest.approx(1)
    squares = (rgb2lab(astronaut) - rgb2lab(decoded)) ** 2
    assert shares.lightness == pytest.approx(squares[..., 0].sum() / squares.sum())


@pytest.mark.parametrize("colour", CONSTANTS)
def test_equal_images_have_no_error_to_share(colour):
    assert error_shares(constant(colour), constant(colour)) == (0, 0)


def test_visible_error_is_that_of_the_file_at_the_rate(astronaut):
    (row,) = visible_error({"a": astronaut}, "webp", 0.8).to_dict("records")
    webp = codec.get_codec("webp")
    found = codec.encode_at_bpp(webp, astronaut, 0.8)
    decoded = webp.decode(found.data)
    assert (row["image"], row["codec"], row["bpp"]) == ("a", "webp", found.bpp)
    assert row["bpp"] == pytest.approx(0.8, rel=0.02)
    assert row["ciede2000"] == metrics.compare(astronaut, decoded).ciede2000
    assert row["chroma_of_visible_error"] == error_shares(astronaut, decoded).chroma
    assert 0 < row["chroma_of_signal_error"] < row["chroma_of_visible_error"] < 1
    with pytest.raises(UsageError, match="unknown codec"):
        visible_error({"a": astronaut}, "nope", 0.8)


def test_chroma_has_no_part_in_the_error_of_a_codec_on_grey_at_a_high_rate():
    smooth = np.linspace(20, 230, 64).astype(np.uint8)
    grey = np.broadcast_to(smooth[None, :, None], (48, 64, 3)).copy()
    (row,) = visible_error({"grey": grey}, "jpeg444", 1.0).to_dict("records")
    assert row["chroma_of_signal_error"] < 1e-9
    assert row["chroma_of_visible_error"] < 1e-5


def test_subsampling_costs_a_grey_image_nothing():
    (row,) = subsampling_cost({"grey": GREY}).to_dict("records")
    assert (row["psnr"], row["y_psnr"]) == (np.inf, np.inf)
    assert [row[name] for name in ("delta_e76", "ciede2000", "ciede2000_p99", "visible")] == [0, 0, 0, 0]


def test_subsampling_costs_nothing_where_chroma_is_constant_over_blocks(astronaut):
    blocks = astronaut[:24, :30].repeat(2, axis=0).repeat(2, axis=1)
    (row,) = subsampling_cost({"blocks": blocks}).to_dict("records")
    assert row["psnr"] == np.inf
    assert row["visible"] == 0


def test_subsampling_cost_of_a_photograph_is_the_comparison_with_its_420_version(astronaut):
    table = subsampling_cost({"a": astronaut, "odd": astronaut[:51, :33]})
    assert table.image.tolist() == ["a", "odd"]
    row, halved = table.iloc[0], chroma_420(astronaut)
    direct = metrics.compare(astronaut, halved)
    for name in ("psnr", "y_psnr", "delta_e76", "ciede2000"):
        assert row[name] == getattr(direct, name)
    distance = np.linalg.norm(rgb2lab(astronaut) - rgb2lab(halved), axis=-1)
    assert row.visible == pytest.approx((distance > 2.3).mean())
    assert row.y_psnr > row.psnr
    assert row.ciede2000 < row.ciede2000_p99


def test_subsampling_of_a_red_and_green_checkerboard_is_seen_everywhere():
    board = np.indices((16, 20)).sum(axis=0) % 2
    picture = np.where(board[..., None], (255, 0, 0), (0, 130, 0)).astype(np.uint8)
    (row,) = subsampling_cost({"board": picture}).to_dict("records")
    assert row["visible"] == 1
    assert row["delta_e76"] > 50
