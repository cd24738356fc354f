"""JPEG: its segments, its profile in pieces, and damage that libjpeg only warns of."""

from __future__ import annotations

import re
from collections.abc import Callable

from PIL import Image

from mcml.base.errors import DataError
from mcml.data.color import ADOBE, ColorSpace, RgbSpace, power
from mcml.data.picture import Picture, by_pillow, exif_of, field_of, turn_of


def read_jpeg(raw: bytes) -> Picture:
    """JPEG: an ICC profile in its APP2 segments, else EXIF's Adobe RGB (DCF 2.0), else sRGB."""
    pieces: dict[int, bytes] = {}
    lean, exif, counts, tables, place = [raw[:2]], b"", set(), [], 2
    while True:
        if raw[place] != 0xFF:
            raise DataError("damaged: a marker is missing before its pixels")
        marker = raw[place + 1]
        if marker in (0xFF, 0x01, *range(0xD0, 0xD8)):  # fill bytes, and markers without a length
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):
            break
        end = place + 2 + int.from_bytes(raw[place + 2 : place + 4])
        content = raw[place + 4 : end]
        if marker == 0xE2 and content[:12] == b"ICC_PROFILE\0":
            pieces[content[12]] = content[14:]
            counts.add(content[13])
        elif marker == 0xE1 and content[:6] == b"Exif\0\0":
            exif = exif or content
        elif marker not in (0xE1, 0xE2, 0xED, 0xFE):  # metadata, and further pictures that it points to
            lean.append(raw[place:end])
        if marker == 0xC4:
            tables.append(content)
        place = end
    if pieces and (counts != {len(pieces)} or set(pieces) != set(range(1, len(pieces) + 1))):
        raise DataError("damaged: a part of its ICC profile is missing")
    space: ColorSpace = b"".join(pieces[i] for i in sorted(pieces)) or None
    if space is None and _is_adobe_rgb(exif_of(exif)):
        space = RgbSpace(ADOBE, curve=power(563 / 256))
    picture = by_pillow(
        b"".join([*lean, raw[place:]]), "JPEG", orientation=turn_of(exif_of(exif)), space=space
    )
    _check_scans(raw, place, tables, picture.samples.shape[2])
    return picture


def _is_adobe_rgb(exif: Callable[[], Image.Exif]) -> bool:
    index = field_of(exif, 1, 0xA005)
    return field_of(exif, 0xA001, 0x8769) == 0xFFFF and isinstance(index, str) and index[:3] == "R03"


def _check_scans(raw: bytes, place: int, tables: list[bytes], channels: int) -> None:
    """Raise `DataError` where libjpeg would only warn, and fill the picture with grey.

    Bytes left over behind the last block are damage unless they are few: some cameras pad. Zeros in the
    middle may leave no other trace: they are no code of a photograph, unless a table gives them to the
    end of a block. Without simplejpeg, which trains elsewhere do not have, only zeros are looked for.
    """
    if b"\0" * 48 in raw[place:] and any(
        symbols and symbols[0] & 15 for symbols in map(_first_codes, tables)
    ):
        raise DataError("damaged: some of its pixels are zeroed")
    try:
        import simplejpeg
    except ImportError:
        return
    try:
        simplejpeg.decode_jpeg(raw, {1: "GRAY", 4: "CMYK"}.get(channels, "RGB"))
    except ValueError as error:
        extra = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if not extra or int(extra[1]) > 16:
            raise


def _first_codes(tables: bytes) -> bytes:
    """Return the first symbol of each AC Huffman table of a DHT segment: the one whose code is all zeros."""
    firsts, place = b"", 0
    while place + 17 <= len(tables):
        firsts += tables[place + 17 : place + 18] * (tables[place] >> 4)
        place += 17 + sum(tables[place + 1 : place + 17])
    return firsts
