"""What a picture's loss is, in forms that can be differentiated: squared errors, MS-SSIM, colour difference.

The last two are computed in float32 (float64 for float64 input) from values in about 0..1, as `mcml.metrics`
defines them for 8-bit pictures, but unclipped and unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from mcml.model.settings import LossConfig

# Of a stream's squared error in RGB's: mean squares of the columns of the matrix back to RGB.
RGB_SHARES = {"Y": 1.0, "Cb": (0.344136**2 + 1.772**2) / 3, "Cr": (1.402**2 + 0.714136**2) / 3, "RGB": 1.0}

MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
WINDOW, SIGMA = 11, 1.5
MS_SIDE_PX = WINDOW * 2 ** (len(MS_WEIGHTS) - 1)  # of the smallest pictures that have an MS-SSIM
C1, C2 = 0.01**2, 0.03**2

RGB_TO_XYZ = (  # IEC 61966-2-1, each row over the white point's D65
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
SRGB_LINEAR_END, LAB_LINEAR_END = 0.04045, 0.008856  # where the two curves leave their straight parts
EPSILON = 1e-4  # under roots, whose slope at 0 would be infinite: equal colours differ by 0.01


def ms_ssim(rgb: Tensor, rgb_hat: Tensor) -> Tensor:
    """Return MS-SSIM (B,) of (B, C, H, W), sides from `MS_SIDE_PX`: five scales, mean over channels."""
    pair = torch.stack([rgb, rgb_hat]).flatten(1, 2)  # (2, B C, H, W)
    product = torch.ones((), device=rgb.device, dtype=rgb.dtype)
    for scale, weight in enumerate(MS_WEIGHTS):
        if scale:
            pair = functional.avg_pool2d(pair, 2)
        x, y = pair
        rows, columns = (_window_means(side, rgb) for side in x.shape[-2:])
        mean_x, mean_y, xx, yy, xy = rows @ (torch.stack([x, y, x * x, y * y, x * y]) @ columns.T)
        squares, mixed = mean_x.square() + mean_y.square(), mean_x * mean_y
        term = (2 * (xy - mixed) + C2) / (xx + yy - squares + C2)
        if scale == len(MS_WEIGHTS) - 1:
            term = term * (2 * mixed + C1) / (squares + C1)
        product = product * term.mean((1, 2)).clamp(min=1e-3) ** weight
    return product.view(rgb.shape[:2]).mean(1)


def _window_means(side: int, like: Tensor) -> Tensor:
    """Return the matrix (side - 10, side) of means under the Gaussian window: faster than convolutions."""
    at = torch.arange(side, device=like.device, dtype=like.dtype)
    offset = at - at[: side - WINDOW + 1, None] - WINDOW // 2
    weights = torch.exp(-offset.square() / (2 * SIGMA**2)) * (offset.abs() <= WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def color_difference(rgb: Tensor, rgb_hat: Tensor) -> Tensor:
    """Return the mean CIE94 difference (B,) of sRGB (B, 3, H, W): CIEDE2000 without its turns of hue.

    Chroma and hue count less the more saturated the original (CIE 116-1995, graphic arts). Nothing is
    clipped: below 0 the curves go on as straight lines, above 1 as powers.
    """
    (l1, a1, b1), (l2, a2, b2) = (_lab(x).unbind(1) for x in (rgb, rgb_hat))
    c1, c2 = ((a.square() + b.square() + EPSILON).sqrt() for a, b in ((a1, b1), (a2, b2)))
    chroma = c2 - c1
    hue_squared = (a2 - a1).square() + (b2 - b1).square() - chroma.square()
    squares = (l2 - l1).square() + (chroma / (1 + 0.045 * c1)).square()
    squares = squares + hue_squared / (1 + 0.015 * c1).square()
    return (squares.clamp(min=0) + EPSILON).sqrt().mean((1, 2))


def _lab(rgb: Tensor) -> Tensor:
    """Convert (B, 3, H, W) sRGB to CIELAB, element by element: a matrix product would use bfloat16."""
    # Both branches of torch.where get a gradient, 0 times infinite for the one not taken: hence the clamps.
    power = ((rgb.clamp(min=SRGB_LINEAR_END) + 0.055) / 1.055) ** 2.4
    r, g, b = torch.where(rgb > SRGB_LINEAR_END, power, rgb / 12.92).unbind(1)
    x, y, z = (_compress(row[0] * r + row[1] * g + row[2] * b) for row in RGB_TO_XYZ)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def _compress(t: Tensor) -> Tensor:
    """CIELAB's cube root with its straight part near black."""
    return torch.where(t > LAB_LINEAR_END, t.clamp(min=LAB_LINEAR_END) ** (1 / 3), 7.787 * t + 16 / 116)


DISTORTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (B,), beside squared errors
    "dissimilarity": lambda x, x_hat: 1 - ms_ssim(x, x_hat),
    "color_difference": color_difference,
}


def mixed(errors: Tensor, seen: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """Let other distortions S count beside squared errors D, by their relative change: all (B,).

    With weights r of 1 for D and those of `config`, the gradient is D sum r (dS / S) / sum r: a weight says
    how many percent of squared error one percent of another is worth, whatever the rate.

    Args:
        errors: weighted sums of the streams' squared errors.
        seen: distortions by their names in `config`.
        config: the weights.
    """
    relative, total = {name: getattr(config, name) for name in seen}, errors
    for name, other in seen.items():
        total = total + relative[name] * errors.detach() / (other.detach() + 1e-3) * other
    return total / (1 + sum(relative.values()))
