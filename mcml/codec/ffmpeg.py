"""Two peers that no Python library has, HEVC and VVC, through the ffmpeg of the package imageio-ffmpeg.

That is a GPL build, run as a process of its own and never needed: the package is the extra ``peers``.
Encoders get planes of full-range BT.601 Y'CbCr in 10 bits, made here, and code one intra picture;
their bytes follow a header of 20: "MCFF", the name's four letters, width, height and CRC-32 (big-endian).
"""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from mcml.base.errors import DataError
from mcml.codec.classical import QualityRange
from mcml.data.images import check_rgb8
from mcml.metrics.color import rgb_to_ycbcr, to_uint8, ycbcr_to_rgb

PACKAGE = "imageio-ffmpeg==0.8.1"
HEADER = struct.Struct(">4s4sIII")
PEAK, MIDDLE, OFFSET = 1023, 512, (0, 128, 128)  # of 10 bits; of 8 bits as the metrics have them
SMALLEST_PX = 64  # smaller pictures are padded: both encoders refuse sides under 16
MOST_PIXELS = 2**28


@dataclass(frozen=True)
class FfmpegCodec:
    """A video encoder's intra pictures.

    Attributes:
        name: as in tables and on the command line.
        format: ffmpeg's name of the stream.
        quality_range: the encoder's quantisation parameter.
        qualities: points of a rate-distortion curve, coarse to fine.
        is_halved: whether chroma has half the resolution each way.
        options: the encoder's, with the quality in place of ``{}``.
    """

    name: str
    format: str
    quality_range: QualityRange
    qualities: tuple[float, ...]
    is_halved: bool
    options: str

    def encode(self, image: np.ndarray, quality: float) -> bytes:
        """Compress (H, W, 3) uint8 sRGB.

        Raises:
            UsageError: if `quality` is outside the range.
            DataError: without the package, or if the encoder refuses the image.
        """
        height, width = check_rgb8(image).shape[:2]
        options = self.options.format(f"{self.quality_range.check(quality, self.name):g}").split()
        if height * width > MOST_PIXELS:
            raise DataError(f"{self.name}: cannot encode {width} x {height} pixels: more than {MOST_PIXELS}")
        rows, columns = self._padded(height, width)
        padding = ((0, rows - height), (0, columns - width), (0, 0))
        planes = self._planes(np.pad(image, padding, mode="edge"))
        raw = ("-f", "rawvideo", "-pix_fmt", self._pixels, "-color_range", "pc", "-s", f"{columns}x{rows}")
        written = ("-frames:v", "1", *options, "-f", self.format)
        body, said = self._run(raw, written, b"".join(plane.tobytes() for plane in planes))
        if not body:
            raise DataError(f"{self.name}: cannot encode {width} x {height} pixels: {said}")
        return HEADER.pack(b"MCFF", self._tag, width, height, zlib.crc32(body)) + body

    def encoder(self, image: np.ndarray) -> Callable[[float], bytes]:
        """Return what compresses an image at any quality."""
        return partial(self.encode, image)

    def decode(self, data: bytes) -> np.ndarray:
        """Decompress to (H, W, 3) uint8 sRGB.

        Raises:
            DataError: without the package, or if the bytes are not a whole file of this codec.
        """
        unreadable = f"{self.name}: not a readable {self.format} file"
        if len(data) < HEADER.size:
            raise DataError(f"{unreadable} (too short)")
        magic, tag, width, height, check = HEADER.unpack_from(data)
        body = data[HEADER.size :]
        if (magic, tag) != (b"MCFF", self._tag) or not 0 < width * height <= MOST_PIXELS:
            raise DataError(f"{unreadable} (another header)")
        if zlib.crc32(body) != check:
            raise DataError(f"{unreadable} (damaged)")
        rows, columns = self._padded(height, width)
        limit = str((rows + SMALLEST_PX) * (columns + SMALLEST_PX))  # coded sizes are rounded up
        read = ("-max_pixels", limit, "-f", self.format)
        written = ("-frames:v", "1", "-f", "rawvideo", "-pix_fmt", self._pixels)
        raw, said = self._run(read, written, body)
        if len(raw) != rows * columns * (3 if self.is_halved else 6):
            raise DataError(f"{unreadable} ({said or 'another size than its header says'})")
        return np.ascontiguousarray(self._image(raw, rows, columns)[:height, :width])

    @property
    def _tag(self) -> bytes:
        return self.format.encode().ljust(4)

    @property
    def _pixels(self) -> str:
        return "yuv420p10le" if self.is_halved else "yuv444p10le"

    @staticmethod
    def _padded(height: int, width: int) -> tuple[int, int]:
        return max(height + height % 2, SMALLEST_PX), max(width + width % 2, SMALLEST_PX)

    def _planes(self, image: np.ndarray) -> list[np.ndarray]:
        """Return Y, Cb, Cr in 10 bits; halved chroma is the mean of 2 x 2."""
        luma, *chroma = np.moveaxis((rgb_to_ycbcr(image) - OFFSET) * (PEAK / 255), -1, 0)
        if self.is_halved:
            rows, columns = image.shape[0] // 2, image.shape[1] // 2
            chroma = [plane.reshape(rows, 2, columns, 2).mean(axis=(1, 3)) for plane in chroma]
        planes = (luma, *(plane + MIDDLE for plane in chroma))
        return [np.clip(np.rint(plane), 0, PEAK).astype("<u2") for plane in planes]

    def _image(self, raw: bytes, rows: int, columns: int) -> np.ndarray:
        """Return (rows, columns, 3) uint8 sRGB of what the decoder wrote."""
        values = np.frombuffer(raw, "<u2").astype(np.float64)
        luma, chroma = values[: rows * columns].reshape(rows, columns), values[rows * columns :]
        if self.is_halved:
            planes = [_doubled(plane) for plane in chroma.reshape(2, rows // 2, columns // 2)]
        else:
            planes = list(chroma.reshape(2, rows, columns))
        ycbcr = np.stack([luma, *(plane - MIDDLE for plane in planes)], axis=-1) * (255 / PEAK) + OFFSET
        return to_uint8(ycbcr_to_rgb(ycbcr))

    def _run(self, read: tuple[str, ...], written: tuple[str, ...], data: bytes) -> tuple[bytes, str]:
        """Send bytes through ffmpeg; return what it wrote and the first line that it said."""
        command = [executable(self.name), "-hide_banner", "-loglevel", "error"]
        command += [*read, "-threads", "1", "-i", "pipe:0", "-threads", "1", *written, "pipe:1"]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return done.stdout, said[0] if said else ""


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Double a plane's resolution each way by cubics (Catmull-Rom) a quarter of a sample off the centres."""
    weights = (-0.0703125, 0.8671875, 0.2265625, -0.0234375)
    for axis in (0, 1):
        place = np.arange(length := plane.shape[axis])
        halves = [
            sum(
                weight * np.take(plane, np.clip(place + side * step, 0, length - 1), axis)
                for step, weight in enumerate(weights, start=-1)
            )
            for side in (-1, 1)
        ]
        plane = np.stack(halves, axis + 1).reshape([n * (1 + (i == axis)) for i, n in enumerate(plane.shape)])
    return plane


def is_here() -> bool:
    """Say whether the package is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def executable(codec: str) -> str:
    """Return the path of ffmpeg; `DataError` without the package, or without its build for this machine."""
    if not is_here():
        needed = f"`pip install {PACKAGE}` (68 MB, the extra `peers`)"
        raise DataError(f"{codec}: needs ffmpeg with x265 and VVenC, which is not here: {needed}")
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise DataError(f"{codec}: {PACKAGE} has no ffmpeg for this machine ({error})") from error


_X265 = "-c:v libx265 -preset veryslow -tune psnr -crf {} -x265-params "
_X265 += "log-level=error:info=0:keyint=1:pools=none:frame-threads=1"
_VVENC = "-c:v libvvenc -preset medium -qpa 0 -qp {}"

CODECS = {
    row[0]: FfmpegCodec(*row)
    for row in (
        ("hevc444", "hevc", QualityRange(51, 0, "real"), (51, 46, 41, 36, 32, 28, 24, 20), False, _X265),
        ("vvc420", "vvc", QualityRange(63, 0, "integer"), (56, 50, 44, 39, 34, 29, 24, 19), True, _VVENC),
    )
}
