"""Measure trained models by estimated rates, without files, as binary models that have no entropy coder.

estimated.py --models rgb=MODEL "streams, literal loss=MODEL" --data kodak --every 4 --out FOLDER
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from mcml.base.files import atomic_write, to_csv
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab.curves import write_record
from mcml.lab.inspect import measure_all
from mcml.lab.output import provenance
from mcml.model import weights

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--models", nargs="+", required=True, metavar="SYSTEM=MODEL")
parser.add_argument("--data", required=True, help="folder of photographs, or a data set's name")
parser.add_argument("--every", type=int, default=1, help="take every so many pictures (1)")
parser.add_argument("--dials", default="-3,-2,-1,0,1", help="by commas (-3,-2,-1,0,1)")
parser.add_argument("--out", type=Path, required=True, help="gets points.csv and run.json")
options = parser.parse_args()
began = time.perf_counter()
models = {name: weights.load(place) for name, _, place in (w.partition("=") for w in options.models)}
images = image_set(options.data)
images = replace(images, name=f"{images.name}, 1 of {options.every}", paths=images.paths[:: options.every])
pictures = {path.stem: read_image(path) for path in images.paths}
rows = measure_all(models, pictures, [float(dial) for dial in options.dials.split(",")])
atomic_write(options.out / "points.csv", to_csv(rows))
about = {"data": images.name, "data_hash": images.digest, "rates": "estimated, no files"}
about["models"] = {name: weights.digest(model) for name, model in models.items()}
write_record(options.out, about, {"seconds": round(time.perf_counter() - began, 1), **provenance()})
