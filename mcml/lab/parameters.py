"""Notebooks' parameters: their checks, and the profiles that set them."""

from __future__ import annotations

import math
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcml.base.errors import UsageError, choose
from mcml.base.files import repo_root

Check = tuple[Callable[[Any], bool], str]  # what it accepts, and how that is said
DATA_SETS = ("dataset", "test_dataset")  # names of data sets, or folders
CODECS = ("codecs", "anchors")  # names of codecs, or folders of models, separated by commas


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def parse_names(text: str) -> list[str]:
    """Turn ``"jpeg420, webp"`` into ``["jpeg420", "webp"]``, each name once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_numbers(text: str) -> list[float]:
    """Turn ``"-1, 0, 2.5"`` into ``[-1.0, 0.0, 2.5]``, each number once."""
    return list(dict.fromkeys(map(float, parse_names(text))))


def parse_bpp_list(text: str) -> list[float]:
    """Turn ``"0.15,0.3"`` into ``[0.15, 0.3]`` (bits per pixel, each in (0, 24])."""
    accepts, expected = RATES
    if not accepts(text):
        raise UsageError(f"bpp list '{text}': expected {expected}, as in 0.15,0.3")
    return parse_numbers(text)


def _text(expected: str, *, empty: bool = False) -> Check:
    return lambda v: isinstance(v, str) and (empty or parse_names(v) != []), expected


def _whole(low: int, high: float = math.inf, note: str = "") -> Check:
    to = "" if high == math.inf else f" to {high}"
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low}{to}{note}"


def _real(expected: str, fits: Callable[[float], bool]) -> Check:
    return lambda v: type(v) in (int, float) and fits(v), expected


def _listed(expected: str, fits: Callable[[float], bool], *, least: int = 1, whole: bool = False) -> Check:
    def accepts(value: Any) -> bool:
        try:
            numbers = parse_numbers(value)
        except (AttributeError, ValueError):
            return False
        return len(numbers) >= least and all(map(fits, numbers)) and not (whole and "." in value)

    return accepts, f"{'at least two ' if least == 2 else ''}{expected} separated by commas"


RATES = _listed("rates above 0, at most 24,", lambda v: 0 < v <= 24)
CHECKS: dict[str, Check] = {
    "profile": (lambda v: isinstance(v, str) and v in profiles(), "one of the profiles"),
    "measured": _text("where measured results lie, from the repository's root"),
    "training_profile": _text("a training profile, as for mcml train"),
    "dataset": _text("a data set's name or a folder"),
    "test_dataset": _text("a data set's name or a folder, or '' for held-out ones", empty=True),
    "held_out": _text("names of images separated by commas", empty=True),
    "sample_image": _text("an image's name, or '' for the notebook's choice", empty=True),
    **dict.fromkeys(CODECS, _text("codec names separated by commas")),
    **dict.fromkeys(("max_images", "train_images"), _whole(0, note=" (0 means all)")),
    "workers": _whole(0, note=" (0 means all cores)"),
    "seed": _whole(0),
    "seeds": _listed("whole numbers from 0", lambda v: 0 <= v <= 2**31, whole=True),
    **dict.fromkeys(("batch", "steps", "color_steps"), _whole(1)),
    "repeats": _whole(1, 1000),
    **dict.fromkeys(("width", "code_channels", "color_channels"), _whole(1, 1024)),
    **dict.fromkeys(("patch_px", "zoom_px", "side_px"), _whole(8, 4096)),
    "crop_px": (lambda v: type(v) is int and (v == 0 or v >= 64), "pixels from 64, or 0 for whole images"),
    "target_bpp": _real("bits per pixel above 0, at most 24", lambda v: 0 < v <= 24),
    **dict.fromkeys(("sweep_bpp", "equal_bpp"), RATES),
    "qualities": _listed("numbers from 0 to 100", lambda v: 0 <= v <= 100, least=2),
    "dials": _listed("numbers from -20 to 20", lambda v: -20 <= v <= 20, least=2),
    "gamma": _real("a number from 0", lambda v: v >= 0),
}


def check_parameters(**values: Any) -> dict[str, Any]:
    """Check a notebook's parameters by name and return them.

    Raises:
        UsageError: for a name that is not in `CHECKS`, or a value outside what it expects.
    """
    for name, value in values.items():
        accepts, expected = CHECKS[choose("parameter", name, CHECKS)]
        if not accepts(value):
            raise UsageError(f"parameter {name} is {value!r}: expected {expected}")
    return values


def profiles() -> dict[str, Path]:
    """Return the files of ``notebooks/profiles`` by the profiles' names."""
    return {path.stem: path for path in sorted((repo_root() / "notebooks" / "profiles").glob("*.toml"))}


def load_profile(name: str) -> dict[str, dict[str, Any]]:
    """Return a profile as ``{notebook stem: {parameter: value}}``.

    Raises:
        UsageError: for an unknown profile, or a file that is not a table of tables.
    """
    path = profiles()[choose("profile", name, profiles())]
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise UsageError(f"profile {path.name} is not valid TOML: {error}") from error
    for notebook, values in content.items():
        if not isinstance(values, dict):
            raise UsageError(f"profile {path.name}: '{notebook}' stands outside a [notebook] table")
    return content
