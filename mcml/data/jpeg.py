"""JPEG: its segments, its profile in pieces, and damage that libjpeg only warns of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from PIL import Image

from mcml.base.errors import DataError
from mcml.data.color import ADOBE, ColorSpace, RgbSpace, power
from mcml.data.picture import Picture, by_pillow, exif_of, field_of, turn_of

ZEROS = 48  # in a row, which no block of a photograph needs
PADDING = 16  # bytes at most behind the last block
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
    try:
        import simplejpeg
    except ImportError:
        return
    try:
        simplejpeg.decode_jpeg(raw, {1: "GRAY", 4: "CMYK"}.get(channels, "RGB"))
    except ValueError as error:
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if not extra or int(extra[1]) > PADDING:
            raise


def _scans_without_zeros(raw: bytes) -> Iterator[bytes]:
    """Yield the coded data of scans in which many zeros are no code of a picture (ITU-T T.81, B.2, F.2, G.1).

    The code of zeros alone is a table's first: many in a row are a flat area if it ends a block or is a
    difference of nothing, and else the same value again and again. Refined DC is plain bits.
    """
    firsts: dict[int, int] = {}  # by class and number of a Huffman table
    for marker, start, end in _segments(raw):
        if marker == 0xC4:
            while start + 17 < end:
                firsts[raw[start]] = raw[start + 17]
                start += 17 + sum(raw[start + 1 : start + 17])
        elif marker == 0xDA and raw[start]:
            count = raw[start]
            low, _, refined = raw[start + 2 * count + 1 : start + 2 * count + 4]
            selectors = raw[start + 2 : start + 2 + 2 * count : 2]
            dc, ac = ({firsts.get(class_ << 4 | s >> shift & 15) for s in selectors}
                      for class_, shift in ((0, 4), (1, 0)))  # fmt: skip
            is_ac = low > 0 or raw[start + 2 * count + 2] > 0
            flat = any(f is not None and f & 15 == 0 and f < 0xF0 for f in ac) if low else not ac - {0, None}
            if (is_ac and not flat) or (not is_ac and not refined >> 4 and not dc & {0, None}):
                yield raw[end : _end_of_scan(raw, end)]


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
