"""A start that codes at about JPEG's level untrained: each bit is coefficient > threshold.

The stem is an 8 x 8 DCT; bit k asks whether one of its coefficients exceeds one threshold, which is a
convolution, a sigmoid and a comparison with 0.5: the poster's binarizer as it stands. `design` chooses
bits greedily by distortion saved per bit of entropy; `start` sets the weights: the nested code's groups
are cut at equal entropy, trunks begin as the identity, the decoder is linear and fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.base.errors import DataError
from mcml.model.model import Model, Stream, StreamOutput
from mcml.model.networks import Entry, FusionDecoder
from mcml.model.quantization import masked_bits

PRICE = 0.15  # bits a position and bit on top of its entropy: skewed bits are not free in practice
CANDIDATES = 16  # thresholds tried in a cell
SQUARES = 30_000  # that the choice looks at, and that the linear decoder is fitted on
GAIN = 3.0  # slope of the sigmoid in standard deviations: saturated ends still pass some gradient
CERTAIN = 4.0  # log-odds of a bit that earlier ones decide


class ThresholdCode(NamedTuple):
    """Bits in the order of the nested code, (n,) each."""

    coefficient: Tensor  # int64, which coefficient a bit asks about
    threshold: Tensor  # in the coefficient's unit
    entropy: Tensor  # bits a position, given the cell and the left and upper neighbours' bit
    odds: Tensor  # log-odds of a one where the bit is not yet decided
    saved: Tensor  # squared error a position that the bit saves

    def group_sizes(self, count: int) -> list[int]:
        """Cut the bits into `count` groups of about equal entropy, each of at least one bit."""
        total = self.entropy.cumsum(0)
        wanted = torch.arange(1, count, dtype=total.dtype) / count * total[-1]
        n, cuts = len(total), [0]
        for i, cut in enumerate(torch.searchsorted(total, wanted).tolist(), 1):
            cuts.append(min(max(cut + 1, cuts[-1] + 1), n - (count - i)))
        return [b - a for a, b in pairwise([*cuts, n])]


def dct_basis(channels: int = 1) -> Tensor:
    """Return an orthonormal basis of 8 x 8 squares, (64 C, C, 8, 8), low frequencies first.

    Type-II DCT in both directions; for three channels times (1, 1, 1), (1, 0, -1) and
    (1, -2, 1), normalised, which come close to luma and two colour differences.
    """
    k, x = np.arange(STRIDE)[:, None], np.arange(STRIDE)[None, :]
    line = np.cos(np.pi * (x + 0.5) * k / STRIDE) * np.where(k == 0, np.sqrt(1 / 8), np.sqrt(2 / 8))
    square = np.einsum("ai,bj->abij", line, line).reshape(64, STRIDE, STRIDE)
    square = square[np.argsort((k + x).reshape(-1), kind="stable")]
    mixes = np.array([[1.0]] if channels == 1 else [[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    mixes /= np.linalg.norm(mixes, axis=1, keepdims=True)
    basis = np.einsum("mc,kij->mkcij", mixes, square).reshape(-1, channels, STRIDE, STRIDE)
    return torch.from_numpy(basis).float()


def design(coefficients: Tensor, bits: int) -> ThresholdCode:
    """Choose and order n bits greedily by squared error saved per (entropy + PRICE) bit.

    Each coefficient, (B, C, h, w) of an orthonormal transform on the stride-8 grid, begins as one cell;
    the best split of all cells is the next bit, and its cell becomes two. `DataError` if the samples
    do not tell apart as many cells.
    """
    here, left, above = coefficients[..., 1:, 1:], coefficients[..., 1:, :-1], coefficients[..., :-1, 1:]
    flat = [view.transpose(0, 1).flatten(1) for view in (here, left, above)]  # (C, samples) each
    values = [v[:, :: max(1, v.shape[1] // SQUARES)].contiguous().cpu().numpy() for v in flat]
    everyone = np.arange(values[0].shape[1])
    splits = [_best_split(values, c, everyone) for c in range(len(values[0]))]
    chosen: list[tuple] = []
    while len(chosen) < bits:
        best = max(range(len(splits)), key=lambda i: splits[i][0])
        score, members, bit = splits.pop(best)
        if score <= 0:
            what = (
                f"the photographs are too uniform for a threshold code of {bits} bits ({len(chosen)} found)"
            )
            raise DataError(f"{what}: add others, or begin with --set stage.start=plain")
        chosen.append(bit)
        upper = values[0][bit[0], members] > bit[1]
        splits += [_best_split(values, bit[0], members[side]) for side in (~upper, upper)]
    return ThresholdCode(*map(torch.tensor, zip(*chosen, strict=True)))


def _best_split(values: list[np.ndarray], coefficient: int, members: np.ndarray) -> tuple:
    """Cut a cell at its best threshold: score (0: it cannot be cut), members, and a `ThresholdCode`'s row.

    `values` are (C, samples) each: here, to the left and above; `members` index the cell's samples.
    """
    x, left, above = (v[coefficient][members] for v in values)
    inside, count, everyone = np.sort(x), len(members), values[0].shape[1]
    if count < 16 or inside[0] == inside[-1]:
        return 0.0, members, ()
    spread = np.linspace(0, 1, CANDIDATES + 2)[1:-1]
    *quantiles, low, high = np.quantile(inside, [*spread, 0.002, 0.998])
    t = np.sort(np.concatenate([quantiles, low + spread * (high - low)]).astype(np.float32))
    below = np.searchsorted(inside, t, side="right")
    usable = (below >= 4) & (below <= count - 4)
    if not usable.any():
        return 0.0, members, ()
    t, below = t[usable], below[usable]
    sums = np.concatenate([[0.0], np.cumsum(inside, dtype=np.float64)])
    gap = (sums[-1] - sums[below]) / (count - below) - sums[below] / below  # between the halves' means
    saved = gap**2 * below * (count - below) / count / everyone
    entropy = np.zeros(len(t))
    for total, ones in _counts(t, x, left, above):
        share = np.clip(ones / np.maximum(total, 1), 1e-9, 1 - 1e-9)
        entropy -= total * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / everyone
    score = saved / (entropy + PRICE)
    best = int(score.argmax())
    odds = np.log((count - below[best]) / below[best])
    row = map(float, (t[best], entropy[best], odds, saved[best]))
    return float(score[best]), members, (coefficient, *row)


def _counts(t: np.ndarray, *samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Count samples, and those above each threshold, where neither neighbour, one or both are above it.

    A sample is above a threshold if its rank among the sorted thresholds `t` is, and two are if the
    smaller rank is: one histogram of ranks a combination, not a comparison a sample and threshold.
    """
    here, left, above = (np.searchsorted(t, x) for x in samples)

    def over(*ranks: np.ndarray) -> np.ndarray:
        rank = np.minimum.reduce(ranks)
        return len(rank) - np.bincount(rank, minlength=len(t) + 1)[:-1].cumsum()

    both, ones = over(left, above), over(here, left, above)
    only_left, only_above = over(left) - both, over(above) - both
    left_ones, above_ones = over(here, left) - ones, over(here, above) - ones
    yield len(here) - only_left - only_above - both, over(here) - left_ones - above_ones - ones
    yield from ((only_above, above_ones), (only_left, left_ones), (both, ones))


@torch.no_grad()
def start(model: Model, patches: Tensor, keys: Sequence[str] = (), *, distortion: str = "l1") -> None:
    """Set the weights of a model's streams to a threshold code and a linear decoder.

    Args:
        model: any variant.
        patches: (B, 3, S, S) in [0, 1], S a multiple of 8; a few hundred of 128 x 128 are enough.
        keys: streams to set, all by default; of the others the codes are used as they are.
        distortion: "l1" or "l2", what `Model.rate_slope` is measured in (0..255 units).
    """
    planes = model.planes(patches)
    keys = keys or model.config.streams
    left_over = {key: _set_encoder(model.streams[key], planes[key]) for key in keys}
    output = model(patches, 0.0, decode=(), estimate=False)
    # One p a position, the same for all streams: every level is as frequent as the next.
    first = model.config.streams[0]
    shape = output.streams[first].importance.shape
    p = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(patches.device)
    seen = {}
    for key, of in output.streams.items():
        level, mask = model.streams[key].mask(p)
        seen[key] = of._replace(level=level, mask=mask, code=masked_bits(of.bits, mask))
    luma = (model.streams["Y"].decoder.entry, seen["Y"].code) if "Y" in seen else None
    for key in keys:
        stream = model.streams[key]
        _fit_decoder(stream, planes[key], seen[key], luma, left_over[key])
        stream.rate_weight.copy_(stream.full_bits / model.streams[first].full_bits)
    if first in keys:
        _measure_slope(model, patches, distortion)


def _set_encoder(stream: Stream, plane: Tensor) -> Tensor:
    """Set all but the decoder's entry; return the squared error left at each level, (L,)."""
    config, encoder, decoder, device = stream.config, stream.encoder, stream.decoder, plane.device
    basis = dct_basis(plane.shape[1]).to(device)
    coefficients = torch.nn.functional.conv2d(plane, basis, stride=STRIDE)
    kept = coefficients.var(dim=(0, 2, 3)).argsort(descending=True)[: config.width]
    basis, coefficients, count = basis[kept], coefficients[:, kept], len(kept)
    sigma = coefficients.std(dim=(0, 2, 3)).clamp(min=1e-4)
    code = ThresholdCode(*(value.to(device) for value in design(coefficients, config.code_channels)))
    encoder.stem.weight[:count] = basis / sigma[:, None, None, None]
    encoder.stem.bias[:count] = 0
    encoder.trunk.zero_()
    encoder.code.weight.zero_()
    encoder.code.weight[torch.arange(config.code_channels, device=device), code.coefficient, 0, 0] = GAIN
    encoder.code.bias.copy_(-GAIN * code.threshold / sigma[code.coefficient])
    stream.set_groups(code.group_sizes(config.levels - 1))
    stream.full_bits.fill_(float(code.entropy.sum()))
    decoder.trunk.zero_()
    decoder.exit.weight.zero_()
    decoder.exit.weight[:, :count, 0, 0] = (basis * sigma[:, None, None, None]).flatten(1).T
    decoder.exit.bias.zero_()
    _set_decided(stream, code)
    variance = coefficients.var(dim=(0, 2, 3)).sum()
    ends = torch.bincount(stream.groups, minlength=config.levels)[1:].cumsum(0)
    return torch.cat([variance[None], (variance - code.saved.cumsum(0))[ends - 1]])


def _set_decided(stream: Stream, code: ThresholdCode) -> None:
    """Tell context model and decoder which bits are decided by earlier ones.

    With c in {-1, 0, +1}, an earlier bit j decides bit k if c_j = -1 on a lower threshold (k is 0) or +1
    on a higher one (k is 1): odds for the context model. The decoder's ReLU layer says "bit k is one / is
    zero, and is news": relu(+-c_k - sum over lower (1 - c_j) / 2 - sum over higher (1 + c_j) / 2).
    """
    earlier = (code.coefficient[:, None] == code.coefficient).float().tril(-1)  # (n, n): k after j
    lower = earlier * (code.threshold < code.threshold[:, None])
    higher = earlier - lower
    model, entry = stream.bit_model, stream.decoder.entry
    for tensor in model.parameters():
        tensor.zero_()
    model.causal.weight[:, :, 1, 1] = CERTAIN * (lower + higher)
    model.causal.bias.copy_(code.odds + CERTAIN * (higher.sum(1) - lower.sum(1)))
    own, decided = torch.eye(len(lower), device=lower.device), (lower - higher) / 2
    entry.cells.weight.copy_(torch.cat([own + decided, decided - own])[:, :, None, None])
    entry.cells.bias.copy_(-(lower + higher).sum(1).repeat(2) / 2)


def _fit_decoder(
    stream: Stream, plane: Tensor, output: StreamOutput, luma: tuple[Entry, Tensor] | None, left_over: Tensor
) -> None:
    """Least squares from what the decoder sees at a position to the encoder's stem features.

    Each position weighs inversely to the error that its level leaves, or else the lowest
    levels alone would decide.
    """
    decoder, count = stream.decoder, min(stream.config.width, 64 * plane.shape[1])
    entries = [(decoder.entry, output.code)]
    if isinstance(decoder, FusionDecoder):
        decoder.luma.cells.load_state_dict(luma[0].cells.state_dict())
        entries.append((decoder.luma, luma[1]))
    inputs = [torch.relu(entry.cells(code)) for entry, code in entries]
    inputs.append(torch.ones_like(inputs[0][:, :1]))  # for the bias
    step = max(1, output.level.numel() // SQUARES)
    weight = left_over.clamp(min=1e-9).rsqrt()[output.level].flatten()[::step, None]
    maps = torch.cat(inputs, dim=1), stream.encoder.stem(plane)[:, :count]
    seen, wanted = ((m.permute(0, 2, 3, 1).flatten(0, 2)[::step] * weight).double() for m in maps)
    gram = seen.T @ seen
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, seen.T @ wanted).T.float()  # (count, inputs + 1)
    *parts, bias = solved.split([features.shape[1] for features in inputs], dim=1)
    for layer, part in zip((entry.mix for entry, _ in entries), parts, strict=True):
        layer.weight[:count] = 0
        layer.weight[:count, :, 1, 1] = part
        layer.bias[:count] = 0
    decoder.entry.mix.bias[:count] = bias[:, 0]


def _measure_slope(model: Model, patches: Tensor, distortion: str) -> None:
    """Set lambda(p) = scale exp(-decay p) to the slope of distortion over p at uniform levels.

    At that lambda a uniform map is stationary on average, so what training changes is where
    bits go, and the dial keeps its meaning.
    """
    key = model.config.streams[0]
    shares = torch.linspace(0.08, 0.92, 6)
    plane, errors = model.planes(patches[:32])[key], []
    for share in shares:
        output = model(patches[:32], float(torch.logit(share)), decode=(key,), estimate=False)
        error = 255 * (output.streams[key].x_hat - plane)
        errors.append(error.abs().mean() if distortion == "l1" else error.square().mean())
    a = torch.stack([torch.ones_like(shares), shares], dim=1).double()
    offset, slope = torch.linalg.lstsq(a, torch.stack(errors).log().double().cpu()[:, None]).solution[:, 0]
    decay = max(-float(slope), 0.1)
    model.rate_slope.copy_(torch.tensor([decay * float(offset.exp()), decay]))
