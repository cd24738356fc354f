"""A decoded picture that is not converted yet, and what the readers of all formats share."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mcml.base.errors import DataError
from mcml.data.color import ColorSpace

LIMIT_PX = 178_956_970  # Pillow's own limit against pictures that are bombs


@dataclass
class Picture:
    """A decoded picture, not yet converted.

    Attributes:
        samples: (H, W, C) uint8 or uint16 with C = 1, 3 or 4 (CMYK, 0 is no ink).
        top: the sample of full white, or full ink.
        space: what the samples mean.
        alpha: (H, W) in 0..top, or None.
        premultiplied: whether the samples were multiplied by alpha.
        orientation: 1..8 as in EXIF's tag 274: how the rows are to be turned.
    """

    samples: np.ndarray
    top: int = 255
    space: ColorSpace = None
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    orientation: int = 1


def check_size(width: int, height: int) -> None:
    """Raise `DataError` if a picture is empty, or too large to be honest."""
    if width < 1 or height < 1:
        raise DataError(f"{width} x {height} pixels: the picture is empty")
    if width * height > LIMIT_PX:
        raise DataError(f"{width} x {height} pixels are more than the {LIMIT_PX} that are read: scale it")


def decoder(module: str) -> Any:
    """Import a decoder that a machine which only trains need not have."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"reading this format needs the Python package {module}") from error


def by_pillow(raw: bytes, kind: str, **more: Any) -> Picture:
    """Decode by Pillow, with ICC profile and EXIF orientation; `more` replaces what it says."""
    try:
        opened = Image.open(io.BytesIO(raw), formats=[kind])
    except UnidentifiedImageError as error:
        raise DataError(f"damaged, or a kind of {kind} that is not read here") from error
    with opened as image:
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"holds {image.n_frames} frames; give a single picture")
        frame = image.tile[0][1] if kind == "GIF" and image.tile else (0, 0, *image.size)
        image.load()
        told = {"space": image.info.get("icc_profile"), "orientation": turn_of(image.getexif)}
        picture = samples_of(image, told | more)
        if frame != (0, 0, *image.size):  # a GIF's screen around its picture is transparent
            left, top, right, bottom = frame
            inside, picture.alpha = picture.alpha, np.zeros(picture.samples.shape[:2], np.uint8)
            shown = slice(top, bottom), slice(left, right)
            picture.alpha[shown] = 255 if inside is None else inside[shown]
        return picture


def samples_of(image: Image.Image, told: Mapping[str, Any]) -> Picture:
    """Return the samples of an image that Pillow has decoded; `told` are the picture's other fields."""
    mode, key = image.mode, image.info.get("transparency")
    if mode == "P" and image.format == "PNG" and np.asarray(image).max() >= len(image.palette.palette) // 3:
        raise DataError("damaged: a pixel has a colour behind its palette's end")
    if mode in ("P", "PA") or (mode == "L" and image.format == "GIF" and key is not None):
        image, mode = image.convert("RGBA"), "RGBA"
    if mode in ("1", "YCbCr"):
        image = image.convert({"1": "L"}.get(mode, "RGB"))
    elif mode not in ("L", "LA", "La", "RGB", "RGBA", "RGBa", "CMYK"):
        raise DataError(f"pixels of mode {mode} are not supported; save it as 8-bit sRGB")
    samples = np.asarray(image)
    samples = samples if samples.ndim == 3 else samples[..., None]
    if mode in ("LA", "La", "RGBA", "RGBa"):
        told = {"alpha": samples[..., -1], "premultiplied": mode[-1] == "a", **told}
        samples = samples[..., :-1]
    return Picture(samples, **told)


def split_alpha(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the colour, (H, W, 1 or 3), and the opacity, (H, W) or None, of grey or RGB samples."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    return (samples[..., :-1], samples[..., -1]) if samples.shape[2] in (2, 4) else (samples, None)


def turn_of(exif: Callable[[], Mapping[int, Any]]) -> int:
    """Return the orientation that EXIF asks for; 1 if there is none, or if its data is broken."""
    turn = field_of(exif, 274)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def field_of(exif: Callable[[], Any], tag: int, folder: int | None = None) -> Any:
    """Return a field of EXIF data, or of one of its folders; None if it is not there or broken."""
    with contextlib.suppress(Exception):  # broken metadata is no matter of the pixels
        return (exif() if folder is None else exif().get_ifd(folder)).get(tag)
    return None


def exif_of(raw: bytes) -> Callable[[], Image.Exif]:
    """Return what reads EXIF data when it is asked for."""

    def load() -> Image.Exif:
        exif = Image.Exif()
        exif.load(raw)
        return exif

    return load


def rgb_of_ycc(samples: np.ndarray, top: int) -> np.ndarray:
    """Return RGB of full-range YCbCr by ITU-R BT.601 (IEC 61966-2-1, annex F; JFIF; TIFF 6.0)."""
    y, cb, cr = np.moveaxis(samples.astype(np.float64), 2, 0)
    cb, cr = cb - (top + 1) / 2, cr - (top + 1) / 2
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(np.round(rgb), 0, top).astype(samples.dtype)
