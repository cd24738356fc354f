"""What luma is worth to colour: real files at the very same luma bytes, bytes saved at equal quality.

A *cell* of the experiment is a model of scalar latents that differs from the others in its colour streams
alone: whether their decoders see luma's latents (the poster's fusion), whether their priors do, how many
latents they have, and the seed of their training.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from mcml.base.errors import DataError, UsageError
from mcml.base.files import atomic_write, to_csv
from mcml.codec.interface import encode_at_bpp
from mcml.codec.latents import CodedStream
from mcml.codec.learned import TILE_PX, LearnedCodec
from mcml.codec.prior import dial_of
from mcml.codec.transforms import synthesis_transform
from mcml.data.images import read_image
from mcml.data.sets import ImageSet
from mcml.lab.curves import write_record
from mcml.lab.experiments import at_rate
from mcml.lab.output import as_rows, provenance
from mcml.lab.workers import side_by_side
from mcml.metrics.color import luma, rgb_to_lab, rgb_to_ycbcr
from mcml.metrics.distortion import ciede2000_map, psnr_from_mse, rgb_angle_map

RATES = (0.1, 0.15, 0.2, 0.3, 0.6)  # bits a pixel of the first cell's files; the last is the poster's
SHARE, SHARES = 5.0, (-7.0, 5.0, 17.0)  # points of quality that colour has beyond luma's
JUDGED = {"ciede2000": -1, "psnr_color": 1, "rgb_angle": -1}  # 1: more is better
EDGE, SATURATED = 8.0, 20.0  # luma's slope in grey levels a pixel; C*ab
PLACES = ("flat_grey", "flat_color", "edge_grey", "edge_color")
GAINED = JUDGED | {"psnr": 1} | dict.fromkeys(PLACES, -1)
DIGITS = 6  # that points keep
DRAWS = 4000  # of an interval


class Cell(NamedTuple):
    """A cell of the experiment; its name is "decoder_prior_features_seed"."""

    decoder: str  # "none", or "codes" of luma
    prior: str  # "no": is told nothing of luma; "luma": its latents
    features: int  # latents a position of Cb, and of Cr
    seed: int

    @classmethod
    def named(cls, name: str) -> Cell:
        """Read a name such as "codes_no_32_0"; `UsageError` for another."""
        words = re.fullmatch(r"(none|codes)_(no|luma)_(\d+)_(\d+)", name)
        if words is None:
            raise UsageError(f"cell '{name}': expected decoder_prior_features_seed, as codes_no_32_0")
        return cls(words[1], words[2], int(words[3]), int(words[4]))


# -------------------------------------------------------------------------------------- measured


def places_of(image: np.ndarray) -> np.ndarray:
    """Return each pixel's index in `PLACES`, (H, W): whether luma has an edge there, and colour is strong."""
    lab, slopes = rgb_to_lab(image), np.gradient(luma(image))
    return 2 * (np.hypot(*slopes) > EDGE) + (np.hypot(lab[..., 1], lab[..., 2]) > SATURATED)


class FixedLuma:
    """A picture whose luma is coded and decoded once, whatever cell codes its colours."""

    def __init__(self, image: np.ndarray) -> None:
        """Take (H, W, 3) uint8; `DataError` unless it is one tile."""
        if max(image.shape[:2]) > TILE_PX:
            raise DataError(f"{image.shape[1]} x {image.shape[0]} pixels: expected {TILE_PX} at most a side")
        self.image, self.planes, self.lab = image, rgb_to_ycbcr(image), rgb_to_lab(image)
        self.places = places_of(image)
        self.weights: dict[str, torch.Tensor] = {}
        self.coded: dict[tuple, CodedStream] = {}
        self.decoded: dict[int, torch.Tensor] = {}

    def coder(self, codec: LearnedCodec) -> Callable[..., tuple[bytes, int, np.ndarray | None]]:
        """Return what makes of a quality and colour's share a file, luma's bytes in it, and its decode.

        Raises:
            DataError: if the codec's luma is not the first one's.
        """
        weights = codec.model.streams["Y"].state_dict()
        self.weights = self.weights or weights
        if any(not torch.equal(value, weights[name]) for name, value in self.weights.items()):
            raise DataError(f"{codec.name}: has another luma than the first cell")
        analysis, coder, kept = codec.analyse(self.image), codec.coder, dict(self.coded)
        header, (height, width) = codec.header(analysis), self.image.shape[:2]

        def code(quality: float, share: float, decode: bool = True) -> tuple[bytes, int, np.ndarray | None]:
            data = coder.write(header, analysis, quality, color_share=share, kept=kept).data
            dials = coder.dials(quality, share)
            parts = {key: kept[key, dials[: i + 1], coder.rounding] for i, key in enumerate(coder.keys)}
            self.coded["Y", dials[:1], coder.rounding] = parts["Y"]
            luma_bytes = sum(map(len, parts["Y"].chunks))
            if not decode:
                return data, luma_bytes, None
            of = dict(zip(coder.keys, dials, strict=True))
            codes = {key: coder.priors[key].latents(parts[key].symbols, dial) for key, dial in of.items()}
            planes = {"Y": self.decoded[dials[0]]} if dials[0] in self.decoded else {}
            own = {key: dial_of(dial) for key, dial in of.items()}
            decoded = synthesis_transform(codec.model, codes, own, planes=planes)[:height, :width]
            self.decoded[dials[0]] = planes["Y"]
            return data, luma_bytes, decoded

        return code

    def row(self, decoded: np.ndarray) -> dict[str, float]:
        """Return what a decode is judged by."""
        errors = np.mean((self.planes - rgb_to_ycbcr(decoded)) ** 2, axis=(0, 1))
        delta = ciede2000_map(self.lab, rgb_to_lab(decoded))
        return {
            "psnr": psnr_from_mse(float(np.mean((self.image.astype(np.float64) - decoded) ** 2))),
            "psnr_color": psnr_from_mse(float(errors[1:].mean())), "ciede2000": float(delta.mean()),
            "rgb_angle": float(rgb_angle_map(self.image, decoded).mean()),
        } | {
            name: float(delta[self.places == i].mean()) if (self.places == i).any() else math.nan
            for i, name in enumerate(PLACES)
        }  # fmt: skip


def picture_points(
    picture: Path | tuple[str, np.ndarray], cells: Mapping[str, Path | str], rates: Sequence[float] = RATES,
    shares: Sequence[float] = SHARES, *, qualities: Mapping[float, float] | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """Code a picture with every cell, at the same qualities of luma and several of colour.

    Args:
        picture: an image file, or a name and (H, W, 3) uint8.
        cells: models by a cell's name.
        rates: bits per pixel.
        shares: points of quality of colour beyond luma's.
        qualities: of luma, by rate; by default those at which the first cell's files have `rates` at `SHARE`.

    Returns:
        Rows of decoder, prior, features, seed, image, target_bpp, quality, share, file_bytes, luma_bytes,
        bpp, psnr, psnr_color (of both planes' mean error), ciede2000, rgb_angle, and CIEDE2000 in `PLACES`.
    """
    name, image = (picture.stem, read_image(picture)) if isinstance(picture, Path) else picture
    of, qualities, rows = FixedLuma(image), dict(qualities or {}), []
    for cell, model in cells.items():
        codec = LearnedCodec(model)
        code = of.coder(codec)
        if not qualities:
            size = cache(lambda quality, code=code: code(quality, SHARE, decode=False)[0])
            found = {r: encode_at_bpp(codec, image, r, encoder=size).quality for r in rates}
            qualities = {r: float(f"{quality:.{DIGITS}g}") for r, quality in found.items()}  # as points keep
        for (rate, quality), share in product(qualities.items(), shares):
            data, luma_bytes, decoded = code(quality, share)
            sizes = {"file_bytes": len(data), "luma_bytes": luma_bytes, "bpp": 8 * len(data) / of.places.size}
            at = {"target_bpp": rate, "quality": quality, "share": share}
            figures = {n: float(f"{v:.{DIGITS}g}") for n, v in (at | sizes | of.row(decoded)).items()}
            rows.append(Cell.named(cell)._asdict() | {"image": name} | figures)
    return rows


def measure(
    cells: Mapping[str, Path | str], images: ImageSet, folder: Path, rates: Sequence[float] = RATES, *,
    workers: int = 0, progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Measure cells on pictures, where that is not done; ``folder/points.csv`` grows picture by picture.

    ``effects.csv``, ``gains.csv`` and ``features.csv`` beside it answer `contrasts` and `feature_questions`.

    Args:
        cells: models by a cell's name; all with the same luma.
        images: what to code.
        folder: holds ``points.csv`` and ``run.json``, maybe of other cells, which stay.
        rates: see `picture_points`.
        workers: processes, 0 for as many as there are cores.
        progress: called with (done, total) after each picture.

    Raises:
        UsageError: if the folder's points are of other pictures or rates, or of other models of these names.
    """
    file, record_file = folder / "points.csv", folder / "run.json"
    record = json.loads(record_file.read_text("utf-8")) if record_file.exists() else {}
    models = {name: LearnedCodec(model).identity.hex() for name, model in cells.items()}
    about = {"data": images.name, "data_hash": images.digest, "rates_bpp": list(rates)}
    about["cells"] = record.get("cells", {}) | models
    for name, value in about.items():
        was = record.get(name, value)
        if was != value and (name != "cells" or was != {cell: value[cell] for cell in was}):
            raise UsageError(f"{folder}: its points are of other {name}; name another folder")
    rows = as_rows(pd.read_csv(file)) if file.exists() else []
    done: dict[str, dict[Cell, dict[float, float]]] = {}  # by picture and cell, luma's qualities by rate
    for row in rows:
        own = done.setdefault(row["image"], {})
        own.setdefault(Cell(*(row[n] for n in Cell._fields)), {})[row["target_bpp"]] = row["quality"]
    calls = []
    for path in images.paths:
        known = done.get(path.stem, {})
        lacking = {name: model for name, model in cells.items() if Cell.named(name) not in known}
        if lacking:
            qualities = next(iter(known.values()), None)
            calls.append(partial(picture_points, path, lacking, rates, qualities=qualities))
    run = {"cells": list(cells), "seconds": None, **provenance()}
    write_record(folder, record | about, run)
    began = time.perf_counter()

    def keep(points: list[dict[str, object]]) -> None:
        rows.extend(points)
        atomic_write(file, to_csv(rows))

    side_by_side(calls, workers, progress, keep)
    points = pd.DataFrame(rows)
    questions, sweep = contrasts(int(points.features.max())), feature_questions(points)
    tables = {"effects": effects(points, questions), "gains": gains(points, questions)}
    tables["features"] = effects(points, sweep, by_rate=False)
    for name, table in tables.items():
        if len(table):
            atomic_write(folder / f"{name}.csv", to_csv(as_rows(table)))
    write_record(folder, record | about, run | {"seconds": round(time.perf_counter() - began, 1)})
    return points


# ------------------------------------------------------------------------------------------ read


def pairs(points: pd.DataFrame, cell: Sequence[object], reference: Sequence[object]) -> pd.DataFrame:
    """Set a cell beside another, picture by picture and seed by seed.

    Args:
        points: rows of `picture_points`.
        cell, reference: decoder, prior and features each.

    Returns:
        Rows of seed, image, target_bpp; for each column of `JUDGED` "saved_<column>" and
        "color_saved_<column>", logarithms of bytes (of the file, of what is not luma's) over the reference's
        at its value (NaN where the cell never reaches it); and "gain_<column>", what the column gains (for
        each, more is better) at its bytes.
    """
    own = points.assign(color_bytes=points.file_bytes - points.luma_bytes)
    groups = dict(list(own.groupby(["decoder", "prior", "features", "seed", "image", "target_bpp"])))
    rows = []
    for (*which, seed, image, rate), base in groups.items():
        curve = groups.get((*cell, seed, image, rate))
        if tuple(which) != tuple(reference) or curve is None:
            continue
        at = base[base.share == SHARE].iloc[0]
        row = {"seed": seed, "image": image, "target_bpp": rate}
        curve = as_rows(curve)
        for kind, size in (("", "file_bytes"), ("color_", "color_bytes")):
            for column, sign in JUDGED.items():
                there = _log_bytes(curve, size, column, sign, at[column])
                row[f"{kind}saved_{column}"] = there - math.log(at[size])
        for column, sign in GAINED.items():
            if math.isfinite(at[column]):
                there = at_rate(curve, at.file_bytes, column, "file_bytes", extend=True, smooth=True)
                row[f"gain_{column}"] = sign * (there - at[column])
        rows.append(row)
    return pd.DataFrame(rows)


def _log_bytes(
    curve: Sequence[Mapping[str, float]], size: str, column: str, sign: int, wanted: float
) -> float:
    """Return the logarithm of the bytes with which a curve has a value; NaN where it never gets so good.

    Of the curve as far as more bytes make it better: past the dials of training some end in a fall.
    """
    rising, best = [], -math.inf
    for point in sorted(curve, key=lambda point: point[size]):
        if sign * point[column] > best:
            best = sign * point[column]
            rising.append(point | {"log": math.log(point[size])})
    if sign * wanted > best:
        return math.nan
    return at_rate(rising, wanted, "log", column, extend=True, smooth=True)


def interval(values: pd.DataFrame, column: str) -> tuple[float, float, float, int]:
    """Return a column's mean over seeds and pictures, the ends of its interval, and the number of pictures.

    Between the ends lie 95 % of the means of resampled pictures and seeds.

    Both are resampled (bootstrap), each picture with all seeds and each seed with all pictures, since
    pictures share seeds and seeds pictures. With one seed the interval is over pictures alone.

    Args:
        values: rows of seed, image and the column; NaN is left out, and a picture that a seed lacks.
        column: what is read.
    """
    table = values.groupby(["seed", "image"])[column].mean().unstack().dropna(axis=1).to_numpy()
    if not table.size:
        return math.nan, math.nan, math.nan, 0
    rng, (seeds, images) = np.random.default_rng(0), table.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    by_image = rng.multinomial(images, np.full(images, 1 / images), DRAWS) / images
    low, high = np.percentile(((by_seed @ table) * by_image).sum(1), [2.5, 97.5])
    return float(table.mean()), float(low), float(high), images


def contrasts(features: int) -> dict[str, tuple[tuple, tuple]]:
    """Return the experiment's questions: a cell and the one beside which it is set, by what differs."""
    nothing, decoder = ("none", "no", features), ("codes", "no", features)
    prior, both = ("none", "luma", features), ("codes", "luma", features)
    return {
        "luma in the decoder": (decoder, nothing), "luma in the prior": (prior, nothing),
        "luma in both": (both, nothing), "in the decoder too": (both, prior),
    }  # fmt: skip


def feature_questions(points: pd.DataFrame) -> dict[str, tuple[tuple, tuple]]:
    """Return what fewer features cost with luma in the decoder or nowhere, by "decoder features"."""
    own = points[points.prior == "no"]
    cells = sorted({(n, decoder) for decoder, n in zip(own.decoder, own.features, strict=True)})
    return {f"{decoder} {n}": ((decoder, "no", n), ("none", "no", cells[-1][0])) for n, decoder in cells}


def effects(
    points: pd.DataFrame, questions: Mapping[str, tuple[Sequence, Sequence]], *, by_rate: bool = True
) -> pd.DataFrame:
    """Answer questions with intervals.

    Args:
        points: rows of `picture_points`.
        questions: a cell and its reference by a name, as `contrasts` has them.
        by_rate: a row for each rate besides that of all rates (target_bpp NaN).

    Returns:
        Rows of question, column, target_bpp, `bytes_percent` (negative: bytes saved at the reference's
        value of the column; geometric mean) and `color_percent` (of the bytes that are not luma's), each with
        `_low` and `_high`, `seeds` and `images`.
    """
    rows = []
    for name, (cell, reference) in questions.items():
        pair = pairs(points, cell, reference)
        if pair.empty:
            continue
        parts = [(math.nan, pair)] + [*pair.groupby("target_bpp")] * by_rate
        for column, (rate, part) in product(JUDGED, parts):
            row = {"question": name, "column": column, "target_bpp": rate}
            for kind, label in (("saved", "bytes_percent"), ("color_saved", "color_percent")):
                *found, images = interval(part, f"{kind}_{column}")
                percent = [100 * math.expm1(value) for value in found]
                row |= zip((label, f"{label}_low", f"{label}_high"), percent, strict=True)
            rows.append(row | {"seeds": part.seed.nunique(), "images": images})
    return pd.DataFrame(rows)


def gains(points: pd.DataFrame, questions: Mapping[str, tuple[Sequence, Sequence]]) -> pd.DataFrame:
    """Answer questions in the columns' own units at the reference's bytes: rows as `effects`, `gain`."""
    rows = []
    for name, (cell, reference) in questions.items():
        pair = pairs(points, cell, reference)
        for (rate, part), column in product([*pair.groupby("target_bpp")] if len(pair) else [], GAINED):
            *found, _ = interval(part, f"gain_{column}")
            row = {"question": name, "column": column, "target_bpp": rate}
            rows.append(row | dict(zip(("gain", "gain_low", "gain_high"), found, strict=True)))
    return pd.DataFrame(rows)
