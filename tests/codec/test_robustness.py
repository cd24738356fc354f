"""Damaged, cut, forged and foreign files: always a sentence, never a wrong picture or a crash."""

import io
import itertools
import struct
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mcml.base.errors import CorruptStreamError, UnsupportedStreamError
from mcml.codec import container
from mcml.codec.learned import codec_of

REFUSALS = (CorruptStreamError, UnsupportedStreamError)
OPTIONS = {"uniform": {}, "adaptive": {"adaptive": True, "layers": 3}}


@pytest.fixture(scope="module")
def crop(astronaut):
    return np.ascontiguousarray(astronaut[40:80, 60:108])


@pytest.fixture(scope="module", params=OPTIONS)
def whole(request, fusion, crop):
    """A file of 48 x 40 pixels and what it decodes to."""
    data = fusion.encode(crop, 80, **OPTIONS[request.param])
    return data, fusion.decode(data)


def refusal(fusion, data, picture=None, **options):
    """Return why a file is refused; one that decodes must decode to the undamaged picture."""
    try:
        image = fusion.decode(data, **options)
    except REFUSALS as error:
        text = str(error)
        assert 10 < len(text) < 300 and "\n" not in text and not text.endswith(".") and "Error" not in text
        return text
    assert picture is not None and np.array_equal(image, picture), "a damaged file gave a picture"
    return ""


def repaired(header, chunks):
    """Join raw (length, bytes) pairs with the checksums that they should have."""
    data, covered = header, header
    for length, chunk in chunks:
        covered += length + chunk
        data += length + chunk + zlib.crc32(covered).to_bytes(4, "little")
    return data


# ------------------------------------------------------------------------------------- damage


def test_every_flip_of_a_single_bit_is_refused(fusion, whole):
    data, _ = whole
    for position, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        assert refusal(fusion, bytes(damaged)), (position, bit)


def test_every_truncation_is_refused(fusion, whole):
    data, _ = whole
    for cut in range(len(data)):
        assert refusal(fusion, data[:cut]), cut


def test_partial_reading_of_flipped_files_is_refused_or_gives_the_chunks_of_a_prefix(fusion, whole):
    """And those, whichever they are, to the picture of that prefix."""
    data, _ = whole
    header, chunks = container.read(data)
    prefixes = set()
    for position, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        try:
            read, parts = container.read(bytes(damaged), partial=True)
        except REFUSALS:
            continue
        assert parts == chunks[: len(parts)] and (read == header or not parts), (position, bit)
        if len(parts) not in prefixes:  # once each
            prefixes.add(len(parts))
            cut, picture = container.write(header, parts), None
            if header.shows(len(parts)):
                picture = fusion.decode(cut, partial=True)
            assert bool(refusal(fusion, bytes(damaged), picture, partial=True)) == (picture is None)
    assert prefixes == set(range(len(chunks)))


@pytest.mark.parametrize("kind", ["overwritten", "removed", "inserted", "zeroed", "swapped"])
def test_random_damage_to_many_bytes_is_refused(fusion, whole, kind):
    data, picture = whole
    rng = np.random.default_rng(sum(map(ord, kind)))
    for _ in range(800):
        damaged = bytearray(data)
        length = int(rng.integers(1, 1 + rng.choice([2, 8, 64])))
        begin = int(rng.integers(len(data)))
        if kind == "overwritten":
            damaged[begin : begin + length] = rng.bytes(length)
        elif kind == "removed":
            del damaged[begin : begin + length]
        elif kind == "inserted":
            damaged[begin:begin] = rng.bytes(length)
        elif kind == "zeroed":
            damaged[begin : begin + length] = bytes(len(damaged[begin : begin + length]))
        else:
            a, b = sorted(rng.integers(0, len(data), 2))
            damaged[a:b] = damaged[(a + b) // 2 : b] + damaged[a : (a + b) // 2]
        if damaged != data:
            assert refusal(fusion, bytes(damaged)), begin
        else:
            assert not refusal(fusion, data, picture)


# -------------------------------------------------------------------------------------- chunks


def test_swapped_and_repeated_and_missing_chunks_are_refused(fusion, whole):
    data, _ = whole
    header, chunks = container.read(data)
    spans, position = [], len(header.pack())
    for chunk in chunks:
        end = position + len(chunk) + 5 + (len(chunk) > 127)
        spans.append(data[position:end])
        position = end
    front = header.pack()
    for i, j in itertools.permutations(range(len(spans)), 2):
        moved = list(spans)
        moved[i], moved[j] = moved[j], moved[i]
        if moved != spans:
            assert "checksum differs" in refusal(fusion, front + b"".join(moved)), (i, j)
        moved = list(spans)
        moved[i] = moved[j]
        if moved != spans:
            assert "checksum differs" in refusal(fusion, front + b"".join(moved)), (i, j)
    for i in range(len(spans)):
        assert refusal(fusion, front + b"".join(spans[:i] + spans[i + 1 :])), i
        assert refusal(fusion, front + b"".join([*spans[: i + 1], *spans[i:]])), i


def test_swapped_chunks_with_new_checksums_are_refused_for_what_they_decode_to(fusion, whole):
    data, picture = whole
    header, chunks = container.read(data)
    for i, j in itertools.combinations(range(len(chunks)), 2):
        moved = list(chunks)
        moved[i], moved[j] = moved[j], moved[i]
        if moved != chunks:
            assert refusal(fusion, container.write(header, moved), picture), (i, j)


def test_chunks_of_random_bytes_with_valid_checksums_are_refused(fusion, whole):
    data, picture = whole
    header, chunks = container.read(data)
    rng = np.random.default_rng(4)
    for _ in range(40):
        forged = [rng.bytes(int(rng.integers(0, 2 * len(chunk) + 8))).rstrip(b"\0") for chunk in chunks]
        assert refusal(fusion, container.write(header, forged), picture)
        forged = list(chunks)
        which = int(rng.integers(len(chunks)))
        forged[which] = rng.bytes(len(chunks[which]) + int(rng.integers(-2, 3) * (len(chunks[which]) > 3)))
        if forged != chunks:
            assert refusal(fusion, container.write(header, forged), picture)


def test_flipped_bits_of_chunks_with_valid_checksums_are_refused(fusion, whole):
    """What the checksums cannot tell, the range coder, the chunk's length or the digest does.

    Bits of a chunk's last word that decide nothing may differ: then it is the same picture.
    """
    data, picture = whole
    header, chunks = container.read(data)
    accepted = 0
    for number, chunk in enumerate(chunks):
        for position in range(len(chunk)):
            damaged = bytearray(chunk)
            damaged[position] ^= 1 << (position * 5 + number) % 8
            forged = [*chunks[:number], bytes(damaged), *chunks[number + 1 :]]
            text = refusal(fusion, container.write(header, forged), picture)
            assert text or position >= len(chunk) - 4, (number, position)
            accepted += not text
    assert accepted <= 2 * len(chunks)


def test_chunks_longer_than_their_symbols_are_refused(fusion, whole):
    data, picture = whole
    header, chunks = container.read(data)
    for number, chunk in enumerate(chunks):
        for more in (b"\x01", b"\0", b"\xff" * 12, b"\0" * 20 + b"\x01"):
            forged = [*chunks[:number], chunk + more, *chunks[number + 1 :]]
            text = refusal(fusion, container.write(header, forged), picture)
            assert text or more == b"\x01", (number, more)  # within the last word, it decides nothing


# ------------------------------------------------------------------------------------- headers


def test_every_other_digest_is_refused(fusion, whole):
    data, _ = whole
    header, chunks = container.read(data)
    for bit in range(32):
        digest = (int.from_bytes(header.digest) ^ 1 << bit).to_bytes(4)
        text = refusal(fusion, container.write(replace(header, digest=digest), chunks))
        assert text == "the decoded integers differ from those that were encoded"


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 47}, {"width": 56}, {"width": 1}, {"height": 41}, {"height": 4000},
        {"width": 40, "height": 48}, {"rates": (0, 0, 0)}, {"tile_px": 64, "width": 100},
        {"width": 65535, "height": 1},
        {"rates": (1, 1, 1)}, {"rates": (1,)}, {"layers": 2}, {"layers": 255},
    ],
    ids=str,
)  # fmt: skip
def test_other_headers_with_valid_checksums_are_refused_unless_the_picture_is_merely_cropped(
    fusion, whole, changes
):
    data, picture = whole
    header, chunks = container.read(data)
    forged = replace(header, **changes)
    chunks = (chunks * 300)[: len(list(forged.order()))]
    options = refusal_or_crop(fusion, container.write(forged, chunks))
    if (
        options is not None
    ):  # the same integers: within the last square nobody can tell, and it is the picture
        assert changes == {"width": 47}
        np.testing.assert_array_equal(options, picture[:, :47])


def refusal_or_crop(fusion, data):
    try:
        return fusion.decode(data)
    except REFUSALS as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("size", [(65535, 65535), (16385, 16384), (0, 40), (48, 0), (0, 0)])
@pytest.mark.parametrize("partial", [False, True])
def test_headers_of_huge_and_of_no_pictures_are_refused_at_once(fusion, whole, size, partial):
    header, chunks = container.read(whole[0])
    front = bytearray(header.pack())
    struct.pack_into("<HH", front, 6, *size)
    data = repaired(bytes(front), [(bytes([len(c)]), c) for c in chunks if len(c) < 128])
    assert refusal(fusion, data, partial=partial)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("tile", range(6))
def test_the_largest_headers_without_their_chunks_take_neither_time_nor_memory(fusion, whole, tile, partial):
    header, _ = container.read(whole[0])
    for width, height in [(16384, 16384), (65535, 4096), (4096, 65535)]:
        forged = replace(header, width=width, height=height, tile_px=64 << tile, layers=255)
        for chunks in ([], [b""], [b"\x01"]):
            assert refusal(
                fusion, repaired(forged.pack(), [(bytes([len(c)]), c) for c in chunks]), partial=partial
            )


@pytest.mark.parametrize("adaptive, low", [(False, 256 * 4 + 1), (True, 5)])
def test_rates_beyond_the_levels_are_refused(fusion, crop, adaptive, low):
    header, chunks = container.read(fusion.encode(crop, 100, adaptive=adaptive))
    for rate in (low, 255 if adaptive else 65535):
        for stream in range(3):
            rates = tuple(rate if i == stream else r for i, r in enumerate(header.rates))
            text = refusal(fusion, container.write(replace(header, rates=rates), chunks))
            assert text == "the header holds a rate beyond the model's levels"


def test_lengths_beyond_the_end_and_in_long_form_are_refused(fusion, whole):
    header, chunks = container.read(whole[0])
    rest = [
        (bytes([len(c)]) if len(c) < 128 else bytes([len(c) & 127 | 128, len(c) >> 7]), c) for c in chunks
    ]
    assert not refusal(fusion, repaired(header.pack(), rest), whole[1])
    for length in (
        b"\x80\x00",
        b"\xff\xff\xff\xff\x0f",
        b"\xff" * 5,
        b"\xff" * 9 + b"\x01",
        b"\x7f",
        b"\xff\x7f",
    ):
        for number in range(len(rest)):
            forged = [*rest[:number], (length, rest[number][1]), *rest[number + 1 :]]
            if forged != rest:
                assert refusal(fusion, repaired(header.pack(), forged)), (length, number)


# ------------------------------------------------------------------------------- other formats


def foreign():
    image = Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        file = io.BytesIO()
        image.save(file, kind)
        yield kind, file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("MCML", b"text")
    yield "zip", file.getvalue()
    yield "text", "MCML is not how this begins, är\n".encode()[1:]
    yield "MCML and text", b"MCML is how this begins"
    yield "UTF-16", "MCML".encode("utf-16")
    yield "zeros", bytes(1000)
    yield "ones", b"\xff" * 1000


@pytest.mark.parametrize(
    "kind, data", list(foreign()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_files_of_other_formats_are_refused_as_such(fusion, kind, data):
    for partial in (False, True):
        text = refusal(fusion, data, partial=partial)
        assert ("version 32" if kind == "MCML and text" else "not an mcml file") in text
        shown = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"}
        assert (f"it is a {kind} picture already".lower() in text.lower()) == (kind in shown)
    with pytest.raises(REFUSALS):
        codec_of(data)


@pytest.mark.parametrize("partial", [False, True])
def test_an_empty_file_is_refused_as_such(fusion, partial):
    assert refusal(fusion, b"", partial=partial) == "the file is empty"
    with pytest.raises(CorruptStreamError, match="the file is empty"):
        codec_of(b"")


def test_random_bytes_behind_a_valid_front_are_refused(fusion, whole):
    data, _ = whole
    rng = np.random.default_rng(8)
    for front in (b"MCML\x01", data[:10], data[:18], data[:28], data[:60]):
        for _ in range(200):
            assert refusal(fusion, front + rng.bytes(int(rng.integers(0, 200))))
