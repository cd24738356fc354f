"""One picture at any rate: what does not hang on the dial is done once, and a file is never decoded twice."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mcml.codec import container
from mcml.codec.interface import bits_per_pixel, get_codec
from mcml.codec.latents import CodedStream
from mcml.codec.learned import LearnedCodec, one_thread

KEPT = 32  # steps of a picture
PLACES = 200  # of a slider over a codec's range


@dataclass(frozen=True)
class Step:
    """A picture at one quality.

    Attributes:
        quality: of the codec's own range.
        data: the file.
        image: what it decodes to, (H, W, 3) uint8.
        bpp: bits per pixel of the file.
        parts: bytes by stream, and "framing" (header, lengths, checksums); "file" of a classical codec.
        seconds: of "code" and "decode".
    """

    quality: float
    data: bytes
    image: np.ndarray
    bpp: float
    parts: dict[str, int]
    seconds: dict[str, float]


class Explorer:
    """A picture and a codec, whose analysis is kept; `at` gives the file and its decode at a quality."""

    def __init__(self, image: np.ndarray, codec: str) -> None:
        """Analyse (H, W, 3) uint8 sRGB by a codec's name or a model's folder."""
        self.image, self.codec = image, get_codec(codec)
        self.learned = isinstance(self.codec, LearnedCodec)
        self.analysis = self.codec.analyse(image) if self.learned else None
        self.at, self._code = lru_cache(KEPT)(self._at), lru_cache(KEPT)(self._code)

    def place(self, position: int) -> Step:
        """Return the step at 0 (fewest bytes) to `PLACES` (most) of the codec's range."""
        return self.at(self.codec.quality_range.at(position / PLACES))

    def position(self, bpp: float) -> int:
        """Return the first of these places whose file has so many bits per pixel, or the last."""

        def rate(position: int) -> float:
            return bits_per_pixel(self._code(self.codec.quality_range.at(position / PLACES))[0], self.image)

        return bisect_left(range(PLACES), bpp, key=rate)

    def _at(self, quality: float) -> Step:
        data, codes, seconds = self._code(quality)
        began = time.perf_counter()
        if not self.learned:
            image, parts = self.codec.decode(data), {"file": len(data)}
        else:
            header, chunks = container.read(data)
            synthesise = self.codec.synthesise_latents if self.codec.scalar else self.codec.synthesise
            image, parts = synthesise(header, codes), Counter[str]()
            for (_, _, stream, _), chunk in zip(header.order(), chunks, strict=True):
                parts[self.codec.coder.keys[stream]] += len(chunk)
            parts["framing"] = len(data) - parts.total()
        took = {"code": seconds, "decode": time.perf_counter() - began}
        return Step(quality, data, image, bits_per_pixel(data, image), dict(parts), took)

    def _code(self, quality: float) -> tuple[bytes, dict, float]:
        """Return a file, of a learned codec what the entropy decoder would read from it, and the seconds."""
        codec, codes, began = self.codec, {}, time.perf_counter()
        if not self.learned:
            data = codec.encode(self.image, quality)
        elif codec.scalar:
            kept = dict[tuple, CodedStream]()
            codec.quality_range.check(quality, codec.name)
            with one_thread():
                header = codec.header(self.analysis)
                data = codec.coder.write(header, self.analysis, quality, kept=kept).data
            codes = {name[0]: coded.symbols for name, coded in kept.items()}
        else:
            data = codec.pack(self.analysis, quality).data
            header, _ = container.read_header(data)
            codes = {k: (bits, codec.coder.uniform(header, k)) for k, bits in self.analysis.bits.items()}
        return data, codes, time.perf_counter() - began
