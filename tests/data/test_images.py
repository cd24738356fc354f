"""What is read as which sRGB pixels, and what is refused with which sentence."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  (registers JPEG XL for writing)
import pytest
import tifffile
from helpers import icc
from PIL import Image, ImageCms
from skimage import data

from mcml.base.errors import DataError
from mcml.data.images import check_rgb8, decode_image, list_images, read_image, write_png

PHOTO = np.ascontiguousarray(data.astronaut()[60:108, 170:234])
FORMATS = ["PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "JXL", "TIFF", "BMP", "PPM"]


def saved(image, kind="PNG", **options):
    """Bytes of a Pillow image or an array in a format."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, colour_type, samples, *, bits=16, chunk=b""):
    """A one-row PNG written by hand, for what Pillow cannot write; `chunk` goes before the pixels."""

    def packed(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    row = b"\0" + np.array(samples, ">u2" if bits == 16 else "u1").tobytes()
    header = struct.pack(">IIBBBBB", width, 1, bits, colour_type, 0, 0, 0)
    parts = [packed(b"IHDR", header), chunk and packed(chunk[:4], chunk[4:])]
    parts += [packed(b"IDAT", zlib.compress(row)), packed(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def srgb_of_linear(values):
    """IEC 61966-2-1: 8-bit sRGB of linear light given as 0..255."""
    x = np.asarray(values) / 255
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


# ------------------------------------------------------------------------------ what is read


def test_8_bit_rgb_png_is_read_as_it_stands(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(PHOTO))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        got = read_image(path)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, PHOTO)
        got[0, 0] = 0  # the caller's own, writable


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    got = decode_image(saved(PHOTO, kind))
    assert got.shape == PHOTO.shape
    assert np.abs(got.astype(int) - PHOTO).mean() < 12


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white_become_three_equal_channels(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    expected = np.array(image.convert("L"))
    np.testing.assert_array_equal(decode_image(saved(image)), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palette_is_looked_up(kind):
    image = Image.fromarray(PHOTO).quantize(16)
    expected = np.array(image.getpalette()).reshape(-1, 3)[np.array(image)]
    np.testing.assert_array_equal(decode_image(saved(image, kind)), expected)


def test_opaque_alpha_is_dropped():
    opaque = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(saved(opaque)), PHOTO)
    grey = Image.fromarray(PHOTO).convert("LA")
    np.testing.assert_array_equal(decode_image(saved(grey))[..., 0], np.array(grey)[..., 0])


def test_colour_key_that_no_pixel_has_is_dropped_and_one_that_a_pixel_has_refused():
    unused = png(2, 2, [1, 2, 3, 4, 5, 6], bits=8, chunk=b"tRNS\0\x09\0\x09\0\x09")
    assert decode_image(unused).tolist() == [[[1, 2, 3], [4, 5, 6]]]
    with pytest.raises(DataError, match="transparent"):
        decode_image(png(2, 2, [1, 2, 3, 4, 5, 6], bits=8, chunk=b"tRNS\0\x04\0\x05\0\x06"))


WIDE = [0, 128, 129, 300, 0x80FF, 0xFF00, 0xFFFF]
NARROW = [0, 0, 1, 1, 128, 254, 255]  # round(v / 257)


@pytest.mark.parametrize(
    "raw",
    [
        png(7, 0, WIDE),
        saved(np.array([WIDE], np.uint16)),
        saved(np.array([WIDE], np.uint16), "TIFF"),
        b"P5 7 1 65535\n" + np.array(WIDE, ">u2").tobytes(),
        png(7, 0, WIDE, chunk=b"tRNS\0\x07"),
    ],
    ids=["by hand", "Pillow PNG", "TIFF", "PGM", "with unused colour key"],
)
def test_16_bit_grey_is_divided_by_257_and_rounded(raw):
    assert decode_image(raw)[0].tolist() == [[v] * 3 for v in NARROW]


DEEP = {  # the pixel that is read
    "16-bit colour": (lambda: png(1, 2, [0xFF00, 257, 384]), [254, 1, 1]),
    "16-bit colour, opaque": (lambda: png(1, 6, [300, 0x80FF, 3, 0xFFFF]), [1, 128, 0]),
    "16-bit grey, opaque": (lambda: png(1, 4, [0x80FF, 0xFFFF]), [128] * 3),
    "12-bit grey": (lambda: tiff(2056, bits=12), [128] * 3),
    "16-bit grey where 0 is white": (lambda: tiff(0x80FF, bits=16, photometric=0), [127] * 3),
    "16-bit colour in PPM": (lambda: b"P6 1 1 65535\n\xff\x00\x01\x01\x01\x80", [254, 1, 1]),
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_samples_are_scaled_by_their_own_white_and_rounded(case):
    make, expected = DEEP[case]
    assert decode_image(make()).tolist() == [[expected]]


PATTERN = np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)
UPRIGHT = {  # EXIF 2.32, tag 274: what a viewer does with the stored pixels
    1: PATTERN,
    2: PATTERN[:, ::-1],
    3: PATTERN[::-1, ::-1],
    4: PATTERN[::-1],
    5: PATTERN.transpose(1, 0, 2),
    6: np.rot90(PATTERN, -1),
    7: PATTERN.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(PATTERN),
}


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_followed(kind, options, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    got = decode_image(saved(PATTERN, kind, exif=exif, **options))
    np.testing.assert_array_equal(got, UPRIGHT[orientation])


@pytest.mark.parametrize("kind", ["AVIF", "JPEG"])
def test_exif_orientation_of_lossy_formats_turns_once(kind):
    exif = Image.Exif()
    exif[274] = 6
    got = decode_image(saved(PHOTO, kind, exif=exif.tobytes(), quality=95))
    assert got.shape == (64, 48, 3)
    assert np.abs(got.astype(int) - np.rot90(PHOTO, -1)).mean() < 8


@pytest.mark.parametrize(
    "profile, pixels, linear",
    [
        ("exchanged", PHOTO, PHOTO[..., [1, 0, 2]]),
        ("linear", PHOTO, PHOTO),  # its name says sRGB, as GIMP's "Linear sRGB" does
        ("grey", PHOTO[..., 0], PHOTO[..., :1]),
    ],
)
def test_icc_profile_is_applied_whatever_its_name(profile, pixels, linear):
    got = decode_image(saved(pixels, icc_profile=icc(profile)))
    assert np.abs(got - srgb_of_linear(linear)).max() <= 2


def test_icc_profile_of_srgb_itself_changes_nothing_of_colour_or_grey():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode_image(saved(PHOTO, icc_profile=profile)), PHOTO)
    grey = np.full((2, 2), 77, np.uint8)
    assert decode_image(saved(grey, icc_profile=profile))[0, 0].tolist() == [77] * 3


def banded(height=600, width=801):
    """A photograph between black bands, as a film's frame."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[100:500] = data.coffee()[:, :600].repeat(2, 1)[:, :width]
    return picture


def dotted(pitch, dark=0):
    """A sheet of dots at a pitch."""
    sheet = np.full((600, 800, 3), 255, np.uint8)
    sheet[::pitch, ::pitch] = dark
    return sheet


def checked(pitch):
    """A board of light squares, as editors show behind what is transparent."""
    y, x = np.mgrid[:600, :801] // pitch
    return np.where((x + y)[..., None] % 2, 204, 255).astype(np.uint8).repeat(3, -1)


@pytest.mark.parametrize("method", [0, 1, 4])
@pytest.mark.parametrize(
    "make", [banded, lambda: dotted(97), lambda: checked(60)], ids=["bands", "dots", "board"]
)
def test_lossless_webp_with_flat_areas_is_sound(make, method):  # Chrome and Android write method 0
    picture = make()
    raw = saved(picture, "WEBP", lossless=True, method=method)
    np.testing.assert_array_equal(decode_image(raw), picture)


@pytest.mark.parametrize("pattern", [checked(4), dotted(4, 153), dotted(8, 153), dotted(32), checked(64)],
                         ids=["board 4", "dots 4", "dots 8", "dots 32", "board 64"])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"codeblock_size": (32, 32)}], ids=str)
def test_jpeg_2000_of_regular_patterns_is_sound(pattern, options):
    np.testing.assert_array_equal(decode_image(saved(pattern, "JPEG2000", **options)), pattern)


def jpeg_of_odd_sampling():
    """A mid-grey JPEG of three blocks of luminance to one of each colour, which TurboJPEG does not know."""
    raw = saved(np.full((8, 24, 3), 128, np.uint8), "JPEG", subsampling=0)
    place = raw.index(b"\xff\xc0") + 11
    start = raw.index(b"\xff\xda") + 14
    bits = "001010" * 3 + "0000" * 2  # ITU-T T.81, K.3: no difference, end of block
    body = int(bits + "1" * (-len(bits) % 8), 2).to_bytes(4)
    return raw[:place] + b"\x31" + raw[place + 1 : start] + body + b"\xff\xd9"


def test_heic_with_zeros_in_a_further_pictures_metadata_is_read():
    exif = Image.Exif()
    exif.get_ifd(0x8769)[37500] = bytes(900)  # a maker's note
    file = pillow_heif.HeifFile()
    for part, told in ((PHOTO, b""), (PHOTO[::2, ::2], exif.tobytes())):
        picture = Image.fromarray(part)
        picture.info |= {"exif": told} if told else {}
        file.add_from_pillow(picture)
    buffer = io.BytesIO()
    file.save(buffer, quality=90)
    assert np.abs(decode_image(buffer.getvalue()).astype(int) - PHOTO).mean() < 12


def changed(raw, old, new):
    """A JPEG with bytes of its header replaced."""
    assert raw.count(old) == 1
    return raw.replace(old, new)


ODD_HEADERS = {
    "a JFIF of version 2.01": lambda raw: changed(raw, b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "an unknown transform of Adobe's": lambda raw: (
        raw[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\3" + raw[20:]
    ),
    "a scan of no coefficients": lambda raw: changed(raw, b"\3\x11\0\x3f\0", b"\3\x11\0\0\0"),
    "a scan of 65 coefficients": lambda raw: changed(raw, b"\3\x11\0\x3f\0", b"\3\x11\0\x40\0"),
    "a sampling of 3 to 1": lambda _: jpeg_of_odd_sampling(),
}


@pytest.mark.parametrize("case", ODD_HEADERS)
def test_jpeg_with_a_header_that_libjpeg_only_warns_of_is_read(case):
    raw = ODD_HEADERS[case](saved(PHOTO, "JPEG", quality=90))
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(raw), expected)


# --------------------------------------------------------------------------- what is refused


def transparent():
    alpha = np.full(PHOTO.shape[:2], 255, np.uint8)
    alpha[5, 5] = 254
    return saved(np.dstack([PHOTO, alpha]))


def animation(kind):
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def tiff(value, bits, photometric=1):
    """A TIFF of one grey pixel, written by hand: Pillow writes neither of these kinds."""
    entries = [(256, 3, 1), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 3, 1), (279, 4, 2)]
    pixel = value.to_bytes(2, "little") if bits == 16 else (value << 4).to_bytes(2, "big")
    directory = struct.pack("<H", len(entries))
    for tag, kind, number in entries:
        directory += struct.pack("<HHII", tag, kind, 1, number)  # little-endian: a short comes first
    return b"II*\0" + struct.pack("<I", 10) + pixel + directory + bytes(4)


def bands(count):
    """A TIFF of `count` bands, none of which is said to be red, green or blue."""
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((5, 6, count), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    return buffer.getvalue()


def overfull(extra):
    """A PNG with rows behind its last."""
    raw = png(2, 2, [1, 2, 3, 4, 5, 6], bits=8)
    start = raw.index(b"IDAT") + 4
    size = int.from_bytes(raw[start - 8 : start - 4])
    data = zlib.compress(zlib.decompress(raw[start : start + size]) + bytes(extra))
    packed = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return raw[: start - 8] + packed + raw[start + size + 4 :]


REFUSED = {
    "transparent": (transparent, "has transparent pixels"),
    "16-bit grey with transparency": (lambda: png(1, 0, [7], chunk=b"tRNS\0\x07"), "has transparent pixels"),
    "cmyk": (lambda: saved(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"), "CMYK without an ICC profile"),
    "animated gif": (lambda: animation("GIF"), "holds 2 frames"),
    "animated png": (lambda: animation("PNG"), "holds an animation"),
    "two pages": (lambda: animation("TIFF"), "holds 2 pages"),
    "float": (lambda: saved(np.zeros((2, 2), np.float32), "TIFF"), "floating-point"),
    "bands of no said colour": (lambda: bands(4), "photometric 1, 4 samples"),
    "more rows than the header says": (lambda: overfull(9 << 20), "fewer or more"),
    "profile of another kind": (
        lambda: saved(PHOTO, icc_profile=icc("grey")),
        "ICC profile cannot be applied",
    ),
    "broken profile": (lambda: saved(PHOTO, icc_profile=b"not a profile"), "ICC profile cannot be applied"),
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"hello, I am a letter\n", "not an image"),
    "truncated": (lambda: saved(PHOTO)[:2000], "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_sentence_that_names_the_file(tmp_path, case):
    make, reason = REFUSED[case]
    path = tmp_path / "photo.img"
    path.write_bytes(make())
    with pytest.raises(DataError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_truncated_file_of_any_format_is_refused_by_name(kind, share):
    raw = saved(PHOTO, kind)
    with pytest.raises(DataError, match=r"^photo: [^\n]*$"):
        decode_image(raw[: int(share * len(raw))], "photo")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged tags
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_are_read_or_refused_but_never_crash(kind):
    raw, rng = saved(PHOTO, kind), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(raw)
        for place in rng.integers(0, [20, 200, len(raw)]):
            damaged[place % len(raw)] = rng.integers(256)
        try:
            check_rgb8(decode_image(bytes(damaged)))
        except DataError as error:
            assert str(error).startswith("image: ")


def test_missing_file_and_folder_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


# ---------------------------------------------------------------------- folders and writing


def test_list_images_gives_sorted_image_files_only(tmp_path):
    names = ["a.jxl", "b.PNG", "c.jpg", "d.jp2", "e.webp", "f.avif"]
    for name in (*names[::-1], "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == names
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_list_images_refuses_a_missing_and_an_empty_folder_by_name(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=rf"{tmp_path}: holds no image \(\.avif"):
        list_images(tmp_path)


def test_write_png_reads_back_and_a_bad_array_keeps_what_was_there(tmp_path):
    write_png(tmp_path / "new" / "a.png", PHOTO)
    with pytest.raises(DataError, match=r"expected .* uint8"):
        write_png(tmp_path / "new" / "a.png", PHOTO.astype(float))
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), PHOTO)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
