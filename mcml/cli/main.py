"""The command line: `mcml compare | evaluate | reproduce | data`, others of `file_cli` and `train_cli`."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mcml import __version__
from mcml.base.errors import DataError, McmlError, UsageError
from mcml.cli import files as file_cli
from mcml.cli.files import progress
from mcml.lab.parameters import parse_bpp_list, parse_names

app = typer.Typer(
    name="mcml",
    help="Multi-channel multi-loss image compression: colour metrics, codecs, notebooks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mcml {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Multi-channel multi-loss image compression: colour metrics, codecs, notebooks."""


for command in (file_cli.compress, file_cli.decompress, file_cli.identify):
    app.command()(command)

# --------------------------------------------------------------------------------- compare


@app.command()
def compare(
    reference: Annotated[Path, typer.Argument(help="Original image, or a folder of them.")],
    decoded: Annotated[Path, typer.Argument(help="Decoded image, or a folder with the same names.")],
    as_json: Annotated[bool, typer.Option("--json", help='Print {"rows": [...], "mean": {...}}.')] = False,
) -> None:
    """Measure how far decoded images are from their originals.

    Two files, or two folders whose images have the same names (suffixes may differ).
    """
    from mcml.data.images import read_image
    from mcml.lab.output import print_table
    from mcml.metrics import distortion as metrics

    rows: list[dict[str, Any]] = []
    for name, first, second in _pairs(reference, decoded):
        a, b = read_image(first), read_image(second)
        if a.shape != b.shape:
            raise DataError(
                f"{first} is {a.shape[1]} x {a.shape[0]} and {second} is {b.shape[1]} x {b.shape[0]} pixels: "
                "sizes must be equal"
            )
        rows.append({"image": name, **vars(metrics.compare(a, b))})
    mean = metrics.mean_row(rows)
    if as_json:
        print(_to_json({"rows": rows, "mean": mean}))
        return
    if len(rows) > 1:
        rows.append({"image": f"mean of {mean['images']}", **mean})
    print_table([{k: v for k, v in row.items() if k not in ("images", "identical")} for row in rows])
    if mean["identical"] and len(rows) > 1:
        print(
            f"{mean['identical']} of {mean['images']} pairs are identical: infinite dB are not in the mean."
        )


def _pairs(reference: Path, decoded: Path) -> list[tuple[str, Path, Path]]:
    from mcml.data.images import list_images

    for path in (reference, decoded):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if reference.is_dir() != decoded.is_dir():
        raise UsageError(f"{reference} and {decoded}: give two files or two folders")
    if not reference.is_dir():
        return [(reference.stem, reference, decoded)]
    folders = [_by_stem(list_images(folder)) for folder in (reference, decoded)]
    lonely = sorted(folders[0].keys() ^ folders[1].keys())
    if lonely:
        where = reference if lonely[0] in folders[0] else decoded
        raise DataError(f"names differ: '{lonely[0]}' is only in {where} ({len(lonely)} without a partner)")
    return [(stem, path, folders[1][stem]) for stem, path in folders[0].items()]


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise DataError(
                f"{found[path.stem]} and {path.name} have one name: images are paired by their stem"
            )
        found[path.stem] = path
    return found


def _to_json(value: Any) -> str:
    """Valid JSON: infinity is 1e999, which Python and JavaScript read as infinite; NaN is null."""
    marker = "\u0000inf"

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(v) for key, v in item.items()}
        if isinstance(item, list):
            return [plain(v) for v in item]
        if isinstance(item, float) and math.isnan(item):
            return None
        return marker if isinstance(item, float) and math.isinf(item) else item

    return json.dumps(plain(value), indent=2).replace(json.dumps(marker), "1e999")


# -------------------------------------------------------------------------------- evaluate


@app.command()
def evaluate(
    folder: Annotated[
        str, typer.Argument(help="Folder of images, or a data set: embedded, kodak, train, valid.")
    ],
    codecs: Annotated[str, typer.Option(help="Codec names, separated by commas.")],
    csv: Annotated[Path, typer.Option("--csv", help="Table to write: one row an image, codec and rate.")],
    bpp: Annotated[
        str | None,
        typer.Option("--bpp", help="Rates to hit, as 0.15,0.3; without it each codec's own qualities."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 means one for each core.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
) -> None:
    """Encode, decode and measure images with codecs: a tidy CSV, and the means on screen."""
    from mcml.codec.interface import get_codec
    from mcml.data.sets import image_set

    names = parse_names(codecs)
    if not names:
        raise UsageError("--codecs is empty: give names separated by commas")
    for name in names:
        get_codec(name)
    targets = None if bpp is None else parse_bpp_list(bpp)
    if csv.is_dir():
        raise UsageError(f"{csv} is a folder: --csv takes a file")
    record_file = csv.with_name(csv.name + ".run.json")
    for path in (csv, record_file):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists: give --overwrite to replace it")
    found = image_set(folder)

    from mcml.base import files
    from mcml.lab import evaluate as evaluation
    from mcml.lab import output

    files.check_writable(csv)  # now, not after an hour of encoding
    began = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("encode, decode, measure", total=None)
        table = evaluation.evaluate(
            found.paths, names, targets, workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    files.atomic_write(csv, files.to_csv(output.as_rows(table)))
    record = {
        "parameters": {"folder": found.name, "codecs": names, "target_bpp": targets},
        "images": len(found.paths),
        "data_hash": found.digest,
        "seconds": round(time.perf_counter() - began, 1),
        **output.provenance(),
    }
    files.atomic_write(record_file, json.dumps(record, indent=2) + "\n")
    output.print_table(output.as_rows(evaluation.mean_table(table)))
    for sentence in evaluation.misses(table):
        print(f"note: {sentence}", file=sys.stderr)
    print(f"{len(table)} rows in {csv}", file=sys.stderr)
    evaluation.check_reach(table)


# ------------------------------------------------------------------------------- reproduce


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="A file of notebooks/profiles.")] = "quick",
    only: Annotated[str, typer.Option(help="Notebooks by number, as 01,05.")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value; lies over the profile's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished notebooks again.")] = False,
) -> None:
    """Run the notebooks headlessly and write results/<profile>/report.html."""
    from mcml.lab import runner

    overrides = dict(_assignment(text) for text in parameter or [])
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"{name}, cells", total=total)
                if not bar.console.is_terminal:
                    say(f"{name}: running {total} cells")
            bar.update(tasks[name], completed=done)

        def say(line: str) -> None:
            bar.console.print(line, highlight=False)

        path = runner.reproduce(
            profile, parse_names(only) or None, overrides, force=force, progress=show, say=say
        )
    print(f"report: {os.path.relpath(path)}")


def _assignment(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name.isidentifier():
        raise UsageError(f"-p {text}: expected name=value")
    return name, value


# ------------------------------------------------------------------------------------ data


@app.command()
def data() -> None:
    """List the data sets: what they are, under which licence, and whether they are here."""
    from mcml.data.sets import image_set, registry
    from mcml.lab.output import print_table

    rows = []
    for name, entry in registry().items():
        state, count = "not here: set MCML_DATA", 0
        if name != "kodak" or _has_kodak():
            try:
                found = image_set(name)
                count = len(found.paths)
                state = "here, hash as registered" if found.entry else "here, differs from the registry"
            except DataError as error:
                if "not found" not in str(error):
                    state = "damaged or incomplete"
                    print(f"note: {error}", file=sys.stderr)
        else:
            state = "downloaded on first use, or set MCML_DATA"
        rows.append(
            {
                "data set": name,
                "images": count or "",
                "state": state,
                "what": entry["title"],
                "licence": entry["licence"],
            }
        )
    print_table(rows)


def _has_kodak() -> bool:
    from mcml.data.sets import data_folders

    return any((folder / "kodak").is_dir() for folder in data_folders())


class InterruptedRunError(McmlError):
    """Ctrl-C was pressed."""

    exit_code = 130


def _interrupted(*_: Any) -> None:
    raise InterruptedRunError("interrupted; what was finished is kept")


# Listed here; `mcml.__main__` sends them to modules that do without typer.
app.command("train", help="Train a variant's networks and evaluate them.")(lambda: None)
app.command("train-entropy", help="Give a trained model the entropy coder of its files.")(lambda: None)
app.command("info", help="Print a variant's layout, parameters and MACs per pixel.")(lambda: None)


def main() -> None:
    """Run the command line: exit code 2 for a mistake in usage, 1 for one in the data."""
    signal.signal(signal.SIGINT, _interrupted)
    arguments = [word for word in sys.argv[1:] if word != "--debug"]  # may stand anywhere
    try:
        app(arguments)
    except McmlError as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        print(f"mcml: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
