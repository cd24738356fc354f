"""Files on disk: whole or not at all, hashed, and rows as CSV; where the checkout is."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError

ABOVE = Path(__file__).resolve().parent.parent.parent  # the checkout, or where packages are installed


def in_checkout() -> bool:
    """Say whether this is the package of a checkout, with notebooks, rather than an installed one."""
    return (ABOVE / "pyproject.toml").is_file() and (ABOVE / "notebooks").is_dir()


def repo_root() -> Path:
    """Return the checkout that holds ``mcml``, ``notebooks`` and ``data``; `DataError` if this is none."""
    if not in_checkout():
        raise DataError("`mcml reproduce` needs the notebooks: clone the repository and run it there")
    return ABOVE


def is_seen(path: Path, suffixes: Collection[str]) -> bool:
    """Say whether a folder's listing takes a path: a file of `suffixes` (lower case) that is not hidden."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all (beside it, then a rename); `DataError` if that cannot be done.

    Who may read it is as with ``open``: a new file follows the umask, an old one's mode stays.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        _keep_mode(path, scratch)
        scratch.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if not isinstance(error, OSError):
            raise
        raise _unwritable(path, error) from error


def _keep_mode(old: Path, new: Path) -> None:
    if old.exists():
        new.chmod(stat.S_IMODE(old.stat().st_mode))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; `DataError` with the reason if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def check_writable(path: Path) -> None:
    """Raise `DataError` now if `atomic_write` could not write `path` later."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or error
    advice = "free some space or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose"
    return DataError(f"{path}: cannot be written ({reason}); {advice} another place")


def replace_folder(new: Path, old: Path) -> None:
    """Put folder `new` in the place of `old`, whose mode stays; `DataError` if they cannot be moved."""
    retired = old.with_name(f".{old.name}.retired")
    try:
        shutil.rmtree(retired, ignore_errors=True)
        _keep_mode(old, new)
        if old.exists():
            old.rename(retired)
        new.rename(old)
    except OSError as error:
        raise _unwritable(old, error) from error
    shutil.rmtree(retired, ignore_errors=True)


def sha256(content: bytes | Path) -> str:
    """Return the SHA-256 of bytes or of a file's bytes, in hex."""
    return hashlib.sha256(read_bytes(content) if isinstance(content, Path) else content).hexdigest()


Row = Mapping[str, Any]


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the union of the rows' keys in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV with full precision; missing values are empty, NaN is ``nan``."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def plain(value: Any) -> Any:
    """Return a numpy scalar as Python's own, and None as ``""``."""
    value = value.item() if hasattr(value, "item") else value
    return "" if value is None else value
