"""What a scalar model's encoder should choose: rounding by the prior's odds, colour's share of quality.

    python benchmarks/encoder.py --model scalar_fusion [--dataset valid] [--max-images 8] [--workers 0]
        [--roundings 0,12,24,48,96] [--shares 0,-8,-4,4,8,12]

Files at equal bytes, every picture read on its own curve: first each rounding at a share of 0, then each
share with the rounding of which files are smallest at equal PSNR and CIEDE2000 (the mean of both). Of the
shares, the best is that of the smallest CIEDE2000 which costs at most 0.1 dB of PSNR. The last line is what
belongs into the model's config.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from quality import COLOR, RATES, color_figures

from mcml.codec.interface import bits_per_pixel
from mcml.codec.learned import LearnedCodec
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab.evaluate import bd_rate
from mcml.lab.experiments import at_rates
from mcml.lab.output import print_table
from mcml.lab.workers import side_by_side

CURVE_BPP = (0.14, 0.21, 0.32, 0.52)  # about where files are measured
DB = 0.1  # of PSNR, that a share may cost


def points(model: str, path: Path, settings: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Return files' figures on one picture by settings, at qualities that fit the picture."""
    codec, image = LearnedCodec(model), read_image(path)
    analysis = codec.analyse(image)
    rows = []
    for own in settings:
        tried = np.array([15.0, 35.0, 60.0])
        sizes = [len(codec.pack(analysis, quality, **own).data) for quality in tried]
        line = np.polyfit(np.log(sizes), tried, 2)
        for bpp in CURVE_BPP:
            quality = float(np.clip(np.polyval(line, np.log(bpp * image[..., 0].size / 8)), 0, 100))
            data = codec.pack(analysis, quality, **own).data
            row = {"system": json.dumps(own), "image": path.stem, "bpp": bits_per_pixel(data, image)}
            rows.append(row | color_figures(image, codec.decode(data)))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return figures at equal bytes by system and rate, and percent of bytes against the first system."""
    read = pd.DataFrame(at_rates(rows, RATES, COLOR, "bpp", smooth=True))
    frame = pd.DataFrame(rows).rename(columns={"system": "codec"})
    anchor = frame.codec[0]
    for column in COLOR:
        each = pd.concat([bd_rate(own, anchor, column) for _, own in frame.groupby("image")])
        saved = each.groupby("codec").bd_rate_percent.mean()
        read[f"{column}_bytes_percent"] = [saved.get(name, 0.0) for name in read.system]
    return read.drop(columns="images")


def main() -> None:
    """Measure, print the two tables and the choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scalar_fusion")
    parser.add_argument("--dataset", default="valid")
    parser.add_argument("--max-images", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--roundings", default="0,12,24,48,96")
    parser.add_argument("--shares", default="0,-8,-4,4,8,12")
    options = parser.parse_args()
    paths = image_set(options.dataset).paths
    paths = [path.absolute() for path in paths[:: max(1, len(paths) // options.max_images)]]

    def measure(settings: Sequence[dict[str, float]]) -> pd.DataFrame:
        calls = [partial(points, options.model, path, settings) for path in paths]
        measured = side_by_side(
            calls, options.workers, lambda *of: print("{} of {}".format(*of), end="\r", file=sys.stderr)
        )
        found = table([row for rows in measured for row in rows])
        print_table(found.to_dict("records"))
        return found.groupby("system", sort=False).mean()

    roundings = [{"rounding": float(w), "color_share": 0.0} for w in options.roundings.split(",")]
    found = measure(roundings)
    rounding = json.loads((found.psnr_bytes_percent + found.ciede2000_bytes_percent).idxmin())["rounding"]
    found = measure([{"rounding": rounding, "color_share": float(s)} for s in options.shares.split(",")])
    allowed = found[found.psnr >= found.psnr.iloc[0] - DB]
    print("encoder:", allowed.ciede2000.idxmin())


if __name__ == "__main__":
    main()
