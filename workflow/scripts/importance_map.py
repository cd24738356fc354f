"""Measure whether the poster's importance maps pay: files with maps and without, of the very same bits.

python workflow/scripts/importance_map.py
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

from mcml.base.errors import McmlError
from mcml.base.files import atomic_write, to_csv
from mcml.codec.learned import LearnedCodec
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab.accounting import KINDS, file_rows
from mcml.lab.curves import write_record
from mcml.lab.evaluate import bd_rate
from mcml.lab.output import as_rows, print_table, provenance

JUDGED = ("psnr", "ciede2000")


def price(points: pd.DataFrame) -> pd.DataFrame:
    """Return how many percent more bytes files with maps need at equal quality: mean over pictures."""
    pictures = pd.concat(
        bd_rate(points[points.image == image], "uniform", column).assign(image=image)
        for image in points.image.unique()
        for column in JUDGED
    )
    groups = pictures[pictures.codec == "adaptive"].groupby("column", sort=False)
    table = groups[["bd_rate_percent", "overlap"]].mean()
    table["error"] = groups.bd_rate_percent.sem()
    table["dearer"] = groups.bd_rate_percent.apply(lambda values: int((values > 0).sum()))
    table["images"] = groups.size()
    return table.reset_index()


def main() -> None:
    """Read the command line, measure, write ``points.csv``, ``bd_rate.csv`` and ``run.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="fusion", help="a model with binary codes")
    add("--data", default="kodak", help="photographs")
    add("--qualities", default="6,11,16,25,35,45", help="percentages of luma's groups")
    add("--workers", type=int, default=0, help="processes, 0 for as many as there are cores")
    add("--out", type=Path, default=Path("results/released/importance_map"), help="folder")
    options = parser.parse_args()
    began, photographs = time.perf_counter(), image_set(options.data)
    images = {path.stem: read_image(path) for path in photographs.paths}
    qualities = [float(quality) for quality in options.qualities.split(",")]
    rows = file_rows({options.model: options.model}, images, qualities, kinds=KINDS, workers=options.workers)
    points = pd.DataFrame(rows).assign(codec=lambda table: table.kind).drop(columns=["kind", "raw_bpp"])
    table = price(points)
    print_table(as_rows(table))
    atomic_write(options.out / "points.csv", to_csv(as_rows(points)))
    atomic_write(options.out / "bd_rate.csv", to_csv(as_rows(table)))
    record = {"data": photographs.name, "data_hash": photographs.digest, "model": options.model,
              "identity": LearnedCodec(options.model).identity.hex()}  # fmt: skip
    seconds = round(time.perf_counter() - began, 1)
    write_record(options.out, record, {"seconds": seconds, **provenance()})


if __name__ == "__main__":
    try:
        main()
    except McmlError as error:
        sys.exit(f"importance_map: {error}")
