"""Any codec on any images: one tidy table of rates and distortions; rate savings from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcml.base.errors import DataError, McmlError, UsageError
from mcml.base.files import legible
from mcml.codec import interface as codecs
from mcml.data.images import Color, check_stems, read_image
from mcml.lab.workers import attempt, side_by_side
from mcml.metrics import distortion as metrics

KEYS = ("image", "codec", "quality", "target_bpp", "bpp", "reached")
LOWER_IS_BETTER = frozenset({"mse", "delta_e76", "ciede2000", "rgb_angle", "bias_block"})


def evaluate(
    paths: Sequence[Path],
    codec_names: Sequence[str],
    target_bpp: Sequence[float] | None = None,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    background: Color | None = None,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
    failed: Callable[[Path, McmlError], None] | None = None,
) -> pd.DataFrame:
    """Encode, decode and measure every image with every codec, in parallel over both.

    Args:
        paths: image files; `image` in the table is a file's stem.
        codec_names: see `mcml.codec.names`.
        target_bpp: rates to search for; None takes each codec's default qualities.
        workers: processes; 0 means one for each core.
        progress: called with (done, total) after each image and codec.
        background: behind transparent pixels, as in `mcml.data.read_image`.
        keep: called with the rows of each image and codec as they come.
        failed: called with an image that cannot be read or coded, and why: it is left out of the table,
            with all codecs, so that their means are of the same images. Without, the error is raised.

    Returns:
        One row for each image, codec and rate: `KEYS`, then `mcml.metrics.COLUMNS`, in
        the order of the arguments. `target_bpp` is NaN where none was asked for;
        `reached` says whether `bpp` is within 2 % of it (True where none was asked for).

    Raises:
        UsageError: for an unknown codec or a rate that is not above 0.
        DataError: for an unreadable image without `failed`, or two images of one name.
    """
    for name in codec_names:
        codecs.get_codec(name)
    for target in target_bpp or ():
        if not target > 0:
            raise UsageError(f"target bpp {target}: expected a number above 0")
    if target_bpp is not None and len(target_bpp) == 0:
        raise UsageError("no rate to evaluate at: give some, or None for the codecs' own qualities")
    check_stems(list(paths))
    pairs = [(path, name) for path in paths for name in codec_names]
    calls = [partial(attempt, partial(_image_rows, *pair, target_bpp, background)) for pair in pairs]
    order, made, lost = iter(pairs), [], set()

    def take(result: list[dict[str, Any]] | McmlError) -> None:
        path, _ = next(order)
        if isinstance(result, McmlError):
            if failed is None:
                raise result
            if path not in lost:
                failed(path, result)
            lost.add(path)
        else:
            made.append((path, result))
            if keep:
                keep(result)

    side_by_side(calls, workers, progress, take)
    rows = [row for path, rows in made if path not in lost for row in rows]
    return pd.DataFrame(rows, columns=[*KEYS, *metrics.COLUMNS])


def _image_rows(
    path: Path, codec_name: str, target_bpp: Sequence[float] | None, background: Color | None
) -> list[dict[str, Any]]:
    """Return the rows of one image and codec: at rates, or at the codec's own qualities."""
    image, codec = read_image(path, background), codecs.get_codec(codec_name)
    rows, encoder = [], cache(codec.encoder(image))  # searches of several rates try the same qualities
    for point in target_bpp or codec.qualities:
        if target_bpp is None:
            data, quality, target, reached = encoder(point), point, np.nan, True
        else:
            file = codecs.encode_at_bpp(codec, image, point, encoder=encoder)
            data, quality, target, reached = file.data, file.quality, point, file.reached
        key = (legible(path.stem), codec_name, quality, target, codecs.bits_per_pixel(data, image), reached)
        row = metrics.compare(image, codec.decode(data))
        rows.append({**dict(zip(KEYS, key, strict=True)), **vars(row)})
    return rows


def check_reach(table: pd.DataFrame) -> None:
    """Raise `DataError` for a target that every file missed by a factor of 2 or more."""
    for target, rows in table.dropna(subset="target_bpp").groupby("target_bpp"):
        if (rows.bpp > 2 * target).all() or (rows.bpp < target / 2).all():
            nearest = rows.loc[(rows.bpp / target).map(np.log).abs().idxmin()]
            raise DataError(
                f"target {target:g} bpp is out of reach: the nearest file has {nearest.bpp:.3f} bpp "
                f"({nearest.codec} on {nearest.image})"
            )


def misses(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each codec and target that was missed by more than 2 % somewhere."""
    missed = table[~table.reached.astype(bool)]
    off = 100 * (missed.bpp / missed.target_bpp - 1)
    return [
        f"{name} missed {target:g} bpp by more than 2 % on {len(percent)} image(s) "
        f"({percent.min():+.1f} to {percent.max():+.1f} %): its quality steps are coarse or end there"
        for (name, target), percent in off.groupby([missed.codec, missed.target_bpp], sort=False)
    ]


def mean_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over images of each codec and rate, in order of appearance.

    Infinite and NaN values are left out as in `mcml.metrics.mean_row`; `images` counts
    the rows and `identical` those without any difference.
    """
    by = ["codec", "target_bpp"] if table.target_bpp.notna().all() else ["codec", "quality"]
    groups = table.drop(columns=["image", "reached"]).groupby(by, sort=False)
    return pd.DataFrame(
        dict(zip(by, key, strict=True)) | metrics.mean_row(rows.drop(columns=by).to_dict("records"))
        for key, rows in groups
    )


def bd_rate(means: pd.DataFrame, anchor: str, column: str) -> pd.DataFrame:
    """Bjontegaard rate difference of each codec to an anchor at equal `column`.

    Piecewise cubic (PCHIP) interpolation of log rate by the `bjontegaard` package, over
    the range of `column` that both curves cover.

    Args:
        means: `mean_table`'s result with at least two rates for each codec.
        anchor: a codec in it.
        column: a distortion, for instance ``psnr`` or ``ciede2000``.

    Returns:
        Rows of `codec`, `anchor`, `column`, `bd_rate_percent` (negative: fewer bits than
        the anchor; NaN without overlap) and `overlap` (share of the union of both ranges).
    """
    if anchor not in set(means.codec):
        raise UsageError(f"BD-rate anchor '{anchor}' is not in the table")
    sign = -1 if column in LOWER_IS_BETTER else 1
    curves = {}
    for name in means.codec.unique():
        points = means[(means.codec == name) & np.isfinite(means[column])].sort_values("bpp")
        quality = sign * points[column].to_numpy()
        rising = np.diff(np.maximum.accumulate(quality), prepend=-np.inf) > 0
        curves[name] = points.bpp.to_numpy()[rising], quality[rising]
    columns = ("codec", "anchor", "column", "bd_rate_percent", "overlap")
    rows = [(name, anchor, column, *_rate_difference(*curves[anchor], *curves[name])) for name in curves]
    return pd.DataFrame(rows, columns=columns)


def _rate_difference(
    rate_a: np.ndarray, quality_a: np.ndarray, rate_b: np.ndarray, quality_b: np.ndarray
) -> tuple[float, float]:
    """Return percent of rate and the ranges' overlap, of curves that rise."""
    import bjontegaard

    if not (len(quality_a) and len(quality_b)):
        return np.nan, 0.0
    both = min(quality_a[-1], quality_b[-1]) - max(quality_a[0], quality_b[0])
    union = max(quality_a[-1], quality_b[-1]) - min(quality_a[0], quality_b[0])
    overlap = max(both, 0) / union if union > 0 else 0.0
    if not overlap or min(len(rate_a), len(rate_b)) < 2:
        return np.nan, overlap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a small overlap, which is a column here
        options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
        return bjontegaard.bd_rate(rate_a, quality_a, rate_b, quality_b, **options), overlap
