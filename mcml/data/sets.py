"""Data sets by name, verified by hash, and splits that near-duplicates cannot leak through."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mcml.base.errors import DataError, UsageError, choose, explained
from mcml.base.files import expanded, in_checkout, repo_root, sha256
from mcml.data.images import check_stems, data_digest, list_images, read_image

NEAR_DUPLICATE = 10  # bits of 64 by which perceptual hashes of "the same" picture may differ


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A named list of image files.

    Attributes:
        name: registered name, or the folder's name.
        paths: files in a fixed order; an image's name in tables is its file's stem.
        entry: its name in the registry, if these are its files or the first of them; else empty.
        title, licence: for people; "not stated" for a user's own folder.
    """

    name: str
    paths: tuple[Path, ...]
    entry: str = ""
    title: str = "images of a folder"
    licence: str = "not stated"

    @property
    def digest(self) -> str:
        """`data_digest` of the files."""
        return data_digest(self.paths)

    def read(self, name: str) -> np.ndarray:
        """Read one image by its name (file stem) as (H, W, 3) uint8 sRGB."""
        paths = {path.stem: path for path in self.paths}
        return read_image(paths[choose("image", name, paths)])


@cache
def registry() -> dict[str, dict[str, Any]]:
    """Return the package's ``registry.toml``."""
    return tomllib.loads((resources.files("mcml.data") / "registry.toml").read_text("utf-8"))


def data_folders() -> list[Path]:
    """Return the folders of ``MCML_DATA`` (several are separated as in ``PATH``).

    A relative one counts from the current folder or, failing that, from the checkout (if this is
    one), so that a notebook and the command line mean the same folder. `DataError` if none exists.
    """
    value = os.environ.get("MCML_DATA", "")
    folders = [expanded(part) for part in value.split(os.pathsep) if part]
    if in_checkout():
        folders = [f if f.is_dir() else repo_root() / f for f in folders]
    if folders and not any(f.is_dir() for f in folders):
        raise DataError(f"MCML_DATA is '{value}': no such folder")
    return folders


def image_set(dataset: str, max_images: int = 0) -> ImageSet:
    """Find a data set and check its files against the registry.

    Args:
        dataset: ``embedded``, ``kodak``, ``train``, ``valid``, or a folder of images.
        max_images: keep only the first so many; 0 keeps all.

    Raises:
        UsageError: if the name is neither registered nor a folder, or `max_images` negative.
        DataError: if the data are missing or differ from what the registry says.
    """
    if max_images < 0:
        raise UsageError(f"max_images {max_images}: expected a whole number from 0")
    images = _registered(dataset) if dataset in registry() else _folder(dataset)
    check_stems(images.paths)
    return replace(images, paths=images.paths[: max_images or None])


def _folder(name: str) -> ImageSet:
    folder = expanded(name)
    if folder.is_file():
        raise DataError(f"{name} is a file: give the folder that holds it")
    if not name or not folder.is_dir():
        if os.sep in name:
            raise DataError(f"{name}: no such folder of images")
        try:
            choose("data set", name, registry())
        except UsageError as error:
            raise UsageError(f"{error}, or a folder of images") from None
    return ImageSet(name=folder.resolve().name, paths=tuple(list_images(folder)))


def _registered(name: str) -> ImageSet:
    entry = registry()[name]
    paths = tuple({"embedded": _embedded, "kodak": _kodak}.get(name, lambda: _under_mcml_data(name))())
    if "files" not in entry and data_digest(paths) != entry["digest"]:
        return ImageSet(name=name, paths=paths)  # other pictures: the registry does not speak for them
    return ImageSet(name=name, paths=paths, entry=name, title=entry["title"], licence=entry["licence"])


def read_all(
    images: ImageSet, least_px: int = 1, *, strict: bool = False
) -> tuple[ImageSet, list[np.ndarray], dict[Path, str]]:
    """Read a set's pictures; return the set of those that can be used, their pixels, and why others cannot.

    Args:
        images: files, of which one that is damaged or refused is left out.
        least_px: width and height that a picture needs.
        strict: whether any that is left out is a `DataError`; if all are, that is one anyhow.
    """
    pixels, problems = {}, {}
    for path in images.paths:
        try:
            picture = read_image(path)
            height, width = picture.shape[:2]
            if min(height, width) < least_px:
                advice = f"give pictures of {least_px} x {least_px} or more"
                raise DataError(f"{path}: {width} x {height} pixels; {advice}")
            pixels[path] = picture
        except Exception as error:
            text = str(explained(error))
            problems[path] = text if text.startswith(f"{path}: ") else f"{path}: {text}"
    if problems and (strict or not pixels):
        count = f"{len(problems)} of {len(images.paths)} pictures of {images.name} cannot be used"
        raise DataError(f"{count}: {next(iter(problems.values()))}")
    return replace(images, paths=tuple(pixels)), list(pixels.values()), problems


def describe(images: ImageSet) -> list[dict[str, Any]]:
    """Return a row an image: name, size, megapixels, kind of file, licence, start of its SHA-256."""
    files = registry().get(images.entry, {}).get("files", ())
    licences = {Path(file["path"]).name: file["licence"] for file in files if "licence" in file}
    rows = []
    for path in images.paths:
        height, width = read_image(path).shape[:2]
        row = {"image": path.stem, "width": width, "height": height, "megapixels": width * height / 1e6}
        row |= {"file": path.suffix.lstrip(".").upper(), "licence": licences.get(path.name, images.licence)}
        rows.append(row | {"sha256": sha256(path)[:12]})
    return rows


def _verify(path: Path, expected: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing; the registry expects it")
    if sha256(path) != expected:
        advice = "restore it, or give the folder itself to use it as images of your own"
        raise DataError(f"{path}: differs from the registered file (SHA-256 {expected[:12]}...); {advice}")
    return path


def _embedded() -> list[Path]:
    paths = []
    for file in registry()["embedded"]["files"]:
        spec = importlib.util.find_spec(file["package"])
        if spec is None or spec.origin is None:
            raise DataError(f"{file['package']} is not installed: the embedded photographs are part of it")
        paths.append(_verify(Path(spec.origin).parent / file["path"], file["sha256"]))
    return paths


def _under_mcml_data(name: str) -> list[Path]:
    for folder in data_folders():
        if (folder / name).is_dir():
            return list_images(folder / name)
    where = ", ".join(map(str, data_folders())) or "MCML_DATA is not set"
    advice = f"set MCML_DATA to the folder that holds '{name}/'"
    raise DataError(f"data set '{name}' not found ({where}): {advice}")


def _kodak() -> list[Path]:
    files = registry()["kodak"]["files"]
    for folder in data_folders():
        if (folder / files[0]["path"]).is_file():
            raise DataError(f"MCML_DATA names {folder}, which holds the pictures: name the folder above it")
        if (folder / "kodak").is_dir():
            return [_verify(folder / "kodak" / file["path"], file["sha256"]) for file in files]
    import pooch
    import requests

    cache = repo_root() / "data" / "cache" if in_checkout() else pooch.os_cache("mcml")
    hashes = {file["path"]: f"sha256:{file['sha256']}" for file in files}
    fetcher = pooch.create(cache / "kodak", registry()["kodak"]["source"], registry=hashes, retry_if_failed=2)
    pooch.get_logger().setLevel("WARNING")
    bar = sys.stderr.isatty()
    try:
        return [Path(fetcher.fetch(file["path"], progressbar=bar)) for file in files]
    except (OSError, ValueError, requests.RequestException) as error:
        problem = f"cannot be downloaded from {fetcher.base_url} ({type(error).__name__})"
        advice = "set MCML_DATA to a folder that holds kodak/kodim01.png to kodim24.png"
        raise DataError(f"data set 'kodak' is not under MCML_DATA and {problem}: {advice}") from error


def perceptual_hashes(paths: Sequence[Path]) -> np.ndarray:
    """Return each image's 64-bit DCT hash and that of its mirror image: (n, 2, 64) bool."""
    import imagehash
    from PIL import Image

    def one(path: Path) -> list[np.ndarray]:
        picture = read_image(path)
        return [imagehash.phash(Image.fromarray(p)).hash.ravel() for p in (picture, picture[:, ::-1])]

    return np.array([one(path) for path in paths])


def near_duplicates(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which pairs look alike, mirrored copies included: (n, 2, 64), (m, 2, 64) to (n, m)."""
    views = ((0, 0), (0, 1), (1, 0))  # as they are, and either one mirrored: the same both ways round
    distances = [np.count_nonzero(hashes[:, None, i] != others[None, :, j], axis=-1) for i, j in views]
    return np.min(distances, axis=0) <= NEAR_DUPLICATE


def check_disjoint(sets: Mapping[str, Sequence[Path]]) -> int:
    """Count the pairs of files of different `sets`; `DataError` names the first that look alike."""
    hashes = {name: perceptual_hashes(paths) for name, paths in sets.items() if paths}
    compared = 0
    for first, second in itertools.combinations(hashes, 2):
        alike = near_duplicates(hashes[first], hashes[second])
        compared += alike.size
        for a, b in np.argwhere(alike)[:1]:
            names = f"{sets[first][a].name} and {sets[second][b].name}"
            raise DataError(f"{first} and {second} share a picture: {names} look alike; remove one")
    return compared


def split_images(
    paths: Sequence[Path], seed: int, valid: float = 0.1, test: float = 0.1
) -> dict[str, list[Path]]:
    """Split files into train, valid and test; near-duplicates always stay together.

    Groups of look-alikes are ordered by a hash of the seed and their content, so the
    split depends on neither file names' order nor the machine.

    Args:
        paths: image files; `DataError` for none.
        seed: another seed, another split.
        valid, test: shares of the groups, in [0, 1); each gets at least one group if its share is above 0
            and there are three groups or more; `UsageError` if they leave nothing for training.
    """
    if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
        raise UsageError(f"shares valid={valid}, test={test}: expected at least 0 each and below 1 together")
    if not paths:
        raise DataError("no images to split")
    hashes = perceptual_hashes(paths)
    group = np.arange(len(paths))  # label of each image's group: its smallest member
    for a, b in np.argwhere(near_duplicates(hashes, hashes)):
        group[group == max(group[a], group[b])] = min(group[a], group[b])
    groups = [[paths[i] for i in np.flatnonzero(group == label)] for label in np.unique(group)]
    groups.sort(key=lambda members: min(sha256(f"{seed} {sha256(p)}".encode()) for p in members))
    least = 1 if len(groups) >= 3 else 0
    n_valid, n_test = (max(round(share * len(groups)), least) if share else 0 for share in (valid, test))
    if n_valid + n_test >= len(groups):
        shares = f"valid={valid}, test={test} of {len(groups)} different pictures"
        raise UsageError(f"shares {shares} leave none for training")
    bounds = {"train": (n_valid + n_test, None), "valid": (0, n_valid), "test": (n_valid, n_valid + n_test)}
    return {name: sorted(itertools.chain(*groups[slice(*ends)])) for name, ends in bounds.items()}
