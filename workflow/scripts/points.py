"""Measure the cells of the experiment on luma and colour.

points.py --cells none_no_32_0=MODEL ... --data kodak --rates 0.15,0.3 --out FOLDER
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from mcml.base.errors import McmlError
from mcml.codec.learned import LearnedCodec
from mcml.data.sets import image_set
from mcml.lab import luma_for_color
from mcml.lab.parameters import parse_bpp_list

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--cells", nargs="+", required=True, metavar="CELL=MODEL")
parser.add_argument("--data", required=True, help="folder of photographs, or a data set's name")
parser.add_argument("--every", type=int, default=1, help="take every so many pictures (1)")
parser.add_argument("--rates", required=True, help="bits per pixel, by commas")
parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one for each core (0)")
parser.add_argument("--renew", action="store_true", help="drop points of other models, pictures or rates")
parser.add_argument("--out", type=Path, required=True, help="holds points.csv, which grows, and run.json")
options = parser.parse_args()
cells = {cell: Path(model) for cell, _, model in (word.partition("=") for word in options.cells)}
try:
    images, rates = image_set(options.data), parse_bpp_list(options.rates)
    if options.every > 1:
        name = f"{images.name}, 1 of {options.every}"
        images = replace(images, name=name, paths=images.paths[:: options.every])
    now = {"data_hash": images.digest, "rates_bpp": rates}
    models = {cell: LearnedCodec(model).identity.hex() for cell, model in cells.items()}
    file = options.out / "run.json"
    was = json.loads(file.read_text("utf-8")) if file.exists() else now
    same = {cell: models.get(cell, model) for cell, model in was.get("cells", {}).items()}
    if options.renew and (same != was.get("cells", {}) or any(was[name] != now[name] for name in now)):
        print(f"{options.out}: points of other models, pictures or rates, measured anew", file=sys.stderr)
        for name in ("run.json", "points.csv"):
            (options.out / name).unlink(missing_ok=True)
    luma_for_color.measure(
        cells, images, options.out, rates, workers=options.workers,
        progress=lambda done, total: print(f"{done} of {total} pictures", file=sys.stderr, flush=True),
    )  # fmt: skip
except McmlError as error:
    sys.exit(f"points: {error}")
