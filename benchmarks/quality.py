"""Quality at equal rates: models by estimated bits, classical codecs by bytes of files.

    python benchmarks/quality.py --out quality_valid --dataset valid
        [--models scalar_fusion,fusion,new=runs/luma/model] [--codecs "jpeg2000; avif444; avif, luma"]
        [--dials 9] [--max-images 0] [--workers 0]

Every picture is read on its own curve, by cubics over log rate, at the same bits a pixel; then the
mean over pictures is taken. Luma alone counts luma's bits (classical codecs: grey files), colour all bits,
one dial for all streams. Points of systems that lie in the folder already and are not asked for are kept,
so models can be added one by one. Tables of files alone are `mcml evaluate --out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcml.base.errors import UsageError, choose
from mcml.base.files import atomic_write, to_csv
from mcml.codec.interface import get_codec, names
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab import curves, experiments
from mcml.lab import inspect as inspection
from mcml.lab.output import as_rows, print_table, provenance
from mcml.lab.parameters import parse_names
from mcml.lab.workers import side_by_side
from mcml.metrics import distortion
from mcml.metrics.color import luma, rgb_to_lab
from mcml.model.validate import measure_output, to_tensor
from mcml.model.weights import load

LUMA_RATES, RATES = (0.15, 0.2, 0.3, 0.5), (0.15, 0.3, 0.5)
COLOR = ("psnr", "ms_ssim", "ciede2000")
COLUMNS = ["system", "image", "rate_is", "quality", "luma_rate_bpp", "psnr_Y", "rate_bpp", *COLOR]
AVIF = (0, 6, 12, 18, 24, 30, 36, 43, 50, 57, 64, 72)
BINARY = (5, 7, 9, 12, 16, 21, 28, 37, 48, 62, 80, 100)  # percent of luma's groups of bits
LUMA = {  # grey files; codecs in colour have points of their own
    "jpeg, luma": (1, 2, 3, 4, 6, 8, 11, 14, 18, 24, 33, 48),
    "jpeg2000, luma": (160, 107, 80, 64, 52, 40, 30, 23, 18, 14, 10),
    "avif, luma": AVIF[::2],  # speed 2
    "avif_speed6, luma": AVIF,
}
load = cache(load)


def model_points(name: str, folder: str, path: Path, count: int) -> list[dict[str, Any]]:
    """Return a model's points on one picture: a scalar one's at `count` dials, a binary one's as it is coded.

    The ideal bits of its entropy coder, one level everywhere as in its files; 0.01 dB of luma go in rounding.
    """
    model, image = load(folder), read_image(path)
    rows = []
    if model.config.quantizer == "binary":
        codec, pixels = get_codec(folder), image[..., 0].size
        analysis = codec.analyse(image)
        for quality in BINARY:
            encoded = codec.pack(analysis, quality)
            grey = codec.decode(encoded.data, luma_only=True)[..., 0]
            row = {"system": name, "image": path.stem, "rate_is": "estimate", "quality": quality}
            row |= {"luma_rate_bpp": encoded.ideal_bits["Y"] / pixels}
            row |= {"psnr_Y": distortion.psnr_from_mse(float(np.mean((luma(image) - grey) ** 2)))}
            row |= {"rate_bpp": sum(encoded.ideal_bits.values()) / pixels}
            rows.append(row | color_figures(image, codec.decode(encoded.data)))
        return rows
    for dial in np.linspace(*model.config.dial_range, count):
        decoded, output = inspection.decode(model, image, float(dial))
        own = measure_output(model, to_tensor(image), output)
        row = {"system": name, "image": path.stem, "rate_is": "estimate", "quality": float(dial)}
        row |= {"luma_rate_bpp": own["estimated_bpp_Y"], "psnr_Y": own["psnr_Y"]}
        if len(model.streams) > 1:
            row |= {"rate_bpp": own["estimated_bpp"]} | color_figures(image, decoded)
        rows.append(row)
    return rows


def file_points(name: str, path: Path) -> list[dict[str, Any]]:
    """Return a classical codec's points on one picture: in colour, or of luma as a grey file."""
    about = {"system": name, "image": path.stem, "rate_is": "file"}
    if name not in LUMA:
        rows = curves.picture_curve(path, name, RATES, {})
        return [
            about | {"quality": row["quality"], "rate_bpp": row["bpp"]} | {c: row[c] for c in COLOR}
            for row in rows
        ]
    base, _, speed = name.removesuffix(", luma").partition("_speed")
    rows = experiments.luma_codec([read_image(path)], base, LUMA[name], speed=int(speed or 2))
    return [about | {"quality": r["quality"], "luma_rate_bpp": r["bpp"], "psnr_Y": r["psnr_Y"]} for r in rows]


def color_figures(image: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    """Return `COLOR` of a pair, as `mcml.metrics.compare` defines them."""
    scales = [distortion.ssim_scales(image[..., c], decoded[..., c]) for c in range(3)]
    return {
        "psnr": distortion.psnr_from_mse(float(np.mean((image.astype(float) - decoded) ** 2))),
        "ms_ssim": float(np.mean([distortion.combine_scales(s) for s in scales])),
        "ciede2000": float(distortion.ciede2000_map(rgb_to_lab(image), rgb_to_lab(decoded)).mean()),
    }


def at_equal_rates(points: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tables of luma and of colour."""
    grey, color = (
        points.dropna(subset=column).to_dict("records") for column in ("luma_rate_bpp", "rate_bpp")
    )
    return (
        experiments.at_rates(grey, LUMA_RATES, ("psnr_Y",), "luma_rate_bpp", smooth=True),
        experiments.at_rates(color, RATES, COLOR, "rate_bpp", smooth=True),
    )


def main() -> None:
    """Measure, keep the points, write and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", default="valid")
    parser.add_argument("--models", default="", help="released names, or name=folder")
    parser.add_argument(
        "--codecs", default="", help=f"separated by semicolons, in colour or {'; '.join(LUMA)}"
    )
    parser.add_argument("--dials", type=int, default=9)
    parser.add_argument("--max-images", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    images = image_set(options.dataset)
    paths = [path.absolute() for path in images.paths[: options.max_images or None]]
    models = {
        name: folder or name for name, _, folder in (m.partition("=") for m in parse_names(options.models))
    }
    calls = [
        partial(model_points, name, folder, p, options.dials)
        for name, folder in models.items()
        for p in paths
    ]
    codecs = [name.strip() for name in options.codecs.split(";") if name.strip()]
    calls += [
        partial(file_points, choose("codec", name, [*LUMA, *names()]), path)
        for name in codecs
        for path in paths
    ]
    measured = side_by_side(
        calls, options.workers, lambda done, total: print(f"{done} of {total}", end="\r", file=sys.stderr)
    )
    points = pd.DataFrame([row for rows in measured for row in rows], columns=COLUMNS)
    file = options.out / "points.csv"
    if file.exists():
        kept = pd.read_csv(file)
        if not set(kept.image) == {path.stem for path in paths}:
            raise UsageError(f"{file}: holds points of other pictures")
        points = pd.concat([kept[~kept.system.isin(set(points.system))], points])
    atomic_write(file, to_csv(as_rows(points)))
    for name, table in zip(("luma", "color"), at_equal_rates(points), strict=True):
        if table:
            atomic_write(options.out / f"{name}.csv", to_csv(table))
            print_table(table)
    path = options.out / "run.json"  # one entry a run, since points may come from several
    record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    record |= {"data_hash": images.digest, "images": len(paths)}
    about = {"systems": sorted({call.args[0] for call in calls}), "dials": options.dials, **provenance()}
    curves.write_record(options.out, record, about)


if __name__ == "__main__":
    main()
