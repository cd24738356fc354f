"""Files written whole or not at all, hashes, and tables that read back."""

import csv
import errno
import fcntl
import io
import json
import math
import os
import resource
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base import files
from mcml.base.errors import DataError


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_disk(limit_bytes):
    """Let the system refuse to write files beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_atomic_write_makes_folders_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.atomic_write(path, "old é")
    files.atomic_write(path, "new é")
    assert path.read_bytes() == "new é".encode()
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_that_open_gives_and_an_old_file_or_folder_keeps_its_own(tmp_path, umask):
    old, folder = tmp_path / "old", tmp_path / "folder"
    old.touch()
    old.chmod(0o640)
    folder.mkdir()
    folder.chmod(0o750)
    before = os.umask(umask)
    try:
        (tmp_path / "opened").touch()
        for path in (tmp_path / "new", old, tmp_path / "scratch" / "inside"):
            files.atomic_write(path, "text")
        files.replace_folder(tmp_path / "scratch", folder)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes["new"] == modes["inside"] == modes["opened"] == 0o666 & ~umask
    assert (modes["old"], modes["folder"]) == (0o640, 0o750)


def test_a_reader_of_the_old_file_sees_it_whole_while_it_is_replaced(tmp_path):
    path = tmp_path / "table.csv"
    files.atomic_write(path, "old")
    with path.open() as reader:
        files.atomic_write(path, "new")
        assert reader.read() == "old"


def test_atomic_write_that_fails_half_way_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "table.csv"
    files.atomic_write(path, b"old")
    with full_disk(1000), pytest.raises(DataError, match=r"table\.csv: cannot be written"):
        files.atomic_write(path, b"x" * 2000)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("path", ["folder", "folder/inside/x.csv"], ids=["onto a folder", "below a file"])
def test_atomic_write_where_it_cannot_be_is_refused_and_leaves_no_other_file(tmp_path, path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("kept")
    with pytest.raises(DataError, match=rf"{path}: cannot be written.*choose another place"):
        files.atomic_write(tmp_path / path, "new")
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["inside"]
    assert (tmp_path / "folder" / "inside").read_text() == "kept"


def test_sha256_of_bytes_and_of_a_file_is_the_standard_one(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert files.sha256(b"abc") == files.sha256(tmp_path / "f") == expected


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@settings(deadline=None)
@given(st.lists(st.tuples(cells, st.floats(allow_nan=False), st.integers()), min_size=1))
def test_csv_reads_back_exactly(values):
    rows = [dict(zip(("text, with comma", "real", "whole"), row, strict=True)) for row in values]
    back = read_csv(files.to_csv(rows))
    assert [(r["text, with comma"], float(r["real"]), int(r["whole"])) for r in back] == values


def test_csv_quotes_what_needs_it_and_keeps_missing_apart_from_nan():
    rows = [{"a": 'x,"y"\nz', "b": None, "c": math.nan}, {"a": "1", "d": math.inf}]
    assert read_csv(files.to_csv(rows)) == [
        {"a": 'x,"y"\nz', "b": "", "c": "nan", "d": ""},
        {"a": "1", "b": "", "c": "", "d": "inf"},
    ]


def test_csv_of_numpy_values_is_that_of_plain_ones():
    row = {"x": np.float64(0.1), "n": np.int64(3), "yes": np.bool_(True)}
    assert files.to_csv([row]) == files.to_csv([{"x": 0.1, "n": 3, "yes": True}]) == "x,n,yes\n0.1,3,True\n"


def test_columns_keep_the_order_of_first_appearance():
    assert files.to_csv([{"b": 1, "a": 2}, {"c": 3, "a": 4}]) == "b,a,c\n1,2,\n,4,3\n"


# ------------------------------------------------------------------- links, devices, names, two at once


@pytest.mark.parametrize("name", ["n" * 255, "é" * 125 + ".mcml", "n" * 250, "a\nb", "-x", 'it\'s "q"', "~x"])
def test_a_name_as_long_as_the_system_takes_and_any_other_is_written_again_and_again(tmp_path, name):
    for content in ("one", "two"):
        files.atomic_write(tmp_path / name, content)
        files.check_writable(tmp_path / name)
    with pytest.raises(DataError, match="meanwhile"):
        files.atomic_write(tmp_path / name, "three", overwrite=False)
    assert (tmp_path / name).read_text() == "two" and names(tmp_path) == [name]
    (tmp_path / "new").mkdir()
    files.replace_folder(tmp_path / "new", tmp_path / f"z{name[1:]}")
    assert names(tmp_path) == sorted([name, f"z{name[1:]}"])


def test_a_longer_name_is_told_before_and_after_the_work(tmp_path):
    path = tmp_path / ("n" * 256)
    for call in (files.check_writable, lambda p: files.atomic_write(p, "x")):
        with pytest.raises(
            DataError, match=r"cannot be written \(File name too long\); choose a shorter name"
        ):
            call(path)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("call", ["chmod", "chown"])
def test_a_file_is_not_lost_where_modes_and_owners_cannot_be_set(tmp_path, monkeypatch, call, overwrite):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, call, refuse)
    path = tmp_path / "x"
    path.write_text("old") if overwrite else None
    files.atomic_write(path, "new", overwrite=overwrite)
    assert path.read_text() == "new" and names(tmp_path) == ["x"]


def test_what_was_private_is_never_open_while_it_is_written(tmp_path, monkeypatch):
    path, modes, fsync = tmp_path / "x", [], os.fsync
    path.touch()
    path.chmod(0o600)
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(os.fstat(handle).st_mode) or fsync(handle))
    files.atomic_write(path, "secret")
    assert [mode & 0o777 for mode in modes] == [0o600] and path.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for name, target in (("plain", "there/a"), ("dangling", "there/new/b"), ("chain", "plain")):
        (tmp_path / name).symlink_to(target)
        files.atomic_write(tmp_path / name, name)
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text() == name
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="loop: another program made it meanwhile"):
        files.atomic_write(tmp_path / "loop", "x", overwrite=False)
    assert names(tmp_path) == ["chain", "dangling", "loop", "plain", "there"]


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("null", "pipe"):
        files.check_writable(tmp_path / name)
        files.atomic_write(tmp_path / name, b"content", overwrite=False)
        assert files.is_device(tmp_path / name)
    assert os.read(reader, 100) == b"content" and names(tmp_path) == ["null", "pipe"]
    os.close(reader)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(
        DataError, match=r"full: cannot be written \(No space left on device\); free some space"
    ):
        files.atomic_write(tmp_path / "full", b"content")


NO_LINKS = [None, errno.EPERM, errno.ENOTSUP, errno.ENOSYS]  # what file systems without hard links say


@pytest.mark.parametrize("error", NO_LINKS)
def test_one_of_many_writers_wins_and_the_others_are_told(tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    if error:
        monkeypatch.setattr(os, "link", refuse)

    def write(number):
        try:
            files.atomic_write(tmp_path / "x", str(number) * 10000, overwrite=False)
        except DataError as told:
            return str(told)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(write, range(8)))
    (winner,) = [number for number, sentence in enumerate(said) if sentence is None]
    assert (tmp_path / "x").read_text() == str(winner) * 10000 and names(tmp_path) == ["x"]
    advice = "another program made it meanwhile; name another, or --overwrite replaces it"
    assert {sentence for sentence in said if sentence} == {f"{tmp_path / 'x'}: {advice}"}


def test_a_folder_is_put_where_a_link_points_also_on_another_disk(tmp_path):
    places = [tmp_path / "near"]
    with suppress(OSError):
        places.append(Path(tempfile.mkdtemp(dir="/dev/shm")) / "far")
    for place in places:
        place.mkdir()
        (place / "old").touch()
        link = tmp_path / f"to {place.name}"
        link.symlink_to(place)
        files.atomic_write(tmp_path / "made" / "new", "x")
        files.replace_folder(tmp_path / "made", link)
        assert link.is_symlink() and names(place) == ["new"] and names(place.parent).count(place.name) == 1
        assert not [name for name in names(place.parent) if "retired" in name]
        shutil.rmtree(place)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_lock_waits_for_another_and_nobody_where_there_are_none(tmp_path, monkeypatch, number):
    for path in (tmp_path, tmp_path / "file"):
        with files.lock(path, pytest.fail), pytest.raises(DataError, match="none: no such file"):
            files.lock(path, partial(files.read_bytes, tmp_path / "none")).__enter__()  # busy: it raises
        with files.lock(path, pytest.fail):  # free again
            pass

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.lock(tmp_path, pytest.fail), files.lock(tmp_path, pytest.fail):
        pass


@pytest.mark.parametrize("word", ["~nosuchuser/x", "~", "~root", "a~b"])
def test_a_tilde_is_a_home_only_where_there_is_one_and_no_such_name(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    homes = {"~": tmp_path / "home", "~root": Path("~root").expanduser()}
    assert files.expanded(word) == homes.get(word, Path(word))
    Path(word).mkdir(parents=True)
    assert files.expanded(word) == Path(word)


def test_names_that_are_no_text_are_spelled_and_json_is_for_every_language():
    name = os.fsdecode(b"caf\xe9\n\x1b[31m.png")
    assert files.legible(name) == "caf\\xe9\n\x1b[31m.png" and files.legible("é\n") == "é\n"
    assert files.shown(name) == r"caf\xe9\n\x1b[31m.png" and files.shown("é \u2028") == r"é \u2028"
    content = {name: [math.nan, (np.float64(math.inf), np.int64(3), None, True)], 1: name}
    text = files.to_json(content)
    back = json.loads(text, parse_constant=pytest.fail)
    assert back == {files.legible(name): [None, [None, 3, None, True]], "1": files.legible(name)}
    text.encode("ascii")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no /dev/zero")
def test_what_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 3 << 20)
    with pytest.raises(DataError, match="/dev/zero: is larger than"):
        files.read_bytes(Path("/dev/zero"))
