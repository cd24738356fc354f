"""Each figure shows exactly the pictures, bars and curves that it was given, with units."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Circle, Rectangle

from mcml.codec import interface as codec
from mcml.lab import figures


@pytest.fixture(autouse=True)
def style():
    """Draw without a screen, in the project's style, and leave nothing behind."""
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    with plt.rc_context():
        figures.use_style()
        yield
    plt.close("all")
    plt.switch_backend(backend)


def drawn(figure):
    """Render a figure, warnings being errors, and return its panels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return figure.axes


def pictures(count, size=(12, 16)):
    rng = np.random.default_rng(0)
    return {f"p{i}": rng.integers(0, 256, (*size, 3), dtype=np.uint8) for i in range(count)}


def shown(ax):
    """The one picture of a panel."""
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def framed(axes):
    """Panels that are switched on."""
    return [ax for ax in axes if ax.axison]


# ---------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("count, columns", [(1, 1), (3, 3), (5, 4)])
def test_gallery_shows_every_picture_under_its_name(count, columns):
    images = pictures(count)
    figure = figures.gallery(images, "Some pictures")
    axes = framed(drawn(figure))
    assert [ax.get_title() for ax in axes] == list(images)
    for ax, image in zip(axes, images.values(), strict=True):
        np.testing.assert_array_equal(shown(ax), image)
    assert figure.get_suptitle() == "Some pictures"
    assert axes[0].get_gridspec().ncols == columns


def test_gallery_takes_pictures_of_different_sizes():
    images = {"wide": pictures(1, (8, 24))["p0"], "high": pictures(1, (30, 10))["p0"]}
    axes = framed(drawn(figures.gallery(images, columns=1)))
    assert [shown(ax).shape for ax in axes] == [(8, 24, 3), (30, 10, 3)]


def test_zooms_show_the_cut_details_of_the_original_and_of_every_decode():
    images = pictures(3, (40, 50))
    reference, decodes = images.pop("p0"), images
    boxes = {"eye": (4, 10, 8), "corner": (32, 42, 8)}
    axes = drawn(figures.zooms(reference, decodes, boxes, "Details"))
    assert [ax.get_title() for ax in axes] == ["original", "p1", "p2", "", "", ""]
    assert [ax.get_ylabel() for ax in axes] == ["eye", "", "", "corner", "", ""]
    expected = [
        picture[top : top + side, left : left + side]
        for top, left, side in boxes.values()
        for picture in (reference, *decodes.values())
    ]
    for ax, detail in zip(axes, expected, strict=True):
        np.testing.assert_array_equal(shown(ax), detail)


def test_locate_frames_each_detail_where_it_lies():
    image = pictures(1, (40, 50))["p0"]
    boxes = {"eye": (4, 10, 8), "corner": (32, 42, 6)}
    (ax,) = drawn(figures.locate(image, boxes, "Places"))
    np.testing.assert_array_equal(shown(ax), image)
    frames = {(r.get_y(), r.get_x(), r.get_width(), r.get_height()) for r in ax.patches}
    assert frames == {(top, left, side, side) for top, left, side in boxes.values()}
    assert all(isinstance(r, Rectangle) and not r.get_fill() for r in ax.patches)
    assert [text.get_text() for text in ax.texts] == ["eye", "corner"]


def test_error_maps_share_one_scale_and_a_colour_bar_with_its_unit():
    rng = np.random.default_rng(0)
    maps = {f"m{i}": rng.uniform(0, 9, (10, 14)) for i in range(4)}
    *axes, bar = drawn(figures.error_maps(maps, "Errors", "CIEDE2000", vmax=6))
    panels = framed(axes)
    assert [ax.get_title() for ax in axes if ax.get_images()] == list(maps)
    for ax, values in zip([ax for ax in axes if ax.get_images()], maps.values(), strict=True):
        np.testing.assert_array_equal(shown(ax), values)
        assert ax.get_images()[0].get_clim() == (0, 6)
    assert not panels  # no frames or ticks around maps
    assert bar.get_ylabel() == "CIEDE2000"
    assert bar.get_ylim() == (0, 6)


# ------------------------------------------------------------------------------------- bars


def test_histograms_have_the_density_of_the_samples():
    rng = np.random.default_rng(0)
    streams = {"Y": rng.uniform(0, 255, (30, 20)), "Cb": rng.normal(128, 9, 500), "Cr": np.full(40, 130.0)}
    axes = drawn(figures.stream_histograms(streams, "Levels"))
    assert [ax.get_title() for ax in axes] == ["Y", "Cb", "Cr"]
    for ax, (stream, values) in zip(axes, streams.items(), strict=True):
        density, _ = np.histogram(values, 64, (0, 256), density=True)
        (outline,) = ax.patches
        assert outline.get_xy()[:, 1].max() == pytest.approx(density.max())
        heights = outline.get_xy()[1 : 2 * 64 + 1 : 2, 1]
        np.testing.assert_allclose(heights, density)
        assert ax.get_xlabel() == "level (0 to 255)"
        neutral = [line.get_xdata()[0] for line in ax.lines]
        assert neutral == ([] if stream == "Y" else [128])
    assert axes[0].get_ylabel() == "share of pixels"


def test_stacked_shares_are_as_long_as_the_shares_and_begin_where_the_last_ends():
    table = pd.DataFrame(
        {"Y": [0.7, 0.5, 0.98], "Cb": [0.2, 0.1, 0.01], "Cr": [0.1, 0.4, 0.01]}, index=["a", "b", "c"]
    )
    figure = figures.stacked_shares(table, ["Y", "Cb", "Cr"], "Energy", "share of variance")
    (ax,) = drawn(figure)
    starts = np.zeros(3)
    for part, container in zip(table.columns, ax.containers, strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in container], 100 * table[part])
        np.testing.assert_allclose([bar.get_x() for bar in container], starts, atol=1e-12)
        starts += 100 * table[part].to_numpy()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c"]
    assert ax.yaxis_inverted()  # the first row on top
    assert ax.get_xlabel() == "share of variance (%)"
    assert ax.get_xlim() == (0, 100)
    written = {(round(t.get_position()[0]), t.get_position()[1]): t.get_text() for t in ax.texts}
    assert written[(35, 0)] == "70"
    assert written[(80, 1)] == "40"
    assert len(written) == 7  # shares under 6 % carry no number
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Y", "Cb", "Cr"]


def test_grouped_bars_are_as_high_as_the_values():
    table = pd.DataFrame(
        {"image": ["a", "b", "a", "b"], "codec": ["x", "x", "y", "y"], "psnr": [30.0, 31, 32.5, 28]}
    )
    (ax,) = drawn(figures.grouped_bars(table, "image", "psnr", "codec", "PSNR"))
    assert [[bar.get_height() for bar in group] for group in ax.containers] == [[30, 31], [32.5, 28]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]
    assert ax.get_ylabel() == "RGB PSNR (dB)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["x", "y"]


def test_bars_without_groups_have_one_colour_and_an_unknown_column_its_own_name():
    table = pd.DataFrame({"image": ["a", "b"], "seconds_s": [1.5, 2.5]})
    (ax,) = drawn(figures.grouped_bars(table, "image", "seconds_s", None, "Time"))
    assert [bar.get_height() for bar in ax.patches] == [1.5, 2.5]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 1
    assert ax.get_ylabel() == "seconds_s"
    assert ax.get_legend() is None


# ----------------------------------------------------------------------- points and curves


def test_bias_scatter_show_every_shift_on_one_scale_with_the_just_noticeable_circle():
    rng = np.random.default_rng(0)
    shifts = {"webp": rng.normal(0, 3, (40, 2)), "jpeg420": rng.normal(2, 6, (30, 2))}
    axes = drawn(figures.bias_scatter(shifts, "Shifts"))
    assert [ax.get_title() for ax in axes] == list(shifts)
    for ax, values in zip(axes, shifts.values(), strict=True):
        (points,) = ax.collections
        np.testing.assert_array_equal(points.get_offsets(), values)
        (circle,) = ax.patches
        assert isinstance(circle, Circle)
        assert (circle.center, circle.radius) == ((0, 0), 2.3)
        assert ax.get_xlim() == ax.get_ylim() == axes[0].get_xlim()
        assert ax.get_xlim()[1] > max(np.abs(s).max() for s in shifts.values())
        assert ax.get_aspect() == 1
        assert ax.get_xlabel() == "shift of a*"
    assert axes[0].get_ylabel() == "shift of b*"


@pytest.mark.parametrize("size", [0, 0.5])
def test_small_shifts_are_seen_inside_the_just_noticeable_circle(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.bias_scatter({"webp": np.full((5, 2), size)}, "Shifts")
    (ax,) = drawn(figure)
    assert ax.get_xlim()[1] >= 2.3


def curves():
    bpp = np.array([0.5, 0.1, 0.2])
    tables = [
        pd.DataFrame({"codec": name, "bpp": bpp * f, "psnr": 30 + bpp * f, "ciede2000": 5 - bpp})
        for name, f in (("webp", 1), ("avif444", 2))
    ]
    return pd.concat(tables, ignore_index=True)


def test_rate_curves_draw_each_codec_by_rising_rate_with_units_on_both_axes():
    means = curves()
    axes = drawn(figures.rate_curves(means, ["psnr", "ciede2000"], "Rate-distortion"))
    labels = ["RGB PSNR (dB)", "mean CIEDE2000 colour difference"]
    for ax, column, label in zip(axes, ["psnr", "ciede2000"], labels, strict=True):
        assert [line.get_label() for line in ax.lines] == ["webp", "avif444"]
        for line in ax.lines:
            expected = means[means.codec == line.get_label()].sort_values("bpp")
            np.testing.assert_array_equal(line.get_xdata(), expected.bpp)
            np.testing.assert_array_equal(line.get_ydata(), expected[column])
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("rate (bits per pixel of the file)", label)
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["webp", "avif444"]


def test_every_codec_has_a_look_of_its_own_that_other_curves_do_not_change():
    looks = [figures.codec_style(name) for name in codec.names()]
    assert len({look["color"] for look in looks}) == min(len(looks), 10)  # as many as there are
    assert len({look["marker"] for look in looks}) == min(len(looks), 8)
    alone = figures.rate_curves(curves()[lambda t: t.codec == "avif444"], ["psnr"], "")
    both = figures.rate_curves(curves(), ["psnr"], "")
    first, second = alone.axes[0].lines[0], both.axes[0].lines[1]
    assert (first.get_color(), first.get_marker()) == (second.get_color(), second.get_marker())


def test_unknown_codec_looks_like_none_of_the_known():
    assert figures.codec_style("mine") not in [figures.codec_style(name) for name in codec.names()]


def test_every_distortion_metric_has_a_label():
    wanted = {"psnr", "y_psnr", "ssim", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle", "psnr_b"}
    assert wanted | {"bpp"} == set(figures.LABELS)
    assert len(set(figures.LABELS.values())) == len(figures.LABELS)


def test_same_data_give_the_same_picture():
    first, second = (figures.rate_curves(curves(), ["psnr"], "Twice") for _ in range(2))
    for figure in (first, second):
        drawn(figure)
    np.testing.assert_array_equal(first.canvas.buffer_rgba(), second.canvas.buffer_rgba())


def test_style_shows_pixels_as_they_are():
    assert plt.rcParams["image.interpolation"] == "nearest"
