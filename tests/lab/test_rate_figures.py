"""Each figure of files shows exactly the numbers that it was given."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mcml.lab import figures, rate_figures


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
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def curves(*names):
    return pd.DataFrame(
        [
            {"codec": n, "bpp": b, "psnr": 20 + 10 * b + i, "ms_ssim": 0.9 + b / 10, "ciede2000": 5 - b}
            for i, n in enumerate(names)
            for b in (0.5, 0.1)
        ]
    )


def test_saved_bits_draw_before_and_after_and_the_saving():
    table = pd.DataFrame(
        [
            {"kind": kind, "part": part, "raw_bpp": raw, "coded_bpp": coded}
            for kind in ("flat", "adaptive")
            for part, raw, coded in (("framing", 0.0, 0.01), ("Y map", 0.1, 0.05), ("Y", 1.0, 0.25))
        ]
    )
    axes = drawn(rate_figures.saved_bits(table, "Bits"))
    assert [ax.get_title() for ax in axes] == ["flat", "adaptive"]
    for ax in axes:
        assert [t.get_text() for t in ax.get_yticklabels()] == ["Y", "Y map", "framing"]
        assert [bar.get_width() for bar in ax.patches] == [1.0, 0.1, 0.0, 0.25, 0.05, 0.01]
        assert [t.get_text() for t in ax.texts] == [" 75 % saved", " 50 % saved", " added"]


def test_overhead_is_file_less_estimate_with_the_framing_as_a_line():
    table = pd.DataFrame(
        {
            "kind": ["flat", "flat"],
            "ideal_bytes": [100.0, 200],
            "file_bytes": [150, 255],
            "framing_bytes": [46, 46],
        }
    )
    (ax,) = drawn(rate_figures.overhead_dots(table, "Overhead"))
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[100, 50], [200, 55]])
    assert ax.lines[0].get_ydata()[0] == 46 and ax.get_ylim()[0] == 0


def test_phases_are_stacked_and_totals_written():
    rows = [
        {"codec": c, "direction": d, "phase": p, "seconds": s}
        for d in ("encode", "decode")
        for c, p, s in (("fusion", "networks", 0.1), ("fusion", "entropy", 0.2), ("webp", "all", 0.05))
    ]
    for ax in drawn(rate_figures.phase_bars(pd.DataFrame(rows), "Seconds")):
        assert [t.get_text() for t in ax.texts] == [" 300 ms", " 50 ms"]
        second = [bar for bar in ax.patches if bar.get_width() == pytest.approx(0.2)]
        assert [bar.get_x() for bar in second] == [0.1]


@pytest.mark.parametrize("together", [False, True])
def test_published_curves_share_a_panel_only_when_asked(together):
    published = curves("VTM", "CWIC").assign(rate=["file", "file", "estimate", "estimate"])
    figure = rate_figures.published_context(
        curves("fusion"), published, ["psnr", "ms_ssim"], "All", together=together
    )
    axes = drawn(figure)
    assert len(axes) == (2 if together else 4)
    ours, theirs = {"fusion"}, {"VTM (published)", "CWIC (published, rate: estimate)"}
    assert set(lines(axes[0])) == (ours | theirs if together else ours)
    if not together:
        assert set(lines(axes[1])) == theirs
        assert axes[0].get_ylim() == axes[1].get_ylim()
    of = lines(axes[0 if together else 1])
    styles = [of[name].get_linestyle() for name in ("VTM (published)", "CWIC (published, rate: estimate)")]
    assert styles == ["--", ":"]
    structure = lines(axes[1 if together else 2])["fusion"].get_ydata()
    np.testing.assert_allclose(structure, -10 * np.log10(1 - np.array([0.91, 0.95])))
    assert len(figure.legends[0].get_texts()) == 3
