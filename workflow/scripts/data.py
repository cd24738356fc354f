"""Check that data sets are here, record their hashes, and split one of them.

data.py train=embedded test=embedded --held-out chelsea,coffee --out DATA --record data.json
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from mcml.base.errors import McmlError, choose
from mcml.base.files import atomic_write
from mcml.data.sets import image_set
from mcml.lab.output import provenance
from mcml.lab.parameters import parse_names

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("sets", nargs="+", metavar="USE=SET")
parser.add_argument("--held-out", default="", help="photographs of the set `train` that are not trained on")
parser.add_argument("--out", type=Path, help="gets the split as two folders of links, train and test")
parser.add_argument("--record", type=Path, required=True)
options = parser.parse_args()
record = {"sets": {}, "held_out": options.held_out}
try:
    for use, name in (word.split("=") for word in options.sets):
        images = image_set(name)
        record["sets"][use] = {"set": images.name, "images": len(images.paths), "sha256": images.digest}
        record["sets"][use]["as_registered"] = bool(images.entry)
        if use == "train" and options.held_out:
            shutil.rmtree(options.out, ignore_errors=True)
            stems = [path.stem for path in images.paths]
            held_out = {choose("photograph", stem, stems) for stem in parse_names(options.held_out)}
            for path in images.paths:
                link = options.out / ("test" if path.stem in held_out else "train") / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
except McmlError as error:
    sys.exit(f"data: {error}")
atomic_write(options.record, json.dumps(record | provenance(), indent=2) + "\n")
