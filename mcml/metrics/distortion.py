"""All distortion metrics of a pair of 8-bit sRGB images, returned as one typed row.

Definitions: docs/METRICS.md. Windowed metrics use every window that fits and no padding;
where none fits, they are NaN. Artefact figures (colour bias, blocking, blur, ringing)
stand in `mcml.metrics.artifacts`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from mcml.base.errors import DataError
from mcml.data.images import check_rgb8
from mcml.metrics import artifacts
from mcml.metrics.color import luma, rgb_to_lab

WINDOW = 11  # pixels, Gaussian of sigma 1.5 (Wang et al. 2004)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MS_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])  # Wang et al. 2003
JND_DELTA_E76 = 2.3  # one just-noticeable CIE76 difference


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Distortion of a decode against its reference; definitions in docs/METRICS.md.

    Decibels: `psnr`, `y_psnr`, `psnr_b` (inf where nothing differs, the last only if the picture has no
    8 x 8 steps of its own). Similarities, 1 is equal: `ssim`, `ms_ssim`, `cmssim`. Colour differences in
    CIELAB: `delta_e76`, `ciede2000`, `bias_*` (mean shift, decode minus reference), `bias_block` (CIE76
    size of the worst 32 x 32 block's shift). `rgb_angle` in degrees. `blur` is a ratio of edge widths (1:
    as sharp as the reference), `ringing` a variance in squared grey levels. `ms_ssim_scales` is 5, or
    fewer on small images.
    """

    mse: float
    psnr: float
    y_psnr: float
    ssim: float
    ms_ssim: float
    cmssim: float
    delta_e76: float
    ciede2000: float
    rgb_angle: float
    psnr_b: float
    bias_l: float
    bias_a: float
    bias_b: float
    bias_block: float
    blur: float
    ringing: float
    ms_ssim_scales: int


COLUMNS = tuple(field.name for field in dataclasses.fields(Metrics))


def compare(reference: np.ndarray, decoded: np.ndarray) -> Metrics:
    """Compute every metric of a pair.

    Args:
        reference: (H, W, 3) uint8 sRGB.
        decoded: the same shape and type.

    Raises:
        DataError: if the shapes differ or an array is not 8-bit RGB.
    """
    check_rgb8(reference, "reference")
    check_rgb8(decoded, "decoded")
    if reference.shape != decoded.shape:
        sizes = " and ".join(f"{x.shape[1]} x {x.shape[0]}" for x in (reference, decoded))
        raise DataError(f"sizes differ: {sizes}; crop or rescale one")
    luma_a, luma_b = luma(reference), luma(decoded)
    lab_a, lab_b = rgb_to_lab(reference), rgb_to_lab(decoded)
    delta_e76 = np.sqrt(np.sum((lab_a - lab_b) ** 2, axis=-1))
    mse = float(np.mean((reference.astype(np.float64) - decoded) ** 2))
    luma_mse = float(np.mean((luma_a - luma_b) ** 2))
    scales = [ssim_scales(reference[..., c], decoded[..., c]) for c in range(3)]
    luma_ms_ssim = combine_scales(ssim_scales(luma_a, luma_b))
    visible = float(np.mean(delta_e76 <= JND_DELTA_E76))
    bias_l, bias_a, bias_b = map(float, (lab_b - lab_a).mean(axis=(0, 1)))
    edges = artifacts.edge_artifacts(luma_a, luma_b)
    return Metrics(
        mse=mse,
        psnr=psnr_from_mse(mse),
        y_psnr=psnr_from_mse(luma_mse),
        ssim=float(np.mean([s[0][0] if s else math.nan for s in scales])),
        ms_ssim=float(np.mean([combine_scales(s) for s in scales])),
        cmssim=visible**0.7 * luma_ms_ssim,
        delta_e76=float(delta_e76.mean()),
        ciede2000=float(ciede2000_map(lab_a, lab_b).mean()),
        rgb_angle=float(rgb_angle_map(reference, decoded).mean()),
        psnr_b=psnr_from_mse(luma_mse + artifacts.blocking_effect(luma_b)),
        bias_l=bias_l,
        bias_a=bias_a,
        bias_b=bias_b,
        bias_block=float(np.linalg.norm(artifacts.block_bias(lab_a, lab_b), axis=-1).max()),
        blur=edges.blur,
        ringing=edges.ringing,
        ms_ssim_scales=len(scales[0]),
    )


def psnr_from_mse(mse: float) -> float:
    """Return 10 log10(255^2 / mse) in dB; inf for 0."""
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def _windowed_mean(x: np.ndarray) -> np.ndarray:
    """Gaussian mean of every 11 x 11 window that fits: (H, W) to (H - 10, W - 10)."""
    margin = WINDOW // 2
    return gaussian_filter(x, 1.5, radius=margin)[margin:-margin, margin:-margin]


def _halve(x: np.ndarray) -> np.ndarray:
    """Mean of 2 x 2 pixels; an odd side repeats its last row or column."""
    x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2)), mode="edge")
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def ssim_scales(a: np.ndarray, b: np.ndarray) -> list[tuple[float, float]]:
    """Mean SSIM and mean contrast-structure term at each dyadic scale, finest first.

    Wang et al. 2004 and 2003: 11 x 11 Gaussian window, sigma 1.5, K = 0.01 and 0.03,
    population covariance, 2 x 2 means between scales.

    Args:
        a, b: (H, W), 0..255.

    Returns:
        Up to five pairs (ssim, contrast_structure): fewer when a side is under 161
        pixels, none when it is under 11.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pairs = []
    while len(pairs) < len(MS_WEIGHTS) and min(a.shape) >= WINDOW:
        mean_a, mean_b = _windowed_mean(a), _windowed_mean(b)
        product = mean_a * mean_b
        squares = mean_a**2 + mean_b**2
        covariance = _windowed_mean(a * b) - product
        variances = _windowed_mean(a * a + b * b) - squares
        contrast = (2 * covariance + C2) / (variances + C2)
        similarity = contrast * (2 * product + C1) / (squares + C1)
        pairs.append((float(similarity.mean()), float(contrast.mean())))
        a, b = _halve(a), _halve(b)
    return pairs


def combine_scales(pairs: list[tuple[float, float]]) -> float:
    """MS-SSIM of `ssim_scales`' pairs (Wang et al. 2003); NaN for none.

    Contrast terms of all but the coarsest scale, SSIM of the coarsest; negative terms
    are clipped to 0, the weights of fewer than five scales are renormalised to sum 1.
    """
    if not pairs:
        return math.nan
    weights = MS_WEIGHTS[: len(pairs)]
    if len(pairs) < len(MS_WEIGHTS):
        weights = weights / weights.sum()
    terms = [contrast for _, contrast in pairs[:-1]] + [pairs[-1][0]]
    return float(np.prod(np.maximum(terms, 0) ** weights))


def ciede2000_map(lab_a: np.ndarray, lab_b: np.ndarray) -> np.ndarray:
    """CIEDE2000 per pixel (Sharma, Wu & Dalal 2005) by scikit-image: (..., 3) to (...)."""
    from skimage.color import deltaE_ciede2000

    return deltaE_ciede2000(lab_a, lab_b)


def rgb_angle_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between RGB vectors in degrees; 0 where either is black: (..., 3) to (...).

    By atan2(|a x b|, a . b), since acos loses small angles.
    """
    r, g, bl = (a[..., c].astype(np.float64) for c in range(3))
    s, h, t = (b[..., c].astype(np.float64) for c in range(3))
    cross = np.sqrt((g * t - bl * h) ** 2 + (bl * s - r * t) ** 2 + (r * h - g * s) ** 2)
    return np.degrees(np.arctan2(cross, r * s + g * h + bl * t))


def mean_row(rows: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """Mean of every numeric column of `rows`, plus how many rows went in.

    Infinite decibels (nothing differs) and NaN (no window fits) are left out of their
    column's mean unless no finite value is left; `identical` counts the rows of mse 0.

    Returns:
        ``{column: mean, ..., "images": count, "identical": count}``.
    """
    rows = list(rows)
    mean: dict[str, float] = {}
    for column in rows[0] if rows else ():
        values = [row.get(column) for row in rows]
        if all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values):
            finite = [float(v) for v in values if math.isfinite(v)]
            mean[column] = sum(finite) / len(finite) if finite else float(values[0])
    mean["images"] = len(rows)
    mean["identical"] = sum(1 for row in rows if row.get("mse") == 0)
    return mean
