"""Data sets by name and hash, and splits that no near-duplicate crosses."""

import functools
import hashlib
import http.server
import os
import random
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
import skimage
from helpers import failed
from PIL import Image, ImageOps

from mcml.base import files
from mcml.base.errors import DataError, McmlError, UsageError
from mcml.data import images, sets

PARTS = ("train", "valid", "test")
EMBEDDED = ["astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "china", "flower"]
STEREO = Path(skimage.__file__).parent / "data" / "motorcycle_right.png"


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A checkout of our own without data or cache, no download beyond this machine."""
    (tmp_path / "checkout" / "notebooks").mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    monkeypatch.setattr(files, "ABOVE", tmp_path / "checkout")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)  # between its attempts
    monkeypatch.delenv("MCML_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for cased in (name, name.upper()):
            monkeypatch.setenv(cased, "" if name == "no_proxy" else "http://127.0.0.1:9")


def picture(seed, size=64):
    """Smooth coloured blotches; another seed is another picture."""
    rough = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((size, size), Image.Resampling.BICUBIC)


def pictures(folder, count, first=0):
    """Write `count` different PNGs and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{first + i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        picture(first + i).save(path)
    return paths


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_every_registered_set_says_what_it_is_and_how_it_is_verified():
    entries = sets.registry()
    assert set(entries) == {"embedded", "kodak", "train", "valid"}
    for entry in entries.values():
        assert all(entry[key] for key in ("title", "source", "licence"))
        hashes = [file["sha256"] for file in entry.get("files", ())] or [entry["digest"]]
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)
        assert len(set(hashes)) == len(hashes)
    assert all(file["author"] and file["licence"] for file in entries["embedded"]["files"])
    assert [f["path"] for f in entries["kodak"]["files"]] == [f"kodim{i:02}.png" for i in range(1, 25)]


def test_embedded_photographs_are_those_of_the_registry():
    photographs = sets.image_set("embedded")
    assert [path.stem for path in photographs.paths] == EMBEDDED
    entry = sets.registry()["embedded"]
    assert [sha(path) for path in photographs.paths] == [file["sha256"] for file in entry["files"]]
    assert (photographs.name, photographs.title) == (photographs.entry, entry["title"])


def test_altered_embedded_photograph_is_refused_by_name(mcml, tmp_path, monkeypatch):
    package = tmp_path / "site" / "skimage"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    picture(0).save(package / "data" / "astronaut.png")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    result = mcml("evaluate", "embedded", "--codecs", "webp", "--csv", "t.csv")
    failed(result, 1, f"mcml: {package / 'data' / 'astronaut.png'}: differs from the registered")
    assert not (tmp_path / "t.csv").exists()


def kodak_of(monkeypatch, paths, source="http://127.0.0.1:9/"):
    """Register pictures of our own as the Kodak set."""
    entry = sets.registry()["kodak"]
    monkeypatch.setitem(entry, "files", [{"path": p.name, "sha256": sha(p)} for p in paths])
    monkeypatch.setitem(entry, "source", source)


def test_one_altered_or_missing_file_among_right_ones_is_named(tmp_path, monkeypatch):
    paths = pictures(tmp_path / "kodak", 3)
    kodak_of(monkeypatch, paths)
    monkeypatch.setenv("MCML_DATA", str(tmp_path))
    assert sets.image_set("kodak").paths == tuple(paths)
    paths[1].write_bytes(paths[1].read_bytes() + b"\0")
    with pytest.raises(DataError, match=f"^{paths[1]}: differs from the registered file .*the folder itself"):
        sets.image_set("kodak")
    assert sets.image_set(str(tmp_path / "kodak")).paths == tuple(paths)  # as the sentence advises
    paths[1].unlink()
    with pytest.raises(DataError, match=r"p01\.png: missing"):
        sets.image_set("kodak")


def test_kodak_without_network_is_one_sentence_that_says_what_to_do(tmp_path):
    sentence = "cannot be downloaded from http.*: set MCML_DATA to a folder that holds kodak/.*png$"
    with pytest.raises(DataError, match=sentence):  # `.` matches no line's end
        sets.image_set("kodak")
    assert not [p for p in (tmp_path / "checkout" / "data").rglob("*") if p.is_file()]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine for the files of tmp_path/www."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


@pytest.mark.parametrize("cache", ["checkout/data/cache", "cache/mcml"], ids=["checkout", "installed"])
def test_kodak_is_downloaded_once_into_the_cache(tmp_path, monkeypatch, server, cache):
    if cache == "cache/mcml":
        (tmp_path / "checkout" / "pyproject.toml").unlink()
    paths = pictures(tmp_path / "www", 2)
    kodak_of(monkeypatch, paths, server)
    photographs = sets.image_set("kodak")
    assert photographs.paths == tuple(tmp_path / cache / "kodak" / path.name for path in paths)
    assert [sha(path) for path in photographs.paths] == [sha(path) for path in paths]
    for path in paths:
        path.unlink()
    assert sets.image_set("kodak") == photographs


def test_download_of_other_bytes_is_refused_and_not_kept(tmp_path, monkeypatch, server):
    paths = pictures(tmp_path / "www", 1)
    kodak_of(monkeypatch, paths, server)
    picture(9).save(paths[0])
    with pytest.raises(DataError, match="cannot be downloaded"):
        sets.image_set("kodak")
    assert not list((tmp_path / "checkout").rglob("*.png"))


def test_folder_is_a_set_in_the_order_of_its_names(tmp_path):
    paths = pictures(tmp_path / "mine", 3)
    (tmp_path / "mine" / "notes.txt").write_text("not a picture")
    photographs = sets.image_set(str(tmp_path / "mine"))
    assert photographs == sets.ImageSet(name="mine", paths=tuple(paths))
    assert (photographs.entry, photographs.licence) == ("", "not stated")
    np.testing.assert_array_equal(photographs.read("p02"), np.array(picture(2)))
    with pytest.raises(UsageError, match="unknown image 'p03'"):
        photographs.read("p03")


def test_max_images_keeps_the_first_ones_and_what_is_known_of_the_set():
    photographs = sets.image_set("embedded", 2)
    assert [path.stem for path in photographs.paths] == EMBEDDED[:2]
    assert photographs.licence == sets.image_set("embedded").licence
    assert sets.image_set("embedded", 99) == sets.image_set("embedded", 0)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("kodac", "unknown data set 'kodac': did you mean 'kodak'"),
        ("", "unknown data set ''"),  # not the current folder
        ("./nowhere", "nowhere: no such folder"),
        ("empty", "empty: holds no image"),
        ("x.png", r"x\.png is a file: give the folder that holds it"),
        ("twins", "two images are named x"),
    ],
)
def test_what_is_no_set_is_refused_by_name(tmp_path, monkeypatch, name, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twins").mkdir()
    for path in ("x.png", "twins/x.png", "twins/x.webp"):
        picture(0).save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(McmlError, match=reason):
        sets.image_set(name)


def test_own_folder_with_a_registered_name_is_not_taken_for_the_registered_set(tmp_path):
    (tmp_path / "embedded").mkdir()
    picture(0).save(tmp_path / "embedded" / "astronaut.png")
    photographs = sets.image_set(str(tmp_path / "embedded"))
    assert photographs.entry == ""
    assert [row["licence"] for row in sets.describe(photographs)] == ["not stated"]


def test_first_folder_of_mcml_data_that_holds_the_set_is_taken(tmp_path, monkeypatch):
    late, early = pictures(tmp_path / "b" / "train", 2), pictures(tmp_path / "c" / "train", 1)
    parts = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    monkeypatch.setenv("MCML_DATA", os.pathsep.join(map(str, parts)))
    assert sets.image_set("train").paths == tuple(late)
    monkeypatch.setenv("MCML_DATA", os.pathsep.join(map(str, reversed(parts))))
    photographs = sets.image_set("train")
    assert photographs.paths == tuple(early)
    assert photographs.licence == "not stated" and photographs.entry == ""  # the registry does not know these


def test_registered_folder_is_recognised_by_its_digest(tmp_path, monkeypatch):
    pictures(tmp_path / "train", 2)
    monkeypatch.setenv("MCML_DATA", str(tmp_path))
    monkeypatch.setitem(sets.registry()["train"], "digest", sets.image_set("train").digest)
    assert sets.image_set("train").entry == sets.image_set("train", 1).entry == "train"
    pictures(tmp_path / "train", 3)
    assert sets.image_set("train").entry == ""


def test_set_that_is_nowhere_says_where_it_was_sought(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"'train' not found \(MCML_DATA is not set\)"):
        sets.image_set("train")
    monkeypatch.setenv("MCML_DATA", str(tmp_path))
    with pytest.raises(DataError, match="that holds 'train/'") as error:
        sets.image_set("train")
    assert str(tmp_path) in str(error.value)


def test_mcml_data_counts_from_home_from_here_or_else_from_the_checkout(tmp_path, monkeypatch):
    pictures(tmp_path / "sets" / "train", 1)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCML_DATA", "sets")
    assert sets.image_set("train").paths == (Path("sets/train/p00.png"),)
    monkeypatch.setenv("HOME", str(tmp_path / "sets"))
    monkeypatch.setenv("MCML_DATA", "~")
    assert sets.image_set("train").paths == (tmp_path / "sets" / "train" / "p00.png",)
    from_checkout = os.path.relpath(tmp_path / "sets", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "deep" / "er")
    monkeypatch.setenv("MCML_DATA", from_checkout)
    assert not Path(from_checkout).is_dir()
    assert [p.resolve() for p in sets.image_set("train").paths] == [tmp_path / "sets" / "train" / "p00.png"]


def test_digest_depends_on_bytes_and_names_but_not_on_order_or_place(tmp_path):
    paths, copies = pictures(tmp_path / "a", 3), pictures(tmp_path / "b", 3)
    digest = images.data_digest
    first = sets.ImageSet(name="x", paths=tuple(paths)).digest
    assert digest(paths) == digest(paths[::-1]) == digest(copies) == first
    assert digest(paths[:2]) != first
    renamed = copies[0].rename(copies[0].with_name("o.png"))
    assert digest([renamed, *copies[1:]]) != first
    paths[0].write_bytes(paths[0].read_bytes() + b"\0")
    assert digest(paths) != first


def test_describe_gives_size_kind_licence_and_hash_of_each_image(tmp_path):
    rows = {row["image"]: row for row in sets.describe(sets.image_set("embedded"))}
    assert list(rows) == EMBEDDED
    rocket = rows["rocket"]
    assert (rocket["width"], rocket["height"], rocket["file"]) == (640, 427, "JPG")
    assert rocket["megapixels"] == pytest.approx(0.27328)
    assert (rocket["licence"], rows["china"]["licence"]) == ("CC0", "CC BY 2.0")
    assert rocket["sha256"] == "c2dd0de7c538"
    picture(0, 40).resize((30, 40)).save(tmp_path / "a.png")
    (own,) = sets.describe(sets.image_set(str(tmp_path)))
    assert (own["width"], own["height"], own["licence"]) == (30, 40, "not stated")


def copied(kind, path, folder):
    """A JPEG copy, a mirrored or a rescaled copy of a picture."""
    image, copy = Image.open(path).convert("RGB"), folder / ("copy.jpg" if kind == "jpeg" else "copy.bmp")
    if kind == "mirrored":
        image = ImageOps.mirror(image)
    ImageOps.scale(image, {"half": 0.5, "larger": 1.4}.get(kind, 1)).save(copy, quality=25)
    return copy


def alike(first, second):
    """Whether two files look alike, whichever comes first."""
    hashes = sets.perceptual_hashes([first, second])
    there, back = (
        sets.near_duplicates(*pair).item() for pair in ((hashes[:1], hashes[1:]), (hashes[1:], hashes[:1]))
    )
    assert there == back
    return there


@pytest.mark.parametrize("kind", ["jpeg", "mirrored", "half", "larger"])
def test_copies_of_every_photograph_are_found(tmp_path, kind):
    for path in sets.image_set("embedded").paths:
        assert alike(path, copied(kind, path, tmp_path)), path.stem


def test_two_views_of_a_stereo_pair_are_found():
    assert alike(STEREO.with_name("motorcycle_left.png"), STEREO)


def test_embedded_photographs_are_distinct():
    hashes = sets.perceptual_hashes(sets.image_set("embedded").paths)
    np.testing.assert_array_equal(sets.near_duplicates(hashes, hashes), np.eye(7, dtype=bool))


def test_looking_alike_does_not_depend_on_which_comes_first(tmp_path):
    chelsea = sets.image_set("embedded").paths[1]
    image = np.array(Image.open(chelsea))
    for percent in (6, 7):
        cut = image[:, ::-1][:, : -percent * image.shape[1] // 100]  # mirrored, and a strip lost
        Image.fromarray(cut).save(tmp_path / "cut.png")
        alike(chelsea, tmp_path / "cut.png")


def test_check_disjoint_counts_pairs_and_names_both_of_a_leak(tmp_path):
    paths = pictures(tmp_path / "a", 6)
    splits = {"train": paths[:3], "valid": paths[3:5], "test": paths[5:]}
    assert sets.check_disjoint(splits) == 3 * 2 + 3 * 1 + 2 * 1
    leak = copied("mirrored", paths[1], tmp_path)
    with pytest.raises(DataError, match=r"train and test share a picture: p01\.png and copy\.bmp"):
        sets.check_disjoint(splits | {"test": [paths[5], leak]})
    assert sets.check_disjoint({"train": [paths[1], leak], "valid": paths[2:4], "test": []}) == 4
    assert sets.check_disjoint({}) == 0


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """Twenty different pictures."""
    paths = pictures(tmp_path_factory.mktemp("twenty"), 20)
    hashes = sets.perceptual_hashes(paths)
    assert sets.near_duplicates(hashes, hashes).sum() == 20
    return paths


def test_split_repeats_with_its_seed_and_changes_with_another(twenty):
    parts = sets.split_images(twenty, 7)
    assert sets.split_images(twenty, 7) == parts
    others = [sets.split_images(twenty, seed)["test"] for seed in range(5)]
    assert len({tuple(test) for test in others}) > 1


def test_split_depends_on_content_not_on_order_or_names(twenty, tmp_path):
    expected = sets.split_images(twenty, 3)
    shuffled = random.Random(0).sample(twenty, 20)
    assert sets.split_images(shuffled, 3) == expected
    renamed = [tmp_path / f"{i}.png" for i in range(20)]
    for path, new in zip(shuffled, renamed, strict=True):
        new.write_bytes(path.read_bytes())
    for name, part in sets.split_images(renamed, 3).items():
        assert {sha(path) for path in part} == {sha(path) for path in expected[name]}


def test_look_alikes_stay_together(tmp_path):
    paths = pictures(tmp_path / "a", 6)
    families = {path: {path} for path in paths}
    for path in paths[:3]:
        for kind in ("jpeg", "mirrored", "half"):
            (tmp_path / path.stem / kind).mkdir(parents=True)
            families[path].add(copied(kind, path, tmp_path / path.stem / kind))
    files = [path for family in families.values() for path in family]
    assert len(files) == 15
    for seed in range(8):
        parts = sets.split_images(files, seed, valid=0.34, test=0.34)
        for family in families.values():
            assert sum(family <= set(part) for part in parts.values()) == 1


def test_pictures_that_look_alike_only_through_others_stay_together(tmp_path):
    first, last = np.array(picture(0)), np.array(picture(1))
    chain = [tmp_path / f"{step}.png" for step in range(5)]
    for step, path in enumerate(chain):
        Image.fromarray(((5 - step) / 5 * first + step / 5 * last).astype(np.uint8)).save(path)
    hashes = sets.perceptual_hashes(chain)
    near = np.abs(np.subtract.outer(range(5), range(5))) <= 1
    np.testing.assert_array_equal(sets.near_duplicates(hashes, hashes), near)
    others = pictures(tmp_path / "others", 3, first=2)
    for order in ([0, 1, 2, 3, 4], [0, 1, 2, 4, 3], [4, 0, 3, 1, 2], [2, 0, 4, 3, 1]):
        parts = sets.split_images([*(chain[i] for i in order), *others], 0, valid=0.3, test=0.3)
        assert sum(set(chain) <= set(part) for part in parts.values()) == 1


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, -0.1), (1, 0), (0.5, 0.5), (float("nan"), 0.1)])
def test_shares_outside_their_range_are_refused(twenty, shares):
    with pytest.raises(UsageError, match="shares valid="):
        sets.split_images(twenty, 0, *shares)


@pytest.mark.parametrize(
    "valid, test, sizes",
    [(0.1, 0.1, (1, 0, 0)), (0.1, 0.1, (2, 0, 0)), (0.1, 0.1, (1, 1, 1)), (0.1, 0.1, (8, 1, 1)),
     (0.1, 0, (2, 1, 0)), (0, 0, (4, 0, 0)), (0.2, 0.15, (13, 4, 3))],
)  # fmt: skip
def test_a_split_is_a_partition_with_the_wanted_shares(twenty, valid, test, sizes):
    paths = twenty[: sum(sizes)]
    parts = sets.split_images(paths, 0, valid=valid, test=test)
    assert [(name, len(part)) for name, part in parts.items()] == list(zip(PARTS, sizes, strict=True))
    assert sorted(path for part in parts.values() for path in part) == paths


@pytest.mark.parametrize(
    "count, shares", [(1, (0.9, 0)), (2, (0.4, 0.4)), (3, (0.5, 0.45)), (5, (0.9, 0.09))]
)
def test_shares_that_leave_nothing_for_training_are_refused(twenty, count, shares):
    with pytest.raises(UsageError, match="leave none for training"):
        sets.split_images(twenty[:count], 0, *shares)
    with pytest.raises(DataError, match="no images to split"):
        sets.split_images([], 0)


HERE = [folder.resolve() for folder in sets.data_folders()]


@pytest.mark.skipif(
    not all(any((f / name).is_dir() for f in HERE) for name in ("kodak", "train", "valid")),
    reason="no training, validation and Kodak photographs: set MCML_DATA to the folder that holds them",
)
def test_no_picture_stands_in_two_of_the_real_sets(monkeypatch):
    monkeypatch.setenv("MCML_DATA", os.pathsep.join(map(str, HERE)))
    splits = {name: sets.image_set(name).paths for name in ("train", "valid", "kodak", "embedded")}
    assert sets.check_disjoint(splits) > 10_000


def test_mcml_data_that_names_nothing_or_the_pictures_themselves_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MCML_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"MCML_DATA is '.*none': no such folder"):
        sets.image_set("kodak")
    (tmp_path / "kodak").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "kodak" / "kodim01.png")
    monkeypatch.setenv("MCML_DATA", str(tmp_path / "kodak"))
    with pytest.raises(DataError, match="name the folder above it"):
        sets.image_set("kodak")
