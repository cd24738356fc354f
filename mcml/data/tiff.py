"""TIFF 6.0, and its supplements on photographs: grey, RGB, palette, CMYK and YCbCr of 1 to 16 bits."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace, RgbSpace, is_valid
from mcml.data.picture import Picture, check_size, decoder, rgb_of_ycc, turn_of

COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # samples a pixel, by photometric interpretation
ASSOCIATED, UNASSOCIATED = 1, 2
PAGES, COMPLAINTS = 32, 100  # looked at, at most: a chain of pages may be a circle
REDUCED_OR_MASK = 5  # bits of a page that is none of its own
JPEG = (6, 7)  # compressions
COMPRESSIONS = (1, 2, 3, 4, 5, *JPEG, 8, 32773, 32946, 34925, 50000)  # to Deflate, LZMA and Zstandard
BT601, FULL = (0.299, 0.587, 0.114), (0, 255, 128, 255, 128, 255)  # YCbCr's defaults
PIXEL_TAGS = {
    *range(256, 260), 262, 266, 273, *range(277, 280), 284, 301, *range(317, 326), 332, 338, 339, 347,
    *range(529, 533), 34675,
}  # fmt: skip
SAVE = "save it as 8-bit sRGB"


def read_tiff(raw: bytes) -> Picture:
    """Read the only page; thumbnails and masks do not count."""
    tifffile = decoder("tifffile")
    with _Complaints() as told, tifffile.TiffFile(io.BytesIO(raw)) as file:
        pages = [page for page in islice(file.pages, PAGES) if not int(page.subfiletype) & REDUCED_OR_MASK]
        if not pages:
            raise DataError("holds no picture but thumbnails and masks")
        if len(pages) != 1:
            raise DataError(f"holds {len(pages)} pages; give a single picture")
        page = pages[0]
        kind = _checked(page, len(raw))
        if told.tags & PIXEL_TAGS:
            raise DataError(f"damaged: its tags {sorted(told.tags & PIXEL_TAGS)} cannot be read")
        samples, palette = page.asarray(), page.colormap
        tags = {tag.code: tag.value for tag in page.tags if tag.code in (274, 301, 318, 319, 34675)}
    bits, channels, extra = page.bitspersample, page.samplesperpixel, list(map(int, page.extrasamples))
    shape = page.imagelength, page.imagewidth, channels
    if samples.size != np.prod(shape):
        raise DataError("holds more than one plane of pixels; give a single picture")
    if int(page.planarconfig) == 2 and channels > 1:
        samples = np.moveaxis(samples, 0, -1)
    samples, top = samples.reshape(shape), 2**bits - 1
    if bits == 32:
        samples, top = (samples >> 16).astype(np.uint16), 65535
    told = {"orientation": turn_of(lambda: tags), "space": _space(tags, kind, top)}
    extra = extra or [UNASSOCIATED] * (channels - COLORS[kind])
    opacity = next((i for i, what in enumerate(extra) if what in (ASSOCIATED, UNASSOCIATED)), None)
    if opacity is not None:
        alpha = samples[..., COLORS[kind] + opacity]
        told |= {"alpha": alpha, "premultiplied": extra[opacity] == ASSOCIATED}
    samples = samples[..., : COLORS[kind]]
    if kind == 0:
        samples = top - samples
    elif kind == 3:
        table = np.asarray(palette).T  # 16 bits, or 8 of careless writers
        samples, index_top = table[samples[..., 0].astype(np.uint16)].astype(np.uint16), top
        top = 65535 if table.max() > 255 else 255
        if opacity is not None:
            told["alpha"] = told["alpha"] * (top / index_top)
    elif kind == 6 and int(page.compression) not in JPEG:
        samples = rgb_of_ycc(samples, top)
    return Picture(samples, top, **told)


class _Complaints(logging.Handler):
    """Hears which tags tifffile could not read: it goes on as if they were not there."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[int] = set()
        self.count = 0
        self.log = logging.getLogger("tifffile")

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        if self.count > COMPLAINTS:  # of thousands of tags that a flipped bit has made
            raise DataError("damaged: its tags cannot be read")
        self.tags |= set(map(int, re.findall(r"TiffTag (\d+) @", record.getMessage())))

    def __enter__(self) -> _Complaints:
        self.log.addHandler(self)
        self.log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)


def _checked(page: Any, size: int) -> int:
    """Return a page's photometric interpretation, or raise `DataError` before its pixels are decoded."""
    check_size(page.imagewidth, page.imagelength)
    kind, channels = int(page.photometric), page.samplesperpixel
    if page.sampleformat not in (None, 1, 4) or page.bitspersample not in (*range(1, 17), 32):
        raise DataError(f"floating-point, signed or very deep pixels are not supported; {SAVE}")
    extra = channels - COLORS.get(kind, 99)
    if extra not in (len(page.extrasamples), kind < 3) or (kind < 2 and extra > 1):
        raise DataError(f"its pixels (photometric {kind}, {channels} samples) are not read here; {SAVE}")
    subsampling = tuple(page.subsampling or (1, 1))
    if kind == 6 and int(page.compression) not in JPEG and subsampling != (1, 1):
        raise DataError(f"YCbCr with subsampled colour but without JPEG is not read here; {SAVE}")
    if int(page.compression) not in COMPRESSIONS:
        raise DataError(f"its compression {int(page.compression)} is not read here; {SAVE}")
    coefficients, range_ = (_ratios(page.tags.valueof(tag), n) for tag, n in ((529, 3), (532, 6)))
    if kind == 6 and not (_near(coefficients, BT601) and _near(range_, FULL)):
        raise DataError(f"YCbCr of other than BT.601's coefficients and full range is not read here; {SAVE}")
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    whole = len(pieces) >= np.prod(page.chunked)
    if not whole or any(not 0 < start < start + count <= size for start, count in pieces):
        raise DataError("damaged: some of its pixels are missing")
    return kind


def _space(tags: Mapping[int, Any], kind: int, top: int) -> ColorSpace:
    if tags.get(34675):
        return bytes(tags[34675])
    if kind == 5 or not tags.keys() & {301, 318, 319}:
        return None
    white, points = _ratios(tags.get(318), 2), _ratios(tags.get(319), 6)
    space = RgbSpace(white=tuple(white)) if white else RgbSpace()
    if points:
        space = RgbSpace([points[:2], points[2:4], points[4:]], space.white)
    space = space if is_valid(space) else RgbSpace()
    curves = np.asarray(tags.get(301, ()), np.float64) / 65535
    if curves.size in (top + 1, 3 * (top + 1)):
        curves = curves.reshape(-1, top + 1)
        columns = np.arange(3) % len(curves)
        return RgbSpace(space.primaries, space.white,
                        lambda v: curves[columns, np.round(v * top).astype(np.int64)])  # fmt: skip
    return space


def _near(values: list[float], default: tuple[float, ...]) -> bool:
    return not values or bool(np.allclose(values, default, atol=1e-3))


def _ratios(value: Any, count: int) -> list[float]:
    """Return TIFF rationals, given one after another as numerators and denominators."""
    flat = np.asarray(value if value is not None else (), np.float64).ravel()
    if flat.size != 2 * count or not flat[1::2].all():
        return []
    return (flat[::2] / flat[1::2]).tolist()
