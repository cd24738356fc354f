"""The commands on files: `mcml compress | decompress | identify`, which `cli` registers."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcml.base.errors import CorruptStreamError, DataError, UsageError
from mcml.cli.paths import find_inputs, pair_outputs

if TYPE_CHECKING:
    import numpy as np

    from mcml.codec.learned import LearnedCodec
    from mcml.codec.rate_search import RateSearch

SUFFIX = ".mcml"
DEFAULT_BPP = 0.3
MEASURED_PIXELS = 1 << 24  # metrics of larger pictures would take gigabytes
SHOWN_METRICS = ("psnr", "ms_ssim", "ciede2000")

Files = Annotated[
    list[str], typer.Argument(help="Files, folders of .mcml files, or quoted patterns as 'out/*.mcml'.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Work = Callable[[Path, Path], tuple[dict[str, Any], str]]  # source, output -> table row, note or ""


def progress() -> Any:
    """Return a progress bar on stderr, which shows on terminals only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


# -------------------------------------------------------------------------------- compress


def compress(
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders of them, or quoted patterns as 'photos/*.png'.")
    ],
    bpp: Annotated[
        float | None, typer.Option("--bpp", help="Bits per pixel to hit; 0.3 if --rate is not given.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Percentage of luma's groups to send, 0 to 100.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="A released model, or a model's folder.")] = "fusion",
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="File, or folder for several; else beside each image as .mcml."),
    ] = "",
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Send importance maps: more bits where they are needed.")
    ] = False,
    layers: Annotated[
        int, typer.Option("--layers", help="Parts, each of which refines those before it.", min=1, max=255)
    ] = 1,
    no_metrics: Annotated[bool, typer.Option("--no-metrics", help="Do not decode and measure.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Compress images with a learned codec to .mcml files."""
    if bpp is not None and rate is not None:
        raise UsageError("--bpp and --rate: give one of them")
    if rate is not None and not 0 <= rate <= 100:
        raise UsageError(f"--rate {rate:g}: expected a percentage from 0 to 100")
    target = DEFAULT_BPP if bpp is None else bpp
    if not 0 < target <= 24:
        raise UsageError(f"--bpp {target:g}: expected bits per pixel above 0, at most 24")
    from mcml.data.images import EXTENSIONS, read_image

    paths, failures = find_inputs(images, EXTENSIONS, "image")
    jobs = pair_outputs(paths, images, output, SUFFIX, overwrite)
    if any(made.suffix.lower() != SUFFIX for _, made in jobs):
        raise UsageError(
            f"--output {output}: compress writes {SUFFIX} files: name it so, or end a folder with /"
        )

    from mcml.base.files import atomic_write
    from mcml.codec.learned import LearnedCodec
    from mcml.codec.rate_search import bits_per_pixel
    from mcml.metrics import distortion as metrics

    codec = LearnedCodec(model)
    options = {"adaptive": adaptive, "layers": layers}
    if adaptive and any(table is None for table in codec.coder.tables.values()):
        raise UsageError(f"--adaptive: {codec.name} has no importance maps")
    _check_writable(jobs)
    if jobs:
        _ = codec.model  # loaded now: it counts to no image's seconds

    def work(source: Path, made: Path) -> tuple[dict[str, Any], str]:
        image, note = read_image(source), ""
        began = time.perf_counter()
        if rate is None:
            found = codec.search(image, target, **options)
            data, quality = found.data, found.quality
        else:
            found, data, quality = None, codec.encode(image, rate, **options), rate
        seconds = time.perf_counter() - began
        row = {
            "image": shown(source), "size": f"{image.shape[1]}x{image.shape[0]}", "bytes": len(data),
            "bpp": bits_per_pixel(data, image), "quality": quality,
        }  # fmt: skip
        if not no_metrics and image.shape[0] * image.shape[1] <= MEASURED_PIXELS:
            measured = metrics.compare(image, codec.decode(data))
            row |= {name: getattr(measured, name) for name in SHOWN_METRICS}
        if found is not None and not found.reached:
            note = _why_missed(codec, image, found, options)
        atomic_write(made, data)
        return {**row, "seconds": seconds}, note

    _each("compress", jobs, failures, work)


def _why_missed(codec: LearnedCodec, image: np.ndarray, found: RateSearch, options: Mapping[str, Any]) -> str:
    from mcml.codec.rate_search import bits_per_pixel

    pieces, _ = codec.analyse(image)
    ends = (codec.quality_range.coarsest, codec.quality_range.finest)
    low, high = (
        bits_per_pixel(codec.pack(image.shape[:2], pieces, end, **options).data, image) for end in ends
    )
    why = f"on this image it reaches {low:.4f} to {high:.4f} bpp"
    if low < found.target_bpp < high:
        why += ", in steps that are coarse on so few pixels"
    return f"{found.explain(codec.name)}; {why}"


# ------------------------------------------------------------------------------ decompress


def decompress(
    files: Files,
    output: Annotated[
        str, typer.Option("--output", "-o", help="File, or folder for several; else beside each as .png.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Model or its folder, if not the one that the file names.")
    ] = "",
    luma_only: Annotated[bool, typer.Option("--luma-only", help="Decode Y alone, to grey.")] = False,
    layers: Annotated[
        int | None, typer.Option("--layers", help="Decode no more than so many layers.", min=1)
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Decode what is whole before a cut or damage.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Decompress .mcml files to 8-bit sRGB PNG."""
    paths, failures = find_inputs(files, {SUFFIX}, f"{SUFFIX} file")
    jobs = pair_outputs(paths, files, output, ".png", overwrite)
    if any(made.suffix.lower() != ".png" for _, made in jobs):
        why = "pictures are written as PNG, which loses nothing"
        raise UsageError(f"--output {output}: {why}: name a file .png, or end a folder with /")

    from mcml.base.files import read_bytes
    from mcml.codec.container import read_header, take_stock
    from mcml.codec.learned import LearnedCodec, codec_of
    from mcml.data.images import write_png

    given = LearnedCodec(model) if model else None
    _check_writable(jobs)
    codecs: dict[bytes, LearnedCodec] = {}

    def work(source: Path, made: Path) -> tuple[dict[str, Any], str]:
        data, note = read_bytes(source), ""
        header, _ = read_header(data)
        if header.model not in codecs:
            codecs[header.model] = given or codec_of(data)
            _ = codecs[header.model].model  # loaded now: it counts to no file's seconds
        codec, began = codecs[header.model], time.perf_counter()
        try:
            found = codec.decode_detailed(data, luma_only=luma_only, partial=partial, layers=layers)
        except CorruptStreamError as error:
            stock = take_stock(data)
            if partial or not stock.shows or stock.whole == stock.chunks:  # it would raise the same again
                raise
            raise CorruptStreamError(f"{error}; --partial decodes what is whole before it") from error
        if found.layers < min(header.layers, layers or header.layers):
            note = f"cut short or damaged: {found.layers} of {header.layers} layers are whole"
            if not found.layers and not luma_only:
                note += "; grey, for of the first only luma is"
        write_png(made, found.image)
        row = {
            "file": shown(source), "output": shown(made), "size": f"{header.width}x{header.height}",
            "layers": f"{found.layers}/{header.layers}", "seconds": time.perf_counter() - began,
        }  # fmt: skip
        return row, note

    _each("decompress", jobs, failures, work)


# -------------------------------------------------------------------------------- identify


def identify(
    files: Files,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list with an object for each file.")
    ] = False,
) -> None:
    """Tell what .mcml files hold and whether they are whole, without decoding them."""
    from mcml.base.files import read_bytes
    from mcml.codec.file_contents import block, describe

    paths, failures = find_inputs(files, {SUFFIX}, f"{SUFFIX} file")
    found: list[dict[str, Any]] = []
    for error in failures:
        _report(error)
    for path in paths:
        content: dict[str, Any] = {}
        try:
            content, error = describe(read_bytes(path))
        except DataError as caught:
            error = caught
        if error is not None:
            content["error"] = str(error)
            _report(error, path)
        found.append({"file": shown(path), **content})
    if as_json:
        print(json.dumps(found, indent=2))
    elif known := [block(content) for content in found if "width" in content]:
        print("\n\n".join(known))
    if failures or any("error" in content for content in found):
        raise typer.Exit(1)


# ----------------------------------------------------------------------------- one by one


def shown(path: Path) -> str:
    """Return a path that can be printed, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _check_writable(jobs: Sequence[tuple[Path, Path]]) -> None:
    from mcml.base.files import check_writable

    for made in {made.parent: made for _, made in jobs}.values():
        check_writable(made)


def _report(error: DataError, path: Path | None = None) -> None:
    """Print an error, which names the file."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    named = path is None or str(error).startswith(f"{path}: ")
    print(f"mcml: {error}" if named else f"mcml: {shown(path)}: {error}", file=sys.stderr)


def _each(what: str, jobs: Sequence[tuple[Path, Path]], failures: Sequence[DataError], work: Work) -> None:
    """Do the work on each file, go on where one fails, print the table; exit 1 if any failed."""
    from mcml.lab.output import print_table

    rows: list[dict[str, Any]] = []
    failed = bool(failures)
    for error in failures:
        _report(error)
    try:
        with progress() as bar:
            task = bar.add_task(what, total=len(jobs))
            for source, made in jobs:
                try:
                    row, note = work(source, made)
                    rows.append(row)
                    if note:
                        print(f"note: {shown(source)}: {note}", file=sys.stderr)
                except DataError as error:
                    failed = True
                    _report(error, source)
                bar.advance(task)
    finally:  # what is finished is shown after Ctrl-C too
        if rows:
            print_table(rows)
    if failed:
        raise typer.Exit(1)
