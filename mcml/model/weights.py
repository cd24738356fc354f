"""Model folders: config.json, compact tensors in safetensors files, an entropy coder; whole or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcml.base import STRIDE
from mcml.base.errors import DataError, UsageError
from mcml.base.files import replace_folder
from mcml.model import model_files
from mcml.model.model import Model
from mcml.model.settings import ModelConfig

FILE_LIMIT_BYTES = 15 * 2**20  # of tensors; with its header a file stays under 16 MiB
EXACT = ("encoder", "importance")  # of binary models, whose entropy coders know their bits: float16
STEP = ".step"
LARGE = 4096  # values of a tensor from which on it is rounded
BITS, TRUNK_BITS = 12, 8  # of the largest weight; entries add up hundreds of bits, so they need more


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; at the end it takes `target`'s place, on an error nothing does."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            kept = "nothing of it was kept: make room, or choose another place"
            raise DataError(f"{target}: cannot be written ({reason}); {kept}") from error
        raise


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as name-0.safetensors.gz, name-1..., each of at most 15 MiB of them or one."""
    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in tensors.items():
        if parts[-1] and sum(t.nbytes for t in [tensor, *parts[-1].values()]) > FILE_LIMIT_BYTES:
            parts.append({})
        parts[-1][key] = tensor.contiguous()
    for number, part in enumerate(parts):
        model_files.write_tensors(folder / f"{name}-{number}{model_files.SUFFIX}", part, "torch")


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote; `DataError` if no file is there or one cannot be read."""
    files = sorted(folder.glob(f"{name}-*{model_files.SUFFIX}"))
    if not files:
        raise DataError(f"{folder}: no {name}-0{model_files.SUFFIX} in it")
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= model_files.read_tensors(path, "torch")
    return tensors


def save_model(
    model: Model, folder: Path, record: Mapping[str, Any], *, compact: bool = True,
    entropy: Mapping[str, np.ndarray] | None = None, encoder: Mapping[str, float] | None = None,
) -> None:  # fmt: skip
    """Write a model folder: config.json, weights-*.safetensors.gz and the model card's record.

    Args:
        model: its weights are stored by `compacted`, unless `compact` is False.
        folder: replaced as a whole if it exists.
        record: what was trained, with which command, data, seconds and device.
        entropy: integers of a binary model's entropy coder; with them it has an identity and writes files.
            A scalar model's are made of its weights.
        encoder: what a scalar model's encoder does unless told otherwise: window_px, rounding, color_share.
    """
    tensors = {name: value.cpu() for name, value in model.state_dict().items()}
    if compact:
        tensors = (
            compacted_scalar(tensors)
            if model.config.quantizer == "scalar"
            else {name: compacted(name, value) for name, value in tensors.items()}
        )
    content: dict[str, Any] = {"model": model.config.to_dict()}
    if entropy is not None or model.config.quantizer == "scalar":
        stored = copy.deepcopy(model)
        load_into(stored, with_steps(tensors), str(folder))
        content["identity"] = identity(stored, entropy or {})
    content |= {"encoder": dict(encoder)} if encoder else {}
    content["record"] = dict(record)
    with new_folder(folder) as place:
        save_tensors(place, "weights", tensors)
        if entropy is not None:
            integers = {name: np.ascontiguousarray(value) for name, value in entropy.items()}
            model_files.write_tensors(place / model_files.ENTROPY, integers, "numpy")
        (place / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def compacted(name: str, value: Tensor, exact: Sequence[str] = EXACT) -> Tensor:
    """Return a float tensor in float16, where that holds it; a large one rounded, so that gzip shortens it.

    Each output channel's weights become multiples of 2^(e - bits), where 2^e is the least power of two that
    none of them exceeds: 8 bits in residual trunks, 12 elsewhere, none in `exact` parts.
    What was rounded once stays as it is.
    """
    if not value.is_floating_point():
        return value
    if value.dim() > 1 and value.numel() >= LARGE and not any(part in name for part in exact):
        mantissa, exponent = torch.frexp(value.abs().amax(tuple(range(1, value.dim())), keepdim=True))
        exponent = exponent - (mantissa == 0.5).int() - (TRUNK_BITS if ".trunk." in name else BITS)
        step = torch.ldexp(torch.ones_like(mantissa), exponent.clamp(min=-100))
        value = (value / step).round() * step
    half = value.half()
    return half if half.isfinite().all() else value


def compacted_scalar(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a scalar model's tensors as `compacted` does, but trunks' large ones as int8 and "name.step".

    A step, float16, is a 127th of an output channel's largest weight; `with_steps` multiplies by it.
    """
    stored = {}
    for name, value in tensors.items():
        if ".trunk." in name and value.numel() >= LARGE:
            step = (value.abs().amax((1, 2, 3), keepdim=True) / 127).half().clamp(min=2.0**-24)
            stored[name], stored[name + STEP] = (
                (value / step.float()).round().clamp(-127, 127).to(torch.int8),
                step,
            )
        else:
            stored[name] = compacted(name, value, ())
    return stored


def with_steps(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those of int8 multiplied by their steps, in float32."""
    whole = {name: value for name, value in tensors.items() if not name.endswith(STEP)}
    steps = {name.removesuffix(STEP): value.float() for name, value in tensors.items() if name not in whole}
    return whole | {name: whole[name] * step for name, step in steps.items()}


def load_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read a model folder's configuration and record."""
    content = model_files.read_config(folder)
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
    path = model_files.model_folder(folder)
    content = model_files.read_config(path)
    model = Model(load_config(path)[0])
    tensors = load_tensors(path, "weights")
    if content.get("shared"):  # a model folder beside it, of whose tensors this one stores those that differ
        wanted = model.state_dict().keys()
        theirs = load_tensors(path.parent / content["shared"], "weights")
        tensors = {k: v for k, v in theirs.items() if k.removesuffix(STEP) in wanted} | tensors
    load_into(model, with_steps(tensors), str(path))
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path}: {name} holds values that are not finite: train it anew")
    if "identity" in content and identity(model, model_files.entropy_tensors(path)) != content["identity"]:
        raise DataError(f"{path}: weights and identity disagree: the folder's files are not of one model")
    for stream in model.streams.values():
        stream.window = content.get("encoder", {}).get("window_px", 0) // STRIDE
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

    Scalar streams may differ in what they see of others: what the target's prior is not told is cut out of
    the source's, as is luma out of a decoder without fusion; what the source's decoder lacks begins without
    an effect.
    """
    if key not in source.streams:
        raise DataError(f"stream {key}: the model to start from has {', '.join(source.streams)}")
    tensors = source.streams[key].state_dict()
    if source.config.quantizer == target.config.quantizer == "scalar":
        own = target.streams[key].state_dict()
        if source.streams[key].known != target.streams[key].known:
            tensors = _told_less(source, target, key, tensors)
        tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith("decoder.")}
        lacking = {k: v for k, v in own.items() if k.startswith("decoder.") and k not in tensors}
        tensors |= {k: v if ".first." in k else torch.zeros_like(v) for k, v in lacking.items()}
    load_into(target.streams[key], tensors, f"stream {key}")
    if key == target.config.streams[0]:
        target.rate_slope.copy_(source.rate_slope)


def _told_less(source: Model, target: Model, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a stream's tensors without what its prior there knows of streams that it does not know here."""
    before, now = source.streams[key], target.streams[key]
    if not set(now.known) < set(before.known) or now.hyperprior is not None:
        told = [", ".join(stream.known) or "nothing" for stream in (before, now)]
        raise DataError(f"stream {key}: its prior is told {told[0]} there, {told[1]} here")
    if now.known:
        parts = tensors["side.weight"].split([source.config.stream(k).code_channels for k in before.known], 1)
        kept = [part for k, part in zip(before.known, parts, strict=True) if k in now.known]
        return tensors | {"side.weight": torch.cat(kept, 1)}
    tensors, width = {k: v for k, v in tensors.items() if not k.startswith("side.")}, now.config.prior_width
    for step in range(now.config.prior_steps):  # what a step mixes: latents near by, side features, the dial
        name, near = f"prior.mix.{step}.weight", width if step else 0
        tensors[name] = torch.cat([tensors[name][:, :near], tensors[name][:, near + width :]], 1)
    return tensors


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
