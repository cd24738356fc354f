"""The commands that print or write tables: `mcml compare | evaluate | data | reproduce`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError, UsageError
from mcml.base.files import atomic_write, check_writable, to_csv
from mcml.cli.main import Progress, add_command, number
from mcml.lab.output import as_rows, print_table, provenance


def add_commands(commands: Any) -> None:
    """Declare the commands that make tables."""
    add = add_command(commands, compare)
    add("reference", type=Path, metavar="ORIGINAL", help="image, or a folder of them")
    add("decoded", type=Path, metavar="DECODED", help="image, or a folder with the same names")
    add("--json", action="store_true", help='print {"rows": [...], "mean": {...}}')

    add = add_command(commands, evaluate)
    add("folder", metavar="FOLDER", help="of images, or a data set: embedded, kodak, train, valid")
    add("--codecs", required=True, help="names or models' folders, separated by commas")
    add("--csv", type=Path, help="table to write: one row an image, codec and rate")
    add("--bpp", help="rates to hit, as 0.15,0.3; without it each codec's own qualities")
    add("--out", type=Path, help="folder to add to: points of each codec's curve, means and BD-rates")
    add("--at-bpp", help="rates at which --out reads the curves (0.1,0.15,0.2,0.3,0.5,0.75,1)")
    add("--workers", type=number(int, 0), default=0, help="processes; 0 means one for each core (0)")
    add("--overwrite", flag=False, help="replace an existing table; with --out measure anew")

    add_command(commands, data)

    add = add_command(commands, reproduce)
    add("--profile", default="quick", metavar="NAME", help="a file of notebooks/profiles")
    add("--only", default="", metavar="NUMBERS", help="notebooks, as 01,05 (default: all)")
    over = "over the profile's; may be given again"
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help=over)


def compare(options: argparse.Namespace) -> None:
    """Measure how far decoded images are from their originals: two files, or two folders of equal names.

    mcml compare original.png decoded.jpg
    mcml compare originals/ decodes/ --json
    """
    from mcml.data.images import read_image
    from mcml.metrics import distortion

    rows: list[dict[str, Any]] = []
    for name, first, second in _pairs(options.reference, options.decoded):
        a, b = read_image(first), read_image(second)
        if a.shape != b.shape:
            sizes = f"{first} is {a.shape[1]} x {a.shape[0]} and {second} is {b.shape[1]} x {b.shape[0]}"
            raise DataError(f"{sizes} pixels: sizes must be equal")
        rows.append({"image": name, **vars(distortion.compare(a, b))})
    mean = distortion.mean_row(rows)
    if options.json:  # valid: 1e999 is infinite to Python and JavaScript
        words = {"NaN": "null", "Infinity": "1e999"}
        text = json.dumps({"rows": rows, "mean": mean}, indent=2)
        print(re.sub("(?<=: )(NaN|Infinity)(?=,?$)", lambda word: words[word[0]], text, flags=re.MULTILINE))
        return
    if len(rows) > 1:
        rows.append({"image": f"mean of {mean['images']}", **mean})
    print_table([{k: v for k, v in row.items() if k not in ("images", "identical")} for row in rows])
    if mean["identical"] and len(rows) > 1:
        identical = f"{mean['identical']} of {mean['images']} pairs are identical"
        print(f"{identical}: infinite dB are not in the mean.")


def _pairs(reference: Path, decoded: Path) -> list[tuple[str, Path, Path]]:
    from mcml.data.sets import image_set

    for path in (reference, decoded):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.suffix.lower() == ".mcml" and path.is_file():
            raise DataError(f"{path}: compare takes pictures: `mcml decompress {path}` first")
    if reference.is_dir() != decoded.is_dir():
        raise UsageError(f"{reference} and {decoded}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem, reference, decoded)]
    # With a slash, a folder's name is no registered set's.
    first, second = ({p.stem: p for p in image_set(f"{folder}/").paths} for folder in (reference, decoded))
    if lonely := sorted(first.keys() ^ second.keys()):
        where = reference if lonely[0] in first else decoded
        raise DataError(f"names differ: '{lonely[0]}' is only in {where} ({len(lonely)} without a partner)")
    return [(stem, path, second[stem]) for stem, path in first.items()]


def evaluate(options: argparse.Namespace) -> None:
    """Encode, decode and measure images with codecs: a tidy CSV, and the means on screen.

    mcml evaluate my_photos --codecs fusion,jpeg444,webp --bpp 0.15,0.3 --csv files.csv
    mcml evaluate kodak --codecs webp,jpeg2000 --out curves --at-bpp 0.15,0.3

    With --out every picture is read on its own curve of real files, at equal bytes; codecs and pictures
    that the folder has already are not measured again.
    """
    from mcml.codec.interface import get_codec
    from mcml.data.sets import image_set
    from mcml.lab import evaluate as evaluation
    from mcml.lab.parameters import parse_bpp_list, parse_names

    names = parse_names(options.codecs)
    if not names:
        raise UsageError("--codecs is empty: give names separated by commas")
    for name in names:
        get_codec(name)
    if (options.csv is None) == (options.out is None):
        raise UsageError("give --csv for a table of files or --out for a folder of curves, one of them")
    if (options.bpp and options.out) or (options.at_bpp and options.csv):
        raise UsageError("--bpp goes with --csv, --at-bpp with --out")
    if options.out:
        _evaluate_curves(options, names)
        return
    targets = None if options.bpp is None else parse_bpp_list(options.bpp)
    table_file, record_file = options.csv, options.csv.with_name(options.csv.name + ".run.json")
    if table_file.suffix.lower() != ".csv":  # above all no picture's, which --overwrite would replace
        raise UsageError(f"--csv {table_file}: a table's name ends in .csv")
    for path in (table_file, record_file):
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UsageError(f"{path} exists: name another with --csv, or --overwrite replaces it")
    images = image_set(options.folder)
    check_writable(table_file)  # now, not after an hour of encoding
    began = time.perf_counter()
    with Progress("evaluate") as progress:
        progress.update(0.0, f"{len(names)} codecs on {len(images.paths)} images")
        table = evaluation.evaluate(
            images.paths, names, targets, workers=options.workers,
            progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
        )  # fmt: skip
    atomic_write(table_file, to_csv(as_rows(table)))
    record = {
        "parameters": {"folder": images.name, "codecs": names, "target_bpp": targets},
        "images": len(images.paths), "data_hash": images.digest,
        "seconds": round(time.perf_counter() - began, 1), **provenance(),
    }  # fmt: skip
    atomic_write(record_file, json.dumps(record, indent=2) + "\n")
    print_table(as_rows(evaluation.mean_table(table)))
    for sentence in evaluation.misses(table):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"{len(table)} rows in {table_file}", file=sys.stderr)
    evaluation.check_reach(table)


def _evaluate_curves(options: argparse.Namespace, names: list[str]) -> None:
    from mcml.data.sets import image_set
    from mcml.lab import curves
    from mcml.lab.parameters import parse_bpp_list

    rates = curves.RATES if options.at_bpp is None else parse_bpp_list(options.at_bpp)
    images = image_set(options.folder)
    check_writable(options.out / "points.csv")
    with Progress("evaluate", every_s=60) as progress:
        means, savings = curves.extend(
            options.out, images, names, sorted(rates), anew=options.overwrite, workers=options.workers,
            progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
        )  # fmt: skip
    for table in (means, savings):
        if len(table):
            print_table(as_rows(table))
    for sentence in curves.continued(means):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"points.csv, means.csv and bd_rate.csv in {options.out}", file=sys.stderr)


def data(_: argparse.Namespace) -> None:
    """List the data sets: what they are, under which licence, and whether they are here."""
    from mcml.data.sets import data_folders, image_set, registry

    rows = []
    for name, entry in registry().items():
        row = {"data set": name, "images": "", "state": "downloaded on first use, or set MCML_DATA"}
        rows.append(row | {"what": entry["title"], "licence": entry["licence"]})
        if name == "kodak" and not any((folder / name).is_dir() for folder in data_folders()):
            continue
        try:
            images = image_set(name)
            state = "here, hash as registered" if images.entry else "here, differs from the registry"
            rows[-1] |= {"images": len(images.paths), "state": state}
        except DataError as error:
            rows[-1]["state"] = "not here: set MCML_DATA"
            if "not found" not in str(error):
                rows[-1]["state"] = "damaged or incomplete"
                print(f"note: {error}", file=sys.stderr)
    print_table(rows)


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks headlessly and write results/<profile>/report.html; finished ones are skipped.

    mcml reproduce --profile cpu
    mcml reproduce --only 05 -p target_bpp=0.3
    """
    from mcml.lab import runner
    from mcml.lab.parameters import parse_names

    overrides = {}
    for text in options.parameter:
        name, sign, overrides[name] = text.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"-p {text}: expected name=value")
    with Progress("") as progress:

        def show(name: str, done: int, total: int) -> None:
            if name != progress.what:
                progress.start(name)
                if not progress.is_terminal:
                    progress.say(f"{name}: running {total} cells")
            progress.update(done / total, f"cell {done} of {total}")

        only = parse_names(options.only) or None
        path = runner.reproduce(options.profile, only, overrides, progress=show, say=progress.say)
    print(f"report: {os.path.relpath(path)}")
