"""Model folders without their networks: names, configuration, identity, entropy model."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np

from mcml.base.errors import DataError, UnsupportedStreamError, choose

SUFFIX = ".safetensors.gz"
ENTROPY = f"entropy-0{SUFFIX}"
IDENTITY_BYTES = 8  # of the identity that a file carries


def released_folder() -> Path:
    """Return the folder of the released models."""
    return Path(str(resources.files("mcml.model"))) / "released"


def released() -> list[str]:
    """Return the names of the released models, the poster's own first."""
    names = sorted(path.parent.name for path in released_folder().glob("*/config.json"))
    return sorted(names, key=lambda name: name != "fusion")


def writers() -> list[str]:
    """Return the names of those released models that can write files."""
    return [name for name in released() if "identity" in read_config(released_folder() / name)]


def model_folder(name: str | Path) -> Path:
    """Return the folder of a model, a released one by its name; `DataError` or `UsageError` if none is."""
    path = Path(name)
    if name not in released() and path.is_dir():
        return path
    if len(path.parts) > 1:
        raise DataError(f"{name}: no such folder")
    return released_folder() / choose("model", str(name), released())


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's config.json; `DataError` if there is none or it is not a JSON object."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        return dict(content.items())
    except OSError as error:
        raise DataError(f"{folder}: not a model folder (no readable config.json)") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the configuration of a model of this version ({error})") from error


def is_scalar(content: Mapping[str, Any]) -> bool:
    """Return whether a config.json's content is that of a model of scalar latents."""
    try:
        return content["model"]["luma"].get("quantizer") == "scalar"
    except (KeyError, TypeError, AttributeError):
        return False


def identity(folder: Path) -> bytes:
    """Return the 8 bytes by which files name a model; `DataError` if it cannot write files."""
    content = read_config(folder)
    if "identity" not in content and is_scalar(content):
        raise DataError(
            f"{folder}: has no identity: it was written by an mcml without files of scalar latents"
        )
    try:
        name = bytes.fromhex(content["identity"])[:IDENTITY_BYTES]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}: has no entropy model yet; run `mcml train-entropy` on it") from error
    if len(name) < IDENTITY_BYTES:
        raise DataError(f"{folder}: its identity is too short")
    return name


def name_of(model: bytes) -> str:
    """Return the released model that a file's 8 bytes name; `UnsupportedStreamError` if none is here."""
    for name in released():
        if read_config(released_folder() / name).get("identity", "").startswith(model.hex()):
            return name
    here = ", ".join(released()) or "none"
    raise UnsupportedStreamError(
        f"the file was written by model {model.hex()}, which is not here (here: {here}); "
        "give its folder with --model, or install the version of mcml that ships it"
    )


def entropy_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the integers of a binary model's entropy coder, by "stream.name"; empty if it has none."""
    path, content = folder / ENTROPY, read_config(folder)
    shared = content.get("shared")
    if not path.exists() and shared and not is_scalar(content):
        path = folder.parent / shared / ENTROPY
        if not path.exists():
            raise DataError(f"{folder}: shares the entropy coder of {shared}, which is not beside it")
    return read_tensors(path, "numpy") if path.exists() else {}


def write_tensors(path: Path, tensors: dict[str, Any], framework: str) -> None:
    """Write tensors of "numpy" or "torch" as a safetensors file, by gzip."""
    content = import_module(f"safetensors.{framework}").save(tensors)
    path.write_bytes(gzip.compress(content, mtime=0))


def read_tensors(path: Path, framework: str) -> dict[str, Any]:
    """Return a safetensors.gz file's tensors, of "numpy" or "torch"; `DataError` if it cannot be read."""
    from safetensors import SafetensorError

    try:
        return import_module(f"safetensors.{framework}").load(gzip.decompress(path.read_bytes()))
    except (SafetensorError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole safetensors.gz file ({error})") from error
