"""What every room needs: errors, names, files; the side of the code's grid; lazy package faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

STRIDE = 8  # side in pixels of the square that one position of the code stands for


def lazy_attributes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports what users call (name to file) when they call it."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


__getattr__ = lazy_attributes(__name__, dict.fromkeys(("DataError", "McmlError", "UsageError"), "errors"))
