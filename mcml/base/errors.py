"""Errors that a user can mend, and the choice of a name among known ones."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class McmlError(Exception):
    """A mistake that the user can mend; its text is one sentence that says how."""

    exit_code = 1


class UsageError(McmlError, ValueError):
    """An unknown name, option or parameter, or a value of the wrong kind (exit code 2)."""

    exit_code = 2


class DataError(McmlError):
    """A file or folder that is missing, unreadable or unfit (exit code 1)."""


class StoppedError(KeyboardInterrupt):
    """Ctrl-C was pressed or SIGTERM came; no ``except Exception`` of a library takes it for its own.

    `then` says what is left of the work: a command that keeps some of it says so.
    """

    def __init__(self, number: int, then: str = "nothing was written") -> None:
        super().__init__(number)
        self.then, self.exit_code = then, 128 + number

    def __str__(self) -> str:
        return f"{'interrupted' if self.exit_code == 128 + signal.SIGINT else 'terminated'}; {self.then}"


class CorruptStreamError(DataError):
    """A compressed file that is damaged, cut short or was never whole."""


class UnsupportedStreamError(DataError):
    """A compressed file that needs another version, model or limit than is here."""


def explained(error: BaseException) -> BaseException:
    """Return an error as one of ours: a library's, out of one file's work, is a `DataError` of that file."""
    if isinstance(error, (McmlError, StoppedError)):
        return error
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), "without a reason")
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return DataError("needs more memory than there is")
    return DataError(f"cannot be worked on ({text}; --debug shows where)")


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`; else raise `UsageError` naming the nearest."""
    names = sorted(set(known))
    if name in names:
        return name
    raise UsageError(f"unknown {kind} '{name}': {nearest(name, names)}known are {', '.join(names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the question whether one of `known` was meant that begin like `name` or are like it; or ""."""
    name, names = str(name).lower(), {known_name.lower(): known_name for known_name in known}
    begin = [names[low] for low in names if name and low.startswith(name)]
    close = begin or [names[low] for low in difflib.get_close_matches(name, names, n=1, cutoff=0.6)]
    *others, last = map(repr, close or [""])
    return f"did you mean {', '.join(others)}{' or ' * bool(others)}{last}? " if close else ""
