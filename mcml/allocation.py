"""How many colour bits go with luma's: one dial, tuned on photographs so that slopes are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mcml.context_model import ContextModel
from mcml.models import Model
from mcml.neural import analyse
from mcml.validation import to_tensor

# Mean square error over R, G, B that an error of 1 in Cb or Cr makes (JFIF), cross terms aside.
RGB_WEIGHT = {"Cb": (0.344136**2 + 1.772**2) / 3, "Cr": (1.402**2 + 0.714136**2) / 3}
COLOR_WEIGHT = 1.0  # how much more than that an error of colour counts


@torch.no_grad()
def curves(
    model: Model, contexts: Mapping[str, ContextModel], images: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Measure flat maps of every level; colour's rates beside wholly open luma, which is a little cheap.

    Returns:
        By stream, (L,) bits a pixel and (L,) mean square errors of the plane, of levels 0..L-1;
        means over images.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for image in images:
        pixels = image.shape[0] * image.shape[1]
        device = model.rate_slope.device
        planes = model.planes(to_tensor(image).to(device))
        states: list[Tensor] = []
        luma: Tensor | None = None
        for key, (bits, _) in analyse(model, image).items():
            stream, whole = model.streams[key], torch.from_numpy(bits)[None].float().to(device)
            logits, state = contexts[key](2 * whole - 1, None, states)
            states.append(state)
            nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, whole, reduction="none")
            spent = nats.sum(dim=(0, 1, 2)) / np.log(2) / pixels
            code = (2 * whole - 1).permute(0, 3, 1, 2)
            luma = code if key == "Y" else luma
            rates, errors = [], []
            for level in range(stream.config.levels):
                kept = stream.groups <= level + stream.config.keep_first
                borrowed = None
                if stream.decoder.luma is not None:
                    top = model.config.luma.levels - 1
                    share = round(level / (stream.config.levels - 1) * top) + model.config.luma.keep_first
                    seen = luma * (model.streams["Y"].groups <= share).float()[:, None, None]
                    borrowed = (
                        seen if model.config.fuse == "codes" else model.streams["Y"].decoder.features(seen)
                    )
                x_hat = stream.decoder(code * kept.float()[:, None, None], borrowed)
                x_hat = x_hat[..., : image.shape[0], : image.shape[1]].clamp(-0.5, 0.5)
                rates.append(float(spent[kept].sum()))
                errors.append(float((x_hat - planes[key]).square().mean()))
            rate, error = found.get(key, (0.0, 0.0))
            found[key] = (
                rate + np.array(rates) / len(images),
                error + np.array(errors) / len(images),
            )
    return found


def allocate(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]], color_weight: float = COLOR_WEIGHT
) -> np.ndarray:
    """Return (luma's L, 2) int32: the level x 256 of Cb and Cr that goes with each luma level.

    At each luma level colour gets the level that minimises its error plus luma's slope times its
    rate; never fewer bits as luma gets more.
    """
    rate, error = found["Y"]
    slopes = -np.gradient(np.minimum.accumulate(error), rate + 1e-9 * np.arange(len(rate)))
    slopes = np.minimum.accumulate(np.maximum(slopes, 0))
    columns = []
    for key in ("Cb", "Cr"):
        rate_c, error_c = found[key]
        fine = np.linspace(0, len(rate_c) - 1, 8 * (len(rate_c) - 1) + 1)
        rates, errors = (np.interp(fine, np.arange(len(v)), v) for v in (rate_c, error_c))
        weight = color_weight * RGB_WEIGHT[key]
        best = [fine[np.argmin(weight * errors + slope * rates)] for slope in slopes]
        columns.append(np.maximum.accumulate(np.round(256 * np.array(best))))
    table = np.stack(columns, axis=1).astype(np.int32)
    table[0] = 0
    return table
