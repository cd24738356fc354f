"""PNG: its colour chunks in their order, transparent colours at every depth, and checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace, RgbSpace, is_valid, of_cicp, power
from mcml.data.picture import Picture, by_pillow, check_size, decoder, exif_of, split_alpha, turn_of

LIMIT_PROFILE = 1 << 26  # bytes of an ICC profile
LAYOUTS = {(kind, depth) for kind, depths in
           ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16)))
           for depth in depths}  # fmt: skip
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
COLOR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")


def read_png(raw: bytes) -> Picture:
    """PNG, third edition (W3C 2025): cICP before iCCP before sRGB before gAMA and cHRM (4.3)."""
    lean, colors, exif = [raw[:8]], {}, b""
    for kind, start, end in _chunks(raw):
        whole = zlib.crc32(raw[start - 4 : end]) == int.from_bytes(raw[end : end + 4])
        if not whole and kind in (*PIXEL_CHUNKS, *COLOR_CHUNKS):
            raise DataError(f"damaged: its {kind.decode()} does not have its checksum")
        if kind == b"acTL" and int.from_bytes(raw[start : start + 4]) > 1:
            raise DataError("holds an animation; give a single picture")
        if kind in COLOR_CHUNKS:
            colors.setdefault(kind, raw[start:end])
        elif kind in PIXEL_CHUNKS:  # the others, as two megabytes of text, are no matter of the pixels
            lean.append(raw[start - 8 : end + 4])
        elif kind == b"eXIf":
            exif = raw[start:end]
        elif kind[:1].isupper():
            raise DataError(f"needs a chunk that is not known here ({kind!r})")
    raw = b"".join(lean)
    width, height, depth, kind = struct.unpack(">IIBB", raw[16:26])
    check_size(width, height)
    if raw[26:28] != b"\0\0" or raw[28] > 1 or (kind, depth) not in LAYOUTS:
        raise DataError("damaged: its header names no kind of PNG")
    _check_deflated(raw)
    told = {"space": _space(colors), "orientation": turn_of(exif_of(exif))}
    if depth == 16:
        samples, told["alpha"] = split_alpha(_deep(raw))  # of alpha, or of a transparent colour
        picture = Picture(samples, 65535, **told)
    else:
        picture = by_pillow(raw, "PNG", **told)
    key = next((raw[start:end] for kind, start, end in _chunks(raw) if kind == b"tRNS"), b"")
    if key and kind in (0, 2) and picture.alpha is None:
        scale = 255 // (2**depth - 1) if depth < 8 else 1
        values = np.frombuffer(key, ">u2", 1 + kind) * scale
        picture.alpha = np.where((picture.samples == values).all(-1), 0, picture.top)
    return picture


def _chunks(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk's content, up to IEND."""
    place, kind = 8, b""
    while kind != b"IEND":
        if place + 12 > len(raw):
            raise DataError("damaged: it ends early")
        size, kind = struct.unpack(">I4s", raw[place : place + 8])
        start, place = place + 8, place + 12 + size
        if place > len(raw):
            raise DataError("damaged: it ends early")
        yield kind, start, start + size


def _check_deflated(raw: bytes) -> None:
    """Raise if the compressed pixels are not as many as they should be, or differ from their checksum."""
    stream, left = zlib.decompressobj(), sum(size for *_, size in _passes(raw))
    for kind, start, end in _chunks(raw):
        piece = raw[start:end] if kind == b"IDAT" else b""
        while piece and not stream.eof and left >= 0:
            left -= len(stream.decompress(piece, 1 << 22))
            piece = stream.unconsumed_tail
    if not stream.eof or left > 0:
        raise DataError("damaged: its pixels are fewer or more than its header says")


def _passes(raw: bytes) -> Iterator[tuple[tuple[slice, slice], int, int, int]]:
    """Yield which rows and columns a pass holds, how many columns and rows, and their bytes (8.1, 9)."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", raw[16:29])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    for x, y, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x - width) // across), -((y - height) // down)
        if columns > 0 and rows > 0:
            place = slice(y, None, down), slice(x, None, across)
            yield place, columns, rows, rows * (1 + -(-columns * bits // 8))


def _deep(raw: bytes) -> np.ndarray:
    """Return (H, W, C) uint16: each pass is a PNG of its own to libpng, which warns of interlaced ones."""
    width, height = struct.unpack(">II", raw[16:24])
    parts = [(kind, raw[start:end]) for kind, start, end in _chunks(raw)]
    data = zlib.decompress(b"".join(content for kind, content in parts if kind == b"IDAT"))
    key = b"".join(_chunk(kind, content) for kind, content in parts if kind == b"tRNS")
    samples = np.empty(0)
    for place, columns, rows, size in _passes(raw):
        header = struct.pack(">II", columns, rows) + raw[24:28] + b"\0"
        whole = raw[:8], _chunk(b"IHDR", header), key, _chunk(b"IDAT", zlib.compress(data[:size], 1))
        one = b"".join([*whole, _chunk(b"IEND", b"")])
        decoded = decoder("imagecodecs").png_decode(one).reshape(rows, columns, -1)
        if not samples.size:
            samples = np.empty((height, width, decoded.shape[2]), np.uint16)
        samples[place], data = decoded, data[size:]
    return samples


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _space(chunks: Mapping[bytes, bytes]) -> ColorSpace:
    if cicp := chunks.get(b"cICP"):
        primaries, transfer, matrix, full = struct.unpack(">4B", cicp)
        space = of_cicp(primaries, transfer)
        if space is not None and (matrix, full) != (0, 1):
            raise DataError("its cICP chunk asks for narrow range or YCbCr: save it as full-range RGB")
        if space is not None:
            return space
    if iccp := chunks.get(b"iCCP"):
        name, _, rest = iccp.partition(b"\0")
        if name == b"ITUR_2100_PQ_FULL":  # W3C Note "Using the ITU BT.2100 PQ EOTF with the PNG format"
            of_cicp(9, 16)
        return zlib.decompressobj().decompress(rest[1:], LIMIT_PROFILE)
    if b"sRGB" in chunks or not chunks.keys() & {b"gAMA", b"cHRM"}:
        return None
    space = RgbSpace()
    if len(chunks.get(b"cHRM", b"")) == 32:
        x_y = np.frombuffer(chunks[b"cHRM"], ">u4").reshape(4, 2) / 100_000
        told = RgbSpace(x_y[1:].tolist(), tuple(x_y[0]))
        space = told if is_valid(told) else space
    gamma = int.from_bytes(chunks[b"gAMA"]) / 100_000 if len(chunks.get(b"gAMA", b"")) == 4 else 0
    return RgbSpace(space.primaries, space.white, power(1 / gamma)) if gamma else space
