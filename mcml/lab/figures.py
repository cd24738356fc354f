"""Every figure of the notebooks: arrays and tables in, a matplotlib `Figure` out.

One style for all: colour-blind-safe hues, a fixed colour and marker for each codec,
units on every axis, error maps on a common, perceptually uniform scale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mcml.codec import interface as codecs

HUES = sns.color_palette("colorblind")
MARKERS = "os^DvPX*"
STREAM_HUES = {"Y": "#555555", "Cb": HUES[0], "Cr": HUES[3]}
LABELS = {
    "bpp": "rate (bits per pixel of the file)",
    "psnr": "RGB PSNR (dB)",
    "y_psnr": "luma PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "cmssim": "colour MS-SSIM",
    "delta_e76": "mean CIE76 colour difference",
    "ciede2000": "mean CIEDE2000 colour difference",
    "rgb_angle": "mean RGB angle (degrees)",
    "psnr_b": "PSNR-B of luma (dB)",
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


def codec_style(name: str) -> dict[str, object]:
    """Return the colour and marker that a codec has in every figure."""
    known = codecs.names()
    index = known.index(name) if name in known else len(known)
    return {"color": HUES[index % len(HUES)], "marker": MARKERS[index % len(MARKERS)]}


def _picture(ax: Axes, image: np.ndarray, title: str = "") -> None:
    ax.imshow(image)
    ax.set_title(title, fontweight="normal", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _grid(rows: int, columns: int, width: float, height: float, title: str = "") -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    if title:
        figure.suptitle(title, fontweight="bold")
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
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    aspect = np.median([image.shape[0] / image.shape[1] for image in images.values()])
    figure, axes = _grid(rows, columns, width, width / columns * aspect * rows + 0.35 * rows, title)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, image) in zip(axes.flat, images.items(), strict=False):
        ax.axis("on")
        _picture(ax, image, name)
    return figure


def stream_histograms(ycbcr: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw the distribution of Y, Cb and Cr samples.

    Args:
        ycbcr: samples in 0..255 by stream key, any shape.
    """
    figure, axes = _grid(1, len(ycbcr), 9, 2.6, title)
    for ax, (stream, values) in zip(axes.flat, ycbcr.items(), strict=True):
        levels = np.ravel(values)
        ax.hist(
            levels, bins=64, range=(0, 256), density=True, histtype="stepfilled", color=STREAM_HUES[stream]
        )
        ax.set(title=stream, xlabel="level (0 to 255)", xlim=(0, 255), yticks=[])
        if stream != "Y":
            ax.axvline(128, color="black", lw=0.8, ls=":")
    axes.flat[0].set_ylabel("share of pixels")
    return figure


def stacked_shares(table: pd.DataFrame, parts: Sequence[str], title: str, unit: str) -> Figure:
    """Draw one horizontal bar a row, cut into shares that sum to 100 %.

    Args:
        table: its index names the bars; columns `parts` hold shares in 0..1.
    """
    figure, axes = _grid(1, 1, 9, 0.42 * len(table) + 1.3, title)
    ax, left = axes.flat[0], np.zeros(len(table))
    palette = [STREAM_HUES.get(part, HUES[i]) for i, part in enumerate(parts)]
    for part, hue in zip(parts, palette, strict=True):
        values = 100 * table[part].to_numpy()
        ax.barh(table.index.astype(str), values, left=left, color=hue, label=part)
        for y, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 6:
                ax.text(
                    start + value / 2, y, f"{value:.0f}", ha="center", va="center", color="white", fontsize=8
                )
        left += values
    ax.set(xlim=(0, 100), xlabel=f"{unit} (%)")
    ax.invert_yaxis()
    ax.grid(visible=False)
    figure.legend(loc="outside lower center", ncols=len(parts))
    return figure


def grouped_bars(table: pd.DataFrame, x: str, y: str, hue: str | None, title: str) -> Figure:
    """Draw bars of column `y` over categories `x`, grouped by `hue`."""
    figure, axes = _grid(1, 1, 9, 3, title)
    ax = axes.flat[0]
    sns.barplot(table, x=x, y=y, hue=hue, ax=ax, errorbar=None, color=None if hue else HUES[0])
    ax.set(xlabel="", ylabel=LABELS.get(y, y))
    if hue:
        sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title="")
    return figure


def error_maps(
    maps: Mapping[str, np.ndarray], title: str, unit: str, vmax: float, columns: int = 3, width: float = 9.0
) -> Figure:
    """Draw error maps side by side on one scale from 0 to `vmax`, with its colour bar.

    Args:
        maps: (H, W), non-negative, by caption.
        unit: of the colour bar.
    """
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    aspect = np.median([m.shape[0] / m.shape[1] for m in maps.values()])
    figure, axes = _grid(
        rows, columns, width, (width - 1) / columns * aspect * rows + 0.4 * rows + 0.2, title
    )
    for ax in axes.flat:
        ax.axis("off")
    shown = None
    for ax, (name, values) in zip(axes.flat, maps.items(), strict=False):
        shown = ax.imshow(values, cmap="magma", vmin=0, vmax=vmax)
        ax.set_title(name, fontweight="normal", fontsize="small")
    figure.colorbar(shown, ax=axes.ravel().tolist(), label=unit, shrink=0.85, extend="max")
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
    figure, axes = _grid(len(boxes), len(pictures), width, (cell + 0.12) * len(boxes) + 0.5, title)
    for index, (row, (label, (top, left, side))) in enumerate(zip(axes, boxes.items(), strict=True)):
        for ax, (name, image) in zip(row, pictures.items(), strict=True):
            _picture(ax, image[top : top + side, left : left + side], name if index == 0 else "")
        row[0].set_ylabel(label, fontsize="small")
    return figure


def locate(
    image: np.ndarray, boxes: Mapping[str, tuple[int, int, int]], title: str, width: float = 6.0
) -> Figure:
    """Draw where the details of `zooms` lie in the picture."""
    figure, axes = _grid(1, 1, width, width * image.shape[0] / image.shape[1] + 0.3, title)
    _picture(axes.flat[0], image)
    for label, (top, left, side) in boxes.items():
        axes.flat[0].add_patch(Rectangle((left, top), side, side, fill=False, ec="white", lw=2.6))
        axes.flat[0].add_patch(Rectangle((left, top), side, side, fill=False, ec="black", lw=1.2))
        axes.flat[0].text(
            left + 4,
            top + 4,
            label,
            va="top",
            fontsize=8,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5},
        )
    return figure


def bias_scatter(shifts: Mapping[str, np.ndarray], title: str, unit: float = 2.3) -> Figure:
    """Draw each block's shift of a* and b*, one panel a codec.

    Args:
        shifts: (N, 2) of (da*, db*) by codec.
        unit: radius of the circle of one just-noticeable difference.
    """
    figure, axes = _grid(1, len(shifts), 9.5, 9.5 / len(shifts) + 0.7, title)
    reach = max(unit, *(float(np.abs(s).max()) for s in shifts.values())) * 1.05
    for ax, (name, shift) in zip(axes.flat, shifts.items(), strict=True):
        ax.scatter(shift[:, 0], shift[:, 1], s=7, alpha=0.5, color=codec_style(name)["color"], linewidths=0)
        ax.add_patch(plt.Circle((0, 0), unit, fill=False, color="black", lw=1))
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name, xlabel="shift of a*")
        if ax is not axes.flat[0]:
            ax.set_yticklabels([])
    axes.flat[0].set_ylabel("shift of b*")
    return figure


def rate_curves(means: pd.DataFrame, columns: Sequence[str], title: str) -> Figure:
    """Draw mean distortion over mean rate, one panel a column, one line a codec.

    Args:
        means: `mcml.evaluation.mean_table`'s result.
        columns: metrics to draw.
    """
    figure, axes = _grid(1, len(columns), 9.5, 3.6, title)
    for ax, column in zip(axes.flat, columns, strict=True):
        for name in means.codec.unique():
            curve = means[means.codec == name].sort_values("bpp")
            ax.plot(curve.bpp, curve[column], label=name, ms=5, **codec_style(name))
        ax.set(xlabel=LABELS["bpp"], ylabel=LABELS.get(column, column))
    axes.flat[-1].legend(fontsize="small")
    return figure
