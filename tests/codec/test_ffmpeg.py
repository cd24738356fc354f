"""HEVC and VVC through ffmpeg: any size, headers, damage, and one sentence where the package is missing."""

import importlib.util
import struct
import zlib

import golden_files
import numpy as np
import pytest
from helpers import failed

from mcml.base.errors import DataError, UsageError
from mcml.codec import ffmpeg
from mcml.codec.ffmpeg import CODECS
from mcml.codec.interface import bits_per_pixel, get_codec, names
from mcml.data import sets as data
from mcml.data.images import read_image
from mcml.metrics import distortion as metrics

CROP = golden_files.picture()
every_codec = pytest.mark.parametrize("name", CODECS)
needs_ffmpeg = pytest.mark.skipif(
    not ffmpeg.is_here(), reason=f"no x265 and VVenC: pip install {ffmpeg.PACKAGE}"
)


@every_codec
def test_without_the_package_one_sentence_says_how_to_get_it(name, monkeypatch, mcml, photo_folder):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    words = f"{name}: needs ffmpeg .*`pip install imageio-ffmpeg==0.8.1` .* the extra `peers`"
    for call in (lambda: get_codec(name), lambda: CODECS[name].encode(CROP, 40)):
        with pytest.raises(DataError, match=words):
            call()
    assert name not in names()
    failed(
        mcml("evaluate", photo_folder, "--codecs", name, "--csv", "t.csv"), 1, "pip install imageio-ffmpeg"
    )


@needs_ffmpeg
@every_codec
def test_any_size_comes_back_in_shape_and_close_at_fine_quality(name):
    for height, width in ((1, 1), (1, 70), (70, 1), (7, 9), (65, 63), (66, 97)):
        image = np.ascontiguousarray(CROP[:height, :width])
        decoded = CODECS[name].decode(CODECS[name].encode(image, 14))
        assert (decoded.shape, decoded.dtype) == (image.shape, np.uint8)
        assert np.abs(decoded.astype(float) - image).mean() < (3 if name == "vvc420" else 1)


@needs_ffmpeg
@every_codec
def test_bytes_and_psnr_grow_along_the_default_points_and_a_file_is_the_same_twice(name):
    codec = CODECS[name]
    files = [codec.encode(CROP, quality) for quality in codec.qualities[1:7:2]]
    assert codec.encode(CROP, codec.qualities[1]) == files[0]
    sizes = [len(file) for file in files]
    psnr = [metrics.compare(CROP, codec.decode(file)).psnr for file in files]
    assert sizes == sorted(sizes) and psnr == sorted(psnr) and sizes[-1] > 3 * sizes[0]
    assert names()[-2:] == list(CODECS) and get_codec(name) is codec


@needs_ffmpeg
@every_codec
def test_a_file_is_a_header_of_20_bytes_and_the_encoder_s_own_stream(name):
    file = CODECS[name].encode(np.ascontiguousarray(CROP[:71, :93]), 36)
    magic, tag, width, height, check = struct.unpack(">4s4sIII", file[:20])
    assert (magic, tag.strip().decode(), width, height) == (b"MCFF", CODECS[name].format, 93, 71)
    assert check == zlib.crc32(file[20:]) and file[20:].startswith(b"\0\0\0\1")


@needs_ffmpeg
@every_codec
def test_damaged_cut_and_foreign_bytes_are_refused(name):
    file, other = CODECS[name].encode(CROP, 40), CODECS[next(n for n in CODECS if n != name)]
    rng = np.random.default_rng(0)
    damaged = []
    for place in [*range(20), *rng.integers(20, len(file), 20)]:
        wrong = bytearray(file)
        wrong[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(wrong))
    huge = file[:8] + struct.pack(">II", 2**31, 2**31) + file[16:]
    for wrong in (b"", b"hello", file[:19], file[:20], file[:-1], huge, other.encode(CROP, 40)):
        with pytest.raises(DataError, match=f"{name}: not a readable"):
            CODECS[name].decode(wrong)
    for wrong in damaged:  # a changed size that pads to the same is no damage that bytes can show
        try:
            assert CODECS[name].decode(wrong).shape != CROP.shape
        except DataError as error:
            assert str(error).startswith(f"{name}: not a readable")


@needs_ffmpeg
@every_codec
def test_a_true_checksum_over_a_stream_that_is_none_or_another_size_is_refused(name):
    file = CODECS[name].encode(CROP, 40)
    for width, body in ((128, b"no stream" * 9), (128, b""), (640, file[20:])):
        wrong = struct.pack(">4s4sIII", b"MCFF", file[4:8], width, 128, zlib.crc32(body)) + body
        with pytest.raises(DataError, match=f"{name}: not a readable"):
            CODECS[name].decode(wrong)


@needs_ffmpeg
@every_codec
def test_a_quality_outside_the_range_and_what_is_no_8_bit_rgb_are_refused(name):
    for quality in (-1, 64, float("nan")):
        with pytest.raises(UsageError, match=f"{name}: quality"):
            CODECS[name].encode(CROP, quality)
    with pytest.raises(DataError, match="expected"):
        CODECS[name].encode(CROP.astype(float), 40)


def test_planes_are_full_range_of_10_bits_and_come_back():
    colors = np.zeros((2, 6, 3), np.uint8)
    colors[:, 0], colors[:, 1], colors[:, 2, 2] = 255, 128, 255  # white, grey, blue; black
    planes = CODECS["hevc444"]._planes(colors)
    luma, cb, cr = (plane[0, :4].tolist() for plane in planes)
    assert luma == [1023, 514, 117, 0] and cb == [512, 512, 1023, 512] and cr[::3] == [512, 512]
    halved = [plane.shape for plane in CODECS["vvc420"]._planes(colors)]
    assert halved == [(2, 6), (1, 3), (1, 3)]
    raw = b"".join(plane.tobytes() for plane in planes)
    np.testing.assert_allclose(CODECS["hevc444"]._image(raw, 2, 6), colors, atol=1)


def test_doubled_chroma_keeps_flat_planes_and_slopes_between_sample_centres():
    ramp = np.tile(np.arange(6.0), (3, 1))
    doubled = ffmpeg._doubled(ramp)
    assert doubled.shape == (6, 12)
    np.testing.assert_allclose(doubled[:, 4:8], np.tile([1.75, 2.25, 2.75, 3.25], (6, 1)))
    np.testing.assert_allclose(ffmpeg._doubled(np.full((1, 1), 7.0)), np.full((2, 2), 7.0))


COLUMNS = ("bpp", "psnr", "y_psnr", "ssim", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle")
REFERENCE = {  # means of the 24 Kodak pictures, measured by other code with the same settings
    ("hevc444", 41): (0.213, 29.62, 30.33, 0.803, 0.940, 0.434, 4.04, 3.30, 1.95),
    ("vvc420", 39): (0.274, 31.31, 32.34, 0.855, 0.958, 0.490, 3.56, 2.88, 1.80),
}


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.skipif(
    not any((folder / "kodak").is_dir() for folder in data.data_folders()),
    reason="no Kodak pictures: set MCML_DATA to a folder that holds kodak/",
)
@pytest.mark.parametrize("name, quality", REFERENCE)
def test_a_codec_on_kodak_gives_the_reference_row_within_one_percent(name, quality):
    rows, codec = [], get_codec(name)
    for path in data.image_set("kodak").paths:
        file = codec.encode(image := read_image(path), quality)
        row = metrics.compare(image, codec.decode(file))
        rows.append({"bpp": bits_per_pixel(file, image), **vars(row)})
    mean = metrics.mean_row(rows)
    expected = dict(zip(COLUMNS, REFERENCE[name, quality], strict=True))
    assert {column: mean[column] for column in COLUMNS} == pytest.approx(expected, rel=0.01)
