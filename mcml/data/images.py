"""Read any photograph as 8-bit sRGB, or refuse it with a sentence; write PNG atomically."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mcml.base.errors import DataError
from mcml.base.files import atomic_write, is_seen, read_bytes, sha256
from mcml.data.color import to_srgb
from mcml.data.formats import open_picture

EXTENSIONS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".webp", ".avif", ".jxl",
    ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".heic", ".heif", ".hif",
})  # fmt: skip


Color = tuple[int, int, int]
TURNS = {  # EXIF 2.32, tag 274
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}  # fmt: skip


def read_image(path: str | Path, background: Color | None = None) -> np.ndarray:
    """Read a file as the sRGB picture that a colour-managed viewer shows.

    Colours are what the file's standard says they are (`mcml.data.formats`), converted by relative
    colorimetry and clipped in linear light (`mcml.data.color`); the orientation is followed. What has no
    single right reading is refused: high dynamic range, transparent pixels without a `background`,
    animations and several pages, CMYK without a profile, floating-point and signed pixels. Damage is
    refused, also where a decoder would fill the rest with grey. A background (sRGB, 0..255) is mixed in as
    browsers do it: in sRGB values, not in linear light.

    Returns:
        (H, W, 3) uint8, sRGB, 0..255.

    Raises:
        DataError: naming the file and the reason.
    """
    return decode_image(read_bytes(Path(path)), str(path), background)


def decode_image(raw: bytes, name: str = "image", background: Color | None = None) -> np.ndarray:
    """Decode the bytes of an image file as `read_image` does; `name` stands in its errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about metadata
            if not raw:
                raise DataError("the file is empty")
            picture = open_picture(raw)
            is_opaque = picture.alpha is None or (picture.alpha == picture.top).all()
            alpha = None if is_opaque else picture.alpha / picture.top
            if alpha is not None and background is None:
                advice = (
                    "flatten it, or name what is behind them by --background white where a command takes it"
                )
                raise DataError(f"has transparent pixels: {advice}")
            samples = picture.samples
            if alpha is not None and picture.premultiplied:
                whole = samples / np.maximum(alpha, 1e-9)[..., None]
                samples = np.minimum(np.round(whole), picture.top).astype(samples.dtype)
            image = to_srgb(samples, picture.top, picture.space)
        if alpha is not None:
            image = np.round(background + alpha[..., None] * (image - np.array(background, np.float64)))
        turned = TURNS.get(picture.orientation, np.asarray)(image)
        return np.array(turned, np.uint8, order="C")
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{name}: too large for this machine's memory") from error
    except BaseException as error:  # a decoder's, whichever; some are written in Rust, and panic
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: damaged or not readable as an image ({reason})") from error


def check_rgb8(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Return `image` if it is a non-empty (H, W, 3) uint8 array, else raise `DataError`."""
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    got = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise DataError(f"{name}: expected (H, W, 3) uint8 sRGB, got {got}")


def write_png(path: str | Path, image: np.ndarray, *, overwrite: bool = True) -> None:
    """Write (H, W, 3) uint8 sRGB as PNG, atomically: see `atomic_write`."""
    buffer = io.BytesIO()
    Image.fromarray(check_rgb8(image)).save(buffer, "PNG")
    atomic_write(Path(path), buffer.getvalue(), overwrite=overwrite)


def check_stems(paths: Sequence[Path]) -> None:
    """Raise `DataError` if two files have one stem: tables tell images by it."""
    counts = sorted(Counter(path.stem for path in paths).items())
    twice = ", ".join(stem for stem, count in counts if count > 1)
    if twice:
        raise DataError(f"two images are named {twice}: rename one, tables tell images by their stem")


def data_digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 over files' names and bytes, in hex: equal digests, equal data, in any order."""
    lines = sorted(f"{path.name} {sha256(path)}\n" for path in paths)
    return sha256("".join(lines).encode("utf-8", "surrogateescape"))


def list_images(folder: str | Path) -> list[Path]:
    """Return the image files directly inside `folder`, hidden ones left out, sorted by name.

    `DataError` if the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(p for p in folder.iterdir() if is_seen(p, EXTENSIONS))
    if not paths:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(EXTENSIONS))})")
    return paths
