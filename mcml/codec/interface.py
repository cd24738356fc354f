"""All codecs by name behind one interface, and the one search for a wanted rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mcml.base.errors import UsageError, choose
from mcml.codec import classical, ffmpeg
from mcml.codec.classical import QualityRange
from mcml.codec.learned import LearnedCodec
from mcml.model.model_files import identity, model_folder, released, writers

TOLERANCE = 0.02  # relative distance from the wanted rate that counts as a hit

_learned: dict[tuple[str, bytes], LearnedCodec] = {}


class Codec(Protocol):
    """Bytes from an image (H, W, 3) uint8 sRGB and back; `quality_range` says which qualities there are."""

    name: str
    quality_range: QualityRange
    qualities: tuple[float, ...]

    def encode(self, image: np.ndarray, quality: float) -> bytes:
        """Compress."""

    def encoder(self, image: np.ndarray, **options: Any) -> Callable[[float], bytes]:
        """Do what is done once for an image; return what compresses it at any quality."""

    def decode(self, data: bytes) -> np.ndarray:
        """Decompress."""


def names() -> list[str]:
    """Return the names of the codecs that are here, in the order of the tables: released networks first."""
    return [*writers(), *classical.CODECS, *(ffmpeg.CODECS if ffmpeg.is_here() else ())]


def get_codec(name: str) -> Codec:
    """Return a codec by name, or a learned one by its model's folder.

    Raises:
        DataError: for a model that writes no files, or a codec whose package is not installed.
        UsageError: naming the nearest for an unknown name.
    """
    if name in classical.CODECS:
        return classical.CODECS[name]
    if name in ffmpeg.CODECS:
        ffmpeg.executable(name)
        return ffmpeg.CODECS[name]
    if not Path(name).is_dir() and name not in released():
        choose("codec", name, names())
    key = (name, identity(model_folder(name)))  # a folder may be trained anew
    if key not in _learned:
        _learned[key] = LearnedCodec(name)
    return _learned[key]


def bits_per_pixel(data: bytes, image: np.ndarray) -> float:
    """Return 8 x bytes of the whole file / (width x height)."""
    return 8 * len(data) / (image.shape[0] * image.shape[1])


@dataclass(frozen=True)
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

    @property
    def miss(self) -> float:
        """The logarithm of `bpp` over `target_bpp`."""
        return float(np.log(self.bpp / self.target_bpp))

    def explain(self, codec: str) -> str:
        """Say how far the search got, in one sentence."""
        off = f"{100 * (self.bpp / self.target_bpp - 1):+.1f} %"
        nearest = f"nearest to {self.target_bpp:g} bpp is {self.bpp:.4f} bpp ({off})"
        return f"{codec}: {nearest} at quality {self.quality:g}"


def encode_at_bpp(
    codec: Codec,
    image: np.ndarray,
    target_bpp: float,
    *,
    encoder: Callable[[float], bytes] | None = None,
    **options: Any,
) -> RateSearch:
    """Find the quality whose file is nearest to a wanted size, by a bracketing search of the codec's range.

    Args:
        codec: any codec; its files grow along its range, save for small wobbles.
        image: (H, W, 3) uint8 sRGB.
        target_bpp: bits per pixel of the file, above 0.
        encoder: `codec.encoder(image)`, to search several rates of one image.
        options: of `codec.encoder`.

    Returns:
        The file nearest to the target; see `RateSearch.reached`.

    Raises:
        UsageError: for a target that is no number above 0.
    """
    if not 0 < target_bpp < np.inf:
        raise UsageError(f"target bpp {target_bpp}: expected a number above 0")
    encode = encoder or codec.encoder(image, **options)
    at, tried = codec.quality_range.at, dict[float, RateSearch]()

    def attempt(position: float) -> float:
        quality = at(position)
        if quality not in tried:
            data = encode(quality)
            tried[quality] = RateSearch(data, quality, bits_per_pixel(data, image), target_bpp)
        return tried[quality].miss

    low, high = 0.0, 1.0
    below = above = None  # misses at `low` and `high`, once known
    side = 0  # on which side how many of the last trials fell
    for _ in range(14):
        share = 0.5
        if below is not None and above is not None:  # where a line through both ends would hit
            share = min(max(below / (below - above), 0.02), 0.98)
        middle = low + share * (high - low)
        miss = attempt(middle)
        if abs(miss) < TOLERANCE / 8 or high - low < 1e-3:  # files hardly change over less
            break
        if codec.quality_range.kind == "integer" and abs(at(high) - at(low)) <= 1:
            break
        if miss < 0:
            low, below, side = middle, miss, max(0, side) + 1
            if side >= 2:  # Illinois' rule: an end that stays counts half; one not yet tried is tried
                above = attempt(high) if above is None else above / 2
        else:
            high, above, side = middle, miss, min(0, side) - 1
            if side <= -2:
                below = attempt(low) if below is None else below / 2
        if (above or 1) < 0 or (below or -1) > 0:  # beyond the range's end
            break
    for end in (low, high):  # neighbours of the last step, or an end of the range
        attempt(end)
    return min(tried.values(), key=lambda search: abs(search.miss))
