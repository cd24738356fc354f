"""What the samples of a picture mean, and their conversion to 8-bit sRGB.

Relative colorimetric: white stays white (Bradford), and what sRGB cannot show is clipped in linear light.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from mcml.base.errors import DataError

Point = tuple[float, float]  # CIE 1931 x, y
Curve = Callable[[np.ndarray], np.ndarray]  # coded values to linear light, both in [0, 1]

D65, ILLUMINANT_C = (0.3127, 0.3290), (0.310, 0.316)
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
ADOBE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
SMPTE170 = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
DCI_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
PRIMARIES: dict[int, tuple[Sequence[Point], Point]] = {  # ITU-T H.273, table 2: primaries and white
    1: (BT709, D65),
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), ILLUMINANT_C),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: (SMPTE170, D65),
    7: (SMPTE170, D65),
    8: (((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)), ILLUMINANT_C),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    10: (((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)), (1 / 3, 1 / 3)),
    11: (DCI_P3, (0.314, 0.351)),
    12: (DCI_P3, D65),
    22: (((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)), D65),
}
UNSPECIFIED, HDR = 2, {16: "PQ", 18: "HLG"}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
STRIP_PX = 1 << 20  # converted at a time, so that floats take little memory


def _with_foot(slope: float, knee: float, offset: float, gamma: float) -> Curve:
    """Return a power with a straight foot below the coded value slope * knee."""
    return lambda v: np.where(v <= slope * knee, v / slope, ((v + offset) / (1 + offset)) ** gamma)


def power(gamma: float | Sequence[float]) -> Curve:
    """Return v ** gamma, one gamma or one for each channel."""
    return lambda v: np.maximum(v, 0.0) ** np.asarray(gamma)


SRGB_CURVE = _with_foot(12.92, 0.0031308, 0.055, 2.4)
BT709_CURVE = _with_foot(4.5, 0.018053968510807, 0.09929682680944, 1 / 0.45)
CURVES: dict[int, Curve] = {  # ITU-T H.273, table 3
    **dict.fromkeys((1, 6, 11, 12, 14, 15), BT709_CURVE),
    4: power(2.2),
    5: power(2.8),
    7: _with_foot(4.0, 0.0228, 0.1115, 1 / 0.45),
    8: power(1.0),
    9: lambda v: np.where(v > 0, 10.0 ** (2 * (v - 1)), 0.0),
    10: lambda v: np.where(v > 0, 10.0 ** (2.5 * (v - 1)), 0.0),
    13: SRGB_CURVE,
    17: lambda v: np.maximum(v, 0.0) ** 2.6 * 52.37 / 48,
}


@dataclass(frozen=True)
class RgbSpace:
    """Three primaries, a white and a curve."""

    primaries: Sequence[Point] = BT709
    white: Point = D65
    curve: Curve = SRGB_CURVE


ColorSpace = RgbSpace | bytes | None  # an RgbSpace, an ICC profile, or sRGB


def of_cicp(primaries: int, transfer: int) -> RgbSpace | None:
    """Return the space of H.273's code points; None where they are unspecified or reserved.

    `DataError` for PQ and HLG.
    """
    if transfer in HDR:
        advice = "map its tones to SDR first, for example with ffmpeg's filter tonemap"
        raise DataError(f"high dynamic range ({HDR[transfer]}) has no single reading in sRGB: {advice}")
    if primaries not in PRIMARIES or transfer not in (*CURVES, UNSPECIFIED):
        return None
    return RgbSpace(*PRIMARIES[primaries], CURVES.get(transfer, SRGB_CURVE))


def _xyz_of_rgb(primaries: Sequence[Point], white: Point) -> np.ndarray:
    """Return the 3 x 3 matrix from linear RGB to XYZ with the white at Y = 1 (SMPTE RP 177)."""
    xyz = np.array([[x, y, 1 - x - y] for x, y in primaries]).T
    return xyz * np.linalg.solve(xyz, _xyz(white))


def _xyz(white: Point) -> np.ndarray:
    return np.array([white[0], white[1], 1 - sum(white)]) / white[1]


def linear_to_srgb(space: RgbSpace) -> np.ndarray:
    """Return the 3 x 3 matrix from a space's linear RGB to linear sRGB, adapted to D65.

    `LinAlgError`, `ZeroDivisionError` or values that are not finite if its points are no triangle.
    """
    gain = (BRADFORD @ _xyz(D65)) / (BRADFORD @ _xyz(space.white))
    adapt = np.linalg.inv(BRADFORD) @ (gain[:, None] * BRADFORD)
    return np.linalg.inv(_xyz_of_rgb(BT709, D65)) @ adapt @ _xyz_of_rgb(space.primaries, space.white)


def is_valid(space: RgbSpace) -> bool:
    """Say whether primaries and white, as a file gives them, span a space."""
    try:
        return bool(np.isfinite(matrix := linear_to_srgb(space)).all() and np.abs(matrix).max() < 1e3)
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return False


def srgb_encode(linear: np.ndarray) -> np.ndarray:
    """Return sRGB values of linear light, both in [0, 1]; what is outside is clipped (IEC 61966-2-1)."""
    x = np.clip(linear, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def to_srgb(samples: np.ndarray, top: int, space: ColorSpace) -> np.ndarray:
    """Convert samples to (H, W, 3) uint8 sRGB, 0..255, rounded to nearest.

    Args:
        samples: (H, W, C) uint8 or uint16 with C = 1 grey, 3 RGB, 4 CMYK (0 is no ink).
        top: the sample of full white, or full ink.
        space: what they mean; None is sRGB.

    Raises:
        DataError: CMYK without a profile; a profile that is damaged, or made for other pixels.
    """
    if isinstance(space, bytes):
        return _by_icc(samples, top, space)
    if samples.shape[2] == 4:
        raise DataError("CMYK without an ICC profile has no defined colours; convert it to sRGB")
    if space is None:
        return _grey_to_rgb(_to_8_bits(samples, top))
    matrix = linear_to_srgb(space)
    if space.curve is SRGB_CURVE and np.abs(matrix - np.eye(3)).max() < 1e-3:
        return _grey_to_rgb(_to_8_bits(samples, top))
    light = space.curve(np.repeat(np.arange(top + 1)[:, None] / top, 3, axis=1))
    return _by_strips(samples, lambda part: srgb_encode(light[_grey_to_rgb(part), range(3)] @ matrix.T))


def _by_strips(samples: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    made = np.empty((*samples.shape[:2], 3), np.uint8)
    rows = max(1, STRIP_PX // samples.shape[1])
    for y in range(0, len(samples), rows):
        made[y : y + rows] = np.round(255 * convert(samples[y : y + rows]))
    return made


def _to_8_bits(samples: np.ndarray, top: int) -> np.ndarray:
    if top == 255:
        return samples.astype(np.uint8, copy=False)
    table = np.round(np.arange(top + 1) * (255 / top)).astype(np.uint8)
    return table[np.minimum(samples, top)]


def _grey_to_rgb(samples: np.ndarray) -> np.ndarray:
    return np.repeat(samples, 3, axis=2) if samples.shape[2] == 1 else samples


MODES = {1: "L", 3: "RGB", 4: "CMYK"}


def _by_icc(samples: np.ndarray, top: int, profile: bytes) -> np.ndarray:
    cicp = _icc_tag(profile, b"cicp")
    if cicp is not None and len(cicp) >= 12:
        of_cicp(cicp[8], cicp[9])  # PQ and HLG are refused
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        kind = source.profile.xcolor_space.strip()
        if kind == "RGB":
            samples = _grey_to_rgb(samples)  # grey pixels under a colour profile: common, and well defined
        mode = MODES[samples.shape[2]]
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        black = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", intent, black)
        if mode == "RGB":
            axis = np.linspace(0, 255, 9).round().astype(np.uint8)
            cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3)
            moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
            if np.abs(moved.astype(int) - cube).max() <= 1:
                return _to_8_bits(samples, top)  # sRGB under whatever name: the engine would only round
        if top > 255:
            return _deep_by_icc(samples, top, profile, ImageCms.ImageCmsProfile(srgb).tobytes())
        samples = _to_8_bits(samples, top)
        if mode == "L":  # 256 levels, and exactly: unoptimised
            plain = ImageCms.Flags.NOOPTIMIZE | black
            transform = ImageCms.buildTransform(source, srgb, "L", "RGB", intent, plain)
            ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            return np.asarray(ImageCms.applyTransform(ramp, transform))[0][samples[..., 0]]
        image = Image.frombuffer(mode, samples.shape[1::-1], np.ascontiguousarray(samples), "raw", mode, 0, 1)
        return np.array(ImageCms.applyTransform(image, transform))
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        pixels = MODES[samples.shape[2]]
        raise DataError(f"its ICC profile cannot be applied to {pixels} pixels") from error


def _deep_by_icc(samples: np.ndarray, top: int, profile: bytes, srgb: bytes) -> np.ndarray:
    import imagecodecs

    kind, white = {1: ("gray", 1), 3: ("rgb", 1), 4: ("cmyk", 100)}[samples.shape[2]]  # ink is in percent
    flags = imagecodecs.CMS.FLAGS  # unoptimised: else 16 bits go through a coarse table

    def convert(part: np.ndarray) -> np.ndarray:
        wide = (part * (white / top)).astype(np.float32)
        made = imagecodecs.cms_transform(
            wide.squeeze(2) if kind == "gray" else wide, profile, srgb,
            colorspace=kind, outcolorspace="rgb", outdtype=np.float32,
            intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
            flags=flags.BLACKPOINTCOMPENSATION | flags.NOOPTIMIZE,
        )  # fmt: skip
        return np.clip(made, 0, 1)

    return _by_strips(samples, convert)


def _icc_tag(profile: bytes, name: bytes) -> bytes | None:
    """Return a tag of an ICC profile, its type's signature first, or None (ICC.1, 7.3)."""
    for i in range(min(int.from_bytes(profile[128:132]), 100)):
        entry = profile[132 + 12 * i : 144 + 12 * i]
        if entry[:4] == name:
            start = int.from_bytes(entry[4:8])
            return profile[start : start + int.from_bytes(entry[8:12])]
    return None
