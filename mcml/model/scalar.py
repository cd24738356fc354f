"""Scalar latents in place of bits and importance map, and the prior that says what they cost.

METHOD's step after the poster: latents y on the stride-8 grid, a gain a channel for each dial, symbols
s = round(y g), and for the decoder s / g and the dial. Symbols are logistic about a mean predicted in four
steps from what is decoded already: a Latin square over four groups of channels and four lattices of
positions (the quadtree order of DCVC-DC, Li et al. 2023). What else the prior knows comes from a hyperprior
(Balle et al. 2018) or, for colour, from the streams before. Its networks are such that whole numbers can
stand for them (Balle, Johnston & Minnen 2019): convolutions, ReLU bounded above, bounded inputs, no division.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcml.base import STRIDE
from mcml.model.networks import Decoder, Encoder, FusionDecoder
from mcml.model.settings import StreamConfig

ANCHORS = 8  # dials that have gains of their own; between them gains are interpolated geometrically
LMBDA = (0.0002, 0.05)  # at dial 0 and 1: weight of squared errors in grey levels against bits a pixel
ORDER = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1))  # step of a group (row) at a lattice
HYPER_CHANNELS, HYPER_STRIDE = 32, 4
WINDOW_HALO = 4  # positions of an encoder's window beyond those that are taken from it
LARGEST = 16.0  # of the prior's features; of its inputs twice that
LOG_SCALES = (-6.0, 8.0)


class StreamOutput(NamedTuple):
    """What one stream sends and shows; h = H/8, w = W/8, H and W after padding."""

    x_hat: Tensor | None  # (B, C, H, W) of the input's size, about [-0.5, 0.5]; None if not asked for
    estimated_bits: Tensor  # (B,) of an ideal coder with the stream's own context model or prior
    code: Tensor  # (B, n, h, w) for decoders: masked bits in {-1, 0, +1}, or latents as s / g
    bits: Tensor | None = None  # binary: (B, n, h, w) in {0, 1}
    importance: Tensor | None = None  # (B, 1, h, w) p in (0, 1); the dial's everywhere if the map is uniform
    level: Tensor | None = None  # (B, h, w) int64, Q in 0..L-1
    mask: Tensor | None = None  # (B, n, h, w) in {0, 1}
    symbols: Tensor | None = None  # scalar: (B, n, h, w) whole numbers


def lmbda_of(dial: Tensor) -> Tensor:
    """Return lambda of dials in 0..1, in the loss lambda * squared error + bits a pixel: any shape."""
    return LMBDA[0] * torch.exp(dial * math.log(LMBDA[1] / LMBDA[0]))


def logistic_bits(symbols: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the ideal bits of each symbol: -log2 of a logistic's mass within 1/2 of it; any one shape.

    With d = |s - mean| and r = 1 / scale the mass is
    sigmoid(r (1/2 - d)) sigmoid(r (1/2 + d)) (1 - exp(-r)), whose logarithm has a slope however large d is.
    """
    distance = (symbols - mean).abs()
    rate = torch.exp(-functional.hardtanh(log_scale, *LOG_SCALES))
    tails = functional.softplus(rate * (distance - 0.5)) + functional.softplus(-rate * (distance + 0.5))
    return (tails - torch.log(-torch.expm1(-rate))) / math.log(2)


def anchor_shares(dial: Tensor) -> Tensor:
    """Return the weights (B, 8) with which dials (B,) in 0..1 mix what belongs to the anchors."""
    anchors = torch.arange(ANCHORS, device=dial.device)
    return (1 - (dial.clamp(0, 1)[:, None] * (ANCHORS - 1) - anchors).abs()).clamp(min=0)


def bounded(x: Tensor) -> Tensor:
    """ReLU that ends at `LARGEST`, so that whole numbers of known size can stand for it."""
    return functional.hardtanh(x, 0.0, LARGEST)  # clamp's values; its backward pass is one operation


def bounded_input(x: Tensor) -> Tensor:
    """Keep what the prior's networks see within twice `LARGEST`."""
    return functional.hardtanh(x, -2 * LARGEST, 2 * LARGEST)


def round_through(x: Tensor) -> Tensor:
    """Round to whole numbers; the gradient is that of the identity."""
    return x + (x.round() - x).detach()


class Hyperprior(nn.Module):
    """Side information of a stream's own: 32 whole numbers for each 4 x 4 positions."""

    def __init__(self, code_channels: int, width: int) -> None:
        super().__init__()
        z = HYPER_CHANNELS
        self.analysis = nn.Sequential(
            nn.Conv2d(code_channels, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, z, 3, stride=2, padding=1),
        )  # fmt: skip
        self.expand, self.refine = nn.Conv2d(z, 4 * width, 3, padding=1), nn.Conv2d(width, 4 * width, 1)
        self.mean, self.log_scale = nn.Parameter(torch.zeros(z)), nn.Parameter(torch.zeros(z))

    def forward(self, latents: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return features (B, width, h, w) and bits (B,) for latents (B, n, h, w); noise: `noise_shapes`."""
        z = self.analysis(latents).float()
        symbols = z.round() if noise is None else z + noise
        features = self.synthesis(round_through(z))
        return features[..., : latents.shape[-2], : latents.shape[-1]], self.bits(symbols)

    def bits(self, symbols: Tensor) -> Tensor:
        """Return the ideal bits (B,) of symbols (B, 32, h / 4, w / 4), whole or with noise."""
        spent = logistic_bits(symbols, self.mean.view(1, -1, 1, 1), self.log_scale.view(1, -1, 1, 1))
        return spent.sum((1, 2, 3))

    def synthesis(self, symbols: Tensor) -> Tensor:
        """Map whole numbers (B, 32, h / 4, w / 4) to features (B, width, h, w), sides multiples of 4."""
        x = bounded(functional.pixel_shuffle(self.expand(bounded_input(symbols)), 2))
        return bounded(functional.pixel_shuffle(self.refine(x), 2))


class QuadtreePrior(nn.Module):
    """Mean and scale of every latent from the latents of earlier steps and from side features."""

    def __init__(self, code_channels: int, width: int, steps: int, sides: bool = True) -> None:
        """Build for 1, 2 or 4 steps, with `width` side features unless `sides` is False."""
        super().__init__()
        n, always = code_channels, 1 + sides * width
        inputs = [always] + (steps - 1) * [width + always]  # the first step sees no latents
        self.near = nn.ModuleList(nn.Conv2d(n, width, 3, padding=1) for _ in inputs[1:])
        self.mix = nn.ModuleList(nn.Conv2d(seen, 2 * width, 1) for seen in inputs)
        self.last = nn.ModuleList(nn.Conv2d(2 * width, 2 * n, 1) for _ in inputs)
        for layer in self.last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            nn.init.constant_(layer.bias[n:], -0.7)  # a latent's standard deviation is about 1
        order = torch.tensor(ORDER)[torch.arange(n) * 4 // n] // (4 // steps)  # (n, 4) at the four lattices
        self.register_buffer("order", order.view(n, 2, 2), persistent=False)

    def step_of(self, height: int, width: int) -> Tensor:
        """Return the step that codes each latent, (n, height, width) from 0."""
        return self.order.repeat(1, -(-height // 2), -(-width // 2))[:, :height, :width]

    def forward(self, code: Tensor, side: Tensor | None, dial: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales (B, n, h, w) of latents, in their unit.

        From the latents as decoders know them (B, n, h, w), side features (B, width, h, w) and dials (B,).
        """
        step_of = self.step_of(*code.shape[-2:])
        code = bounded_input(code)
        always = dial.view(-1, 1, 1, 1).expand(-1, 1, *code.shape[-2:])
        if side is not None:
            always = torch.cat([side, always.to(side.dtype)], 1)
        found = torch.zeros_like(torch.cat([code, code], 1))
        for step, last in enumerate(self.last):
            seen = [bounded(self.near[step - 1](code * (step_of < step))).to(always.dtype)] if step else []
            hidden = bounded(self.mix[step](torch.cat([*seen, always], 1)))
            found = torch.where((step_of == step).repeat(2, 1, 1), last(hidden).float(), found)
        mean, log_scale = found.chunk(2, 1)
        return mean, log_scale


class ScalarStream(nn.Module):
    """One plane's encoder, gains, prior and decoder."""

    def __init__(
        self,
        config: StreamConfig,
        channels: int = 1,
        *,
        luma: int = 0,
        known: Mapping[str, int] | None = None,
    ) -> None:
        """Build; the decoder sees `luma` latents if there are any, the prior so many of `known` streams."""
        super().__init__()
        self.config, n, self.known = config, config.code_channels, tuple(known or ())
        self.window = 0  # side in positions; 0: pictures as a whole
        size = channels, config.width, n, config.groups, config.blocks
        self.encoder = Encoder(*size, quantizer="scalar")
        self.log_gain = nn.Parameter(torch.zeros(ANCHORS, n))
        fused = {"luma": luma} if luma else {}
        self.decoder = (FusionDecoder if luma else Decoder)(*size, quantizer="scalar", **fused)
        self.decoder.entry = nn.Conv2d(n + ANCHORS, config.width, 3, padding=1)
        seen = sum((known or {}).values())
        self.side = nn.Conv2d(seen, config.prior_width, 3, padding=1) if known else None
        has_hyperprior = config.hyperprior and not known
        self.hyperprior = Hyperprior(n, config.prior_width) if has_hyperprior else None
        self.prior = QuadtreePrior(n, config.prior_width, config.prior_steps, bool(known) or has_hyperprior)

    @property
    def noise_parts(self) -> tuple[str, ...]:
        """Return what takes noise in training."""
        return ("latents",) if self.hyperprior is None else ("latents", "hyperprior")

    def noise_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return channels, rows and columns of each of `noise_parts` for (height, width) positions."""
        small = (HYPER_CHANNELS, -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE))
        return dict(zip(self.noise_parts, [(self.config.code_channels, height, width), small], strict=False))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return what decides symbols, what decides the hyperprior's, what prices them, and the decoder."""
        analysis = [] if self.hyperprior is None else list(self.hyperprior.analysis.parameters())
        parts = {"encoder": [*self.encoder.parameters(), self.log_gain], "analysis": analysis}
        parts["decoder"] = list(self.decoder.parameters())
        others = {id(p) for part in parts.values() for p in part}
        return parts | {"prior": [p for p in self.parameters() if id(p) not in others]}

    def analysis(self, plane: Tensor) -> Tensor:
        """Map a plane (B, C, 8 h, 8 w) to latents (B, n, h, w), by windows if there are any, before gains.

        Encoders trained on small patches see their borders from everywhere. Far from any, in large pictures,
        their latents drift, which costs 4 to 17 % of the bits: so they get windows of their patches' size.
        """
        height, width = (side // STRIDE for side in plane.shape[-2:])
        if not self.window or max(height, width) <= self.window:
            return self.encoder(plane)[1]
        latents = plane.new_empty(len(plane), self.config.code_channels, height, width)
        for (y, rows), (x, columns) in product(*(self._windows(side) for side in (height, width))):
            pixels = (slice(STRIDE * s.start, STRIDE * s.stop) for s in (y, x))
            found = self.encoder(plane[(..., *pixels)])[1]
            latents[..., rows, columns] = found[
                ...,
                rows.start - y.start : rows.stop - y.start,
                columns.start - x.start : columns.stop - x.start,
            ]
        return latents

    def _windows(self, side: int) -> list[tuple[slice, slice]]:
        """Return windows of so many positions, and what is taken from each."""
        step, found = self.window - 2 * WINDOW_HALO, []
        for start in range(0, side, step):
            begin, stop = max(0, min(start - WINDOW_HALO, side - self.window)), min(start + step, side)
            end = min(side, max(stop + WINDOW_HALO, begin + self.window))
            found.append((slice(begin, end), slice(start, stop)))
        return found

    def encoder_learns(self) -> bool:
        """Return whether any weight before the rounding is being trained."""
        return self.log_gain.requires_grad or any(p.requires_grad for p in self.encoder.parameters())

    def gain(self, dial: Tensor) -> Tensor:
        """Return g (B, n, 1, 1) of dials (B,) in 0..1."""
        return torch.exp((anchor_shares(dial)[:, :, None] * self.log_gain).sum(1))[:, :, None, None]

    def decode(self, code: Tensor, dial: Tensor, luma: Tensor | None = None) -> Tensor:
        """Map latents (B, n, h, w) of a dial (B,), and luma's where they are fused, to (B, C, 8 h, 8 w)."""
        shares = anchor_shares(dial)[:, :, None, None].expand(-1, -1, *code.shape[-2:])
        return self.decoder(torch.cat([code, shares], 1), luma)

    def forward(
        self, plane: Tensor, dial: Tensor, before: Mapping[str, Tensor], *, decode: bool = True,
        estimate: bool = True, noise: Mapping[str, Tensor] | None = None,
    ) -> StreamOutput:  # fmt: skip
        """Encode, round and decode a plane (B, C, 8 h, 8 w) at a dial (B,), given earlier streams' codes.

        No gradient passes to those. The other arguments are those of `Model.forward`; the decoder sees
        rounded latents in any case, with the identity's gradient.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_learns()):
            latents, gain = self.analysis(plane), self.gain(dial)
            scaled = latents * gain
            rounded = round_through(scaled)
        code = rounded / gain
        others = {key: code.detach() for key, code in before.items()}
        spent = torch.zeros(len(plane), device=plane.device)
        if estimate:
            noise, side = noise or {}, None
            if self.hyperprior is not None:
                side, spent = self.hyperprior(latents, noise.get("hyperprior"))
            elif self.side is not None:
                side = bounded(self.side(bounded_input(torch.cat([others[key] for key in self.known], 1))))
            mean, log_scale = self.prior(code, side, dial)
            symbols = scaled + noise["latents"] if noise else rounded
            bits = logistic_bits(symbols, mean * gain, log_scale + gain.log())
            spent = spent + bits.sum((1, 2, 3))
        x_hat = self.decode(code, dial, others.get("Y")) if decode else None
        return StreamOutput(x_hat, spent, code, symbols=rounded.detach())
