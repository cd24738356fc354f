"""Tensors on disk: safetensors files under 16 MiB each, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcml.config import DataError, UsageError, choose, repo_root
from mcml.models import Model, ModelConfig
from mcml.results import replace_folder

FILE_LIMIT_BYTES = 15 * 2**20  # with its header a file stays under 16 MiB


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Write tensors as name-0.safetensors, name-1.safetensors, ... of at most 15 MiB of data.

    Raises:
        DataError: for one tensor above the limit.
    """
    from safetensors.torch import save_file

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
        save_file(part, path)
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


def save_model(model: Model, folder: Path, record: Mapping[str, Any], *, half: bool = True) -> None:
    """Write a model folder: config.json, weights-*.safetensors and the model card's record.

    Args:
        model: its weights are stored as float16, where that holds them, unless `half` is False.
        folder: replaced as a whole if it exists.
        record: what was trained, with which command, data, seconds and device.
    """
    tensors = {
        name: _halved(value) if half and value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    with new_folder(folder) as place:
        save_tensors(place, "weights", tensors)
        content = {"model": model.config.to_dict(), "record": dict(record)}
        (place / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _halved(value: Tensor) -> Tensor:
    """Return float16, or the tensor itself where that would not hold it."""
    smaller = value.half()
    return smaller if bool(smaller.isfinite().all()) else value


def load_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model folder's configuration and record."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        return ModelConfig.from_dict(content["model"]), content.get("record", {})
    except OSError as error:
        raise DataError(f"{folder}: not a model folder (no readable config.json)") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not the configuration of a model of this version ({error})") from error


def load_model(folder: Path | str, device: str | torch.device = "cpu") -> Model:
    """Build a model from a folder, or from the name of a released one.

    Args:
        folder: path, or a name from `released`.
        device: where the weights go, as float32.

    Raises:
        DataError: if the folder is not whole, or weights and configuration disagree.
        UsageError: for an unknown name.
    """
    path = Path(folder)
    if not path.is_dir():
        if len(path.parts) > 1:
            raise DataError(f"{folder}: no such folder")
        path = released_folder() / choose("model", str(folder), released())
    config, _ = load_config(path)
    model = Model(config)
    load_into(model, load_tensors(path, "weights"), str(path))
    return model.to(device).eval()


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


def released_folder() -> Path:
    """Return the folder of the released models."""
    return repo_root() / "data" / "models"


def released() -> list[str]:
    """Return the names of the released models."""
    return sorted(path.parent.name for path in released_folder().glob("*/config.json"))


def digest(model: Model) -> str:
    """Return SHA-256 of all weights, by name: the identity of a model."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
