"""Pictures by kind, each with what a reader must make of it; `cd tests; python -m data.kinds` for a table."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import NamedTuple

import imagecodecs
import numpy as np
import tifffile
from data.pictures import (
    ADOBE_GAMMA,
    ADOBE_ICC,
    GREY8,
    RGB8,
    box,
    chunk,
    jp2,
    levels,
    png,
    power,
    segment,
    shown,
    tiff,
)
from PIL import Image, ImageCms

from data import pictures as p
from mcml.base.errors import DataError
from mcml.data.images import decode_image

BACKGROUND = (10, 200, 90)
V, G = RGB8 / 255, GREY8 / 255
HALF = np.linspace(0, 255, p.WIDTH * p.HEIGHT).round().astype(np.uint8).reshape(p.HEIGHT, p.WIDTH)  # alpha
OPAQUE = np.full_like(GREY8, 255)
NEARLY = OPAQUE.copy()
NEARLY[5, 7] = 254
HDR = "PQ|HLG|HDR"

SIDE = 64
DY, DX = np.mgrid[0:SIDE, 0:SIDE]
GRAIN = np.random.default_rng(1).integers(-20, 21, (SIDE, SIDE, 3))
WHOLE = np.stack([DX * 4, DY * 4, 128 + 100 * np.sin(DX / 5) * np.cos(DY / 7)], -1)
WHOLE = (WHOLE + GRAIN).clip(0, 255).astype(np.uint8)


class Case(NamedTuple):
    """A picture and what is right: an array within some levels, a refusal (a word of it), or either."""

    name: str
    raw: bytes
    want: np.ndarray | None = None  # (H, W) or (H, W, 3) of 0..255
    refused: str | None = None
    within: float = 1
    background: tuple | None = None


def either(name: str, raw: bytes, want: np.ndarray, **options) -> Case:
    """Return a case that may be read rightly or refused."""
    return Case(name, raw, want, "", **options)


def measure(case: Case) -> float | None:
    """Return the largest error of a picture that is read, None if it is rightly refused; or assert."""
    try:
        got = decode_image(case.raw, "picture", case.background)
    except DataError as error:
        assert case.refused is not None, f"{case.name}: refused: {error}"
        assert re.search(case.refused, str(error)), f"{case.name}: refused, but: {error}"
        assert "\n" not in str(error), f"{case.name}: not one sentence: {error}"
        return None
    except Exception as error:
        raise AssertionError(f"{case.name}: {type(error).__name__}: {error}") from error
    assert case.want is not None, f"{case.name}: read, not refused"
    want = case.want if case.want.ndim == 3 else np.repeat(case.want[..., None], 3, -1)
    assert (got.shape, got.dtype) == (want.shape, np.uint8), (
        f"{case.name}: {got.dtype} {got.shape}, right is {want.shape}"
    )
    error = float(np.abs(got - np.round(want.astype(float))).max())
    assert error <= case.within, f"{case.name}: {error:g} levels from right"
    return error


KINDS: dict[str, tuple[Callable[[], Iterator[Case]], str]] = {}


def kind(title: str, source: str):
    """Enter a generator of cases in the table, with where its right values come from."""

    def enter(function: Callable) -> Callable:
        KINDS[title] = function, source
        return function

    return enter


def over(name: str, raw: bytes, values: np.ndarray, alpha: np.ndarray, **options) -> Iterator[Case]:
    """Yield a transparent picture: refused without a background, composed with one."""
    values = values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)
    yield Case(f"{name} without background", raw, refused="transparent")
    want = p.composed(np.round(values.astype(float)), alpha, BACKGROUND)
    yield Case(f"{name} over a background", raw, want, background=BACKGROUND, **options)


# --------------------------------------------------------------------------------------- PNG

CODES = {  # H.273, tables 2 and 3: primaries, transfer, and what they are
    "P3": (12, 13, p.P3, p.srgb, p.D65),
    "BT.2020 with sRGB's curve": (9, 13, p.BT2020, p.srgb, p.D65),
    "linear": (1, 8, p.SRGB, power(1), p.D65),
    "gamma 2.2": (1, 4, p.SRGB, power(2.2), p.D65),
    "P3, gamma 2.2": (12, 4, p.P3, power(2.2), p.D65),
    "BT.470 M": (4, 4, ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), power(2.2), p.WHITE_C),
    "BT.470 B, G": (5, 5, ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), power(2.8), p.D65),
    "BT.709": (1, 1, p.SRGB, p.bt709, p.D65),
    "BT.601, 525 lines": (6, 6, ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), p.bt709, p.D65),
    "SMPTE 240M": (7, 7, ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), p.smpte240m, p.D65),
    "film": (8, 13, ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)), p.srgb, p.WHITE_C),
    "BT.2020": (9, 14, p.BT2020, p.bt709, p.D65),
    "BT.2020, 12 bits": (9, 15, p.BT2020, p.bt709, p.D65),
    "XYZ": (10, 8, ((1, 0), (0, 1), (0, 0)), power(1), (1 / 3, 1 / 3)),
    "DCI P3": (11, 17, p.P3, lambda v: v**2.6 * 52.37 / 48, (0.314, 0.351)),
    "EBU 3213": (22, 13, ((0.63, 0.34), (0.295, 0.605), (0.155, 0.077)), p.srgb, p.D65),
    "logarithmic, 100 to 1": (1, 9, p.SRGB, lambda v: np.where(v > 0, 10 ** (2 * v - 2), 0), p.D65),
    "xvYCC": (1, 11, p.SRGB, p.bt709, p.D65),
    "sRGB": (1, 13, p.SRGB, p.srgb, p.D65),
}
BRIGHT = {"PQ": (9, 16), "HLG": (9, 18), "PQ of sRGB's primaries": (1, 16), "HLG of P3": (12, 18)}
TABLE = RGB8.reshape(-1, 3)[:256]
INDEX = (np.arange(p.WIDTH * p.HEIGHT) % 256).reshape(p.HEIGHT, p.WIDTH).astype(np.uint8)


@kind("PNG: cICP", "H.273 by colour-science")
def png_cicp():
    for name, (primaries, transfer, ends, decode, white) in CODES.items():
        yield Case(name, png(RGB8, p.cicp(primaries, transfer)), shown(V, ends, decode, white))
    for name, codes in BRIGHT.items():
        yield Case(name, png(RGB8, p.cicp(*codes)), refused=HDR)
    yield Case("grey PQ", png(GREY8, p.cicp(9, 16)), refused=HDR)
    yield Case("16 bits PQ", png(levels(16), p.cicp(9, 16), depth=16), refused=HDR)
    yield Case("16 bits P3", png(levels(16), p.cicp(12, 13), depth=16), shown(V, p.P3))
    yield Case("grey P3", png(GREY8, p.cicp(12, 13)), GREY8)
    yield Case("grey linear", png(GREY8, p.cicp(1, 8)), shown(G, decode=power(1)))
    made = png(INDEX, p.cicp(12, 13), palette=TABLE.tobytes())
    yield Case("palette P3", made, shown(TABLE[INDEX] / 255, p.P3))
    narrow = (219 * V + 16).round()
    yield either("narrow range", png(narrow, p.cicp(1, 13, 0, 0)), (narrow - 16) * 255 / 219)
    yield either("matrix not 0", png(RGB8, p.cicp(12, 13, 1, 1)), RGB8)
    yield either("unspecified", png(RGB8, p.cicp(2, 2)), RGB8)
    yield from over("P3 and alpha", png(np.dstack([RGB8, HALF]), p.cicp(12, 13)), shown(V, p.P3), HALF / 255)


@kind("PNG: which chunk counts", "PNG, third edition, 4.3 and table 1; colour-science")
def png_precedence():
    """All pairs, in both orders: cICP, then iCCP, then sRGB, then gAMA and cHRM."""
    ranks = [
        ("cICP", p.cicp(12, 13), shown(V, p.P3)),
        ("iCCP", p.iccp(ADOBE_ICC), shown(V, p.ADOBE, power(ADOBE_GAMMA))),
        ("sRGB", p.SRGB_CHUNK, RGB8),
        ("gAMA", p.gama(100_000), shown(V, decode=power(1))),
        ("cHRM", p.chrm(p.BT2020), shown(V, p.BT2020)),
    ]
    for one, other in permutations(range(5), 2):
        first, second = ranks[one], ranks[other]
        want = ranks[min(one, other)][2]
        if {one, other} == {3, 4}:
            want = shown(V, p.BT2020, power(1))
        yield Case(f"{first[0]} before {second[0]}", png(RGB8, first[1], second[1]), want)
    everything = [r[1] for r in ranks]
    yield Case("all five", png(RGB8, *everything[::-1]), ranks[0][2])
    yield Case("all but cICP", png(RGB8, *everything[:0:-1]), ranks[1][2])
    yield Case("all but cICP and iCCP", png(RGB8, *everything[:1:-1]), RGB8)
    yield Case("cICP sRGB over iCCP", png(RGB8, p.cicp(1, 13), p.iccp(ADOBE_ICC)), RGB8)
    yield Case("cICP PQ over sRGB", png(RGB8, p.SRGB_CHUNK, p.cicp(9, 16)), refused=HDR)


@kind("PNG: gAMA and cHRM", "PNG, third edition, 13.13 to 13.14; colour-science")
def png_gamma():
    for value in (100_000, 45_455, 55_556, 38_462, 65_000):
        yield Case(f"gAMA {value}", png(RGB8, p.gama(value)), shown(V, decode=power(100_000 / value)))
    twice = shown(G, decode=power(1))
    yield Case("grey", png(GREY8, p.gama(100_000)), twice)
    made = png(levels(4, GREY8), p.gama(100_000), depth=4)
    yield Case("grey 4 bits", made, shown(levels(4, GREY8) / 15, decode=power(1)))
    yield Case("grey 16 bits", png(levels(16, GREY8), p.gama(100_000), depth=16), twice)
    yield Case("16 bits", png(levels(16), p.gama(55_556), depth=16), shown(V, decode=power(100_000 / 55_556)))
    yield Case("grey and opaque alpha", png(np.dstack([GREY8, OPAQUE]), p.gama(100_000)), twice)
    made = png(INDEX, p.gama(100_000), palette=TABLE.tobytes())
    yield Case("palette", made, shown(TABLE[INDEX] / 255, decode=power(1)))
    yield either("gAMA 0", png(RGB8, p.gama(0)), RGB8)
    yield Case("gAMA and cHRM", png(RGB8, p.gama(45_455), p.chrm(p.P3)), shown(V, p.P3, power(2.2)))
    yield Case("cHRM alone", png(RGB8, p.chrm(p.P3)), shown(V, p.P3))
    yield Case("cHRM of sRGB", png(RGB8, p.chrm()), RGB8)
    yield Case("cHRM under D50", png(RGB8, p.chrm(p.PROPHOTO, p.D50)), shown(V, p.PROPHOTO, white=p.D50))
    both = png(RGB8, p.gama(55_556), p.chrm(p.PROPHOTO, p.D50))
    yield Case("gAMA and cHRM under D50", both, shown(V, p.PROPHOTO, power(1.8), p.D50))
    yield Case("cHRM and grey", png(GREY8, p.chrm(p.P3)), GREY8)
    yield either("cHRM of zeros", png(RGB8, chunk(b"cHRM", bytes(32))), RGB8)
    yield either("cHRM on a line", png(RGB8, p.chrm([(0.3, 0.3)] * 3)), RGB8)
    yield either("gAMA of 3 bytes", png(RGB8, chunk(b"gAMA", b"\0\1\2")), RGB8)
    yield either("gAMA of 2^32 - 1", png(RGB8, p.gama(2**32 - 1)), 255.0 * (RGB8 > 0))


@kind("PNG: depths and layouts", "v * 255 / (2^d - 1)")
def png_depths():
    for depth in (1, 2, 4, 8, 16):
        for interlaced in (False, True):
            how, grey = f"{depth} bits{', interlaced' * interlaced}", levels(depth, GREY8)
            options = {"depth": depth, "interlaced": interlaced}
            yield Case(f"grey {how}", png(grey, **options), grey * (255 / (2**depth - 1)))
            if depth < 16:
                table = TABLE[: 2**depth]
                index = INDEX & len(table) - 1
                yield Case(f"palette {how}", png(index, palette=table.tobytes(), **options), table[index])
            if depth >= 8:
                wide = levels(depth)
                top = np.full_like(grey, 2**depth - 1)
                yield Case(f"colour {how}", png(wide, **options), wide * (255 / (2**depth - 1)))
                yield Case(f"grey and opaque alpha {how}", png(np.dstack([grey, top]), **options), GREY8)
                yield Case(f"colour and opaque alpha {how}", png(np.dstack([wide, top]), **options), RGB8)
    whole = png(RGB8)
    yield Case("suggested palette", png(RGB8, chunk(b"PLTE", TABLE.tobytes())), RGB8)
    yield Case("sBIT", png(RGB8, chunk(b"sBIT", b"\5\6\5")), RGB8)
    yield Case("pixels in single bytes", split(whole), RGB8)
    one = chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(
        b"fcTL", struct.pack(">5I2HBB", 0, 24, 16, 0, 0, 1, 1, 0, 0)
    )
    yield Case("an animation of one frame", png(RGB8, one), RGB8)
    bad = chunk(b"tEXt", b"a\0b")
    yield Case("text of a wrong CRC", png(RGB8, bad[:-1] + b"!"), RGB8)
    bad = p.cicp(12, 13)
    yield either("cICP of a wrong CRC", png(RGB8, bad[:-1] + b"!"), RGB8)
    odd = (np.arange(384).reshape(16, 24) * 170 + 77).astype(np.uint16)
    made = png(np.dstack([odd, odd[::-1], odd]), depth=16)
    yield Case("16 bits, rounded", made, np.dstack([odd, odd[::-1], odd]) / 257)


def split(raw: bytes) -> bytes:
    """Return a PNG whose pixels come in chunks of one byte."""
    at = raw.index(b"IDAT")
    size = int.from_bytes(raw[at - 4 : at])
    data = raw[at + 4 : at + 4 + size]
    return (
        raw[: at - 4] + b"".join(chunk(b"IDAT", data[i : i + 1]) for i in range(size)) + raw[at + 8 + size :]
    )


@kind("PNG: transparency", "PNG, third edition, 11.3.1.1; mixed in sRGB values")
def png_transparency():
    for depth in (1, 2, 4, 8, 16):
        grey = levels(depth, GREY8)
        for place in ((0, 0), (8, 12), (15, 23)):
            key = int(grey[place])
            raw = png(grey, depth=depth, after=chunk(b"tRNS", struct.pack(">H", key)))
            yield from over(
                f"grey {depth} bits, tRNS {key}", raw, grey * (255 / (2**depth - 1)), (grey != key) * 1.0
            )
    unused = png(levels(4, GREY8) // 2 * 2, depth=4, after=chunk(b"tRNS", b"\0\5"))
    yield Case("grey 4 bits, unused tRNS", unused, levels(4, GREY8) // 2 * 34)
    near = png(
        levels(16, GREY8), depth=16, after=chunk(b"tRNS", struct.pack(">H", int(GREY8[3, 3]) * 257 + 1))
    )
    yield Case("grey 16 bits, tRNS one off", near, GREY8)
    for depth in (8, 16):
        wide = levels(depth)
        key = wide[4, 9]
        raw = png(wide, depth=depth, after=chunk(b"tRNS", struct.pack(">3H", *key)))
        yield from over(f"colour {depth} bits, tRNS", raw, RGB8, (wide != key).any(-1) * 1.0)
        raw = png(wide, depth=depth, after=chunk(b"tRNS", struct.pack(">3H", key[0], key[1], key[2] ^ 1)))
        yield Case(f"colour {depth} bits, unused tRNS", raw, RGB8)
    for name, alphas in {"0": [0], "128": [255, 128], "254": [255, 255, 254], "all": range(256)}.items():
        full = np.array([*alphas, *[255] * (256 - len(alphas))])[INDEX] / 255
        raw = png(INDEX, palette=TABLE.tobytes(), after=chunk(b"tRNS", bytes(alphas)))
        yield from over(f"palette, tRNS {name}", raw, TABLE[INDEX], full)
    opaque = png(INDEX, palette=TABLE.tobytes(), after=chunk(b"tRNS", b"\xff" * 9))
    yield Case("palette, opaque tRNS", opaque, TABLE[INDEX])
    index = levels(2, GREY8)
    raw = png(index, depth=2, palette=TABLE[:4].tobytes(), after=chunk(b"tRNS", b"\xff\x40"))
    yield from over("palette 2 bits, tRNS", raw, TABLE[index], np.array([255, 64, 255, 255])[index] / 255)
    for name, alpha in {"nearly opaque": NEARLY, "half": HALF, "none": OPAQUE * 0}.items():
        yield from over(f"colour, {name}", png(np.dstack([RGB8, alpha])), RGB8, alpha / 255)
        yield from over(f"grey, {name}", png(np.dstack([GREY8, alpha])), GREY8, alpha / 255)
        wide = np.dstack([levels(16), levels(16, alpha)])
        yield from over(f"16 bits, {name}", png(wide, depth=16), RGB8, alpha / 255)
    behind = png(np.dstack([RGB8, HALF]), chunk(b"bKGD", b"\0\1\0\2\0\3"))
    yield from over("bKGD", behind, RGB8, HALF / 255)
    wide = np.dstack([levels(16), np.full(GREY8.shape, 65534)])
    yield either("alpha of 65534", png(wide, depth=16), RGB8)


# --------------------------------------------------------------------------------------- ICC

ADOBE_SHOWN = shown(V, p.ADOBE, power(ADOBE_GAMMA))
PROFILES = {
    "Adobe RGB": (ADOBE_ICC, ADOBE_SHOWN),
    "ProPhoto": (p.rgb_icc(p.PROPHOTO, 461 / 256, p.D50), shown(V, p.PROPHOTO, power(461 / 256), p.D50)),
    "linear": (p.rgb_icc(p.SRGB, 1), shown(V, decode=power(1))),
}
CARRIERS: dict[str, Callable[[bytes], bytes]] = {
    "PNG": lambda icc: png(RGB8, p.iccp(icc)),
    "PNG 16 bits": lambda icc: png(levels(16), p.iccp(icc), depth=16),
    "TIFF": lambda icc: tiff(RGB8, 2, t34675=icc),
    "TIFF 16 bits, big-endian": lambda icc: tiff(levels(16), 2, 16, order=">", t34675=icc),
    "WebP": lambda icc: p.pil(RGB8, "WEBP", lossless=True, icc_profile=icc),
    "AVIF": lambda icc: p.heif(p.coded(), p.prof(icc), p.nclx(2, 2)),
    "AVIF 10 bits": lambda icc: p.heif(p.coded(levels(10), 10), p.prof(icc), p.nclx(2, 2)),
    "HEIC": lambda icc: p.heif(p.coded(codec="hvc1"), p.prof(icc), p.nclx(2, 2)),
    "JPEG 2000": lambda icc: jp2(p.j2k(), box(b"colr", b"\2\0\0", icc)),
    "JPEG 2000, 12 bits": lambda icc: jp2(p.j2k(levels(12), 12), box(b"colr", b"\2\0\0", icc)),
    "BMP v5": lambda icc: p.bmp(p.bmp_rows(RGB8[..., ::-1]), version=5, space=b"MBED", profile=icc),
}


@kind("ICC profiles", "the profile's matrix and exponent, by colour-science")
def icc_profiles():
    for carrier, made in CARRIERS.items():
        for name, (icc, want) in PROFILES.items():
            yield Case(f"{carrier}, {name}", made(icc), want)
    plain = np.array(Image.open(p.io.BytesIO(p.jpeg())))
    for name, (icc, _) in PROFILES.items():
        ends, gamma, white = {
            "Adobe RGB": (p.ADOBE, ADOBE_GAMMA, p.D65),
            "ProPhoto": (p.PROPHOTO, 461 / 256, p.D50),
            "linear": (p.SRGB, 1, p.D65),
        }[name]
        want = shown(plain / 255, ends, power(gamma), white)
        for parts in (1, 3):
            raw = p.with_segments(p.jpeg(), *p.icc_segments(icc, parts))
            yield Case(f"JPEG of {parts} segments, {name}", raw, want)
        mild = RGB8 // 3 + 100  # dark values would multiply what decoders of JPEG differ by
        packed = imagecodecs.jpegxl_encode_jpeg(p.with_segments(p.jpeg(mild), *p.icc_segments(icc)))
        yield Case(
            f"JPEG XL of a JPEG, {name}",
            packed,
            shown(decoded(p.jpeg(mild)) / 255, ends, power(gamma), white),
            within=4,
        )
    want, parts = shown(plain / 255, p.ADOBE, power(ADOBE_GAMMA)), p.icc_segments(ADOBE_ICC, 3)
    yield Case("JPEG, segments turned round", p.with_segments(p.jpeg(), *parts[::-1]), want)
    for lost in range(3):
        raw = p.with_segments(p.jpeg(), *parts[:lost], *parts[lost + 1 :])
        yield Case(f"JPEG without segment {lost + 1} of 3", raw, refused="(?i)icc|profile")
    palette = png(INDEX, p.iccp(ADOBE_ICC), palette=TABLE.tobytes())
    table = shown(TABLE[None] / 255, p.ADOBE, power(ADOBE_GAMMA))[0]
    yield Case("palette PNG", palette, table[INDEX])
    yield Case("GIF", p.gif(INDEX, TABLE.tobytes(), profile=ADOBE_ICC), table[INDEX])
    grey, want = p.grey_icc(1.8), shown(G, decode=power(461 / 256))
    yield Case("grey PNG", png(GREY8, p.iccp(grey)), want)
    yield Case("grey PNG 16 bits", png(levels(16, GREY8), p.iccp(grey), depth=16), want)
    yield Case("grey PNG with opaque alpha", png(np.dstack([GREY8, OPAQUE]), p.iccp(grey)), want)
    yield Case("grey TIFF", tiff(GREY8, 1, t34675=grey), want)
    yield Case("grey TIFF 16 bits", tiff(levels(16, GREY8), 1, 16, t34675=grey), want)
    yield Case("grey JPEG 2000", jp2(p.j2k(GREY8), box(b"colr", b"\2\0\0", grey)), want)
    plain = np.array(Image.open(p.io.BytesIO(p.jpeg(GREY8))))
    raw = p.with_segments(p.jpeg(GREY8), *p.icc_segments(grey))
    yield Case("grey JPEG", raw, shown(plain / 255, decode=power(461 / 256)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for carrier in ("PNG", "TIFF", "WebP", "AVIF", "PNG 16 bits"):
        yield Case(f"{carrier}, sRGB", CARRIERS[carrier](srgb), RGB8)
    fixed = [round(65536 * v) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)]
    para = b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *fixed)
    sampled = (65535 * p.srgb(np.linspace(0, 1, 1024))).round().astype(">u2").tobytes()
    for name, data in {
        "parametric": para,
        "of 1024 points": b"curv" + bytes(4) + struct.pack(">I", 1024) + sampled,
    }.items():
        for version in (0x02400000, 0x04300000):
            icc = p.rgb_icc(p.P3, 1, version=version, extra={b"%cTRC" % c: data for c in b"rgb"})
            for carrier in ("PNG", "PNG 16 bits", "WebP"):
                made = CARRIERS[carrier](icc)
                yield Case(f"{carrier}, curves {name}, version {version >> 24}", made, shown(V, p.P3))
    yield Case("colour profile on grey", png(GREY8, p.iccp(ADOBE_ICC)), shown(G, p.ADOBE, power(ADOBE_GAMMA)))


@kind("ICC profiles that do not fit", "refused, or ignored where the standard lets a reader")
def icc_wrong():
    made = png(RGB8, chunk(b"iCCP", b"a\0\0" + ADOBE_ICC))
    yield Case("PNG, not zlib", made, refused="(?i)icc|profile|damage")
    for carrier in ("PNG", "TIFF", "WebP", "JPEG 2000"):
        link = p.rgb_icc(p.ADOBE, ADOBE_GAMMA, kind=b"link")
        yield either(f"{carrier}, a device link", CARRIERS[carrier](link), RGB8)
        yield either(f"{carrier}, Lab on colour", CARRIERS[carrier](p.icc(b"Lab ", {})), RGB8)
        yield either(f"{carrier}, no tags", CARRIERS[carrier](p.icc(b"RGB ", {})), RGB8)
        yield either(f"{carrier}, grey on colour", CARRIERS[carrier](p.grey_icc(1.8)), RGB8)
        yield either(f"{carrier}, CMYK on colour", CARRIERS[carrier](p.ink_icc()), RGB8)
        for part in (100, 200, len(ADOBE_ICC) // 2):
            cut = CARRIERS[carrier](ADOBE_ICC[:part])
            yield Case(f"{carrier}, {part} bytes of a profile", cut, refused="(?i)icc|profile")
        for name, codes in {"PQ": b"\x09\x10\0\1", "HLG": b"\x09\x12\0\1"}.items():
            tags = {b"cicp": b"cicp" + bytes(4) + codes}
            bright = p.rgb_icc(p.BT2020, 2.2, version=0x04400000, extra=tags)
            yield Case(f"{carrier}, profile says {name}", CARRIERS[carrier](bright), refused=HDR)
    yield Case("JPEG, profile says PQ", p.with_segments(p.jpeg(), *p.icc_segments(bright)), refused=HDR)
    yield Case("AVIF, profile says PQ", CARRIERS["AVIF"](bright), refused=HDR)


# ------------------------------------------------------------------------------ AVIF and HEIC


@kind("AVIF and HEIC: colour", "H.273 and ISO/IEC 23008-12 by colour-science")
def heif_colour():
    for codec, called in {"av01": "AVIF", "hvc1": "HEIC"}.items():
        item = p.coded(codec=codec)
        for name, (primaries, transfer, ends, decode, white) in CODES.items():
            made = p.heif(item, p.nclx(primaries, transfer))
            yield Case(f"{called}, {name}", made, shown(V, ends, decode, white))
        for name, codes in BRIGHT.items():
            yield Case(f"{called}, {name}", p.heif(item, p.nclx(*codes)), refused=HDR)
        both = p.heif(item, p.nclx(12, 13), p.prof(ADOBE_ICC))
        yield Case(f"{called}, ICC after nclx", both, ADOBE_SHOWN)
        yield Case(f"{called}, ICC before nclx", p.heif(item, p.prof(ADOBE_ICC), p.nclx(12, 13)), ADOBE_SHOWN)
        made = p.heif(item, p.nclx(9, 16), p.prof(ADOBE_ICC))
        yield Case(f"{called}, ICC beside PQ", made, ADOBE_SHOWN, HDR)
        yield Case(f"{called}, unspecified", p.heif(item, p.nclx(2, 2)), RGB8)
        small = p.coded(RGB8[:16, :16].copy(), codec=codec)
        for about, box_ in {"P3": p.nclx(12, 13), "PQ": p.nclx(9, 16), "Adobe": p.prof(ADOBE_ICC)}.items():
            thumb = ((*small[:2], [*small[2], box_]), {b"thmb": [1]})
            raw = p.heif(item, p.nclx(1, 13), others=[thumb])
            yield Case(f"{called}, thumbnail of {about}", raw, RGB8)
        restricted = box(b"colr", b"rICC", ADOBE_ICC)
        yield Case(f"{called}, restricted profile", p.heif(item, restricted, p.nclx(2, 2)), ADOBE_SHOWN)
        tiles = [p.coded(part, codec=codec) for part in (WHOLE, WHOLE[::-1].copy())]
        want = np.hstack([WHOLE, WHOLE[::-1]])
        for about, (codes, right) in {
            "sRGB": ((1, 13), want),
            "P3": ((12, 13), shown(want / 255, p.P3)),
            "PQ": ((9, 16), None),
        }.items():
            raw = p.grid(tiles, 64, 128, p.nclx(*codes))
            yield Case(f"{called}, grid of {about}", raw, right, HDR if right is None else None)
            own = [(*t[:2], [*t[2], p.nclx(*codes)]) for t in tiles]
            raw = p.grid(own, 64, 128)
            yield either(f"{called}, grid whose tiles are {about}", raw, want if right is None else right)
        raw = p.grid(tiles, 60, 120, p.nclx(1, 13), p.irot(1))
        yield Case(f"{called}, grid cut and turned", raw, np.rot90(want[:60, :120]))
    item = p.coded()
    yield Case("AVIF without colr", p.heif(item), RGB8)
    stream = p.coded(primaries=12, transfer=13)
    yield Case("AVIF, P3 in the stream alone", p.heif(stream), shown(V, p.P3))
    yield Case("AVIF, PQ in the stream alone", p.heif(p.coded(primaries=9, transfer=16)), refused=HDR)
    yield Case("AVIF, colr over the stream", p.heif(stream, p.nclx(1, 13)), RGB8)
    for about, other in {"P3": p.nclx(12, 13), "PQ": p.nclx(9, 16)}.items():
        raw = p.heif(item, p.nclx(1, 13), others=[p.alpha_item(OPAQUE, other)])
        yield Case(f"AVIF, alpha's nclx of {about}", raw, RGB8)
    weights = {
        1: (0.2126, 0.0722),
        4: (0.30, 0.11),
        5: (0.299, 0.114),
        6: (0.299, 0.114),
        7: (0.212, 0.087),
        9: (0.2627, 0.0593),
    }
    for matrix, of in weights.items():  # H.273, table 4; identity stores green, blue, red
        values = p.ycc(RGB8, *of)
        want = p.rgb_of_ycc(values, *of)
        for codec, called in {"av01": "AVIF", "hvc1": "HEIC"}.items():
            planes = p.coded(values[..., [2, 0, 1]].copy(), codec=codec)
            yield Case(f"{called}, matrix {matrix}", p.heif(planes, p.nclx(1, 13, matrix)), want, within=2)
        planes = p.coded(levels(10, values)[..., [2, 0, 1]].copy(), 10)
        yield Case(f"AVIF of 10 bits, matrix {matrix}", p.heif(planes, p.nclx(1, 13, matrix)), want, within=2)
        scale = np.array([219, 224, 224]) / 255
        short = ((values - [0.0, 128, 128]) * scale + [16, 128, 128]).round().astype(np.uint8)
        planes = p.heif(p.coded(short[..., [2, 0, 1]].copy()), p.nclx(1, 13, matrix, 0))
        want = p.rgb_of_ycc((short - [16.0, 128, 128]) / scale + [0, 128, 128], *of)
        yield Case(f"AVIF of narrow range, matrix {matrix}", planes, want, within=2)
    narrow = (219 * V + 16).round().astype(np.uint8)
    raw = p.heif(p.coded(narrow), p.nclx(1, 13, 0, 0))
    yield Case("AVIF, narrow range", raw, (narrow - 16.0) * 255 / 219)


@kind("AVIF and HEIC: turns, depths, alpha", "ISO/IEC 23008-12:2022, 6.5.10 and 6.5.12; MIAF 7.3.6.6")
def heif_turns():
    for codec, called in {"av01": "AVIF", "hvc1": "HEIC"}.items():
        item, srgb = p.coded(codec=codec), p.nclx(1, 13)
        contrary = [[], [p.exif_item(p.orientation(6))], [p.exif_item(p.orientation(3))]]
        for others in contrary:
            beside = f" with {len(others)} Exif" if others else ""
            yield Case(f"{called}, not turned{beside}", p.heif(item, srgb, others=others), RGB8)
            for quarters in (1, 2, 3):
                raw = p.heif(item, srgb, p.irot(quarters), others=others)
                yield Case(f"{called}, irot {quarters}{beside}", raw, np.rot90(RGB8, quarters))
            for axis in (0, 1):
                raw = p.heif(item, srgb, p.imir(axis), others=others)
                yield Case(f"{called}, imir {axis}{beside}", raw, RGB8[::-1] if axis == 0 else RGB8[:, ::-1])
        raw = p.heif(item, p.nclx(12, 13), p.irot(1), p.imir(1))
        yield Case(f"{called}, irot, imir and P3", raw, np.rot90(shown(V, p.P3))[:, ::-1])
        srgb = p.nclx(1, 13)
        for name, alpha in {"half": HALF, "nearly opaque": NEARLY}.items():
            urn = p.ALPHA if codec == "av01" else p.HEVC_ALPHA
            raw = p.heif(item, srgb, others=[p.alpha_item(alpha, codec=codec, urn=urn)])
            yield from over(f"{called}, alpha {name}", raw, RGB8, alpha / 255)
        for about, urn in {
            "a depth map": b"urn:mpeg:hevc:2015:auxid:2",
            "a gain map": b"urn:com:apple:photo:2020:aux:hdrgainmap",
        }.items():
            raw = p.heif(item, srgb, others=[p.alpha_item(HALF, codec=codec, urn=urn)])
            yield Case(f"{called}, {about}", raw, RGB8)
    item = p.coded()
    part = (HALF / 255)[..., None]
    stored = (RGB8 * part).round().astype(np.uint8)
    raw = p.heif(p.coded(stored), srgb, others=[p.alpha_item(HALF)], links={b"prem": [2]})
    yield Case("AVIF, premultiplied, without background", raw, refused="transparent")
    yield Case(
        "AVIF, premultiplied, over a background",
        raw,
        stored + np.array(BACKGROUND) * (1 - part),
        within=2,
        background=BACKGROUND,
    )
    crop = box(b"clap", struct.pack(">8i", 12, 1, 8, 1, 0, 1, 0, 1))
    yield either("AVIF, clap", p.heif(item, srgb, crop), RGB8[4:12, 6:18])
    yield Case("AVIF, pasp", p.heif(item, srgb, box(b"pasp", struct.pack(">II", 2, 1))), RGB8)
    yield Case("AVIF, opaque alpha", p.heif(item, srgb, others=[p.alpha_item(OPAQUE)]), RGB8)
    raw = p.heif(item, p.nclx(12, 13), others=[p.alpha_item(HALF)])
    yield from over("AVIF, P3 and alpha", raw, shown(V, p.P3), HALF / 255)
    for depth in (10, 12):
        deep = p.coded(levels(depth), depth)
        yield Case(f"AVIF, {depth} bits", p.heif(deep, srgb), RGB8)
        yield Case(f"AVIF, {depth} bits P3", p.heif(deep, p.nclx(12, 13)), shown(V, p.P3))
        yield Case(f"AVIF, {depth} bits PQ", p.heif(deep, p.nclx(9, 16)), refused=HDR)
        raw = p.heif(deep, srgb, others=[p.alpha_item(levels(depth, HALF), depth=depth)])
        yield from over(f"AVIF, {depth} bits and alpha", raw, RGB8, HALF / 255)
        raw = p.heif(deep, srgb, others=[p.alpha_item(levels(depth, OPAQUE), depth=depth)])
        yield Case(f"AVIF, {depth} bits, opaque alpha", raw, RGB8)
    yield Case("AVIF, grey", p.heif(p.coded(GREY8), p.nclx(1, 13, 6)), GREY8)
    yield Case("AVIF, grey 10 bits", p.heif(p.coded(levels(10, GREY8), 10), p.nclx(1, 13, 6)), GREY8)
    for number in range(2, 9):
        made = p.pil(RGB8, "AVIF", quality=100, subsampling="4:4:4", exif=p.orientation(number))
        yield Case(f"AVIF by Pillow, orientation {number}", made, p.turned(RGB8, number), within=3)


# ---------------------------------------------------------------------- JPEG 2000 and JPEG XL


@kind("JPEG 2000", "ISO/IEC 15444-1, annex I; v * 255 / (2^d - 1); sYCC by JFIF's matrix")
def jpeg_2000():
    srgb, grey = p.enumerated(16), p.enumerated(17)
    for depth in (1, 2, 4, 8, 10, 12, 16):
        wide, one = levels(depth), levels(depth, GREY8)
        scale = 255 / (2**depth - 1)
        yield Case(f"colour, {depth} bits", jp2(p.j2k(wide, depth), srgb), wide * scale)
        yield Case(f"grey, {depth} bits", jp2(p.j2k(one, depth), grey), one * scale)
        yield Case(f"raw stream of colour, {depth} bits", p.j2k(wide, depth), wide * scale)
        yield Case(f"raw stream of grey, {depth} bits", p.j2k(one, depth), one * scale)
    signed = p.j2k((RGB8.astype(int) - 128).astype(np.int8))
    yield either("signed colour", jp2(signed, srgb), RGB8)
    yield either("signed grey", jp2(p.j2k((GREY8.astype(int) - 128).astype(np.int8)), grey), GREY8)
    yield either("signed raw stream", signed, RGB8)
    values = p.ycc(RGB8)
    yield Case("sYCC", jp2(p.j2k(values, mct=False), p.enumerated(18)), p.rgb_of_ycc(values))
    four = np.dstack([RGB8, GREY8])
    yield Case("CMYK", jp2(p.j2k(four, mct=False), p.enumerated(12)), refused="CMYK|12")
    table = box(b"pclr", struct.pack(">HB3B", 256, 3, 7, 7, 7), TABLE.tobytes())
    links = box(b"cmap", *(struct.pack(">HBB", 0, 1, i) for i in range(3)))
    yield Case("palette", jp2(p.j2k(INDEX), table, links, srgb), TABLE[INDEX])
    wide = box(
        b"pclr", struct.pack(">HB3B", 16, 3, 11, 11, 11), levels(12, TABLE[:16]).astype(">u2").tobytes()
    )
    yield either("palette of 12 bits", jp2(p.j2k(INDEX % 16, 4), wide, links, srgb), TABLE[INDEX % 16])
    p3 = [shown(TABLE[None] / 255, p.ADOBE, power(ADOBE_GAMMA))[0][INDEX], box(b"colr", b"\2\0\0", ADOBE_ICC)]
    yield Case("palette and ICC", jp2(p.j2k(INDEX), table, links, p3[1]), p3[0])
    roles = box(b"cdef", struct.pack(">H12H", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 1, 0))
    for name, alpha in {"half": HALF, "nearly opaque": NEARLY}.items():
        raw = jp2(p.j2k(np.dstack([RGB8, alpha]), mct=False), srgb, roles)
        yield from over(f"alpha {name}", raw, RGB8, alpha / 255)
    part = (HALF / 255)[..., None]
    stored = (RGB8 * part).round().astype(np.uint8)
    mixed = box(b"cdef", struct.pack(">H12H", 4, 0, 0, 1, 1, 0, 2, 2, 0, 3, 3, 2, 0))
    raw = jp2(p.j2k(np.dstack([stored, HALF]), mct=False), srgb, mixed)
    yield Case("premultiplied, without background", raw, refused="transparent")
    yield Case(
        "premultiplied, over a background",
        raw,
        stored + np.array(BACKGROUND) * (1 - part),
        refused="premult",
        background=BACKGROUND,
    )
    wide = np.dstack([levels(16), levels(16, HALF)])
    yield from over("16 bits and alpha", jp2(p.j2k(wide, 16, mct=False), srgb, roles), RGB8, HALF / 255)
    two = box(b"cdef", struct.pack(">H6H", 2, 0, 0, 1, 1, 1, 0))
    made = jp2(p.j2k(np.dstack([GREY8, HALF]), mct=False), grey, two)
    yield from over("grey and alpha", made, GREY8, HALF / 255)
    yield either("CIELab", jp2(p.j2k(), p.enumerated(14)), RGB8 * np.nan)
    yield Case("opaque alpha", jp2(p.j2k(np.dstack([RGB8, OPAQUE]), mct=False), srgb, roles), RGB8)
    swapped = box(b"cdef", struct.pack(">H9H", 3, 0, 0, 3, 1, 0, 2, 2, 0, 1))
    made = jp2(p.j2k(RGB8[..., ::-1].copy(), mct=False), srgb, swapped)
    yield Case("channels in another order", made, RGB8)
    icc = box(b"colr", b"\2\0\0", ADOBE_ICC)
    yield either("ICC, then sRGB", jp2(p.j2k(), icc, srgb), ADOBE_SHOWN)
    yield either("an unknown number", jp2(p.j2k(), p.enumerated(99)), RGB8)


@kind("JPEG XL", "ISO/IEC 18181-1, E.2, by colour-science")
def jpeg_xl():
    curves = {"sRGB": (13, p.srgb), "linear": (8, power(1)), "BT.709": (1, p.bt709)}
    ends = {"sRGB": (1, p.SRGB), "P3": (11, p.P3), "BT.2020": (9, p.BT2020)}
    for name, (primaries, xy) in ends.items():
        for called, (transfer, decode) in curves.items():
            made = p.jxl(primaries=primaries, transfer=transfer)
            yield Case(f"{name}, {called}", made, shown(V, xy, decode))
        made = p.jxl(primaries=primaries, gamma=4_545_455)
        yield Case(f"{name}, gamma 2.2", made, shown(V, xy, power(2.2)))
        for transfer in (16, 18):
            made = p.jxl(primaries=primaries, transfer=transfer)
            yield Case(f"{name}, transfer {transfer}", made, refused=HDR)
    for depth in (10, 12, 16):
        deep = levels(depth)
        yield Case(f"{depth} bits", p.jxl(deep, depth=depth), RGB8)
        yield Case(f"{depth} bits P3", p.jxl(deep, depth=depth, primaries=11), shown(V, p.P3))
    yield Case("16 bits PQ", p.jxl(levels(16), depth=16, primaries=9, transfer=16), refused=HDR)
    yield Case("grey", p.jxl(GREY8, grey=True), GREY8)
    yield Case("grey linear", p.jxl(GREY8, grey=True, transfer=8), shown(G, decode=power(1)))
    yield Case("grey 16 bits", p.jxl(levels(16, GREY8), depth=16, grey=True), GREY8)
    for number in range(2, 9):
        yield Case(f"orientation {number}", p.jxl(turn=number), p.turned(RGB8, number))
    for name, alpha in {"half": HALF, "nearly opaque": NEARLY}.items():
        raw = imagecodecs.jpegxl_encode(np.dstack([RGB8, alpha]), lossless=True, effort=3)
        yield from over(f"alpha {name}", raw, RGB8, alpha / 255)
    made = imagecodecs.jpegxl_encode(np.dstack([RGB8, OPAQUE]), lossless=True, effort=3)
    yield Case("opaque alpha", made, RGB8)
    wide = np.dstack([levels(16), levels(16, HALF)])
    raw = imagecodecs.jpegxl_encode(wide, lossless=True, effort=3)  # which calls 16 bits linear
    yield from over("16 bits and alpha", raw, shown(V, decode=power(1)), HALF / 255)
    for number in (3, 6, 8):
        turned = p.with_segments(p.jpeg(), p.exif_segment(p.orientation(number)))
        want = p.turned(imagecodecs.jpegxl_decode(imagecodecs.jpegxl_encode_jpeg(p.jpeg())), number)
        yield Case(f"of a JPEG, orientation {number}", imagecodecs.jpegxl_encode_jpeg(turned), want, within=2)
    made = imagecodecs.jpegxl_encode(V.astype(np.float32), lossless=True, effort=3)
    yield either("float", made, shown(V, decode=power(1)))
    frames = np.stack([RGB8, 255 - RGB8])
    made = imagecodecs.jpegxl_encode(frames, lossless=True, effort=3)
    yield Case("two frames", made, refused="(?i)frame|animat|picture")
    inside = p.jxl(primaries=11)
    frame = p.box(b"JXL ", b"\r\n\x87\n") + p.box(b"ftyp", b"jxl \0\0\0\0jxl ")
    turned = frame + p.box(b"Exif", bytes(4), p.orientation(6)) + p.box(b"jxlc", inside)
    yield Case("in boxes, with a contrary Exif", turned, shown(V, p.P3))


# -------------------------------------------------------------------------------------- TIFF


def rationals(*values: float) -> tuple[int, int, bytes]:
    """Return a TIFF value of rationals in 100,000ths."""
    numbers = [n for v in values for n in (round(v * 100_000), 100_000)]
    return 5, len(values), struct.pack(f"<{len(numbers)}I", *numbers)


@kind("TIFF: photometric interpretations and depths", "TIFF 6.0, part 1 and sections 16, 20, 23")
def tiff_photometric():
    for depth in (1, 2, 4, 8, 16):
        grey = levels(depth, GREY8)
        want = grey * (255 / (2**depth - 1))
        for order in "<>":
            yield Case(f"0 is black, {depth} bits {order}", tiff(grey, 1, depth, order=order), want)
            yield Case(f"0 is white, {depth} bits {order}", tiff(grey, 0, depth, order=order), 255 - want)
        if depth <= 8:
            index, table = INDEX & 2**depth - 1, TABLE[: 2**depth]
            full = [int(v) * 257 for v in table.T.ravel()]
            low = [int(v) for v in table.T.ravel()]
            yield Case(f"colour map, {depth} bits", tiff(index, 3, depth, t320=full), table[index])
            made = tiff(index, 3, depth, t320=low)
            yield Case(f"colour map of 8-bit values, {depth} bits", made, table[index])
    odd = (np.arange(768) * 85 + 33) % 65536
    yield Case("colour map, rounded", tiff(INDEX, 3, t320=odd.tolist()), odd.reshape(3, 256).T[INDEX] / 257)
    twelve = levels(12, GREY8)
    yield either("12 bits", tiff(twelve, 1, 12), GREY8)
    for depth in (8, 16):
        for order in "<>":
            for planar in (False, True):
                raw = tiff(levels(depth), 2, depth, order=order, planar=planar)
                yield Case(f"RGB, {depth} bits {order}{' planes' * planar}", raw, RGB8)
    yield either("RGB, 4 bits", tiff(levels(4), 2, 4), levels(4) * 17.0)
    values = p.ycc(RGB8)
    yield Case("YCbCr", tiff(values, 6, t530=[1, 1]), p.rgb_of_ycc(values))
    yield Case("YCbCr >", tiff(values, 6, order=">", t530=[1, 1]), p.rgb_of_ycc(values))
    of = (0.2126, 0.0722)
    coded = tiff(p.ycc(RGB8, *of), 6, t530=[1, 1], t529=rationals(of[0], 1 - sum(of), of[1]))
    yield either("YCbCr of BT.709", coded, p.rgb_of_ycc(p.ycc(RGB8, *of), *of))
    scale = np.array([219, 224, 224]) / 255
    short = ((values - [0.0, 128, 128]) * scale + [16, 128, 128]).round().astype(np.uint8)
    coded = tiff(short, 6, t530=[1, 1], t532=rationals(16, 235, 128, 240, 128, 240))
    wide = (short - [16.0, 128, 128]) * [255 / 219, 127 / 112, 127 / 112] + [0, 128, 128]
    yield either("YCbCr of narrow range", coded, p.rgb_of_ycc(wide))
    lab = np.stack([100 * G, 80 * V[..., 0] - 40, 80 * V[..., 1] - 40], -1).round()
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], -1).round().astype(np.uint8)
    lab[..., 0] = stored[..., 0] / 2.55
    yield either("CIELab", tiff(stored, 8), p.lab_shown(lab), within=2)
    yield either("ICCLab", tiff(stored + np.uint8([0, 128, 128]), 9), p.lab_shown(lab), within=2)
    for number in (32844, 32845, 4, 34892, 999):
        yield Case(f"photometric {number}", tiff(RGB8, number), refused="")
    yield Case("32 bits, float", tifffile_of(V.astype(np.float32), "rgb"), refused="(?i)float")
    yield Case("16 bits, float", tifffile_of(V.astype(np.float16), "rgb"), refused="(?i)float")
    yield Case("64 bits, float", tifffile_of(V.astype(np.float64), "rgb"), refused="(?i)float")
    yield Case("grey, float", tifffile_of(G.astype(np.float32), "minisblack"), refused="(?i)float")
    yield either("32 bits", tifffile_of((G * (2**32 - 1)).astype(np.uint32), "minisblack"), GREY8)
    for depth in (8, 16):
        for name, picture, how in (("grey", GREY8, 1), ("RGB", RGB8, 2)):
            raw = tiff(levels(depth, picture), how, depth, t339=[2] * (1 if how == 1 else 3))
            yield Case(f"signed {name}, {depth} bits", raw, refused="(?i)signed")


def tifffile_of(picture: np.ndarray, photometric="rgb", **options) -> bytes:
    """Return a TIFF as tifffile writes it."""
    buffer = p.io.BytesIO()
    tifffile.imwrite(buffer, picture, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


@kind("TIFF: CMYK", "the profile's table, linear in L* a* b*, by colour-science")
def tiff_cmyk():
    inks = np.dstack([RGB8 // 4, GREY8 // 4])
    want = p.lab_shown(p.ink_lab(inks / 255))
    yield Case("8 bits", tiff(inks, 5, t34675=p.ink_icc()), want, within=2)
    yield Case("planes", tiff(inks, 5, planar=True, t34675=p.ink_icc()), want, within=2)
    yield either("16 bits", tiff(levels(16, inks), 5, 16, t34675=p.ink_icc()), want, within=2)
    dense = np.dstack([RGB8 // 2, GREY8])
    yield Case("dark", tiff(dense, 5, t34675=p.ink_icc()), p.lab_shown(p.ink_lab(dense / 255)), within=2)
    yield Case("without a profile", tiff(inks, 5), refused="CMYK|12")
    yield Case("16 bits without a profile", tiff(levels(16, inks), 5, 16), refused="CMYK|12")
    yield Case("under an RGB profile", tiff(inks, 5, t34675=ADOBE_ICC), refused="(?i)cmyk|profile")


@kind("TIFF: extra samples", "TIFF 6.0, section 18; mixed in sRGB values")
def tiff_extra():
    for depth in (8, 16):
        for name, picture, how in (("grey", GREY8, 1), ("RGB", RGB8, 2)):
            for extra, called in {0: "unspecified", 1: "associated", 2: "unassociated"}.items():
                about = f"{name}, {depth} bits, {called}"
                raw = tiff(levels(depth, np.dstack([picture, OPAQUE])), how, depth, t338=extra)
                yield Case(f"{about}, opaque", raw, picture)
                for alpha in (HALF, NEARLY):
                    stored = np.dstack([picture, alpha])
                    whole = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
                    part = (alpha / 255)[..., None]
                    if extra == 1:
                        stored = np.dstack([(np.atleast_3d(picture) * part).round(), alpha]).astype(np.uint8)
                    raw = tiff(levels(depth, stored), how, depth, t338=extra)
                    if extra == 0:
                        yield either(f"{about}, not 255", raw, picture)
                    elif extra == 1:
                        mixed = np.repeat(stored[..., :1], 3, -1) if how == 1 else stored[..., :3]
                        want = mixed + np.array(BACKGROUND) * (1 - part)
                        yield Case(f"{about} without background", raw, refused="transparent")
                        yield Case(f"{about} over a background", raw, want, background=BACKGROUND)
                    else:
                        yield from over(about, raw, whole, alpha / 255)
    four = np.dstack([RGB8, OPAQUE])
    yield Case("planes, opaque", tiff(four, 2, planar=True, t338=2), RGB8)
    yield from over("planes", tiff(np.dstack([RGB8, HALF]), 2, planar=True, t338=2), RGB8, HALF / 255)
    yield either("four samples, none declared", tiff(four, 2), RGB8)
    yield either("two extra samples", tiff(np.dstack([RGB8, OPAQUE, GREY8]), 2, t338=[2, 0]), RGB8)


@kind("TIFF: layout, pages and colour tags", "TIFF 6.0, sections 8, 20; Bigtiff; colour-science")
def tiff_layout():
    for number in range(1, 9):
        for order in "<>":
            raw = tiff(RGB8, 2, order=order, t274=number)
            yield Case(f"orientation {number} {order}", raw, p.turned(RGB8, number))
        made = tiff(levels(16), 2, 16, t274=number)
        yield Case(f"orientation {number}, 16 bits", made, p.turned(RGB8, number))
    for order in "<>":
        for picture, how in (
            (RGB8, "rgb"),
            (levels(16), "rgb"),
            (GREY8, "minisblack"),
            (GREY8, "miniswhite"),
        ):
            raw = tifffile_of(picture, how, bigtiff=True, byteorder=order)
            want = GREY8 if picture.ndim == 2 else RGB8
            yield Case(
                f"BigTIFF {how} {picture.dtype} {order}", raw, 255 - want if how == "miniswhite" else want
            )
    for how in ("lzw", "deflate", "packbits", "zstd", "lzma", "jpegxl", "webp", "png"):
        right = Case if how in ("lzw", "deflate", "packbits") else either
        yield right(f"compression {how}", tifffile_of(RGB8, compression=how), RGB8)
        if how in ("lzw", "deflate"):
            deep = tifffile_of(levels(16), compression=how, predictor=True)
            yield right(f"compression {how}, predictor, 16 bits", deep, RGB8)
            yield right(f"compression {how}, tiles", tifffile_of(RGB8, compression=how, tile=(16, 16)), RGB8)
        if how == "webp":
            continue
        made = tifffile_of(RGB8.transpose(2, 0, 1).copy(), compression=how, planarconfig="separate")
        yield either(f"compression {how}, planes", made, RGB8)
    for rows in (1, 5, 16):
        yield Case(f"{rows} rows a strip", tifffile_of(RGB8, rowsperstrip=rows), RGB8)
        made = tifffile_of(levels(16), rowsperstrip=rows, compression="lzw")
        yield Case(f"{rows} rows a strip, LZW, 16 bits", made, RGB8)
    fine = {"compression": "jpeg", "compressionargs": {"level": 100}, "subsampling": (1, 1)}
    for how, change in {"rgb": lambda v: v, "ycbcr": p.ycc}.items():
        yield Case(f"JPEG inside, {how}", tifffile_of(change(RGB8), how, **fine), RGB8, within=3)
        made = tifffile_of(change(WHOLE), how, tile=(32, 32), **fine)
        yield Case(f"JPEG inside, {how}, tiles", made, WHOLE, within=4)
    black = Image.fromarray(levels(1, GREY8) * 255).convert("1")
    for how in ("group3", "group4", "tiff_ccitt", "packbits"):
        yield Case(f"fax, {how}", p.pil(black, "TIFF", compression=how), levels(1, GREY8) * 255)
    bits = levels(1, GREY8)
    raw = p.tiff_file(
        [
            (
                {256: 24, 257: 16, 258: 1, 259: 1, 262: 1, 266: 2, 277: 1, 278: 16},
                [np.packbits(bits, axis=1, bitorder="little").tobytes()],
            )
        ]
    )
    yield Case("low bits first", raw, bits * 255)
    entries = {256: 24, 257: 16, 258: [8] * 3, 259: 1, 262: 2, 277: 3, 278: 16}
    second = (entries, [RGB8[::-1].tobytes()])
    for order in "<>":
        made = tiff(RGB8, 2, order=order, pages=[second])
        yield Case(f"two pages {order}", made, refused="(?i)page|frame|picture")
    made = tiff(RGB8, 2, pages=[({**entries, 257: 8, 278: 8}, [RGB8[:8].tobytes()])])
    yield Case("second page of other size", made, refused="(?i)page|frame|picture")
    small = ({**entries, 254: (4, 1, b"\1\0\0\0"), 256: 12, 257: 8, 278: 8}, [RGB8[::2, ::2].tobytes()])
    yield Case("a smaller copy as second page", tiff(RGB8, 2, pages=[small]), RGB8)
    primaries = [v for xy in p.P3 for v in xy]
    tags = {"t318": rationals(*p.D65), "t319": rationals(*primaries)}
    yield either("primaries and white", tiff(RGB8, 2, **tags), shown(V, p.P3))
    ramp = (65535 * (np.arange(256) / 255)).round().astype(int).tolist()
    made = tiff(RGB8, 2, **tags, t301=ramp * 3)
    yield either("primaries, white and transfer", made, shown(V, p.P3, power(1)))
    yield either("transfer function", tiff(RGB8, 2, t301=ramp * 3), shown(V, decode=power(1)))
    own = {"t318": rationals(*p.D65), "t319": rationals(*[v for xy in p.SRGB for v in xy])}
    yield Case("primaries and white of sRGB", tiff(RGB8, 2, **own), RGB8)


# --------------------------------------------------------------------------------------- BMP

BGR = p.bmp_rows(RGB8[..., ::-1])


@kind("BMP", "Microsoft's BITMAPV5HEADER; v * 255 / 31; colour-science")
def bmp_kinds():
    for version in (3, 4, 5):
        space = {3: b"", 4: b"sRGB", 5: b"sRGB"}[version]
        yield Case(f"v{version}", p.bmp(BGR, version=version, space=space), RGB8)
        made = p.bmp(p.bmp_rows(RGB8[..., ::-1], True), height=-16, version=version, space=space)
        yield Case(f"v{version}, top first", made, RGB8)
    yield Case("v5, Win", p.bmp(BGR, version=5, space=b"Win "), RGB8)
    for name, (ends, gamma) in {
        "P3, 2.2": (p.P3, 2.2),
        "sRGB, 1": (p.SRGB, 1),
        "Adobe RGB": (p.ADOBE, 2.2),
        "BT.2020, 1.8": (p.BT2020, 1.8),
    }.items():
        for version in (4, 5):
            raw = p.bmp(BGR, version=version, space=bytes(4), endpoints=ends, gamma=(gamma,) * 3)
            yield either(f"v{version}, {name}", raw, shown(V, ends, power(gamma)))
    mixed = shown(np.stack([V[..., 0] ** 1.0, V[..., 1] ** 1.8, V[..., 2] ** 2.2], -1), decode=power(1))
    made = p.bmp(BGR, version=4, space=bytes(4), endpoints=p.SRGB, gamma=(1, 1.8, 2.2))
    yield either("v4, three exponents", made, mixed)
    yield either("v4, no endpoints", p.bmp(BGR, version=4, space=bytes(4)), RGB8)
    yield either("v5, profile elsewhere", p.bmp(BGR, version=5, space=b"LINK", profile=b"c:\\a.icc\0"), RGB8)
    yield Case("v5, cut profile", p.bmp(BGR, version=5, space=b"MBED", profile=ADOBE_ICC)[:-200], refused="")
    five = np.floor(V * 31.999).astype(np.uint16)
    packed = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    yield Case("555", p.bmp(p.bmp_rows(packed), depth=16), five * (255 / 31))
    six = np.floor(V * 63.999).astype(np.uint16)
    packed = (five[..., 0] << 11 | six[..., 1] << 5 | five[..., 2]).astype("<u2")
    want = np.stack([five[..., 0] * 255 / 31, six[..., 1] * 255 / 63, five[..., 2] * 255 / 31], -1)
    masks = (0xF800, 0x7E0, 0x1F)
    yield Case("565", p.bmp(p.bmp_rows(packed), depth=16, compression=3, masks=masks), want)
    made = p.bmp(p.bmp_rows(packed), depth=16, version=4, space=b"sRGB", compression=3, masks=masks)
    yield Case("565, v4", made, want)
    for name, alpha in {"half": HALF, "nearly opaque": NEARLY, "opaque": OPAQUE}.items():
        rows = p.bmp_rows(np.dstack([RGB8[..., ::-1], alpha]))
        yield Case(f"32 bits, fourth byte {name}", p.bmp(rows, depth=32), RGB8)
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        for version in (4, 5):
            raw = p.bmp(rows, depth=32, version=version, space=b"sRGB", compression=3, masks=masks)
            if name == "opaque":
                yield Case(f"v{version}, alpha opaque", raw, RGB8)
            else:
                yield from over(f"v{version}, alpha {name}", raw, RGB8, alpha / 255)
    quads = np.dstack([TABLE[:, ::-1][None], np.zeros((1, 256, 1), np.uint8)])[0]
    yield Case("palette", p.bmp(p.bmp_rows(INDEX), depth=8, palette=quads.tobytes()), TABLE[INDEX])
    for depth in (1, 4):
        index = INDEX & 2**depth - 1
        rows = p.bmp_rows(np.frombuffer(p.packed(index, depth), np.uint8).reshape(16, -1))
        made = p.bmp(rows, depth=depth, palette=quads[: 2**depth].tobytes())
        yield Case(f"palette, {depth} bits", made, TABLE[index])
    runs = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in INDEX[::-1]) + b"\0\1"
    yield Case("RLE8", p.bmp(runs, depth=8, compression=1, palette=quads.tobytes()), TABLE[INDEX])
    plain = b"".join(bytes([0, 24]) + row.tobytes() + b"\0\0" for row in INDEX[::-1]) + b"\0\1"
    yield Case("RLE8, absolute", p.bmp(plain, depth=8, compression=1, palette=quads.tobytes()), TABLE[INDEX])
    fours = (
        b"".join(
            b"".join(bytes([2, int(a) << 4 | int(b)]) for a, b in zip(r[::2], r[1::2], strict=True)) + b"\0\0"
            for r in INDEX[::-1] & 15
        )
        + b"\0\1"
    )
    yield Case("RLE4", p.bmp(fours, depth=4, compression=2, palette=quads[:16].tobytes()), TABLE[INDEX & 15])
    black = np.where(np.arange(256)[:, None] < 99, TABLE, 0)[INDEX]
    made = p.bmp(p.bmp_rows(INDEX), depth=8, palette=quads[:99].tobytes())
    yield either("a colour behind the palette's end", made, black)
    ten = levels(10).astype(np.uint32)
    rows = p.bmp_rows((ten[..., 0] << 20 | ten[..., 1] << 10 | ten[..., 2]).astype("<u4"))
    yield either("10 bits", p.bmp(rows, depth=32, compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF)), RGB8)
    rows = p.bmp_rows(np.dstack([RGB8, OPAQUE]))
    made = p.bmp(rows, depth=32, compression=3, masks=(0xFF, 0xFF00, 0xFF0000))
    yield either("32 bits, red first", made, RGB8)
    four = levels(4).astype(np.uint16)
    rows = p.bmp_rows((four[..., 0] << 8 | four[..., 1] << 4 | four[..., 2]).astype("<u2"))
    yield either("444", p.bmp(rows, depth=16, compression=3, masks=(0xF00, 0xF0, 0xF)), four * 17.0)
    for compression in (4, 5, 99):
        yield Case(f"compression {compression}", p.bmp(BGR, compression=compression), refused="")
    core = (
        b"BM" + struct.pack("<IHHI", 26 + len(BGR), 0, 0, 26) + struct.pack("<IHHHH", 12, 24, 16, 1, 24) + BGR
    )
    yield Case("OS/2", core, RGB8)


# -------------------------------------------------------------------------------------- JPEG


def decoded(raw: bytes) -> np.ndarray:
    """Return what Pillow makes of a plain file."""
    return np.array(Image.open(p.io.BytesIO(raw)))


@kind("JPEG: colour transforms", "JFIF 1.02, Adobe's APP14, DCF 2.0; samples by Pillow")
def jpeg_colour():
    raw = p.jpeg()
    want = decoded(raw)
    yield Case("JFIF", raw, want)
    yield Case("progressive", p.jpeg(progressive=True), want)
    yield Case("restart markers", p.jpeg(restart_marker_blocks=1), want)
    bare = p.without(raw, 0xE0)
    yield Case("neither JFIF nor Adobe", bare, want)
    yield Case("Adobe 1", p.with_segments(bare, p.adobe(1)), want)
    straight = p.jpeg(keep_rgb=True)
    stored = decoded(straight)
    yield Case("ids R G B", p.without(straight, 0xEE), stored)
    yield Case("ids R G B, Adobe 0", p.with_segments(p.without(straight, 0xEE), p.adobe(0)), stored)
    numbered = p.without(straight, 0xEE)
    at = numbered.index(b"\xff\xc0")
    scan = numbered.index(b"\xff\xda")
    edited = bytearray(numbered)
    for i in range(3):
        edited[at + 10 + 3 * i] = edited[scan + 5 + 2 * i] = i + 1
    yield Case("ids 1 2 3, Adobe 0", p.with_segments(bytes(edited), p.adobe(0)), stored)
    yield either("JFIF and Adobe 0", p.with_segments(raw, p.adobe(0)), want)
    yield either("two components", raw.replace(b"\x03\x01\x11", b"\x02\x01\x11", 1), want * np.nan)
    inks = np.dstack([RGB8 // 4, GREY8 // 4])
    picture = Image.fromarray(inks, "CMYK")
    cmyk = p.jpeg(picture)
    stored = 255 - decoded_raw(cmyk, "CMYK")  # Adobe's files hold 255 less ink
    profile = p.icc_segments(p.ink_icc())
    want = p.lab_shown(p.ink_lab(stored / 255))
    yield Case("CMYK, Adobe 0", p.with_segments(cmyk, *profile), want, within=3)
    yield Case("CMYK without a profile", cmyk, refused="CMYK|12")
    plain = p.without(cmyk, 0xEE)
    made = p.with_segments(plain, *profile)
    yield either("CMYK, no Adobe", made, p.lab_shown(p.ink_lab((255 - stored) / 255)), within=3)
    ycck = imagecodecs.jpeg8_encode(
        255 - inks, level=100, colorspace="CMYK", outcolorspace="YCCK", subsampling="444"
    )
    yield Case("YCCK, Adobe 2", p.with_segments(ycck, *profile), p.lab_shown(p.ink_lab(inks / 255)), within=4)
    yield Case("YCCK without a profile", ycck, refused="CMYK|12")
    made = p.with_segments(cmyk, *p.icc_segments(ADOBE_ICC))
    yield Case("CMYK under an RGB profile", made, refused="(?i)cmyk|profile")
    interop = {1: (2, 4, b"R03\0"), 2: b"0100"}
    uncalibrated = dcf({40961: 65535}, interop)
    want = shown(decoded(raw) / 255, p.ADOBE, power(ADOBE_GAMMA))
    yield Case("EXIF: uncalibrated, R03", p.with_segments(raw, p.exif_segment(uncalibrated)), want)
    made = p.with_segments(raw, p.exif_segment(dcf({40961: 65535}, {1: (2, 4, b"R98\0")})))
    yield Case("EXIF: uncalibrated, R98", made, decoded(raw))
    made = p.with_segments(raw, p.exif_segment(dcf({40961: 65535})))
    yield Case("EXIF: uncalibrated alone", made, decoded(raw))
    made = p.with_segments(raw, p.exif_segment(dcf({40961: 1}, {1: (2, 4, b"R98\0")})))
    yield Case("EXIF: sRGB", made, decoded(raw))
    srgb = p.icc_segments(p.rgb_icc(p.SRGB, 1))
    over_exif = p.with_segments(raw, p.exif_segment(uncalibrated), *srgb)
    yield Case("EXIF R03 under a profile", over_exif, shown(decoded(raw) / 255, decode=power(1)))
    deep = imagecodecs.jpeg8_encode(levels(12), level=100, bitspersample=12)
    yield either("12 bits", deep, RGB8, within=2)
    for name, picture in (("grey", GREY8), ("colour", RGB8)):
        yield either(f"lossless, {name}", imagecodecs.jpeg8_encode(picture, lossless=True), picture)
    for number in range(1, 9):
        turned = p.with_segments(raw, p.exif_segment(p.orientation(number)))
        yield Case(f"orientation {number}", turned, p.turned(decoded(raw), number))


def decoded_raw(raw: bytes, mode: str) -> np.ndarray:
    """Return the samples that a JPEG holds, as libjpeg-turbo hands them out."""
    return imagecodecs.jpeg8_decode(raw, colorspace=mode, outcolorspace=mode)


def dcf(private: dict, interop: dict | None = None) -> bytes:
    """Return EXIF data with an Exif directory and in it, one of interoperability."""
    at = 8 + 18  # a directory of one entry
    if interop:
        inner = len(p.directory({**private, 40965: 99999}, at=at))
        private = {**private, 40965: (4, 1, struct.pack("<I", at + inner))}
    tail = p.directory(private, at=at)
    tail += p.directory(interop, at=at + len(tail)) if interop else b""
    return p.exif({34665: (4, 1, struct.pack("<I", at))}) + tail


# ----------------------------------------------------------------- several pictures, Netpbm


@kind("Animations, pages, pairs", "refused; of an MPO the first picture, by CIPA DC-007")
def several():
    frames = [Image.fromarray(RGB8), Image.fromarray(255 - RGB8)]
    for name, options in {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "AVIF": {}, "TIFF": {}}.items():
        for count in (2, 3):
            rest = [Image.fromarray(RGB8 // (i + 2)) for i in range(count - 1)]
            raw = p.pil(frames[0], name, save_all=True, append_images=rest, **options)
            yield Case(f"{name} of {count}", raw, refused="(?i)frame|page|picture|animat")
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        one = frames[0].quantize(64) if name == "GIF" else frames[0]
        raw = p.pil(one, name, save_all=True, **({"lossless": True} if name == "WEBP" else {}))
        yield Case(f"{name} of 1", raw, decoded_rgb(raw))
    for count in (2, 3):
        raw = p.pil(
            frames[0],
            "MPO",
            save_all=True,
            append_images=frames[1:] * (count - 1),
            quality=100,
            subsampling=0,
        )
        yield Case(f"MPO of {count}", raw, decoded_rgb(p.jpeg()))
    for count in (2, 3):
        still = p.pil(
            frames[0], "PNG", save_all=True, append_images=frames[1:] * (count - 1), default_image=True
        )
        yield either(f"APNG whose still stands apart, {count}", still, RGB8)


def decoded_rgb(raw: bytes) -> np.ndarray:
    """Return what Pillow makes of a plain file, as RGB."""
    return np.array(Image.open(p.io.BytesIO(raw)).convert("RGB"))


@kind("Netpbm", "netpbm's pbm(5), pgm(5), ppm(5): v * 255 / maxval")
def netpbm():
    for most in (1, 2, 15, 31, 100, 254, 255, 256, 1023, 4095, 65534, 65535):
        wide, grey = (V * most).round().astype(int), (G * most).round().astype(int)
        for number, picture in ((2, grey), (3, wide), (5, grey), (6, wide)):
            yield Case(f"P{number} of {most}", p.pnm(number, picture, most), picture * (255 / most))
    bits = levels(1, GREY8)
    for number in (1, 4):
        yield Case(f"P{number}", p.pnm(number, bits), (1 - bits) * 255)
    dense = b"P1\n24 16\n" + b"".join(b"%d" % v for v in bits.ravel())
    yield Case("P1 without spaces", dense, (1 - bits) * 255)
    for number in range(1, 7):
        picture = bits if number in (1, 4) else GREY8 if number in (2, 5) else RGB8
        want = (1 - bits) * 255 if number in (1, 4) else picture
        yield Case(f"P{number} with comments", p.pnm(number, picture, comment="# a 9 9\n# b\n"), want)
    yield Case("P6, comment behind the width", b"P6 24 # wide\n16\n255\n" + RGB8.tobytes(), RGB8)
    yield Case("P5, tabs and line ends", b"P5\t24\r\n16 255\n" + GREY8.tobytes(), GREY8)
    values = np.flipud(V.astype("<f4")).tobytes()
    yield Case("PFM", b"PF\n24 16\n-1.0\n" + values, refused="")
    yield Case("grey PFM", b"Pf\n24 16\n-1.0\n" + np.flipud(G.astype("<f4")).tobytes(), refused="")
    pam = b"P7\nWIDTH 24\nHEIGHT 16\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + RGB8.tobytes()
    yield either("PAM", pam, RGB8)
    for most in (0, 65536, 99999999):
        yield Case(f"P6 of {most}", b"P6 24 16 %d\n" % most + RGB8.tobytes() * 2, refused="")
    yield either("P5, sample above the most", p.pnm(5, GREY8, 100), np.minimum(GREY8, 100) * 2.55)


@kind("GIF and WebP", "GIF89a; RFC 9649; mixed in sRGB values")
def gif_and_webp():
    want, used = TABLE[INDEX], int(INDEX[3, 3])
    yield Case("GIF", p.gif(INDEX, TABLE.tobytes()), want)
    yield Case("GIF, interlaced", p.pil(decoded_p(INDEX), "GIF", interlace=1), want)
    made = p.gif(INDEX, TABLE.tobytes(), transparent=used)
    yield from over("GIF, a transparent colour", made, want, (used != INDEX) * 1.0)
    few = INDEX % 16
    yield Case("GIF, an unused transparent colour", p.gif(few, TABLE.tobytes(), transparent=200), TABLE[few])
    raw = bytearray(p.gif(INDEX, TABLE.tobytes()))
    raw[6:10] = struct.pack("<HH", 40, 30)
    yield Case("GIF, smaller than its screen", bytes(raw), refused="")
    for name, options in {"lossless": {"lossless": True, "exact": True}, "lossy": {"quality": 100}}.items():
        for about, alpha in {"half": HALF, "nearly opaque": NEARLY}.items():
            raw = p.pil(np.dstack([RGB8, alpha]), "WEBP", **options)
            stored = np.array(Image.open(p.io.BytesIO(raw)))
            yield from over(f"WebP {name}, alpha {about}", raw, stored[..., :3], stored[..., 3] / 255)
        opaque = p.pil(np.dstack([RGB8, OPAQUE]), "WEBP", **options)
        yield Case(f"WebP {name}, opaque alpha", opaque, decoded_rgb(opaque))
        for number in range(1, 9):
            raw = p.pil(RGB8, "WEBP", exif=p.orientation(number), **options)
            yield Case(f"WebP {name}, orientation {number}", raw, p.turned(decoded_rgb(raw), number))
    adobe = p.pil(np.dstack([RGB8, HALF]), "WEBP", lossless=True, exact=True, icc_profile=ADOBE_ICC)
    yield from over("WebP, Adobe RGB and alpha", adobe, ADOBE_SHOWN, HALF / 255)


def decoded_p(index: np.ndarray) -> Image.Image:
    """Return a Pillow image of the table's colours."""
    image = Image.fromarray(index)
    image.putpalette(TABLE.tobytes())
    return image


@kind("Odd sides", "the pixels themselves; of lossy files Pillow's")
def odd_sides():
    for width, height in ((1, 1), (1, 5), (2, 3), (3, 1), (5, 2), (7, 13), (9, 9), (23, 5)):
        rgb = WHOLE[:height, :width].copy()
        grey, side = rgb[..., 1].copy(), f"{width} x {height}"
        for depth in (1, 2, 4, 8, 16):
            low = levels(depth, grey)
            want = low * (255 / (2**depth - 1))
            yield Case(f"PNG, {side}, {depth} bits", png(low, depth=depth), want)
            yield Case(f"PNG interlaced, {side}, {depth} bits", png(low, depth=depth, interlaced=True), want)
            yield Case(f"TIFF, {side}, {depth} bits", tiff(low, 1, depth), want)
        bits, index = levels(1, grey), grey // 2
        ways = {
            "PNG": png(rgb), "PNG interlaced": png(rgb, interlaced=True), "P6": p.pnm(6, rgb),
            "TIFF planes": tiff(rgb, 2, planar=True), "TIFF tiles": tifffile_of(rgb, tile=(16, 16)),
            "TIFF LZW": tifffile_of(rgb, compression="lzw", predictor=True), "JPEG XL": p.jxl(rgb),
            "BMP": p.bmp(p.bmp_rows(rgb[..., ::-1]), width, height), "J2K": p.j2k(rgb),
            "WebP": p.pil(rgb, "WEBP", lossless=True), "AVIF": p.heif(p.coded(rgb), p.nclx(1, 13)),
            "HEIC": p.heif(p.coded(rgb, codec="hvc1"), p.nclx(1, 13)),
        }  # fmt: skip
        for name, raw in ways.items():
            yield Case(f"{name}, {side}", raw, rgb, within=0)
        for number in (1, 4):
            yield Case(f"P{number}, {side}", p.pnm(number, bits), (1 - bits) * 255)
        yield Case(f"GIF, {side}", p.gif(index, TABLE.tobytes()), TABLE[index])
        yield Case(f"GIF interlaced, {side}", p.pil(decoded_p(index), "GIF", interlace=1), TABLE[index])
        for sub in (0, 1, 2):
            for way in (False, True):
                raw = p.pil(rgb, "JPEG", quality=95, subsampling=sub, progressive=way)
                yield Case(f"JPEG of subsampling {sub}{' progressive' * way}, {side}", raw, decoded(raw))


LONG = np.stack([np.arange(70_000) % n for n in (251, 241, 239)], -1).astype(np.uint8)[None]
HUGE = 100_000


@kind("Sizes", "the whole pixels, or refused")
def sizes():
    for name, picture in {"wide": LONG, "tall": LONG.swapaxes(0, 1)}.items():
        height, width = picture.shape[:2]
        yield either(f"PNG, {name}", png(picture), picture)
        yield either(f"TIFF, {name}", tiff(picture, 2), picture)
        yield either(f"PPM, {name}", p.pnm(6, picture), picture)
        yield either(f"BMP, {name}", p.bmp(p.bmp_rows(picture[..., ::-1]), width, height), picture)
    for height, width in ((0, 24), (16, 0), (0, 0)):
        about = f"{width} x {height}"
        ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        made = p.PNG + ihdr + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")
        yield Case(f"PNG, {about}", made, refused="")
        yield Case(f"PPM, {about}", b"P6 %d %d 255\n" % (width, height) + RGB8.tobytes(), refused="")
        yield Case(f"BMP, {about}", p.bmp(BGR, width, height), refused="")
        made = p.tiff_file(
            [({256: width, 257: height, 258: [8] * 3, 259: 1, 262: 2, 277: 3, 278: 16}, [RGB8.tobytes()])]
        )
        yield Case(f"TIFF, {about}", made, refused="")
        screen = resized(p.gif(INDEX, TABLE.tobytes()), 6, "<HH", width, height)
        yield either(f"GIF, screen of {about}", screen, TABLE[INDEX])
        yield Case(f"JPEG, {about}", jpeg_sized(width, height), refused="")
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0))
    yield Case("PNG, huge", p.PNG + ihdr + png(RGB8)[33:], refused="")
    yield Case("PPM, huge", b"P6 %d %d 255\n" % (HUGE, HUGE) + RGB8.tobytes(), refused="")
    yield Case("PGM in words, huge", b"P2 %d %d 255\n1 2 3" % (HUGE, HUGE), refused="")
    yield Case("BMP, huge", p.bmp(BGR, HUGE, HUGE), refused="")
    quads = np.dstack([TABLE[None], TABLE[None, :, :1]]).tobytes()
    yield Case("BMP in runs, huge", p.bmp(b"\0\1", HUGE, HUGE, 8, compression=1, palette=quads), refused="")
    for compression in (1, 5, 8, 32773):
        made = p.tiff_file(
            [
                (
                    {256: HUGE, 257: HUGE, 258: [8] * 3, 259: compression, 262: 2, 277: 3, 278: HUGE},
                    [RGB8.tobytes()],
                )
            ]
        )
        yield Case(f"TIFF of compression {compression}, huge", made, refused="")
    made = resized(p.gif(INDEX, TABLE.tobytes()), 6, "<HH", 65535, 65535)
    yield Case("GIF, 65535 x 65535", made, refused="")
    yield Case("JPEG, 65535 x 65535", jpeg_sized(65535, 65535), refused="")
    yield Case("JPEG XL, huge", p.jxl(said=(HUGE, HUGE)), refused="")
    stream = p.j2k()
    at = stream.index(b"\xff\x51") + 6
    large = resized(resized(stream, at, ">II", HUGE, HUGE), at + 16, ">II", HUGE, HUGE)
    yield Case("J2K, huge", large, refused="")
    yield Case("JPEG 2000, huge", jp2(large, p.enumerated(16)), refused="")
    webp = p.pil(np.dstack([RGB8, HALF]), "WEBP", exif=p.orientation(1))
    made = resized(webp, webp.index(b"VP8X") + 12, "<HBHB", 16383, 0, 16383, 0)
    yield Case("WebP, 16384 x 16384", made, refused="")
    for codec, called in {"av01": "AVIF", "hvc1": "HEIC"}.items():
        raw = p.heif(p.coded(codec=codec), p.nclx(1, 13))
        yield Case(f"{called}, huge", resized(raw, raw.index(b"ispe") + 8, ">II", HUGE, HUGE), refused="")


def resized(raw: bytes, at: int, form: str, *sides: int) -> bytes:
    """Return a file with other sides written at a place."""
    return raw[:at] + struct.pack(form, *sides) + raw[at + struct.calcsize(form) :]


def jpeg_sized(width: int, height: int) -> bytes:
    """Return a JPEG that says another size."""
    return resized(p.jpeg(), p.jpeg().index(b"\xff\xc0") + 5, ">HH", height, width)


# ------------------------------------------------------------------------------------ damage

CODED = {  # name: file, its end marker
    "PNG": (lambda: png(WHOLE), chunk(b"IEND")),
    "PNG interlaced": (lambda: png(WHOLE, interlaced=True), chunk(b"IEND")),
    "PNG of 16 bits": (lambda: png(levels(16, WHOLE), depth=16), chunk(b"IEND")),
    "JPEG baseline": (lambda: p.jpeg(WHOLE, quality=90), b"\xff\xd9"),
    "JPEG 4:2:0": (lambda: p.jpeg(WHOLE, quality=75, subsampling=2), b"\xff\xd9"),
    "JPEG optimized": (lambda: p.jpeg(WHOLE, quality=60, optimize=True), b"\xff\xd9"),
    "JPEG progressive": (lambda: p.jpeg(WHOLE, quality=90, progressive=True), b"\xff\xd9"),
    "JPEG with restarts": (lambda: p.jpeg(WHOLE, quality=90, restart_marker_rows=1), b"\xff\xd9"),
    "JPEG grey": (lambda: p.jpeg(WHOLE[..., 1].copy(), quality=90), b"\xff\xd9"),
    "WebP lossless": (lambda: p.pil(WHOLE, "WEBP", lossless=True), b""),
    "WebP lossy": (lambda: p.pil(WHOLE, "WEBP", quality=90), b""),
    "AVIF": (lambda: p.pil(WHOLE, "AVIF", quality=90), b""),
    "HEIC": (lambda: p.heif(p.coded(WHOLE, codec="hvc1"), p.nclx(1, 13)), b""),
    "JP2": (lambda: jp2(p.j2k(WHOLE), p.enumerated(16)), b"\xff\xd9"),
    "J2K": (lambda: p.j2k(WHOLE), b"\xff\xd9"),
    "JXL lossless": (lambda: p.pil(WHOLE, "JXL", lossless=True), b""),
    "JXL lossy": (lambda: p.pil(WHOLE, "JXL", quality=90), b""),
    "TIFF": (lambda: tiff(WHOLE, 2), b""),
    "TIFF LZW": (lambda: tifffile_of(WHOLE, compression="lzw"), b""),
    "TIFF Deflate": (lambda: tifffile_of(WHOLE, compression="deflate"), b""),
    "TIFF PackBits": (lambda: tifffile_of(WHOLE, compression="packbits"), b""),
    "BMP": (lambda: p.bmp(p.bmp_rows(WHOLE[..., ::-1]), SIDE, SIDE), b""),
    "GIF": (lambda: p.pil(Image.fromarray(WHOLE).quantize(256), "GIF"), b";"),
    "P6": (lambda: p.pnm(6, WHOLE), b""),
    "P3": (lambda: p.pnm(3, WHOLE), b""),
    "P5 of 1023": (lambda: p.pnm(5, levels(10, WHOLE[..., 1]), 1023), b""),
}
RAW = ("TIFF", "TIFF PackBits", "BMP", "P6", "P3", "P5 of 1023")  # zeros there are samples
RAW += ("WebP lossy",)  # zeros there are VP8's flat blocks, as in sound flat pictures


def damaged(raw: bytes, end: bytes, zeros: bool) -> Iterator[tuple[str, bytes]]:
    """Yield a file cut and, if asked, zeroed in ways that a medium or a network does."""
    cuts = {f"{part} %": len(raw) * part // 100 for part in (10, 50, 75, 90)}
    for name, at in {**cuts, "all but 20 bytes": len(raw) - 20}.items():
        yield f"cut at {name}", raw[:at]
        if end:
            yield f"cut at {name}, end put back", raw[:at] + end
    if zeros:
        half = len(raw) // 2
        yield "second half zeroed", raw[:half] + bytes(len(raw) - half)
        yield "second half zeroed, end put back", raw[:half] + bytes(len(raw) - half - len(end)) + end
        yield "hole of 64 bytes", raw[: half - 32] + bytes(64) + raw[half + 32 :]
        yield "hole of 512 bytes", raw[: half - 256] + bytes(512) + raw[half + 256 :]


def refitted() -> Iterator[Case]:
    """Yield files that are cut and say so: their lengths are right again."""
    for name in ("WebP lossy", "WebP lossless"):
        raw = CODED[name][0]()
        want, at = decode_image(raw), raw.index(b"VP8") + 4
        for part in (30, 60, 95):
            size = len(raw) * part // 200 * 2
            short = resized(resized(raw[:size], 4, "<I", size - 8), at, "<I", size - at - 4)
            yield Case(f"{name}, {part} % with right lengths", short, want, "", within=0)
    item, data, own = p.coded(WHOLE)
    stream = p.j2k(WHOLE)
    tile, body = stream.index(b"\xff\x90"), stream.index(b"\xff\x93") + 2
    for part in (30, 60, 95):
        short = p.heif((item, data[: len(data) * part // 100], own), p.nclx(1, 13))
        yield Case(f"AVIF, {part} % of its item", short, WHOLE, "", within=0)
        size = body + (len(stream) - 2 - body) * part // 100
        short = resized(stream[:size], tile + 6, ">I", size - tile) + b"\xff\xd9"
        yield Case(f"J2K, {part} % with right lengths", short, WHOLE, "", within=0)
    page = {256: 64, 257: 64, 258: [8] * 3, 262: 2, 277: 3, 278: 16}
    rows = [WHOLE[i : i + 16].tobytes() for i in range(0, 64, 16)]
    for code, pack in {
        1: bytes,
        5: imagecodecs.lzw_encode,
        8: zlib.compress,
        32773: imagecodecs.packbits_encode,
    }.items():
        strips = [pack(row) for row in rows]
        made = p.tiff_file([({**page, 259: code}, strips)])
        yield Case(f"TIFF of compression {code}, four strips", made, WHOLE)
        for about, part in {
            "three strips": strips[:3],
            "an empty strip": [*strips[:2], b"", strips[3]],
            "a strip of too few rows": [strips[0], pack(rows[1][:999]), *strips[2:]],
        }.items():
            made = p.tiff_file([({**page, 259: code}, part)])
            yield Case(f"TIFF of compression {code}, {about}", made, refused="")


@kind("Damage", "refused, or exactly the whole picture's pixels")
def damage():
    for name, (make, end) in CODED.items():
        raw = make()
        lossless = not name.startswith("JPEG") and name not in ("WebP lossy", "AVIF", "JXL lossy", "GIF")
        truth = WHOLE[..., 1] if name == "P5 of 1023" else WHOLE if lossless else decoded_rgb(raw)
        yield Case(f"{name}, whole", raw, truth)
        want = decode_image(raw, name)
        for how, broken in damaged(raw, end, name not in RAW):
            yield Case(f"{name}, {how}", broken, want, "", within=0)
    yield from refitted()
    raw = png(WHOLE)
    at = raw.index(b"IDAT")
    size = int.from_bytes(raw[at - 4 : at])
    data, rest = raw[at + 4 : at + 4 + size], raw[at + 8 + size :]
    for name, body in {
        "wrong adler": data[:-4] + bytes(4),
        "no adler": data[:-4],
        "half, right CRC": data[: size // 2],
        "a flipped bit, right CRC": data[:200] + bytes([data[200] ^ 1]) + data[201:],
        "empty": b"",
        "too few rows": zlib.compress(zlib.decompress(data)[: 32 * 193]),
    }.items():
        yield Case(f"PNG, {name}", raw[: at - 4] + chunk(b"IDAT", body) + rest, WHOLE, "", within=0)
    for name, part in {"data": at + 300, "CRC": at + 4 + size, "header": 20}.items():
        made = raw[:part] + bytes([raw[part] ^ 0x10]) + raw[part + 1 :]
        yield Case(f"PNG, {name} flipped", made, refused="")
    yield Case("PNG without IEND", raw[:-12], WHOLE, "", within=0)
    raw = CODED["JPEG progressive"][0]()
    want = decode_image(raw, "picture")
    scans = [found.start() for found in re.finditer(b"\xff\xda\0", raw)]
    for number, place in enumerate(scans[1:], 1):
        last = (
            raw.rindex(b"\xff\xc4", 0, place)
            if raw.rfind(b"\xff\xc4", scans[number - 1], place) > 0
            else place
        )
        made = raw[:last] + b"\xff\xd9"
        yield Case(f"JPEG progressive, {number} of {len(scans)} scans", made, want, "", within=0)
    for name in ("JPEG baseline", "JPEG progressive", "JPEG with restarts"):
        raw = CODED[name][0]()
        want = decode_image(raw, name)
        start = raw.index(b"\xff\xda")
        for number, place in enumerate(np.linspace(start + 60, len(raw) - 60, 12).astype(int)):
            yield Case(f"{name}, cut {number} with end", raw[:place] + b"\xff\xd9", want, "", within=0)
            broken = raw[: place - 32] + bytes(64) + raw[place + 32 :]
            yield Case(f"{name}, 64 zeros {number}", broken, want, "", within=0)


# ------------------------------------------------------------------------------ odd metadata

ODD_EXIF: dict[str, dict | bytes] = {
    "a broken rational": {274: 6, 282: (10, 1, struct.pack("<ii", -1, 0))},
    "rationals of nothing": {274: 6, 282: (5, 1, bytes(8)), 283: (5, 1, struct.pack("<II", 2**32 - 1, 0))},
    "an offset behind the end": {274: 6, 34665: (4, 1, struct.pack("<I", 99999))},
    "a directory that points to itself": {274: 6, 34665: (4, 1, struct.pack("<I", 8))},
    "text where a number should be": {274: 6, 282: (2, 8, b"seventy\0"), 296: (2, 3, b"in\0")},
    "an unknown type": {274: 6, 50000: (99, 1, b"abcd")},
    "a count of 2^32 - 1": {274: 6, 50000: (7, 2**32 - 1, bytes(4))},
    "a maker's note of 60,000 bytes": {274: 6, 37500: bytes(range(256)) * 230},
    "orientation as a long": {274: (4, 1, struct.pack("<I", 6))},
}
NO_TURN: dict[str, dict] = {
    "orientation 0": {274: 0},
    "orientation 9": {274: 9},
    "orientation 65535": {274: 65535},
    "orientation as text": {274: (2, 4, b"six\0")},
    "orientation of nothing": {274: (3, 0, bytes(4))},
}


@kind("Odd metadata of sound pictures", "the whole pixels; EXIF 2.32 for turns")
def odd_metadata():
    raw = p.jpeg()
    plain = decoded(raw)
    carriers = {
        "JPEG": (lambda e: p.with_segments(raw, p.exif_segment(e)), plain),
        "PNG": (lambda e: png(RGB8, chunk(b"eXIf", e)), RGB8),
        "WebP": (lambda e: p.pil(RGB8, "WEBP", lossless=True, exif=e), RGB8),
    }
    for name, (carry, want) in carriers.items():
        for about, entries in ODD_EXIF.items():
            yield Case(f"{name}, EXIF with {about}", carry(p.exif(entries)), p.turned(want, 6))
        for about, entries in NO_TURN.items():
            yield Case(f"{name}, EXIF {about}", carry(p.exif(entries)), want)
        for about, data in {
            "cut": p.exif({274: 6})[:12],
            "noise": bytes(range(60)),
            "empty": b"",
            "big-endian": b"",
        }.items():
            data = p.exif({274: (3, 1, b"\0\6")}, order=">") if about == "big-endian" else data
            turn = 6 if about == "big-endian" else 1
            yield Case(f"{name}, EXIF {about}", carry(data), p.turned(want, turn))
    for number in (3, 6, 8):
        deep = png(levels(16, GREY8), chunk(b"eXIf", p.orientation(number)), depth=16)
        yield Case(f"PNG, grey of 16 bits, EXIF orientation {number}", deep, p.turned(GREY8, number))
    text = b"node " * 400_000
    yield Case("PNG, 2 MB of zTXt", png(RGB8, chunk(b"zTXt", b"a\0\0" + zlib.compress(text))), RGB8)
    yield Case("PNG, 2 MB of iTXt", png(RGB8, chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(text))), RGB8)
    yield Case("PNG, 2 MB of tEXt", png(RGB8, chunk(b"tEXt", b"a\0" + text)), RGB8)
    made = png(RGB8)[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) + chunk(b"IEND")
    yield Case("PNG, text behind the pixels", made, RGB8)
    made = png(RGB8, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(text[:999_000]))] * 70)
    yield Case("PNG, 70 chunks of text", made, RGB8)
    yield Case("PNG, text that is not zlib", png(RGB8, chunk(b"zTXt", b"a\0\0nonsense")), RGB8)
    yield Case("PNG, an unknown chunk", png(RGB8, chunk(b"quIr", bytes(99))), RGB8)
    made = png(RGB8, chunk(b"pHYs", b"\xff" * 9), chunk(b"tIME", b"\xff" * 7))
    yield Case("PNG, pHYs and tIME of nonsense", made, RGB8)
    large = p.rgb_icc(p.ADOBE, ADOBE_GAMMA, extra={b"priv": b"data" + bytes(2**20)})
    for carrier in ("PNG", "TIFF", "WebP", "AVIF", "JPEG 2000"):
        yield Case(f"{carrier}, a profile of 1 MB", CARRIERS[carrier](large), ADOBE_SHOWN)
    long = p.with_segments(raw, *p.icc_segments(large, 20))
    yield Case("JPEG, a profile of 1 MB", long, shown(plain / 255, p.ADOBE, power(ADOBE_GAMMA)))
    made = p.with_segments(raw, segment(0xEB, bytes(999)), segment(0xFE, b"\xff" * 99))
    yield Case("JPEG, unknown markers", made, plain)
    made = p.with_segments(raw, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<<<"))
    yield Case("JPEG, XMP that is not XML", made, plain)
    made = p.with_segments(raw, p.exif_segment(p.orientation(6)), p.exif_segment(p.orientation(6)))
    yield Case("JPEG, two EXIF segments", made, p.turned(plain, 6))
    density = raw[:13] + b"\1\0\0\0\0" + raw[18:]
    yield Case("JPEG, density 0", density, plain)
    names = {305: (2, 2**10, b"\xff\xfe" * 2**9), 282: (5, 1, bytes(8)), 306: (2, 4, b"now\0")}
    yield Case("TIFF, odd texts and rationals", tiff(RGB8, 2, **{f"t{t}": v for t, v in names.items()}), RGB8)
    made = tiff(RGB8, 2, t282=(2, 4, b"abc\0"), t296=(2, 2, b"x\0"))
    yield Case("TIFF, text where a number should be", made, RGB8)
    yield Case("TIFF, unknown tags", tiff(RGB8, 2, t60000=bytes(99), t65000=[1, 2, 3]), RGB8)
    yield Case("TIFF, orientation 0", tiff(RGB8, 2, t274=0), RGB8)
    yield Case("TIFF, orientation 9", tiff(RGB8, 2, t274=9), RGB8)
    avif = p.heif(p.coded(), p.nclx(1, 13), box(b"free", bytes(99)), others=[p.exif_item(b"nonsense")])
    yield Case("AVIF, nonsense as Exif", avif, RGB8)
    yield Case("AVIF, an unknown box", avif + box(b"quir", bytes(99)), RGB8)
    made = jp2(p.j2k(), p.enumerated(16), box(b"quir", bytes(9))) + box(b"uuid", bytes(40))
    yield Case("JPEG 2000, unknown boxes", made, RGB8)
    for name, (make, _) in CODED.items():
        whole = make()
        want = decode_image(whole, name)
        for byte, count in ((b"\n", 1), (b"\n", 40), (b"\0", 3000)):
            yield Case(f"{name}, {count} bytes {byte!r} behind the end", whole + byte * count, want, within=0)
    first = p.exif({274: 1}, following=8 + 18)
    made = p.with_segments(raw, p.exif_segment(first + p.directory({274: 6}, at=8 + 18)))
    yield Case("JPEG, a thumbnail turned", made, decoded(raw))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    xmp += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    xmp += b"</rdf:RDF></x:xmpmeta>"
    told = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    made = p.with_segments(raw, p.exif_segment(p.orientation(1)), told)
    yield Case("JPEG, XMP orientation beside EXIF's 1", made, decoded(raw))
    yield Case("JPEG, XMP orientation alone", p.with_segments(raw, told), decoded(raw))
    made = p.with_segments(raw, told, p.exif_segment(p.orientation(6)))
    yield Case("JPEG, EXIF behind XMP", made, p.turned(decoded(raw), 6))
    blank = p.exif({37500: bytes(3000)})
    plain = decoded(raw)
    yield Case("JPEG, zeros as maker's note", p.with_segments(raw, p.exif_segment(blank)), plain)
    yield Case("JPEG, zeros as APP4", p.with_segments(raw, segment(0xE4, bytes(60_000))), plain)
    yield Case("PNG, zeros as maker's note", png(RGB8, chunk(b"eXIf", blank)), RGB8)
    yield Case("WebP, zeros as maker's note", p.pil(RGB8, "WEBP", lossless=True, exif=blank), RGB8)
    for codec, called in {"av01": "AVIF", "hvc1": "HEIC"}.items():
        others = [p.exif_item(blank)]
        made = p.heif(p.coded(codec=codec), p.nclx(1, 13), others=others)
        yield Case(f"{called}, zeros as maker's note", made, RGB8)
    inside = (
        p.box(b"JXL ", b"\r\n\x87\n") + p.box(b"ftyp", b"jxl \0\0\0\0jxl ") + p.box(b"Exif", bytes(4), blank)
    )
    yield Case("JPEG XL, zeros as maker's note", inside + p.box(b"jxlc", p.jxl()), RGB8)
    yield Case("JPEG 2000, zeros in a box", jp2(p.j2k(), p.enumerated(16)) + box(b"uuid", bytes(3000)), RGB8)


@kind("Flat pictures, whose data is zeros", "Pillow's decoding; the pixels themselves where lossless")
def flat():
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name, colour in {"white": 255, "red": (200, 30, 90)}.items():
        for patch in (False, True):
            picture = np.full((640, 512, 3), np.uint8(colour), np.uint8)
            if patch:
                picture[320:384, 300:364] = noise
            ways = {
                "JPEG": p.jpeg(picture),
                "JPEG optimized": p.jpeg(picture, optimize=True),
                "JPEG progressive": p.jpeg(picture, progressive=True),
                "WebP lossy": p.pil(picture, "WEBP"),
                "AVIF": p.pil(picture, "AVIF", subsampling="4:4:4"),
                "JPEG XL": p.pil(picture, "JXL"),
            }
            for how, raw in ways.items():
                yield Case(f"{how}, {name}{' with a patch' * patch}", raw, decoded_rgb(raw), within=2)
            ways = {
                "PNG": png(picture),
                "WebP lossless": p.pil(picture, "WEBP", lossless=True),
                "TIFF Deflate": tifffile_of(picture, compression="deflate"),
                "JP2": jp2(p.j2k(picture), p.enumerated(16)),
                "HEIC": p.heif(p.coded(picture, codec="hvc1"), p.nclx(1, 13)),
                "AVIF lossless": p.heif(p.coded(picture), p.nclx(1, 13)),
                "JPEG XL lossless": imagecodecs.jpegxl_encode(picture, lossless=True, effort=3),
            }
            for how, raw in ways.items():
                yield Case(f"{how}, {name}{' with a patch' * patch}", raw, picture, within=0)


def main() -> None:
    """Print the table of kinds; errors of what is coded with loss, or in YCbCr, beside what they may be."""
    print(
        "| kind | siblings | read, refused | source of the right value | largest error | with loss | wrong |"
    )
    print("|---|---|---|---|---|---|---|")
    for title, (cases, source) in KINDS.items():
        errors, refused, wrong = {True: [], False: []}, 0, []
        for case in cases():
            try:
                error = measure(case)
            except AssertionError as fault:
                wrong.append(str(fault))
                continue
            if error is None:
                refused += 1
            else:
                errors[case.within <= 1].append((error, case.within))
        read = sum(map(len, errors.values()))
        exact = f"{max(e for e, _ in errors[True]):g}" if errors[True] else ""
        loss = "{:g} of {:g}".format(*map(max, zip(*errors[False], strict=True))) if errors[False] else ""
        counts = f"{read + refused + len(wrong)} | {read}, {refused}"
        print(f"| {title} | {counts} | {source} | {exact} | {loss} | {len(wrong)} |", *wrong, sep="\n    ")


if __name__ == "__main__":
    main()
