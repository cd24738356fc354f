"""Classical codecs: round trips at any size, the stated settings, bad input, golden sizes."""

import io
import os
from dataclasses import replace
from itertools import product

import golden_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from mcml.base.errors import DataError, UsageError
from mcml.codec.classical import CODECS, QualityRange
from mcml.codec.interface import bits_per_pixel, get_codec
from mcml.data import sets as data
from mcml.data.images import read_image
from mcml.metrics import distortion as metrics

ASTRONAUT = astronaut()
CROP = golden_files.picture()
every_codec = pytest.mark.parametrize("name", CODECS)
QUICK = [
    name for name, codec in CODECS.items() if codec.options.get("speed") != 2
]  # AVIF at speed 6 for both
every_quick_codec = pytest.mark.parametrize("name", QUICK)


@every_quick_codec
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_size_at_any_quality_comes_back_in_shape(name, height, width, position, seed):
    codec = CODECS[name]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before, quality = image.copy(), codec.quality_range.at(position)
    data = codec.encode(image, quality)
    decoded = codec.decode(data)
    assert codec.encode(image, quality) == data and np.array_equal(image, before)
    assert (decoded.shape, decoded.dtype) == (image.shape, np.uint8)


@every_quick_codec
def test_both_ends_of_the_range_work_at_edge_sizes(name):
    codec = CODECS[name]
    for (height, width), end in product([(1, 1), (1, 70), (70, 1), (7, 9), (64, 64)], (0, 1)):
        image = np.ascontiguousarray(ASTRONAUT[60 : 60 + height, 170 : 170 + width])
        assert codec.decode(codec.encode(image, codec.quality_range.at(end))).shape == image.shape


@every_quick_codec
def test_bytes_and_psnr_grow_along_the_range_and_its_default_points(name):
    codec = CODECS[name]
    ends = [codec.quality_range.at(position) for position in (0, 0.25, 0.5, 0.75, 1)]
    for qualities in (ends, codec.qualities):
        files = [codec.encode(CROP, quality) for quality in qualities]
        sizes = [len(file) for file in files]
        psnr = [peak_signal_noise_ratio(CROP, codec.decode(file)) for file in files]
        assert sizes == sorted(sizes) and psnr == sorted(psnr)
        assert qualities is codec.qualities or sizes[-1] > 4 * sizes[0]


@pytest.mark.parametrize("name, sampling", [("jpeg420", 2), ("jpeg444", 0)])
@pytest.mark.parametrize("quality", [10, 30.5, 95])
def test_jpeg_file_has_the_chroma_sampling_of_its_name(name, sampling, quality):
    image = Image.open(io.BytesIO(CODECS[name].encode(CROP, quality)))
    assert image.format == "JPEG"
    assert JpegImagePlugin.get_sampling(image) == sampling


@pytest.mark.parametrize("quality", [5, 50, 75])
def test_jpeg_is_pillows_with_optimised_huffman_tables(quality):
    buffers = {optimize: io.BytesIO() for optimize in (True, False)}
    for optimize, buffer in buffers.items():
        Image.fromarray(CROP).save(buffer, "JPEG", quality=quality, subsampling=2, optimize=optimize)
    assert CODECS["jpeg420"].encode(CROP, quality) == buffers[True].getvalue()
    assert len(buffers[True].getvalue()) < len(buffers[False].getvalue())


@pytest.mark.parametrize("quality", [1, 2, 10, 49, 50, 74, 99])
def test_jpeg_tables_between_whole_qualities_lie_between_theirs(quality):
    codec = CODECS["jpeg420"]
    coarse, between, fine = (
        np.array(list(Image.open(io.BytesIO(codec.encode(CROP, q))).quantization.values()))
        for q in (quality, quality + 0.5, quality + 1)
    )
    assert (fine <= between).all() and (between <= coarse).all()
    assert (between != coarse).any() or (coarse == fine).all() or quality == 1  # clipped at 255


def test_jpeg2000_uses_the_irreversible_transform_with_colour_transform():
    """Coding style (COD) of ITU-T T.800, A.6.1: byte 8 is the colour transform, byte 13 0 for 9-7."""
    codec, image = CODECS["jpeg2000"], ASTRONAUT[:256, :256]
    raw = codec.encode(CROP, 48)
    cod = raw[raw.index(b"\xff\x52") :]
    assert (cod[8], cod[13]) == (1, 0)
    without = replace(codec, options={**codec.options, "mct": 0})
    psnr = [peak_signal_noise_ratio(image, c.decode(c.encode(image, 48))) for c in (codec, without)]
    assert psnr[0] > psnr[1] + 1  # at equal rate


@pytest.mark.parametrize("suffix", ["", "_speed6"])
@pytest.mark.parametrize("name, layout", [("avif420", (1, 1)), ("avif444", (0, 0))])
def test_avif_file_has_the_chroma_sampling_of_its_name(name, layout, suffix):
    """AV1 codec configuration box (AV1-ISOBMFF 2.3.3): subsampling flags in bits 3 and 2 of byte 2."""
    raw = CODECS[name + suffix].encode(CROP[:64, :64], 45)
    flags = raw[raw.index(b"av1C") + 4 + 2]
    assert (flags >> 3 & 1, flags >> 2 & 1) == layout


def test_avif_of_speed_2_has_fewer_bytes_and_more_psnr_than_of_speed_6():
    slow, fast = CODECS["avif444"], CODECS["avif444_speed6"]
    files = [codec.encode(CROP, 45) for codec in (slow, fast)]
    assert len(files[0]) < len(files[1])
    psnr = [peak_signal_noise_ratio(CROP, slow.decode(file)) for file in files]
    assert psnr[0] > psnr[1]


def test_avif_bytes_do_not_depend_on_the_cores_of_the_machine(monkeypatch):
    """On machines that seem to have 1 and 16 cores; Pillow's own default would cut the picture by them."""
    ours = CODECS["avif420_speed6"]
    own_default = replace(ours, options={k: v for k, v in ours.options.items() if k != "max_threads"})
    files = []
    for cores in (1, 16):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        files.append([codec.encode(ASTRONAUT, 25) for codec in (ours, own_default)])
    assert files[0][0] == files[1][0] and files[0][1] != files[1][1]


@every_codec
def test_quality_outside_the_range_is_refused_with_its_range(name):
    low, high = sorted((CODECS[name].quality_range.coarsest, CODECS[name].quality_range.finest))
    for quality in (-1, 4001, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"{name}: quality .* from {low:g} to {high:g}"):
            CODECS[name].encode(CROP, quality)
    if CODECS[name].quality_range.kind == "integer":
        with pytest.raises(UsageError, match=f"{name}: quality 30.5 is not a whole number from 0 to 100"):
            CODECS[name].encode(CROP, 30.5)


@pytest.mark.parametrize(
    "kind, ends, middle", [("integer", (0, 5), 2), ("real", (1, 2), 1.5), ("ratio", (400, 1), 20)]
)
def test_range_maps_0_to_1_from_coarsest_to_finest(kind, ends, middle):
    span = QualityRange(*ends, kind)
    assert [span.at(p) for p in (0, 0.5, 1)] == pytest.approx([ends[0], middle, ends[1]])


@every_codec
def test_what_is_not_8_bit_rgb_is_refused(name):
    empty, grey, floats = np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))
    for bad in (empty, grey, floats, [[[0, 0, 0]]]):
        with pytest.raises(DataError, match="expected"):
            CODECS[name].encode(bad, CODECS[name].qualities[0])


def test_image_larger_than_a_format_holds_is_refused_by_codec_and_size():
    with pytest.raises(DataError, match="webp: cannot encode 16384 x 1 pixels"):
        CODECS["webp"].encode(np.zeros((1, 16384, 3), np.uint8), 50)


@every_quick_codec
def test_bytes_of_another_format_and_truncated_ones_are_refused(name):
    other = CODECS["webp" if name.startswith("jpeg4") else "jpeg420"]
    raw = CODECS[name].encode(CROP, CODECS[name].qualities[2])
    cuts = [raw[: int(share * len(raw))] for share in (0.02, 0.1, 0.3)]
    for wrong in (other.encode(CROP, other.qualities[2]), b"", b"hello", *cuts):
        with pytest.raises(DataError, match=f"{name}: not a readable"):
            CODECS[name].decode(wrong)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of large or damaged headers
@every_quick_codec
def test_damaged_bytes_decode_to_pixels_or_are_refused(name):
    raw, rng = CODECS[name].encode(CROP[:48, :48], CODECS[name].qualities[2]), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(raw)
        for place in rng.integers(0, [20, 200, len(raw)]):
            damaged[place % len(raw)] = rng.integers(256)
        try:
            assert CODECS[name].decode(bytes(damaged)).dtype == np.uint8
        except DataError as error:
            assert str(error).startswith(f"{name}: ")


def test_jpeg2000_header_that_claims_a_huge_picture_is_refused():
    raw = CODECS["jpeg2000"].encode(CROP, 48)
    size = (128).to_bytes(4)
    huge = raw.replace(size + size, (60000).to_bytes(4) * 2)
    assert huge != raw
    with pytest.raises(DataError, match="jpeg2000: not a readable"):
        CODECS["jpeg2000"].decode(huge)


@every_codec
def test_bytes_and_psnr_are_the_golden_ones(name):
    """Exact bytes and PSNR within 0.01 dB; JPEG XL and AVIF, which decide by floats, 1 % and 0.1 dB."""
    table = golden_files.table("classical")
    assert set(table) == set(CODECS)
    got, golden = golden_files.measure_classical(name), table[name]
    rel, db = (0.01, 0.1) if name.startswith(("jpegxl", "avif")) else (0, 0.01)
    assert got["quality"] == golden["quality"]
    assert got["bytes"] == pytest.approx(golden["bytes"], rel=rel, abs=0)
    assert got["psnr"] == pytest.approx(golden["psnr"], abs=db)


COLUMNS = (
    "bpp", "psnr", "y_psnr", "ssim", "ms_ssim", "cmssim", "delta_e76", "ciede2000", "rgb_angle", "psnr_b",
)  # fmt: skip
REFERENCE = {  # means of the 24 Kodak pictures, measured by other code with the same settings
    ("jpeg420", 10): (0.256, 26.67, 28.08, 0.745, 0.894, 0.136, 6.87, 5.65, 3.63, 25.83),
    ("jpeg420", 35): (0.683, 31.01, 32.21, 0.873, 0.968, 0.477, 3.71, 3.02, 1.93, 30.07),
    ("jpeg2000", 80): (0.299, 29.94, 30.61, 0.798, 0.940, 0.473, 3.97, 3.25, 1.89, 30.60),
    ("webp", 15): (0.326, 29.60, 30.50, 0.820, 0.948, 0.445, 4.09, 3.31, 2.01, 30.05),
    ("avif444", 35): (0.317, 30.99, 31.60, 0.857, 0.967, 0.538, 3.33, 2.75, 1.59, None),
    ("avif444_speed6", 35): (0.319, 30.56, 31.21, 0.849, 0.964, 0.519, 3.49, 2.87, 1.68, 30.65),
    ("jpegxl", 35): (0.430, 30.47, 31.30, 0.845, 0.963, 0.551, 3.39, 2.69, 1.70, 31.00),
}
SLOW = pytest.mark.slow
ROWS = [pytest.param(*key, marks=SLOW if key[0].startswith(("avif", "jpegxl")) else ()) for key in REFERENCE]


@pytest.mark.skipif(
    not any((folder / "kodak").is_dir() for folder in data.data_folders()),
    reason="no Kodak pictures: set MCML_DATA to a folder that holds kodak/",
)
@pytest.mark.parametrize("name, quality", ROWS)
def test_a_codec_on_kodak_gives_the_reference_row_within_half_a_percent(name, quality):
    rows, used = [], get_codec(name)
    for path in data.image_set("kodak").paths:
        file = used.encode(image := read_image(path), quality)
        row = metrics.compare(image, used.decode(file))
        rows.append({"bpp": bits_per_pixel(file, image), **vars(row)})
    mean = metrics.mean_row(rows)
    expected = dict(zip(COLUMNS, REFERENCE[name, quality], strict=True))
    expected = {column: value for column, value in expected.items() if value is not None}
    assert mean["images"] == 24
    assert {column: mean[column] for column in expected} == pytest.approx(expected, rel=0.005)
