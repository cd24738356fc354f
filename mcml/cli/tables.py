"""The commands that print or write tables: `mcml compare | evaluate | data | reproduce`."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcml.base.errors import DataError, UsageError
from mcml.base.files import atomic_write, check_writable, is_seen, read_bytes, to_csv
from mcml.cli.files import SUFFIX, decoder, find_inputs
from mcml.cli.main import (
    BACKGROUND,
    MODEL,
    Progress,
    add_command,
    add_output,
    number,
    print_rows,
)
from mcml.lab.output import as_rows, provenance

if TYPE_CHECKING:
    import numpy as np

    from mcml.codec.learned import LearnedCodec
    from mcml.data.sets import ImageSet

MEASURES = ("psnr", "ms_ssim", "ciede2000")  # shown of all, where there are other columns too
POSTERS = ("psnr", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle")


def codec_names(prefix: str, **_: Any) -> list[str]:
    """Return what completes a list of codecs by commas."""
    from mcml.codec.interface import names

    done, comma, _ = prefix.rpartition(",")
    return [done + comma + name for name in names()]


def add_commands(commands: Any) -> None:
    """Declare the commands that make tables."""
    add = add_command(commands, compare)
    add("reference", type=Path, metavar="ORIGINAL", help="image or .mcml file, or a folder of them")
    add("decoded", type=Path, metavar="DECODED", help="the same, in a folder by the same names")
    model = "of .mcml files: a released model, or a model's folder (default: the one that a file names)"
    add("--model", default="", help=model, **MODEL)
    add("--background", **BACKGROUND)
    add_output(add)

    add = add_command(commands, evaluate)
    pictures = "files, folders, patterns, or a data set: embedded, kodak, train, valid"
    add("words", nargs="+", metavar="IMAGES", help=pictures)
    names = "by commas, as scalar_fusion,jpeg444,avif444; or models' folders"
    add("--codecs", required=True, metavar="NAMES", completer=codec_names, help=names)
    rates = "to hit, as 0.15,0.3 (default: each codec's own qualities)"
    add("--bpp", metavar="RATES", help=rates)
    add("--background", **BACKGROUND)
    add("--csv", type=Path, metavar="FILE", help="table to write: one row an image, codec and rate")
    out = "to add to: points of each codec's curve, means and BD-rates"
    add("--out", type=Path, metavar="FOLDER", help=out)
    rates = "at which --out reads the curves (default: 0.1,0.15,0.2,0.3,0.5,0.75,1)"
    add("--at-bpp", metavar="RATES", help=rates)
    add("--workers", type=number(int, 0), default=0, metavar="N", help="processes; 0: one for each core")
    add("--overwrite", flag=False, help="replace an existing table; with --out measure anew")
    add_output(add)

    add_output(add_command(commands, data))

    add = add_command(commands, reproduce)
    add("--profile", default="quick", metavar="NAME", help="a file of notebooks/profiles")
    add("--only", default="", metavar="NUMBERS", help="notebooks, as 01,05 (default: all)")
    over = "over the profile's; may be given again"
    add("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help=over)


def compare(options: argparse.Namespace) -> None:
    """Measure how far decoded images are from their originals: two files, or two folders of equal names.

    mcml compare original.png decoded.jpg
    mcml compare photo.png photo.mcml
    mcml compare originals/ decodes/ --json
    """
    from mcml.metrics import distortion

    rows: list[dict[str, Any]] = []
    codec_for = decoder(options)
    for name, first, second in _pairs(options.reference, options.decoded):
        a, b = (_pixels(path, options, codec_for) for path in (first, second))
        if a.shape != b.shape:
            sizes = f"{first} is {a.shape[1]} x {a.shape[0]} and {second} is {b.shape[1]} x {b.shape[0]}"
            raise DataError(f"{sizes} pixels: sizes must be equal")
        rows.append({"image": name, **vars(distortion.compare(a, b))})
    mean = distortion.mean_row(rows)
    shown = rows
    if len(rows) > 1:
        means = {name: value for name, value in mean.items() if name in rows[0]}
        shown = [*rows, {"image": f"mean of {mean['images']}", **means}]
    print_rows(options, shown, ("image", *POSTERS), rows=rows, mean=mean)
    if mean["identical"] and len(rows) > 1 and not options.json:
        identical = f"{mean['identical']} of {mean['images']} pairs are identical"
        print(f"{identical}: infinite dB are not in the mean.")


def _pixels(
    path: Path, options: argparse.Namespace, codec_for: Callable[[bytes], LearnedCodec]
) -> np.ndarray:
    """Read a picture, or decode a .mcml file."""
    from mcml.codec.container import read_header
    from mcml.data.images import read_image

    if path.suffix.lower() != SUFFIX:
        return read_image(path, options.background)
    data = read_bytes(path)
    try:
        return codec_for(read_header(data)[0].model).decode(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _pairs(reference: Path, decoded: Path) -> list[tuple[str, Path, Path]]:
    for path in (reference, decoded):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if reference.is_dir() != decoded.is_dir():
        raise UsageError(f"{reference} and {decoded}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem, reference, decoded)]
    first, second = map(_by_stem, (reference, decoded))
    if lonely := sorted(first.keys() ^ second.keys()):
        where = reference if lonely[0] in first else decoded
        raise DataError(f"names differ: '{lonely[0]}' is only in {where} ({len(lonely)} without a partner)")
    return [(stem, path, second[stem]) for stem, path in first.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return a folder's pictures; if it has none its .mcml files."""
    from mcml.data.images import check_stems, list_images

    paths = sorted(path for path in folder.iterdir() if is_seen(path, {SUFFIX}))
    try:
        paths = list_images(folder)
    except DataError:
        if not paths:
            raise
    check_stems(paths)
    return {path.stem: path for path in paths}


def _image_set(options: argparse.Namespace) -> ImageSet:
    """Return the images that `options.words` name: a data set's, or those of files, folders and patterns."""
    from mcml.data.images import EXTENSIONS, check_stems
    from mcml.data.sets import ImageSet, image_set, registry

    word, *others = options.words
    if word.lower().endswith(SUFFIX):
        raise UsageError(f"{word} is compressed already: `mcml compare ORIGINAL {word}` measures it")
    if not (others or Path(word).suffix.lower() in EXTENSIONS or glob.has_magic(word)):
        return image_set(word)
    for word in options.words:
        if word in registry() and not Path(word).exists():
            raise UsageError(f"{word} is a data set, which stands alone: data sets and files do not mix")
    paths = find_inputs(options, EXTENSIONS, "image", strict=True)
    check_stems(paths)
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    return ImageSet(name=" ".join(Path(word).name for word in options.words), paths=tuple(paths))


def evaluate(options: argparse.Namespace) -> None:
    """Encode, decode and measure images with codecs: the means on screen, every file in a table.

    mcml evaluate photo.png --codecs scalar_fusion,jpeg444,webp --bpp 0.3
    mcml evaluate my_photos --codecs fusion,webp --bpp 0.15,0.3 --csv files.csv
    mcml evaluate kodak --codecs webp,jpeg2000 --out curves --at-bpp 0.15,0.3

    With --out every picture is read on its own curve of real files, at equal bytes; codecs and pictures
    that the folder has already are not measured again.
    """
    from mcml.codec.interface import get_codec
    from mcml.lab import evaluate as evaluation
    from mcml.lab.parameters import parse_bpp_list, parse_names

    names = parse_names(options.codecs)
    if not names:
        raise UsageError("--codecs is empty: give names separated by commas")
    for name in names:
        get_codec(name)
    if options.csv and options.out:
        raise UsageError("--csv for a table of files or --out for a folder of curves: give one of them")
    if (options.out and (options.bpp or options.background)) or (options.at_bpp and not options.out):
        raise UsageError("--at-bpp goes with --out, --bpp and --background without it")
    if options.out:
        _evaluate_curves(options, names)
        return
    targets = None if options.bpp is None else parse_bpp_list(options.bpp)
    files = _csv_and_record(options)
    images = _image_set(options)
    for path in files[:1]:
        check_writable(path)  # now, not after an hour of encoding
    began = time.perf_counter()
    with Progress("evaluate") as progress:
        progress.update(0.0, f"{len(names)} codecs on {len(images.paths)} images")
        table = evaluation.evaluate(
            images.paths, names, targets, workers=options.workers, background=options.background,
            progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
        )  # fmt: skip
    rows, means = as_rows(table), as_rows(evaluation.mean_table(table))
    if files:
        atomic_write(files[0], to_csv(rows))
        parameters = {"folder": images.name, "codecs": names, "target_bpp": targets}
        record = {
            "parameters": parameters | ({"background": options.background} if options.background else {}),
            "images": len(images.paths), "data_hash": images.digest,
            "seconds": round(time.perf_counter() - began, 1), **provenance(),
        }  # fmt: skip
        atomic_write(files[1], json.dumps(record, indent=2) + "\n")
    brief = ("codec", *(() if targets is None else ("target_bpp",)), "quality", "bpp", *MEASURES)
    print_rows(options, means, brief, rows=rows, means=means)
    for sentence in evaluation.misses(table):
        print(f"note: {sentence}", file=sys.stderr)
    if files:
        print(f"{len(table)} rows in {files[0]}", file=sys.stderr)
    evaluation.check_reach(table)


def _csv_and_record(options: argparse.Namespace) -> list[Path]:
    """Return the files that `evaluate` writes; `UsageError` if they cannot be."""
    if options.csv is None:
        return []
    files = [options.csv, options.csv.with_name(options.csv.name + ".run.json")]
    if options.csv.suffix.lower() != ".csv":  # above all no picture's, which --overwrite would replace
        raise UsageError(f"--csv {options.csv}: a table's name ends in .csv")
    for path in files:
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise UsageError(f"{path} exists: name another with --csv, or --overwrite replaces it")
    return files


def _evaluate_curves(options: argparse.Namespace, names: list[str]) -> None:
    from mcml.lab import curves
    from mcml.lab.parameters import parse_bpp_list

    rates = curves.RATES if options.at_bpp is None else parse_bpp_list(options.at_bpp)
    images = _image_set(options)
    check_writable(options.out / "points.csv")
    with Progress("evaluate", every_s=60) as progress:
        means, savings = curves.extend(
            options.out, images, names, sorted(rates), anew=options.overwrite, workers=options.workers,
            progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
        )  # fmt: skip
    sentences = curves.continued(means)
    means, savings = as_rows(means), as_rows(savings)
    tables = {"means": means, "bd_rate": savings}
    print_rows(options, means, ("codec", "bpp", *MEASURES, "extended"), **tables)
    if savings and not options.json:
        print_rows(options, savings, list(savings[0]))
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)
    print(f"points.csv, means.csv and bd_rate.csv in {options.out}", file=sys.stderr)


def data(options: argparse.Namespace) -> None:
    """List the data sets: whether they are here; with --all what they are, under which licence.

    mcml data
    mcml data --all
    """
    from mcml.data.sets import data_folders, image_set, registry

    rows = []
    for name, entry in registry().items():
        row = {"name": name, "images": None, "state": "downloaded on first use, or set MCML_DATA"}
        rows.append(row | {"title": entry["title"], "licence": entry["licence"]})
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
    print_rows(options, rows, ("name", "images", "state"))


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
