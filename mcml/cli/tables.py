"""The commands that print or write tables: `mcml compare | evaluate | data | reproduce`."""

from __future__ import annotations

import argparse
import glob
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcml.base.errors import DataError, McmlError, StoppedError, UsageError
from mcml.base.files import (
    atomic_write,
    check_writable,
    is_device,
    is_seen,
    read_bytes,
    shown,
    to_csv,
    to_json,
    unwritable,
)
from mcml.cli.files import SUFFIX, decoder, find_inputs
from mcml.cli.main import (
    BACKGROUND,
    MODEL,
    Progress,
    add_command,
    add_output,
    fail,
    number,
    print_rows,
    tell,
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
    for name, *pair in _pairs(options, options.reference, options.decoded):
        path = pair[0]
        try:
            a, b = (_pixels(path := one, options, codec_for) for one in pair)
            if a.shape != b.shape:
                sizes = " and ".join(
                    f"{one} is {x.shape[1]} x {x.shape[0]}" for one, x in zip(pair, (a, b), strict=True)
                )
                raise DataError(f"{path}: sizes must be equal, {sizes} pixels")
            rows.append({"image": name, **vars(distortion.compare(a, b))})
        except UsageError:
            raise
        except Exception as error:
            fail(options, error, path)
    if not rows and not options.json:
        return
    mean = distortion.mean_row(rows)
    listed = rows
    if len(rows) > 1:
        means = {name: value for name, value in mean.items() if name in rows[0]}
        listed = [*rows, {"image": f"mean of {mean['images']}", **means}]
    print_rows(options, listed, ("image", *POSTERS), rows=rows, mean=mean)
    if mean["identical"] and len(rows) > 1 and not options.json:
        identical = f"{mean['identical']} of {mean['images']} pairs are identical"
        print(f"{identical}: infinite dB are not in the mean.")


def _pixels(
    path: Path, options: argparse.Namespace, codec_for: Callable[[bytes], LearnedCodec]
) -> np.ndarray:
    """Read a picture, or decode a .mcml file."""
    from mcml.codec.container import MAGIC, read_header
    from mcml.data.images import decode_image

    data = read_bytes(path)  # once: it may be a pipe
    if path.suffix.lower() != SUFFIX and not data.startswith(MAGIC):
        return decode_image(data, str(path), options.background)
    try:
        return codec_for(read_header(data)[0].model).decode(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _pairs(options: argparse.Namespace, reference: Path, decoded: Path) -> list[tuple[str, Path, Path]]:
    for path in (reference, decoded):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if reference.is_dir() != decoded.is_dir():
        raise UsageError(f"{reference} and {decoded}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem, reference, decoded)]
    first, second = map(_by_stem, (reference, decoded))
    for stem in sorted(first.keys() ^ second.keys()):
        here, there = (first[stem], decoded) if stem in first else (second[stem], reference)
        fail(options, DataError(f"{here}: has no partner in {there}"))
    return [(stem, path, second[stem]) for stem, path in first.items() if stem in second]


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
    if not (
        others or Path(word).is_file() or Path(word).suffix.lower() in EXTENSIONS or glob.has_magic(word)
    ):
        _check_file(Path(word), of_folder=True)
        return image_set(word)
    for word in options.words:
        if word in registry() and not Path(word).exists():
            raise UsageError(f"{word} is a data set, which stands alone: data sets and files do not mix")
    paths = find_inputs(options, EXTENSIONS, "image", strict=True)
    check_stems(paths)
    for path in paths:
        _check_file(path)
    return ImageSet(name=" ".join(Path(word).name for word in options.words), paths=tuple(paths))


def _check_file(path: Path, of_folder: bool = False) -> None:
    """Raise `DataError` unless a path is a file, or maybe a folder or a data set's name."""
    if is_device(path):
        raise DataError(f"{path}: is a pipe or a device, which every codec would have to read: give a file")
    if not (of_folder or path.is_file()):
        raise DataError(f"{path}: no such file")


def evaluate(options: argparse.Namespace) -> None:
    """Encode, decode and measure images with codecs: the means on screen, every file in a table.

    mcml evaluate photo.png --codecs scalar_fusion,jpeg444,webp --bpp 0.3
    mcml evaluate my_photos --codecs fusion,webp --bpp 0.15,0.3 --csv files.csv
    mcml evaluate kodak --codecs webp,jpeg2000 --out curves --at-bpp 0.15,0.3

    With --out every picture is read on its own curve of real files, at equal bytes; codecs and pictures
    that the folder has already are not measured again.
    """
    from mcml.codec.interface import get_codec
    from mcml.lab.parameters import parse_names

    names = parse_names(options.codecs)
    if not names:
        raise UsageError("--codecs is empty: give names separated by commas")
    for name in names:
        get_codec(name)
    if options.csv and options.out:
        raise UsageError("--csv for a table of files or --out for a folder of curves: give one of them")
    if (options.out and (options.bpp or options.background)) or (options.at_bpp and not options.out):
        raise UsageError("--at-bpp goes with --out, --bpp and --background without it")
    (_evaluate_curves if options.out else _evaluate_files)(options, names)


def _evaluate_files(options: argparse.Namespace, names: list[str]) -> None:
    from mcml.lab import evaluate as evaluation
    from mcml.lab.parameters import parse_bpp_list

    targets = None if options.bpp is None else parse_bpp_list(options.bpp)
    files = _csv_and_record(options)
    images = _image_set(options)
    for path in files[:1]:
        check_writable(path)  # now, not after an hour of encoding
    parameters = {"folder": images.name, "codecs": names, "target_bpp": targets}
    parameters |= {"background": options.background} if options.background else {}
    left_out: dict[Path, str] = {}
    write = partial(_write_table, options, files, images, parameters, left_out, time.perf_counter())
    table = _measured(options, images, names, targets, left_out, write)
    rows, means = as_rows(table), as_rows(evaluation.mean_table(table))
    written = ""
    if files and rows:
        try:
            write(rows)
            written = f"{len(rows)} rows in {shown(files[0])}"
        except DataError as error:  # what it would have held is shown at least
            fail(options, error)
    if not (rows or options.json):
        return
    brief = ("codec", *(() if targets is None else ("target_bpp",)), "quality", "bpp", *MEASURES)
    print_rows(options, means, brief, rows=rows, means=means)
    for sentence in evaluation.misses(table):
        tell(f"note: {shown(sentence)}")
    if written:
        tell(written)
    evaluation.check_reach(table)


def _measured(
    options: argparse.Namespace, images: ImageSet, names: list[str], targets: list[float] | None,
    left_out: dict[Path, str], write: Callable[..., None],
) -> Any:  # fmt: skip
    """Return the DataFrame of images; tell and add to `left_out` what cannot be; write an early end."""
    from mcml.lab import evaluate as evaluation

    finished: list[dict[str, Any]] = []
    with Progress("evaluate") as progress:

        def failed(path: Path, error: McmlError) -> None:
            left_out[path] = str(error)
            progress.clear()
            fail(options, error, path)

        progress.update(0.0, f"{len(names)} codecs on {len(images.paths)} images")
        try:
            return evaluation.evaluate(
                images.paths, names, targets, workers=options.workers, background=options.background,
                progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
                keep=finished.extend, failed=failed,
            )  # fmt: skip
        except (McmlError, StoppedError) as error:
            if options.csv and finished:
                write(finished, ended=str(error).partition(";")[0])
                kept = f"the {len(finished)} rows that were finished are in {options.csv}"
                if isinstance(error, StoppedError):
                    error.then = kept
                else:
                    progress.say(shown(kept))
            raise


def _write_table(
    options: argparse.Namespace, files: list[Path], images: ImageSet, parameters: dict[str, Any],
    left_out: dict[Path, str], began: float, rows: list[dict[str, Any]], **ended: Any,
) -> None:  # fmt: skip
    """Write a table and what it was made from: `files`; `ended` says how, if it is not whole."""
    from mcml.data.images import data_digest

    atomic_write(files[0], to_csv(rows), overwrite=options.overwrite)
    used = [path for path in images.paths if path not in left_out]
    try:
        digest = data_digest(used)
    except DataError:  # a picture is gone by now
        digest = "unknown"
    if left_out:
        ended["left_out"] = {path.name: text for path, text in left_out.items()}
    record = {
        "parameters": parameters, "images": len(used), "data_hash": digest, **ended,
        "seconds": round(time.perf_counter() - began, 1), **provenance(),
    }  # fmt: skip
    atomic_write(files[1], to_json(record) + "\n", overwrite=options.overwrite)


def _csv_and_record(options: argparse.Namespace) -> list[Path]:
    """Return the files that `evaluate` writes; `UsageError` if they cannot be."""
    if options.csv is None:
        return []
    files = [options.csv, options.csv.with_name(options.csv.name + ".run.json")]
    if options.csv.suffix.lower() != ".csv":  # above all no picture's, which --overwrite would replace
        raise UsageError(f"--csv {options.csv}: a table's name ends in .csv")
    for path in files:
        try:
            taken = path.is_dir() or (path.exists() and not options.overwrite)
        except OSError as error:  # its name is too long, or its folder is closed to us
            raise unwritable(path, error) from error
        if taken:
            raise UsageError(f"{path} exists: name another with --csv, or --overwrite replaces it")
    return files


def _evaluate_curves(options: argparse.Namespace, names: list[str]) -> None:
    from mcml.lab import curves
    from mcml.lab.parameters import parse_bpp_list

    rates = curves.RATES if options.at_bpp is None else parse_bpp_list(options.at_bpp)
    images = _image_set(options)
    check_writable(options.out / "points.csv")
    for path in images.paths:
        try:
            path.open("rb").close()
        except OSError as error:
            fail(options, DataError(f"{path}: cannot be read ({error.strerror})"))
            images = replace(images, paths=tuple(p for p in images.paths if p != path))
    with Progress("evaluate", every_s=60) as progress:

        def failed(path: Path, error: McmlError) -> None:
            progress.clear()
            fail(options, error, path)

        try:
            means, savings = curves.extend(
                options.out, images, names, sorted(rates), anew=options.overwrite, workers=options.workers,
                progress=lambda done, total: progress.update(done / total, f"{done} of {total}"),
                failed=failed,
            )  # fmt: skip
        except StoppedError as stopped:
            stopped.then = f"what was finished is kept in {options.out}; the same command goes on from there"
            raise
    sentences = curves.continued(means)
    means, savings = as_rows(means), as_rows(savings)
    tables = {"means": means, "bd_rate": savings}
    print_rows(options, means, ("codec", "bpp", *MEASURES, "extended"), **tables)
    if savings and not options.json:
        print_rows(options, savings, list(savings[0]))
    for sentence in sentences:
        tell(f"note: {sentence}")
    tell(f"points.csv, means.csv{' and bd_rate.csv' * bool(savings)} in {options.out}")


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
                tell(f"note: {error}")
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
    print(f"report: {shown(os.path.relpath(path))}")
