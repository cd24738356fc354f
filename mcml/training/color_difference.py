"""CIEDE2000 of sRGB tensors, in a form that training can differentiate.

Constants are those of `mcml.metrics.color.rgb_to_lab` (scikit-image's: D65, 2 degrees), so that what
training lowers is what `mcml.metrics` reports. Everything is computed element by element in
float32, or in float64 for float64 input: a matrix product would fall to bfloat16 under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcml.base.errors import UsageError

RGB_TO_XYZ = (  # IEC 61966-2-1 with scikit-image's six digits
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degree observer
SRGB_LINEAR_END, LAB_LINEAR_END = 0.04045, 0.008856  # where the two curves leave their straight parts

# Added under the square root of a colour difference: its slope would be infinite at equal colours,
# which now differ by sqrt(1e-6) = 0.001; a difference of 1 gains 5e-7.
DIFFERENCE_EPSILON = 1e-6
CHROMA_EPSILON = 1e-10  # added to a squared chroma for the same reason: a grey has chroma 1e-5
GREY_CHROMA = 1e-4  # up to here CIEDE2000 takes a colour as grey, without a hue (whose slope is 1 / chroma)


def lab(rgb: Tensor) -> Tensor:
    """Convert sRGB to CIELAB (IEC 61966-2-1, D65, 2 degree observer), differentiably.

    Outside 0..1, where an unclipped decoder strays, nothing is clipped: below 0 both curves go on
    as straight lines, above 1 as powers, so that the gradient is finite and points back.

    Args:
        rgb: (B, 3, H, W), any floating dtype, 0..1.

    Returns:
        (B, 3, H, W) float32 (float64 for float64): L* in 0..100, a* and b* about -128..127.

    Raises:
        UsageError: for another shape, or integers (which would be 0..255).
    """
    if rgb.ndim != 4 or rgb.shape[1] != 3 or not rgb.is_floating_point():
        raise UsageError(
            f"RGB of shape {tuple(rgb.shape)}, {rgb.dtype}: expected (B, 3, H, W), floating, 0..1"
        )
    encoded = rgb if rgb.dtype == torch.float64 else rgb.float()
    # Both branches of torch.where get a gradient, 0 times infinite for the one not taken: hence the clamps.
    power = ((encoded.clamp(min=SRGB_LINEAR_END) + 0.055) / 1.055) ** 2.4
    linear = torch.where(encoded > SRGB_LINEAR_END, power, encoded / 12.92)
    r, g, b = linear.unbind(1)
    x, y, z = (
        _compress((row[0] * r + row[1] * g + row[2] * b) / white)
        for row, white in zip(RGB_TO_XYZ, WHITE, strict=True)
    )
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def _compress(t: Tensor) -> Tensor:
    """CIELAB's cube root with its straight part near black."""
    root = t.clamp(min=LAB_LINEAR_END) ** (1 / 3)
    return torch.where(t > LAB_LINEAR_END, root, 7.787 * t + 16 / 116)


def _lab_pair(rgb: Tensor, rgb_hat: Tensor) -> tuple[Tensor, Tensor]:
    if rgb.shape != rgb_hat.shape:
        raise UsageError(f"RGB shapes differ: {tuple(rgb.shape)} and {tuple(rgb_hat.shape)}")
    return lab(rgb), lab(rgb_hat)


def ciede2000(rgb: Tensor, rgb_hat: Tensor) -> Tensor:
    """Return the CIEDE2000 colour difference of every pixel (kL = kC = kH = 1).

    Args:
        rgb: (B, 3, H, W), any floating dtype, 0..1 (beyond: see `lab`).
        rgb_hat: the same shape.

    Returns:
        (B, H, W) float32 (float64 for float64), CIEDE2000 units, from 0.001 (`DIFFERENCE_EPSILON`).

    Raises:
        UsageError: if the shapes differ or are not (B, 3, H, W), or for integers.

    Source: Sharma, Wu & Dalal 2005, "The CIEDE2000 Color-Difference Formula".
    """
    return ciede2000_lab(*_lab_pair(rgb, rgb_hat))


def ciede2000_lab(lab1: Tensor, lab2: Tensor) -> Tensor:
    """Return CIEDE2000 between CIELAB colours (Sharma, Wu & Dalal 2005; kL = kC = kH = 1).

    The formula jumps where two hues are opposite, and its slope grows like chroma^-1/2 where one
    colour turns grey; `GREY_CHROMA` holds it to about 2,000, and a grey itself gets none from hue.

    Args:
        lab1: (B, 3, ...) float32 or float64: L*, a*, b*.
        lab2: the same shape and dtype.

    Returns:
        (B, ...), CIEDE2000 units, from 0.001 (`DIFFERENCE_EPSILON`).
    """
    l1, a1, b1 = lab1.unbind(1)
    l2, a2, b2 = lab2.unbind(1)
    stretch = 1.5 - 0.5 * _saturation((_chroma(a1, b1) + _chroma(a2, b2)) / 2)  # 1 + G
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = _chroma(a1, b1), _chroma(a2, b2)
    mean_c, mean_l50 = (c1 + c2) / 2, ((l1 + l2) / 2 - 50).square()
    difference_h, mean_h = _hues(a1, b1, a2, b2)
    d_c, d_h = c2 - c1, 2 * (c1 * c2).sqrt() * torch.sin(difference_h / 2)

    t = (
        1
        - 0.17 * torch.cos(mean_h - math.radians(30))
        + 0.24 * torch.cos(2 * mean_h)
        + 0.32 * torch.cos(3 * mean_h + math.radians(6))
        - 0.20 * torch.cos(4 * mean_h - math.radians(63))
    )
    s_l = 1 + 0.015 * mean_l50 / (20 + mean_l50).sqrt()
    s_c = 1 + 0.045 * mean_c
    s_h = 1 + 0.015 * mean_c * t
    angle = math.radians(60) * torch.exp(-((mean_h - math.radians(275)) / math.radians(25)).square())
    rotation = -2 * torch.sin(angle) * _saturation(mean_c)
    l_term, c_term, h_term = (l2 - l1) / s_l, d_c / s_c, d_h / s_h
    squares = l_term.square() + c_term.square() + h_term.square()
    # Never negative: |rotation| <= 2 sin 60 degrees < 2.
    return (squares + rotation * c_term * h_term + DIFFERENCE_EPSILON).sqrt()


def _chroma(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square() + CHROMA_EPSILON).sqrt()


def _saturation(c: Tensor) -> Tensor:
    """sqrt(c^7 / (c^7 + 25^7)), written so that c^7 near 0 is not the argument of a root."""
    ratio = c / 25
    return ratio**3.5 / (1 + ratio**7).sqrt()


def _hues(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of two hues, -pi..pi, and their mean over the shorter arc, 0..2 pi (radians)."""
    (h1, grey1), (h2, grey2) = _hue(a1, b1), _hue(a2, b2)
    difference, total = h2 - h1, h1 + h2
    turn = 2 * math.pi
    # Exactly opposite hues count as not wrapped (Sharma's pair 10); rounding must not decide that.
    half_turn = math.pi * (1 + 4 * torch.finfo(difference.dtype).eps)
    shorter = torch.where(difference > 0, difference - turn, difference + turn)
    other_mean = torch.where(total < turn, total + turn, total - turn) / 2
    wrapped = difference.abs() > half_turn
    difference, mean = torch.where(wrapped, shorter, difference), torch.where(wrapped, other_mean, total / 2)
    # With a grey the difference is 0, so that no term is left in which the mean counts.
    return torch.where(grey1 | grey2, 0.0, difference), mean


def _hue(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Hue angle in radians, 0..2 pi, and whether the colour is grey; a grey's is 0 with no gradient."""
    grey = a.square() + b.square() <= GREY_CHROMA**2
    h = torch.atan2(torch.where(grey, 0.0, b), torch.where(grey, 1.0, a))
    return torch.where(h < 0, h + 2 * math.pi, h), grey
