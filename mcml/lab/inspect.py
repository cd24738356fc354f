"""What a model does to whole pictures: decodes, and figures of many models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mcml.lab.workers import one_thread, side_by_side
from mcml.metrics.color import rgb_to_lab, rgb_to_ycbcr, to_uint8, ycbcr_to_rgb
from mcml.metrics.distortion import ciede2000_map
from mcml.model import model_files, weights
from mcml.model.model import Model, ModelOutput
from mcml.model.validate import measure_output, to_tensor


def released_models(*streams: str, quantizer: str) -> dict[str, Model]:
    """Return the released models of a quantizer that have all of `streams`, by name; none if none are."""
    folder, models = model_files.released_folder(), dict[str, Model]()
    for name in model_files.released():
        config, _ = weights.load_config(folder / name)
        if config.quantizer == quantizer and set(streams) <= set(config.streams):
            models[name] = weights.load(name)
    return models


def decode(model: Model, image: np.ndarray, dial: float) -> tuple[np.ndarray, ModelOutput]:
    """Encode and decode one picture.

    Returns:
        The decode, (H, W, 3) uint8 (grey for the luma variant), and all that came with it.
    """
    with torch.no_grad():
        output = model.eval()(to_tensor(image), dial)
    return to_uint8(255 * output.x_hat[0].permute(1, 2, 0).numpy()), output


def chroma_only(image: np.ndarray) -> np.ndarray:
    """Return a picture's colours at mid luma: (H, W, 3) uint8 to the same."""
    ycbcr = rgb_to_ycbcr(image)
    ycbcr[..., 0] = 128
    return to_uint8(ycbcr_to_rgb(ycbcr))


@one_thread()
def measure(model: Model, images: Mapping[str, np.ndarray], dials: Sequence[float]) -> list[dict[str, Any]]:
    """Encode and decode whole pictures: means over images by dial.

    Args:
        model: any variant.
        images: (H, W, 3) uint8 by name.
        dials: values of b.

    Returns:
        Rows of dial, `validate`'s columns and ciede2000 (of the luma variant: against its grey decode).
    """
    labs = {name: rgb_to_lab(image) for name, image in images.items()}
    rows = []
    for dial in dials:
        figures = []
        for name, image in images.items():
            decoded, output = decode(model, image, dial)
            difference = ciede2000_map(labs[name], rgb_to_lab(decoded))
            own = measure_output(model, to_tensor(image), output)
            figures.append(own | {"ciede2000": float(difference.mean())})
        rows.append({"dial": dial} | {k: float(np.mean([f[k] for f in figures])) for k in figures[0]})
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
