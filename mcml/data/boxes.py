"""The formats made of boxes: JPEG 2000, AVIF, HEIF and JPEG XL."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace, RgbSpace, of_cicp
from mcml.data.jpeg import read_jpeg
from mcml.data.picture import Picture, check_size, decoder, rgb_of_ycc, samples_of, turn_of


def _boxes(raw: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each box's content (ISO/IEC 14496-12, 4.2)."""
    end = len(raw) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", raw, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = int.from_bytes(raw[start + 8 : start + 16]), 16
        stop = end if size == 0 else start + size
        if stop < start + head or stop > end:
            raise DataError(f"damaged: its box {kind!r} ends early")
        yield kind, start + head, stop
        start = stop


def read_jpeg2000(raw: bytes) -> Picture:
    """JPEG 2000: the first `colr` box that can be followed (ISO/IEC 15444-1, annex I), 1 to 16 bits."""
    head: dict[bytes, bytes] = {}
    spaces, code = [], (0, len(raw))
    if raw[4:8] == b"jP  ":
        for kind, start, end in _boxes(raw):
            if kind == b"jp2h":
                for inner, at, stop in _boxes(raw, start, end):
                    head.setdefault(inner, raw[at:stop])
                    spaces += [raw[at:stop]] * (inner == b"colr")
            elif kind == b"jp2c":
                code = start, end
                break
    codestream = raw[slice(*code)]
    if codestream[:4] != b"\xff\x4f\xff\x51" or codestream.rstrip(b"\0")[-2:] != b"\xff\xd9":
        raise DataError("damaged: its codestream ends early")
    right, bottom, left, top_edge = struct.unpack(">4I", codestream[8:24])
    check_size(right - left, bottom - top_edge)
    depths = codestream[42 : 42 + 3 * int.from_bytes(codestream[40:42]) : 3]
    if len(set(depths)) > 1 or depths[0] & 127 > 15:
        raise DataError("its channels differ in depth, or are deeper than 16 bits; save it with 8 bits")
    # without its boxes, by whose profile and kind of colour imagecodecs would convert in its own way
    samples = decoder("imagecodecs").jpeg2k_decode(codestream)
    samples = (samples if samples.ndim == 3 else samples[..., None]).astype(np.int32)
    samples, top = _levels(samples, depths[0])
    if b"pclr" in head:
        samples, top = _jp2_palette(head[b"pclr"], head.get(b"cmap", b""), samples)
    channels, space, is_sycc = _jp2_space(spaces, samples.shape[2])
    kinds = {i: (0, i + 1) for i in range(channels)}  # of each channel: 0 colour, 1 or 2 opacity; its place
    if b"cdef" not in head and samples.shape[2] == channels + 1:
        kinds[channels] = 1, 0
    for number, kind, place in struct.iter_unpack(">3H", head.get(b"cdef", b"")[2:]):
        kinds[number] = kind, place
    colors = [i for i, (kind, _) in sorted(kinds.items(), key=lambda item: item[1][1]) if kind == 0]
    opacity = [i for i, (kind, _) in kinds.items() if kind in (1, 2)]
    alpha = samples[..., opacity[0]] if opacity else None
    premultiplied = bool(opacity) and kinds[opacity[0]][0] == 2
    samples = samples[..., colors[:channels]]
    if is_sycc:
        samples = rgb_of_ycc(samples, top)
    return Picture(samples, top, space, alpha, premultiplied)


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
    """AVIF: an ICC profile, else the nclx of the primary item; irot and imir turn it, EXIF does not."""
    told = {b"colr": [], b"pixi": [], b"av1C": []}
    for kind, content in _primary_properties(raw):
        told.setdefault(kind, []).append(content)
    space = next((_nclx(box) for box in told[b"colr"] if box[:4] == b"nclx"), None)
    bits = max([8, *(n for box in told[b"pixi"] for n in box[5:]),
                *(8 + 2 * (box[2] >> 6 & 1) * (1 + (box[2] >> 5 & 1)) for box in told[b"av1C"])])  # fmt: skip
    with Image.open(io.BytesIO(raw), formats=["AVIF"]) as image:
        check_size(*image.size)
        if image.n_frames > 1:
            raise DataError(f"holds {image.n_frames} frames; give a single picture")
        icc = {"space": image.info.get("icc_profile") or space, "orientation": turn_of(image.getexif)}
        if bits == 8:
            return samples_of(image, icc)
    samples = decoder("imagecodecs").avif_decode(raw)
    samples = samples if samples.ndim == 3 else samples[..., None]
    if samples.shape[2] in (2, 4):
        icc["alpha"], samples = samples[..., -1], samples[..., :-1]
    return Picture(samples, 2**bits - 1, **icc)


def _nclx(box: bytes) -> RgbSpace | None:
    return of_cicp(*struct.unpack_from(">HH", box, 4))


def _primary_properties(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of the properties of a HEIF file's primary item (ISO/IEC 23008-12, 9.3)."""
    meta = next((start, end) for kind, start, end in _boxes(raw) if kind == b"meta")
    inner = {kind: raw[start:end] for kind, start, end in _boxes(raw, meta[0] + 4, meta[1])}
    size = 4 if inner[b"pitm"][0] else 2
    primary = inner[b"pitm"][4 : 4 + size]
    shelf = inner[b"iprp"]
    parts = {kind: shelf[start:end] for kind, start, end in _boxes(shelf)}
    properties = [(kind, parts[b"ipco"][start:end]) for kind, start, end in _boxes(parts[b"ipco"])]
    links = parts[b"ipma"]
    size, wide, place = 4 if links[0] else 2, links[3] & 1, 8
    for _ in range(int.from_bytes(links[4:8])):
        item, count = links[place : place + size], links[place + size]
        place += size + 1
        for at in range(place, place + count * (1 + wide), 1 + wide):
            index = int.from_bytes(links[at : at + 1 + wide]) & (0x7FFF if wide else 0x7F)
            if int.from_bytes(item) == int.from_bytes(primary) and 0 < index <= len(properties):
                yield properties[index - 1]
        place += count * (1 + wide)


def read_heif(raw: bytes) -> Picture:
    """HEIF: as AVIF; libheif turns the picture itself."""
    image = decoder("pillow_heif").open_heif(raw, convert_hdr_to_8bit=False)
    check_size(*image.size)
    nclx = image.info.get("nclx_profile") or {}
    space = of_cicp(nclx.get("color_primaries", 2), nclx.get("transfer_characteristics", 2))
    samples = np.asarray(image)
    samples = samples if samples.ndim == 3 else samples[..., None]
    told = {"space": image.info.get("icc_profile") or space}
    if samples.shape[2] in (2, 4):
        told["alpha"], samples = samples[..., -1], samples[..., :-1]
        told["premultiplied"] = image.mode.startswith("RGBa")
    return Picture(samples, 255 if samples.dtype == np.uint8 else 65535, **told)


def read_jpeg_xl(raw: bytes) -> Picture:
    """JPEG XL: its codestream alone decides colours and orientation (ISO/IEC 18181-2, annex A)."""
    check_size(*_jxl_size(raw))
    samples = decoder("imagecodecs").jpegxl_decode(raw)
    if samples.dtype.kind == "f":
        raise DataError("floating-point pixels are not supported; save it as 8-bit sRGB")
    is_gray = samples.ndim == 2 or samples.shape[-1] == 2
    if samples.ndim > 3 or (samples.ndim == 3 and samples.shape[2] not in (2, 3, 4)):
        raise DataError("holds an animation; give a single picture")
    from_jpeg, _, flat, icc, _ = decoder("pillow_jxl").Decoder(num_threads=1)(raw)
    if from_jpeg:
        return read_jpeg(bytes(flat))
    samples = samples if samples.ndim == 3 else samples[..., None]
    top = 255
    if samples.dtype != np.uint8:  # how many bits it has is not told: as many as give Pillow's 8 bits
        flat = np.frombuffer(flat, np.uint8, samples.size).reshape(samples.shape)
        tops = [2**bits - 1 for bits in range(9, 17)]
        top = min(tops, key=lambda top: np.abs(samples * (255 / top) - flat).mean())
    alpha = samples[..., -1] if samples.shape[2] in (2, 4) else None
    samples = samples[..., : 1 if is_gray else 3]
    return Picture(samples, top, bytes(icc) or None, alpha)


def _jxl_size(raw: bytes) -> tuple[int, int]:
    """Return a JPEG XL picture's width and height from its header (ISO/IEC 18181-1, D.2)."""
    if raw[:2] != b"\xff\x0a":
        parts = {kind: raw[start:end] for kind, start, end in reversed(list(_boxes(raw)))}
        raw = parts.get(b"jxlc") or parts[b"jxlp"][4:]
    bits, place = int.from_bytes(raw[2:20], "little"), 0

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
