"""Damaged, cut, forged and foreign files: always a sentence, never a wrong picture or a crash."""

import io
import itertools
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mcml.base.errors import CorruptStreamError, UnsupportedStreamError
from mcml.codec import container
from mcml.codec.container import read_header
from mcml.codec.prior import DIALS

REFUSALS = (CorruptStreamError, UnsupportedStreamError)
CASES = {  # rows, quality and options
    "uniform": (40, 80, {}),
    "adaptive": (40, 80, {"adaptive": True, "layers": 3}),
    "latents": (72, 35, {"tile_px": 64}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def codec(case, fusion, latents):
    return latents if case == "latents" else fusion


@pytest.fixture(scope="module")
def whole(case, codec, crop):
    """A file of 48 pixels' width, of latents in two tiles, and what it decodes to."""
    rows, quality, options = CASES[case]
    data = codec.encode(crop[:rows, :48], quality, **options)
    return data, codec.decode(data)


def refusal(codec, data, picture=None, **options):
    """Return why a file is refused; one that decodes must decode to the undamaged picture."""
    try:
        image = codec.decode(data, **options)
    except REFUSALS as error:
        text = str(error)
        assert 10 < len(text) < 300 and "\n" not in text and not text.endswith(".") and "Error" not in text
        return text
    assert np.array_equal(image, picture), "a damaged file gave a picture"
    return ""


def flips(data):
    """Yield every file that differs from this one in a single bit, with its place."""
    for position, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        yield (position, bit), bytes(damaged)


def replaced(parts, number, *new):
    """Return a list with other items in place of one."""
    return [*parts[:number], *new, *parts[number + 1 :]]


def test_every_flip_of_a_single_bit_and_every_truncation_is_refused(codec, whole):
    data, _ = whole
    for place, damaged in [*flips(data), *((cut, data[:cut]) for cut in range(len(data)))]:
        assert refusal(codec, damaged), place


def test_partial_reading_of_flipped_files_is_refused_or_gives_the_chunks_of_a_prefix(codec, whole):
    """And those, whichever they are, to the picture of that prefix."""
    data, _ = whole
    header, chunks = container.read(data)
    prefixes = set()
    for place, damaged in flips(data):
        try:
            read, parts = container.read(damaged, partial=True)
        except REFUSALS:
            continue
        assert parts == chunks[: len(parts)] and (read == header or not parts), place
        if len(parts) not in prefixes:  # once each
            prefixes.add(len(parts))
            cut, shows = container.write(header, parts), header.shows(len(parts))
            picture = codec.decode(cut, partial=True) if shows else None
            assert bool(refusal(codec, damaged, picture, partial=True)) != shows
    assert prefixes == set(range(len(chunks)))


@pytest.mark.parametrize("kind", ["overwritten", "removed", "inserted", "zeroed", "swapped"])
def test_random_damage_to_many_bytes_is_refused(codec, whole, kind):
    data, picture = whole
    rng = np.random.default_rng(sum(map(ord, kind)))
    for _ in range(800):
        length = int(rng.integers(1, 1 + rng.choice([2, 8, 64])))
        begin = int(rng.integers(len(data)))
        end, new = begin + length, rng.bytes(length)
        if kind == "swapped":
            begin, end = sorted(rng.integers(0, len(data), 2))
        taken, half = data[begin:end], (end - begin) // 2
        put = {
            "overwritten": new, "removed": b"", "inserted": new + taken, "zeroed": bytes(len(taken)),
            "swapped": taken[half:] + taken[:half],
        }[kind]  # fmt: skip
        damaged = data[:begin] + put + data[end:]
        assert bool(refusal(codec, damaged, picture)) == (damaged != data), begin


def test_swapped_and_repeated_and_missing_chunks_are_refused(codec, whole):
    """By the checksums, or, where these are put right, for what the chunks decode to."""
    data, picture = whole
    header, chunks = container.read(data)
    front, spans, position = header.pack(), [], len(header.pack())
    for chunk in chunks:
        end = position + len(chunk) + 5 + (len(chunk) > 127)
        spans.append(data[position:end])
        position = end
    for i, j in itertools.permutations(range(len(spans)), 2):
        moved = replaced(spans, i, spans[j])
        for changed in (moved, replaced(moved, j, spans[i])):
            assert changed == spans or "checksum differs" in refusal(codec, front + b"".join(changed)), (
                i,
                j,
            )
        if i < j and chunks[i] != chunks[j]:
            moved = replaced(replaced(chunks, i, chunks[j]), j, chunks[i])
            assert refusal(codec, container.write(header, moved), picture), (i, j)
    for i, span in enumerate(spans):
        for changed in (replaced(spans, i), replaced(spans, i, span, span)):
            assert refusal(codec, front + b"".join(changed)), i


def test_chunks_of_random_bytes_with_valid_checksums_are_refused(codec, whole):
    data, picture = whole
    header, chunks = container.read(data)
    rng = np.random.default_rng(4)
    for _ in range(150):
        forged = [rng.bytes(int(rng.integers(0, 2 * len(chunk) + 8))).rstrip(b"\0") for chunk in chunks]
        assert refusal(codec, container.write(header, forged), picture)
        which = int(rng.integers(len(chunks)))
        length = len(chunks[which]) + int(rng.integers(-2, 3) * (len(chunks[which]) > 3))
        forged = replaced(chunks, which, rng.bytes(length))
        assert forged == chunks or refusal(codec, container.write(header, forged), picture)


def test_flipped_bits_of_chunks_with_valid_checksums_are_refused(codec, whole):
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
            forged = container.write(header, replaced(chunks, number, bytes(damaged)))
            text = refusal(codec, forged, picture)
            assert text or position >= len(chunk) - 4, (number, position)
            accepted += not text
    assert accepted <= 2 * len(chunks)
    for bit in range(32):
        digest = (int.from_bytes(header.digest) ^ 1 << bit).to_bytes(4)
        text = refusal(codec, container.write(replace(header, digest=digest), chunks))
        assert text == "the decoded integers differ from those that were encoded"


def test_chunks_longer_than_their_symbols_are_refused(codec, whole):
    data, picture = whole
    header, chunks = container.read(data)
    for number, chunk in enumerate(chunks):
        for more in (b"\x01", b"\0", b"\xff" * 12, b"\0" * 20 + b"\x01"):
            forged = container.write(header, replaced(chunks, number, chunk + more))
            text = refusal(codec, forged, picture)
            assert text or more == b"\x01", (number, more)  # within the last word, it decides nothing


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
    codec, whole, changes
):
    """Within the last square of 8 x 8 nobody can tell: the integers are the same, and it is the picture."""
    data, picture = whole
    header, chunks = container.read(data)
    forged = replace(header, **changes)
    file = container.write(forged, (chunks * 300)[: forged.chunk_count()])
    assert refusal(codec, file, picture[:, :47]) or changes == {"width": 47}


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("tile", range(6))
def test_the_largest_headers_without_their_chunks_take_neither_time_nor_memory(codec, whole, tile, partial):
    header, _ = container.read(whole[0])
    layers = 1 if header.version == container.LATENTS else 255
    for width, height in [(16384, 16384), (65535, 4096), (4096, 65535)]:
        forged = replace(header, width=width, height=height, tile_px=64 << tile, layers=layers)
        for chunks in ([], [b""], [b"\x01"]):
            if not (partial and forged.shows(len(chunks))):  # else a picture that was cut after a tile
                assert refusal(codec, container.write(forged, chunks), partial=partial)


@pytest.mark.parametrize("adaptive, low", [(False, 256 * 4 + 1), (True, 5)])
def test_rates_beyond_the_levels_are_refused(fusion, crop, adaptive, low):
    header, chunks = container.read(fusion.encode(crop[:40, :48], 100, adaptive=adaptive))
    for rate in (low, 255 if adaptive else 65535):
        for stream in range(3):
            rates = tuple(rate if i == stream else r for i, r in enumerate(header.rates))
            text = refusal(fusion, container.write(replace(header, rates=rates), chunks))
            assert text == "the header holds a rate beyond the model's levels"


def test_dials_beyond_the_formats_are_refused(latents, crop):
    header, chunks = container.read(latents.encode(crop[:16, :24], 100))
    assert header.rates == (DIALS,) * 3
    for dial, stream in itertools.product((DIALS + 1, 65535), range(3)):
        rates = replaced(header.rates, stream, dial)
        text = refusal(latents, container.write(replace(header, rates=tuple(rates)), chunks))
        assert text == "the header holds a dial beyond the format's"


def test_files_whose_version_or_model_is_of_the_other_kind_are_refused(fusion, latents, codec, whole):
    """The version, the model's identity, or both, with checksums put right."""
    header, chunks = container.read(whole[0])
    others = {fusion: latents, latents: fusion}
    version = container.BITS + container.LATENTS - header.version
    plain = {"adaptive": False, "layers": 1}
    for by, changes in ((codec, {"version": version, **plain}), (others[codec], {}),
                        (others[codec], {"version": version, **plain})):  # fmt: skip
        forged = replace(header, model=by.identity, **changes)
        file = container.write(forged, (chunks * 9)[: forged.chunk_count()])
        text = refusal(by, file)
        assert text.startswith("the header is of ") or (by is not codec and "version" in changes)


def foreign():
    image = Image.fromarray(np.arange(300, dtype=np.uint16).astype(np.uint8).reshape(10, 10, 3))
    for kind in ("PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF"):
        file = io.BytesIO()
        image.save(file, kind.upper())
        yield file.getvalue(), f"not an mcml file: it is a {kind} picture, which `mcml compress` takes"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("MCML", b"text")
    text = "MCML is not how this begins, är\n".encode()[1:]
    for data in (file.getvalue(), text, "MCML".encode("utf-16"), bytes(1000), b"\xff" * 1000):
        yield data, "not an mcml file: it does not begin with 'MCML'"
    yield b"MCML and text", "the file is of format version 32: .* or the file is damaged"
    yield b"", "the file is empty"


@pytest.mark.parametrize("partial", [False, True])
def test_files_of_other_formats_are_refused_as_such(fusion, partial):
    for data, words in foreign():
        assert re.fullmatch(words, refusal(fusion, data, partial=partial))
        with pytest.raises(REFUSALS, match=words):
            read_header(data)


def test_random_bytes_behind_a_valid_front_are_refused(codec, whole):
    data, _ = whole
    rng = np.random.default_rng(8)
    for front in (b"MCML\x01", data[:10], data[:18], data[:28], data[:60]):
        for _ in range(200):
            assert refusal(codec, front + rng.bytes(int(rng.integers(0, 200))))
