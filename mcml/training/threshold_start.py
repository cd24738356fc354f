"""A start that codes at about JPEG's level untrained: each bit is coefficient > threshold.

The stem is an 8 x 8 DCT; bit k asks whether one of its coefficients exceeds one threshold,
which is a convolution, a sigmoid and a comparison with 0.5: the poster's binarizer as it
stands. Bits are chosen greedily by distortion saved per bit of entropy, the nested code's
groups are cut at equal entropy, trunks start as the identity and the decoder is linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.model.model import Model, Stream, StreamOutput
from mcml.model.networks import Entry, FusionDecoder
from mcml.model.quantization import masked_bits
from mcml.training.threshold_design import ThresholdCode, dct_basis, design

GAIN = 3.0  # slope of the sigmoid in standard deviations: saturated ends still pass some gradient
FIT_SQUARES = 30_000  # squares that the linear decoder is fitted on


@torch.no_grad()
def start(
    model: Model, patches: Tensor, keys: Sequence[str] | None = None, *, distortion: str = "l1", seed: int = 0
) -> None:
    """Set the weights of a model's streams to a threshold code and a linear decoder.

    Args:
        model: any variant.
        patches: (B, 3, S, S) in [0, 1], S a multiple of 8; a few hundred of 128 x 128 are enough.
        keys: streams to set, all by default; of the others the codes are used as they are.
        distortion: "l1" or "l2", what `Model.rate_slope` is measured in (0..255 units).
        seed: of the random levels that the decoder is fitted on.
    """
    planes = model.planes(patches)
    keys = model.config.streams if keys is None else keys
    left_over = {}
    for key in keys:
        stream = model.streams[key]
        left_over[key] = _set_encoder(stream, planes[key])
    luma_entry = model.streams["Y"].decoder.entry if "Y" in model.streams else None
    output = model(patches, 0.0, decode=(), estimate=False)
    # One p a position, the same for all streams: every level is as frequent as the next.
    generator = torch.Generator().manual_seed(seed)
    first = next(iter(output.streams.values())).importance
    p = torch.rand(first.shape, generator=generator).to(first.device)
    seen = {}
    for key, of in output.streams.items():
        level, mask = model.streams[key].mask(p)
        seen[key] = of._replace(level=level, mask=mask, code=masked_bits(of.bits, mask))
    for key in keys:
        stream, of = model.streams[key], seen[key]
        luma = seen["Y"].code if "Y" in seen else None
        _fit_decoder(stream, planes[key], of, luma, luma_entry, left_over[key])
    reference = model.streams[model.config.streams[0]]
    for key in keys:
        model.streams[key].rate_weight.copy_(model.streams[key].full_bits / reference.full_bits)
    if model.config.streams[0] in keys:
        _measure_slope(model, patches, distortion)


def _set_encoder(stream: Stream, plane: Tensor) -> Tensor:
    """Set all but the decoder's entry; return the squared error left at each level, (L,)."""
    config, encoder = stream.config, stream.encoder
    basis = dct_basis(plane.shape[1]).to(plane.device)
    coefficients = torch.nn.functional.conv2d(plane, basis, stride=STRIDE)
    kept = coefficients.var(dim=(0, 2, 3)).argsort(descending=True)[: config.width]
    basis, coefficients = basis[kept], coefficients[:, kept]
    sigma = coefficients.std(dim=(0, 2, 3)).clamp(min=1e-4)
    count = len(kept)
    code = design(coefficients, config.code_channels)

    encoder.stem.weight[:count] = basis / sigma[:, None, None, None]
    encoder.stem.bias[:count] = 0
    encoder.trunk.zero_()
    encoder.code.weight.zero_()
    rows = torch.arange(len(code.coefficient))
    encoder.code.weight[rows, code.coefficient, 0, 0] = GAIN
    encoder.code.bias.copy_(
        -GAIN * code.threshold.to(plane.device) / sigma[code.coefficient.to(plane.device)]
    )
    stream.set_groups(code.group_sizes(config.levels - 1))
    stream.full_bits.fill_(float(code.entropy.sum()))

    decoder = stream.decoder
    decoder.trunk.zero_()
    decoder.exit.weight[:, :count] = (basis * sigma[:, None, None, None]).flatten(1).T[:, :, None, None]
    decoder.exit.weight[:, count:] = 0
    decoder.exit.bias.zero_()
    _set_bit_model(stream, code)
    _set_cells(decoder.entry, code)
    left = coefficients.var(dim=(0, 2, 3)).sum() - code.saved.to(plane.device).cumsum(0)
    ends = torch.bincount(stream.groups, minlength=config.levels)[1:].cumsum(0)
    return torch.stack([left[0] + code.saved[0].to(plane.device), *left[ends - 1]])


def _order(code: ThresholdCode) -> tuple[Tensor, Tensor]:
    """Return (n, n): does bit k have bit j before it on a lower, on a higher threshold?"""
    same = code.coefficient[:, None] == code.coefficient[None, :]
    number = torch.arange(len(same))
    earlier = same & (number[None, :] < number[:, None])
    lower = earlier & (code.threshold[None, :] < code.threshold[:, None])
    return lower.float(), (earlier.float() - lower.float())


def _set_bit_model(stream: Stream, code: ThresholdCode, strength: float = 4.0) -> None:
    """A bit over a lower threshold that was not passed is 0, under a higher that was is 1."""
    lower, higher = _order(code)
    model = stream.bit_model
    for tensor in model.parameters():
        tensor.zero_()
    model.causal.weight[:, :, 1, 1] = strength * (lower + higher).to(model.causal.weight.device)
    model.causal.bias.copy_(code.odds + strength * (higher.sum(1) - lower.sum(1)))


def _set_cells(entry: Entry, code: ThresholdCode) -> None:
    """Let the ReLU layer say "bit k is one / is zero, and was not decided before": 1 or 0.

    With c in {-1, 0, +1}, an earlier bit j decides bit k if c_j = -1 on a lower threshold
    or +1 on a higher one: relu(+-c_k - sum over lower (1 - c_j)/2 - sum over higher (1 + c_j)/2).
    """
    lower, higher = _order(code)
    n = len(lower)
    decided = (lower - higher) / 2
    weight = torch.cat([torch.eye(n) + decided, decided - torch.eye(n)])
    entry.cells.weight.copy_(weight[:, :, None, None])
    entry.cells.bias.copy_(-(lower + higher).sum(1).repeat(2) / 2)


def _fit_decoder(
    stream: Stream,
    plane: Tensor,
    output: StreamOutput,
    luma: Tensor | None,
    luma_entry: Entry | None,
    left_over: Tensor,
) -> None:
    """Least squares from what the decoder sees at a position to the encoder's stem features.

    Each position weighs inversely to the error that its level leaves, or else the lowest
    levels alone would decide.
    """
    decoder = stream.decoder
    count = min(stream.config.width, 64 * plane.shape[1])
    wanted = stream.encoder.stem(plane)[:, :count].permute(0, 2, 3, 1).flatten(0, 2)
    layers = [decoder.entry.mix]
    inputs = [torch.relu(decoder.entry.cells(output.code))]
    if isinstance(decoder, FusionDecoder):
        decoder.luma.cells.load_state_dict(luma_entry.cells.state_dict())
        layers.append(decoder.luma.mix)
        inputs.append(torch.relu(decoder.luma.cells(luma)))
    seen = torch.cat(inputs, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
    step = max(1, len(seen) // FIT_SQUARES)
    weight = left_over.clamp(min=1e-9).rsqrt()[output.level].flatten()[::step, None]
    seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)[::step] * weight
    seen, wanted = seen.double(), (wanted[::step] * weight).double()
    gram = seen.T @ seen
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, seen.T @ wanted).T.float()  # (count, inputs + 1)
    begin = 0
    for layer, features in zip(layers, inputs, strict=True):
        layer.weight[:count] = 0
        layer.weight[:count, :, 1, 1] = solved[:, begin : begin + features.shape[1]]
        layer.bias[:count] = 0
        begin += features.shape[1]
    decoder.entry.mix.bias[:count] = solved[:, -1]


def _measure_slope(model: Model, patches: Tensor, distortion: str) -> None:
    """Set lambda(p) = scale exp(-decay p) to the slope of distortion over p at uniform levels.

    At that lambda a flat map is stationary on average, so what training changes is where
    bits go, and the dial keeps its meaning.
    """
    key = model.config.streams[0]
    shares = torch.linspace(0.08, 0.92, 6)
    plane = model.planes(patches[:32])[key]
    errors = []
    for share in shares:
        x_hat = (
            model(patches[:32], float(torch.logit(share)), decode=(key,), estimate=False).streams[key].x_hat
        )
        error = 255 * (x_hat - plane)
        errors.append(error.abs().mean() if distortion == "l1" else error.square().mean())
    a = torch.stack([torch.ones_like(shares), shares], dim=1).double()
    offset, slope = torch.linalg.lstsq(a, torch.stack(errors).log().double().cpu()[:, None]).solution[:, 0]
    decay = max(-float(slope), 0.1)
    model.rate_slope.copy_(torch.tensor([decay * float(offset.exp()), decay]))
