"""The lossless half of a codec of scalar latents: latents and a dial to a file, a file to symbols."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from mcml.base.errors import CorruptStreamError
from mcml.codec import container, prior
from mcml.codec.bits import Reader, Writer
from mcml.codec.container import DIGEST_BYTES, Header
from mcml.codec.prior import Expected, StreamPrior
from mcml.codec.tiles import FULL, Encoded

Symbols = dict[str, np.ndarray]  # by stream, (h, w, n) int16


@dataclass
class Latents:
    """What the encoders' networks say of a picture, on its grid of h x w positions.

    Attributes:
        size: (H, W) in pixels.
        tile_px: side of the tiles that are coded apart.
        latents: by stream, (h, w, n) float32, before the gains.
        hyper: by stream that has a hyperprior, its symbols, (h / 4, w / 4, 32) int8.
        seconds: that it took.
    """

    size: tuple[int, int]
    tile_px: int
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    hyper: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


class CodedStream(NamedTuple):
    """A stream's symbols (h, w, n) int16, the chunks of a file that hold them, and their ideal bits."""

    symbols: np.ndarray
    chunks: list[bytes]
    ideal_bits: Counter[str]


class LatentCoder:
    """All streams' priors, and how a quality becomes their dials.

    Attributes:
        keys: the streams in coding order.
        priors: a `StreamPrior` each.
    """

    has_maps = False

    def __init__(self, priors: Mapping[str, StreamPrior], color_share: float = 0.0, rounding: float = 0.0):
        """Take the priors and what a model's encoder does unless told otherwise, as in `write`."""
        self.keys, self.priors = tuple(priors), dict(priors)
        self.color_share, self.rounding = color_share, rounding

    def dials(self, quality: float, color_share: float | None = None) -> tuple[int, ...]:
        """Return each stream's dial at a quality; colour's is of a quality that is `color_share` higher."""
        share = self.color_share if color_share is None else color_share
        qualities = [quality + share * (key in ("Cb", "Cr")) for key in self.keys]
        return tuple(round(min(max(q, 0), FULL) / FULL * prior.DIALS) for q in qualities)

    # ----------------------------------------------------------------------------- to a file

    def write(
        self, header: Header, analysis: Latents, quality: float, *, color_share: float | None = None,
        rounding: float | None = None, kept: dict[tuple, CodedStream] | None = None,
    ) -> Encoded:  # fmt: skip
        """Code an analysis into a file.

        Args:
            header: without dials and digest, which are put in here.
            analysis: of a picture of the header's size.
            quality: 0 to 100.
            color_share: points of quality that colour has beyond luma's.
            rounding: bits that a squared error of one step is worth: a symbol is moved towards its mean
                where that saves more; 0 rounds to the nearest.
            kept: streams of this analysis as coded before, by stream, dials up to its own and rounding: they
                are not coded anew, and what is coded is added.
        """
        header = replace(header, version=container.LATENTS, rates=self.dials(quality, color_share))
        weight = self.rounding if rounding is None else rounding
        encoded, sha, kept = Encoded(), _sha(header), {} if kept is None else kept
        symbols, chunks = Symbols(), []
        for stream, key in enumerate(self.keys):
            name = (key, header.rates[: stream + 1], weight)
            if name not in kept:
                kept[name] = self._code(header, stream, analysis, symbols, weight)
            symbols[key], own_chunks, ideal_bits = kept[name]
            for tile in header.tiles():
                if self.priors[key].hyper:
                    sha.update(analysis.hyper[key][hyper_of(tile)].tobytes())
                sha.update(symbols[key][tile].astype("<i2").tobytes())
            chunks += own_chunks
            encoded.ideal_bits.update(ideal_bits)
        header = replace(header, digest=sha.digest()[:DIGEST_BYTES])
        encoded.data = container.write(header, chunks)
        return encoded

    def _code(
        self, header: Header, stream: int, analysis: Latents, symbols: Symbols, weight: float
    ) -> CodedStream:
        """Choose and code a stream's symbols, tile by tile, given those of the streams before it."""
        key, ideal_bits, chunks = self.keys[stream], Counter[str](), list[bytes]()
        dial, own = header.rates[stream], self.priors[key]
        symbols = symbols | {key: np.empty(analysis.latents[key].shape, np.int16)}
        gain = prior.power_of_two(own.log_gains(dial), prior.LOG_BITS) * 2.0**-prior.LOG_BITS
        for tile in header.tiles():
            writer, hyper = Writer(), None
            if own.hyper:
                hyper = analysis.hyper[key][hyper_of(tile)]
                given = own.hyper_given(*_extent(tile))
                prior.write_symbols(hyper.reshape(-1).astype(np.float64), given, writer)
                ideal_bits[f"{key} hyper"] += writer.bits
            scaled = analysis.latents[key][tile] * gain
            wanted = np.clip(scaled, -prior.SYMBOL_MAX, prior.SYMBOL_MAX)
            before, coded = writer.bits, symbols[key][tile]
            for given, where, take in self._passes(header, stream, tile, hyper, symbols):
                flat = np.concatenate([wanted[y, x][..., own_].ravel() for y, x, own_ in where])
                chosen = prior.choose(flat, given, weight)
                prior.write_symbols(chosen, given, writer)
                take(chosen)
                _place(coded, where, chosen)
            ideal_bits[key] += writer.bits - before
            chunks.append(writer.finish())
        return CodedStream(symbols[key], chunks, ideal_bits)

    def _passes(
        self,
        header: Header,
        stream: int,
        tile: tuple[slice, slice],
        hyper: np.ndarray | None,
        symbols: Symbols,
    ) -> Iterator[tuple[Expected, list, object]]:
        """Yield the steps of a tile, given the streams before it."""
        own, extent = self.priors[self.keys[stream]], _extent(tile)
        known = [
            self.priors[key].inputs(symbols[key][tile].astype(np.float64), header.rates[self.keys.index(key)])
            for key in own.known
        ]
        side = own.features(*extent, hyper, known)
        return own.passes(*extent, header.rates[stream], side)

    # --------------------------------------------------------------------------- from a file

    def read(
        self, header: Header, chunks: Sequence[bytes], *, luma_only: bool = False, layers: int | None = None
    ) -> tuple[Symbols, int]:
        """Decode the chunks of `container.read`; those of a cut file leave zeros in the tiles that lack.

        Returns:
            By stream of which a tile is there, the symbols; and 1 if all are there, else 0.

        Raises:
            CorruptStreamError: if no such model can have written the header, if symbols cannot be decoded,
                or differ from those that were encoded.
        """
        if len(header.rates) != len(self.keys):
            counts = len(header.rates), len(self.keys)
            raise CorruptStreamError("the header names {} streams, the model has {}".format(*counts))
        if max(header.rates) > prior.DIALS:
            raise CorruptStreamError("the header holds a dial beyond the format's")
        if not chunks:
            raise CorruptStreamError("the file ends, or is damaged, before its first tile is whole")
        keys = self.keys[:1] if luma_only and "Y" in self.keys else self.keys
        tiles, symbols, sha = header.tiles(), {}, _sha(header)
        for number, chunk in enumerate(chunks[: len(keys) * len(tiles)]):
            stream, tile = number // len(tiles), tiles[number % len(tiles)]
            key, reader, hyper = keys[stream], Reader(chunk), None
            own, extent = self.priors[key], _extent(tile)
            if key not in symbols:
                symbols[key] = np.zeros((*header.grid, own.n), np.int16)
            if own.hyper:
                found = prior.read_symbols(own.hyper_given(*extent), reader)
                if np.abs(found).max() > prior.HYPER_MAX:
                    raise CorruptStreamError("a chunk's symbols lie beyond what an encoder writes")
                hyper = found.reshape(own.hyper_shape(*extent)).astype(np.int8)
                sha.update(hyper.tobytes())
            coded = symbols[key][tile]
            for given, where, take in self._passes(header, stream, tile, hyper, symbols):
                values = prior.read_symbols(given, reader)
                take(values)
                _place(coded, where, values)
            reader.finish()
            sha.update(coded.astype("<i2").tobytes())
        whole = len(chunks) == header.chunk_count()
        if whole and keys == self.keys and sha.digest()[:DIGEST_BYTES] != header.digest:
            raise CorruptStreamError("the decoded integers differ from those that were encoded")
        return symbols, int(len(chunks) >= len(keys) * len(tiles))


def _sha(header: Header) -> hashlib._Hash:
    return hashlib.sha256(struct.pack("<HH", header.width, header.height))


def _extent(tile: tuple[slice, slice]) -> tuple[int, int]:
    rows, columns = tile
    return rows.stop - rows.start, columns.stop - columns.start


def hyper_of(tile: tuple[slice, slice]) -> tuple[slice, ...]:
    """Return a tile's place among the hyperprior's symbols; tiles begin at multiples of 8 positions."""
    return tuple(slice(s.start // 4, -(-s.stop // 4)) for s in tile)


def _place(into: np.ndarray, where: Sequence[prior.Place], values: np.ndarray) -> None:
    """Put a step's symbols (N,) in their places of a tile (h, w, n)."""
    begin = 0
    for y, x, channels in where:
        part = into[y, x]
        count = part.shape[0] * part.shape[1] * len(channels)
        part[..., channels] = values[begin : begin + count].reshape(*part.shape[:2], len(channels))
        begin += count
