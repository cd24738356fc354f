"""What the notebooks' figures share: a style, one look for every system, sheets of pictures, curves.

Arrays and tables in, a matplotlib `Figure` out. Hues are safe for the colour-blind, every axis has its
unit, error maps share a perceptually uniform scale. A pixel of a picture is a whole number of pixels of
the figure, or the picture was reduced with antialiasing: no display adds artefacts of its own.
A figure that one notebook draws once stands there. A figure's alternative text is its label
(`Output.figure` sets it), shown as ``metadata["image/png"]["alt"]`` of the cell's output, where
nbconvert looks for it.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.scale import LogScale, register_scale
from matplotlib.ticker import LogFormatterSciNotation
from PIL import Image

from mcml.base.files import legible
from mcml.lab.evaluate import LOWER_IS_BETTER

HUES = sns.color_palette("colorblind")
MARKERS = "os^DvPX*"
GAP, BAR = 8, 84  # pixels between pictures, and beside maps for their colour bar
STREAM_HUES = {"Y": "#555555", "Cb": HUES[0], "Cr": HUES[3]}
SUPERSCRIPTS = str.maketrans("-\N{MINUS SIGN}0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
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
    "jpeg444": {"color": "#e31a8c", "marker": "v", **THIN},
    "jpeg2000": {"color": HUES[3], "marker": "D", **THIN},
    "webp": {"color": HUES[5], "marker": "P", **THIN},
    "avif420": {"color": HUES[7], "marker": "*", **THIN},
    "avif444": {"color": "#333333", "marker": "d", **THIN},
    "avif420_speed6": {"color": "#bbbbbb", "marker": "<", **THIN},
    "avif444_speed6": {"color": "#777777", "marker": ">", **THIN},
    "hevc444": {"color": "#8c3a1f", "marker": "h", **THIN},
    "vvc420": {"color": "#1f4f8c", "marker": "8", **THIN},
    "jpegxl": {"color": HUES[4], "marker": "p", **THIN},
    "rgb, literal loss": {"color": "#88ccee", "marker": "X"},  # what the notebooks train in seconds
    "streams": {"color": "#117733", "marker": "P"},
    "streams, literal loss": {"color": "#999933", "marker": "P"},
    "luma nowhere": {"color": "#b35c00", "marker": "s", **BROAD},
    "luma in both": {"color": "#0b3c5d", "marker": "o"},
    "luma in the decoder": {"color": "#44aa99", "marker": "^"},
    "luma in the prior": {"color": "#aa4499", "marker": "v"},
    "start, untrained": {"color": "#888888", "marker": "o"},
    "random start": {"color": "#882255", "marker": "X"},
    "threshold start": {"color": "#332288", "marker": "o"},
    "uniform map": {"color": "#44aa99", "marker": "v"},
    "uniform, longer": {"color": "#117733", "marker": "s"},
    "adaptive map": {"color": "#332288", "marker": "D"},
    "A threshold code": {"color": "#882255", "marker": "v"},
    "B scalar latents": {"color": "#cc6677", "marker": "s"},
    "C + hyperprior": {"color": "#999933", "marker": "^"},
    "D + four steps": {"color": "#44aa99", "marker": "P"},
    "E + learned encoder": {"color": "#332288", "marker": "*"},
    "all maps cost": {"color": "#332288", "marker": "^"},
    "all, gamma 4": {"color": "#cc6677", "marker": "o"},
    "only luma's map costs": {"color": "#117733", "marker": "D"},
    "scalar latents": {"color": "#aa4499", "marker": "s"},
    "one dial": {"color": "#888888", "marker": "s"},
    "colour's dial -0.1": {"color": "#117733", "marker": "v"},
    "colour's dial +0.1": {"color": "#cc6677", "marker": "^"},
    "from nothing": {"color": "#888888", "marker": "h"},
    "from nothing, longer": {"color": "#332288", "marker": "s"},
    "cut out": {"color": "#117733", "marker": "^"},
    "released decoders": {"color": "#cc6677", "marker": "D"},
    "factorized prior": {"color": "#aa4499", "marker": "D"},  # what others have published
    "hyperprior": {"color": "#882255", "marker": "s"},
    "cheng2020": {"color": "#44aa99", "marker": "o"},
    "CWIC": {"color": "#999933", "marker": "X"},
    "Cool-chic 5.0": {"color": "#332288", "marker": "P"},
}
SAME = {  # other names of a system: of luma alone a codec has no chroma format, a released model is the model
    "JPEG": "jpeg420", "BPG 4:4:4": "hevc444", "VTM": "vvc420",
    "jpeg": "jpeg444", "avif": "avif444", "released luma": "fusion", "released fusion": "fusion",
    "released scalar_fusion": "scalar_fusion", "released, binary (fusion)": "fusion",
    "released, scalar (scalar_fusion)": "scalar_fusion",
}  # fmt: skip


class _PowersOfTen(LogFormatterSciNotation):
    """Ticks of a logarithmic axis without mathtext."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos).replace(r"$\mathdefault{", "").replace(r"\times", "×").rstrip("}$")
        base, power, digits = text.partition("^{")
        return base + digits.translate(SUPERSCRIPTS) if power else text


class _PlainLogScale(LogScale):
    """matplotlib's ``log``, whose ticks would need mathtext."""

    def __init__(self, *given: Any, **options: Any) -> None:  # matplotlib 3.10 gives an axis
        super().__init__(*given, **options)

    def set_default_locators_and_formatters(self, axis: Any) -> None:
        super().set_default_locators_and_formatters(axis)
        axis.set_major_formatter(_PowersOfTen(self.base))
        axis.set_minor_formatter(_PowersOfTen(self.base, labelOnlyBase=self.subs is not None))


def use_style() -> None:
    """Set fonts, grid and palette for every figure that follows.

    A notebook stores PNG of exactly the figure's pixels, with the figure's label as alternative text.
    Nothing of the user's own matplotlib settings counts, and dollars in names are no formulas.
    """
    plt.rcdefaults()
    register_scale(_PlainLogScale)
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png", bbox_inches=None, pil_kwargs={"optimize": True})
        formatter = shell.display_formatter.formatters["image/png"]
        store = formatter.lookup_by_type(Figure)
        formatter.for_type(Figure, lambda figure: (_lean(figure, store(figure)), {"alt": figure.get_label()}))
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.w_pad": 0.08,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.interpolation": "nearest",
            "text.parse_math": False,
            "svg.hashsalt": "mcml",
        }
    )


def _lean(figure: Figure, png: str) -> str:
    """Return a figure's PNG, base64; one of curves alone in 256 colours, a third of the bytes."""
    if any(ax.images for ax in figure.axes):
        return png
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def look(system: str) -> dict[str, object]:
    """Return the colour, marker and line that a system has in every figure.

    A name that holds a known one ("small fusion", "fusion 36") has its colour and line, and a hollow
    marker of its own; one that nobody knows has a colour and marker that follow from the name alone.
    """
    system = SAME.get(system, system)
    if system in LOOKS:
        return {"linewidth": 1.6, "zorder": 2.8} | LOOKS[system]
    number = zlib.crc32(system.encode())
    marker = MARKERS[number // 16 % len(MARKERS)]
    for known in sorted(LOOKS, key=len, reverse=True):
        if re.search(rf"\b{re.escape(known)}\b", system):
            return look(known) | {"marker": marker, "markerfacecolor": "white"}
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
    ax.set_title(legible(title), fontweight="normal", fontsize="small")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _fit(image: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Return a picture or map for `room` pixels across, and the whole number that it is enlarged by."""
    height, width = image.shape[:2]
    if width <= room:
        return image, room // width
    kind = (np.uint8, Image.Resampling.LANCZOS) if image.ndim == 3 else (np.float32, Image.Resampling.BOX)
    size = room, max(1, round(height * room / width))
    return np.asarray(Image.fromarray(image.astype(kind[0])).resize(size, kind[1])), 1


def _sheet(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], width: float, title: str, left: int = 0, right: int = 0
) -> tuple[Figure, list[list[tuple[Axes, np.ndarray]]]]:
    """Return a figure of at most `width` inches and, by row, axes with the picture that each is to hold.

    Every picture stands on whole pixels of the figure, under its caption; `left` and `right` pixels
    are kept beside them.
    """
    dpi, columns = plt.rcParams["figure.dpi"], max(map(len, rows))
    room = (round(width * dpi) - left - right - GAP) // columns - GAP
    fitted = [[(text, *_fit(image, room)) for text, image in row] for row in rows]
    texts = [line for row in rows for text, _ in row for line in text.splitlines()]
    widest = max(image.shape[1] * scale for row in fitted for _, image, scale in row)
    cell = min(room, max(widest, int(5.4 * max(map(len, texts), default=0))))
    above = [max(17 * len(text.splitlines()) for text, _ in row) + GAP for row in rows]
    tall = [max(image.shape[0] * scale for _, image, scale in row) for row in fitted]
    top = 20 if title else 0
    across, down = left + right + columns * (cell + GAP) + GAP, top + sum(above) + sum(tall) + GAP
    figure = plt.figure(figsize=(across / dpi, down / dpi), layout=PlaceHolderLayoutEngine(True, False))
    if title:
        figure.suptitle(title, fontweight="bold", y=1 - 6 / down, va="top")
    axes: list[list[tuple[Axes, np.ndarray]]] = []
    for row, over, high in zip(fitted, above, tall, strict=True):
        top, x = top + over, left + GAP
        axes.append([])
        for text, image, scale in row:
            h, w = image.shape[0] * scale, image.shape[1] * scale
            box = (
                x + (cell - w) // 2 + 1e-3,
                down - top - h + 1e-3,
                w - 2e-3,
                h - 2e-3,
            )  # never one pixel more
            ax = figure.add_axes([box[0] / across, box[1] / down, box[2] / across, box[3] / down])
            ax.set_title(legible(text), fontweight="normal", fontsize="small", pad=4)
            axes[-1].append((ax, image))
            x += cell + GAP
        top += high
    return figure, axes


def _in_rows(images: Mapping[str, np.ndarray], columns: int) -> list[list[tuple[str, np.ndarray]]]:
    named = list(images.items())
    return [named[i : i + columns] for i in range(0, len(named), columns)]


def gallery(
    images: Mapping[str, np.ndarray], title: str = "", columns: int = 4, width: float = 9.0
) -> Figure:
    """Draw pictures under their names: those that fit pixel by pixel, larger ones reduced.

    Args:
        images: (H, W, 3) uint8 by caption; any sizes.
        columns: pictures in a row.
        width: of the figure in inches, at most; smaller pictures are enlarged by a whole number.
    """
    figure, rows = _sheet(_in_rows(images, columns), width, title)
    for ax, image in [pair for row in rows for pair in row]:
        picture(ax, image, ax.get_title())
    return figure


def error_maps(
    maps: Mapping[str, np.ndarray], title: str, unit: str, vmax: float, columns: int = 3, width: float = 9.0,
    *, signed: bool = False,
) -> Figure:  # fmt: skip
    """Draw (H, W) maps by caption on one scale from 0 to `vmax`, with a colour bar of `unit`.

    Signed maps are drawn from -vmax to `vmax`, white where there is no difference. Maps that do not fit
    are reduced by means; (H, W, 3) uint8 among them are drawn as the pictures that they are.
    """
    figure, rows = _sheet(_in_rows(maps, columns), width, title, right=BAR)
    scale = {"cmap": "RdBu", "vmin": -vmax} if signed else {"cmap": "magma", "vmin": 0}
    axes = [ax for row in rows for ax, _ in row]
    for ax, values in [pair for row in rows for pair in row]:
        ax.imshow(values, **({} if values.ndim == 3 else {"vmax": vmax, **scale}))
        ax.axis("off")
    shown = next(ax.images[0] for ax in axes if ax.images[0].get_array().ndim == 2)
    low, high = min(ax.get_position().y0 for ax in axes), max(ax.get_position().y1 for ax in axes)
    across = figure.bbox.width
    bar = figure.add_axes([(across - BAR + GAP) / across, low, 12 / across, high - low])
    figure.colorbar(shown, cax=bar, label=unit, extend="both" if signed else "max")
    return figure


def zooms(
    reference: np.ndarray,
    decodes: Mapping[str, np.ndarray],
    boxes: Mapping[str, tuple[int, int, int]],
    title: str = "",
    width: float = 9.5,
) -> Figure:
    """Draw details, enlarged by whole numbers: one row a place, the original first, then every decode.

    Args:
        reference: (H, W, 3) uint8.
        decodes: the same shape, by caption.
        boxes: (top, left, side) in pixels by row label.
    """
    pictures = {"original": reference, **decodes}
    cut = [
        [
            (name * (not index), image[top : top + side, left : left + side])
            for name, image in pictures.items()
        ]
        for index, (top, left, side) in enumerate(boxes.values())
    ]
    figure, rows = _sheet(cut, width, title, left=20)
    for row, label in zip(rows, boxes, strict=True):
        for ax, image in row:
            picture(ax, image, ax.get_title())
            ax.title.set(size="medium", weight="bold")
        row[0][0].set_ylabel(label, size="medium", weight="bold")
    return figure


def bias_scatter(shifts: Mapping[str, np.ndarray], title: str, unit: float = 2.3) -> Figure:
    """Draw each block's shift of a* and b*, one panel a codec, and the mean shift.

    Args:
        shifts: (N, 2) of (da*, db*) by codec, or by "codec: more".
        unit: radius of the circle of one just-noticeable difference.
    """
    across = min(len(shifts), 3)
    rows = -(-len(shifts) // across)
    figure, axes = panels(rows, across, 9.5, 9.5 / across * rows + 0.9, title)
    for ax in axes.flat[len(shifts) :]:
        ax.axis("off")
    reach = max(unit, *(float(np.abs(s).max()) for s in shifts.values())) * 1.05
    for ax, (name, shift) in zip(axes.flat, shifts.items(), strict=False):
        system = name.partition(":")[0]
        hue = look(system)["color"] if SAME.get(system, system) in LOOKS else HUES[0]
        ax.scatter(shift[:, 0], shift[:, 1], s=11, alpha=0.6, color=hue, linewidths=0, label="one block")
        ax.add_patch(plt.Circle((0, 0), unit, fill=False, color="black", lw=1))
        ring = {"marker": "o", "ms": 9, "mfc": "none", "mec": "black", "ls": ""}
        ax.plot([], [], **ring, label=f"just noticeable: {unit:g} CIELAB units")
        ax.plot(*shift.mean(axis=0), "P", ms=9, color="black", mec="white", label="mean of the blocks")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=name)
        ax.set_xlabel("shift of a*, green to red")
        if ax in axes[:, 0]:
            ax.set_ylabel("shift of b*, blue to yellow")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
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


def draw_gains(
    ax: Axes, table: pd.DataFrame, column: str, base: str, *, rate: str = "bpp", by: str = "codec"
) -> None:
    """Draw what systems have more than `base` at equal rates (less of what is better low): up is better.

    Args:
        table, column, rate, by: as `draw_curves` takes them; `base` is read by straight lines over log
            rate, and nothing is drawn beyond its ends.
    """
    of = table[table[by] == base].sort_values(rate)
    sign = -1 if column in LOWER_IS_BETTER else 1
    read = np.interp(np.log(table[rate]), np.log(of[rate]), of[column], left=np.nan, right=np.nan)
    others = table.assign(**{column: sign * (table[column] - read)})[table[by] != base]
    draw_curves(ax, others, column, rate=rate, by=by)
    ax.axhline(0, **look(base) | {"marker": "", "zorder": 1.5})
    unit = re.search(r" \(.*\)|$", LABELS.get(column, column)).group()
    ax.set(title=f"gain over '{base}'", ylabel=f"gain{unit}, up is better")


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
    figure, axes = panels(1, len(columns), 10, 3.2, title)
    for ax, (column, name) in zip(axes.flat, columns.items(), strict=True):
        for run, log in logs.items():
            if column in log:
                hue = STREAM_HUES.get(run, look(run)["color"])
                ax.plot(log.step, log[column], color=hue, lw=0.8, alpha=0.35 if smooth > 1 else 1.0)
                mean = log[column].rolling(smooth, min_periods=1, center=True).mean()
                ax.plot(log.step, mean, color=hue, lw=1.8, label=run)
        ax.set(title=name, xlabel="step")
    handles = {line.get_label(): line for ax in axes.flat for line in ax.lines if line.get_label() in logs}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return figure


def intervals(
    table: pd.DataFrame, value: str, title: str, *, panel: str, x: str, hue: str, label: str,
    lines: Mapping[str, float] | None = None, across: int = 4,
) -> Figure:  # fmt: skip
    """Draw values with their intervals: a panel for each `panel`, groups side by side, one scale.

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
        if ax is not axes.flat[0]:
            ax.sharey(axes.flat[0])
        for j, group in enumerate(groups):
            own = table[(table[panel] == name) & (table[hue] == group)]
            place = [steps.index(step) + (j - (len(groups) - 1) / 2) * 0.5 / len(groups) for step in own[x]]
            spread = own[value] - own[f"{value}_low"], own[f"{value}_high"] - own[value]
            style = look(group) | {"ls": "", "ms": 5, "capsize": 2.5, "linewidth": 1.3, "alpha": 1}
            ax.errorbar(place, own[value], spread, label=group, **style)
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
