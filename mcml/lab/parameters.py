"""Notebooks' parameters: their checks, and the profiles that set them."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcml.base.errors import UsageError, choose
from mcml.base.files import repo_root


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and, where it is already imported, torch."""
    import sys

    import numpy

    random.seed(seed)
    numpy.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


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
