"""Read any photograph as 8-bit sRGB, or refuse it with a sentence; write PNG atomically."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from mcml.base.errors import DataError
from mcml.base.files import atomic_write, is_seen, read_bytes, sha256

EXTENSIONS = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".j2k", ".webp", ".avif", ".jxl",
    ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".gif",
})  # fmt: skip


WITH_ALPHA = ("PA", "P", "LA", "La", "RGBA", "RGBa")
Color = tuple[int, int, int]


def read_image(path: str | Path, background: Color | None = None) -> np.ndarray:
    """Read a file as the sRGB picture that a colour-managed viewer shows.

    Grey, palette, 16-bit grey and CMYK are converted, an embedded ICC profile is applied,
    the EXIF orientation is followed. What has no single right reading is refused: partly
    transparent pictures without a `background` (sRGB, 0..255), animations, CMYK without a
    profile, floating-point pixels, and colour of 16 bits a channel in PNG, TIFF and PPM (Pillow
    would cut it to 8 without a word). JPEG 2000, JPEG XL and AVIF files deeper than 8 bits are
    rounded to 8 by their decoders; a PNG's gamma chunk without a profile is not applied. A
    background is mixed in as browsers do it: in sRGB values, not in linear light.

    Returns:
        (H, W, 3) uint8, sRGB, 0..255.

    Raises:
        DataError: naming the file and the reason.
    """
    return decode_image(read_bytes(Path(path)), str(path), background)


def decode_image(raw: bytes, name: str = "image", background: Color | None = None) -> np.ndarray:
    """Decode the bytes of an image file as `read_image` does; `name` stands in its errors."""
    if raw[:2] == b"\xff\x0a" or raw[4:8] == b"JXL ":
        import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw)) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise DataError(f"{name}: holds {image.n_frames} frames; give a single picture")
                if _cut_by_pillow(image, raw):
                    raise DataError(f"{name}: 16 bits per channel, or an odd depth: save it with 8 bits")
                image.load()
                return np.array(_to_srgb(image, name, background))
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image that can be read here") from error
    except (OSError, RuntimeError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name}: damaged or not readable as an image ({reason})") from error


def _cut_by_pillow(image: Image.Image, raw: bytes) -> bool:
    """Say whether Pillow would silently keep only the upper 8 bits of each sample."""
    if image.format == "PNG":  # IHDR: bit depth, then colour type; grey alone keeps 16 bits
        return raw[24] == 16 and raw[25] != 0
    if image.format == "TIFF":  # bits of each sample, and whether 0 is white
        depths = set(image.tag_v2.get(258, (8,)))
        inverted = image.tag_v2.get(262) == 0
        grey16 = depths == {16} and image.mode.startswith("I;16") and not inverted
        return not (depths <= {1, 2, 4, 8} or grey16 or image.mode in ("I", "F"))
    if image.format == "PPM":
        header = re.match(rb"P[36](?:\s|#.*\n)+\d+(?:\s|#.*\n)+\d+(?:\s|#.*\n)+(\d+)", raw)
        return header is not None and int(header[1]) > 255
    return False


def _to_srgb(image: Image.Image, name: str, background: Color | None) -> Image.Image:
    profile = image.info.get("icc_profile")
    grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    image = ImageOps.exif_transpose(image)
    alpha = _transparency(image, grey16)
    if alpha is not None and background is None:
        advice = "name what is behind them, as `--background white`, or flatten it first"
        raise DataError(f"{name}: has transparent pixels: {advice}")
    image = _flatten(image, name, grey16)
    if image.mode == "CMYK" and not profile:
        raise DataError(f"{name}: CMYK without an ICC profile has no defined colours; convert it to sRGB")
    if profile:
        image = _apply_profile(image, profile, name)
    image = image.convert("RGB")
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, background), alpha)


def _transparency(image: Image.Image, grey16: bool) -> Image.Image | None:
    """Return the alpha channel, mode L, if not all is opaque."""
    alpha = None
    if grey16 and "transparency" in image.info:
        alpha = Image.fromarray(np.uint8(255) * (np.asarray(image) != image.info["transparency"]))
    elif not grey16 and (image.mode in WITH_ALPHA or "transparency" in image.info):
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha is None or alpha.getextrema()[0] == 255 else alpha


def _flatten(image: Image.Image, name: str, grey16: bool) -> Image.Image:
    """Reduce a mode to one of L, RGB or CMYK with 8 bits, without losing anything visible."""
    if grey16:
        return Image.fromarray(np.round(np.asarray(image, np.float64) / 257).astype(np.uint8))
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        return image.convert("RGBA").convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise DataError(f"{name}: pixels of mode {image.mode} are not supported; save it as 8-bit sRGB")
    return image.convert({"1": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode, "RGB"))


def _apply_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")  # grey pixels under a colour profile: common, and well defined
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        black = ImageCms.Flags.BLACKPOINTCOMPENSATION
        to_srgb = ImageCms.buildTransform(source, srgb, image.mode, "RGB", intent, black)
        if image.mode == "RGB":
            axis = np.linspace(0, 255, 9).round().astype(np.uint8)
            cube = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3)
            moved = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), to_srgb))
            if np.abs(moved.astype(int) - cube).max() <= 1:
                return image  # sRGB under whatever name: the engine would only add rounding
        return ImageCms.applyTransform(image, to_srgb)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise DataError(f"{name}: its ICC profile cannot be applied to {image.mode} pixels") from error


def check_rgb8(image: np.ndarray, name: str = "image") -> np.ndarray:
    """Return `image` if it is a non-empty (H, W, 3) uint8 array, else raise `DataError`."""
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    got = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise DataError(f"{name}: expected (H, W, 3) uint8 sRGB, got {got}")


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 sRGB as PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(check_rgb8(image)).save(buffer, "PNG")
    atomic_write(Path(path), buffer.getvalue())


def check_stems(paths: Sequence[Path]) -> None:
    """Raise `DataError` if two files have one stem: tables tell images by it."""
    counts = sorted(Counter(path.stem for path in paths).items())
    twice = ", ".join(stem for stem, count in counts if count > 1)
    if twice:
        raise DataError(f"two images are named {twice}: rename one, tables tell images by their stem")


def data_digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 over files' names and bytes, in hex: equal digests, equal data, in any order."""
    lines = sorted(f"{path.name} {sha256(path)}\n" for path in paths)
    return sha256("".join(lines).encode())


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
