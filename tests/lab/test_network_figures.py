"""Each figure of the networks shows exactly the numbers that it was given, with units."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mcml.lab import figures, network_figures


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


def lines(ax):
    """Labelled lines of a panel: label to points."""
    return {line.get_label(): line.get_xydata() for line in ax.lines if not line.get_label().startswith("_")}


def test_step_functions_draw_value_and_gradient():
    x = np.linspace(0, 1, 5)
    panels = {
        name: {"x": x, "value": x > 0.5, "gradient": np.ones(5) * k, "label": "p"}
        for k, name in enumerate("ab", 1)
    }
    figure = network_figures.step_functions(panels, "Steps")
    axes = drawn(figure)
    for k, (ax, name) in enumerate(zip(axes, "ab", strict=True), 1):
        assert (ax.get_title(), ax.get_xlabel()) == (name, "p")
        np.testing.assert_array_equal(ax.lines[0].get_xydata()[:, 1], [0, 0, 0, 1, 1])
        assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == k
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "forward: the value", "backward: the gradient used",
    ]  # fmt: skip


def test_bit_costs_show_every_bit_on_the_entropy_curve():
    entropy, share, saved = np.array([0.9, 0.5, 0.1]), np.array([0.5, 0.25, 0.02]), np.array([6.0, 3, 1])
    left, middle, right = drawn(network_figures.bit_costs(entropy, share, [1, 3], saved, "Bits"))
    dots = left.collections[0].get_offsets()
    np.testing.assert_allclose(dots[:, 0], share)
    np.testing.assert_allclose(dots[:, 1], [1.0, 0.8113, 0.1414], atol=1e-4)
    assert [bar.get_height() for bar in middle.patches] == list(entropy)
    assert [line.get_xdata()[0] for line in middle.lines] == [1.5]  # the border between the groups
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[0.9, 60], [1.4, 90], [1.5, 100]])


def points(key, rate):
    return pd.DataFrame(
        [{key: n, rate: r, "psnr_Y": 20 + 10 * r + i} for i, n in enumerate("ab") for r in (0.3, 0.1)]
    )


def test_estimates_and_files_are_drawn_apart_on_the_same_scales():
    left, right = drawn(
        network_figures.rate_distortion(
            points("system", "estimated_bpp"), points("codec", "bpp"), "psnr_Y", "RD", smooth=["b"]
        )
    )
    assert (
        left.get_xlabel() == "estimated bits per pixel" and right.get_xlabel() == "bits per pixel of the file"
    )
    assert "estimate" in left.get_title() and "files" in right.get_title()
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    for ax in (left, right):
        found = lines(ax)
        np.testing.assert_allclose(found["a"], [[0.1, 21], [0.3, 23]])  # sorted by rate
        np.testing.assert_allclose(found["b"], [[0.1, 22], [0.3, 24]])
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]
    hues = [line.get_color() for ax in (left, right) for line in ax.lines]
    assert len(set(hues)) == 4


def test_without_files_there_is_one_panel():
    axes = drawn(network_figures.rate_distortion(points("system", "estimated_bpp"), None, "psnr_Y", "RD"))
    assert len(axes) == 1 and axes[0].get_ylabel() == "luma PSNR (dB)"


def test_learning_curves_draw_rows_and_their_moving_mean():
    logs = {
        "one": pd.DataFrame({"step": [10, 20, 30], "loss": [3.0, 6.0, 0.0], "rate": [1.0, 1, 1]}),
        "two": pd.DataFrame({"step": [10, 20], "loss": [5.0, 5.0]}),
    }
    loss, rate = drawn(
        network_figures.learning_curves(logs, {"loss": "the loss", "rate": "p"}, "Log", smooth=3)
    )
    np.testing.assert_allclose(lines(loss)["one"], [[10, 4.5], [20, 3], [30, 3]])
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[10, 3], [20, 6], [30, 0]])
    assert list(lines(loss)) == ["one", "two"] and list(lines(rate)) == ["one"]
    assert loss.get_title() == "the loss" and loss.get_xlabel() == "step"


def test_importance_maps_share_one_symmetric_scale_and_cover_their_pictures():
    rng = np.random.default_rng(0)
    images = {n: rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) for n in "ab"}
    maps = {"a": np.full((2, 3), -0.5), "b": np.arange(6.0).reshape(2, 3) - 2}
    *axes, bar = drawn(network_figures.importance_maps(images, maps, "Maps"))
    assert [ax.get_title() for ax in axes] == ["a", "importance", "b", "importance"]
    for name, ax in zip("ab", axes[1::2], strict=True):
        (shown,) = ax.get_images()
        np.testing.assert_array_equal(np.asarray(shown.get_array()), maps[name])
        assert shown.get_clim() == (-3, 3)
        assert tuple(shown.get_extent()) == (-0.5, 23.5, 15.5, -0.5)
    assert bar.get_ylabel() == "groups against the mean"


def test_level_by_activity_has_a_line_a_dial():
    table = pd.DataFrame(
        [{"dial": d, "activity": a, "level": 5 + d + a / 10} for d in (-1.0, 1.0) for a in (3.0, 30.0)]
    )
    figure = network_figures.level_by_activity(table, "Busy")
    (ax,) = drawn(figure)
    np.testing.assert_allclose(lines(ax)["dial -1"], [[3, 4.3], [30, 7]])
    np.testing.assert_allclose(lines(ax)["dial +1"], [[3, 6.3], [30, 9]])
    assert ax.get_xscale() == "log" and "grey levels" in ax.get_xlabel()


def test_stream_rates_stack_to_the_total_and_to_a_hundred():
    table = pd.DataFrame({"dial": [1.0, -1.0], "estimated_bpp_Y": [0.3, 0.1], "estimated_bpp_Cb": [0.1, 0.1]})
    bits, shares = drawn(network_figures.stream_rates(table, ["Y", "Cb"], "Bits"))
    assert [c.get_label() for c in bits.collections] == ["Y", "Cb"]
    top = bits.collections[1].get_paths()[0].vertices
    assert top[top[:, 0] == 1.0][:, 1].max() == pytest.approx(0.4)
    assert top[top[:, 0] == -1.0][:, 1].max() == pytest.approx(0.2)
    share = shares.collections[0].get_paths()[0].vertices
    assert share[share[:, 0] == 1.0][:, 1].max() == pytest.approx(75)
    assert shares.collections[1].get_paths()[0].vertices[:, 1].max() == pytest.approx(100)


@pytest.mark.parametrize("zero", [True, False])
def test_seed_dots_draw_each_seed_and_the_mean(zero):
    table = pd.DataFrame(
        [
            {"features": n, "variant": v, "seed": s, "psnr": n + s + (v == "fusion")}
            for n in (12, 24) for v in ("independent", "fusion") for s in (0, 1)
        ]
    )  # fmt: skip
    figure = network_figures.seed_dots(table, ["psnr"], "features", "variant", "Dots", zero=zero)
    (ax,) = drawn(figure)
    dots = [c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 2]
    assert [d[:, 1].tolist() for d in dots] == [[12, 13], [24, 25], [13, 14], [25, 26]]
    bars = [c.get_segments()[0][0, 1] for c in ax.collections if hasattr(c, "get_segments")]
    assert bars == [12.5, 24.5, 13.5, 25.5]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["12", "24"]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == (["variant independent", "variant fusion"] if zero else ["independent", "fusion"])
    assert len(ax.lines) == int(zero)
    assert dots[0][0, 0] < 0 < dots[2][0, 0]  # side by side


def test_a_curve_that_does_not_reach_the_rate_leaves_its_place_empty():
    table = pd.DataFrame({"n": [1, 2], "v": ["a", "a"], "psnr": [3.0, np.nan]})
    (ax,) = drawn(network_figures.seed_dots(table, ["psnr"], "n", "v", "Dots"))
    assert len(ax.collections) == 2 and len(ax.get_xticks()) == 2
