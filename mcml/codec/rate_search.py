"""The interface that every codec has, and the search for a wanted rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mcml.base.errors import UsageError
from mcml.codec.classical import QualityRange

SMALLEST_STEP = 1e-3  # of a range: files hardly change over less
TOLERANCE = 0.02  # relative distance from the wanted rate that counts as a hit


class Codec(Protocol):
    """Bytes from an image and back; `quality_range` says which qualities there are."""

    name: str
    quality_range: QualityRange
    qualities: tuple[float, ...]

    def encode(self, image: np.ndarray, quality: float) -> bytes:
        """Compress (H, W, 3) uint8 sRGB."""

    def decode(self, data: bytes) -> np.ndarray:
        """Decompress to (H, W, 3) uint8 sRGB."""


def bits_per_pixel(data: bytes, image: np.ndarray) -> float:
    """Return 8 x bytes of the whole file / (width x height)."""
    return 8 * len(data) / (image.shape[0] * image.shape[1])


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """What a search for a rate found: the nearest file, and whether it is near enough."""

    data: bytes
    quality: float
    bpp: float
    target_bpp: float

    @property
    def reached(self) -> bool:
        """Whether `bpp` lies within 2 % of `target_bpp`."""
        return abs(self.bpp / self.target_bpp - 1) <= TOLERANCE

    def explain(self, codec: str) -> str:
        """Say how far the search got, in one sentence."""
        return (
            f"{codec}: nearest to {self.target_bpp:g} bpp is {self.bpp:.4f} bpp "
            f"({100 * (self.bpp / self.target_bpp - 1):+.1f} %) at quality {self.quality:g}"
        )


@runtime_checkable
class SearchingCodec(Codec, Protocol):
    """A codec that knows a better search than trials of its qualities."""

    def search(self, image: np.ndarray, target_bpp: float) -> RateSearch:
        """Find the quality whose file is nearest to a wanted size."""


def encode_at_bpp(codec: Codec, image: np.ndarray, target_bpp: float, steps: int = 14) -> RateSearch:
    """Find the quality whose file is nearest to a wanted size, by a bracketing search of its range.

    A codec that has a `search` of its own, as the learned ones whose networks need to run but once,
    is asked to do it.

    Args:
        codec: any codec; its files grow along its range, save for small wobbles.
        image: (H, W, 3) uint8 sRGB.
        target_bpp: bits per pixel of the file, above 0.
        steps: trials at most, before the last bracket's ends.

    Returns:
        The file nearest to the target; see `RateSearch.reached`.
    """
    if not 0 < target_bpp < np.inf:
        raise UsageError(f"target bpp {target_bpp}: expected a number above 0")
    if isinstance(codec, SearchingCodec):
        return codec.search(image, target_bpp)
    tried: dict[float, RateSearch] = {}

    def attempt(position: float) -> RateSearch:
        quality = codec.quality_range.at(position)
        if quality not in tried:
            data = codec.encode(image, quality)
            tried[quality] = RateSearch(
                data=data, quality=quality, bpp=bits_per_pixel(data, image), target_bpp=target_bpp
            )
        return tried[quality]

    low, high = 0.0, 1.0
    below = above = None  # log of rate over target at `low` and `high`, once known
    same_side = 0  # how often the last trials fell on one side: then a plain halving is better
    for _ in range(steps):
        # where a straight line through both ends would hit, kept off the ends themselves
        straight = below is not None and above is not None and abs(same_side) < 2
        share = min(max(below / (below - above), 0.1), 0.9) if straight else 0.5
        middle = low + share * (high - low)
        found = attempt(middle)
        miss = float(np.log(found.bpp / target_bpp))
        if abs(miss) < TOLERANCE / 8 or high - low < SMALLEST_STEP:
            break
        if (
            codec.quality_range.kind == "integer"
            and abs(codec.quality_range.at(high) - codec.quality_range.at(low)) <= 1
        ):
            break
        if miss < 0:
            low, below, same_side = middle, miss, max(0, same_side) + 1
        else:
            high, above, same_side = middle, miss, min(0, same_side) - 1
    for end in (low, high):  # neighbours of the last step, or an end of the range
        attempt(end)
    return min(tried.values(), key=lambda found: abs(np.log(found.bpp / target_bpp)))
