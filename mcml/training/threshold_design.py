"""The choice of a threshold code's bits: greedy, by squared error saved per bit of entropy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.base.errors import UsageError

PRICE = 0.15  # bits a position and bit on top of its entropy: skewed bits are not free in practice
CANDIDATES = 16  # thresholds tried in a cell
SAMPLES = 30_000  # squares that the choice looks at


class ThresholdCode(NamedTuple):
    """Bits in the order of the nested code, n of them.

    Attributes:
        coefficient: (n,) int64, which coefficient a bit asks about.
        threshold: (n,) float, in the coefficient's unit.
        entropy: (n,) bits a position, given the cell and the left and upper neighbours' bit.
        odds: (n,) log-odds of a one where the bit is not yet decided.
        saved: (n,) squared error a position that the bit saves.
    """

    coefficient: Tensor
    threshold: Tensor
    entropy: Tensor
    odds: Tensor
    saved: Tensor

    def group_sizes(self, count: int) -> list[int]:
        """Cut the bits into `count` groups of about equal entropy, each of at least one bit."""
        total = self.entropy.cumsum(0)
        wanted = torch.arange(1, count, dtype=total.dtype) / count * total[-1]
        n, cuts = len(total), [0]
        for i, cut in enumerate(torch.searchsorted(total, wanted).tolist(), 1):
            cuts.append(min(max(cut + 1, cuts[-1] + 1), n - (count - i)))
        return [b - a for a, b in zip(cuts, [*cuts[1:], n], strict=True)]


def dct_basis(channels: int = 1) -> Tensor:
    """Return an orthonormal basis of 8 x 8 squares, (64 C, C, 8, 8), low frequencies first.

    Type-II DCT in both directions; for three channels times (1, 1, 1), (1, 0, -1) and
    (1, -2, 1), normalised, which come close to luma and two colour differences.
    """
    k, x = np.arange(STRIDE)[:, None], np.arange(STRIDE)[None, :]
    line = np.cos(np.pi * (x + 0.5) * k / STRIDE) * np.where(k == 0, np.sqrt(1 / 8), np.sqrt(2 / 8))
    square = np.einsum("ai,bj->abij", line, line).reshape(64, STRIDE, STRIDE)
    frequency = np.add.outer(np.arange(STRIDE), np.arange(STRIDE)).reshape(-1)
    square = square[np.argsort(frequency, kind="stable")]
    mixes = np.array([[1.0]]) if channels == 1 else np.array([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    mixes /= np.linalg.norm(mixes, axis=1, keepdims=True)
    basis = np.einsum("mc,kij->mkcij", mixes, square).reshape(-1, channels, STRIDE, STRIDE)
    return torch.from_numpy(basis).float()


class _Cell(NamedTuple):
    score: float
    coefficient: int
    members: np.ndarray  # indices of the samples inside
    threshold: float
    entropy: float
    odds: float
    saved: float


def design(coefficients: Tensor, bits: int) -> ThresholdCode:
    """Choose and order bits greedily by squared error saved per (entropy + PRICE) bit.

    Args:
        coefficients: (B, C, h, w) of an orthonormal transform, on the stride-8 grid.
        bits: n.

    Raises:
        UsageError: if the samples do not tell apart as many cells.
    """
    here = coefficients[:, :, 1:, 1:].transpose(0, 1).flatten(1)  # (C, samples)
    left = coefficients[:, :, 1:, :-1].transpose(0, 1).flatten(1)
    above = coefficients[:, :, :-1, 1:].transpose(0, 1).flatten(1)
    step = max(1, here.shape[1] // SAMPLES)
    values = [x[:, ::step].contiguous().cpu().numpy() for x in (here, left, above)]
    everyone = np.arange(values[0].shape[1])
    cells = [_best_split(values, c, everyone) for c in range(len(values[0]))]
    chosen: list[_Cell] = []
    while len(chosen) < bits:
        best = max(range(len(cells)), key=lambda i: cells[i].score)
        cell = cells.pop(best)
        if cell.score <= 0:
            raise UsageError(
                f"{bits} bits need more varied photographs: these give a threshold code of {len(chosen)}"
            )
        chosen.append(cell)
        upper = values[0][cell.coefficient, cell.members] > cell.threshold
        cells += [_best_split(values, cell.coefficient, cell.members[side]) for side in (~upper, upper)]
    column = zip(*((c.coefficient, c.threshold, c.entropy, c.odds, c.saved) for c in chosen), strict=True)
    return ThresholdCode(*(torch.tensor(x) for x in column))


def _best_split(values: list[np.ndarray], coefficient: int, members: np.ndarray) -> _Cell:
    """Find the threshold that cuts a cell best, given its samples."""
    x, left, above = (v[coefficient] for v in values)
    inside = x[members]
    nothing = _Cell(0.0, coefficient, members, 0.0, 0.0, 0.0, 0.0)
    if len(inside) < 16 or inside.min() == inside.max():
        return nothing
    spread = np.linspace(0, 1, CANDIDATES + 2)[1:-1]
    order = np.sort(inside)
    *quantiles, low, high = np.quantile(order, [*spread, 0.002, 0.998])
    t = np.concatenate([quantiles, low + spread * (high - low)]).astype(np.float32)
    sums = np.concatenate([[0.0], np.cumsum(order, dtype=np.float64)])
    below = np.searchsorted(order, t, side="right")
    count = len(order)
    usable = (below >= 4) & (below <= count - 4)
    if not usable.any():
        return nothing
    t, below = t[usable], below[usable]
    gap = (sums[-1] - sums[below]) / (count - below) - sums[below] / below
    saved = gap**2 * below * (count - below) / count / len(x)
    entropy = np.zeros(len(t))
    for total, ones in _counts(inside, left[members], above[members], t):
        share = np.clip(ones / np.maximum(total, 1), 1e-9, 1 - 1e-9)
        entropy -= total * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    entropy = entropy / len(x)
    score = saved / (entropy + PRICE)
    best = int(score.argmax())
    odds = float(np.log((count - below[best]) / below[best]))
    return _Cell(
        float(score[best]),
        coefficient,
        members,
        float(t[best]),
        float(entropy[best]),
        odds,
        float(saved[best]),
    )


def _counts(here: np.ndarray, left: np.ndarray, above: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
    """Count samples, and those above each threshold, where neither, `above`, `left` or both are above it.

    A sample is above a threshold if its rank among the sorted thresholds is, and two are if the smaller
    rank is: one histogram of ranks a combination, instead of a comparison a sample and threshold.
    """
    order = np.argsort(t)
    h, b, a = (np.searchsorted(t[order], x) for x in (here, left, above))

    def over(rank: np.ndarray) -> np.ndarray:
        count = np.empty(len(t), dtype=np.int64)
        count[order] = len(rank) - np.bincount(rank, minlength=len(t) + 1)[:-1].cumsum()
        return count

    lower = np.minimum(b, a)
    counts = []
    for n, in_b, in_a, in_both in (
        (np.full(len(t), len(here)), over(b), over(a), over(lower)),
        (over(h), over(np.minimum(h, b)), over(np.minimum(h, a)), over(np.minimum(h, lower))),
    ):
        counts.append((n - in_b - in_a + in_both, in_a - in_both, in_b - in_both, in_both))
    return [np.stack(pair) for pair in zip(*counts, strict=True)]
