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
from mcml.cli.main import Progress, add_command, number


def add_commands(commands: Any) -> None:
    """Declare the commands that make tables."""
    add = add_command(commands, compare)
    add("reference", type=Path, metavar="ORIGINAL", help="image, or a folder of them")
    add("decoded", type=Path, metavar="DECODED", help="image, or a folder with the same names")
    add("--json", action="store_true", help='print {"rows": [...], "mean": {...}}')

    add = add_command(commands, evaluate)
    add("folder", metavar="FOLDER", help="of images, or a data set: embedded, kodak, train, valid")
    add("--codecs", required=True, help="names or models' folders, separated by commas")
    add("--csv", type=Path, required=True, help="table to write: one row an image, codec and rate")
    add("--bpp", help="rates to hit, as 0.15,0.3; without it each codec's own qualities")
    add("--workers", type=number(int, 0), default=0, help="processes; 0 means one for each core (0)")
    add("--overwrite", action="store_true", help="replace an existing table")

    add_command(commands, data)

    add = add_command(commands, reproduce)
    add("--profile", default="quick", help="a file of notebooks/profiles (quick)")
    add("--only", default="", help="notebooks by number, as 01,05")
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="over the profile's")
    add("--force", action="store_true", help="run finished notebooks again")


def compare(options: argparse.Namespace) -> None:
    """Measure how far decoded images are from their originals: two files, or two folders of equal names.

    mcml compare original.png decoded.jpg
    mcml compare originals/ decodes/ --json
    """
    from mcml.data.images import read_image
    from mcml.lab.output import print_table
    from mcml.metrics import distortion

    rows: list[dict[str, Any]] = []
    for name, first, second in _pairs(options.reference, options.decoded):
        a, b = read_image(first), read_image(second)
        if a.shape != b.shape:
            sizes = f"{first} is {a.shape[1]} x {a.shape[0]} and {second} is {b.shape[1]} x {b.shape[0]}"
            raise DataError(f"{sizes} pixels: sizes must be equal")
        rows.append({"image": name, **vars(distortion.compare(a, b))})
    mean = distortion.mean_row(rows)
    if options.json:
        print(_to_json({"rows": rows, "mean": mean}))
        return
    if len(rows) > 1:
        rows.append({"image": f"mean of {mean['images']}", **mean})
    print_table([{k: v for k, v in row.items() if k not in ("images", "identical")} for row in rows])
    if mean["identical"] and len(rows) > 1:
        identical = f"{mean['identical']} of {mean['images']} pairs are identical"
        print(f"{identical}: infinite dB are not in the mean.")


def _pairs(reference: Path, decoded: Path) -> list[tuple[str, Path, Path]]:
    from mcml.data.images import check_stems, list_images

    for path in (reference, decoded):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.suffix.lower() == ".mcml" and path.is_file():
            raise DataError(f"{path}: compare takes pictures: `mcml decompress {path}` first")
    if reference.is_dir() != decoded.is_dir():
        raise UsageError(f"{reference} and {decoded}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem, reference, decoded)]
    by_stem = []
    for folder in (reference, decoded):
        paths = list_images(folder)
        check_stems(paths)
        by_stem.append({path.stem: path for path in paths})
    lonely = sorted(by_stem[0].keys() ^ by_stem[1].keys())
    if lonely:
        where = reference if lonely[0] in by_stem[0] else decoded
        raise DataError(f"names differ: '{lonely[0]}' is only in {where} ({len(lonely)} without a partner)")
    return [(stem, path, by_stem[1][stem]) for stem, path in by_stem[0].items()]


def _to_json(value: Any) -> str:
    """Return valid JSON: infinity is 1e999, which Python and JavaScript read as infinite; NaN is null."""
    text = re.sub(r": NaN(?=,?$)", ": null", json.dumps(value, indent=2), flags=re.MULTILINE)
    return re.sub(r": Infinity(?=,?$)", ": 1e999", text, flags=re.MULTILINE)


def evaluate(options: argparse.Namespace) -> None:
    """Encode, decode and measure images with codecs: a tidy CSV, and the means on screen.

    mcml evaluate my_photos --codecs fusion,jpeg444,webp --bpp 0.15,0.3 --csv files.csv
    """
    from mcml.codec.interface import get_codec
    from mcml.data.sets import image_set
    from mcml.lab.parameters import parse_bpp_list, parse_names

    names = parse_names(options.codecs)
    if not names:
        raise UsageError("--codecs is empty: give names separated by commas")
    for name in names:
        get_codec(name)
    targets = None if options.bpp is None else parse_bpp_list(options.bpp)
    table_file = options.csv
    if table_file.suffix.lower() != ".csv":  # above all no picture's, which --overwrite would replace
        raise UsageError(f"--csv {table_file}: a table's name ends in .csv")
    record_file = table_file.with_name(table_file.name + ".run.json")
    for path in (table_file, record_file):
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UsageError(f"{path} exists: name another with --csv, or --overwrite replaces it")
    images = image_set(options.folder)

    from mcml.base import files
    from mcml.lab import evaluate as evaluation
    from mcml.lab import output

    files.check_writable(table_file)  # now, not after an hour of encoding
    began = time.perf_counter()
    with Progress("evaluate") as progress:
        progress.update(0.0, f"{len(names)} codecs on {len(images.paths)} images")
        table = evaluation.evaluate(
            images.paths, names, targets, workers=options.workers,
            progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
        )  # fmt: skip
    files.atomic_write(table_file, files.to_csv(output.as_rows(table)))
    record = {
        "parameters": {"folder": images.name, "codecs": names, "target_bpp": targets},
        "images": len(images.paths),
        "data_hash": images.digest,
        "seconds": round(time.perf_counter() - began, 1),
        **output.provenance(),
    }
    files.atomic_write(record_file, json.dumps(record, indent=2) + "\n")
    output.print_table(output.as_rows(evaluation.mean_table(table)))
    for sentence in evaluation.misses(table):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"{len(table)} rows in {table_file}", file=sys.stderr)
    evaluation.check_reach(table)


def data(_: argparse.Namespace) -> None:
    """List the data sets: what they are, under which licence, and whether they are here."""
    from mcml.data.sets import data_folders, image_set, registry
    from mcml.lab.output import print_table

    rows = []
    for name, entry in registry().items():
        count: int | str = ""
        if name == "kodak" and not any((folder / name).is_dir() for folder in data_folders()):
            state = "downloaded on first use, or set MCML_DATA"
        else:
            try:
                images = image_set(name)
                count = len(images.paths)
                state = "here, hash as registered" if images.entry else "here, differs from the registry"
            except DataError as error:
                state = "not here: set MCML_DATA"
                if "not found" not in str(error):
                    state = "damaged or incomplete"
                    print(f"note: {error}", file=sys.stderr)
        about = {"what": entry["title"], "licence": entry["licence"]}
        rows.append({"data set": name, "images": count, "state": state, **about})
    print_table(rows)


def reproduce(options: argparse.Namespace) -> None:
    """Run the notebooks headlessly and write results/<profile>/report.html; finished ones are skipped.

    mcml reproduce --profile cpu
    mcml reproduce --only 05 -p target_bpp=0.3
    """
    from mcml.lab import runner
    from mcml.lab.parameters import parse_names

    with Progress("") as progress:

        def show(name: str, done: int, total: int) -> None:
            if name != progress.what:
                progress.start(name)
                if not progress.is_terminal:
                    progress.say(f"{name}: running {total} cells")
            progress.update(done / total, f"cell {done} of {total}")

        only, overrides = parse_names(options.only) or None, dict(map(_assignment, options.parameter))
        path = runner.reproduce(
            options.profile, only, overrides, force=options.force, progress=show, say=progress.say
        )
    print(f"report: {os.path.relpath(path)}")


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UsageError(f"-p {text}: expected name=value")
    return name, value
