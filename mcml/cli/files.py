"""The commands on files: `mcml compress | decompress | identify`, and which files their words name."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from mcml.base.errors import CorruptStreamError, DataError, UsageError
from mcml.base.files import atomic_write, check_writable, is_seen, read_bytes
from mcml.cli.main import Progress, add_command, number, shown, tell

SUFFIX = ".mcml"
DEFAULT_BPP = 0.3
MEASURED_PIXELS = 1 << 24  # metrics of larger pictures would take gigabytes
SHOWN_METRICS = ("psnr", "ms_ssim", "ciede2000")

Work = Callable[[Path, Path], tuple[dict[str, Any], str]]  # source, output -> table row, note or ""


def add_commands(commands: Any) -> None:
    """Declare the commands on files."""
    add = add_command(commands, compress)
    add("images", nargs="+", metavar="IMAGE", help="files, folders of them, or patterns as 'photos/*.png'")
    add("--bpp", type=number(float, 1e-4, 24), help="bits per pixel to hit; 0.3 if --rate is not given")
    add("--rate", type=number(float, 0, 100), help="percentage of luma's groups to send, instead of --bpp")
    add("--model", default="fusion", help="a released model, or a model's folder (fusion)")
    add("-o", "--output", default="", help="file, or folder for several; else beside each image as .mcml")
    add("--adaptive", action="store_true", help="send importance maps: bits where they are needed")
    add("--layers", type=number(int, 1, 255), default=1, help="parts, each refining those before it (1)")
    add("--no-metrics", action="store_true", help="do not decode and measure")
    add("--overwrite", action="store_true", help="replace existing files")

    files = {"nargs": "+", "metavar": "FILE", "help": "files, folders of them, or patterns as 'out/*.mcml'"}
    add = add_command(commands, decompress)
    add("files", **files)
    add("-o", "--output", default="", help="file, or folder for several; else beside each as .decoded.png")
    add("--model", default="", help="model or its folder, if not the one that the file names")
    add("--luma-only", action="store_true", help="decode Y alone, to grey")
    add("--layers", type=number(int, 1), help="decode no more than so many layers")
    add("--partial", action="store_true", help="decode what is whole before a cut or damage")
    add("--overwrite", action="store_true", help="replace existing files")

    add = add_command(commands, identify)
    add("files", **files)
    add("--json", action="store_true", help="print a list with an object for each file")


def compress(options: argparse.Namespace) -> int:
    """Compress images with a learned codec to .mcml files, and print their sizes and metrics.

    mcml compress photo.png --bpp 0.3
    mcml compress 'photos/*.png' -o compressed/ --rate 40
    """
    if options.bpp is not None and options.rate is not None:
        raise UsageError("--bpp and --rate: give one of them")
    from mcml.data.images import EXTENSIONS, read_image

    if compressed := [word for word in options.images if word.lower().endswith(SUFFIX)]:
        raise UsageError(f"{compressed[0]} is compressed already: `mcml decompress` makes a picture of it")
    paths, failed = find_inputs(options.images, EXTENSIONS, "image", options.debug)
    pairs = pair_outputs(paths, options, options.images, SUFFIX)

    from mcml.codec.interface import bits_per_pixel, encode_at_bpp
    from mcml.codec.learned import LearnedCodec
    from mcml.metrics import distortion

    codec = LearnedCodec(options.model)
    how = {"adaptive": options.adaptive, "layers": options.layers}
    if options.adaptive and not codec.coder.has_maps:
        raise UsageError(f"--adaptive: {codec.name} has no importance maps")

    def work(source: Path, made: Path) -> tuple[dict[str, Any], str]:
        _ = codec.model  # loaded now: it counts to no image's seconds
        image, note = read_image(source), ""
        began = time.perf_counter()
        if options.rate is None:
            nearest = encode_at_bpp(codec, image, options.bpp or DEFAULT_BPP, **how)
            data, quality = nearest.data, nearest.quality
        else:
            nearest, data, quality = None, codec.encode(image, options.rate, **how), options.rate
        seconds = time.perf_counter() - began
        row = {
            "image": shown(source), "size": f"{image.shape[1]}x{image.shape[0]}", "bytes": len(data),
            "bpp": bits_per_pixel(data, image), "quality": quality,
        }  # fmt: skip
        if not options.no_metrics and image.shape[0] * image.shape[1] <= MEASURED_PIXELS:
            measured = distortion.compare(image, codec.decode(data))
            row |= {name: getattr(measured, name) for name in SHOWN_METRICS}
        if nearest is not None and not nearest.reached:
            encode = codec.encoder(image, **how)
            low, high = (bits_per_pixel(encode(end), image) for end in (0, 100))
            note = f"{nearest.explain(codec.name)}; on this image it reaches {low:.4f} to {high:.4f} bpp"
            if low < nearest.target_bpp < high:
                note += ", in steps that are coarse on so few pixels"
        atomic_write(made, data)
        return {**row, "seconds": seconds}, note

    return _each("compress", pairs, failed, work, options.debug)


def decompress(options: argparse.Namespace) -> int:
    """Decompress .mcml files to 8-bit sRGB PNG.

    mcml decompress photo.mcml -o back.png
    mcml decompress compressed/ -o decoded/
    mcml decompress cut.mcml --partial
    """
    from mcml.codec.container import read, read_header
    from mcml.codec.learned import LearnedCodec, codec_of
    from mcml.data.images import write_png

    paths, failed = find_inputs(options.files, {SUFFIX}, f"{SUFFIX} file", options.debug)
    pairs = pair_outputs(paths, options, options.files, ".png", ".decoded.png")
    given = LearnedCodec(options.model) if options.model else None
    codecs: dict[bytes, LearnedCodec] = {}

    def work(source: Path, made: Path) -> tuple[dict[str, Any], str]:
        data, note = read_bytes(source), ""
        header, _ = read_header(data)
        if header.model not in codecs:
            codecs[header.model] = given or codec_of(data)
            _ = codecs[header.model].model  # loaded now: it counts to no file's seconds
        codec, began = codecs[header.model], time.perf_counter()
        try:
            decoded = codec.decode_detailed(
                data, luma_only=options.luma_only, partial=options.partial, layers=options.layers
            )
        except CorruptStreamError as error:
            _, chunks = read(data, partial=True)
            if options.partial or not header.shows(len(chunks)) or len(chunks) == header.chunk_count():
                raise  # it would fail again
            raise CorruptStreamError(f"{error}; --partial decodes what is whole before it") from error
        if decoded.layers < min(header.layers, options.layers or header.layers):
            note = f"cut short or damaged: {decoded.layers} of {header.layers} layers are whole"
            if not decoded.layers and not options.luma_only:
                note += "; grey, for of the first only luma is"
        write_png(made, decoded.image)
        row = {
            "file": shown(source), "output": shown(made), "size": f"{header.width}x{header.height}",
            "layers": f"{decoded.layers}/{header.layers}", "seconds": time.perf_counter() - began,
        }  # fmt: skip
        return row, note

    return _each("decompress", pairs, failed, work, options.debug)


def identify(options: argparse.Namespace) -> int:
    """Tell what .mcml files hold and whether they are whole, without decoding them.

    mcml identify photo.mcml
    mcml identify compressed/ --json
    """
    from mcml.codec.container import block, describe

    paths, failed = find_inputs(options.files, {SUFFIX}, f"{SUFFIX} file", options.debug)
    contents: list[dict[str, Any]] = []
    for path in paths:
        content: dict[str, Any] = {}
        try:
            content, error = describe(read_bytes(path))
        except DataError as caught:
            error = caught
        if error is not None:
            content["error"] = str(error)
            tell(error, options.debug, path)
        contents.append({"file": shown(path), **content})
    if options.json:
        print(json.dumps(contents, indent=2))
    elif known := [block(content) for content in contents if "width" in content]:
        print("\n\n".join(known))
    return int(failed or any("error" in content for content in contents))


def find_inputs(
    words: Sequence[str], suffixes: Collection[str], what: str, debug: bool
) -> tuple[list[Path], bool]:
    """Return the files that words on a command line name, and whether a word named none, which is told.

    Args:
        words: files, whether there or not; folders; or patterns as ``*.png``. Each file is taken once.
        suffixes, what: of a folder's files that are taken, lower case with dots; what such a file is called.
    """
    places: dict[Path, Path] = {}
    failed = False
    for word in words:
        if not word:
            raise UsageError(f"an input's name is empty: give a file, a folder or a pattern of {what}s")
        path, missing = Path(word), f"holds no {what} ({', '.join(sorted(suffixes))})"
        try:
            if path.is_dir():
                paths = sorted(p for p in path.iterdir() if is_seen(p, suffixes))
            elif _is_pattern(word):
                missing = "no file has a name of this pattern"
                matching = map(Path, glob.glob(word, recursive=True))  # noqa: PTH207  (Path's: no absolute ones)
                paths = sorted(p for p in matching if p.is_file())
            else:
                paths = [path]
        except OSError as error:
            paths, missing = [], f"cannot be read ({error.strerror})"
        if not paths:
            failed = True
            tell(DataError(f"{word}: {missing}"), debug)
        for path in paths:
            places.setdefault(_place(path), path)
    return list(places.values()), failed


def _is_pattern(word: str) -> bool:
    return glob.has_magic(word) and not Path(word).exists()


def _place(path: Path) -> Path:
    """Return where a file is, itself not followed if it is a link."""
    return path.parent.resolve() / path.name


def pair_outputs(
    paths: Sequence[Path], options: argparse.Namespace, words: Sequence[str], suffix: str, beside: str = ""
) -> list[tuple[Path, Path]]:
    """Pair inputs with their outputs before any work is done.

    Args:
        paths: what `find_inputs` found in `words`: a folder, a pattern or several make `--output` a folder.
        options: with `output`, `overwrite`.
        suffix, beside: of the outputs; of those beside their inputs, where p.png may be p.mcml's original.

    Raises:
        UsageError: if an output is of another suffix, exists, is an input, a folder, or that of two inputs.
    """
    output, folder = options.output, Path(options.output)
    many = len(paths) > 1 or len(words) > 1 or any(_is_pattern(w) or Path(w).is_dir() for w in words)
    is_folder = output.endswith(("/", os.sep)) or folder.is_dir()
    if output and many and not is_folder and (folder.exists() or folder.suffix.lower() == suffix):
        raise UsageError(f"--output {output}: several inputs need a folder: end a new one's name with /")
    inputs = {_place(path) for path in paths} | {path.resolve() for path in paths}
    taken: dict[Path, Path] = {}
    pairs = []
    for path in paths:
        made = path.with_suffix(beside or suffix)
        if output:
            made = folder / path.with_suffix(suffix).name if many or is_folder else folder
        place = _place(made)
        if place in taken:
            raise UsageError(f"{taken[place]} and {path} would both become {made}: rename one")
        if place in inputs or made.is_dir():
            what = "a folder" if made.is_dir() else "an input"
            raise UsageError(f"{made} is {what}: give another --output")
        if made.suffix.lower() != suffix:
            raise UsageError(f"--output {output}: expected a name in {suffix}, or a folder's in /")
        if made.exists() and not options.overwrite:
            raise UsageError(f"{made} exists: name another with -o, or --overwrite replaces it")
        taken[place] = path
        pairs.append((path, made))
    return pairs


def _each(what: str, pairs: Sequence[tuple[Path, Path]], failed: bool, work: Work, debug: bool) -> int:
    """Do the work on each file, go on where one fails, print the table; return 1 if any failed."""
    from mcml.lab.output import print_table

    for made in {made.parent: made for _, made in pairs}.values():
        check_writable(made)
    rows: list[dict[str, Any]] = []
    try:
        with Progress(what) as progress:
            for done, (source, made) in enumerate(pairs):
                progress.update(done / len(pairs), f"{done + 1} of {len(pairs)}: {shown(source)}")
                try:
                    row, note = work(source, made)
                    rows.append(row)
                    if note:
                        progress.say(f"note: {shown(source)}: {note}")
                except DataError as error:
                    failed = True
                    progress.clear()
                    tell(error, debug, source)
    finally:  # what is finished is shown after Ctrl-C too
        if rows:
            print_table(rows)
            sys.stdout.flush()
    return int(failed)
