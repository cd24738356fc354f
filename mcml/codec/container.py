"""The `.mcml` container: a header and checked chunks. docs/FORMAT.md describes it byte by byte.

Knows nothing of networks or probabilities; reads hostile bytes without trusting a number in them.
`describe` tells what a file holds without decoding it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mcml.base import STRIDE
from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError
from mcml.model import model_files

MAGIC = b"MCML"
BITS, LATENTS = 1, 2  # versions: of masked bits, of scalar latents
MAX_SIDE = 65535
MAX_PIXELS = 1 << 28  # 268 megapixels: what a decoder agrees to make room for
TILE_LOG2 = range(6, 12)  # tiles of 64 to 2048 pixels, which bounds a decoder's memory
ADAPTIVE, LAYERED, COLOR = 0x08, 0x10, 0x20
_FIXED = struct.Struct("<4sBBHH8s")
CRC_BYTES, DIGEST_BYTES = 4, 4
PICTURES = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"BM": "BMP", b"\0\0\0\x0cjP": "JPEG 2000", b"\0\0\0\x0cJXL": "JPEG XL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says before its chunks.

    Attributes:
        width: 1 to 65535 pixels.
        height: 1 to 65535 pixels.
        model: 8 bytes, the first of the model's identity.
        version: `BITS`, or `LATENTS`, which has no maps and one layer.
        rates: a stream each; uniform map: level x 256, adaptive map: the level that predicts anchors;
            latents: the dial.
        adaptive: importance maps are sent.
        layers: 1 to 255 parts of the nested code, each decodable after those before it.
        tile_px: side of the tiles that are coded apart, a power of 2.
        digest: 4 bytes of the decoded integers.
    """

    width: int
    height: int
    model: bytes
    rates: tuple[int, ...]
    version: int = BITS
    adaptive: bool = False
    layers: int = 1
    tile_px: int = 1024
    digest: bytes = bytes(DIGEST_BYTES)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions, squares of 8 x 8 pixels."""
        return -(-self.height // STRIDE), -(-self.width // STRIDE)

    def tiles(self) -> list[tuple[slice, slice]]:
        """Return the rows and columns of positions of each tile, row by row."""
        (rows, columns), side = self.grid, self.tile_px // STRIDE
        return [
            (slice(y, min(y + side, rows)), slice(x, min(x + side, columns)))
            for y, x in product(range(0, rows, side), range(0, columns, side))
        ]

    def tile_count(self) -> int:
        """Return how many tiles `tiles` lists."""
        return -(-self.width // self.tile_px) * -(-self.height // self.tile_px)

    def order(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield (layer, tile, stream, "map" | "bits" | "latents") of each chunk, in the file's order."""
        if self.version == LATENTS:  # so that a file that was cut shows all tiles' luma before any colour
            for stream, tile in product(range(len(self.rates)), range(self.tile_count())):
                yield 0, tile, stream, "latents"
            return
        for layer, tile, stream in product(
            range(self.layers), range(self.tile_count()), range(len(self.rates))
        ):
            if layer == 0 and self.adaptive:
                yield layer, tile, stream, "map"
            yield layer, tile, stream, "bits"

    def chunk_count(self) -> int:
        """Return how many chunks `order` yields."""
        return self.tile_count() * len(self.rates) * (self.layers + self.adaptive)

    def shows(self, whole: int) -> bool:
        """Whether so many chunks are a picture: the first layer's first stream, or one tile of latents."""
        if self.version == LATENTS:
            return whole > 0
        a_tile = len(self.rates) * (1 + self.adaptive)  # chunks, in the first layer
        return whole > (self.tile_count() - 1) * a_tile + self.adaptive

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
        """Return the header's bytes: 28 for a uniform colour picture in one layer, 25 with maps."""
        self.check()
        tile = self.tile_px.bit_length() - 1 - TILE_LOG2.start
        color, layered = len(self.rates) == 3, self.layers > 1
        flags = tile | ADAPTIVE * self.adaptive | LAYERED * layered | COLOR * color
        front = _FIXED.pack(MAGIC, self.version, flags, self.width, self.height, self.model)
        rates = struct.pack(f"<{len(self.rates)}{'B' if self.adaptive else 'H'}", *self.rates)
        return front + bytes([self.layers] * layered) + rates + self.digest


def read_header(data: bytes) -> tuple[Header, int]:
    """Read a header; return it and how many bytes it took.

    Raises:
        CorruptStreamError: if it is cut short or holds what no encoder writes.
        UnsupportedStreamError: for another version.
    """
    if not data:
        raise CorruptStreamError("the file is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        kind = next((kind for magic, kind in PICTURES.items() if data.startswith(magic)), None)
        what = (
            f"it is a {kind} picture, which `mcml compress` takes"
            if kind
            else "it does not begin with 'MCML'"
        )
        raise CorruptStreamError(f"not an mcml file: {what}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] not in (BITS, LATENTS):
        raise UnsupportedStreamError(
            f"the file is of format version {data[len(MAGIC)]}: this mcml reads versions {BITS} and "
            f"{LATENTS}; a newer mcml is needed, or the file is damaged"
        )
    short = CorruptStreamError(f"the file ends within its header, after {len(data)} bytes")
    if len(data) < _FIXED.size:
        raise short
    _, version, flags, width, height, model = _FIXED.unpack_from(data)
    unused = 0xC0 if version == BITS else 0xC0 | ADAPTIVE | LAYERED
    if flags & unused or flags & 7 >= len(TILE_LOG2) or not width or not height:
        raise CorruptStreamError("the header holds values that no encoder writes")
    if width * height > MAX_PIXELS:
        raise UnsupportedStreamError(
            f"the file says {width} x {height} pixels: this mcml decodes at most {MAX_PIXELS}"
        )
    adaptive, layered = bool(flags & ADAPTIVE), bool(flags & LAYERED)
    rates = struct.Struct(f"<{3 if flags & COLOR else 1}{'B' if adaptive else 'H'}")
    position = _FIXED.size + layered
    end = position + rates.size + DIGEST_BYTES
    if len(data) < end:
        raise short
    layers = data[_FIXED.size] if layered else 1
    if layered and layers < 2:
        raise CorruptStreamError("the header holds values that no encoder writes")
    header = Header(
        width=width, height=height, model=bytes(model), version=version, adaptive=adaptive, layers=layers,
        rates=rates.unpack_from(data, position), tile_px=1 << (TILE_LOG2.start + (flags & 7)),
        digest=bytes(data[end - DIGEST_BYTES : end]),
    )  # fmt: skip
    return header, end


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
            length, begin = _read_length(data, position)
        except CorruptStreamError as error:
            return header, chunks, error
        end = begin + length
        if end + CRC_BYTES > len(data):
            why = f"the file ends within {where}: it was cut short, or a length is damaged"
            return header, chunks, CorruptStreamError(why)
        crc = zlib.crc32(data[position:end], crc)
        if crc.to_bytes(CRC_BYTES, "little") != data[end : end + CRC_BYTES]:
            return header, chunks, CorruptStreamError(f"{where} is damaged: its checksum differs")
        chunks.append(data[begin:end])
        position = end + CRC_BYTES
    rest = len(data) - position
    return header, chunks, CorruptStreamError(f"{rest} bytes follow the last chunk") if rest else None


def _length(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_length(data: bytes, position: int) -> tuple[int, int]:
    """Return a length and where it ends, beyond the data where they end; only the shortest form is read."""
    value = 0
    for i in range(5):
        if position + i >= len(data):
            return value, len(data) + 1
        byte = data[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if i and not byte:
                break
            return value, position + i + 1
    raise CorruptStreamError("a chunk's length is written as no encoder writes it")


# -------------------------------------------------------------------- what a file holds, for people


def describe(data: bytes) -> tuple[dict[str, Any], CorruptStreamError | None]:
    """Return what a file's bytes hold, by JSON's names, and what is wrong with one that was cut or damaged.

    Raises:
        CorruptStreamError: if there is no whole header.
        UnsupportedStreamError: for another version, or more pixels than `MAX_PIXELS`.
    """
    header, chunks, error = _split(bytes(data))
    try:
        name = model_files.name_of(header.model)
        variant = model_files.read_config(model_files.released_folder() / name)["model"]["variant"]
    except (DataError, KeyError):
        name = variant = ""
    streams = ("Y", "Cb", "Cr") if len(header.rates) == 3 else ({"rgb": "RGB", "": "1"}.get(variant, "Y"),)
    sizes = {"bits": dict.fromkeys(streams, 0), "map": dict.fromkeys(streams, 0) if header.adaptive else {}}
    for (_, _, stream, kind), chunk in zip(header.order(), chunks, strict=False):
        sizes["map" if kind == "map" else "bits"][streams[stream]] += len(chunk)
    maps = "adaptive" if header.adaptive else "uniform"
    framing = len(header.pack()) + sum(len(_length(len(chunk))) + CRC_BYTES for chunk in chunks)
    return {
        "version": header.version, "width": header.width, "height": header.height, "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height), "model": name or header.model.hex(),
        "model_id": header.model.hex(), "maps": "none" if header.version == LATENTS else maps,
        "rates": dict(zip(streams, header.rates, strict=True)), "layers": header.layers,
        "tiles": header.tile_count(), "tile_px": header.tile_px, "stream_bytes": sizes["bits"],
        "map_bytes": sizes["map"], "overhead_bytes": framing,
        "unusable_bytes": len(data) - framing - sum(map(len, chunks)), "digest": header.digest.hex(),
        "chunks": header.chunk_count(), "whole_chunks": len(chunks), "checksums": error is None,
    }, error  # fmt: skip


def block(content: Mapping[str, Any]) -> str:
    """Return what `describe` found as lines for people."""
    here = ", which is not here" if content["model"] == content["model_id"] else ""
    whole, chunks, unusable = (content[name] for name in ("whole_chunks", "chunks", "unusable_bytes"))
    rates = "  ".join(f"{key} {value}" for key, value in content["rates"].items())
    unit = {"adaptive": "level", "uniform": "level x 256", "none": "quality x 122.88"}[content["maps"]]
    lines = {
        "format": f"version {content['version']}",
        "picture": f"{content['width']} x {content['height']} pixels",
        "file": f"{content['bytes']} bytes, {content['bpp']:.4f} bpp",
        "model": content["model"] + here,
        "maps": content["maps"],
        "rates": f"{rates}  ({unit})",
        "layers": content["layers"],
        "tiles": f"{content['tiles']} of up to {content['tile_px']} pixels",
        **{f"stream {key}": f"{size} bytes" for key, size in content["stream_bytes"].items()},
        **{f"map {key}": f"{size} bytes" for key, size in content["map_bytes"].items()},
        "overhead": f"{content['overhead_bytes']} bytes",
        "digest": content["digest"],
        "checksums": f"all {chunks} hold" if content["checksums"] else f"{whole} of {chunks} hold",
        **({"unusable": f"{unusable} bytes, cut off or damaged"} if unusable else {}),
    }
    return "\n".join([content["file"], *(f"  {name:<10} {text}" for name, text in lines.items())])
