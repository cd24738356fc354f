"""Figures of files: curves over bytes, what the bytes hold, what the seconds go to.

Style, hues and labels are those of `mcml.figures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcml.codec.classical import CODECS
from mcml.lab.evaluate import LOWER_IS_BETTER
from mcml.lab.figures import HUES, LABELS, MARKERS, STREAM_HUES, codec_style

PHASES = {"networks": "#999999", "entropy": HUES[1], "all": HUES[0]}
PARTS = ("Y", "Cb", "Cr", "RGB", "Y map", "Cb map", "Cr map", "RGB map", "framing", "coder")


def _panels(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.suptitle(title, fontweight="bold")
    return figure, axes


def _arrow(column: str) -> str:
    better = "lower" if column in LOWER_IS_BETTER else "higher"
    return f"{LABELS.get(column, column)}, {better} is better"


def _weight(name: str, names: Sequence[str]) -> dict[str, float]:
    """Return a line's width and depth: classical codecs thin, networks after the first broad and behind."""
    if name in CODECS:
        return {"lw": 1.2, "zorder": 2.5}
    if name == next(n for n in names if n not in CODECS):
        return {"lw": 2.0, "zorder": 3.0}
    return {"lw": 4.5, "alpha": 0.45, "zorder": 2.0}


def metric_grid(means: pd.DataFrame, columns: Sequence[str], title: str, across: int = 3) -> Figure:
    """Draw mean distortion over mean rate of files: a panel a metric, a line a codec.

    Args:
        means: columns codec, bpp and `columns`; a row for each codec and rate.
        columns: metrics to draw; each panel says which direction is better.
        across: panels in a row.
    """
    rows = -(-len(columns) // across)
    figure, axes = _panels(rows, min(across, len(columns)), 10, 3.0 * rows + 0.7, title)
    for ax in axes.flat[len(columns) :]:
        ax.axis("off")
    names = list(means.codec.unique())
    others: list[str] = []
    for ax, column in zip(axes.flat, columns, strict=False):
        for name in names:
            curve = means[means.codec == name].sort_values("bpp")
            style = codec_style(name)
            if name in others:
                i = others.index(name)
                style = {"color": HUES[i], "marker": MARKERS[i]}
            ax.plot(curve.bpp, curve[column], label=name, ms=4.5, **style, **_weight(name, names))
        ax.set(xlabel="bits per pixel of the file", title=_arrow(column))
        ax.title.set_fontsize("small")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return figure


def saved_bits(table: pd.DataFrame, title: str) -> Figure:
    """Draw, for each part of a file, the bits before and after entropy coding.

    Args:
        table: columns kind (a panel each), part, raw_bpp and coded_bpp.
    """
    kinds = list(table.kind.unique())
    figure, axes = _panels(1, len(kinds), 10, 3.4, title)
    for ax, kind in zip(axes.flat, kinds, strict=True):
        part = table[table.kind == kind]
        part = part.assign(place=part.part.map(PARTS.index)).sort_values("place")
        y = np.arange(len(part))
        hues = [STREAM_HUES.get(name.split()[0], "#bbbbbb") for name in part.part]
        ax.barh(y - 0.2, part.raw_bpp, height=0.38, color=hues, alpha=0.35, label="before")
        ax.barh(y + 0.2, part.coded_bpp, height=0.38, color=hues, label="after")
        for place, row in zip(y, part.itertuples(), strict=True):
            saving = f"{100 * (1 - row.coded_bpp / row.raw_bpp):.0f} % saved" if row.raw_bpp else "added"
            ax.text(max(row.raw_bpp, row.coded_bpp), place, f" {saving}", va="center", fontsize=8)
        ax.set_yticks(y, part.part)
        ax.set(xlabel="bits per pixel, pale before and full after coding", title=kind)
        ax.set_xlim(0, 1.3 * max(table.raw_bpp.max(), table.coded_bpp.max()))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
    return figure


def overhead_dots(table: pd.DataFrame, title: str) -> Figure:
    """Draw by how many bytes each file exceeds its estimate: a dot a file.

    Args:
        table: columns kind, ideal_bytes, file_bytes, framing_bytes.
    """
    figure, axes = _panels(1, 1, 7, 3.2, title)
    ax = axes.flat[0]
    for i, (kind, part) in enumerate(table.groupby("kind", sort=False)):
        ax.scatter(part.ideal_bytes, part.file_bytes - part.ideal_bytes, s=30, color=HUES[i],
                   marker=MARKERS[i], label=f"{kind}: file less estimate")  # fmt: skip
        ax.axhline(
            part.framing_bytes.mean(), color=HUES[i], lw=1, ls=":", label=f"{kind}: header and checksums"
        )
    ax.set(xlabel="estimate: ideal code length (bytes)", ylabel="bytes above the estimate")
    ax.set_ylim(bottom=0)
    figure.legend(fontsize="small", loc="outside right center")
    return figure


def phase_bars(table: pd.DataFrame, title: str) -> Figure:
    """Draw seconds of encoding and decoding, stacked by phase.

    Args:
        table: `mcml.accounting.time_codecs`'s rows: codec, direction, phase, seconds.
    """
    names = list(table.codec.unique())
    figure, axes = _panels(1, 2, 10, 0.36 * len(names) + 1.6, title)
    for ax, direction in zip(axes.flat, ("encode", "decode"), strict=True):
        part = table[table.direction == direction]
        left = np.zeros(len(names))
        for phase, hue in PHASES.items():
            of = part[part.phase == phase].set_index("codec").seconds.reindex(names).fillna(0).to_numpy()
            if of.any():
                ax.barh(names, of, left=left, color=hue, label="codec in C" if phase == "all" else phase)
                left += of
        for y, value in enumerate(left):
            ax.text(value, y, f" {1000 * value:.0f} ms", va="center", fontsize=8)
        ax.set(title=direction, xlabel="seconds, median", xlim=(0, 1.25 * left.max()))
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def published_context(
    ours: pd.DataFrame, published: pd.DataFrame, columns: Sequence[str], title: str, *, together: bool
) -> Figure:
    """Draw published curves as context: beside ours, or, on the same pictures, behind them.

    Args:
        ours: columns codec, bpp and `columns`.
        published: the same and rate ("file", "estimate", ...), numbers of others.
        columns: a row of panels each; MS-SSIM is drawn in decibels, which spreads what is near 1.
        together: ours are of the pictures that the published curves are of, and may share a panel.
    """
    ours, published = (t.assign(ms_ssim=-10 * np.log10(1 - t.ms_ssim)) for t in (ours, published))
    labels = LABELS | {"ms_ssim": "-10 log10(1 - MS-SSIM) (dB)"}
    count = 1 if together else 2
    figure, axes = _panels(len(columns), count, 10 if count == 2 else 8.5, 3.3 * len(columns) + 0.6, title)
    for row, column in zip(axes, columns, strict=True):
        for ax in row:
            ax.set(xlabel="bits per pixel", ylabel=labels.get(column, column), xlim=(0, 1.05))
        row[0].set_title("ours: bytes of files" + ("" if together else ", our photographs"))
        if not together:
            row[1].set_title("published, Kodak: numbers of others")
        _context(row[-1], published, column)
        for name in ours.codec.unique():
            curve = ours[ours.codec == name].sort_values("bpp")
            weight = _weight(name, list(ours.codec.unique()))
            row[0].plot(curve.bpp, curve[column], label=name, ms=4.5, **codec_style(name), **weight)
        seen = pd.concat([ours, published])
        seen = seen[seen.bpp <= 1.05][column].dropna()
        for ax in row:
            ax.set_ylim(seen.min() - 0.03 * np.ptp(seen), seen.max() + 0.03 * np.ptp(seen))
    entries = [pair for ax in axes[0] for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*entries, strict=True), loc="outside right center", fontsize="small")
    return figure


def _context(ax: Axes, published: pd.DataFrame, column: str) -> None:
    """Draw curves of others thin and dashed, dotted where the rate is no file's."""
    shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, published.codec.nunique()))
    for i, (name, curve) in enumerate(published.groupby("codec", sort=False)):
        rate, curve = curve.rate.iloc[0], curve.dropna(subset=column).sort_values("bpp")
        label = f"{name} (published{'' if rate == 'file' else ', rate: ' + rate})"
        ax.plot(curve.bpp, curve[column], color=shades[i], lw=1.1, ls="--" if rate == "file" else ":",
                marker=MARKERS[i % len(MARKERS)], ms=3, alpha=0.8, label=label)  # fmt: skip
