"""Each figure shows exactly the pictures, points and curves that it was given, with units."""

import base64
import io
import warnings

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Circle
from nbclient import NotebookClient
from PIL import Image

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
    assert len({round(ax.get_position().x0, 3) for ax in axes}) == columns


def test_gallery_takes_pictures_of_different_sizes():
    images = {"wide": pictures(1, (8, 24))["p0"], "high": pictures(1, (30, 10))["p0"]}
    axes = framed(drawn(figures.gallery(images, columns=1)))
    assert [shown(ax).shape for ax in axes] == [(8, 24, 3), (30, 10, 3)]


def stored(figure):
    """The pixels of a figure as a PNG holds them, (H, W, 3), and each panel's box of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # saved, and shown
            figure.savefig(buffer := io.BytesIO(), format="png")
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    boxes = [ax.get_window_extent().extents.round().astype(int) for ax in figure.axes]
    return pixels, [pixels[len(pixels) - y1 : len(pixels) - y0, x0:x1] for x0, y0, x1, y1 in boxes]


@pytest.mark.parametrize("dpi", [80, 97])
@pytest.mark.parametrize("size, scale", [((41, 67), 3), ((83, 101), 2), ((160, 203), 1)])
def test_a_pixel_of_a_picture_is_a_whole_number_of_stored_pixels(dpi, size, scale):
    plt.rcParams["figure.dpi"] = plt.rcParams["savefig.dpi"] = dpi
    images = pictures(4, size)
    maps = {name: image[..., 0].astype(float) for name, image in images.items()}
    boxes = {"place": (0, 0, 31), "wide": (4, 8, 37)}
    grey = plt.get_cmap("magma")
    whole = stored(figures.gallery(images, "Title", columns=3, width=650 / dpi))[1]
    of_maps = stored(figures.error_maps(maps, "Title", "unit", 255, columns=3, width=734 / dpi))[1]
    for seen, of_map, image in zip(whole, of_maps, images.values(), strict=False):
        expected = image.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(of_map, grey(expected[..., 0] / 255, bytes=True)[..., :3])
    first, second, *_ = stored(figures.zooms(images["p0"], {"p1": images["p1"]}, boxes, width=240 / dpi))[1]
    np.testing.assert_array_equal(first, images["p0"][:31, :31].repeat(3, axis=0).repeat(3, axis=1))
    np.testing.assert_array_equal(second, images["p1"][:31, :31].repeat(3, axis=0).repeat(3, axis=1))


def test_what_does_not_fit_is_reduced_without_aliases():
    fine = (np.indices((400, 800)).sum(axis=0) % 2 * 255).astype(np.uint8)
    _, (seen,) = stored(figures.gallery({"fine": fine[..., None].repeat(3, axis=2)}, width=5))
    assert seen.shape == (192, 384, 3) and (abs(seen[2:-2, 2:-2].astype(int) - 127.5) < 3).all()
    (ax, _) = drawn(figures.error_maps({"fine": fine}, "t", "unit", 255, width=5))
    np.testing.assert_allclose(shown(ax), 127.5, atol=15)


def test_a_notebook_stores_pictures_pixel_by_pixel_with_their_alternative_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path))
    source = """
import numpy as np
from matplotlib import pyplot as plt
from mcml import lab
from mcml.lab import figures
figures.use_style()
image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
figure = figures.gallery({"noise": image}, "Title", width=2)
lab.Output("02_demo", "quick", {}).figure("noise", figure, "Figure 2.1: noise.", [{"a": 1}])
plt.show()"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3").execute()
    output = notebook.cells[0].outputs[-1]
    assert output.metadata["image/png"]["alt"] == "noise."
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB"))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    below, beside = (pixels.shape[i] - image.shape[i] for i in (0, 1))
    np.testing.assert_array_equal(pixels[below - 8 : -8, beside // 2 : beside // 2 + 120], image)


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


# ------------------------------------------------------------------------- points and curves


def test_bias_scatter_show_every_shift_on_one_scale_with_the_just_noticeable_circle():
    rng = np.random.default_rng(0)
    shifts = {"webp": rng.normal(0, 3, (40, 2)), "jpeg420": rng.normal(2, 6, (30, 2))}
    axes = drawn(figures.bias_scatter(shifts, "Shifts"))
    assert [ax.get_title() for ax in axes] == list(shifts)
    for ax, values in zip(axes, shifts.values(), strict=True):
        (points,), (_, mean) = ax.collections, ax.lines
        np.testing.assert_array_equal(points.get_offsets(), values)
        np.testing.assert_allclose(mean.get_xydata()[0], values.mean(axis=0))
        (circle,) = ax.patches
        assert isinstance(circle, Circle)
        assert (circle.center, circle.radius) == ((0, 0), 2.3)
        assert ax.get_xlim() == ax.get_ylim() == axes[0].get_xlim()
        assert ax.get_xlim()[1] > max(np.abs(s).max() for s in shifts.values())
        assert ax.get_aspect() == 1
        assert ax.get_xlabel() == "shift of a*, green to red"
    assert axes[0].get_ylabel() == "shift of b*, blue to yellow"


def test_bias_scatter_has_rows_of_three():
    shifts = {f"c{i}": np.full((2, 2), i) for i in range(4)}
    axes = framed(drawn(figures.bias_scatter(shifts, "Shifts")))
    assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, False, True]


@pytest.mark.parametrize("size", [0, 0.5])
def test_small_shifts_are_seen_inside_the_just_noticeable_circle(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.bias_scatter({"webp": np.full((5, 2), size)}, "Shifts")
    (ax,) = drawn(figure)
    assert ax.get_xlim()[1] >= 2.3


def curves(*names):
    return pd.DataFrame(
        [
            {"codec": n, "bpp": b, "psnr": 20 + 10 * b + i, "ms_ssim": 0.9 + b / 10, "ciede2000": 5 - b}
            for i, n in enumerate(names)
            for b in (0.5, 0.1, 0.2)
        ]
    )


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_rate_distortion_draws_each_metric_by_rising_rate_and_says_what_is_better():
    means = curves("fusion", "independent", "jpeg420")
    figure = figures.rate_distortion(means, ["psnr", "ciede2000"], "Curves", dashed=["jpeg420"])
    left, right = drawn(figure)
    assert left.get_title() == "RGB PSNR (dB), higher is better"
    assert right.get_title() == "mean CIEDE2000, lower is better"
    assert left.get_xlabel() == "bits per pixel of the file"
    assert list(lines(left)) == ["fusion", "independent", "jpeg420"]
    np.testing.assert_allclose(lines(left)["independent"].get_xydata(), [[0.1, 22], [0.2, 23], [0.5, 26]])
    np.testing.assert_allclose(lines(right)["jpeg420"].get_xydata(), [[0.1, 4.9], [0.2, 4.8], [0.5, 4.5]])
    assert [line.get_linestyle() for line in left.lines] == ["-", "-", "--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines(left))
    assert lines(left)["independent"].get_linewidth() > lines(left)["fusion"].get_linewidth()
    assert lines(left)["independent"].get_zorder() < lines(left)["fusion"].get_zorder()  # both seen if equal


def test_rate_distortion_takes_other_rates_and_systems_in_rows_of_panels():
    table = curves("a", "b").rename(columns={"codec": "system", "bpp": "estimated_bpp"})
    columns = ["psnr", "ms_ssim", "ciede2000"]
    axes = drawn(figures.rate_distortion(table, columns, "T", rate="estimated_bpp", by="system", across=2))
    assert [bool(ax.lines) for ax in axes] == [True, True, True, False]
    assert not axes[-1].axison
    assert axes[0].get_xlabel() == "estimated bits per pixel"
    assert set(lines(axes[2])) == {"a", "b"}


def test_gains_are_what_a_system_has_more_at_equal_rates_and_up_is_better():
    table = curves("fusion", "independent", "webp").query("codec != 'webp' or bpp > 0.1")
    figure, ((left, right),) = figures.panels(1, 2, 6, 3)
    figures.draw_gains(left, table, "psnr", "fusion")
    figures.draw_gains(right, table.assign(ciede2000=table.ciede2000 - table.psnr), "ciede2000", "fusion")
    drawn(figure)
    for ax in (left, right):
        assert ax.get_title() == "gain over 'fusion'"
        assert ax.get_ylabel() == ("gain (dB), up is better" if ax is left else "gain, up is better")
        (first, second, nothing) = (line.get_xydata() for line in ax.lines)
        np.testing.assert_allclose(first, [[0.1, 1], [0.2, 1], [0.5, 1]])
        np.testing.assert_allclose(second, [[0.2, 2], [0.5, 2]])
        assert (nothing[:, 1] == 0).all()


# ------------------------------------------------------------------------------------ looks


def hue_and_marker(line):
    return line.get_color(), line.get_marker()


def test_every_codec_has_a_look_of_its_own():
    looks = [figures.look(name) for name in codec.names()]
    assert set(codec.names()) <= set(figures.LOOKS)
    assert len({look["marker"] for look in looks}) == len({look["color"] for look in looks}) == len(looks)


SYSTEMS = (  # names that notebooks draw into one figure
    ["start, untrained", "uniform map", "adaptive map", "uniform, longer", "random start", "released luma"],
    ["A threshold code", "B scalar latents", "C + hyperprior", "D + four steps", "E + learned encoder"],
    ["released, binary (fusion)", "released, scalar (scalar_fusion)", "jpeg", "jpeg2000", "avif"],
    ["all maps cost", "all, gamma 4", "only luma's map costs", "scalar latents", "released fusion"],
    ["one dial", "colour's dial -0.1", "colour's dial +0.1"],
    ["luma nowhere", "luma in the decoder", "luma in the prior", "luma in both"],
    ["rgb", "rgb, literal loss", "streams", "streams, literal loss"],
)


def test_no_two_systems_share_a_look():
    looks = {name: figures.look(name) for name in figures.LOOKS}
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)
    for names in SYSTEMS:
        assert all(figures.SAME.get(name, name) in looks for name in names)
        assert len({figures.look(name)["color"] for name in names}) == len(names)
    assert figures.look("released fusion") == figures.look("fusion")
    for variant in ("small fusion", "fusion 36", "small luma nowhere"):
        assert figures.look(variant)["markerfacecolor"] == "white"


def test_a_system_keeps_its_look_whatever_else_is_drawn_or_released(monkeypatch):
    names = ["fusion", "avif444", "small rgb", "mine"]
    alone = {
        name: hue_and_marker(drawn(figures.rate_distortion(curves(name), ["psnr"], ""))[0].lines[0])
        for name in names
    }
    monkeypatch.setattr(codec, "names", lambda: ["newest", *alone])  # as if one more model were released
    (ax,) = drawn(figures.rate_distortion(curves("newest", *reversed(names)), ["psnr"], ""))
    assert {name: hue_and_marker(line) for name, line in lines(ax).items() if name in names} == alone


def test_a_variant_has_the_hue_of_its_system_and_an_unknown_name_none_of_theirs():
    assert figures.look("fusion 36")["color"] == figures.look("small fusion")["color"]
    assert figures.look("fusion")["color"] == figures.look("fusion 36")["color"]
    assert figures.look("mine")["color"] not in [look["color"] for look in figures.LOOKS.values()]


def test_every_distortion_metric_has_a_label_of_its_own():
    wanted = {"psnr", "y_psnr", "ssim", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle", "psnr_b"}
    assert len({figures.LABELS[column] for column in wanted | {"bpp", "estimated_bpp"}}) == len(wanted) + 2


def test_same_data_give_the_same_picture():
    first, second = (figures.rate_distortion(curves("webp"), ["psnr"], "Twice") for _ in range(2))
    for figure in (first, second):
        drawn(figure)
    np.testing.assert_array_equal(first.canvas.buffer_rgba(), second.canvas.buffer_rgba())


def test_style_shows_pixels_as_they_are():
    assert plt.rcParams["image.interpolation"] == "nearest"


def test_learning_curves_skip_what_a_run_lacks_and_smooth():
    steps = np.arange(0, 50, 10.0)
    logs = {
        "Y": pd.DataFrame({"step": steps, "loss": [5.0, 4, 3, 2, 1], "psnr": 20.0}),
        "other": pd.DataFrame({"step": steps, "loss": 2.0}),
    }
    loss, psnr = drawn(figures.learning_curves(logs, {"loss": "loss", "psnr": "dB"}, "t", smooth=3))
    bold = {line.get_label(): line.get_ydata() for line in loss.lines if line.get_label() in logs}
    np.testing.assert_allclose(bold["Y"], [4.5, 4, 3, 2, 1.5])
    assert list(bold) == ["Y", "other"] and len(psnr.lines) == 2
    assert loss.lines[0].get_color() == figures.STREAM_HUES["Y"]


def test_intervals_show_each_value_between_its_ends_beside_its_group():
    rows = [
        {"question": q, "target_bpp": rate, "start": start, "saved": v, "saved_low": v - 1,
         "saved_high": v + 2}
        for q, base in (("decoder", 0), ("prior", 10)) for rate in (0.15, 0.3)
        for start, v in (("a", base - 3.0), ("b", base - 5 * rate))
    ]  # fmt: skip
    options = {"panel": "question", "x": "target_bpp", "hue": "start", "lines": {"CfL": -4.9}}
    first, second = drawn(figures.intervals(pd.DataFrame(rows), "saved", "t", label="percent", **options))
    assert [first.get_title(), second.get_title()] == ["decoder", "prior"]
    for ax, base in ((first, 0), (second, 10)):
        a, b = (bar.lines[0].get_xydata() for bar in ax.containers)
        assert a[:, 1].tolist() == [base - 3, base - 3] and np.allclose(b[:, 1], [base - 0.75, base - 1.5])
        assert (a[:, 0] < b[:, 0]).all() and np.allclose((a + b)[:, 0] / 2, [0, 1])
        (ends,) = ax.containers[0].lines[2]
        assert [part[:, 1].tolist() for part in ends.get_segments()] == 2 * [[base - 4, base - 1]]
        levels = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}
        assert {0, -4.9} <= levels
    assert (first.get_ylabel(), second.get_ylabel()) == ("percent", "")
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] < -4 and first.get_ylim()[1] > 11  # nothing is cut off
    assert [text.get_text() for text in first.get_xticklabels()] == ["0.15", "0.3"]


def test_signed_maps_lie_about_nothing():
    *axes, bar = drawn(figures.error_maps({"m": np.array([[-3.0, 1.0]])}, "t", "gain", 2, signed=True))
    assert axes[0].get_images()[0].get_clim() == (-2, 2) and bar.get_ylim() == (-2, 2)
