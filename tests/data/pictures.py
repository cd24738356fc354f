"""Odd pictures written by hand, and the sRGB values that they show by their standards.

Values come from colour-science and from the formulas named beside them, never from the code under test.
Samples are integers of 0..2^depth - 1; values of colour are floats of 0..1, or (H, W, 3) of 0..255.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import colour
import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401  (registers JPEG XL for writing)
from PIL import Image

WIDTH, HEIGHT = 24, 16
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([X / (WIDTH - 1), Y / (HEIGHT - 1), 0.5 + 0.5 * np.sin((X + 2 * Y) / 9)], -1)  # spans the cube
RGB8 = (255 * RGB).round().astype(np.uint8)
GREY8 = (255 * (X + Y) / (WIDTH + HEIGHT - 2)).round().astype(np.uint8)

D65, D50, WHITE_C = (0.3127, 0.3290), (0.3457, 0.3585), (0.310, 0.316)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # H.273, table 2: 1
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))  # 12
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))  # 9
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO = ((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105))

# ---------------------------------------------------------------------------------- colours

srgb = colour.models.eotf_sRGB
bt709 = colour.models.oetf_inverse_BT709
smpte240m = colour.models.eotf_SMPTE240M


def power(gamma: float):
    """Return the transfer function v^gamma."""
    return lambda v: v**gamma


def shown(values: np.ndarray, primaries=SRGB, decode=srgb, white=D65) -> np.ndarray:
    """Return sRGB of 0..255, unrounded: relative colorimetric (Bradford), clipped in linear light."""
    source = colour.RGB_Colourspace("source", np.array(primaries), np.array(white))
    target = colour.RGB_Colourspace("sRGB", np.array(SRGB), np.array(D65))
    values = values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)
    light = colour.RGB_to_RGB(decode(np.asarray(values, float)), source, target, "Bradford")
    return 255 * colour.models.eotf_inverse_sRGB(np.clip(light, 0, 1))


def levels(depth: int, picture: np.ndarray = RGB8) -> np.ndarray:
    """Return samples of a depth."""
    return (picture / 255 * (2**depth - 1)).round().astype(np.uint8 if depth <= 8 else np.uint16)


def composed(values: np.ndarray, alpha: np.ndarray, background: tuple) -> np.ndarray:
    """Return values of 0..255 over a background, mixed in sRGB values; alpha is 0..1."""
    return values * alpha[..., None] + np.array(background) * (1 - alpha[..., None])


# --------------------------------------------------------------------------------- profiles


def icc(space: bytes, tags: dict[bytes, bytes], kind=b"mntr", pcs=b"XYZ ", version=0x02400000) -> bytes:
    """Return an ICC profile (ICC.1:2001-04) of these tags beside a name and a white."""
    fixed = struct.pack(">3i", *(round(65536 * v) for v in (0.9642, 1, 0.8249)))
    named = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)}
    tags = {**named, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4) + fixed, **tags}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">II", start + len(body), 0) + struct.pack(">I4s4s4s", version, kind, space, pcs)
    return (
        head
        + bytes(12)
        + b"acsp"
        + bytes(28)
        + fixed
        + bytes(48)
        + struct.pack(">I", len(tags))
        + table
        + body
    )


def curve(gamma: float) -> bytes:
    """Return a curve of one exponent, in 256ths."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))


def rgb_icc(primaries, gamma: float, white=D65, **options) -> bytes:
    """Return a matrix profile, adapted to D50 by Bradford's matrix."""
    matrix = colour.normalised_primary_matrix(np.array(primaries), np.array(white))
    whites = [colour.xy_to_XYZ(xy) for xy in (white, D50)]
    matrix = colour.adaptation.matrix_chromatic_adaptation_VonKries(*whites, "Bradford") @ matrix
    tags = {b"%cXYZ" % c: matrix[:, i] for i, c in enumerate(b"rgb")}
    tags = {
        n: b"XYZ " + bytes(4) + struct.pack(">3i", *(65536 * v).round().astype(int)) for n, v in tags.items()
    }
    extra = options.pop("extra", {})
    return icc(b"RGB ", {**tags, **{b"%cTRC" % c: curve(gamma) for c in b"rgb"}, **extra}, **options)


def grey_icc(gamma: float) -> bytes:
    """Return a grey profile."""
    return icc(b"GRAY", {b"kTRC": curve(gamma)})


ADOBE_GAMMA = 563 / 256  # Adobe RGB (1998) encoding, 4.3.1.2
ADOBE_ICC = rgb_icc(ADOBE, ADOBE_GAMMA)


def ink_lab(inks: np.ndarray) -> np.ndarray:
    """Return L* a* b* of inks of 0..1: linear, so that every way to interpolate agrees."""
    c, m, y, k = np.moveaxis(np.asarray(inks, float), -1, 0)
    return np.stack([100 - 25 * (c + m + y + k), 40 * (m - c), 40 * (y - m)], -1)


def ink_icc() -> bytes:
    """Return a CMYK profile of `ink_lab`: a table of 2^4 points (lut16Type, Lab by ICC.1:2001-04, 6.5.7)."""
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    lab = ink_lab(corners)
    table = np.stack([lab[:, 0] * 652.80, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], -1).round()
    ramp = np.array([0, 65535], ">u2").tobytes()
    data = b"mft2" + bytes(4) + bytes([4, 3, 2, 0])
    data += struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel()) + struct.pack(">HH", 2, 2)
    data += ramp * 4 + table.astype(">u2").tobytes() + ramp * 3
    return icc(b"CMYK", {b"A2B0": data}, kind=b"scnr", pcs=b"Lab ")


def lab_shown(lab: np.ndarray, white=D50) -> np.ndarray:
    """Return sRGB of 0..255 of L* a* b* under D50."""
    light = colour.XYZ_to_RGB(colour.Lab_to_XYZ(lab, np.array(white)), "sRGB", np.array(white), "Bradford")
    return 255 * colour.models.eotf_inverse_sRGB(np.clip(light, 0, 1))


# ------------------------------------------------------------------------------ EXIF and TIFF

SHORT, LONG = 3, 4


def packed(rows: np.ndarray, depth: int, dtype: str = ">u2") -> bytes:
    """Return rows of samples, the first in the high bits, each row from a new byte."""
    if depth == 16:
        return rows.astype(dtype).tobytes()
    bits = np.unpackbits(rows.astype(">u2").view(np.uint8).reshape(*rows.shape, 2), axis=-1)
    return np.packbits(bits[..., 16 - depth :].reshape(len(rows), -1), axis=-1).tobytes()


def directory(entries: dict, order: str = "<", at: int = 8, following: int = 0) -> bytes:
    """Return a TIFF directory that starts at `at`; entries: integers, text, or (type, count, bytes)."""
    out, extra, start = b"", b"", at + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        if isinstance(value, bytes):
            value = (7, len(value), value)
        elif not isinstance(value, tuple):
            value = [value] if isinstance(value, int) else list(value)
            kind = LONG if max(value) > 65535 else SHORT
            value = (kind, len(value), struct.pack(order + "H I"[kind * 2 - 6] * len(value), *value))
        kind, count, data = value
        if len(data) > 4:
            extra += bytes(len(extra) % 2)
            data, place = struct.pack(order + "I", start + len(extra)), data
            extra += place
        out += struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + out + struct.pack(order + "I", following) + extra


def exif(entries: dict | None = None, **options) -> bytes:
    """Return EXIF data, as a TIFF file without pixels."""
    order = options.get("order", "<")
    return (
        (b"II" if order == "<" else b"MM")
        + struct.pack(order + "HI", 42, 8)
        + directory(entries or {}, **options)
    )


def orientation(number: int) -> bytes:
    """Return EXIF data of one orientation."""
    return exif({274: number})


def turned(picture: np.ndarray, number: int) -> np.ndarray:
    """Return what EXIF 2.32, tag 274, shows of stored pixels."""
    flipped = picture.swapaxes(0, 1) if number > 4 else picture
    ways = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    down, right = ways[number]
    return flipped[::down, ::right]


def tiff(
    samples: np.ndarray, photometric: int, depth: int = 8, *, order="<", planar=False, pages=(), **tags
) -> bytes:
    """Return an uncompressed TIFF of one strip (or one a plane), and further pages; tags as `t274=6`."""
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, count = samples.shape
    planes = np.moveaxis(samples, -1, 0)[..., None] if planar else samples[None]
    strips = [packed(p.reshape(height, -1), depth, order + "u2") for p in planes]
    entries = {
        256: width,
        257: height,
        258: [depth] * count,
        259: 1,
        262: photometric,
        277: count,
        278: height,
    }
    entries |= {284: 2} if planar else {}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    return tiff_file([(entries, strips), *pages], order)


def tiff_file(pages: Sequence[tuple[dict, list[bytes]]], order="<") -> bytes:
    """Return a TIFF of pages: their entries, their strips."""
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    for number, (entries, strips) in enumerate(pages):
        at, offsets, following = len(out), [99999] * len(strips), 0
        sizes = [len(s) for s in strips]
        counts = (LONG, len(sizes), struct.pack(order + "I" * len(sizes), *sizes))
        for _ in range(2):  # offsets are known once the directory's length is
            place = (LONG, len(offsets), struct.pack(order + "I" * len(offsets), *offsets))
            made = directory({**entries, 273: place, 279: counts}, order, at, following)
            offsets = [at + len(made) + sum(sizes[:i]) for i in range(len(sizes))]
            end = at + len(made) + sum(sizes)
            following = end + end % 2 if number + 1 < len(pages) else 0
        out += made + b"".join(strips)
        out += bytes(len(out) % 2)
    return out


# --------------------------------------------------------------------------------------- PNG

PNG = b"\x89PNG\r\n\x1a\n"
PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
NUMBER_OF = {1: 0, 2: 4, 3: 2, 4: 6}  # samples of a pixel: colour type


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    samples: np.ndarray, *chunks: bytes, depth=8, palette: bytes = b"", interlaced=False, after=b""
) -> bytes:
    """Return a PNG; `chunks` stand before its palette, `after` behind it (tRNS)."""
    samples = samples if samples.ndim == 3 else samples[..., None]
    height, width, count = samples.shape
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in (PASSES if interlaced else ((0, 0, 1, 1),))]
    rows = b"".join(b"\0" + packed(row.reshape(1, -1), depth) for part in parts if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, depth, 3 if palette else NUMBER_OF[count], 0, 0, interlaced)
    colours = chunk(b"PLTE", palette) if palette else b""
    body = b"".join(chunks) + colours + after + chunk(b"IDAT", zlib.compress(rows, 9))
    return PNG + chunk(b"IHDR", head) + body + chunk(b"IEND")


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> bytes:
    """Return a cICP chunk (PNG, third edition, 11.3.2.6)."""
    return chunk(b"cICP", bytes([primaries, transfer, matrix, full]))


def iccp(profile: bytes) -> bytes:
    """Return an iCCP chunk."""
    return chunk(b"iCCP", b"test\0\0" + zlib.compress(profile))


def gama(value: int) -> bytes:
    """Return a gAMA chunk: 100,000 times the encoding's exponent."""
    return chunk(b"gAMA", struct.pack(">I", value))


def chrm(primaries=SRGB, white=D65) -> bytes:
    """Return a cHRM chunk."""
    return chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * v) for xy in (white, *primaries) for v in xy)))


SRGB_CHUNK = chunk(b"sRGB", b"\0")

# -------------------------------------------------------------------------------------- JPEG


def pil(picture, kind: str, **options) -> bytes:
    """Return an array or a Pillow image as Pillow writes it."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(picture=RGB8, **options) -> bytes:
    """Return a JPEG of fine steps without subsampling."""
    return pil(picture, "JPEG", **{"quality": 100, "subsampling": 0, **options})


def segment(marker: int, data: bytes) -> bytes:
    """Return a marker segment of JPEG."""
    return struct.pack(">BBH", 255, marker, len(data) + 2) + data


def with_segments(raw: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with segments behind its JFIF header, or its first marker."""
    at = 4 + int.from_bytes(raw[4:6]) if raw[2:4] == b"\xff\xe0" else 2
    return raw[:at] + b"".join(segments) + raw[at:]


def without(raw: bytes, *markers: int) -> bytes:
    """Return a JPEG without the segments of some markers before its scan."""
    out, at = raw[:2], 2
    while raw[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(raw[at + 2 : at + 4])
        out += b"" if raw[at + 1] in markers else raw[at:end]
        at = end
    return out + raw[at:]


def icc_segments(profile: bytes, parts: int = 1) -> list[bytes]:
    """Return the APP2 segments of a profile (ICC.1:2001-04, B.4)."""
    size = -(-len(profile) // parts)
    pieces = [profile[i : i + size] for i in range(0, len(profile), size)]
    return [segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + p) for i, p in enumerate(pieces)]


def exif_segment(data: bytes) -> bytes:
    """Return the APP1 segment of EXIF data."""
    return segment(0xE1, b"Exif\0\0" + data)


def adobe(transform: int) -> bytes:
    """Return Adobe's APP14 segment: 0 RGB or CMYK, 1 YCbCr, 2 YCCK."""
    return segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


def ycc(values: np.ndarray, of_red=0.299, of_blue=0.114) -> np.ndarray:
    """Return YCbCr of RGB, 0..255, full range, by JFIF 1.02 or the weights of H.273, table 4."""
    red, green, blue = np.moveaxis(values.astype(float), -1, 0)
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    parts = y, (blue - y) / (2 - 2 * of_blue) + 128, (red - y) / (2 - 2 * of_red) + 128
    return np.stack(parts, -1).round().clip(0, 255).astype(np.uint8)


def rgb_of_ycc(values: np.ndarray, of_red=0.299, of_blue=0.114) -> np.ndarray:
    """Return RGB of YCbCr, the inverse of `ycc` before it rounds."""
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    red, blue = y + (2 - 2 * of_red) * (cr - 128), y + (2 - 2 * of_blue) * (cb - 128)
    green = (y - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return np.stack([red, green, blue], -1).clip(0, 255)


# ------------------------------------------------------------------ ISO boxes: HEIF, JP2, JXL


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, *parts: bytes, version=0) -> bytes:
    """Return a box of a version without flags."""
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def cut_box(raw: bytes, kind: bytes) -> bytes:
    """Return the first box of a kind from a file."""
    at = raw.index(kind) - 4
    return raw[at : at + int.from_bytes(raw[at : at + 4])]


def nclx(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> bytes:
    """Return a colour box of HEIF (ISO/IEC 14496-12, 12.1.5)."""
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, matrix, full << 7))


def prof(profile: bytes) -> bytes:
    """Return a colour box of an ICC profile."""
    return box(b"colr", b"prof", profile)


def irot(quarters: int) -> bytes:
    """Return a turn by quarters against the clock (ISO/IEC 23008-12, 6.5.10)."""
    return box(b"irot", bytes([quarters]))


def imir(axis: int) -> bytes:
    """Return a mirror: 0 exchanges top and bottom, 1 left and right (ISO/IEC 23008-12:2022, 6.5.12)."""
    return box(b"imir", bytes([axis]))


def coded(picture=RGB8, depth=8, matrix=0, codec="av01", **options) -> tuple[bytes, bytes, list[bytes]]:
    """Return an item of HEIF, coded without loss if matrix is 0: its type, its data, its properties."""
    count = 1 if picture.ndim == 2 else picture.shape[2]
    pixi = full_box(b"pixi", bytes([count] + [depth] * count))
    if codec == "av01":
        grey = {"pixelformat": "400", "matrix": 6} if count == 1 else {"pixelformat": "444", "matrix": matrix}
        options = {**grey, "bitspersample": depth, **options}
        raw = imagecodecs.avif_encode(picture, level=100, speed=8, **options)
        size = full_box(b"ispe", struct.pack(">II", picture.shape[1], picture.shape[0]))
        return b"av01", raw[raw.index(b"mdat") + 4 :], [size, pixi, cut_box(raw, b"av1C")]
    import pillow_heif

    buffer = io.BytesIO()
    image = pillow_heif.from_pillow(Image.fromarray(picture))
    image.save(buffer, quality=-1, chroma=444, matrix_coefficients=matrix)
    raw = buffer.getvalue()
    kept = (cut_box(raw, k) for k in (b"hvcC", b"ispe", b"clap") if k in raw)
    return b"hvc1", raw[raw.index(b"mdat") + 4 :], [*kept, pixi]


def heif(item: tuple, *properties: bytes, others: Sequence[tuple] = (), links: dict | None = None) -> bytes:
    """Return an AVIF or HEIC file of an item and its properties, and others: (item, {reference: targets}).

    The first item has number 1, the next 2. ISO/IEC 23008-12; transformations apply in their order.
    """
    kind, data, own = item
    items = [((kind, data, [*own, *properties]), links or {}), *others]
    needed = (b"av1C", b"hvcC", b"irot", b"imir", b"clap")
    listed = [(number, p) for number, ((_, _, own), _) in enumerate(items, 1) for p in own]
    uses = b""
    for number, ((_, _, own), _) in enumerate(items, 1):
        first = next(i for i, (n, _) in enumerate(listed, 1) if n == number) if own else 0
        marks = bytes(first + i | (0x80 if p[4:8] in needed else 0) for i, p in enumerate(own))
        uses += struct.pack(">HB", number, len(own)) + marks
    iprp = box(
        b"iprp",
        box(b"ipco", *(p for _, p in listed)),
        full_box(b"ipma", struct.pack(">I", len(items)), uses),
    )
    infos = [
        full_box(b"infe", struct.pack(">HH4sx", n, 0, k), version=2)
        for n, ((k, _, _), _) in enumerate(items, 1)
    ]
    iinf = full_box(b"iinf", struct.pack(">H", len(items)), *infos)
    references = [
        box(name, struct.pack(f">{2 + len(targets)}H", n, len(targets), *targets))
        for n, (_, links) in enumerate(items, 1)
        for name, targets in links.items()
    ]
    iref = full_box(b"iref", *references) if references else b""
    hdlr = full_box(b"hdlr", bytes(4) + b"pict" + bytes(13))
    pitm = full_box(b"pitm", struct.pack(">H", 1))
    brand = b"avif" if any(k == b"av01" for (k, _, _), _ in items) else b"heic"
    ftyp = box(b"ftyp", brand, bytes(4), brand + b"mif1miaf")
    start = 0
    for _ in range(2):
        places, at = b"", start
        for number, ((_, data, _), _) in enumerate(items, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(data))
            at += len(data)
        iloc = full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), places)
        meta = full_box(b"meta", hdlr, pitm, iloc, iinf, iprp, iref)
        start = len(ftyp) + len(meta) + 8
    return ftyp + meta + box(b"mdat", *(data for (_, data, _), _ in items))


ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
HEVC_ALPHA = b"urn:mpeg:hevc:2015:auxid:1"


def alpha_item(alpha: np.ndarray, *properties: bytes, depth=8, codec="av01", urn=ALPHA) -> tuple[tuple, dict]:
    """Return an item that holds the alpha of item 1, or what else a name says."""
    kind, data, own = coded(alpha, depth, codec=codec)
    urn = full_box(b"auxC", urn + b"\0")
    return (kind, data, [*own, urn, *properties]), {b"auxl": [1]}


def grid(tiles: Sequence[tuple], height: int, width: int, *properties: bytes) -> bytes:
    """Return a file whose picture is a row of tiles (ISO/IEC 23008-12, 6.6.2.3)."""
    data = struct.pack(">BBBBHH", 0, 0, 0, len(tiles) - 1, width, height)
    own = [full_box(b"ispe", struct.pack(">II", width, height)), full_box(b"pixi", b"\3\x08\x08\x08")]
    links = {b"dimg": list(range(2, 2 + len(tiles)))}
    return heif((b"grid", data, own), *properties, others=[(tile, {}) for tile in tiles], links=links)


def exif_item(data: bytes) -> tuple[tuple, dict]:
    """Return an item of EXIF data for item 1."""
    return (b"Exif", bytes(4) + data, []), {b"cdsc": [1]}


def j2k(samples=RGB8, depth=8, **options) -> bytes:
    """Return a reversible JPEG 2000 codestream."""
    return imagecodecs.jpeg2k_encode(
        samples, level=0, reversible=True, codecformat="j2k", bitspersample=depth, **options
    )


def enumerated(number: int) -> bytes:
    """Return a colour box of JP2: 16 sRGB, 17 grey, 18 sYCC, 12 CMYK (ISO/IEC 15444-1, I.5.3.3)."""
    return box(b"colr", bytes([1, 0, 0]), struct.pack(">I", number))


def jp2(stream: bytes, *boxes: bytes) -> bytes:
    """Return a JP2 file of a codestream and the boxes of its header (the colour's among them)."""
    at = stream.index(b"\xff\x51")
    x1, y1, x0, y0 = struct.unpack(">IIII", stream[at + 6 : at + 22])
    count, depth = struct.unpack(">HB", stream[at + 38 : at + 41])
    ihdr = box(b"ihdr", struct.pack(">IIHBBBB", y1 - y0, x1 - x0, count, depth, 7, 0, 0))
    front = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 ", bytes(4), b"jp2 ")
    return front + box(b"jp2h", ihdr, *boxes) + box(b"jp2c", stream)


def jxl(picture=RGB8, *, depth=8, primaries=1, transfer=13, turn=1, gamma=0, grey=False, said=None) -> bytes:
    """Return a lossless JPEG XL codestream whose header is written anew (ISO/IEC 18181-1, D and E).

    primaries 1 sRGB, 9 BT.2100, 11 P3; transfer as in H.273; gamma: exponent times 10^7; said: a false size.
    """
    raw = imagecodecs.jpegxl_encode(picture, lossless=True, usecontainer=False, effort=3, bitspersample=depth)
    raw = raw[raw.index(b"jxlc") + 4 :] if raw[:1] == b"\0" else raw
    colours = {"primaries": primaries, "transfer": transfer, "gamma": gamma, "grey": grey}
    head = jxl_header(picture.shape[:2], depth, turn, **colours)
    for start in range(4, 24):  # where the encoder's own header ends
        try:
            if np.array_equal(imagecodecs.jpegxl_decode(head + raw[start:], keeporientation=True), picture):
                return (jxl_header(said, depth, turn, **colours) if said else head) + raw[start:]
        except (RuntimeError, ValueError):
            pass
    raise AssertionError("no frame found behind the header")


def jxl_header(size: tuple[int, int], depth: int, turn: int, *, primaries, transfer, gamma, grey) -> bytes:
    """Return the signature and headers of a codestream, to a whole byte."""
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> i & 1 for i in range(count))

    def enum(value: int) -> None:
        put(value, 2) if value < 2 else (put(2, 2), put(value - 2, 4)) if value < 18 else (
            put(3, 2),
            put(value - 18, 6),
        )

    put(0, 1)  # SizeHeader: not in eights
    for part in (size[0] - 1, None, size[1] - 1):
        put(0, 3) if part is None else (put(2, 2), put(part, 18))
    put(0, 1)  # ImageMetadata: not all default
    put(turn != 1, 1)
    if turn != 1:
        put(turn - 1, 3), put(0, 3)
    put(0, 1), put(*{8: (0, 2), 10: (1, 2), 12: (2, 2)}.get(depth, (3 | depth - 1 << 2, 8)))
    put(depth <= 12, 1), put(0, 2), put(0, 1)  # 16-bit buffers, no extra channel, not XYB
    put(0, 1), put(0, 1), enum(int(grey)), enum(1)  # ColourEncoding: neither default nor ICC; D65
    if not grey:
        enum(primaries)
    put(bool(gamma), 1), put(gamma, 24) if gamma else enum(transfer)
    enum(1)  # relative colorimetric
    if turn != 1:
        put(1, 1)  # tone mapping: default
    put(0, 2), put(1, 1)  # no extension, default transforms
    return b"\xff\x0a" + np.packbits(bits, bitorder="little").tobytes()


# --------------------------------------------------------------------------- BMP, GIF, Netpbm


def bmp(
    pixels: bytes, width=WIDTH, height=HEIGHT, depth=24, *, version=3, compression=0, masks=(), palette=b"",
    space=b"", endpoints=None, gamma=(0, 0, 0), profile=b"", size=None,
) -> bytes:  # fmt: skip
    """Return a BMP of a header of version 3, 4 or 5; `pixels`: rows as they lie in the file."""
    count = len(palette) // 4
    head = struct.pack("<iiHHIIiiII", width, height, 1, depth, compression, len(pixels), 2835, 2835, count, 0)
    masks = struct.pack(f"<{len(masks)}I", *masks)
    if version > 3:
        ends = [round(v * 2**30) for xy in endpoints or () for v in (*xy, 1 - sum(xy))] or [0] * 9
        head += masks.ljust(16, b"\0") + space[::-1].ljust(4, b"\0") + struct.pack("<9I", *ends)
        head += struct.pack("<3I", *(round(65536 * g) for g in gamma))
        masks = b""
    body = masks + palette + pixels
    if version == 5:
        head += struct.pack("<IIII", 4, 4 + 120 + len(body), len(profile), 0)
    head = struct.pack("<I", len(head) + 4) + head
    start = 14 + len(head) + len(masks) + len(palette)
    raw = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body) + len(profile), 0, 0, start) + head + body
    return raw + profile


def bmp_rows(samples: np.ndarray, top_down=False) -> bytes:
    """Return rows of bytes, bottom first, each padded to four."""
    rows = samples.reshape(len(samples), -1) if samples.dtype == np.uint8 else samples
    rows = rows if top_down else rows[::-1]
    return b"".join(r.tobytes() + bytes(-r.nbytes % 4) for r in rows)


def gif(picture: np.ndarray, palette: bytes, *, profile=b"", transparent=None) -> bytes:
    """Return a GIF89a of indices; a profile as the ICC's application extension."""
    image = Image.fromarray(picture).convert("P") if picture.ndim == 2 else picture
    image.putpalette(palette)
    raw = pil(image, "GIF", optimize=False, **({} if transparent is None else {"transparency": transparent}))
    if not profile:
        return raw
    at = 13 + (3 << (raw[10] & 7) + 1 if raw[10] & 0x80 else 0)
    blocks = b"".join(
        bytes([len(b)]) + b for b in (profile[i : i + 255] for i in range(0, len(profile), 255))
    )
    return b"GIF89a" + raw[6:at] + b"!\xff\x0bICCRGBG1012" + blocks + b"\0" + raw[at:]


def pnm(kind: int, samples: np.ndarray, most: int = 255, comment: str = "") -> bytes:
    """Return a Netpbm picture, P1 to P6."""
    height, width = samples.shape[:2]
    head = f"P{kind}\n{comment}{width} {height}\n" + ("" if kind in (1, 4) else f"{most}\n")
    if kind <= 3:
        return (head + "\n".join(" ".join(map(str, row.ravel())) for row in samples) + "\n").encode()
    if kind == 4:
        return head.encode() + packed(samples, 1)
    return head.encode() + samples.astype(">u2" if most > 255 else "u1").tobytes()
