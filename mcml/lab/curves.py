"""Codecs at equal bytes: files along each codec's curve, every picture read on its own, points kept."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from mcml.base.errors import DataError, McmlError, UsageError
from mcml.base.files import atomic_write, legible, lock, sha256, to_csv, to_json
from mcml.codec import interface as codecs
from mcml.data.images import read_image
from mcml.data.sets import ImageSet
from mcml.lab.evaluate import bd_rate
from mcml.lab.output import as_rows, provenance
from mcml.lab.workers import attempt, side_by_side
from mcml.metrics import distortion as metrics

FAR = 4.0  # times the rate at which a curve ends: further it is not continued
RATES = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
ANCHORS, JUDGED = ("jpeg2000", "avif444"), ("psnr", "ciede2000")
COLUMNS = tuple(name for name in metrics.COLUMNS if name != "ms_ssim_scales")
DIGITS = 6  # that points keep


def picture_curve(
    path: Path, codec_name: str, rates: Sequence[float], known: Mapping[float, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a codec's points on one picture, from the last at or under `rates` to the first at or over them.

    Args:
        path: an image file.
        codec_name: see `mcml.codec.names`.
        rates: bits per pixel that the curve should enclose.
        known: points that need not be measured again, by quality.

    Returns:
        Rows of image, codec, quality, bpp (whole file) and `mcml.metrics.COLUMNS`, coarse to fine, the
        known ones among them. A codec's curve ends where its `qualities` do.
    """
    codec, points = codecs.get_codec(codec_name), dict(known)

    @cache
    def picture() -> tuple[np.ndarray, Callable[[float], bytes]]:
        image = read_image(path)
        return image, codec.encoder(image)

    def bpp(quality: float) -> float:
        if quality not in points:
            image, encode = picture()
            data = encode(quality)
            row = {"bpp": codecs.bits_per_pixel(data, image)} | vars(
                metrics.compare(image, codec.decode(data))
            )
            row = {name: float(f"{value:.{DIGITS}g}") for name, value in row.items()}
            points[quality] = {"image": legible(path.stem), "codec": codec_name, "quality": quality} | row
        return points[quality]["bpp"]

    middle = len(codec.qualities) // 2
    for quality in reversed(codec.qualities[: middle + 1]):
        if bpp(quality) <= min(rates):
            break
    for quality in codec.qualities[middle:]:
        if bpp(quality) >= max(rates):
            break
    return sorted(points.values(), key=lambda row: row["bpp"])


def extend(
    folder: Path,
    images: ImageSet,
    codec_names: Sequence[str],
    rates: Sequence[float] = RATES,
    *,
    anew: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    failed: Callable[[Path, McmlError], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add codecs to a folder of curves, whose other points stay, and write its tables anew.

    ``points.csv`` grows after each picture, so that a run that was stopped goes on where it was; points
    are measured again only if the codec's settings or its model changed. ``run.json`` has an entry a run.

    Args:
        folder: made if it is not there.
        images: those of the folder, if it has points already.
        codec_names: see `mcml.codec.names`.
        rates: bits per pixel at which all codecs of the folder are read.
        anew: measure these codecs again, whatever is there.
        workers: processes; 0 means one for each core.
        progress: called with (done, total) after each picture and codec.
        failed: called with a picture that cannot be read or coded, and why: the tables are without it.

    Returns:
        What ``means.csv`` and ``bd_rate.csv`` hold: `at_equal_bytes`, `savings`.

    Raises:
        UsageError: if the folder's points are of other pictures.
        DataError: if another run is adding to the folder, or its files are damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, partial(_refuse, folder)):
        return _extend(folder, images, codec_names, rates, anew, workers, progress, failed)


def _refuse(folder: Path) -> NoReturn:
    raise DataError(f"{folder}: another run is adding to it; wait for its end, or name another folder")


def _extend(
    folder: Path, images: ImageSet, codec_names: Sequence[str], rates: Sequence[float], anew: bool,
    workers: int, progress: Callable[[int, int], None] | None, failed: Callable[..., None] | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    record_file, points_file = folder / "run.json", folder / "points.csv"
    try:
        record = json.loads(record_file.read_text("utf-8")) if record_file.exists() else {}
        names = {"image": str, "codec": str}  # not numbers nor missing, whatever they look like
        missing = {"keep_default_na": False, "na_values": {name: ["nan", ""] for name in COLUMNS}}
        begun = points_file.exists() and points_file.read_text("utf-8").strip()
        old = as_rows(pd.read_csv(points_file, dtype=names, **missing)) if begun else []
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its run.json or points.csv is damaged; name another folder") from error
    if record.get("data_hash", images.digest) != images.digest:
        raise UsageError(f"{folder}: its points are of other pictures than {images.name}; name another")
    settings, before = {name: _settings(name) for name in codec_names}, record.get("settings", {})
    stale = {name for name in settings if anew or before.get(name) != settings[name]}
    points: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in old:
        if row["codec"] not in stale:
            points.setdefault((row["codec"], row["image"]), []).append(row)

    def write() -> list[dict[str, Any]]:
        rows = [row for curve in points.values() for row in curve]
        atomic_write(points_file, to_csv(rows))
        return rows

    def keep(curve: list[dict[str, Any]] | McmlError) -> None:
        path = next(order)
        if isinstance(curve, McmlError):
            if failed is None:
                raise curve
            if legible(path.stem) not in lost:
                failed(path, curve)
            lost.add(legible(path.stem))
            return
        key = curve[0]["codec"], curve[0]["image"]
        if len(curve) != len(points.get(key, ())):
            points[key] = curve
            write()

    write()  # without what is stale, before the record says that it is not
    record |= {"data": images.name, "data_hash": images.digest, "images": len(images.paths)}
    record |= {"settings": before | settings}
    run = {"codecs": list(codec_names), "rates_bpp": list(rates), "seconds": None, **provenance()}
    write_record(folder, record, run)
    began = time.perf_counter()
    pairs = list(product(codec_names, images.paths))
    order, lost = iter([path for _, path in pairs]), set()
    calls = [
        partial(
            attempt,
            partial(
                picture_curve, path, name, rates,
                {row["quality"]: row for row in points.get((name, legible(path.stem)), ())},
            ),
        )
        for name, path in pairs
    ]  # fmt: skip
    side_by_side(calls, workers, progress, keep)
    rows = [row for row in write() if row["image"] not in lost]
    if not rows:
        raise DataError(f"{folder}: no picture could be measured")
    pictures = at_equal_bytes(rows, rates)
    means, saved = mean_of(pictures), savings(pictures)
    for name, table in (("means", means), ("bd_rate", saved)):
        if len(table):  # without an anchor there are no differences
            atomic_write(folder / f"{name}.csv", to_csv(as_rows(table)))
    write_record(folder, record, run | {"seconds": round(time.perf_counter() - began, 1)})
    return means, saved


def _settings(codec_name: str) -> str:
    """Return what tells a codec's files from those of the same codec as it was: its model, or its options."""
    codec = codecs.get_codec(codec_name)
    model = getattr(codec, "identity", None)
    if model is None:
        return str(codec.options)
    encoder = codec.config.get("encoder")
    return f"model {model.hex()}" + (f", encoder {json.dumps(encoder)}" if encoder else "")


def write_record(folder: Path, record: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Write a folder's ``run.json``: `record`, its runs and one more, and the hashes of its tables."""
    run = {**run, "command": re.sub(r"(?<=[ '=])/\S*/", "", run["command"])}  # this machine's folders
    runs = [*record.get("runs", ()), run]
    record = {**record, "commit": run["commit"], "dirty": any(own["dirty"] for own in runs), "runs": runs}
    record["files"] = {file.name: sha256(file) for file in sorted(folder.glob("*.csv"))}
    atomic_write(folder / "run.json", to_json(record) + "\n")


def at_equal_bytes(points: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> pd.DataFrame:
    """Read each codec's curve of each picture at rates, by cubic interpolation over log rate.

    Args:
        points: rows of `picture_curve`.
        rates: bits per pixel.

    Returns:
        Rows of codec, image, bpp, the metrics, `extended`: whether the curve ends before that rate and was
        continued by a straight line, and `beyond`: by which factor.
    """
    from mcml.lab.experiments import pictures_at_rates

    rows = [{**row, "system": row["codec"]} for row in points]
    read = pictures_at_rates(rows, rates, COLUMNS, "bpp", smooth=True)
    pictures = pd.DataFrame(read).rename(columns={"system": "codec", "rate": "bpp"})
    ends = pd.DataFrame(points).groupby(["codec", "image"]).bpp.agg(["min", "max"])
    low, high = ends.loc[list(zip(pictures.codec, pictures.image, strict=True))].to_numpy().T
    return pictures.assign(beyond=np.maximum(low / pictures.bpp, pictures.bpp / high))


def mean_of(pictures: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `at_equal_bytes` over pictures, `images` and how many were `extended`.

    Metrics are NaN where more than half of the pictures' curves end before the rate, or one by more than
    a factor of `FAR`: no codec has such files.
    """
    groups = pictures.drop(columns="image").groupby(["codec", "bpp"], sort=False)
    means, beyond = groups.mean().drop(columns=["extended", "beyond"]), groups.beyond.max()
    means["images"], means["extended"] = groups.size(), groups.extended.sum()
    means.loc[(2 * means.extended > means.images) | (beyond > FAR), list(COLUMNS)] = np.nan
    return means.reset_index()


def savings(pictures: pd.DataFrame) -> pd.DataFrame:
    """Return Bjontegaard rate differences at equal terms: picture by picture, then the mean.

    Every curve is what `at_equal_bytes` read, without what it continued, so all are compared over the
    same rates as far as they go.

    Returns:
        Rows of codec, anchor, column, `bd_rate_percent` and `overlap` (see `mcml.lab.bd_rate`; means over
        the pictures that have one) and `images`, the number of these.
    """
    own = pictures[~pictures.extended.astype(bool)]
    present = list(dict.fromkeys(pictures.codec))
    rows = []
    for anchor, column in product([name for name in ANCHORS if name in present], JUDGED):
        each = [bd_rate(p, anchor, column) for _, p in own.groupby("image") if anchor in set(p.codec)]
        found = pd.concat(each).dropna(subset="bd_rate_percent").groupby("codec")
        table = found[["bd_rate_percent", "overlap"]].mean().assign(images=found.size())
        table = table.reindex(name for name in present if name in table.index)
        table.insert(0, "column", column)
        table.insert(0, "anchor", anchor)
        rows += as_rows(table.reset_index())
    return pd.DataFrame(rows)


def continued(means: pd.DataFrame) -> list[str]:
    """Return a sentence for each codec and rate at which curves end before it."""
    return [
        f"{row.codec}: at {row.bpp:g} bpp the curves of {row.extended} of {row.images} pictures end before: "
        + ("left blank" if np.isnan(row.psnr) else "continued by a straight line")
        for row in means.itertuples()
        if row.extended
    ]
