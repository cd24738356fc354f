"""The classical codecs, each as ``encode(image, quality) -> bytes`` and ``decode(bytes)``.

Settings are stated here once. Pillow leaves JPEG 2000's colour transform off unless
``mct=1`` is given, which costs about 2 dB; its AVIF encoder cuts the picture into as many
tiles as there are threads, so it is given one thread: files are then equal everywhere.
AVIF is libaom at speed 2, the honest preset to compare with; at speed 6, Pillow's own (names
with ``_speed6``), it takes a tenth of the time and needs 13 % (PSNR) to 16 % (CIEDE2000) more bytes on Kodak.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image, features

from mcml.base.errors import DataError, UsageError
from mcml.data.images import check_rgb8


@dataclass(frozen=True)
class QualityRange:
    """A codec's quality axis: `coarsest` gives the fewest bytes, `finest` the most."""

    coarsest: float
    finest: float
    kind: Literal["integer", "real", "ratio"]  # a ratio is searched on a logarithmic axis

    def at(self, position: float) -> float:
        """Map 0 (fewest bytes) .. 1 (most) to a quality."""
        if self.kind == "ratio":
            return float(self.coarsest * (self.finest / self.coarsest) ** position)
        value = self.coarsest + (self.finest - self.coarsest) * position
        return float(round(value)) if self.kind == "integer" else value

    def check(self, quality: float, codec: str) -> float:
        """Return `quality` if it lies in the range, else raise `UsageError`."""
        low, high = sorted((self.coarsest, self.finest))
        if not low <= quality <= high or (self.kind == "integer" and quality != int(quality)):
            noun = "a whole number" if self.kind == "integer" else "a number"
            raise UsageError(f"{codec}: quality {quality} is not {noun} from {low:g} to {high:g}")
        return quality


@dataclass(frozen=True)
class PillowCodec:
    """A codec behind Pillow.

    Attributes:
        name: as in tables and on the command line.
        format: Pillow's name of the format.
        quality_range: the quality axis.
        qualities: default points of a rate-distortion curve, coarse to fine.
        options: fixed encoder options.
    """

    name: str
    format: str
    quality_range: QualityRange
    qualities: tuple[float, ...]
    options: Mapping[str, Any]

    def encode(self, image: np.ndarray, quality: float) -> bytes:
        """Compress (H, W, 3) uint8 sRGB.

        Raises:
            UsageError: if `quality` is outside the range.
            DataError: if the format cannot hold the image.
        """
        check_rgb8(image)
        quality = self.quality_range.check(quality, self.name)
        options = dict(self.options)
        if self.format == "JPEG2000":
            options["quality_layers"] = [quality]
            # OpenJPEG refuses more resolutions than halvings that the image allows
            options["num_resolutions"] = min(6, int(np.log2(min(image.shape[:2]))) + 1)
        elif self.format == "JPEG" and quality != int(quality):
            options["qtables"] = _jpeg_tables(quality)
        else:
            real = self.quality_range.kind == "real" and self.format != "JPEG"
            options["quality"] = quality if real else int(quality)
        self._load_plugin()
        buffer = io.BytesIO()
        try:
            Image.fromarray(image).save(buffer, self.format, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.name}: cannot encode {image.shape[1]} x {image.shape[0]} pixels: {error}"
            ) from error
        return buffer.getvalue()

    def encoder(self, image: np.ndarray) -> Callable[[float], bytes]:
        """Return what compresses an image at any quality."""
        return partial(self.encode, image)

    def decode(self, data: bytes) -> np.ndarray:
        """Decompress to (H, W, 3) uint8 sRGB.

        Raises:
            DataError: if the bytes are not a readable file of this format.
        """
        self._load_plugin()
        try:
            with Image.open(io.BytesIO(data), formats=[self.format]) as image:
                return np.array(image.convert("RGB"))
        except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.name}: not a readable {self.format} file ({reason})") from error

    def _load_plugin(self) -> None:
        if self.format == "JXL":
            import pillow_jxl  # noqa: F401  (registers the format)
        elif self.format == "AVIF" and not features.check("avif"):
            raise DataError(f"{self.name}: this Pillow was built without AVIF; install the locked version")


def _jpeg_tables(quality: float) -> list[list[int]]:
    """Quantisation tables between two whole qualities, by libjpeg's own scaling of Annex K's.

    libjpeg's quality is a whole number, whose steps near 1 are 10 % of the file and more.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=50)  # quality 50 is the tables as they stand
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    with Image.open(buffer) as image:
        return [
            [int(min(max((entry * percent + 50) // 100, 1), 255)) for entry in table]
            for table in image.quantization.values()
        ]


_JPEG, _JPEG_POINTS = QualityRange(1, 100, "real"), (2, 5, 10, 20, 35, 50, 75, 87)
_AVIF, _AVIF_POINTS = QualityRange(0, 100, "integer"), (0, 15, 25, 35, 45, 55, 65, 75, 85)
_420, _444 = ({"subsampling": layout, "max_threads": 1} for layout in ("4:2:0", "4:4:4"))
_RATIOS = QualityRange(4000, 1, "ratio"), (320, 240, 160, 96, 80, 48, 40, 30, 21)
_RATES = {"quality_mode": "rates", "irreversible": True, "mct": 1}
_WEBP = QualityRange(0, 100, "real"), (0, 1, 5, 15, 30, 50, 75, 87, 93)
_JXL = QualityRange(0, 99, "real"), (0, 5, 10, 20, 35, 50, 65, 80, 90)

CODECS = {
    row[0]: PillowCodec(*row)
    for row in (
        ("jpeg420", "JPEG", _JPEG, _JPEG_POINTS, {"subsampling": 2, "optimize": True}),
        ("jpeg444", "JPEG", _JPEG, _JPEG_POINTS, {"subsampling": 0, "optimize": True}),
        ("jpeg2000", "JPEG2000", *_RATIOS, _RATES),
        ("webp", "WEBP", *_WEBP, {"method": 6}),
        ("avif420", "AVIF", _AVIF, _AVIF_POINTS, _420 | {"speed": 2}),
        ("avif444", "AVIF", _AVIF, _AVIF_POINTS, _444 | {"speed": 2}),
        ("avif420_speed6", "AVIF", _AVIF, _AVIF_POINTS, _420 | {"speed": 6}),
        ("avif444_speed6", "AVIF", _AVIF, _AVIF_POINTS, _444 | {"speed": 6}),
        ("jpegxl", "JXL", *_JXL, {"effort": 7, "num_threads": 1}),
    )
}
