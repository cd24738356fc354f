"""The variants: luma, independent, fusion (the poster) and rgb, of one or three streams.

An image's way, as `Model.forward` goes it: `Model.planes` -> `Stream.encode` (bits and importance logit)
-> `Stream.mask` at a dial, `masked_bits` (the code, which codec/ writes to a file) -> `Stream.decoder` ->
`Model.join`. Scalar streams (scalar.py) have latents for bits and a gain for the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mcml.base import STRIDE
from mcml.base.errors import UsageError
from mcml.metrics.color import RGB_TO_YCBCR, YCBCR_TO_RGB
from mcml.model.networks import Decoder, Encoder, FusionDecoder, ImportanceHead
from mcml.model.quantization import binarize, channel_groups, importance_levels, masked_bits, nested_mask
from mcml.model.rate import BITS_PER_NAT, BitModel, LevelModel, bits_of
from mcml.model.scalar import ScalarStream, StreamOutput, lmbda_of
from mcml.model.settings import ModelConfig, StreamConfig


class ModelOutput(NamedTuple):
    """Decoded image (B, 3, H, W) RGB in about [0, 1], streams by key, rate (B,) in bits a pixel.

    `x_hat` is None unless every stream was decoded; the `luma` variant gives grey.
    """

    x_hat: Tensor | None
    streams: dict[str, StreamOutput]
    estimated_bpp: Tensor


class Stream(nn.Module):
    """One plane's encoder, compression module, decoder and context models."""

    def __init__(
        self, config: StreamConfig, channels: int = 1, *, luma_bits: int = 0, fused: bool = False
    ) -> None:
        """Build; a colour stream's context model sees `luma_bits`, and if it is fused so does its decoder."""
        super().__init__()
        self.config = config
        size = channels, config.width, config.code_channels, config.groups, config.blocks
        self.encoder = Encoder(*size)
        self.importance = ImportanceHead(config.width) if config.importance == "adaptive" else None
        self.decoder = FusionDecoder(*size, luma=luma_bits) if fused else Decoder(*size)
        self.register_buffer("groups", channel_groups(config.even_groups()))
        # Coded bits a position with every group open, and their ratio to the first stream's.
        self.register_buffer("full_bits", torch.tensor(float(config.code_channels)))
        self.register_buffer("rate_weight", torch.tensor(1.0))
        self.bit_model = BitModel(self.groups, config.levels, luma_bits)
        self.level_model = LevelModel(config.levels)

    def set_groups(self, sizes: Sequence[int]) -> None:
        """Give the nested code other group sizes; they must sum to its channels."""
        if len(sizes) != self.config.levels - 1 or sum(sizes) != self.config.code_channels:
            raise UsageError(
                f"{len(sizes)} groups of {sum(sizes)} bits: expected {self.config.levels - 1} groups "
                f"of {self.config.code_channels}"
            )
        self.groups.copy_(channel_groups(sizes))
        self.bit_model.set_groups(self.groups)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.bit_model.set_groups(self.groups)  # their masks are not stored

    def encoder_learns(self) -> bool:
        """Return whether any weight before the binarizer is being trained."""
        heads = [self.encoder] if self.importance is None else [self.encoder, self.importance]
        return any(p.requires_grad for head in heads for p in head.parameters())

    def encode(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) in [-0.5, 0.5], sides multiples of 8, to bits and importance logit (0 if uniform).

        Bits are (B, n, h, w) in {0, 1}, the logit is (B, 1, h, w).
        """
        features, e = self.encoder(plane)
        logit = torch.zeros_like(e[:, :1]) if self.importance is None else self.importance(features)
        return binarize(e), logit

    def mask(self, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Return levels (B, h, w) and mask (B, n, h, w) of an importance map p (B, 1, h, w)."""
        levels = self.config.levels
        return importance_levels(importance, levels).squeeze(1), nested_mask(importance, self.groups, levels)

    def estimated_bits(self, bits: Tensor, level: Tensor, mask: Tensor, other: Tensor | None) -> Tensor:
        """Return the ideal code length (B,) in bits; gradients reach the context models only."""
        bits, mask = bits.detach(), mask.detach()
        logits = self.bit_model(masked_bits(bits, mask), level, other)
        total = bits_of(logits, bits, mask)
        if self.config.importance == "adaptive":
            total = total + self.level_model(level).sum(dim=(1, 2)) * BITS_PER_NAT
        return total

    def forward(
        self, plane: Tensor, dial: Tensor, before: Mapping[str, Tensor], *, decode: bool = True,
        estimate: bool = True, uniform: Tensor | None = None,
    ) -> StreamOutput:  # fmt: skip
        """Encode, mask and decode a plane (B, C, 8 h, 8 w) at a dial (B,), given the codes of streams before.

        The other arguments are those of `Model.forward`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_learns()):
            bits, logit = self.encode(plane)
            if uniform is not None:
                logit = torch.where(uniform.view(-1, 1, 1, 1), 0.0, logit)
            importance = torch.sigmoid(logit + dial.view(-1, 1, 1, 1))
            level, mask = self.mask(importance)
        code, luma = masked_bits(bits, mask), before.get("Y")
        spent = torch.zeros(len(plane), device=plane.device)
        if estimate:
            spent = self.estimated_bits(bits, level, mask, None if luma is None else luma.detach())
        x_hat = self.decoder(code, luma) if decode else None
        return StreamOutput(x_hat, spent, code, bits, importance, level, mask)


class Model(nn.Module):
    """RGB image -> streams -> RGB image.

    rgb -- YCbCr --+-- Y ---- encoder - binarizer * mask(importance + dial) --+-- decoder ---------- Y^
                   +-- Cb --- encoder - binarizer * mask -- concatenation <---+-- fusion decoder --- Cb^
                   +-- Cr --- encoder - binarizer * mask -- concatenation <---+-- fusion decoder --- Cr^
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.streams = nn.ModuleDict()
        for key in config.streams:
            settings, channels = config.stream(key), 3 if key == "RGB" else 1
            luma = config.luma.code_channels if key in ("Cb", "Cr") else 0
            fused = config.variant == "fusion" and luma > 0
            if config.quantizer == "binary":
                stream = Stream(settings, channels, luma_bits=luma, fused=fused)
            else:
                known = {other: config.stream(other).code_channels for other in config.known_to(key)}
                stream = ScalarStream(settings, channels, luma=luma if fused else 0, known=known)
            self.streams[key] = stream
        # lambda(p) = scale exp(-decay p), in the loss's units; a training run's start sets it.
        self.register_buffer("rate_slope", torch.tensor([11.0, 1.0]))
        self.register_buffer("to_ycbcr", torch.tensor(RGB_TO_YCBCR, dtype=torch.float32), persistent=False)
        self.register_buffer("to_rgb", torch.tensor(YCBCR_TO_RGB, dtype=torch.float32), persistent=False)

    def lmbda(self, dial: Tensor) -> Tensor:
        """Return the weight that belongs to a dial, (B,) to (B,): binary, the rate's; scalar, the error's."""
        if self.config.quantizer == "scalar":
            return lmbda_of(dial)
        return self.rate_slope[0] * torch.exp(-self.rate_slope[1] * torch.sigmoid(dial))

    def planes(self, rgb: Tensor) -> dict[str, Tensor]:
        """Split (B, 3, H, W) RGB in [0, 1] into planes (B, C, H, W) in [-0.5, 0.5] by stream."""
        if self.config.variant == "rgb":
            return {"RGB": rgb - 0.5}
        ycbcr = _mix(self.to_ycbcr, rgb)
        return {
            key: ycbcr[:, i : i + 1] - (0.5 if key == "Y" else 0.0)  # chroma is centred as it is
            for i, key in enumerate(("Y", "Cb", "Cr"))
            if key in self.config.streams
        }

    def join(self, planes: Mapping[str, Tensor]) -> Tensor:
        """Invert `planes`, unclipped; without colour planes the image is grey."""
        if "RGB" in planes:
            return planes["RGB"] + 0.5
        luma = planes["Y"] + 0.5
        if "Cb" not in planes:
            return luma.expand(-1, 3, -1, -1)
        ycbcr = torch.cat([luma, planes["Cb"], planes["Cr"]], dim=1)
        return _mix(self.to_rgb, ycbcr)

    def forward(
        self, rgb: Tensor, dial: Tensor | float | Mapping[str, Tensor | float], *,
        decode: Sequence[str] | None = None, estimate: bool | Sequence[str] = True,
        uniform: Tensor | None = None, noise: Mapping[str, Tensor] | None = None,
    ) -> ModelOutput:  # fmt: skip
        """Encode, quantise and decode.

        Args:
            rgb: (B, 3, H, W) in [0, 1], any size.
            dial: one number or (B,), of all streams or by stream; larger spends more bits. Binary: b, within
                -3..3; scalar: q in 0..1.
            decode: stream keys to decode, all by default; the others give codes only.
            estimate: whether to estimate rates, or the stream keys for which to; without, `estimated_bits`
                is zero and context models and priors have no work.
            uniform: binary: (B,) true where all maps are the dial's level everywhere.
            noise: scalar: in -0.5..0.5 by `noise_shapes`, in place of rounding where rates are estimated.
        """
        padded, size = pad_to_multiple(rgb, STRIDE)
        decode = self.config.streams if decode is None else decode
        outputs: dict[str, StreamOutput] = {}
        codes: dict[str, Tensor] = {}
        for key, plane in self.planes(padded).items():
            own = dial[key] if isinstance(dial, Mapping) else dial
            own = torch.as_tensor(own, dtype=torch.float32, device=rgb.device).expand(len(rgb))
            wanted = estimate if isinstance(estimate, bool) else key in estimate
            given: dict[str, Any] = {"decode": key in decode, "estimate": wanted}
            if self.config.quantizer == "binary":
                given["uniform"] = uniform
            elif noise is not None:
                given["noise"] = {part: noise[f"{key}.{part}"] for part in self.streams[key].noise_parts}
            output = self.streams[key](plane, own, codes, **given)
            codes[key] = output.code
            if key in decode:
                output = output._replace(x_hat=output.x_hat[..., : size[0], : size[1]])
            outputs[key] = output
        whole = all(output.x_hat is not None for output in outputs.values())
        image = self.join({key: output.x_hat for key, output in outputs.items()}) if whole else None
        total = torch.stack([output.estimated_bits for output in outputs.values()]).sum(0)
        return ModelOutput(image, outputs, total / (size[0] * size[1]))

    def noise_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Return what `forward` takes as noise for (height, width) pixels: channels, rows, columns."""
        shapes = {}
        for key, stream in self.streams.items():
            for part, shape in stream.noise_shapes(-(-height // STRIDE), -(-width // STRIDE)).items():
                shapes[f"{key}.{part}"] = shape
        return shapes


def _mix(matrix: Tensor, image: Tensor) -> Tensor:
    """Multiply each pixel of (B, 3, H, W) by a (3, 3) matrix, in the image's own precision."""
    with torch.autocast(image.device.type, enabled=False):
        return torch.einsum("kc,bchw->bkhw", matrix.to(image.dtype), image)


def build(config: ModelConfig, seed: int = 0) -> Model:
    """Return a model with PyTorch's default random weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model(config)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Extend (B, C, H, W) at right and bottom by reflection, to and fro if need be; also return (H, W)."""
    height, width = x.shape[-2:]
    for axis, side in ((-2, height), (-1, width)):
        wanted = -(-side // multiple) * multiple
        if wanted != side:
            position = torch.arange(wanted, device=x.device) % max(2 * side - 2, 1)
            index = torch.where(position < side, position, 2 * side - 2 - position)
            x = x.index_select(axis, index)
    return x, (height, width)
