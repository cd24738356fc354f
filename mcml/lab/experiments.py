"""What the training notebooks share: photographs, short runs side by side, curves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.interpolate import pchip_interpolate

from mcml.base.errors import UsageError, choose
from mcml.data import sets as data
from mcml.data.patches import PatchStore
from mcml.lab.parameters import parse_names
from mcml.lab.workers import one_thread, side_by_side
from mcml.metrics.color import luma, to_uint8
from mcml.metrics.distortion import psnr_from_mse
from mcml.model.model import Model
from mcml.model.settings import Recipe
from mcml.training.trainer import Trainer

LUMA_QUALITIES: dict[str, Sequence[float]] = {
    "jpeg": (3, 5, 8, 12, 18, 25, 35, 50),
    "jpeg2000": (160, 96, 64, 40, 26, 18, 12),  # ratios to 8 bits a pixel
    "avif": (5, 10, 15, 20, 26, 32, 40, 50, 60),
}


class SplitPhotographs(NamedTuple):
    """Pictures to train on and pictures to judge by, (H, W, 3) uint8 by name, none in both."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    digest: str


class TrainingRun(NamedTuple):
    """What to train, and the model whose streams are taken over."""

    recipe: Recipe
    initial: Model | None = None


def split_photographs(
    dataset: str, test_dataset: str, *, held_out: str = "", train_images: int = 0, crop_px: int = 0
) -> SplitPhotographs:
    """Return training and test pictures after checking that none is in both.

    Args:
        dataset: data set to train on.
        test_dataset: data set to judge by; "" takes the pictures `held_out` of `dataset`.
        held_out: names separated by commas, used only without a `test_dataset`.
        train_images: how many to train on, 0 for all.
        crop_px: longest side of the test pictures' centre crops, 0 for whole pictures.

    Raises:
        DataError: if a picture of one set looks like one of the other.
        UsageError: for an unknown name.
    """
    source = data.image_set(dataset)
    if test_dataset:
        judge = data.image_set(test_dataset)
        paths, test_paths = list(source.paths), list(judge.paths)
        digest = f"{source.digest[:32]}{judge.digest[:32]}"
    else:
        names = parse_names(held_out)
        test_paths = [next(p for p in source.paths if p.stem == n) for n in names if len(source.read(n))]
        paths, digest = [p for p in source.paths if p not in test_paths], source.digest
    paths = paths[: train_images or None]
    if not paths or not test_paths:
        raise UsageError(
            f"{len(paths)} pictures to train on, {len(test_paths)} to judge by: need one of each"
        )
    data.check_disjoint({"train": paths, "test": test_paths})
    train, test = ({p.stem: data.read_image(p) for p in part} for part in (paths, test_paths))
    return SplitPhotographs(
        train, {name: centre_crop(image, crop_px) for name, image in test.items()}, digest
    )


def centre_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Cut the middle out of (H, W, 3), at most `side` pixels either way; 0 leaves it whole."""
    if not side:
        return image
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def short_run(width: int, code_channels: int, steps: int, batch: int, patch_px: int) -> dict[str, Any]:
    """Return settings of a run of seconds: context models that learn at each step, and fast."""
    return {
        "model.luma.width": width,
        "model.luma.code_channels": code_channels,
        "train.steps": steps,
        "train.batch": batch,
        "train.patch_px": patch_px,
        "train.context_every": 1,
        "train.context_lr": 0.01,
        "stage.encoder_lr": 1.0,
    }


@one_thread()
def run(
    recipe: Recipe, images: Sequence[np.ndarray], *, initial: Model | None = None
) -> tuple[Model, list[dict[str, float]]]:
    """Train; the same loop as `mcml train`, without what it keeps.

    Args:
        recipe: what to train and how.
        images: (H, W, 3) uint8 each.
        initial: a model whose streams are taken over.

    Returns:
        The model of averaged weights, and the log's rows (a row every 10 steps).
    """
    trainer = Trainer(recipe, PatchStore(images), None, initial=initial)
    trainer.fit(log_every=10)
    return trainer.averaged.eval(), trainer.rows


@one_thread()
def untrained(recipe: Recipe, images: Sequence[np.ndarray], *, initial: Model | None = None) -> Model:
    """Return what `run` would begin with: the recipe's start, and the streams of `initial`."""
    return Trainer(recipe, PatchStore(images), None, initial=initial).averaged.eval()


def run_all(
    runs: Mapping[str, TrainingRun], images: Sequence[np.ndarray], *, workers: int = 0
) -> dict[str, tuple[Model, list[dict[str, float]]]]:
    """Do several runs side by side, each on one thread, so that their number changes no result.

    Args:
        runs: by name.
        images: (H, W, 3) uint8 each, for all runs.
        workers: processes, 0 for as many as there are cores; 1 stays in this process.

    Returns:
        What `run` returns, by name, in the order of `runs`.
    """
    calls = [partial(run, recipe, images, initial=initial) for recipe, initial in runs.values()]
    return dict(zip(runs, side_by_side(calls, workers), strict=True))


def luma_codec(
    images: Sequence[np.ndarray], codec: str, qualities: Sequence[float] = (), *, speed: int = 6
) -> list[dict[str, Any]]:
    """Code luma alone as a grey image: means over images by quality.

    Args:
        images: (H, W, 3) uint8 each.
        codec: "jpeg" (optimised Huffman tables), "jpeg2000" (irreversible) or "avif" (4:0:0, one thread).
        qualities: JPEG 2000 takes ratios; `LUMA_QUALITIES` by default.
        speed: of the AVIF encoder, from 0, the slowest, to 10.

    Returns:
        Rows of codec, quality, bpp (bytes of the whole file), psnr_Y (of unrounded luma, as
        for the networks).
    """
    rows = []
    for quality in qualities or LUMA_QUALITIES[choose("luma codec", codec, LUMA_QUALITIES)]:
        files = [_code_luma(image, codec, quality, speed) for image in images]
        bpp, psnr = np.mean(files, axis=0)
        rows.append({"codec": codec, "quality": quality, "bpp": float(bpp), "psnr_Y": float(psnr)})
    return rows


def _code_luma(image: np.ndarray, codec: str, quality: float, speed: int) -> tuple[float, float]:
    plane, file = luma(image), io.BytesIO()
    grey = Image.fromarray(to_uint8(plane))
    if codec == "jpeg":
        grey.save(file, "JPEG", quality=int(quality), optimize=True)
    elif codec == "avif":
        grey.save(file, "AVIF", quality=int(quality), speed=speed, max_threads=1)
    else:
        grey.save(file, "JPEG2000", quality_mode="rates", quality_layers=[quality], irreversible=True)
    error = np.asarray(Image.open(file), dtype=np.float64) - plane
    return 8 * file.tell() / plane.size, psnr_from_mse(float(np.mean(error**2)))


def at_rate(
    rows: Sequence[Mapping[str, Any]], rate: float, column: str, rate_column: str, *,
    extend: bool = False, smooth: bool = False,
) -> float:  # fmt: skip
    """Read a curve at a rate by straight lines over log rate.

    Args:
        rows: points of one system.
        rate: in the unit of `rate_column`, above 0.
        column: what is read.
        rate_column: "estimated_bpp", "bpp", ...
        extend: go on along the curve's first or last line outside it, where the value is NaN otherwise.
        smooth: piecewise cubic (PCHIP) instead of straight lines, for curves of few points.
    """
    pairs = ((math.log(float(row[rate_column])), float(row[column])) for row in rows)
    points = dict(sorted(pair for pair in pairs if math.isfinite(pair[1])))
    rates, values, wanted = list(points), list(points.values()), math.log(rate)
    if points and rates[0] <= wanted <= rates[-1]:
        if smooth and len(points) > 1:
            return float(pchip_interpolate(rates, values, wanted))
        return float(np.interp(wanted, rates, values))
    if not extend or len(points) < 2:
        return math.nan
    end = slice(0, 2) if wanted < rates[0] else slice(-2, None)
    return float(np.poly1d(np.polyfit(rates[end], values[end], 1))(wanted))


def pictures_at_rates(
    rows: Sequence[Mapping[str, Any]], rates: Sequence[float], columns: Sequence[str], rate_column: str, *,
    smooth: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Read every system's curve of every picture at equal rates.

    Args:
        rows: points with `system` and `image`, `rate_column` and `columns`.
        rates, columns, rate_column, smooth: see `at_rate`.

    Returns:
        A row a system, rate and picture: system, image, rate, the columns, and `extended`: whether the
        curve ends before the rate and was continued by a straight line.
    """
    curves, table = dict[str, dict[str, list[Mapping[str, Any]]]](), []
    for row in rows:
        curves.setdefault(row["system"], {}).setdefault(row["image"], []).append(row)
    for system, own in curves.items():
        for rate, (image, curve) in product(rates, own.items()):
            read = {c: at_rate(curve, rate, c, rate_column, extend=True, smooth=smooth) for c in columns}
            ends = math.isnan(at_rate(curve, rate, rate_column, rate_column))
            table.append({"system": system, "image": image, "rate": rate} | read | {"extended": ends})
    return table


def at_rates(
    rows: Sequence[Mapping[str, Any]], rates: Sequence[float], columns: Sequence[str], rate_column: str, *,
    smooth: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """Read systems at equal rates, each picture on its own curve: means over pictures.

    Args:
        rows, rates, columns, rate_column, smooth: see `pictures_at_rates`.

    Returns:
        A row a system and rate: system, rate, the columns, images, and `extended`: how many of the
        pictures' curves end before the rate and were continued by a straight line.
    """
    groups, table = dict[tuple[str, float], list[Mapping[str, Any]]](), []
    for row in pictures_at_rates(rows, rates, columns, rate_column, smooth=smooth):
        groups.setdefault((row["system"], row["rate"]), []).append(row)
    for (system, rate), own in groups.items():
        means = {c: float(np.mean([row[c] for row in own])) for c in columns}
        counts = {"images": len(own), "extended": sum(row["extended"] for row in own)}
        table.append({"system": system, "rate": rate} | means | counts)
    return table
