"""The formats made of boxes: JPEG 2000, AVIF, HEIF and JPEG XL."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

import numpy as np

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace, of_cicp
from mcml.data.jpeg import read_jpeg
from mcml.data.picture import Picture, check_size, decoder, rgb_of_ycc, split_alpha

REPEATS = 3  # a regular pattern is coded as zeros in JPEG 2000, in the blocks of several bands
CODE_BLOCK = 512  # bytes at most of such zeros: one bit for each of 4096 coefficients
TURNS = (b"irot", b"imir", b"clap")
NARROW = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}  # weights of red and blue of H.273's matrices


def _boxes(raw: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each box's content (ISO/IEC 14496-12, 4.2).

    Of a whole file (`end` is None) as many as there are: something else may follow.
    """
    whole, end = end is None, len(raw) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", raw, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(raw[start + 8 : start + 16]), 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            if whole:
                return
            raise DataError(f"damaged: its box {kind!r} ends early")
        yield kind, start + head, stop
        start = stop


def read_jpeg2000(raw: bytes) -> Picture:
    """JPEG 2000: the first `colr` box that can be followed (ISO/IEC 15444-1, annex I), 1 to 16 bits."""
    head, spaces, codestream = _jp2_boxes(raw)
    end = codestream.rfind(b"\xff\xd9")  # which cannot stand in coded data
    if codestream[:4] != b"\xff\x4f\xff\x51" or end < 0:
        raise DataError("damaged: its codestream ends early")
    codestream = codestream[: end + 2]
    few = _empty_packets(codestream)
    zeros = re.findall(rb"\0{%d,}" % (few + 16), codestream)
    if 0 < len(zeros) < REPEATS or any(len(run) > few + CODE_BLOCK for run in zeros):
        raise DataError("damaged: some of its pixels are zeroed")
    right, bottom, left, top_edge = struct.unpack(">4I", codestream[8:24])
    check_size(right - left, bottom - top_edge)
    steps = codestream[42 : 42 + 3 * int.from_bytes(codestream[40:42])]
    if set(steps[1::3] + steps[2::3]) != {1}:
        raise DataError("its channels differ in size; save it as PNG")
    depths = steps[::3]
    if len(set(depths)) > 1 or depths[0] & 127 > 15:
        raise DataError("its channels differ in depth, or are deeper than 16 bits; save it with 8 bits")
    # without its boxes, by whose profile and kind of colour imagecodecs would convert in its own way
    samples = decoder("imagecodecs").jpeg2k_decode(codestream)
    samples = (samples if samples.ndim == 3 else samples[..., None]).astype(np.int32)
    samples, top = _levels(samples, depths[0])
    if b"pclr" in head:
        samples, top = _jp2_palette(head[b"pclr"], head.get(b"cmap", b""), samples)
    channels, space, is_sycc = _jp2_space(spaces, samples.shape[2])
    colors, opacity, premultiplied = _jp2_channels(head.get(b"cdef", b""), channels, samples.shape[2])
    alpha = None if opacity is None else samples[..., opacity]
    samples = samples[..., colors]
    if is_sycc:
        samples = rgb_of_ycc(samples, top)
    return Picture(samples, top, space, alpha, premultiplied)


def _jp2_boxes(raw: bytes) -> tuple[dict[bytes, bytes], list[bytes], bytes]:
    """Return the boxes of the header, all of those that name a colour space, and the codestream."""
    head: dict[bytes, bytes] = {}
    spaces: list[bytes] = []
    if raw[4:8] != b"jP  ":
        return head, spaces, raw
    for kind, start, end in _boxes(raw):
        if kind == b"jp2h":
            for inner, at, stop in _boxes(raw, start, end):
                head.setdefault(inner, raw[at:stop])
                spaces += [raw[at:stop]] * (inner == b"colr")
        elif kind == b"jp2c":
            return head, spaces, raw[start:end]
    return head, spaces, b""


def _jp2_channels(cdef: bytes, channels: int, count: int) -> tuple[list[int], int | None, bool]:
    """Return which of `count` channels are colour, in their order, which is opacity, and if premultiplied."""
    told = list(struct.iter_unpack(">3H", cdef[2:]))  # number, 0 colour or 1 or 2 opacity, place from 1
    if not told:
        told = [(i, 0, i + 1) for i in range(channels)] + [(channels, 1, 0)] * (count == channels + 1)
    colors = [number for place, number in sorted((place, number) for number, kind, place in told if not kind)]
    opacity = [(number, kind == 2) for number, kind, _ in told if kind in (1, 2)]
    if len(colors) != channels or count < len(told) or (not cdef and count > channels + 1):
        raise DataError(f"its {count} channels are not those of its colour space; convert it to sRGB")
    return colors, *(opacity[0] if opacity else (None, False))


def _empty_packets(codestream: bytes) -> int:
    """Return how many packets a tile has: as many zeros in a row are whole in a flat picture (A.6.1, B.9)."""
    place = 2
    while codestream[place : place + 2] not in (b"\xff\x52", b""):
        place += 2 + int.from_bytes(codestream[place + 2 : place + 4])
    has_precincts, _, layers, _, levels = struct.unpack_from(">BBHBB", codestream, place + 4)
    if has_precincts & 1:
        return len(codestream)  # as many as a picture may have
    return layers * (levels + 1) * int.from_bytes(codestream[40:42])


def _levels(samples: np.ndarray, depth: int) -> tuple[np.ndarray, int]:
    """Return samples in 0..top, and top, by a byte of a header: bits less one, and the sign as bit 7."""
    top = 2 ** ((depth & 127) + 1) - 1
    samples = np.clip(samples + (top + 1 >> 1 if depth & 128 else 0), 0, top)
    return samples.astype(np.uint8 if top < 256 else np.uint16), top


def _jp2_palette(pclr: bytes, cmap: bytes, samples: np.ndarray) -> tuple[np.ndarray, int]:
    entries, columns = int.from_bytes(pclr[:2]), pclr[2]
    depths, kind = pclr[3 : 3 + columns], ">u1" if max(pclr[3 : 3 + columns]) & 127 < 8 else ">u2"
    if len(set(depths)) > 1:
        raise DataError("its palette's columns differ in depth; save it with 8 bits")
    table = np.frombuffer(pclr, kind, entries * columns, 3 + columns).reshape(entries, columns)
    table, top = _levels(table.astype(np.int32), depths[0])
    maps = list(struct.iter_unpack(">HBB", cmap)) or [(0, 1, i) for i in range(columns)]
    if any(direct != 1 for _, direct, _ in maps):
        raise DataError("mixes a palette with plain channels; save it as RGB")
    picked = [table[np.minimum(samples[..., of], entries - 1), column] for of, _, column in maps]
    return np.stack(picked, axis=-1), top


def _jp2_space(boxes: list[bytes], count: int) -> tuple[int, ColorSpace, bool]:
    """Return how many channels are colour, what they mean, and whether they are sYCC."""
    unknown = ""
    for box in boxes:
        method, number = box[0], int.from_bytes(box[3:7])
        if method == 1 and number in (16, 17, 18):
            return 1 if number == 17 else 3, None, number == 18
        if method in (2, 3):
            kind = box[3:][16:20]
            if kind in (b"GRAY", b"RGB ", b"CMYK"):
                return {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}[kind], box[3:], False
        if method == 5 and len(box) >= 9:  # H.273's code points (ISO/IEC 15444-2)
            return 3, of_cicp(*struct.unpack_from(">HH", box, 3)), False
        unknown = f"enumerated {number}" if method == 1 else f"method {method}"
    if unknown:
        raise DataError(f"its colour space ({unknown}) is not read here; convert it to sRGB")
    return 1 if count < 3 else 3, None, False


def read_avif(raw: bytes) -> Picture:
    """AVIF: an ICC profile, else the codes of its nclx box, else of its stream; EXIF does not turn it."""
    properties, data = _primary_item(raw)
    of = dict(reversed(properties))
    colors = {box[:4]: box[4:] for kind, box in reversed(properties) if kind == b"colr"}
    space = colors.get(b"prof") or colors.get(b"rICC")
    if space is None:
        codes = struct.unpack(">HH", colors[b"nclx"][:4]) if b"nclx" in colors else _av1_codes(data)
        space = of_cicp(*codes)
    check_size(*struct.unpack(">II", of[b"ispe"][4:12]))
    if b"\0" * 64 in data:
        raise DataError("damaged: some of its pixels are zeroed")
    plain = re.sub(rb"(infe\x02.{7}|infe\x03.{9})Exif", rb"\1none", raw, flags=re.DOTALL)  # broken or not
    nclx, bits = colors.get(b"nclx", b"\0" * 7), _avif_bits(of)
    matrix = NARROW.get(int.from_bytes(nclx[4:6])) if not nclx[6] & 128 and bits == 8 else None
    if matrix:
        plain = plain.replace(b"colrnclx" + nclx[:7], b"colrnclx" + nclx[:6] + b"\x80")
    samples = decoder("imagecodecs").avif_decode(plain)
    if samples.ndim > 3:
        raise DataError(f"holds {len(samples)} frames; give a single picture")
    if matrix and samples.ndim == 3 and samples.shape[2] >= 3:
        samples = np.dstack([_widened(samples[..., :3], *matrix), samples[..., 3:]])
    for kind, content in properties:
        if kind == b"clap":
            samples = _cropped(samples, content)
        elif kind == b"irot":
            samples = np.rot90(samples, content[0] & 3)
        elif kind == b"imir":
            samples = samples[:, ::-1] if content[0] & 1 else samples[::-1]
    samples, alpha = split_alpha(samples)
    return Picture(samples, 2**bits - 1, space, alpha)


def _avif_bits(properties: Mapping[bytes, bytes]) -> int:
    if b"pixi" in properties:
        return properties[b"pixi"][5]
    flags = properties[b"av1C"][2] >> 5 & 3
    return (8, 8, 10, 12)[flags]


def _widened(rgb: np.ndarray, red: float, blue: float) -> np.ndarray:
    """Return RGB of narrow-range YCbCr that was decoded as if its range were full, by the matrix's weights.

    libavif's own conversion of 8 bits clamps the weight of Cb, and takes up to 14 levels from blue.
    """
    r, g, b = np.moveaxis(rgb.astype(np.float32), 2, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = ((of - y) * (255 / 224) for of in (b, r))  # each times its denominator
    y = (y - 16) * (255 / 219)
    r, b = y + cr, y + cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.round(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)


def _cropped(samples: np.ndarray, clap: bytes) -> np.ndarray:
    """Return the clean aperture, whose sides and centre are fractions (ISO/IEC 14496-12, 12.1.4)."""
    numbers = struct.unpack(">IIIIiIiI", clap[:32])
    width, height, right, down = (Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = (samples.shape[1] - width) / 2 + right, (samples.shape[0] - height) / 2 + down
    sides = left, top, left + width, top + height
    if any(side.denominator != 1 or side < 0 for side in sides):
        raise DataError("its crop (clap) is not of whole pixels; save it as PNG")
    cropped = samples[int(top) : int(top + height), int(left) : int(left + width)]
    check_size(*cropped.shape[1::-1])
    return cropped


def _primary_item(raw: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return type and content of a HEIF file's primary item's properties, and its data (ISO/IEC 14496-12)."""
    meta = next(((start, end) for kind, start, end in _boxes(raw) if kind == b"meta"), None)
    if meta is None:
        raise DataError("damaged: it ends before its pixels")
    inner = {kind: raw[start:end] for kind, start, end in _boxes(raw, meta[0] + 4, meta[1])}
    primary = int.from_bytes(inner[b"pitm"][4 : 8 if inner[b"pitm"][0] else 6])
    parts = {
        kind: inner[b"iprp"][start:end] for kind, start, end in _boxes(inner[b"iprp"], 0, len(inner[b"iprp"]))
    }
    shelf = parts[b"ipco"]
    shelf = [(kind, shelf[start:end]) for kind, start, end in _boxes(shelf, 0, len(shelf))]
    links, of = _Fields(parts[b"ipma"][4:]), {}
    wide, size = parts[b"ipma"][3] & 1, 4 if parts[b"ipma"][0] else 2
    for _ in range(links(4)):
        item = links(size)
        indices = [links(1 + wide) & (0x7FFF if wide else 0x7F) for _ in range(links(1))]
        of[item] = [shelf[i - 1] for i in indices if 0 < i <= len(shelf)]
    properties = of.get(primary, [])
    tile = _first_tile(inner.get(b"iref", b""), primary)
    if tile is not None:  # of a grid, which may leave the colours to its tiles
        own = {kind for kind, _ in properties}
        properties += [(kind, box) for kind, box in of.get(tile, ()) if kind not in {*own, b"ispe", *TURNS}]
    return properties, _item_data(raw, inner.get(b"iloc", b""), primary if tile is None else tile)


def _first_tile(iref: bytes, item: int) -> int | None:
    """Return the first item that another is derived from, as a grid is from its tiles (8.11.12)."""
    size = 4 if iref[:1] == b"\1" else 2
    for kind, start, _ in _boxes(iref, 4, len(iref)):
        take = _Fields(iref[start:])
        if kind == b"dimg" and take(size) == item and take(2):
            return take(size)
    return None


def _item_data(raw: bytes, iloc: bytes, wanted: int) -> bytes:
    """Return the bytes of an item that is stored in the file itself; b"" of any other (8.11.3)."""
    take = _Fields(iloc[4:])
    version, sizes = iloc[0], take(2)
    for _ in range(take(4 if version == 2 else 2)):
        item = take(4 if version == 2 else 2)
        elsewhere = take(2) & 15 if version else 0
        elsewhere |= take(2)
        base, data = take(sizes >> 4 & 15), b""
        for _ in range(take(2)):
            take(sizes & 15 if version else 0)
            start, length = base + take(sizes >> 12), take(sizes >> 8 & 15)
            data += raw[start : start + length] if item == wanted and not elsewhere else b""
        if item == wanted:
            return data
    return b""


class _Fields:
    """Takes numbers off the front of a box, most significant byte first; `IndexError` past its end."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def __call__(self, size: int) -> int:
        if self.place + size > len(self.content):
            raise IndexError("a box ends early")
        self.place += size
        return int.from_bytes(self.content[self.place - size : self.place])


def _av1_codes(data: bytes) -> tuple[int, int]:
    """Return primaries and transfer of a still picture's sequence header (AV1, 5.5); 2, 2 if it has none."""
    place = 0
    while place + 2 < len(data) and data[place] >> 3 & 15 != 1:  # another unit, which has its size
        place += 2 + data[place + 1]
    take = _bits(data[place + 2 : place + 66])
    profile, _, reduced = take(3), take(1), take(1)
    if reduced:
        take(5)
    elif take(1):  # a film's timing
        return 2, 2
    else:
        delayed = take(1)
        for _ in range(take(5) + 1):
            take(12)
            take(take(5) > 7)
            take(4 * (delayed and take(1)))
    take(sum((take(4) + 1, take(4) + 1)))
    take(7 * (0 if reduced else take(1)))
    take(3)
    if not reduced:
        take(4)
        ordered = take(1)
        take(2 * ordered)
        forced = 2 if take(1) else take(1)
        take(bool(forced and not take(1)))
        take(3 * ordered)
    take(3)
    take(bool(take(1) and profile == 2))
    take(profile != 1)
    return (take(8), take(8)) if take(1) else (2, 2)


def _bits(data: bytes) -> Callable[[int], int]:
    """Return what takes so many bits off the front, first bit highest; behind the end there are zeros."""
    bits, place = int.from_bytes(data), 8 * len(data)

    def take(count: int) -> int:
        nonlocal place
        place -= count
        return (bits >> place if place >= 0 else 0) & ((1 << count) - 1)

    return take


def read_heif(raw: bytes) -> Picture:
    """HEIF: as AVIF; libheif turns the picture itself."""
    image = decoder("pillow_heif").open_heif(raw, convert_hdr_to_8bit=False)
    check_size(*image.size)
    told = [part.info.get(name) for part in image for name in ("exif", "xmp")]  # of further pictures too
    told += [metadata["data"] for part in image for metadata in part.info["metadata"]]
    for kind, start, end in _boxes(raw):
        coded = raw[start:end] if kind == b"mdat" else b""
        for data in filter(None, told):
            coded = coded.replace(data, b"")
        if b"\0" * 64 in coded:  # HEVC never has three zeros in a row
            raise DataError("damaged: some of its pixels are zeroed")
    nclx = image.info.get("nclx_profile") or {}
    codes = nclx.get("color_primaries", 2), nclx.get("transfer_characteristics", 2)
    space = image.info.get("icc_profile") or of_cicp(*codes)
    samples, alpha = split_alpha(np.asarray(image))
    top = 255 if samples.dtype == np.uint8 else 65535
    return Picture(samples, top, space, alpha, image.mode.startswith("RGBa"))


def read_jpeg_xl(raw: bytes) -> Picture:
    """JPEG XL: its codestream alone decides colours and orientation (ISO/IEC 18181-2, annex A)."""
    check_size(*_jxl_size(raw))
    samples = decoder("imagecodecs").jpegxl_decode(raw)
    if samples.dtype.kind == "f":
        raise DataError("floating-point pixels are not supported; save it as 8-bit sRGB")
    if samples.ndim > 3 or (samples.ndim == 3 and samples.shape[2] not in (2, 3, 4)):
        raise DataError("holds an animation; give a single picture")
    from_jpeg, _, flat, icc, _ = decoder("pillow_jxl").Decoder(num_threads=1)(raw)
    if from_jpeg:
        return read_jpeg(bytes(flat))
    top = 255
    if samples.dtype != np.uint8:  # how many bits it has is not told: as many as give Pillow's 8 bits
        flat = np.frombuffer(flat, np.uint8, samples.size).reshape(samples.shape)
        tops = [2**bits - 1 for bits in range(9, 17)]
        top = min(tops, key=lambda top: np.abs(samples * (255 / top) - flat).mean())
    samples, alpha = split_alpha(samples)
    return Picture(samples, top, bytes(icc) or None, alpha)


def _jxl_size(raw: bytes) -> tuple[int, int]:
    """Return a JPEG XL picture's width and height from its header (ISO/IEC 18181-1, D.2)."""
    if raw[:2] != b"\xff\x0a":
        parts = {kind: raw[start:end] for kind, start, end in reversed(list(_boxes(raw)))}
        raw = parts.get(b"jxlc") or parts[b"jxlp"][4:]
    bits, place = int.from_bytes(raw[2:20], "little"), 0  # first bit lowest

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> (place - count) & ((1 << count) - 1)

    def side(small: int) -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side(small)
    ratio = take(3)
    across, up = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return height * across // up if ratio else side(small), height
