"""The lossless half of a learned codec: bits and importance logits to a file, a file to integers."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mcml.base import STRIDE
from mcml.base.errors import CorruptStreamError, DataError, UsageError
from mcml.codec import bits as entropy
from mcml.codec import container as bitstream
from mcml.codec.container import DIGEST_BYTES, Header
from mcml.codec.order import LEVEL_PASSES, SPREADS, flat_levels

FULL = 100.0  # percent: every group open


class Piece(NamedTuple):
    """One tile's analysis by stream: packed bits (h, w, n / 8) and importance logits (h, w)."""

    bits: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]


@dataclass
class Encoded:
    """A file and what it took.

    Attributes:
        data: the file.
        ideal_bits: ideal code length by stream, and by "<stream> map".
        raw_bits: unmasked bits, and levels at log2 L each, by the same keys.
        seconds: spent in "networks" and in "entropy".
    """

    data: bytes
    ideal_bits: dict[str, float] = field(default_factory=dict)
    raw_bits: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class TileCoder:
    """All streams' entropy coders, and how a quality becomes their levels."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        """Take a model's configuration (as in config.json) and its integers by "stream.name".

        Raises:
            DataError: if the integers are not those of an entropy coder.
        """
        try:
            self._take(config, tensors)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"the model's configuration and entropy coder disagree ({error!r})") from error

    def _take(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self.keys = {"rgb": ("RGB",), "luma": ("Y",)}.get(config["variant"], ("Y", "Cb", "Cr"))
        self.configs = {k: config["color" if k in ("Cb", "Cr") else "luma"] for k in self.keys}
        self.coders = {
            key: entropy.BitCoder(
                {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith(f"{key}.")}
            )
            for key in self.keys
        }
        self.tables = {key: tensors.get(f"{key}.levels") for key in self.keys}
        for key, of in self.configs.items():
            table, coder = self.tables[key], self.coders[key]
            shape = (LEVEL_PASSES, len(SPREADS) + 1, of["levels"], of["levels"])
            if coder.n != of["code_channels"] or len(coder.sizes) != of["levels"] - 1:
                raise DataError(f"the entropy coder of {key} is of another code than the model's")
            if table is not None and table.shape != shape:
                raise DataError(f"the level tables of {key} are {table.shape}, expected {shape}")

    def tops(self) -> dict[str, int]:
        """Return the highest level of each stream."""
        return {key: config["levels"] - 1 for key, config in self.configs.items()}

    def rates(self, quality: float) -> tuple[int, ...]:
        """Return each stream's level x 256 at a quality: that percentage of its levels.

        Colour following luma like this was as good in PSNR as a table of equal slopes, and better in
        CIEDE2000.
        """
        return tuple(round(quality / FULL * top * 256) for top in self.tops().values())

    def flat(self, header: Header, key: str, tile: tuple[int, int, int, int]) -> np.ndarray:
        """Return a tile's levels (h, w) where no map is sent: nearly one level, dithered."""
        top, left, height, width = tile
        size = -(-height // STRIDE), -(-width // STRIDE)
        levels = flat_levels(header.rates[self.keys.index(key)], *size, top // STRIDE, left // STRIDE)
        return np.minimum(levels, self.tops()[key])

    def adaptive(self, key: str, logits: np.ndarray, quality: float) -> np.ndarray:
        """Return the levels (h, w) of an importance map's logits, the quality being the bias."""
        share = min(max(quality / FULL, 1e-4), 1 - 1e-4)  # the ends leave strong logits their say
        p = 1 / (1 + np.exp(-(logits.astype(np.float64) + math.log(share / (1 - share)))))
        top = self.tops()[key]
        return np.clip(np.floor(p * (top + 1)), 0, top).astype(np.int64)

    def limit(self, header: Header, key: str) -> int:
        """Return how many groups a stream of a flat file has at most."""
        rate = header.rates[self.keys.index(key)]
        return min(len(self.coders[key].sizes), -(-rate // 256))

    def last_group(self, header: Header, key: str, layer: int, opened: np.ndarray) -> int:
        """Return the last group (from 1) of a layer in a tile of which positions have `opened` groups.

        Layers share a flat file's groups evenly; an adaptive one's, of which the later are open at few
        positions, so that each layer sends about as many of the tile's open groups.
        """
        if not header.adaptive:
            return self.limit(header, key) * (layer + 1) // header.layers
        sent = np.cumsum([np.count_nonzero(opened > group) for group in range(int(opened.max()))])
        return int(np.searchsorted(header.layers * sent, (layer + 1) * sent[-1])) + 1 if len(sent) else 0

    def write(self, header: Header, pieces: Sequence[Piece], quality: float) -> Encoded:
        """Code the tiles' analyses into a file.

        Args:
            header: without rates and digest, which are put in here.
            pieces: a tile each, in the order of `Header.tiles`.
            quality: 0 to 100.

        Raises:
            UsageError: if importance maps are wanted of a model that has none.
        """
        adaptive = header.adaptive
        if adaptive and any(table is None for table in self.tables.values()):
            raise UsageError("the model has no importance maps, so it writes no adaptive files")
        levels: list[dict[str, np.ndarray]] = []
        header = replace(header, rates=self.rates(quality))
        for piece, tile in zip(pieces, header.tiles(), strict=True):
            levels.append(
                {key: self.adaptive(key, piece.logits[key], quality) for key in self.keys}
                if adaptive
                else {key: self.flat(header, key, tile) for key in self.keys}
            )
        if adaptive:
            middles = [int(np.median(np.concatenate([of[k].ravel() for of in levels]))) for k in self.keys]
            header = replace(header, rates=tuple(middles))
        result = Encoded(b"")
        digest = hashlib.sha256(struct.pack("<HH", header.width, header.height))
        chunks: dict[tuple[int, int, int, str], bytes] = {}
        for number, (piece, of) in enumerate(zip(pieces, levels, strict=True)):
            for name, chunk in self._write_tile(header, piece, of, result).items():
                chunks[(name[0], number, *name[1:])] = chunk
            for key in self.keys:
                code = unpack(piece.bits[key], self.coders[key].n)
                mask = self.channel_groups(key) <= of[key][..., None]
                _update(digest, of[key], code & mask)
        header = replace(header, digest=digest.digest()[:DIGEST_BYTES])
        result.data = bitstream.write(header, [chunks[name] for name in header.order()])
        return result

    def channel_groups(self, key: str) -> np.ndarray:
        """Return (n,) each channel's group from 1."""
        sizes = self.coders[key].sizes
        return np.repeat(np.arange(1, len(sizes) + 1), sizes)

    def _write_tile(
        self, header: Header, piece: Piece, levels: Mapping[str, np.ndarray], result: Encoded
    ) -> dict[tuple[int, int, str], bytes]:
        chunks: dict[tuple[int, int, str], bytes] = {}
        states: dict[str, entropy.BitState] = {}
        for layer in range(header.layers):
            for number, key in enumerate(self.keys):
                coder, level = self.coders[key], levels[key]
                if layer == 0 and header.adaptive:
                    writer = entropy.Writer()
                    entropy.write_levels(level, self.tables[key], header.rates[number], writer)
                    chunks[layer, number, "map"] = writer.finish()
                    _add(result, f"{key} map", writer.bits, level.size * math.log2(self.tops()[key] + 1))
                upto = self.prepare(header, key, level, states, layer)
                if not upto:
                    chunks[layer, number, "bits"] = b""
                    _add(result, key, 0.0, 0.0)
                    continue
                writer = entropy.Writer()
                opened, state = level, states[key]
                sizes = coder.sizes[state.group : upto]
                raw = sum(s * int((opened > state.group + i).sum()) for i, s in enumerate(sizes))
                coder.write(state, unpack(piece.bits[key], coder.n), opened, upto, writer)
                chunks[layer, number, "bits"] = writer.finish()
                _add(result, key, writer.bits, raw)
        return chunks

    def prepare(
        self, header: Header, key: str, level: np.ndarray, states: dict[str, entropy.BitState], layer: int
    ) -> int:
        """Make a stream's state, or tell it what the streams before it have learned since.

        Returns:
            The last of the layer's groups, from 1; 0 if it holds none of the stream.
        """
        before = [states[k] for k in self.keys[: self.keys.index(key)]]
        coder, upto = self.coders[key], self.last_group(header, key, layer, level)
        if layer == 0:
            field_ = 2 * level - self.tops()[key] if header.adaptive else None
            states[key] = coder.begin(*level.shape, field_, before)
        elif states[key].group < upto:
            coder.refresh(states[key], before)
        return upto if states[key].group < upto else 0

    def check(self, header: Header) -> None:
        """Raise `CorruptStreamError` for a header that this model cannot have written."""
        if len(header.rates) != len(self.keys):
            raise CorruptStreamError(
                f"the header names {len(header.rates)} streams, the model has {len(self.keys)}"
            )
        for rate, top in zip(header.rates, self.tops().values(), strict=True):
            if rate > (top if header.adaptive else 256 * top):
                raise CorruptStreamError("the header holds a rate beyond the model's levels")
        if header.adaptive and any(table is None for table in self.tables.values()):
            raise CorruptStreamError("the header promises importance maps, the model has none")

    def read(
        self, header: Header, chunks: Sequence[bytes], luma_only: bool, layers: int | None
    ) -> tuple[list[dict[str, tuple[np.ndarray, np.ndarray]]], int]:
        """Decode the chunks of `bitstream.read`.

        Returns:
            By tile and stream, packed bits (h, w, n / 8) and opened groups (h, w) uint8; and how many
            layers were whole.

        Raises:
            CorruptStreamError: if symbols cannot be decoded, or differ from those that were encoded.
        """
        self.check(header)
        order = list(zip(header.order(), chunks, strict=False))
        complete = len(order) == header.chunk_count()
        tiles = header.tiles()
        by_tile: list[dict[tuple[int, int, str], bytes]] = [{} for _ in tiles]
        for (layer, tile, number, kind), chunk in order:
            by_tile[tile][layer, number, kind] = chunk
        keys = self.keys[:1] if luma_only and "Y" in self.keys else self.keys
        wanted = header.layers if layers is None else min(max(1, layers), header.layers)
        present = [
            [all((layer, n, "bits") in of for of in by_tile) for n in range(len(keys))]
            for layer in range(wanted)
        ]
        if not present[0][0]:
            raise CorruptStreamError("the file ends, or is damaged, before its first stream is whole")
        digest = hashlib.sha256(struct.pack("<HH", header.width, header.height))
        found = []
        for of, tile in zip(by_tile, tiles, strict=True):
            states: dict[str, entropy.BitState] = {}
            levels: dict[str, np.ndarray] = {}
            for layer in range(wanted):
                for number in range(len(keys)):
                    if not all(present[layer][: number + 1]) or not all(p[number] for p in present[:layer]):
                        continue
                    self._read_chunk(header, of, tile, layer, number, states, levels)
            packed = {}
            for key, state in states.items():
                bits = np.packbits(state.code() > 0, axis=-1)
                opened = np.minimum(levels[key], state.group).astype(np.uint16)
                packed[key] = (bits, opened)
                _update_packed(digest, levels[key], bits)
            found.append(packed)
        whole = complete and wanted == header.layers and keys == self.keys
        if whole and digest.digest()[:DIGEST_BYTES] != header.digest:
            raise CorruptStreamError("the decoded integers differ from those that were encoded")
        return found, sum(all(p) for p in present)

    def _read_chunk(
        self, header: Header, chunks: Mapping[tuple[int, int, str], bytes], tile: tuple[int, int, int, int],
        layer: int, number: int, states: dict[str, entropy.BitState], levels: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        key = self.keys[number]
        if layer == 0 and header.adaptive:
            reader = entropy.Reader(chunks[layer, number, "map"])
            size = -(-tile[2] // STRIDE), -(-tile[3] // STRIDE)
            levels[key] = entropy.read_levels(*size, self.tables[key], header.rates[number], reader)
            reader.finish()
        elif layer == 0:
            levels[key] = self.flat(header, key, tile)
        chunk = chunks[layer, number, "bits"]
        upto = self.prepare(header, key, levels[key], states, layer)
        if not upto:
            if chunk:
                raise CorruptStreamError("a chunk is longer than its symbols")
            return
        reader = entropy.Reader(chunk)
        self.coders[key].read(states[key], levels[key], upto, reader)
        reader.finish()


def unpack(packed: np.ndarray, n: int) -> np.ndarray:
    """Return bits (h, w, n) in {0, 1} of packed ones (h, w, n / 8)."""
    return np.unpackbits(packed, axis=-1, count=n)


def _add(result: Encoded, key: str, ideal: float, raw: float) -> None:
    result.ideal_bits[key] = result.ideal_bits.get(key, 0.0) + ideal
    result.raw_bits[key] = result.raw_bits.get(key, 0.0) + raw


def _update(digest: Any, levels: np.ndarray, ones: np.ndarray) -> None:
    _update_packed(digest, levels, np.packbits(ones.astype(np.uint8), axis=-1))


def _update_packed(digest: Any, levels: np.ndarray, packed: np.ndarray) -> None:
    digest.update(levels.astype(np.uint8).tobytes())
    digest.update(np.ascontiguousarray(packed).tobytes())
