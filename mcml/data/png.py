"""PNG: its colour chunks in their order, transparent colours at every depth, and checksums."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace, RgbSpace, is_valid, of_cicp, power
from mcml.data.picture import Picture, by_pillow, check_size, decoder, exif_of, turn_of

LIMIT_PROFILE = 1 << 26  # bytes of an ICC profile
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
COLOR_CHUNKS = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")


def read_png(raw: bytes) -> Picture:
    """PNG, third edition (W3C 2025): cICP before iCCP before sRGB before gAMA and cHRM (4.3)."""
    lean, colors, exif = [raw[:8]], {}, b""
    for kind, start, end in _png_chunks(raw):
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
    _check_deflated(raw, width, height)
    told = {"space": _png_space(colors), "orientation": turn_of(exif_of(exif))}
    if depth == 16:
        samples = decoder("imagecodecs").png_decode(raw) if kind else _png_grey16(raw)
        samples = samples if samples.ndim == 3 else samples[..., None]
        if kind & 4:
            told["alpha"], samples = samples[..., -1], samples[..., :-1]
        picture = Picture(samples, 65535, **told)
    else:
        picture = by_pillow(raw, "PNG", **told)
    key = next((raw[start:end] for kind, start, end in _png_chunks(raw) if kind == b"tRNS"), b"")
    if key and kind in (0, 2):
        scale = 255 // (2**depth - 1) if depth < 8 else 1
        values = np.frombuffer(key, ">u2", 1 + kind) * scale
        picture.alpha = np.where((picture.samples == values).all(-1), 0, picture.top)
    return picture


def _png_chunks(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk's content, up to IEND."""
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack(">I4s", raw[place : place + 8])
        start, place = place + 8, place + 12 + size
        if place > len(raw):
            raise DataError("damaged: it ends early")
        yield kind, start, start + size


def _check_deflated(raw: bytes, width: int, height: int) -> None:
    """Raise if the compressed pixels end early or differ from their checksum, which Pillow overlooks."""
    stream, most = zlib.decompressobj(), 9 * height * (width + 1) + (1 << 16)  # 64 bits a pixel, and filters
    for kind, start, end in _png_chunks(raw):
        piece = raw[start:end] if kind == b"IDAT" else b""
        while piece and not stream.eof and most > 0:
            most -= len(stream.decompress(piece, 1 << 22))
            piece = stream.unconsumed_tail
    if not stream.eof:
        raise DataError("damaged: its pixels end early")


def _png_grey16(raw: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
        return np.array(image).astype(np.uint16)


def _png_space(chunks: Mapping[bytes, bytes]) -> ColorSpace:
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
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4]) / 100_000
    return RgbSpace(space.primaries, space.white, power(1 / gamma)) if gamma else space
