"""Files written whole or not at all, hashes, and tables that read back."""

import csv
import io
import math
import os
import resource
from contextlib import contextmanager

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
