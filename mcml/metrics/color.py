"""Colour spaces: JFIF YCbCr (full-range BT.601) and CIELAB of 8-bit sRGB.

`colour` defaults to BT.709 in legal range; JPEG, JPEG 2000's irreversible transform and
this project use BT.601 in full range (ITU-T T.871): white is Y = 255, Cb = Cr = 128.
"""

from __future__ import annotations

import numpy as np

KR, KG, KB = 0.299, 0.587, 0.114  # ITU-R BT.601 luma weights

RGB_TO_YCBCR = np.array(
    [
        [KR, KG, KB],
        [-KR / (2 - 2 * KB), -KG / (2 - 2 * KB), 0.5],
        [0.5, -KG / (2 - 2 * KR), -KB / (2 - 2 * KR)],
    ]
)
YCBCR_TO_RGB = np.linalg.inv(RGB_TO_YCBCR)


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """Convert R'G'B' to unrounded JFIF Y'CbCr (ITU-T T.871, section 7).

    Args:
        rgb: (..., 3), 0..255, any real dtype.

    Returns:
        (..., 3) float64: Y in 0..255, Cb and Cr in 0..255 centred at 128.

    >>> rgb_to_ycbcr(np.array([255, 0, 0])).round(2).tolist()
    [76.24, 84.97, 255.5]
    """
    out = np.asarray(rgb, dtype=np.float64) @ RGB_TO_YCBCR.T
    out[..., 1:] += 128
    return out


def ycbcr_to_rgb(ycbcr: np.ndarray) -> np.ndarray:
    """Invert `rgb_to_ycbcr`, unrounded and unclipped: (..., 3) float64."""
    centred = np.asarray(ycbcr, dtype=np.float64) - np.array([0.0, 128.0, 128.0])
    return centred @ YCBCR_TO_RGB.T


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return unrounded JFIF luma: (..., 3) in 0..255 to (...) float64 in 0..255."""
    return np.asarray(rgb, dtype=np.float64) @ RGB_TO_YCBCR[0]


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Round to nearest and clip to 0..255."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """Convert 8-bit sRGB to CIELAB (IEC 61966-2-1, D65, 2 degree observer) by scikit-image.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (H, W, 3) float64: L* in 0..100, a* and b* about -128..127.
    """
    from skimage.color import rgb2lab

    return rgb2lab(np.asarray(rgb, dtype=np.uint8), illuminant="D65", observer="2")
