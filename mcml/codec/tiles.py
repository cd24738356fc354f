"""The lossless half of a learned codec: bits and importance logits to a file, a file to integers."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from mcml.base.errors import CorruptStreamError, DataError, UsageError
from mcml.codec import container
from mcml.codec.bits import BitCoder, BitState, Reader, Writer, read_levels, write_levels
from mcml.codec.container import DIGEST_BYTES, Header
from mcml.codec.order import LEVEL_PASSES, SPREADS, uniform_levels

FULL = 100.0  # percent: every group open
Codes = dict[str, tuple[np.ndarray, np.ndarray]]  # by stream: packed bits, opened groups


@dataclass
class Analysis:
    """What the encoders' networks say of a picture, on its grid of h x w positions.

    Attributes:
        size: (H, W) in pixels.
        tile_px: side of the tiles that are coded apart.
        bits: by stream, (h, w, n / 8) uint8, packed.
        logits: by stream, the importance map's (h, w) float32.
        seconds: that it took.
    """

    size: tuple[int, int]
    tile_px: int
    bits: dict[str, np.ndarray] = field(default_factory=dict)
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Encoded:
    """A file and what it took.

    Attributes:
        data: the file.
        ideal_bits: ideal code length by stream, and by "<stream> map".
        raw_bits: unmasked bits, and levels at log2 L each, by the same keys.
        seconds: spent in "networks" and in "entropy".
    """

    data: bytes = b""
    ideal_bits: Counter[str] = field(default_factory=Counter)
    raw_bits: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)


def digest_of(header: Header, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Return what stands in a header for a picture's integers: the first bytes of their SHA-256.

    Of its size, then levels (h, w) and masked bits (h, w, n / 8) tile by tile, stream by stream.
    """
    sha = hashlib.sha256(struct.pack("<HH", header.width, header.height))
    for levels, packed in parts:
        sha.update(levels.astype(np.uint8).tobytes() + packed.tobytes())
    return sha.digest()[:DIGEST_BYTES]


class TileCoder:
    """All streams' entropy coders, and how a quality becomes their levels.

    Attributes:
        keys: the streams in coding order.
        coders: a `BitCoder` each.
        tables: probabilities of the levels each, None where no importance map is sent.
        tops: the highest level of each.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        """Take a model's configuration (as in config.json) and its integers by "stream.name".

        Raises:
            DataError: if the integers are not those of an entropy coder.
        """
        self.coders, self.tables, self.tops = {}, {}, {}
        try:
            self.keys = {"rgb": ("RGB",), "luma": ("Y",)}.get(config["variant"], ("Y", "Cb", "Cr"))
            for key in self.keys:
                stream, prefix = config["color" if key in ("Cb", "Cr") else "luma"], f"{key}."
                own = {
                    name.removeprefix(prefix): of for name, of in tensors.items() if name.startswith(prefix)
                }
                coder, table, count = BitCoder(own), own.get("levels"), stream["levels"]
                if coder.n != stream["code_channels"] or len(coder.sizes) != count - 1:
                    raise DataError(f"the entropy coder of {key} is of another code than the model's")
                shape = (LEVEL_PASSES, len(SPREADS) + 1, count, count)
                if table is not None and table.shape != shape:
                    raise DataError(f"the level tables of {key} are {table.shape}, expected {shape}")
                self.coders[key], self.tables[key], self.tops[key] = coder, table, count - 1
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"the model's configuration and entropy coder disagree ({error!r})") from error

    @property
    def has_maps(self) -> bool:
        """Whether the model has importance maps to send."""
        return all(table is not None for table in self.tables.values())

    def channel_groups(self, key: str) -> np.ndarray:
        """Return (n,) each channel's group from 1."""
        sizes = self.coders[key].sizes
        return np.repeat(np.arange(1, len(sizes) + 1), sizes)

    # ------------------------------------------------------------------- how much is sent where

    def rates(self, quality: float) -> tuple[int, ...]:
        """Return each stream's level x 256 at a quality: that percentage of its levels.

        Colour following luma like this was as good in PSNR as a table of equal slopes, and better in
        CIEDE2000.
        """
        return tuple(round(quality / FULL * top * 256) for top in self.tops.values())

    def uniform(self, header: Header, key: str) -> np.ndarray:
        """Return the levels (h, w) where no map is sent: nearly one level, dithered."""
        levels = uniform_levels(header.rates[self.keys.index(key)], *header.grid)
        return np.minimum(levels, self.tops[key])

    def adaptive(self, key: str, logits: np.ndarray, quality: float) -> np.ndarray:
        """Return the levels (h, w) of an importance map's logits, the quality giving their bias."""
        import torch

        from mcml.model.quantization import importance_levels

        share = min(max(quality / FULL, 1e-4), 1 - 1e-4)  # the ends leave strong logits their say
        p = torch.sigmoid(torch.from_numpy(logits) + math.log(share / (1 - share)))
        return importance_levels(p, self.tops[key] + 1).numpy()

    def last_group(self, header: Header, key: str, layer: int, levels: np.ndarray) -> int:
        """Return the last group (from 1) of a layer in a tile of such levels.

        Layers share a uniform file's groups evenly; an adaptive one's, of which the later are open at
        few positions, so that each layer sends about as many of the tile's open groups.
        """
        if not header.adaptive:
            most = -(-header.rates[self.keys.index(key)] // 256)
            return min(len(self.coders[key].sizes), most) * (layer + 1) // header.layers
        sent = np.cumsum([np.count_nonzero(levels > group) for group in range(int(levels.max()))])
        return int(np.searchsorted(header.layers * sent, (layer + 1) * sent[-1])) + 1 if len(sent) else 0

    def prepare(
        self, header: Header, key: str, levels: np.ndarray, states: dict[str, BitState], layer: int
    ) -> int:
        """Make a stream's state or tell it what those before it learned; return the layer's last group."""
        before = [states[k] for k in self.keys[: self.keys.index(key)]]
        upto = self.last_group(header, key, layer, levels)
        if layer == 0:
            levels_seen = 2 * levels - self.tops[key] if header.adaptive else None
            states[key] = self.coders[key].begin(*levels.shape, levels_seen, before)
        elif states[key].group < upto:
            self.coders[key].refresh(states[key], before)
        return upto

    # ----------------------------------------------------------------------------- to a file

    def write(self, header: Header, analysis: Analysis, quality: float) -> Encoded:
        """Code an analysis into a file.

        Args:
            header: without rates and digest, which are put in here.
            analysis: of a picture of the header's size.
            quality: 0 to 100.

        Raises:
            UsageError: if importance maps are wanted of a model that has none.
        """
        if header.adaptive:
            if not self.has_maps:
                raise UsageError("the model has no importance maps, so it writes no adaptive files")
            levels = {key: self.adaptive(key, analysis.logits[key], quality) for key in self.keys}
            header = replace(header, rates=tuple(int(np.median(levels[key])) for key in self.keys))
        else:
            header = replace(header, rates=self.rates(quality))
            levels = {key: self.uniform(header, key) for key in self.keys}
        encoded, integers = Encoded(), []
        chunks: dict[tuple[int, int, int, str], bytes] = {}
        for number, tile in enumerate(header.tiles()):
            states: dict[str, BitState] = {}
            for layer, (stream, key) in product(range(header.layers), enumerate(self.keys)):
                coder, level = self.coders[key], levels[key][tile]
                if layer == 0 and header.adaptive:
                    writer = Writer()
                    write_levels(level, self.tables[key], header.rates[stream], writer)
                    chunks[layer, number, stream, "map"] = writer.finish()
                    encoded.ideal_bits[f"{key} map"] += writer.bits
                    encoded.raw_bits[f"{key} map"] += level.size * math.log2(self.tops[key] + 1)
                upto = self.prepare(header, key, level, states, layer)
                state, writer = states[key], Writer()
                for group in range(state.group, upto):
                    encoded.raw_bits[key] += coder.sizes[group] * np.count_nonzero(level > group)
                bits = np.unpackbits(analysis.bits[key][tile], axis=-1, count=coder.n)
                coder.write(state, bits, level, upto, writer)
                chunks[layer, number, stream, "bits"] = writer.finish()
                encoded.ideal_bits[key] += writer.bits
            integers += [(levels[key][tile], state.packed()) for key, state in states.items()]
        header = replace(header, digest=digest_of(header, integers))
        encoded.data = container.write(header, [chunks[name] for name in header.order()])
        return encoded

    # --------------------------------------------------------------------------- from a file

    def read(
        self, header: Header, chunks: Sequence[bytes], *, luma_only: bool = False, layers: int | None = None
    ) -> tuple[Codes, int]:
        """Decode the chunks of `container.read`.

        Returns:
            By stream of which something is there, packed bits (h, w, n / 8) and how many groups are
            open (h, w) uint16; and how many layers were whole.

        Raises:
            CorruptStreamError: if no such model can have written the header, if symbols cannot be decoded,
                or differ from those that were encoded.
        """
        if len(header.rates) != len(self.keys):
            counts = len(header.rates), len(self.keys)
            raise CorruptStreamError("the header names {} streams, the model has {}".format(*counts))
        scale = 1 if header.adaptive else 256
        if any(rate > scale * top for rate, top in zip(header.rates, self.tops.values(), strict=True)):
            raise CorruptStreamError("the header holds a rate beyond the model's levels")
        if header.adaptive and not self.has_maps:
            raise CorruptStreamError("the header promises importance maps, the model has none")
        if not header.shows(len(chunks)):
            raise CorruptStreamError("the file ends, or is damaged, before its first stream is whole")
        named = dict(zip(header.order(), chunks, strict=False))
        keys = self.keys[:1] if luma_only and "Y" in self.keys else self.keys
        wanted = header.layers if layers is None else min(max(1, layers), header.layers)
        last = header.tile_count() - 1  # what is whole in the last tile is whole in all
        steps = [
            (layer, stream)
            for layer, stream in product(range(wanted), range(len(keys)))
            if (layer, last, stream, "bits") in named
        ]
        levels, codes = {}, {}
        for key in (key for stream, key in enumerate(keys) if (0, stream) in steps):
            levels[key] = np.zeros(header.grid, np.int64) if header.adaptive else self.uniform(header, key)
            packed = np.zeros((*header.grid, -(-self.coders[key].n // 8)), np.uint8)
            codes[key] = packed, np.zeros(header.grid, np.uint16)
        for number, tile in enumerate(header.tiles()):
            states: dict[str, BitState] = {}
            for layer, stream in steps:
                key, rate = keys[stream], header.rates[stream]
                level, chunk = levels[key][tile], named[layer, number, stream, "bits"]
                if layer == 0 and header.adaptive:
                    reader = Reader(named[layer, number, stream, "map"])
                    level[:] = read_levels(*level.shape, self.tables[key], rate, reader)
                    reader.finish()
                upto = self.prepare(header, key, level, states, layer)
                if chunk and states[key].group >= upto:
                    raise CorruptStreamError("a chunk is longer than its symbols")
                reader = Reader(chunk)
                self.coders[key].read(states[key], level, upto, reader)
                reader.finish()
            for key, state in states.items():
                packed, opened = codes[key]
                packed[tile] = state.packed()
                opened[tile] = np.minimum(levels[key][tile], state.group)
        if len(chunks) == header.chunk_count() and wanted == header.layers and keys == self.keys:
            integers = ((levels[key][tile], codes[key][0][tile]) for tile in header.tiles() for key in keys)
            if digest_of(header, integers) != header.digest:
                raise CorruptStreamError("the decoded integers differ from those that were encoded")
        return codes, len(steps) // len(keys)
