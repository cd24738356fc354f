"""The patient encoder: a search over a picture's latents with decoder and prior in the loop.

Stochastic Gumbel annealing (Yang, Bamler & Mandt, "Improving Inference for Neural Image Compression", NeurIPS
2020): symbols are drawn from the two whole numbers beside each latent, ever nearer to plain rounding, and the
gradient of what training descends moves the latents of all streams. The odds are the scaled logits of
Perugachi-Diaz et al., "Robustly Overfitting Latents for Flexible Neural Image Compression", NeurIPS 2024.
Files are written and read as always.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.base.errors import UsageError
from mcml.codec import prior
from mcml.codec.interface import encode_at_bpp
from mcml.codec.latents import Latents, hyper_of
from mcml.codec.learned import LearnedCodec, pixels_of, with_halo
from mcml.model.model import Model, pad_to_multiple
from mcml.model.perceptual import DISTORTIONS, MS_SIDE_PX, RGB_SHARES, mixed
from mcml.model.scalar import ScalarStream, bounded, bounded_input, lmbda_of, logistic_bits
from mcml.model.settings import LossConfig
from mcml.model.validate import to_tensor

STEPS = 150
BEFORE = 0.7  # share of the steps before the dial is corrected, since files have become smaller
LR = 0.02  # Adam's, in steps of the quantizer; a cosine takes it to a tenth
TEMPERATURES = (0.5, 0.2)  # at the first and the last step
SHARPNESS = 2.3  # of the odds: 1 would draw each number by the distance from the other
BETAS = (0.9, 0.99)
EDGE = 1e-4  # a latent's least distance from whole numbers, where odds have no slope


class Dialled(NamedTuple):
    """A stream at a dial: its networks, gains and their inverse (1, n, 1, 1), dial (1,), lambda."""

    networks: ScalarStream
    gain: Tensor
    inverse: Tensor
    dial: Tensor
    lmbda: float


def refined_encoder(
    codec: LearnedCodec, image: np.ndarray, *, quality: float | None = None, target_bpp: float = 0.3,
    color_share: float | None = None, steps: int = STEPS, progress: Callable[[float], None] = lambda _: None,
) -> Callable[[float], bytes]:  # fmt: skip
    """Search for the latents of an image; return what compresses them, best near the quality given.

    Args:
        codec: of scalar latents.
        image: (H, W, 3) uint8 sRGB.
        quality: for which latents are refined; by default that of files of `target_bpp`.
        target_bpp: bits per pixel.
        color_share: see `LatentCoder.write`.
        steps: of the search, on each tile.
        progress: called with the share that is done.

    Raises:
        UsageError: for a codec of binary codes.
    """
    if not codec.scalar:
        raise UsageError(f"{codec.name}: codes bits, and only scalar latents can be searched for")
    analysis, options = codec.analyse(image), {"color_share": color_share}

    def encode(quality: float) -> bytes:
        return codec.pack(analysis, quality, **options).data

    parts = [steps] if quality is not None else [round(BEFORE * steps), steps - round(BEFORE * steps)]
    for done, count in zip((0, parts[0]), parts, strict=False):
        wanted = quality
        if wanted is None:
            wanted = encode_at_bpp(codec, image, target_bpp, encoder=encode).quality

        def show(share: float, done: int = done, count: int = count) -> None:
            progress((done + share * count) / steps)

        analysis = refine(codec, image, analysis, wanted, color_share=color_share, steps=count, progress=show)
        options["rounding"] = 0.0  # the search has weighed bits already
    return encode


def refine(
    codec: LearnedCodec, image: np.ndarray, analysis: Latents, quality: float, *,
    color_share: float | None = None, steps: int = STEPS, progress: Callable[[float], None] = lambda _: None,
) -> Latents:  # fmt: skip
    """Return an analysis whose latents fit a quality better, tile after tile; the one given stays.

    Args:
        codec, image, analysis: the image's analysis by the codec.
        quality, color_share: see `LatentCoder.write`.
        steps: of the search, on each tile.
        progress: called with the share that is done.
    """
    began = time.perf_counter()
    model = copy.deepcopy(codec.model).cpu().requires_grad_(False).to(memory_format=torch.channels_last)
    loss = LossConfig().changed(**codec.config.get("record", {}).get("recipe", {}).get("loss", {}))
    streams = {}
    for (key, own), dial in zip(
        codec.coder.priors.items(), codec.coder.dials(quality, color_share), strict=True
    ):
        gain = prior.power_of_two(own.log_gains(dial), prior.LOG_BITS) * 2.0**-prior.LOG_BITS
        inverse = own.inverse(dial) * 2.0**-prior.INVERSE_BITS
        value = torch.tensor([prior.dial_of(dial)], dtype=torch.float32)
        gains = (torch.from_numpy(of.astype(np.float32)).view(1, -1, 1, 1) for of in (gain, inverse))
        streams[key] = Dialled(model.streams[key], *gains, value.clamp(0, 1), float(lmbda_of(value)))
    refined = replace(
        analysis,
        latents={key: own.copy() for key, own in analysis.latents.items()},
        hyper={key: own.copy() for key, own in analysis.hyper.items()},
    )
    header = codec.header(analysis)
    tiles = header.tiles()
    for number, tile in enumerate(tiles):
        window, inside = with_halo(tile, header.grid)
        found = _search(
            model, streams, loss, to_tensor(np.ascontiguousarray(image[pixels_of(window)])), inside,
            {key: _batch(latents[window]) for key, latents in refined.latents.items()},
            steps, lambda share, number=number: progress((number + share) / len(tiles)),
        )  # fmt: skip
        for key, latents in found["latents"].items():
            refined.latents[key][tile] = latents[0].permute(1, 2, 0).numpy()
        for key, latents in found["hyper"].items():
            symbols = latents[0].permute(1, 2, 0).round().clamp(-prior.HYPER_MAX, prior.HYPER_MAX)
            refined.hyper[key][hyper_of(tile)] = symbols.numpy().astype(np.int8)
    refined.seconds += time.perf_counter() - began
    return refined


def _batch(values: np.ndarray) -> Tensor:
    """Return (h, w, n) as (1, n, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32))


def _search(
    model: Model, streams: Mapping[str, Dialled], loss: LossConfig, rgb: Tensor, inside: tuple[slice, ...],
    latents: Mapping[str, Tensor], steps: int, progress: Callable[[float], None],
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """Refine the latents inside a tile, given those around it, and what the hyperprior rounds.

    Args:
        model: the networks.
        streams: at their dials.
        loss: training's.
        rgb: (1, 3, H, W), the tile and what its networks see around it.
        inside: the tile's rows and columns of positions.
        latents: by stream, (1, n, h, w) of all that.
        steps: of the search.
        progress: called with the share that is done.
    """
    (y, x), generator = inside, torch.Generator().manual_seed(0)
    padded, (height, width) = pad_to_multiple(rgb, STRIDE)
    planes = {key: plane[..., :height, :width] for key, plane in model.planes(padded).items()}
    original, pixels = model.join(planes), height * width
    seen = [name for name in DISTORTIONS if getattr(loss, name)]
    if min(height, width) < MS_SIDE_PX:
        seen = [name for name in seen if name != "dissimilarity"]
    scaled = {key: latents[key] * own.gain for key, own in streams.items()}
    around = {key: scaled[key].round() * own.inverse for key, own in streams.items()}
    free = {key: of[..., y, x].clone(memory_format=torch.channels_last) for key, of in scaled.items()}
    below = {
        key: own.networks.hyperprior.analysis(latents[key])[(..., *hyper_of(inside))].clone()
        for key, own in streams.items()
        if own.networks.hyperprior is not None
    }
    moved = [*free.values(), *below.values()]
    optimizer = torch.optim.Adam([of.requires_grad_() for of in moved], LR, BETAS)
    for step in range(steps):
        share = step / steps
        temperature = TEMPERATURES[0] + (TEMPERATURES[1] - TEMPERATURES[0]) * share
        for group in optimizer.param_groups:
            group["lr"] = LR * (0.55 + 0.45 * math.cos(math.pi * share))
        bits, errors = torch.zeros(1), torch.zeros(1)
        code, x_hat = dict[str, Tensor](), dict[str, Tensor]()
        with torch.autocast("cpu", torch.bfloat16, enabled=_has_fast_bf16()):
            for key, own in streams.items():
                networks, colored = own.networks, key in ("Cb", "Cr")
                symbols = drawn(free[key], temperature, generator)
                code[key], side = symbols * own.inverse, None
                if key in below:
                    hyper, prior_of = drawn(below[key], temperature, generator), networks.hyperprior
                    bits = bits + prior_of.bits(hyper)
                    side = prior_of.synthesis(hyper)[..., : symbols.shape[-2], : symbols.shape[-1]]
                elif networks.side is not None:
                    side = bounded(
                        networks.side(bounded_input(torch.cat([code[k] for k in networks.known], 1)))
                    )
                mean, log_scale = networks.prior(code[key], side, own.dial)
                cost = logistic_bits(symbols, mean * own.gain, log_scale + own.gain.log())
                bits = bits + cost.sum((1, 2, 3))
                around[key] = around[key].detach().clone()
                around[key][..., y, x] = code[key]
                whole = networks.decode(around[key], own.dial, around["Y"] if colored else None)
                x_hat[key] = whole[..., :height, :width].float()
                weight = RGB_SHARES[key] * (loss.gamma if colored else 1) * own.lmbda
                errors = errors + weight * (255 * (x_hat[key] - planes[key])).square().mean((1, 2, 3))
        decoded = model.join(x_hat) if seen else None
        distortion = mixed(errors, {name: DISTORTIONS[name](original, decoded) for name in seen}, loss)
        optimizer.zero_grad()
        (bits / pixels + distortion).sum().backward()
        optimizer.step()
        progress((step + 1) / steps)
    found = {key: of.detach() / streams[key].gain for key, of in free.items()}
    return {"latents": found, "hyper": {key: of.detach() for key, of in below.items()}}


def drawn(scaled: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw between the whole numbers beside scaled latents: the nearer to one of them, the cooler."""
    low = scaled.detach().floor()
    odds = SHARPNESS * torch.logit(scaled - low, EDGE) / temperature
    noise = torch.logit(torch.rand(scaled.shape, generator=generator), EDGE)
    return low + torch.sigmoid((odds + noise) / temperature)


def _has_fast_bf16() -> bool:
    """Return whether this machine multiplies matrices of bfloat16; elsewhere float32 is faster."""
    return torch.cpu._is_amx_tile_supported()
