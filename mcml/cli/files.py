"""The commands on files: `mcml compress | decompress | identify`, and which files their words name."""

from __future__ import annotations

import argparse
import glob
import os
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcml.base.errors import CorruptStreamError, DataError, StoppedError, UsageError
from mcml.base.files import (
    atomic_write,
    check_writable,
    is_device,
    is_seen,
    read_bytes,
    shown,
    unwritable,
)
from mcml.cli.main import (
    BACKGROUND,
    MODEL,
    Progress,
    add_command,
    add_output,
    fail,
    number,
    print_rows,
)

if TYPE_CHECKING:
    from mcml.codec.learned import LearnedCodec

SUFFIX = ".mcml"
MEASURED_PX = 1 << 24


def add_commands(commands: Any) -> None:
    """Declare the commands on files."""
    add = add_command(commands, compress)
    add("words", nargs="+", metavar="IMAGE", help="files, folders of them, or patterns as 'photos/*.png'")
    add("--bpp", type=number(float, 1e-4, 24), help="bits per pixel to hit (default: 0.3 without --quality)")
    dial = {"metavar": "Q", "help": "the dial, 0 to 100, instead of --bpp; --rate is its former name"}
    add("--quality", "--rate", type=number(float, 0, 100), **dial)
    add("--model", default="scalar_fusion", help="a released model, or a model's folder", **MODEL)
    out = "file, or folder for several (default: beside each image as .mcml)"
    add("-o", "--output", default="", metavar="PATH", help=out)
    add("--adaptive", flag=False, help="send importance maps; --model fusion")
    layers = "parts, each refining those before it; --model fusion"
    add("--layers", type=number(int, 1, 255), default=1, metavar="N", help=layers)
    share = "points of the dial that colour has beyond luma's; scalar models (default: as its card says)"
    add("--color-share", type=number(float, -100, 100), metavar="POINTS", help=share)
    effort = "high: search for what decodes best, minutes a megapixel; scalar models"
    add("--effort", choices=("normal", "high"), default="normal", help=effort)
    add("--metrics", flag=True, help="decode the file and measure it")
    add("--background", **BACKGROUND)
    add("--overwrite", flag=False, help="replace existing files")
    add("--skip-existing", flag=False, help="leave out inputs whose output is there")
    add_output(add)

    files = {"nargs": "+", "metavar": "FILE", "help": "files, folders of them, or patterns as 'out/*.mcml'"}
    add = add_command(commands, decompress)
    add("words", **files)
    out = "file, or folder for several (default: beside each as .decoded.png)"
    add("-o", "--output", default="", metavar="PATH", help=out)
    model = "a released model, or a model's folder (default: the one that the file names)"
    add("--model", default="", help=model, **MODEL)
    add("--luma-only", flag=False, help="decode Y alone, to grey")
    add("--layers", type=number(int, 1), metavar="N", help="decode no more of its layers (default: all)")
    add("--partial", flag=False, help="decode what is whole before a cut or damage")
    add("--overwrite", flag=False, help="replace existing files")
    add("--skip-existing", flag=False, help="leave out inputs whose output is there")
    add_output(add)

    add = add_command(commands, identify)
    add("words", **files)
    add("--json", flag=False, help="print JSON instead: all that the files hold")


def compress(options: argparse.Namespace) -> None:
    """Compress images to .mcml files with a learned codec: tells what was written, and how good it is.

    mcml compress photo.png --bpp 0.3
    mcml compress 'photos/*.png' -o compressed/ --quality 40
    mcml compress photo.png --effort high
    mcml compress photo.png --model fusion --layers 4
    """
    from mcml.codec.interface import bits_per_pixel, encode_at_bpp
    from mcml.codec.learned import LearnedCodec
    from mcml.data.images import EXTENSIONS, read_image
    from mcml.metrics import distortion

    if options.bpp is not None and options.quality is not None:
        raise UsageError("--bpp and --quality: give one of them")
    if compressed := [word for word in options.words if word.lower().endswith(SUFFIX)]:
        raise UsageError(f"{compressed[0]} is compressed already: `mcml decompress` makes a picture of it")
    pairs = pair_outputs(find_inputs(options, EXTENSIONS, "image"), options, SUFFIX)
    codec = LearnedCodec(options.model)
    own = _options_of(codec, options)

    def work(source: Path, made: Path, progress: Callable[..., None]) -> tuple[dict[str, Any], str]:
        _ = codec.model  # loaded now: it counts to no image's seconds
        image, note = read_image(source, options.background), ""
        codec.progress = lambda share: progress(share / 4, "analysing")
        began = time.perf_counter()
        if options.effort == "high":
            from mcml.codec.search import refined_encoder

            wanted = {"quality": options.quality, "target_bpp": options.bpp or 0.3}
            refining = partial(progress, doing="refining")
            encode = refined_encoder(codec, image, **wanted, **own, progress=refining)
        else:
            encode = codec.encoder(image, **own)
        tried, least = count(), float(options.effort == "high")  # to which all else is little

        def attempt(quality: float) -> bytes:
            progress(max(least, 0.25 + 0.05 * min(next(tried), 4)), f"coding at quality {quality:.1f}")
            return encode(quality)

        nearest, quality = None, options.quality
        if quality is None:
            nearest = encode_at_bpp(codec, image, options.bpp or 0.3, encoder=attempt)
            quality = nearest.quality
        data = nearest.data if nearest else attempt(quality)
        seconds = time.perf_counter() - began
        row = {
            "file": str(made), "image": str(source), "width": image.shape[1], "height": image.shape[0],
            "model": codec.name, "bytes": len(data), "bpp": bits_per_pixel(data, image), "quality": quality,
        }  # fmt: skip
        if options.metrics and image[..., 0].size > MEASURED_PX:
            note = f"not measured: more than {MEASURED_PX >> 20} megapixels would take gigabytes"
        elif options.metrics:
            codec.progress = lambda share: progress(max(least, 0.5 + share / 5), "decoding to measure")
            decoded = codec.decode(data)
            progress(max(least, 0.7), "measuring")
            row |= vars(distortion.compare(image, decoded))
        if nearest is not None and not nearest.reached:
            low, high = (bits_per_pixel(encode(end), image) for end in (0, 100))
            note = f"{note}; " * bool(note) + nearest.explain(codec.name)
            note += f"; on this image it reaches {low:.4f} to {high:.4f} bpp"
            if low < nearest.target_bpp < high:
                note += ", in steps that are coarse on so few pixels"
        atomic_write(made, data, overwrite=options.overwrite)
        return {**row, "seconds": seconds}, note

    _each(options, pairs, work, ("file", "bytes", "bpp", "quality", "psnr", "ciede2000", "seconds"))


def _options_of(codec: LearnedCodec, options: argparse.Namespace) -> dict[str, Any]:
    """Return what `LearnedCodec.pack` is told beside the quality; `UsageError` if the model has no such."""
    from mcml.codec.learned import OPTIONS

    if options.adaptive and not codec.coder.has_maps:
        raise UsageError(f"--adaptive: {codec.name} has no importance maps, as --model fusion has")
    own = {"adaptive": options.adaptive, "layers": options.layers, "color_share": options.color_share}
    if not codec.scalar and (options.color_share is not None or options.effort == "high"):
        raise UsageError(f"--color-share and --effort: {codec.name} codes bits; they are for scalar latents")
    if options.color_share is not None and len(codec.coder.keys) == 1:
        raise UsageError(f"--color-share: {codec.name} codes no colour on its own, which could have a share")
    if codec.scalar and options.layers > 1:
        raise UsageError(f"--layers: {codec.name} codes latents in one part: --model fusion has layers")
    return {name: value for name, value in own.items() if name in OPTIONS[codec.scalar]}


def decompress(options: argparse.Namespace) -> None:
    """Decompress .mcml files to 8-bit sRGB PNG.

    mcml decompress photo.mcml -o back.png
    mcml decompress compressed/ -o decoded/
    mcml decompress cut.mcml --partial
    """
    from mcml.codec.container import LATENTS, Header, read, read_header
    from mcml.data.images import write_png

    headers: dict[Path, Header] = {}
    piped: dict[Path, bytes] = {}
    for path in find_inputs(options, {SUFFIX}, f"{SUFFIX} file"):
        try:
            data = read_bytes(path)
            headers[path], _ = read_header(data)
            if is_device(path):  # a pipe is read once
                piped[path] = data
        except Exception as error:  # told before an output that is in the way
            fail(options, error, path)
    pairs = pair_outputs(list(headers), options, ".png", ".decoded.png")
    codec_for = decoder(options)

    def work(source: Path, made: Path, progress: Callable[..., None]) -> tuple[dict[str, Any], str]:
        data, header, note = piped.get(source) or read_bytes(source), headers[source], ""
        codec = codec_for(header.model)
        _ = codec.model  # loaded now: it counts to no file's seconds
        codec.progress = lambda share: progress(0.2 + 0.8 * share, "decoding")
        began = time.perf_counter()
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
            if header.version == LATENTS:
                note = "cut short or damaged: grey where the colour of a tile is missing, or all of it"
            elif not decoded.layers and not options.luma_only:
                note += "; grey, for of the first only luma is"
        write_png(made, decoded.image, overwrite=options.overwrite)
        row = {
            "output": str(made), "file": str(source), "width": header.width, "height": header.height,
            "model": codec.name, "layers": decoded.layers, "layers_in_file": header.layers,
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
        return row, note

    _each(options, pairs, work, ("output", "width", "height", "layers", "seconds"))


def decoder(options: argparse.Namespace) -> Callable[[bytes], LearnedCodec]:
    """Return what finds the codec of a file's model: --model, or the one that it names."""

    @cache
    def find(model: bytes) -> LearnedCodec:
        from mcml.codec.learned import LearnedCodec
        from mcml.model.model_files import name_of

        return LearnedCodec(options.model or name_of(model))

    return find


def identify(options: argparse.Namespace) -> None:
    """Tell what .mcml files hold and whether they are whole, without decoding them.

    mcml identify photo.mcml
    mcml identify compressed/ --json
    """
    from mcml.codec.container import block, describe

    rows = []
    for path in find_inputs(options, {SUFFIX}, f"{SUFFIX} file"):
        try:
            content, error = describe(read_bytes(path))
            rows.append({"file": str(path), **content})
        except Exception as caught:
            error = caught
        if error is not None:
            fail(options, error, path)
    if options.json:
        print_rows(options, rows, ())
    elif rows:
        print("\n\n".join(block({**row, "file": shown(row["file"])}) for row in rows))


def find_inputs(
    options: argparse.Namespace, suffixes: Collection[str], what: str, strict: bool = False
) -> list[Path]:
    """Return the files that `options.words` name, each once; a word that names none is told, or raises.

    A word is a file, whether there or not; a folder, of which files of `suffixes` are taken; or a pattern.
    """
    places: dict[Path, Path] = {}
    for word in options.words:
        if not word:
            raise UsageError(f"an input's name is empty: give a file, a folder or a pattern of {what}s")
        path, missing = Path(word), f"holds no {what}"
        paths = [path]
        try:
            if path.is_dir():
                paths = sorted(p for p in path.iterdir() if is_seen(p, suffixes))
                missing += f" ({', '.join(sorted(suffixes))})" * (len(suffixes) > 1)
            elif glob.has_magic(word) and not path.exists():
                missing = "no file has a name of this pattern"
                matching = map(Path, glob.glob(word, recursive=True))  # noqa: PTH207  (Path's: no absolute ones)
                paths = sorted(p for p in matching if p.is_file())
        except OSError as caught:
            paths, missing = [], f"cannot be read ({caught.strerror})"
        if not paths:
            error = DataError(f"{word}: {missing}")
            if strict:
                raise error
            fail(options, error)
        for path in paths:
            places.setdefault(_place(path), path)
    return list(places.values())


def _place(path: Path) -> Path:
    """Return where a file is, itself not followed if it is a link."""
    return Path(os.path.realpath(path.parent)) / path.name


def pair_outputs(
    paths: Sequence[Path], options: argparse.Namespace, suffix: str, beside: str = ""
) -> list[tuple[Path, Path]]:
    """Pair inputs with their outputs before any work is done; `UsageError` if an output cannot be one.

    Outputs end in `suffix`; those beside their inputs in `beside`, where p.png may be p.mcml's original.
    """
    output, folder, words = options.output, Path(options.output), options.words
    many = len(words) > 1 or any(path != Path(words[0]) for path in paths)  # of a folder or a pattern
    is_folder = output.endswith(("/", os.sep)) or folder.is_dir()
    if output and many and not is_folder and (folder.exists() or folder.suffix.lower() == suffix):
        raise UsageError(f"--output {output}: several inputs need a folder: end a new one's name with /")
    inputs = {_place(path) for path in paths} | {Path(os.path.realpath(path)) for path in paths}
    pairs: dict[Path, tuple[Path, Path]] = {}
    for path in paths:
        made = path.with_suffix(beside or suffix)
        if not output and path.absolute().parts[1:2] in (("dev",), ("proc",)):
            raise UsageError(f"{path}: beside a device is no place for a file: name the output with -o")
        if output:
            made = folder / path.with_suffix(suffix).name if many or is_folder else folder
        try:
            made.is_dir()
        except OSError as error:  # its name is too long, or its folder is closed to us
            fail(options, unwritable(made, error))
            continue
        if (place := _place(made)) in pairs:
            raise UsageError(f"{pairs[place][0]} and {path} would both become {made}: rename one")
        if place in inputs or made.is_dir():
            what = "a folder" if made.is_dir() else "an input"
            raise UsageError(f"{made} is {what}: give another --output")
        if made.suffix.lower() != suffix:
            raise UsageError(f"--output {output}: expected a name in {suffix}, or a folder's in /")
        if made.exists() and options.skip_existing:
            continue
        if made.exists() and not options.overwrite and not is_device(made):
            raise UsageError(
                f"{made} exists: name another with -o, or --overwrite replaces it, --skip-existing keeps it"
            )
        pairs[place] = path, made
    return list(pairs.values())


def _each(
    options: argparse.Namespace,
    pairs: Sequence[tuple[Path, Path]],
    work: Callable[[Path, Path, Callable[..., None]], tuple[dict[str, Any], str]],
    brief: Sequence[str],
) -> None:
    """Do the work on each pair, which returns a row and a note; go on where one fails; print the rows.

    Work calls what it is given with the share that is done and what is being done.
    """
    rows: list[dict[str, Any]] = []
    closed = set()
    for folder, made in {made.parent: made for _, made in pairs}.items():
        try:
            check_writable(made)
        except DataError as error:
            fail(options, error)
            closed.add(folder)
    pairs = [(source, made) for source, made in pairs if made.parent not in closed]
    try:
        with Progress(options.run.__name__) as progress:
            for done, (source, made) in enumerate(pairs):
                text = f"{done + 1} of {len(pairs)}: {shown(source)}"

                def show(share: float, doing: str = "", done: int = done, text: str = text) -> None:
                    progress.update((done + share) / len(pairs), f"{text}: {doing}" if doing else text)

                show(0)
                try:
                    row, note = work(source, made, show)
                    rows.append(row)
                    if note:
                        progress.say(f"note: {shown(source)}: {note}")
                except UsageError:
                    raise
                except Exception as error:
                    progress.clear()
                    fail(options, error, source)
    except StoppedError as stopped:
        if rows:
            stopped.then = (
                f"{len(rows)} of {len(pairs)} are finished and kept; --skip-existing goes on from there"
            )
        raise
    finally:  # what is finished is shown after Ctrl-C too
        if rows or options.json:
            print_rows(options, rows, brief)
