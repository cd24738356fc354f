"""The `.mcml` container: a header and checked chunks. docs/FORMAT.md describes it byte by byte.

Knows nothing of networks or probabilities; reads hostile bytes without trusting a number in them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError

MAGIC = b"MCML"
VERSION = 1
MAX_SIDE = 65535
MAX_PIXELS = 1 << 28  # 268 megapixels: what a decoder agrees to make room for
TILE_LOG2 = range(6, 12)  # tiles of 64 to 2048 pixels, which bounds a decoder's memory
ADAPTIVE, LAYERED = 0x08, 0x10
_FIXED = struct.Struct("<4sBBHH8s")
CRC_BYTES = 4
DIGEST_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says before its chunks.

    Attributes:
        width: 1 to 65535 pixels.
        height: 1 to 65535 pixels.
        model: 8 bytes, the first of the model's identity.
        rates: a stream each; flat map: level x 256, adaptive map: the level that predicts anchors.
        adaptive: importance maps are sent.
        layers: 1 to 255 parts of the nested code, each decodable after those before it.
        tile_px: side of the tiles that are coded apart, a power of 2.
        digest: 4 bytes of the decoded integers.
    """

    width: int
    height: int
    model: bytes
    rates: tuple[int, ...]
    adaptive: bool = False
    layers: int = 1
    tile_px: int = 1024
    digest: bytes = bytes(DIGEST_BYTES)

    def tiles(self) -> list[tuple[int, int, int, int]]:
        """Return (top, left, height, width) in pixels of each tile, row by row."""
        t = self.tile_px
        return [
            (y, x, min(t, self.height - y), min(t, self.width - x))
            for y, x in product(range(0, self.height, t), range(0, self.width, t))
        ]

    def tile_count(self) -> int:
        """Return how many tiles `tiles` lists."""
        return -(-self.width // self.tile_px) * -(-self.height // self.tile_px)

    def order(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield (layer, tile, stream, "map" | "bits") of each chunk, in the file's order."""
        for layer, tile, stream in product(
            range(self.layers), range(self.tile_count()), range(len(self.rates))
        ):
            if layer == 0 and self.adaptive:
                yield layer, tile, stream, "map"
            yield layer, tile, stream, "bits"

    def chunk_count(self) -> int:
        """Return how many chunks `order` yields."""
        return self.tile_count() * len(self.rates) * (self.layers + self.adaptive)

    def check(self) -> Header:
        """Return the header, or raise `DataError` for what the format cannot hold."""
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise DataError(f"{self.width} x {self.height} pixels: the format holds sides of 1 to {MAX_SIDE}")
        if self.width * self.height > MAX_PIXELS:
            raise DataError(f"{self.width} x {self.height} pixels: the format holds at most {MAX_PIXELS}")
        if not 1 <= self.layers <= 255:
            raise DataError(f"{self.layers} layers: the format holds 1 to 255")
        if self.tile_px not in [1 << k for k in TILE_LOG2]:
            raise DataError(f"tiles of {self.tile_px} pixels: expected a power of 2 from 64 to 2048")
        return self

    def pack(self) -> bytes:
        """Return the header's bytes: 28 for a flat colour picture in one layer, 25 with importance maps."""
        self.check()
        tile = self.tile_px.bit_length() - 1 - TILE_LOG2.start
        flags = tile | ADAPTIVE * self.adaptive | LAYERED * (self.layers > 1)
        flags |= (0, 0x20)[len(self.rates) == 3]
        parts = [_FIXED.pack(MAGIC, VERSION, flags, self.width, self.height, self.model)]
        if self.layers > 1:
            parts.append(bytes([self.layers]))
        parts.append(struct.pack(f"<{len(self.rates)}{'B' if self.adaptive else 'H'}", *self.rates))
        return b"".join([*parts, self.digest])


def read_header(data: bytes) -> tuple[Header, int]:
    """Read a header; return it and how many bytes it took.

    Raises:
        CorruptStreamError: if it is cut short or holds what no encoder writes.
        UnsupportedStreamError: for another version.
    """
    if not data:
        raise CorruptStreamError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise CorruptStreamError("not an mcml file: it does not begin with 'MCML'")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise UnsupportedStreamError(
            f"the file is of format version {data[len(MAGIC)]}: this mcml reads version {VERSION}; "
            "a newer mcml is needed, or the file is damaged"
        )
    if len(data) < _FIXED.size:
        raise CorruptStreamError(f"the file ends within its header, after {len(data)} bytes")
    _, _, flags, width, height, model = _FIXED.unpack_from(data)
    if flags & 0xC0 or flags & 7 >= len(TILE_LOG2) or not width or not height:
        raise CorruptStreamError("the header holds values that no encoder writes")
    if width * height > MAX_PIXELS:
        raise UnsupportedStreamError(
            f"the file says {width} x {height} pixels: this mcml decodes at most {MAX_PIXELS}"
        )
    position, layers, adaptive = _FIXED.size, 1, bool(flags & ADAPTIVE)
    rates = struct.Struct(f"<{3 if flags & 0x20 else 1}{'B' if adaptive else 'H'}")
    layered = bool(flags & LAYERED)
    if len(data) < position + layered + rates.size + DIGEST_BYTES:
        raise CorruptStreamError(f"the file ends within its header, after {len(data)} bytes")
    if layered:
        layers = data[position]
        position += 1
        if layers < 2:
            raise CorruptStreamError("the header holds values that no encoder writes")
    found = rates.unpack_from(data, position)
    position += rates.size
    header = Header(
        width=width, height=height, model=bytes(model), rates=found, adaptive=adaptive, layers=layers,
        tile_px=1 << (TILE_LOG2.start + (flags & 7)), digest=bytes(data[position : position + DIGEST_BYTES]),
    )  # fmt: skip
    return header, position + DIGEST_BYTES


def write(header: Header, chunks: Sequence[bytes]) -> bytes:
    """Join a header and its chunks, which are in the order of `Header.order`.

    Each chunk is its length (LEB128), its bytes, and CRC-32 of the file up to there without the
    earlier checksums (with them it would forget: a CRC over its own data and itself is a constant).
    """
    parts = [header.pack()]
    crc = zlib.crc32(parts[0])
    for chunk in chunks:
        body = _length(len(chunk)) + chunk
        crc = zlib.crc32(body, crc)
        parts += [body, crc.to_bytes(CRC_BYTES, "little")]
    return b"".join(parts)


def read(data: bytes, *, partial: bool = False) -> tuple[Header, list[bytes]]:
    """Split a file into header and chunks, all of them checked.

    Args:
        data: a whole file.
        partial: True takes a file that was cut short, or damaged after its header, for the whole
            chunks before that place; no checksum covers a header without any chunk.

    Raises:
        CorruptStreamError: for damage, missing or superfluous bytes.
        UnsupportedStreamError: for another version, or more pixels than `MAX_PIXELS`.
    """
    header, chunks, error = _split(bytes(data))
    if error is not None and not (partial and len(chunks) < header.chunk_count()):
        raise error
    return header, chunks


def _split(data: bytes) -> tuple[Header, list[bytes], CorruptStreamError | None]:
    """Return the header, the whole chunks before the first damage, and what that is."""
    header, position = read_header(data)
    crc = zlib.crc32(data[:position])
    chunks: list[bytes] = []
    for layer, tile, stream, kind in header.order():
        where = f"chunk {len(chunks) + 1} ({kind} of stream {stream + 1}, tile {tile + 1}, layer {layer + 1})"
        try:
            found = _read_length(data, position)
        except CorruptStreamError as error:
            return header, chunks, error
        if found is None or found[1] + found[0] + CRC_BYTES > len(data):
            why = f"the file ends within {where}: it was cut short, or a length is damaged"
            return header, chunks, CorruptStreamError(why)
        length, begin = found
        end = begin + length
        crc = zlib.crc32(data[position:end], crc)
        if crc.to_bytes(CRC_BYTES, "little") != data[end : end + CRC_BYTES]:
            return header, chunks, CorruptStreamError(f"{where} is damaged: its checksum differs")
        chunks.append(data[begin:end])
        position = end + CRC_BYTES
    if position != len(data):
        error = CorruptStreamError(f"{len(data) - position} bytes follow the last chunk")
        return header, chunks, error
    return header, chunks, None


@dataclass(frozen=True, kw_only=True)
class Stock:
    """What is in a file that is whole, or was cut short or damaged: then `error` says so.

    Attributes:
        header: the file's.
        sizes: bytes by (stream from 0, "map" | "bits"), lengths and checksums left out.
        chunks: how many the header promises.
        whole: how many are there, their checksums right.
        framing: bytes of the header, and of the whole chunks' lengths and checksums.
        error: None for a whole file.
    """

    header: Header
    sizes: dict[tuple[int, str], int]
    chunks: int
    whole: int
    framing: int
    error: CorruptStreamError | None

    @property
    def shows(self) -> bool:
        """Whether the first stream of the first layer is whole, so that there is a picture."""
        header = self.header
        a_tile = len(header.rates) * (1 + header.adaptive)  # chunks, in the first layer
        return self.whole > (header.tile_count() - 1) * a_tile + header.adaptive


def take_stock(data: bytes) -> Stock:
    """Check and count a file's chunks; raises what `read_header` does."""
    header, chunks, error = _split(bytes(data))
    kinds = ("map", "bits") if header.adaptive else ("bits",)
    sizes = {(stream, kind): 0 for stream in range(len(header.rates)) for kind in kinds}
    for (_, _, stream, kind), chunk in zip(header.order(), chunks, strict=False):
        sizes[stream, kind] += len(chunk)
    framing = len(header.pack()) + sum(len(_length(len(c))) + CRC_BYTES for c in chunks)
    return Stock(
        header=header, sizes=sizes, chunks=header.chunk_count(), whole=len(chunks), framing=framing,
        error=error,
    )  # fmt: skip


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_length(data: bytes, position: int) -> tuple[int, int] | None:
    """Return a length and where it ends, None where the data end; only the shortest form is read."""
    value = 0
    for i in range(5):
        if position + i >= len(data):
            return None
        byte = data[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if i and not byte:
                break
            return value, position + i + 1
    raise CorruptStreamError("a chunk's length is written as no encoder writes it")
