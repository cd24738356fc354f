"""Which reader opens which file, and the plain formats: BMP, Netpbm, GIF and WebP.

What Pillow drops or scales wrongly is read by this room: colour chunks and boxes, depths of samples,
transparent colours, profiles in pieces. Pixels are decoded by Pillow, imagecodecs, tifffile and libheif.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable

import numpy as np

from mcml.base.errors import DataError
from mcml.data.boxes import read_avif, read_heif, read_jpeg2000, read_jpeg_xl
from mcml.data.color import D65, RgbSpace, is_valid, power
from mcml.data.jpeg import read_jpeg
from mcml.data.picture import Picture, by_pillow, check_size
from mcml.data.png import read_png
from mcml.data.tiff import read_tiff

FEW = "damaged: it has too few bytes for its pixels"


def open_picture(raw: bytes) -> Picture:
    """Decode an image file's bytes by what they begin with.

    `DataError` for what is not read; any exception of the decoders for what is damaged.
    """
    for begin, read in READERS:
        if begin.match(raw):
            return read(raw)
    raise DataError(f"not an image that can be read here ({', '.join(KINDS)})")


def _bmp(raw: bytes) -> Picture:
    """BMP, whose fourth version names primaries and gamma, and the fifth embeds profiles (MS-WMF 2.2.2)."""
    header = raw[14:]
    size, space = int.from_bytes(header[:4], "little"), None
    kind = header[56:60][::-1] if size >= 108 else b""
    if kind == b"\0\0\0\0":
        xyz = np.frombuffer(header, "<i4", 9, 60).reshape(3, 3) / 2.0**30
        gamma = np.frombuffer(header, "<u4", 3, 96) / 65536
        if (xyz.sum(1) > 0).all() and (gamma > 0).all():  # most writers leave them empty
            points = (xyz / xyz.sum(1, keepdims=True))[:, :2].tolist()
            white = xyz.sum(0) / xyz.sum()
            if np.abs(xyz.sum(1) - 1).max() < 1e-3:  # x, y, z instead of X, Y, Z, as many write them
                white = np.array(D65)
            told = RgbSpace(points, (white[0], white[1]), power(gamma))
            space = told if is_valid(told) else None
    elif kind == b"MBED" and size >= 124:
        start, length = struct.unpack_from("<II", header, 112)
        space = header[start : start + length]
        if not length or len(space) < length:
            raise DataError("damaged: its ICC profile is cut short")
    elif kind == b"LINK":
        raise DataError("its colours are in a profile outside the file; convert it to sRGB")
    width, height, _, _, compression = struct.unpack_from("<iiHHI", header, 4) if size >= 40 else (0,) * 5
    if compression in (1, 2) and abs(width * height) > 128 * len(raw):  # a run is two bytes for 255 pixels
        raise DataError(FEW)
    return by_pillow(raw, "BMP", space=space)


def _gif(raw: bytes) -> Picture:
    """GIF, whose ICC profile stands in an application extension (ICC.1, B.5)."""
    profile, place = b"", raw.find(b"\x21\xff\x0bICCRGBG1012")
    if place >= 0:
        place += 14
        while size := raw[place]:
            profile += raw[place + 1 : place + 1 + size]
            place += 1 + size
    width, height = struct.unpack_from("<HH", raw, 6)
    if width * height > 4096 * len(raw):  # a code of 12 bits stands for fewer pixels
        raise DataError(FEW)
    return by_pillow(raw, "GIF", space=profile or None)


def _webp(raw: bytes) -> Picture:
    """WebP, where zeros may be a flat area; in lossless ones data is damaged if its end is not needed."""
    place = 12
    while place + 8 <= len(raw):
        kind, size = struct.unpack_from("<4sI", raw, place)
        data = raw[place + 8 : place + 8 + size]
        if kind == b"VP8L" and b"\0" * 64 in data:
            part = kind + struct.pack("<I", size - 4 & ~1) + data[: size - 4 & ~1]
            with contextlib.suppress(OSError):
                by_pillow(b"RIFF" + struct.pack("<I", 4 + len(part)) + b"WEBP" + part, "WEBP")
                raise DataError("damaged: some of its pixels are zeroed")
        place += 8 + size + size % 2
    return by_pillow(raw, "WEBP")


def _netpbm(raw: bytes) -> Picture:
    """Netpbm's PBM, PGM and PPM, plain or raw, with samples up to 65535, taken for sRGB."""
    gap = rb"(?:\s|#[^\n]*\n)+"
    fields = re.match(rb"P([1-6])" + rb"%b(\d{1,9})%b(\d{1,9})" % (gap, gap), raw)
    if fields is None:
        raise DataError("damaged: its header is no Netpbm header")
    kind, width, height = map(int, fields.groups())
    check_size(width, height)
    top = 1
    place = fields.end()
    if kind not in (1, 4):
        depth = re.compile(gap + rb"(\d{1,9})").match(raw, place)
        top = int(depth[1]) if depth else 0
        if not 0 < top < 65536:
            raise DataError("damaged: its largest sample is not from 1 to 65535")
        place = depth.end()
    count = width * height * (3 if kind in (3, 6) else 1)
    if kind == 4:
        rows = np.frombuffer(raw, np.uint8, height * -(-width // 8), place + 1).reshape(height, -1)
        samples = np.unpackbits(rows, axis=1)[:, :width]
    elif kind > 4:
        samples = np.frombuffer(raw, np.uint8 if top < 256 else ">u2", count, place + 1)
    else:
        text = re.sub(rb"#[^\n]*", b"", raw[place:])
        words = re.findall(rb"[01]", text) if kind == 1 else text.split()
        samples = np.array(words[:count]).astype(np.int64)
        if samples.size < count or samples.min() < 0:
            raise DataError("damaged: its pixels end early")
    if samples.max() > top:
        raise DataError(f"damaged: a sample is larger than {top}")
    samples = (1 - samples if kind in (1, 4) else samples).astype(np.uint8 if top < 256 else np.uint16)
    return Picture(samples.reshape(height, width, -1), top)


def _refuse(reason: str) -> Callable[[bytes], Picture]:
    def read(_: bytes) -> Picture:
        raise DataError(reason)

    return read


READERS = [
    (re.compile(begin, re.DOTALL), read)
    for begin, read in {
        rb"\x89PNG\r\n\x1a\n": read_png,
        rb"\xff\xd8\xff": read_jpeg,
        rb"GIF8[79]a": _gif,
        rb"RIFF....WEBP": _webp,
        rb"BM": _bmp,
        rb"P[1-6](?:\s|#)": _netpbm,
        rb"(?:II|MM)(?:\*\0|\0\*|\+\0|\0\+)": read_tiff,
        rb"\xff\x0a|....JXL ": read_jpeg_xl,
        rb"\xff\x4f\xff\x51|....jP  ": read_jpeg2000,
        rb"....ftyp(?:....){0,20}?avi[fs]": read_avif,
        rb"....ftyp(?:....){0,20}?(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)": read_heif,
        rb"P[Ff]\s": _refuse("floating-point pixels are not supported; save it as 8-bit sRGB"),
        rb"P7\s": _refuse("PAM is not read here; save it as PNG"),
    }.items()
]
KINDS = ("PNG", "JPEG", "JPEG 2000", "JPEG XL", "AVIF", "HEIF", "WebP", "TIFF", "BMP", "GIF", "Netpbm")
