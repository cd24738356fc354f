"""What a trained model does to pictures: decodes, maps, loss terms and metrics of whole photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mcml.base import STRIDE
from mcml.lab.workers import one_thread, side_by_side
from mcml.metrics import distortion as metrics
from mcml.metrics.color import luma, rgb_to_lab, rgb_to_ycbcr, to_uint8, ycbcr_to_rgb
from mcml.model import model_files, weights
from mcml.model.model import Model, ModelOutput
from mcml.model.rate import BITS_PER_NAT
from mcml.model.validate import to_tensor, validate
from mcml.training.loss import LossConfig, multi_loss


def released_models(*streams: str) -> dict[str, Model]:
    """Return the released models that have all of `streams`, by name; none where none are there."""
    found = {name: weights.load(name) for name in model_files.released()}
    return {name: model for name, model in found.items() if set(streams) <= set(model.streams)}


def decode(model: Model, image: np.ndarray, dial: float) -> tuple[np.ndarray, ModelOutput]:
    """Encode and decode one picture.

    Returns:
        The decode, (H, W, 3) uint8 (grey for the luma variant), and all that came with it.
    """
    with torch.no_grad():
        output = model.eval()(to_tensor(image), dial)
    pixels = (255 * output.x_hat[0]).round().clamp(0, 255).permute(1, 2, 0)
    return pixels.to(torch.uint8).numpy(), output


def grey(image: np.ndarray) -> np.ndarray:
    """Return luma as a picture: (H, W, 3) uint8 to the same with equal channels."""
    return np.repeat(np.clip(np.round(luma(image)), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def chroma_only(image: np.ndarray) -> np.ndarray:
    """Return a picture's colours at mid luma: (H, W, 3) uint8 to the same."""
    ycbcr = rgb_to_ycbcr(image)
    ycbcr[..., 0] = 128
    return to_uint8(ycbcr_to_rgb(ycbcr))


def stream_log(rows: Sequence[Mapping[str, float]], key: str) -> list[dict[str, float]]:
    """Return a training log's figures of one stream, without its name in them."""
    end = f"_{key}"
    return [
        {"step": row["step"]} | {k.removesuffix(end): v for k, v in row.items() if k.endswith(end)}
        for row in rows
    ]


def loss_terms(model: Model, images: Sequence[np.ndarray], dial: float, loss: LossConfig) -> dict[str, float]:
    """Measure the multi-loss of whole pictures as training does: means over images.

    Returns:
        dial, lmbda, distortion_<stream>, rate, weighted_rate, total.
    """
    found = []
    for image in images:
        rgb = to_tensor(image)
        output = decode(model, image, dial)[1]
        lmbda = float(model.lmbda(torch.tensor([dial])))
        terms = multi_loss(
            model.planes(rgb),
            {key: stream.x_hat for key, stream in output.streams.items()},
            {k: s.importance * model.streams[k].rate_weight for k, s in output.streams.items()},
            lmbda,
            loss,
        )
        per_stream = {f"distortion_{key}": float(v) for key, v in terms.distortion_per_stream.items()}
        sums = {name: float(getattr(terms, name)) for name in ("rate", "weighted_rate", "total")}
        found.append({"dial": dial, "lmbda": lmbda, **per_stream, **sums})
    return {key: sum(row[key] for row in found) / len(found) for key in found[0]}


def activity_levels(
    model: Model, images: Sequence[np.ndarray], dials: Sequence[float], bins: int = 6
) -> list[dict[str, float]]:
    """Compare a stream's first importance map with how busy luma is inside each 8 x 8 square.

    Returns:
        Rows of dial, activity (median standard deviation of a bin, grey levels), level (mean
        of L p, not rounded down) and positions; bins hold equally many positions.
    """
    rows = []
    for dial in dials:
        pairs = [_activity(model, image, dial) for image in images]
        activity, level = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        for part in np.array_split(np.argsort(activity, kind="stable"), bins):
            rows.append(
                {
                    "dial": dial,
                    "activity": float(np.median(activity[part])),
                    "level": float(level[part].mean()),
                    "positions": len(part),
                }
            )
    return rows


def _activity(model: Model, image: np.ndarray, dial: float) -> tuple[np.ndarray, np.ndarray]:
    h, w = (side // STRIDE for side in image.shape[:2])
    squares = luma(image)[: h * STRIDE, : w * STRIDE].reshape(h, STRIDE, w, STRIDE)
    key = model.config.streams[0]
    importance = decode(model, image, dial)[1].streams[key].importance[0, 0, :h, :w]
    return squares.std(axis=(1, 3)).ravel(), model.config.luma.levels * importance.numpy().ravel()


def map_bpp(model: Model, images: Sequence[np.ndarray], dial: float) -> float:
    """Return the mean estimated bits per pixel of the importance maps alone, adaptive streams only."""
    found = []
    for image in images:
        bits = 0.0
        for key, output in decode(model, image, dial)[1].streams.items():
            stream = model.streams[key]
            if stream.config.importance == "adaptive":
                with torch.no_grad():
                    bits += float(stream.level_model(output.level).sum()) * BITS_PER_NAT
        found.append(bits / (image.shape[0] * image.shape[1]))
    return float(np.mean(found))


def compare_decodes(
    model: Model, images: Mapping[str, np.ndarray], dials: Sequence[float]
) -> list[dict[str, Any]]:
    """Measure decodes with every metric of `mcml.metrics`: a row an image and dial.

    Returns:
        Rows of image, dial, estimated_bpp, estimated_bpp_<stream> and the metrics' columns.
    """
    rows = []
    for name, image in images.items():
        pixels = image.shape[0] * image.shape[1]
        for dial in dials:
            decoded, output = decode(model, image, dial)
            spent = {
                f"estimated_bpp_{k}": float(s.estimated_bits) / pixels for k, s in output.streams.items()
            }
            found = vars(metrics.compare(image, decoded))
            rows.append(
                {"image": name, "dial": dial, "estimated_bpp": float(output.estimated_bpp), **spent, **found}
            )
    return rows


@one_thread()
def measure(model: Model, images: Mapping[str, np.ndarray], dials: Sequence[float]) -> list[dict[str, Any]]:
    """Return `validate`'s rows and, of models of colour, the mean CIEDE2000 beside."""
    labs = {name: rgb_to_lab(image) for name, image in images.items()}
    rows = validate(model, list(images.values()), dials)
    for row in rows:
        decodes = {name: decode(model, image, row["dial"])[0] for name, image in images.items()}
        maps = [metrics.ciede2000_map(labs[name], rgb_to_lab(decoded)) for name, decoded in decodes.items()]
        row["ciede2000"] = float(np.mean([found.mean() for found in maps]))
    return rows


def measure_all(
    models: Mapping[str, Model], images: Mapping[str, np.ndarray], dials: Sequence[float], *, workers: int = 0
) -> list[dict[str, Any]]:
    """Return `measure`'s rows of several models, each with the model's name as `system`.

    Args:
        models: by name.
        images: (H, W, 3) uint8 by name.
        dials: values of b.
        workers: processes, 0 for as many as there are cores; 1 stays in this process.
    """
    measured = side_by_side([partial(measure, model, images, dials) for model in models.values()], workers)
    return [{"system": name, **row} for name, rows in zip(models, measured, strict=True) for row in rows]
