"""What the notebooks' figures share: a style, one look for every system, a frame, pictures, curves.

Arrays and tables in, a matplotlib `Figure` out. Hues are safe for the colour-blind, every axis has its
unit, error maps share a perceptually uniform scale. A figure that one notebook draws once stands there.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcml.lab.evaluate import LOWER_IS_BETTER

HUES = sns.color_palette("colorblind")
MARKERS = "os^DvPX*"
STREAM_HUES = {"Y": "#555555", "Cb": HUES[0], "Cr": HUES[3]}
LABELS = {
    "bpp": "bits per pixel of the file",
    "target_bpp": "bits per pixel of the file",
    "features": "latents a position, of Cb and of Cr",
    "estimated_bpp": "estimated bits per pixel",
    "psnr": "RGB PSNR (dB)",
    "y_psnr": "luma PSNR (dB)",
    "psnr_Y": "luma PSNR (dB)",
    "psnr_Cb": "Cb PSNR (dB)",
    "psnr_Cr": "Cr PSNR (dB)",
    "psnr_color": "mean PSNR of Cb and Cr (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "cmssim": "colour MS-SSIM",
    "delta_e76": "mean CIE76 difference",
    "ciede2000": "mean CIEDE2000",
    "rgb_angle": "mean RGB angle (degrees)",
    "psnr_b": "PSNR-B of luma (dB)",
}
DISTORTION = {  # labels of a loss's distortion, by `LossConfig.distortion`
    "l1": "mean error (grey levels)",
    "l2": "mean squared error (grey levels²)",
}
THIN = {"linewidth": 1.2, "zorder": 2.5}
BROAD = {"linewidth": 4.5, "alpha": 0.45, "zorder": 2.0}  # lies behind: an equal curve on it is seen too
LOOKS = {  # one for good, whatever else is drawn or released
    "fusion": {"color": HUES[0], "marker": "o", "linewidth": 2.0, "zorder": 3.0},
    "independent": {"color": HUES[1], "marker": "s", **BROAD},
    "scalar_fusion": {"color": "#0b3c5d", "marker": "H", "linewidth": 2.0, "zorder": 3.0},
    "scalar_independent": {"color": "#b35c00", "marker": "x", **BROAD},
    "rgb": {"color": HUES[9], "marker": "X", "linewidth": 2.0, "zorder": 3.0},
    "jpeg420": {"color": HUES[2], "marker": "^", **THIN},
    "jpeg444": {"color": HUES[6], "marker": "v", **THIN},
    "jpeg2000": {"color": HUES[3], "marker": "D", **THIN},
    "webp": {"color": HUES[5], "marker": "P", **THIN},
    "avif420": {"color": HUES[7], "marker": "*", **THIN},
    "avif444": {"color": "#333333", "marker": "d", **THIN},
    "avif420_speed6": {"color": "#bbbbbb", "marker": "<", **THIN},
    "avif444_speed6": {"color": "#777777", "marker": ">", **THIN},
    "hevc444": {"color": "#8c3a1f", "marker": "h", **THIN},
    "vvc420": {"color": "#1f4f8c", "marker": "8", **THIN},
    "jpegxl": {"color": HUES[4], "marker": "p", **THIN},
}


def use_style() -> None:
    """Set fonts, grid and palette for every figure that follows.

    Inside a notebook pictures are stored as JPEG of quality 85 without chroma
    subsampling: a page of photographs then stays well under 1 MB. Saved figures are PNG.
    """
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 85, "subsampling": 0})
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "svg.hashsalt": "mcml",
        }
    )


def look(system: str) -> dict[str, object]:
    """Return the colour, marker and line that a system has in every figure.

    A name that holds a known one ("small fusion", "fusion 36") has its colour and line, and a marker of
    its own; one that nobody knows has a colour and marker that follow from the name alone.
    """
    if system in LOOKS:
        return dict(LOOKS[system])
    number = zlib.crc32(system.encode())
    marker = MARKERS[number // 16 % len(MARKERS)]
    for word in re.findall(r"\w+", system):
        if word in LOOKS:
            return LOOKS[word] | {"marker": marker}
    others = sns.color_palette("dark")
    return {"color": others[number % len(others)], "marker": marker, "linewidth": 1.6, "zorder": 2.8}


def panels(
    rows: int, columns: int, width: float, height: float, title: str = ""
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` x `height` inches and its (rows, columns) axes."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    if title:
        figure.suptitle(title, fontweight="bold")
    return figure, axes


def picture(ax: Axes, image: np.ndarray, title: str = "") -> None:
    """Show (H, W, 3) uint8 without frame or ticks."""
    ax.imshow(image)
    ax.set_title(title, fontweight="normal", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _tiles(
    items: Mapping[str, np.ndarray], columns: int, width: float, title: str, beside: float = 0
) -> tuple[Figure, np.ndarray]:
    """Return a figure for (H, W, ...) arrays of about one aspect, all axes off, `beside` inches kept."""
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    aspect = np.median([item.shape[0] / item.shape[1] for item in items.values()])
    height = (width - beside) / columns * aspect * rows + 0.35 * rows
    figure, axes = panels(rows, columns, width, height, title)
    for ax in axes.flat:
        ax.axis("off")
    return figure, axes


def gallery(
    images: Mapping[str, np.ndarray], title: str = "", columns: int = 4, width: float = 9.0
) -> Figure:
    """Draw pictures under their names.

    Args:
        images: (H, W, 3) uint8 by caption; any sizes.
        columns: pictures in a row.
        width: of the figure in inches.
    """
    figure, axes = _tiles(images, columns, width, title)
    for ax, (name, image) in zip(axes.flat, images.items(), strict=False):
        ax.axis("on")
        picture(ax, image, name)
    return figure


def error_maps(
    maps: Mapping[str, np.ndarray], title: str, unit: str, vmax: float, columns: int = 3, width: float = 9.0,
    *, signed: bool = False,
) -> Figure:  # fmt: skip
    """Draw (H, W) maps by caption on one scale from 0 to `vmax`, with a colour bar of `unit`.

    Signed maps are drawn from -vmax to `vmax`, white where there is no difference.
    """
    figure, axes = _tiles(maps, columns, width, title, beside=1)
    scale = {"cmap": "RdBu", "vmin": -vmax} if signed else {"cmap": "magma", "vmin": 0}
    for ax, (name, values) in zip(axes.flat, maps.items(), strict=False):
        shown = ax.imshow(values, vmax=vmax, **scale)
        ax.set_title(name, fontweight="normal", fontsize="small")
    extend = "both" if signed else "max"
    figure.colorbar(shown, ax=axes.ravel().tolist(), label=unit, shrink=0.85, extend=extend)
    return figure


def zooms(
    reference: np.ndarray,
    decodes: Mapping[str, np.ndarray],
    boxes: Mapping[str, tuple[int, int, int]],
    title: str = "",
    width: float = 9.5,
) -> Figure:
    """Draw enlarged details: one row a place, the original first, then every decode.

    Args:
        reference: (H, W, 3) uint8.
        decodes: the same shape, by caption.
        boxes: (top, left, side) in pixels by row label.
    """
    pictures = {"original": reference, **decodes}
    cell = width / len(pictures)
    figure, axes = panels(len(boxes), len(pictures), width, (cell + 0.12) * len(boxes) + 0.5, title)
    for index, (row, (label, (top, left, side))) in enumerate(zip(axes, boxes.items(), strict=True)):
        for ax, (name, image) in zip(row, pictures.items(), strict=True):
            picture(ax, image[top : top + side, left : left + side], name if index == 0 else "")
        row[0].set_ylabel(label, fontsize="small")
    return figure


def bias_scatter(shifts: Mapping[str, np.ndarray], title: str, unit: float = 2.3) -> Figure:
    """Draw each block's shift of a* and b*, one panel a codec.

    Args:
        shifts: (N, 2) of (da*, db*) by codec.
        unit: radius of the circle of one just-noticeable difference.
    """
    figure, axes = panels(1, len(shifts), 9.5, 9.5 / len(shifts) + 0.7, title)
    reach = max(unit, *(float(np.abs(s).max()) for s in shifts.values())) * 1.05
    for ax, (name, shift) in zip(axes.flat, shifts.items(), strict=True):
        ax.scatter(shift[:, 0], shift[:, 1], s=7, alpha=0.5, color=look(name)["color"], linewidths=0)
        ax.add_patch(plt.Circle((0, 0), unit, fill=False, color="black", lw=1))
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name, xlabel="shift of a*")
        if ax is not axes.flat[0]:
            ax.set_yticklabels([])
    axes.flat[0].set_ylabel("shift of b*")
    return figure


def draw_curves(
    ax: Axes, table: pd.DataFrame, column: str, *, rate: str = "bpp", by: str = "codec",
    dashed: Collection[str] = (),
) -> None:  # fmt: skip
    """Draw a distortion over the rate into a panel, a line a system in its `look`.

    Args:
        table: columns `by`, `rate` and `column`; a row for each system and rate.
        dashed: systems drawn dashed, as context.
    """
    for name in table[by].unique():
        curve = table[table[by] == name].sort_values(rate)
        ax.plot(
            curve[rate], curve[column], label=name, ms=4.5, ls="--" if name in dashed else "-", **look(name)
        )
    ax.set(xlabel=LABELS.get(rate, rate), ylabel=LABELS.get(column, column))


def rate_distortion(
    table: pd.DataFrame, columns: Sequence[str], title: str, *, rate: str = "bpp", by: str = "codec",
    across: int = 3, dashed: Collection[str] = (),
) -> Figure:  # fmt: skip
    """Draw distortions over the rate: a panel a metric, which says what is better, a line a system.

    Args:
        table, rate, by, dashed: as `draw_curves` takes them.
        columns: metrics to draw.
        across: panels in a row.
    """
    across, rows = min(across, len(columns)), -(-len(columns) // across)
    figure, axes = panels(rows, across, 10, 3.0 * rows + 0.7, title)
    for ax in axes.flat[len(columns) :]:
        ax.axis("off")
    for ax, column in zip(axes.flat, columns, strict=False):
        draw_curves(ax, table, column, rate=rate, by=by, dashed=dashed)
        better = "lower" if column in LOWER_IS_BETTER else "higher"
        ax.set_title(f"{LABELS.get(column, column)}, {better} is better", fontsize="small")
        ax.set_ylabel("")
    entries = axes.flat[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=min(len(entries[1]), 6))
    return figure


def learning_curves(
    logs: Mapping[str, pd.DataFrame], columns: Mapping[str, str], title: str, smooth: int = 1
) -> Figure:
    """Draw columns of training logs over the step, one panel a column, one line a run.

    Args:
        logs: by run, rows with `step` and the columns (a run may lack some).
        columns: panel title by column.
        smooth: rows of the moving mean drawn boldly over the raw rows.
    """
    figure, axes = panels(1, len(columns), 3.3 * len(columns), 3.1, title)
    for ax, (column, name) in zip(axes.flat, columns.items(), strict=True):
        for i, (run, log) in enumerate(logs.items()):
            if column in log:
                hue = STREAM_HUES.get(run, HUES[i % len(HUES)])
                ax.plot(log.step, log[column], color=hue, lw=0.8, alpha=0.35 if smooth > 1 else 1.0)
                mean = log[column].rolling(smooth, min_periods=1, center=True).mean()
                ax.plot(log.step, mean, color=hue, lw=1.8, label=run)
        ax.set(title=name, xlabel="step")
    axes.flat[-1].legend(fontsize="small")
    return figure


def intervals(
    table: pd.DataFrame, value: str, title: str, *, panel: str, x: str, hue: str, label: str,
    lines: Mapping[str, float] | None = None, across: int = 4,
) -> Figure:  # fmt: skip
    """Draw values with their intervals: a panel for each `panel`, groups side by side, a line at nothing.

    Args:
        table: columns `panel`, `x` and `hue` (categories), `value`, "<value>_low" and "<value>_high".
        label: of the values' axis, with its unit.
        lines: other values to compare with, dashed, by what they are.
        across: panels in a row.
    """
    names, steps, groups = (list(dict.fromkeys(table[column])) for column in (panel, x, hue))
    across, rows = min(across, len(names)), -(-len(names) // across)
    figure, axes = panels(rows, across, 10, 2.9 * rows + 0.8, title)
    for ax, name in zip(axes.flat, names, strict=False):
        for j, group in enumerate(groups):
            own = table[(table[panel] == name) & (table[hue] == group)]
            place = [steps.index(step) + (j - (len(groups) - 1) / 2) * 0.5 / len(groups) for step in own[x]]
            spread = own[value] - own[f"{value}_low"], own[f"{value}_high"] - own[value]
            style = {"fmt": MARKERS[j], "color": HUES[j], "ms": 5, "capsize": 2.5, "lw": 1.3}
            ax.errorbar(place, own[value], spread, label=str(group), **style)
        ax.axhline(0, color="black", lw=0.9)
        for text, at in (lines or {}).items():
            ax.axhline(at, color="#777777", ls="--", lw=1.1, label=text)
        ax.set(title=name, xlabel=LABELS.get(x, x), ylabel=label if ax in axes[:, 0] else "")
        ax.set_xticks(range(len(steps)), [f"{s:g}" if isinstance(s, float) else str(s) for s in steps])
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    entries = axes.flat[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=4)
    return figure
