"""Figures of the learned codec: arrays and tables in, a matplotlib `Figure` out.

Style, hues and picture grids are those of `mcml.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcml.lab.figures import HUES, MARKERS, STREAM_HUES

ESTIMATE = "estimated bits per pixel"
LABELS = {
    "estimated_bpp": ESTIMATE,
    "bpp": "bits per pixel of the file",
    "psnr": "RGB PSNR (dB)",
    "psnr_Y": "luma PSNR (dB)",
    "psnr_Cb": "Cb PSNR (dB)",
    "psnr_Cr": "Cr PSNR (dB)",
    "psnr_color": "mean PSNR of Cb and Cr (dB)",
    "ciede2000": "mean CIEDE2000",
    "delta_e76": "mean CIE76",
}


def _panels(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.suptitle(title, fontweight="bold")
    return figure, axes


def _label(column: str) -> str:
    return LABELS.get(column, column)


def step_functions(panels: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """Draw what a step function gives forward and which gradient it passes backward.

    Args:
        panels: by panel title, a mapping with `x`, `value` and `gradient` (equal lengths) and
            optionally `label`, the name of x.
    """
    figure, axes = _panels(1, len(panels), 9.5, 3.0, title)
    for ax, (name, curve) in zip(axes.flat, panels.items(), strict=True):
        ax.plot(curve["x"], curve["value"], color="black", lw=1.8, label="forward: the value")
        ax.fill_between(curve["x"], curve["gradient"], color=HUES[1], alpha=0.35, lw=0, step="mid",
                        label="backward: the gradient used")  # fmt: skip
        ax.set(title=name, xlabel=str(curve.get("label", "x")), ylabel="value, gradient")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def bit_costs(
    entropy: np.ndarray, share_of_ones: np.ndarray, ends: Sequence[int], saved: np.ndarray, title: str
) -> Figure:
    """Draw what each bit of a code costs and brings, in coding order.

    Args:
        entropy: (n,) bits a position that each bit costs.
        share_of_ones: (n,) in 0..1, where it is not yet decided by earlier bits.
        ends: the last bit's number of each group of the nested code.
        saved: (n,) squared error that each bit saves, any unit.
    """
    figure, axes = _panels(1, 3, 10, 3.0, title)
    p = np.linspace(1e-4, 1 - 1e-4, 400)
    curve = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    left, middle, right = axes.flat
    left.plot(p, curve, color="black", lw=1.2)
    q = np.clip(share_of_ones, 1e-4, 1 - 1e-4)
    left.scatter(q, -(q * np.log2(q) + (1 - q) * np.log2(1 - q)), s=12, color=HUES[0], alpha=0.7, zorder=3)
    left.set(xlabel="share of ones where undecided", ylabel="entropy (bits)", title="skew makes bits cheap")
    number = np.arange(1, len(entropy) + 1)
    middle.bar(number, entropy, width=1.0, color=HUES[0])
    for end in ends[:-1]:
        middle.axvline(end + 0.5, color="black", lw=0.4, alpha=0.5)
    middle.set(
        xlabel="bit, in coding order", ylabel="bits a position", title="cost and groups", xlim=(0, None)
    )
    right.plot(np.cumsum(entropy), 100 * np.cumsum(saved) / np.sum(saved), color=HUES[0], lw=2)
    right.set(
        xlabel="bits a position, summed",
        ylabel="error saved (%)",
        title="the first bits do most",
        ylim=(0, 102),
    )
    return figure


def rate_distortion(
    estimates: pd.DataFrame, files: pd.DataFrame | None, column: str, title: str, smooth: Sequence[str] = ()
) -> Figure:
    """Draw a quality over the rate: estimates in one panel, files in another, on the same scales.

    Args:
        estimates: columns system, estimated_bpp and `column`: what an ideal coder would need.
        files: columns codec, bpp and `column`: bytes of whole files; None leaves the panel out.
        column: quality on the vertical axis.
        smooth: systems drawn dashed, as context.
    """
    panels = [(estimates, "system", "estimated_bpp", "networks: an ideal coder's estimate")]
    if files is not None:
        panels.append((files, "codec", "bpp", "classical codecs: bytes of files"))
    figure, axes = _panels(1, len(panels), 10 if files is not None else 6.5, 3.8, title)
    for ax, (table, key, rate, name) in zip(axes.flat, panels, strict=True):
        for i, system in enumerate(table[key].unique()):
            curve = table[table[key] == system].sort_values(rate)
            offset = 0 if key == "system" else 5
            ax.plot(
                curve[rate], curve[column], label=system, ms=5,
                color=HUES[(i + offset) % len(HUES)], marker=MARKERS[(i + offset) % len(MARKERS)],
                ls="--" if system in smooth else "-",
            )  # fmt: skip
        ax.set(xlabel=_label(rate), ylabel=_label(column), title=name)
        ax.legend(fontsize="small")
    _share_limits(axes.flat)
    return figure


def _share_limits(axes: Sequence[Axes]) -> None:
    axes = list(axes)
    top = max(ax.get_xlim()[1] for ax in axes)
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set(xlim=(0, top), ylim=(low, high))


def learning_curves(
    logs: Mapping[str, pd.DataFrame], columns: Mapping[str, str], title: str, smooth: int = 1
) -> Figure:
    """Draw columns of training logs over the step, one panel a column, one line a run.

    Args:
        logs: by run, rows with `step` and the columns (a run may lack some).
        columns: panel title by column.
        smooth: rows of the moving mean drawn boldly over the raw rows.
    """
    figure, axes = _panels(1, len(columns), 3.3 * len(columns), 3.1, title)
    for ax, (column, name) in zip(axes.flat, columns.items(), strict=True):
        for i, (run, log) in enumerate(logs.items()):
            if column not in log:
                continue
            hue = STREAM_HUES.get(run, HUES[i % len(HUES)])
            ax.plot(log.step, log[column], color=hue, lw=0.8, alpha=0.35 if smooth > 1 else 1.0)
            mean = log[column].rolling(smooth, min_periods=1, center=True).mean()
            ax.plot(log.step, mean, color=hue, lw=1.8, label=run)
        ax.set(title=name, xlabel="step")
    axes.flat[-1].legend(fontsize="small")
    return figure


def importance_maps(
    images: Mapping[str, np.ndarray], maps: Mapping[str, np.ndarray], title: str, width: float = 10.0
) -> Figure:
    """Draw pictures and, beside each, where its importance map lies above or below its mean.

    Args:
        images: (H, W, 3) uint8 by name.
        maps: (h, w) groups of bits more (or fewer) than the mean, by the same names, on the
            stride-8 grid. All share one scale, symmetric about 0.
    """
    aspect = max(image.shape[0] / image.shape[1] for image in images.values())
    figure, axes = _panels(1, 2 * len(images), width, (width - 1) / (2 * len(images)) * aspect + 0.8, title)
    reach = max(float(np.abs(values).max()) for values in maps.values()) or 1.0
    shown = None
    for i, (name, image) in enumerate(images.items()):
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        axes.flat[2 * i].imshow(image)
        shown = axes.flat[2 * i + 1].imshow(maps[name], cmap="RdBu", vmin=-reach, vmax=reach, extent=extent)
        for ax, text in zip(axes.flat[2 * i : 2 * i + 2], (name, "importance"), strict=True):
            ax.set_title(text, fontweight="normal", fontsize="small")
            ax.axis("off")
    figure.colorbar(shown, ax=axes.ravel().tolist(), label="groups against the mean", shrink=0.8)
    return figure


def level_by_activity(table: pd.DataFrame, title: str) -> Figure:
    """Draw the mean kept level over how busy a position is.

    Args:
        table: columns dial, activity (middle of a bin, grey levels) and level.
    """
    figure, axes = _panels(1, 1, 6, 3.2, title)
    ax = axes.flat[0]
    for i, (dial, part) in enumerate(table.groupby("dial")):
        ax.plot(part.activity, part.level, marker=MARKERS[i], color=HUES[i], label=f"dial {dial:+g}", ms=5)
    ax.set(xlabel="standard deviation inside the 8 x 8 square (grey levels)", ylabel="mean groups kept")
    ax.set_xscale("log")
    ax.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.set_xlim(0.9 * table.activity.min(), 1.1 * table.activity.max())
    figure.legend(fontsize="small", loc="outside right upper")
    return figure


def stream_rates(table: pd.DataFrame, streams: Sequence[str], title: str) -> Figure:
    """Draw each stream's bits over the dial: stacked bits a pixel, and stacked shares.

    Args:
        table: columns dial and estimated_bpp_<stream>, a row a dial.
    """
    figure, axes = _panels(1, 2, 10, 3.4, title)
    table = table.sort_values("dial")
    parts = [table[f"estimated_bpp_{key}"].to_numpy() for key in streams]
    total = np.sum(parts, axis=0)
    for ax, scaled, label in (
        (axes.flat[0], parts, ESTIMATE),
        (axes.flat[1], [100 * p / np.maximum(total, 1e-12) for p in parts], "share of the bits (%)"),
    ):
        ax.stackplot(table.dial, scaled, colors=[STREAM_HUES[k] for k in streams], labels=streams, lw=0)
        ax.set(xlabel="dial b", ylabel=label, xlim=(table.dial.min(), table.dial.max()))
        ax.margins(y=0)
    axes.flat[1].legend(fontsize="small", loc="lower left", frameon=True)
    return figure


def seed_dots(
    table: pd.DataFrame, columns: Sequence[str], x: str, hue: str, title: str, *, zero: bool = False
) -> Figure:
    """Draw one dot a seed and the mean as a bar, by category and group: the spread is seen.

    Args:
        table: columns `x` (categories), `hue` (groups) and the measured columns.
        zero: draw the line of no difference.
    """
    figure, axes = _panels(1, len(columns), 2.9 * len(columns), 3.4, title)
    categories, groups = list(table[x].unique()), list(table[hue].unique())
    for ax, column in zip(axes.flat, columns, strict=True):
        for i, group in enumerate(groups):
            for j, category in enumerate(categories):
                values = table[(table[x] == category) & (table[hue] == group)][column].dropna()
                if values.empty:
                    continue
                place = j + 0.24 * (i - (len(groups) - 1) / 2)
                ax.scatter(
                    np.full(len(values), place), values, s=26, color=HUES[i], marker=MARKERS[i], alpha=0.75,
                    linewidths=0,
                )  # fmt: skip
                ax.hlines(values.mean(), place - 0.1, place + 0.1, color=HUES[i], lw=2.2)
        ax.set_xticks(range(len(categories)), [str(c) for c in categories])
        ax.set(xlim=(-0.6, len(categories) - 0.4), xlabel=x.replace("_", " "), ylabel=_label(column))
        ax.grid(visible=False, axis="x")
        if zero:
            ax.axhline(0, color="black", lw=0.9)
    marks = [
        plt.Line2D([], [], ls="", marker=MARKERS[i], color=HUES[i], label=f"{hue} {g}" if zero else str(g))
        for i, g in enumerate(groups)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(groups))
    return figure
