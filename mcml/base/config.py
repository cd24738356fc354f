"""Errors, folders, profiles and the checks that stop a bad value before any work begins."""

from __future__ import annotations

import difflib
import glob
import os
import random
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any


class McmlError(Exception):
    """A mistake that the user can mend; its text is one sentence that says how."""

    exit_code = 1


class UsageError(McmlError, ValueError):
    """An unknown name, option or parameter, or a value of the wrong kind (exit code 2)."""

    exit_code = 2


class DataError(McmlError):
    """A file or folder that is missing, unreadable or unfit (exit code 1)."""


class CorruptStreamError(DataError):
    """A compressed file that is damaged, cut short or was never whole."""


class UnsupportedStreamError(DataError):
    """A compressed file that needs another version, model or limit than is here."""


def repo_root() -> Path:
    """Return the checkout that holds ``mcml``, ``notebooks`` and ``data``."""
    return Path(__file__).resolve().parent.parent.parent


def results_root() -> Path:
    """Return the folder of results: ``MCML_RESULTS`` if set, else ``results`` of the checkout."""
    return Path(os.environ.get("MCML_RESULTS") or repo_root() / "results").expanduser().resolve()


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`; else raise `UsageError` naming the nearest."""
    names = sorted(known)
    if name in names:
        return name
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UsageError(f"unknown {kind} '{name}': {hint}known are {', '.join(names)}")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and, where it is already imported, torch."""
    import sys

    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


# -------------------------------------------------------------------- inputs and outputs


def find_inputs(
    words: Sequence[str], suffixes: Collection[str], what: str
) -> tuple[list[Path], list[DataError]]:
    """Find the files that words on a command line name.

    Args:
        words: files, folders (of files of `suffixes`; hidden ones are left out) or patterns as ``*.png``.
        suffixes: lower case, with their dots.
        what: what such a file is called in errors.

    Returns:
        Each file once, in order, whether there or not; and an error for each other word that names none.

    Raises:
        UsageError: for an empty word.
    """
    found: dict[Path, Path] = {}
    errors = []
    for word in words:
        if not word:
            raise UsageError(f"an input's name is empty: give a file, a folder or a pattern of {what}s")
        path, missing = Path(word), f"holds no {what} ({', '.join(sorted(suffixes))})"
        try:
            if path.is_dir():
                paths = sorted(p for p in path.iterdir() if is_seen(p, suffixes))
            elif glob.has_magic(word) and not path.exists():
                missing = "no file has a name of this pattern"
                matching = map(Path, glob.glob(word, recursive=True))  # noqa: PTH207  (Path's: no absolute ones)
                paths = sorted(p for p in matching if p.is_file())
            else:
                paths = [path]
        except OSError as error:
            paths, missing = [], f"cannot be read ({error.strerror})"
        if not paths:
            errors.append(DataError(f"{word}: {missing}"))
        for path in paths:
            found.setdefault(_place(path), path)
    return list(found.values()), errors


def is_seen(path: Path, suffixes: Collection[str]) -> bool:
    """Say whether a folder's listing takes a path: a file of `suffixes` (lower case) that is not hidden."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _place(path: Path) -> Path:
    """Return where a file is, itself not followed if it is a link."""
    return path.parent.resolve() / path.name


def _may_name_many(word: str) -> bool:
    return Path(word).is_dir() or (glob.has_magic(word) and not Path(word).exists())


def names_folder(output: str) -> bool:
    """Say whether an output is a folder: it is one, or ends with a slash."""
    return output.endswith(("/", os.sep)) or Path(output).is_dir()


def pair_outputs(
    paths: Sequence[Path], words: Sequence[str], output: str, suffix: str, overwrite: bool
) -> list[tuple[Path, Path]]:
    """Pair inputs with their outputs before any work is done.

    Args:
        paths: what `find_inputs` found.
        words: what it was given: a folder, a pattern or several words make `output` a folder.
        output: file or folder; ``""`` puts each output beside its input.
        suffix: of the outputs.
        overwrite: whether outputs may exist.

    Raises:
        UsageError: if an output exists, is an input, is a folder, or is that of two inputs.
    """
    many = len(paths) > 1 or len(words) > 1 or any(_may_name_many(w) for w in words)
    folder = Path(output)
    if output and many and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {output} is a file: several inputs need a folder")
    if output and many and folder.suffix.lower() == suffix and not names_folder(output):
        raise UsageError(f"--output {output}: several inputs need a folder: end its name with /")
    inputs = {_place(path) for path in paths}
    taken: dict[Path, Path] = {}
    pairs = []
    for path in paths:
        made = path.with_suffix(suffix)
        if output:
            made = folder / made.name if many or names_folder(output) else folder
        place = _place(made)
        if place in taken:
            raise UsageError(f"{taken[place]} and {path} would both become {made}: rename one")
        if place in inputs:
            raise UsageError(f"{made} is an input: give another --output")
        if made.is_dir():
            raise UsageError(f"{made} is a folder: give another --output")
        if made.exists() and not overwrite:
            raise UsageError(f"{made} exists: give --overwrite to replace it")
        taken[place] = path
        pairs.append((path, made))
    return pairs


# ------------------------------------------------------------------ notebook parameters


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _split_names(value: Any) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: _is_whole(v) and v >= 0, "a whole number from 0"),
    "max_images": (lambda v: _is_whole(v) and v >= 0, "a whole number from 0 (0 means all)"),
    "target_bpp": (lambda v: _is_number(v) and 0 < v <= 24, "bits per pixel above 0, at most 24"),
    "patch_px": (lambda v: _is_whole(v) and 8 <= v <= 4096, "a whole number of pixels, 8 to 4096"),
    "zoom_px": (lambda v: _is_whole(v) and 8 <= v <= 4096, "a whole number of pixels, 8 to 4096"),
    "batch": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "workers": (lambda v: _is_whole(v) and v >= 0, "a whole number from 0 (0 means all cores)"),
    "sample_image": (lambda v: isinstance(v, str), "an image's name, or '' for the notebook's choice"),
    "dataset": (lambda v: isinstance(v, str) and v != "", "a data set's name or a folder"),
    "codecs": (
        lambda v: isinstance(v, str) and _split_names(v) != [],
        "codec names separated by commas",
    ),
    "sweep_bpp": (
        lambda v: isinstance(v, str) and _all_positive(v),
        "rates above 0 separated by commas",
    ),
    "equal_bpp": (
        lambda v: isinstance(v, str) and _all_positive(v),
        "rates above 0 separated by commas",
    ),
    "anchors": (
        lambda v: isinstance(v, str) and _split_names(v) != [],
        "codec names separated by commas",
    ),
    "qualities": (
        lambda v: isinstance(v, str) and _all_numbers(v, 0, 100, 2),
        "at least two numbers from 0 to 100 separated by commas",
    ),
    "repeats": (lambda v: _is_whole(v) and 1 <= v <= 1000, "a whole number from 1 to 1000"),
    "entropy_steps": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "train_rgb_steps": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "train_dataset": (lambda v: isinstance(v, str) and v != "", "a data set's name or a folder"),
    "profile": (lambda v: isinstance(v, str) and v in profiles(), "one of the profiles"),
    "test_dataset": (lambda v: isinstance(v, str), "a data set's name or a folder, or '' for held-out ones"),
    "held_out": (lambda v: isinstance(v, str), "names of images separated by commas"),
    "train_images": (lambda v: _is_whole(v) and v >= 0, "a whole number from 0 (0 means all)"),
    "crop_px": (lambda v: _is_whole(v) and (v == 0 or v >= 64), "pixels from 64, or 0 for whole images"),
    "training_profile": (lambda v: isinstance(v, str) and v != "", "a training profile, as for mcml train"),
    "steps": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "color_steps": (lambda v: _is_whole(v) and v >= 1, "a whole number from 1"),
    "width": (lambda v: _is_whole(v) and 1 <= v <= 1024, "a whole number from 1 to 1024"),
    "code_channels": (lambda v: _is_whole(v) and 1 <= v <= 1024, "a whole number from 1 to 1024"),
    "color_channels": (lambda v: _is_whole(v) and 1 <= v <= 1024, "a whole number from 1 to 1024"),
    "gamma": (lambda v: _is_number(v) and v >= 0, "a number from 0"),
    "with_rgb": (lambda v: isinstance(v, bool), "True or False"),
    "dials": (
        lambda v: isinstance(v, str) and _all_numbers(v, -20, 20, 2),
        "at least two numbers from -20 to 20 separated by commas",
    ),
    "seeds": (
        lambda v: isinstance(v, str) and _all_numbers(v, 0, 2**31, 1) and "." not in v,
        "whole numbers from 0 separated by commas",
    ),
    "feature_counts": (
        lambda v: isinstance(v, str) and _all_numbers(v, 1, 1024, 1) and "." not in v,
        "whole numbers from 1 to 1024 separated by commas",
    ),
}


def _all_positive(text: str) -> bool:
    try:
        return all(0 < float(part) <= 24 for part in _split_names(text)) and _split_names(text) != []
    except ValueError:
        return False


def _all_numbers(text: str, low: float, high: float, least: int) -> bool:
    try:
        found = parse_numbers(text)
    except ValueError:
        return False
    return len(found) >= least and all(low <= value <= high for value in found)


def check_parameters(**values: Any) -> dict[str, Any]:
    """Check a notebook's parameters by name and return them.

    Args:
        **values: the parameters cell's names and values. Each name must be in `CHECKS`.

    Raises:
        UsageError: for an unknown name, or a value outside what `CHECKS` expects.
    """
    for name, value in values.items():
        choose("parameter", name, CHECKS)
        accepts, expected = CHECKS[name]
        if not accepts(value):
            raise UsageError(f"parameter {name} is {value!r}: expected {expected}")
    return values


def parse_bpp_list(text: str) -> list[float]:
    """Turn ``"0.15,0.3"`` into ``[0.15, 0.3]`` (bits per pixel, each in (0, 24])."""
    if not _all_positive(text):
        raise UsageError(f"bpp list '{text}': expected rates above 0, at most 24, as in 0.15,0.3")
    return list(dict.fromkeys(float(part) for part in _split_names(text)))


def parse_numbers(text: str) -> list[float]:
    """Turn ``"-1, 0, 2.5"`` into ``[-1.0, 0.0, 2.5]``, each number once."""
    return list(dict.fromkeys(float(part) for part in _split_names(text)))


def parse_names(text: str) -> list[str]:
    """Turn ``"jpeg420, webp"`` into ``["jpeg420", "webp"]``, each name once."""
    return list(dict.fromkeys(_split_names(text)))


# ------------------------------------------------------------------------------ profiles


def profile_folder() -> Path:
    """Return the folder of the profiles' TOML files."""
    return repo_root() / "notebooks" / "profiles"


def profiles() -> list[str]:
    """Return the names of the profiles in ``notebooks/profiles``."""
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def load_profile(name: str) -> dict[str, dict[str, Any]]:
    """Return a profile as ``{notebook stem: {parameter: value}}``.

    Raises:
        UsageError: for an unknown profile, or a file that is not a table of tables.
    """
    path = profile_folder() / f"{choose('profile', name, profiles())}.toml"
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"profile {path.name} is not valid TOML: {error}") from error
    for notebook, values in content.items():
        if not isinstance(values, dict):
            raise UsageError(f"profile {path.name}: '{notebook}' stands outside a [notebook] table")
    return content
