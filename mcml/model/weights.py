"""Model folders: config.json, float16 tensors in safetensors files, an entropy coder; whole or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcml.base.errors import DataError, UsageError
from mcml.base.files import replace_folder
from mcml.model.model import Model
from mcml.model.model_files import ENTROPY, entropy_tensors, model_folder, read_config, read_tensors
from mcml.model.settings import ModelConfig

MASK = ".mask"  # of a tensor that is mostly zero: a packed bit a value, the first one highest
FILE_LIMIT_BYTES = 15 * 2**20  # with its header a file stays under 16 MiB


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; at the end it takes `target`'s place, on an error nothing does."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise DataError(f"{target}: cannot be written ({reason}); nothing of it was kept") from error
        raise


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as name-0.safetensors, name-1.safetensors, ... of 15 MiB at most, or one tensor."""
    from safetensors.torch import save

    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if parts[-1] and sum(t.nbytes for t in [tensor, *parts[-1].values()]) > FILE_LIMIT_BYTES:
            parts.append({})
        parts[-1][key] = tensor.contiguous()
    for number, part in enumerate(parts):
        (folder / f"{name}-{number}.safetensors").write_bytes(save(part))


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote; `DataError` if no file is there or one cannot be read."""
    files = sorted(folder.glob(f"{name}-*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no {name}-0.safetensors in it")
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= read_tensors(path, "torch")
    return tensors


def save_model(
    model: Model, folder: Path, record: Mapping[str, Any], *, half: bool = True,
    entropy: Mapping[str, np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Write a model folder: config.json, weights-*.safetensors and the model card's record.

    Args:
        model: its weights are stored as float16, where that holds them, unless `half` is False.
        folder: replaced as a whole if it exists.
        record: what was trained, with which command, data, seconds and device.
        entropy: integers of the entropy coder; with them the model has an identity and writes files.
    """
    from safetensors.numpy import save

    tensors = {name: value.cpu() for name, value in model.state_dict().items()}
    if half:
        halves = {name: value.half() for name, value in tensors.items() if value.is_floating_point()}
        tensors |= {name: value for name, value in halves.items() if value.isfinite().all()}
    content: dict[str, Any] = {"model": model.config.to_dict()}
    if entropy is not None:
        stored = copy.deepcopy(model)
        load_into(stored, tensors, str(folder))
        content["identity"] = identity(stored, entropy)
    dense, content["zeros"] = _without_zeros(tensors)
    content["record"] = dict(record)
    with new_folder(folder) as place:
        save_tensors(place, "weights", dense)
        if entropy is not None:
            (place / ENTROPY).write_bytes(save({k: np.ascontiguousarray(v) for k, v in entropy.items()}))
        (place / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _without_zeros(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Keep the other values of tensors that are mostly zero and where they belong; also return the shapes."""
    dense, shapes = dict[str, Tensor](), dict[str, list[int]]()
    for name, value in tensors.items():
        others = (value != 0) | value.signbit()  # -0 is another
        if 2 * int(others.sum()) >= value.numel():
            dense[name] = value
            continue
        shapes[name] = list(value.shape)
        if others.any():
            dense[name] = value[others]
            dense[name + MASK] = torch.from_numpy(np.packbits(others.numpy()))
    return dense, shapes


def _stored(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that a folder itself holds, with the zeros that were left out."""
    tensors = load_tensors(folder, "weights")
    for name, shape in read_config(folder).get("zeros", {}).items():
        whole = torch.zeros(shape)
        if name in tensors:
            try:
                bits = np.unpackbits(tensors.pop(name + MASK).numpy(), count=whole.numel())
                whole[torch.from_numpy(bits.astype(bool)).view(shape)] = tensors[name].float()
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
                raise DataError(f"{folder}: values and mask of {name} disagree ({error})") from error
        tensors[name] = whole
    return tensors


def load_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model folder's configuration and record."""
    content = read_config(folder)
    try:
        return ModelConfig().changed(**content["model"]), content.get("record", {})
    except (UsageError, KeyError, TypeError) as error:
        path = folder / "config.json"
        raise DataError(f"{path}: not the configuration of a model of this version ({error})") from error


def load(folder: Path | str, device: str | torch.device = "cpu") -> Model:
    """Build a model from a folder or the name of a released one, in float32.

    Raises:
        DataError: if the folder is not whole, or weights, configuration and identity disagree.
        UsageError: for an unknown name.
    """
    path = model_folder(folder)
    content = read_config(path)
    model = Model(load_config(path)[0])
    tensors = _stored(path)
    if content.get("shared"):  # a model folder beside it, of whose tensors this one stores those that differ
        wanted = model.state_dict().keys()
        tensors = {k: v for k, v in _stored(path.parent / content["shared"]).items() if k in wanted} | tensors
    load_into(model, tensors, str(path))
    if "identity" in content and identity(model, entropy_tensors(path)) != content["identity"]:
        raise DataError(f"{path}: weights and identity disagree: the folder's files are not of one model")
    return model.to(device).eval()


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors strictly by name and shape, in the module's own dtypes; `DataError` names what differs."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DataError(f"{source}: of another configuration: {first}") from error


def copy_stream(source: Model, target: Model, key: str) -> None:
    """Copy one stream's weights, and with luma the rate's slope; `DataError` if the streams differ.

    Scalar streams may differ in their decoders' fusion: what only one of them has stays as it is.
    """
    if key not in source.streams:
        raise DataError(f"stream {key}: the model to start from has {', '.join(source.streams)}")
    tensors = source.streams[key].state_dict()
    if source.config.quantizer == target.config.quantizer == "scalar":
        own = target.streams[key].state_dict()
        tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith("decoder.")}
        tensors |= {k: v for k, v in own.items() if k.startswith("decoder.") and k not in tensors}
    load_into(target.streams[key], tensors, f"stream {key}")
    if key == target.config.streams[0]:
        target.rate_slope.copy_(source.rate_slope)


def digest(model: Model) -> str:
    """Return SHA-256 of all weights, by name: the identity of a model."""
    hashed = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def identity(model: Model, entropy: Mapping[str, np.ndarray]) -> str:
    """Return SHA-256 of configuration, weights and entropy coder: what a file's decoder needs."""
    hashed = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    hashed.update(digest(model).encode())
    for name, value in sorted(entropy.items()):
        hashed.update(f"{name} {value.dtype} {value.shape}".encode())
        hashed.update(np.ascontiguousarray(value).tobytes())
    return hashed.hexdigest()
