"""JPEG: its segments, its profile in pieces, and damage that libjpeg only warns of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from PIL import Image

from mcml.base.errors import DataError
from mcml.data.color import ADOBE, ColorSpace, RgbSpace, power
from mcml.data.picture import Picture, by_pillow, exif_of, field_of, turn_of

ZEROS = 48  # in a row, which no block of a photograph needs
PADDING = 16  # bytes at most behind the last block
HARMLESS = re.compile(  # libjpeg's warnings of headers, and what only simplejpeg's interface does not know
    "unknown JFIF revision|Unknown Adobe color transform|Invalid SOS parameters|subsampling level of JPEG"
)
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def read_jpeg(raw: bytes) -> Picture:
    """JPEG: an ICC profile in its APP2 segments, else EXIF's Adobe RGB (DCF 2.0), else sRGB."""
    pieces: dict[int, bytes] = {}
    lean, exif, counts, is_adobe = [raw[:2]], b"", set(), False
    for marker, start, end in _segments(raw):
        if marker == 0xDA:
            break
        content = raw[start:end]
        if marker == 0xC3 or (marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and content[:1] != b"\x08"):
            raise DataError("lossless JPEG, or one of other than 8 bits, is not read here; save it as PNG")
        if marker == 0xE2 and content[:12] == b"ICC_PROFILE\0":
            pieces[content[12]] = content[14:]
            counts.add(content[13])
        elif marker == 0xE1 and content[:6] == b"Exif\0\0":
            exif = exif or content
        elif marker not in (0xE1, 0xE2, 0xED, 0xFE):  # metadata, and further pictures that it points to
            lean.append(raw[start - 4 : end])
        is_adobe |= marker == 0xEE and content[:5] == b"Adobe"
    else:
        raise DataError("damaged: it ends before its pixels")
    lean.append(raw[start - 4 :])
    if pieces and (counts != {len(pieces)} or set(pieces) != set(range(1, len(pieces) + 1))):
        raise DataError("damaged: a part of its ICC profile is missing")
    space: ColorSpace = b"".join(pieces[i] for i in sorted(pieces)) or None
    if space is None and _is_adobe_rgb(exif_of(exif)):
        space = RgbSpace(ADOBE, curve=power(563 / 256))
    picture = by_pillow(b"".join(lean), "JPEG", orientation=turn_of(exif_of(exif)), space=space)
    _check_scans(raw, picture.samples.shape[2])
    if picture.samples.shape[2] == 4 and not is_adobe:  # without, 0 is no ink (ITU-T T.872, 6.1)
        picture.samples = 255 - picture.samples
    return picture


def _is_adobe_rgb(exif: Callable[[], Image.Exif]) -> bool:
    index = field_of(exif, 1, 0xA005)
    return field_of(exif, 0xA001, 0x8769) == 0xFFFF and isinstance(index, str) and index[:3] == "R03"


def _check_scans(raw: bytes, channels: int) -> None:
    """Raise `DataError` where libjpeg would only warn, and fill the picture with grey.

    Zeros in the middle of a scan may leave no other trace. Bytes left over behind the last block are damage
    unless they are few: some cameras pad. A machine that only trains may lack simplejpeg, and looks for
    zeros alone.
    """
    if any(b"\0" * ZEROS in scan for scan in _scans_without_zeros(raw)):
        raise DataError("damaged: some of its pixels are zeroed")
    if _lacks_scans(raw):
        raise DataError("damaged: some of its scans are missing")
    try:
        import simplejpeg
    except ImportError:
        return
    try:
        simplejpeg.decode_jpeg(raw, {1: "GRAY", 4: "CMYK"}.get(channels, "RGB"))
    except ValueError as error:
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if not HARMLESS.search(str(error)) and (not extra or int(extra[1]) > PADDING):
            raise


class _Scan(NamedTuple):
    """A scan's header: components, their tables, coefficients low to high, bits before and after (B.2.3)."""

    components: bytes
    tables: bytes
    low: int
    high: int
    before: int
    after: int


def _scan(raw: bytes, start: int) -> _Scan:
    end = start + 1 + 2 * raw[start]
    low, high, bits = raw[end : end + 3]
    return _Scan(raw[start + 1 : end : 2], raw[start + 2 : end : 2], low, high, bits >> 4, bits & 15)


def _scans_without_zeros(raw: bytes) -> Iterator[bytes]:
    """Yield the coded data of scans in which many zeros are no code of a picture (ITU-T T.81, F.2, G.1).

    The code of zeros alone is a table's first: many in a row are a flat area if it ends a block or is a
    difference of nothing, and else the same value again and again. Refined DC is plain bits.
    """
    firsts: dict[int, int] = {}  # by class and number of a Huffman table
    for marker, start, end in _segments(raw):
        if marker == 0xC4:
            while start + 17 < end:
                firsts[raw[start]] = raw[start + 17]
                start += 17 + sum(raw[start + 1 : start + 17])
        elif marker == 0xDA:
            scan = _scan(raw, start)
            dc = {firsts.get(table >> 4) for table in scan.tables}
            ac = {firsts.get(16 | table & 15) for table in scan.tables}
            if scan.low:  # AC alone, where a code may end many blocks
                zeros_are_flat = any(first is None or first & 15 == 0 for first in ac)
            elif scan.high:
                zeros_are_flat = ac <= {0, None}
            else:
                zeros_are_flat = scan.before > 0 or bool(dc & {0, None})
            if not zeros_are_flat:
                yield raw[end : _end_of_scan(raw, end)]


def _lacks_scans(raw: bytes) -> bool:
    """Say whether a coefficient of a progressive picture, or a component of another, is never sent whole."""
    missing: dict[int, set[int]] = {}  # coefficients by component
    progressive = False
    for marker, start, _ in _segments(raw):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive = marker in (0xC2, 0xCA)
            missing = {raw[start + 6 + 3 * i]: set(range(64)) for i in range(raw[start + 5])}
        elif marker == 0xDA:
            scan = _scan(raw, start)
            sent = set(range(scan.low, scan.high + 1)) if progressive else set(range(64))
            for component in scan.components:
                if not scan.after or not progressive:
                    missing.get(component, set()).difference_update(sent)
    return any(missing.values())


def _segments(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of the content of every segment up to the end of the image."""
    place = 2
    while place + 4 <= len(raw) and raw[place] == 0xFF and raw[place + 1] != 0xD9:
        marker = raw[place + 1]
        if marker in (0xFF, 0x01, *range(0xD0, 0xD8)):  # fill bytes, and markers without a length
            place += 1 if marker == 0xFF else 2
            continue
        end = place + 2 + int.from_bytes(raw[place + 2 : place + 4])
        yield marker, place + 4, end
        place = _end_of_scan(raw, end) if marker == 0xDA else end


def _end_of_scan(raw: bytes, place: int) -> int:
    """Return where coded data ends: at a marker that neither stands for 255 nor restarts it."""
    found = END_OF_SCAN.search(raw, place)
    return found.start() if found else len(raw)
