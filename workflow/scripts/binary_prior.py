"""Measure what luma in the entropy coder saves of binary colour: real files of the very same bits.

python workflow/scripts/binary_prior.py --without entropy_color/model --coder luma=entropy_luma/model
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcml.base.errors import McmlError, UsageError
from mcml.base.files import atomic_write, to_csv
from mcml.codec import container
from mcml.codec.interface import encode_at_bpp
from mcml.codec.learned import LearnedCodec
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab.curves import write_record
from mcml.lab.output import as_rows, print_table, provenance

RATES = (0.1, 0.15, 0.2, 0.3)


def sizes(data: bytes) -> dict[str, int]:
    """Return the bytes of a file, of its luma and of its colour, without lengths and checksums."""
    header, chunks = container.read(data)
    parts = {"file": len(data), "luma": 0, "color": 0}
    for (_, _, stream, _), chunk in zip(header.order(), chunks, strict=True):
        parts["color" if stream else "luma"] += len(chunk)
    return parts


def picture(
    path: Path, without: LearnedCodec, coders: Mapping[str, LearnedCodec], rates: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each rate and coder: bytes of the same bits, as large as files `without` luma are."""
    image = read_image(path)
    analysis = without.analyse(image)
    for rate in rates:
        found = encode_at_bpp(
            without, image, rate, encoder=lambda quality: without.pack(analysis, quality).data
        )
        if not found.reached:
            continue
        base = sizes(found.data)
        for name, codec in coders.items():
            own = sizes(codec.pack(analysis, found.quality).data)
            if own["luma"] != base["luma"]:
                raise UsageError(f"{name}: its luma is {own['luma']} bytes, not {base['luma']}: other coders")
            saved = {
                f"{part}_saved_percent": 100 * (1 - own[part] / base[part]) for part in ("color", "file")
            }
            row = {"coder": name, "image": path.stem, "bpp": rate, "quality": found.quality}
            yield row | {"luma_bytes": base["luma"], "color_bytes_without": base["color"],
                         "color_bytes": own["color"]} | saved  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over pictures by coder and rate, with standard errors of what is saved."""
    groups = pd.DataFrame(rows).drop(columns=["image", "quality"]).groupby(["coder", "bpp"], sort=False)
    table = groups.mean()
    for name in ("color_saved_percent", "file_saved_percent"):
        table[f"{name}_error"] = groups[name].std() / np.sqrt(groups.size())
    table["images"] = groups.size()
    return as_rows(table.reset_index())


def main() -> None:
    """Read the command line, measure, write ``binary.csv``, ``binary_points.csv`` and ``run.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--without", required=True, help="model folder whose colour is coded without luma")
    add("--coder", action="append", required=True, metavar="NAME=MODEL", help="the same with luma")
    add("--data", default="kodak", help="photographs")
    add("--rates", default=",".join(map(str, RATES)), help="bits a pixel of files without luma")
    add("--out", type=Path, default=Path("results/released/luma_for_color/binary"), help="folder")
    options = parser.parse_args()
    began, photographs = time.perf_counter(), image_set(options.data)
    without = LearnedCodec(options.without)
    coders = {name: LearnedCodec(model) for name, _, model in (text.partition("=") for text in options.coder)}
    rates, rows = [float(rate) for rate in options.rates.split(",")], []
    for path in photographs.paths:
        rows += picture(path, without, coders, rates)
    if not rows:
        raise UsageError(f"no picture has files of {options.rates} bits per pixel without luma")
    table = summary(rows)
    print_table(table)
    atomic_write(options.out / "binary_points.csv", to_csv(rows))
    atomic_write(options.out / "binary.csv", to_csv(table))
    file = options.out / "run.json"
    record = json.loads(file.read_text("utf-8")) if file.exists() else {}
    entropy = {name: codec.config["record"].get("entropy") for name, codec in coders.items()}
    record["binary"] = {
        "data": photographs.name, "data_hash": photographs.digest,
        "models": {name: codec.identity.hex() for name, codec in {"without": without, **coders}.items()},
        "entropy": {"without": without.config["record"].get("entropy"), **entropy},
    }  # fmt: skip
    seconds = round(time.perf_counter() - began, 1)
    write_record(options.out, record, {"rule": "coders", "seconds": seconds, **provenance()})


if __name__ == "__main__":
    try:
        main()
    except McmlError as error:
        sys.exit(f"binary_prior: {error}")
