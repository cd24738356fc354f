"""Files on disk: whole or not at all, hashed, and rows as CSV; where the checkout is."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError

MOST_BYTES = 2 << 30  # of a file that is read whole
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
    """Say whether a folder's listing takes a path: a file of `suffixes` (lower case) that is not hidden.

    So is a link that leads nowhere, which reading then names.
    """
    return (
        path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and (path.is_file() or is_dangling(path))
    )


def is_dangling(path: Path) -> bool:
    """Say whether a path is a link to nothing, or in a circle."""
    return path.is_symlink() and not path.exists()


def expanded(word: str | Path) -> Path:
    """Return a path with a leading ``~`` or ``~user`` replaced, unless that is a name, or nobody's."""
    path = Path(word)
    return path if path.exists() else Path(os.path.expanduser(word))  # noqa: PTH111  (Path's raises)


def legible(text: str) -> str:
    """Return a text that UTF-8 can hold: the bytes of a name that are not UTF-8 are spelled by their hex."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(text: str | Path) -> str:
    """Return `legible` text on one line, which no control character breaks, for a screen."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: repr(c[0])[1:-1], legible(str(text)))


def atomic_write(path: Path, content: bytes | str, *, overwrite: bool = True) -> None:
    """Write a file whole or not at all (beside it, then a rename); `DataError` if that cannot be done.

    Who may read it is as with ``open``: a new file follows the umask, an old one's mode stays. A link is
    followed; a device or a pipe is written to. Without `overwrite` a file that came meanwhile stays.
    """
    raw, scratch = legible(content).encode() if isinstance(content, str) else content, None
    try:
        if is_device(path):
            path.write_bytes(raw)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666
        scratch = _beside(target)
        with open(scratch, "xb", opener=partial(os.open, mode=mode & 0o666)) as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        _keep_mode(target, scratch)
        if overwrite:
            scratch.replace(target)
        else:
            _add(scratch, target, path)
    except BaseException as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()
        if not isinstance(error, OSError):
            raise
        raise unwritable(path, error) from error


def is_device(path: Path) -> bool:
    """Say whether there is something that is neither file nor folder: a device, a pipe."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, however long the path's own is."""
    return path.with_name(f".{path.name[:32]}.{uuid.uuid4().hex[:8]}")


def _keep_mode(old: Path, new: Path) -> None:
    """Give `new` the owner and mode of `old` as far as the file system allows."""
    if old.exists():
        was = old.stat()
        with contextlib.suppress(OSError):
            os.chown(new, was.st_uid, was.st_gid)
        with contextlib.suppress(OSError):
            new.chmod(stat.S_IMODE(was.st_mode))


def _add(scratch: Path, target: Path, path: Path) -> None:
    """Give a finished file the name that `path` stands for; `DataError` if another has it by now."""
    try:
        try:
            os.link(scratch, target)
            scratch.unlink()
        except FileExistsError:
            raise
        except OSError:  # no hard links here: an empty file keeps the name free
            target.touch(exist_ok=False)
            scratch.replace(target)
    except FileExistsError as error:
        advice = "name another, or --overwrite replaces it"
        raise DataError(f"{path}: another program made it meanwhile; {advice}") from error


@contextlib.contextmanager
def lock(path: Path, busy: Callable[[], Any]) -> Iterator[None]:
    """Let one process at a time work on a folder, or where `path` is a file for it that may stay.

    `busy` is called before waiting for another's end; it may raise. The system frees the lock of a process
    that was killed; where there are no locks, as on some network disks, nobody waits.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; `DataError` with the reason if it cannot be read, or is endless."""
    content = bytearray()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):  # in pieces, between which a signal is heard
                content += piece
                if len(content) > MOST_BYTES:
                    raise DataError(f"{path}: is larger than {MOST_BYTES >> 30} GiB, which nothing here is")
        return bytes(content)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def check_writable(path: Path) -> None:
    """Raise `DataError` now if `atomic_write` could not write `path` later."""
    try:
        if not is_device(path):
            folder = Path(os.path.realpath(path)).parent
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> DataError:
    """Return the error of a file or folder that the system does not let us write."""
    reason = error.strerror or error
    advice = "free some space or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose"
    place = "a shorter name" if error.errno == errno.ENAMETOOLONG else "another place"
    return DataError(f"{path}: cannot be written ({reason}); {advice} {place}")


def replace_folder(new: Path, old: Path) -> None:
    """Put folder `new` in the place of `old`, whose mode stays; `DataError` if they cannot be moved.

    A link is followed, also onto another disk.
    """
    target = Path(os.path.realpath(old))
    staged, retired = _beside(target), target.with_name(f".{target.name[:32]}.retired")
    try:
        _keep_mode(target, new)
        shutil.move(new, staged)
        shutil.rmtree(retired, ignore_errors=True)
        if target.exists():
            target.rename(retired)
        staged.rename(target)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise unwritable(old, error) from error
    shutil.rmtree(retired, ignore_errors=True)


def sha256(content: bytes | Path) -> str:
    """Return the SHA-256 of bytes or of a file's bytes, in hex."""
    return hashlib.sha256(read_bytes(content) if isinstance(content, Path) else content).hexdigest()


def to_json(content: Any) -> str:
    """Return JSON that every language reads: what is infinite or not a number is null, names are legible."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {legible(str(name)): strict(of) for name, of in value.items()}
        if isinstance(value, (list, tuple)):
            return list(map(strict, value))
        value = value if value is None else plain(value)
        if isinstance(value, str):
            return legible(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(content), indent=2)


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
