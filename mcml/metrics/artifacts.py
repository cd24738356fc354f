"""Figures for what the eye complains of: colour bias, blocking, blur and ringing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from mcml.metrics.color import luma, rgb_to_lab

BLOCK = 8  # pixels, the DCT block that PSNR-B looks for
BIAS_BLOCK = 32  # pixels
EDGE_STEP = 16.0  # grey levels a pixel of Sobel gradient that make a "major" edge
RING_NEAR, RING_FAR = 3, 8  # pixels from an edge between which ringing is looked for
FLAT_VARIANCE = 16.0  # grey levels squared below which the reference is flat enough to show ringing
MAX_WIDTH = 16  # pixels to each side over which an edge is followed


class EdgeArtifacts(NamedTuple):
    """`blur`: ratio of mean edge widths; `ringing`: added variance, grey levels squared."""

    blur: float
    ringing: float


def block_bias(lab_a: np.ndarray, lab_b: np.ndarray, block: int = BIAS_BLOCK) -> np.ndarray:
    """CIELAB shift of each block's mean, decode less reference: (H, W, 3) pairs to (rows, columns, 3).

    Noise averages out inside a block and a shift of flat colour does not. Pixels left
    over at the right and bottom belong to the last block.
    """
    shift = lab_b - lab_a
    for axis in (0, 1):
        side = shift.shape[axis]
        starts = np.arange(max(side // block, 1)) * block
        counts = np.diff(np.append(starts, side)).astype(np.float64)
        shape = [-1 if i == axis else 1 for i in range(3)]
        shift = np.add.reduceat(shift, starts, axis=axis) / counts.reshape(shape)
    return shift


def blocking_effect(luma: np.ndarray, block: int = BLOCK) -> float:
    """Blocking effect factor of Yim & Bovik (IEEE TIP 2011), in squared grey levels.

    Mean squared step across block boundaries less the mean elsewhere, times
    log2(block) / log2(min(H, W)); 0 where boundaries step no more than the rest. PSNR-B is the
    PSNR of luma's mean squared error plus this figure of the decode.
    """
    at_edge, elsewhere, n_edge, n_elsewhere = 0.0, 0.0, 0, 0
    for step in (np.diff(luma, axis=1) ** 2, np.diff(luma, axis=0).T ** 2):
        across = step[:, block - 1 :: block]
        at_edge, n_edge = at_edge + float(across.sum()), n_edge + across.size
        elsewhere += float(step.sum() - across.sum())
        n_elsewhere += step.size - across.size
    if n_edge == 0 or n_elsewhere == 0:
        return 0.0
    excess = at_edge / n_edge - elsewhere / n_elsewhere
    eta = math.log2(block) / math.log2(max(min(luma.shape), 2))
    return eta * excess if excess > 0 else 0.0


def edge_artifacts(luma_a: np.ndarray, luma_b: np.ndarray) -> EdgeArtifacts:
    """Blur and ringing at the reference's major edges.

    Blur after Marziliano, Dufaux, Winkler & Ebrahimi (2004): an edge's width is the
    distance between the local extrema on its two sides, along the row; the mean width in
    the decode is divided by that in the reference. Unlike theirs, horizontal edges count
    too, measured along columns.
    Ringing after the visible ringing measure of Oguz, Hu & Nguyen (1998): the mean 3 x 3
    variance in the band 4 to 8 pixels from major edges, less the reference's. Unlike
    theirs, only pixels where the reference is flat (its variance is under 16) count, so
    that texture smoothed away does not hide what was added.

    Args:
        luma_a, luma_b: reference and decode, (H, W), 0..255.

    Returns:
        NaN for each figure that has no major edge to be measured at.
    """
    widths_a: list[np.ndarray] = []
    widths_b: list[np.ndarray] = []
    strong = np.zeros(luma_a.shape, dtype=bool)
    for a, b, mask in ((luma_a, luma_b, strong), (luma_a.T, luma_b.T, strong.T)):
        slope = ndimage.sobel(a, axis=1) / 8
        size = np.abs(slope)
        peak = size > EDGE_STEP
        mask |= peak
        peak[:, 1:] &= size[:, 1:] >= size[:, :-1]
        peak[:, :-1] &= size[:, :-1] > size[:, 1:]
        widths_a.append(_edge_widths(a, peak, slope))
        widths_b.append(_edge_widths(b, peak, slope))
    total_a = float(np.concatenate(widths_a).sum())
    blur = float(np.concatenate(widths_b).sum()) / total_a if total_a else math.nan

    added, band = _added_variance(luma_a, luma_b, strong)
    return EdgeArtifacts(blur, float(added[band].mean()) if band.any() else math.nan)


def _added_variance(
    luma_a: np.ndarray, luma_b: np.ndarray, strong: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """3 x 3 variance that the decode adds, and where it is ringing: flat, beside `strong` edges."""
    near, far = 2 * RING_NEAR + 1, 2 * RING_FAR + 1
    variance_a = _variance_3x3(luma_a)
    band = ndimage.maximum_filter(strong, far) & ~ndimage.maximum_filter(strong, near)
    return _variance_3x3(luma_b) - variance_a, band & (variance_a < FLAT_VARIANCE)


def _edge_widths(luma: np.ndarray, peak: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Distance in pixels between the extrema around each edge, at most 2 x `MAX_WIDTH`."""
    rows, columns = np.nonzero(peak)
    sign = np.sign(slope[rows, columns])
    width = np.zeros(len(rows), dtype=np.int64)
    for direction in (1, -1):  # away from the edge, up its slope on one side, down on the other
        going = np.arange(len(rows))
        for step in range(1, MAX_WIDTH + 1):
            ahead = columns[going] + direction * step
            inside = (ahead >= 0) & (ahead < luma.shape[1])
            going, ahead = going[inside], ahead[inside]
            row = rows[going]
            rise = (luma[row, ahead] - luma[row, ahead - direction]) * sign[going] * direction
            going = going[rise > 0]
            width[going] += 1
    return width


def _variance_3x3(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean()  # keeps the subtraction of squares exact enough
    return np.maximum(ndimage.uniform_filter(centred**2, 3) - ndimage.uniform_filter(centred, 3) ** 2, 0)


def artifact_maps(reference: np.ndarray, decoded: np.ndarray) -> dict[str, np.ndarray]:
    """Say where in the picture each artefact sits, to choose details worth enlarging.

    Args:
        reference, decoded: (H, W, 3) uint8 sRGB.

    Returns:
        (H, W) float64, non-negative, larger is worse: `blocking` (squared steps at the 8 x 8
        grid that the reference has not), `ringing` (variance added near edges), `blur`
        (gradient energy lost), `colour bias` (CIE76 shift of the 32 x 32 block's mean).
    """
    a, b = luma(reference), luma(decoded)
    blocking = np.zeros_like(a)
    for axis in (0, 1):
        step = np.abs(np.diff(b, axis=axis)) - np.abs(np.diff(a, axis=axis))
        on_grid = np.swapaxes(blocking, 0, axis)[BLOCK - 1 : -1 : BLOCK]
        on_grid += np.maximum(np.swapaxes(step, 0, axis)[BLOCK - 1 :: BLOCK], 0) ** 2
    energy_a, energy_b = (ndimage.sobel(x, 0) ** 2 + ndimage.sobel(x, 1) ** 2 for x in (a, b))
    added, band = _added_variance(a, b, energy_a > (8 * EDGE_STEP) ** 2)
    blocks = np.sqrt((block_bias(rgb_to_lab(reference), rgb_to_lab(decoded)) ** 2).sum(axis=-1))
    rows = np.minimum(np.arange(a.shape[0]) // BIAS_BLOCK, blocks.shape[0] - 1)
    columns = np.minimum(np.arange(a.shape[1]) // BIAS_BLOCK, blocks.shape[1] - 1)
    return {
        "blocking": blocking,
        "ringing": np.maximum(added, 0) * band,
        "blur": np.maximum(energy_a - energy_b, 0),
        "colour bias": blocks[np.ix_(rows, columns)],
    }


def worst_boxes(scores: dict[str, np.ndarray], side: int) -> dict[str, tuple[int, int, int]]:
    """Return for each score the square with its largest sum, no two at the same place.

    Args:
        scores: (H, W) by kind of artefact, larger is worse; earlier kinds choose first.
        side: wanted side in pixels; clipped to the image. Squares lie on a grid of 8.

    Returns:
        (top, left, side) by kind.
    """
    boxes: dict[str, tuple[int, int, int]] = {}
    for kind, score in scores.items():
        free = score.copy()
        for top, left, taken in boxes.values():
            free[top : top + taken, left : left + taken] = 0
        width = min(side, *score.shape)
        sums = np.pad(free.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        total = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]
        row, column = np.unravel_index(np.argmax(total[::8, ::8]), total[::8, ::8].shape)
        boxes[kind] = int(row) * 8, int(column) * 8, width
    return boxes
