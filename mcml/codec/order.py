"""The order in which positions, bits and levels are coded, and the units of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Positions of a group of bits are coded in four lattices, (row, column) modulo 2: the later ones
# know bits of their neighbours. Taps are (row, column) offsets of the 3 x 3 neighbourhood.
LATTICES = ((0, 0), (1, 1), (0, 1), (1, 0))
CROSS = ((-1, 0), (0, -1), (0, 1), (1, 0))
DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
TAPS = ((0, 0), *CROSS, *DIAGONAL)
KNOWN = ((), (5, 6, 7, 8), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8))  # taps whose bits a lattice knows
REST = tuple(tuple(t for t in range(9) if t not in known) for known in KNOWN)

SCALE_BITS = 10  # weights in units of 2^-10
STEP_BITS = 6  # log-odds in steps of 2^-6
REACH = 12  # the table spans log-odds of -12 to 12
ONE = 65536  # probabilities in units of 1 / 65536

LEVEL_STRIDE = 8  # of the importance map's anchors
LEVEL_PASSES = 7  # one for these, two for each halving of the stride
SPREADS = (1, 2, 3, 5, 9)  # neighbours that differ by less than this share a context


def probability_table() -> np.ndarray:
    """Return (1537,) int32: the probability of a one, in 1 / 65536, by log-odds from -12 to 12."""
    steps = REACH << STEP_BITS
    middle = (np.arange(-steps, steps + 1) + 0.5) / (1 << STEP_BITS)
    return np.clip(np.round(ONE / (1 + np.exp(-middle))), 1, ONE - 1).astype(np.int32)


def bayer(height: int, width: int) -> np.ndarray:
    """Return (height, width) ranks 0..255 of an ordered dither, which repeats every 16 positions."""
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    rank = np.zeros((height, width), np.int64)
    for bit in range(4):
        a, b = (y >> bit) & 1, (x >> bit) & 1
        rank = 4 * rank + 2 * (a ^ b) + b
    return rank


def uniform_levels(rate: int, height: int, width: int) -> np.ndarray:
    """Return (height, width) int64 levels of a uniform map: rate / 256 on average, dithered between two."""
    return (rate >> 8) + (bayer(height, width) < (rate & 255))


def level_passes(height: int, width: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, list]]:
    """Yield the importance map's coding passes: anchors first, then ever finer lattices between them.

    Yields:
        number of the pass; rows and columns of its positions, (N,) each; its neighbours, known by
        then, as (rows, columns) pairs, or none for the anchors. A neighbour beyond an edge is
        replaced by the one on the opposite side; where both of an axis are, by the other axis's.
    """
    stride = LEVEL_STRIDE
    rows, columns = _grid(range(0, height, stride), range(0, width, stride))
    yield 0, rows, columns, []
    number = 1
    while stride > 1:
        half = stride // 2
        centres = _grid(range(half, height, stride), range(half, width, stride))
        yield number, *centres, _around(*centres, half, DIAGONAL, height, width)
        a = _grid(range(0, height, stride), range(half, width, stride))
        b = _grid(range(half, height, stride), range(0, width, stride))
        edges = tuple(np.concatenate(pair) for pair in zip(a, b, strict=True))
        yield number + 1, *edges, _around(*edges, half, CROSS, height, width)
        number, stride = number + 2, half


def _grid(rows: range, columns: range) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.meshgrid(np.array(rows, np.int64), np.array(columns, np.int64), indexing="ij")
    return y.ravel(), x.ravel()


def _around(rows, columns, half, taps, height, width) -> list:
    near = []
    low, narrow = (rows < half) & (rows + half >= height), (columns < half) & (columns + half >= width)
    for dy, dx in taps:
        turned = (low & (dy != 0)) | (narrow & (dx != 0))
        dy, dx = np.where(turned, dx, dy), np.where(turned, dy, dx)
        y, x = rows + dy * half, columns + dx * half
        y = np.where((y < 0) | (y >= height), rows - dy * half, y)
        x = np.where((x < 0) | (x >= width), columns - dx * half, x)
        near.append((y, x))
    return near


def level_context(levels: np.ndarray, middle: int, rows: np.ndarray, near: list) -> tuple[np.ndarray, ...]:
    """Return contexts (N,) of spread and predicted level at a pass's positions, `middle` at the anchors."""
    if not near:
        return np.zeros(len(rows), np.int64), np.full(len(rows), middle)
    values = np.stack([levels[pair] for pair in near])
    spread = np.searchsorted(SPREADS, np.ptp(values, axis=0), side="right")
    return spread, (2 * values.sum(axis=0) + 4) // 8
