"""What the training notebooks share: photographs, short runs side by side, equal-rate comparison."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mcml.base.errors import UsageError
from mcml.data import sets as data
from mcml.data.patches import PatchStore
from mcml.lab.parameters import parse_names
from mcml.lab.workers import one_thread, side_by_side
from mcml.metrics.color import luma
from mcml.model.cost import equal_cost_rgb
from mcml.model.model import Model
from mcml.model.settings import Recipe
from mcml.training.checkpoints import read_log
from mcml.training.trainer import Trainer

LUMA_QUALITIES: dict[str, Sequence[float]] = {
    "jpeg": (3, 5, 8, 12, 18, 25, 35, 50),
    "jpeg2000": (160, 96, 64, 40, 26, 18, 12),  # ratios to 8 bits a pixel
}


class Photographs(NamedTuple):
    """Pictures to train on and pictures to judge by, (H, W, 3) uint8 by name, none in both."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    digest: str


class Job(NamedTuple):
    """One run of `run_all`: what to train, and the model whose streams are taken over."""

    recipe: Recipe
    initial: Model | None = None


def photographs(
    dataset: str, test_dataset: str, *, held_out: str = "", train_images: int = 0, crop_px: int = 0
) -> Photographs:
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
    return Photographs(train, {name: centre(image, crop_px) for name, image in test.items()}, digest)


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """Cut the middle out of (H, W, 3), at most `side` pixels either way; 0 leaves it whole."""
    if not side:
        return image
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


@one_thread()
def run(
    recipe: Recipe, images: Sequence[np.ndarray], *, initial: Model | None = None
) -> tuple[Model, list[dict[str, float]]]:
    """Train in a scratch folder; the same loop as `mcml train`, without what it keeps.

    Args:
        recipe: what to train and how.
        images: (H, W, 3) uint8 each.
        initial: a model whose streams are taken over.

    Returns:
        The model of averaged weights, and the log's rows (a row every 10 steps).
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, PatchStore(images), Path(folder), initial=initial)
        trainer.fit(log_every=10)
        return trainer.averaged.eval(), read_log(Path(folder))


def run_all(
    jobs: Mapping[str, Job], images: Sequence[np.ndarray], *, workers: int = 0
) -> dict[str, tuple[Model, list[dict[str, float]]]]:
    """Do several runs side by side, each on one thread, so that their number changes no result.

    Args:
        jobs: by name.
        images: (H, W, 3) uint8 each, for all runs.
        workers: processes, 0 for as many as there are cores; 1 stays in this process.

    Returns:
        What `run` returns, by name, in the order of `jobs`.
    """
    calls = [partial(run, job.recipe, images, initial=job.initial) for job in jobs.values()]
    return dict(zip(jobs, side_by_side(calls, workers), strict=True))


def with_importance(model: Model, kind: str) -> Model:
    """Return a copy of a model whose streams have another importance map, all else the same.

    Args:
        model: any variant.
        kind: "adaptive" (a map that did not exist before starts flat), "uniform" or "none".
    """
    streams = {name: replace(getattr(model.config, name), importance=kind) for name in ("luma", "color")}
    changed = Model(replace(model.config, **streams))
    own = changed.state_dict()
    kept = {name: value for name, value in model.state_dict().items() if name in own}
    changed.load_state_dict(own | kept)
    return changed.eval()


def with_color_code(recipe: Recipe, count: int) -> Recipe:
    """Return a copy with `count` bits a position in each colour stream, and levels that they can fill."""
    levels = min(recipe.model.color.levels, count + 1)
    return recipe.changed(**{"model.color.code_channels": count, "model.color.levels": levels})


def rgb_recipe(recipe: Recipe, steps: int) -> Recipe:
    """Return the rgb variant of equal cost (`equal_cost_rgb`), wholly trained for `steps`."""
    stage, train = replace(recipe.stage, train=""), replace(recipe.train, steps=steps)
    return replace(recipe, model=equal_cost_rgb(recipe.model), stage=stage, train=train)


def luma_codec(
    images: Sequence[np.ndarray], codec: str, qualities: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """Code luma alone as a grey image: means over images by quality.

    Args:
        images: (H, W, 3) uint8 each.
        codec: "jpeg" (optimised Huffman tables) or "jpeg2000" (irreversible, ratios).
        qualities: JPEG qualities or JPEG 2000 ratios; `LUMA_QUALITIES` by default.

    Returns:
        Rows of codec, quality, bpp (bytes of the whole file), psnr_Y (of unrounded luma, as
        for the networks).
    """
    if codec not in LUMA_QUALITIES:
        raise UsageError(f"luma codec '{codec}': known are {', '.join(LUMA_QUALITIES)}")
    rows = []
    for quality in qualities or LUMA_QUALITIES[codec]:
        found = [_code_luma(image, codec, quality) for image in images]
        rows.append(
            {
                "codec": codec,
                "quality": quality,
                "bpp": float(np.mean([f[0] for f in found])),
                "psnr_Y": float(np.mean([f[1] for f in found])),
            }
        )
    return rows


def _code_luma(image: np.ndarray, codec: str, quality: float) -> tuple[float, float]:
    plane = luma(image)
    grey = Image.fromarray(np.clip(np.round(plane), 0, 255).astype(np.uint8))
    file = io.BytesIO()
    if codec == "jpeg":
        grey.save(file, "JPEG", quality=int(quality), optimize=True)
    else:
        grey.save(file, "JPEG2000", quality_mode="rates", quality_layers=[quality], irreversible=True)
    error = np.asarray(Image.open(file), dtype=np.float64) - plane
    return 8 * file.tell() / plane.size, 10 * math.log10(255**2 / float(np.mean(error**2)))


def at_rate(rows: Sequence[Mapping[str, Any]], rate: float, column: str, rate_column: str) -> float:
    """Read a curve at a rate by straight lines over log rate; NaN outside the curve.

    Args:
        rows: points of one system.
        rate: in the unit of `rate_column`, above 0.
        column: what is read.
        rate_column: "estimated_bpp", "bpp", ...
    """
    points = sorted((float(row[rate_column]), float(row[column])) for row in rows)
    rates, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    if not rates[0] <= rate <= rates[-1]:
        return math.nan
    return float(np.interp(math.log(rate), np.log(rates), values))


def paired_gains(
    rows: Sequence[Mapping[str, Any]], rates: Sequence[float], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Subtract independent from fusion at equal estimated rates, run by run.

    Args:
        rows: points with variant, "colour features", seed, estimated_bpp and `columns`.
        rates: bits per pixel; where a curve does not reach, the gain is NaN.
        columns: what is compared.

    Returns:
        Rows of "colour features", seed, estimated_bpp and the columns' differences.
    """
    runs: dict[tuple[int, int], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        of = runs.setdefault((row["colour features"], row["seed"]), {})
        of.setdefault(row["variant"], []).append(row)
    gains = []
    for (count, seed), of in runs.items():
        for rate in rates:
            fused, alone = (
                {c: at_rate(of[variant], rate, c, "estimated_bpp") for c in columns}
                for variant in ("fusion", "independent")
            )
            difference = {c: fused[c] - alone[c] for c in columns}
            gains.append({"colour features": count, "seed": seed, "estimated_bpp": rate, **difference})
    return gains
