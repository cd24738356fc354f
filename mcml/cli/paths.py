"""Inputs and outputs that words on a command line name."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from mcml.base.errors import DataError, UsageError
from mcml.base.files import is_seen


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
