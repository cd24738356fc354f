"""Tensors on disk: safetensors files under 16 MiB each, written whole or not at all."""

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
from torch import Tensor

from mcml.base.errors import DataError, UsageError
from mcml.base.files import replace_folder
from mcml.model.model import Model
from mcml.model.model_files import ENTROPY, entropy_tensors, model_folder, read_config
from mcml.model.settings import ModelConfig

MASK = ".mask"  # of a tensor that is mostly zero: a packed bit a value, the first one highest
FILE_LIMIT_BYTES = 15 * 2**20  # with its header a file stays under 16 MiB


def save_tensors(
    folder: Path, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> list[Path]:
    """Write tensors as name-0.safetensors, name-1.safetensors, ... of at most 15 MiB of data.

    Raises:
        DataError: for one tensor above the limit.
    """
    from safetensors.torch import save

    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > FILE_LIMIT_BYTES:
            raise DataError(f"tensor {key} has {size} bytes: a file holds at most {FILE_LIMIT_BYTES}")
        if filled + size > FILE_LIMIT_BYTES:
            parts.append({})
            filled = 0
        parts[-1][key] = tensor.detach().cpu().contiguous().clone()
        filled += size
    files = [folder / f"{name}-{i}.safetensors" for i in range(len(parts))]
    for path, part in zip(files, parts, strict=True):
        path.write_bytes(save(part, metadata))  # `save_file` would keep it from all but its owner
    return files


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote.

    Raises:
        DataError: if no file is there or one cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob(f"{name}-*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no {name}-0.safetensors in it")
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; at the end it takes `target`'s place, on an error nothing does.

    Raises:
        DataError: if it cannot be written, a full disk among the reasons.
    """
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = getattr(error, "strerror", None) or str(error) or "no space left"
            raise DataError(f"{target}: cannot be written ({reason}); nothing of it was kept") from error
        raise


def save_model(
    model: Model,
    folder: Path,
    record: Mapping[str, Any],
    *,
    half: bool = True,
    entropy: Mapping[str, np.ndarray] | None = None,
    shared: str = "",
) -> None:
    """Write a model folder: config.json, weights-*.safetensors and the model card's record.

    Of tensors that are zero for the most part only the other values are stored, in order, with a
    mask of where they belong.

    Args:
        model: its weights are stored as float16, where that holds them, unless `half` is False.
        folder: replaced as a whole if it exists.
        record: what was trained, with which command, data, seconds and device.
        entropy: integers of the entropy coder; with them the model has an identity and writes files.
        shared: name of a model folder beside it, whose tensors are used where they are the same.
    """
    tensors = {
        name: _halved(value) if half and value.is_floating_point() else value.detach()
        for name, value in model.state_dict().items()
    }
    other = _stored(folder.parent / shared) if shared else {}
    own = {
        name: value for name, value in tensors.items()
        if name not in other or other[name].shape != value.shape
        or not torch.equal(other[name].to(value.dtype), value.cpu())
    }  # fmt: skip
    others = {name: (value != 0) | value.signbit() for name, value in own.items()}  # -0 is another
    zeros = {name: list(at.shape) for name, at in others.items() if 2 * int(at.sum()) < at.numel()}
    content: dict[str, Any] = {"model": model.config.to_dict()}
    if entropy is not None:
        stored = copy.deepcopy(model)
        load_into(stored, tensors, str(folder))
        content["identity"] = identity(stored, entropy)
    content |= {"shared": shared, "zeros": zeros}
    with new_folder(folder) as place:
        kept = {name: value for name, value in own.items() if name not in zeros}
        for name in zeros:
            if others[name].any():
                kept[name] = own[name][others[name]]
                kept[name + MASK] = torch.from_numpy(np.packbits(others[name].cpu().numpy()))
        metadata = {"mcml": json.dumps(content)}
        save_tensors(place, "weights", kept, metadata)
        if entropy is not None and not (shared and _same(entropy, entropy_tensors(folder.parent / shared))):
            from safetensors.numpy import save

            arrays = {name: np.ascontiguousarray(value) for name, value in entropy.items()}
            (place / ENTROPY).write_bytes(save(arrays, metadata))
        (place / "config.json").write_text(
            json.dumps(content | {"record": dict(record)}, indent=2) + "\n", "utf-8"
        )


def _same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _halved(value: Tensor) -> Tensor:
    """Return float16, or the tensor itself where that would not hold it."""
    smaller = value.detach().half()
    return smaller if bool(smaller.isfinite().all()) else value.detach()


def load_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model folder's configuration and record."""
    content = read_config(folder)
    try:
        return ModelConfig().changed(**content["model"]), content.get("record", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path = folder / "config.json"
        raise DataError(f"{path}: not the configuration of a model of this version ({error})") from error


def load(folder: Path | str, device: str | torch.device = "cpu") -> Model:
    """Build a model from a folder, or from the name of a released one.

    Args:
        folder: path, or a name from `model_files.released`.
        device: where the weights go, as float32.

    Raises:
        DataError: if the folder is not whole, or weights, configuration and identity disagree.
        UsageError: for an unknown name.
    """
    path = model_folder(folder)
    config, _ = load_config(path)
    content = read_config(path)
    model = Model(config)
    shapes = model.state_dict()
    tensors = _stored(path)
    if content.get("shared"):
        tensors = {k: v for k, v in _stored(path.parent / content["shared"]).items() if k in shapes} | tensors
    load_into(model, tensors, str(path))
    if "identity" in content and identity(model, entropy_tensors(path)) != content["identity"]:
        raise DataError(f"{path}: weights and identity disagree: the folder's files are not of one model")
    return model.to(device).eval()


def _stored(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that a folder itself holds, the zeros of those that are mostly zero put back."""
    found = load_tensors(folder, "weights")
    zeros = read_config(folder).get("zeros") or {}
    if not isinstance(zeros, dict):
        raise DataError(f"{folder}: config.json names zeros in another way than this version")
    for name, shape in zeros.items():
        whole = torch.zeros(shape)
        if name in found:
            try:
                bits = np.unpackbits(found.pop(name + MASK).numpy(), count=whole.numel())
                whole[torch.from_numpy(bits.astype(bool)).view(shape)] = found[name].float()
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
                raise DataError(f"{folder}: values and mask of {name} disagree ({error})") from error
        found[name] = whole
    return found


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors strictly by name and shape, in the module's own dtypes.

    Raises:
        DataError: naming the first tensor that is missing, superfluous or of another shape.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which this model lacks"
        raise DataError(f"{source}: of another configuration: it {what}")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise DataError(
                f"{source}: of another configuration: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(value.shape)}"
            )
    module.load_state_dict({name: tensors[name].to(value.dtype) for name, value in own.items()})


def copy_stream(source: Model, target: Model, key: str) -> None:
    """Copy one stream's weights, and with luma the rate's slope, between models.

    Raises:
        UsageError: if the streams are configured differently.
    """
    if (
        key not in source.streams
        or source.config.stream(key) != target.config.stream(key)
        or _shapes(source.streams[key]) != _shapes(target.streams[key])  # another variant's decoder
    ):
        raise UsageError(f"stream {key}: the source's is missing or configured differently from the target's")
    target.streams[key].load_state_dict(source.streams[key].state_dict())
    if key == target.config.streams[0]:
        target.rate_slope.copy_(source.rate_slope)


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def digest(model: Model) -> str:
    """Return SHA-256 of all weights, by name: the identity of a model."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def identity(model: Model, entropy: Mapping[str, np.ndarray]) -> str:
    """Return SHA-256 of configuration, weights and entropy coder: what a file's decoder needs."""
    found = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    found.update(digest(model).encode())
    for name, value in sorted(entropy.items()):
        found.update(f"{name} {value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
