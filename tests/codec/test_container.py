"""The container: what is written is read, small, and nothing that no encoder writes is taken."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError
from mcml.codec import container
from mcml.codec.container import BITS, LATENTS, MAX_PIXELS, MAX_SIDE, Header


@st.composite
def headers(draw, most_chunks=60):
    version = draw(st.sampled_from([BITS, LATENTS]))
    adaptive = version == BITS and draw(st.booleans())
    rate = st.integers(0, 255 if adaptive else 65535)
    tile = 1 << draw(st.sampled_from(container.TILE_LOG2))
    layers = st.just(1) if version == LATENTS else st.one_of(st.just(1), st.integers(2, 255))
    header = Header(
        width=draw(st.integers(1, 3 * tile)), height=draw(st.integers(1, 3 * tile)),
        model=draw(st.binary(min_size=8, max_size=8)), adaptive=adaptive, tile_px=tile,
        rates=draw(st.one_of(st.tuples(rate), st.tuples(rate, rate, rate))), layers=draw(layers),
        version=version, digest=draw(st.binary(min_size=4, max_size=4)),
    )  # fmt: skip
    return header if len(list(header.order())) <= most_chunks else Header(**{**vars(header), "layers": 1})


def header_of(**changes):
    return Header(**{"width": 48, "height": 40, "model": b"8 bytes.", "rates": (700, 300, 200), **changes})


def chunks_of(header, size=5):
    return [bytes([i % 256]) * size for i, _ in enumerate(header.order())]


@settings(max_examples=100, deadline=None)
@given(header=headers(), data=st.data())
def test_header_and_chunks_come_back(header, data):
    size = data.draw(st.one_of(st.integers(0, 20), st.sampled_from([127, 128, 129, 16383, 16384])))
    chunks = [bytes([i % 251]) * (size if i == 0 else i % 3) for i, _ in enumerate(header.order())]
    packed = container.write(header, chunks)
    assert container.read(packed) == (header, chunks)
    for kind in (bytearray, memoryview):
        assert container.read(kind(packed), partial=True) == (header, chunks)
    assert container.read_header(packed) == (header, len(header.pack()))


@settings(max_examples=60, deadline=None)
@given(header=headers())
def test_tiles_cover_every_pixel_once_and_the_order_names_every_chunk_once(header):
    """And a picture shows from the first layer's last tile on, of latents from any tile on."""
    covered = np.zeros(header.grid, int)
    assert header.grid == (-(-header.height // 8), -(-header.width // 8))
    tiles = header.tiles()
    for rows, columns in tiles:
        covered[rows, columns] += 1
        assert 8 * rows.start % header.tile_px == 8 * columns.start % header.tile_px == 0
        assert 0 < rows.stop - rows.start <= header.tile_px // 8 >= columns.stop - columns.start > 0
    assert (covered == 1).all()
    assert tiles == sorted(tiles, key=lambda tile: (tile[0].start, tile[1].start))
    order = list(header.order())
    assert len(order) == len(set(order))
    maps = len(tiles) * len(header.rates) if header.adaptive else 0
    assert len(order) == header.layers * len(tiles) * len(header.rates) + maps == header.chunk_count()
    assert [layer for layer, *_ in order] == sorted(layer for layer, *_ in order)
    last = (0, 0, 0, "latents") if header.version == LATENTS else (0, len(tiles) - 1, 0, "bits")
    shown = False
    assert not header.shows(0)
    for number, name in enumerate(order, start=1):
        shown = shown or name == last
        assert header.shows(number) == shown


@pytest.mark.parametrize("width, height", [(1, 1), (MAX_SIDE, 1), (1, MAX_SIDE), (16384, 16384)])
def test_the_smallest_and_the_largest_pictures_fit(width, height):
    header = header_of(width=width, height=height, tile_px=2048)
    assert container.read(container.write(header, chunks_of(header)))[0] == header


@pytest.mark.parametrize("adaptive, header_bytes", [(False, 28), (True, 25)])
@pytest.mark.parametrize("size", [0, 100, 5000, 16383, 2_000_000])
def test_a_colour_files_overhead_is_at_most_64_bytes(adaptive, header_bytes, size):
    header = header_of(adaptive=adaptive, rates=(7, 3, 2), width=1024, height=1024)
    chunks = [bytes(size if kind == "bits" else min(size, 16383)) for *_, kind in header.order()]
    lengths = sum(1 + (len(chunk) > 127) + (len(chunk) > 16383) for chunk in chunks)
    overhead = len(container.write(header, chunks)) - sum(map(len, chunks))
    assert len(header.pack()) == header_bytes
    assert overhead == header_bytes + 4 * len(chunks) + lengths <= 64


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 0}, "0 x 40 pixels"), ({"height": MAX_SIDE + 1}, "sides of 1 to 65535"),
        ({"width": 16385, "height": 16384}, f"at most {MAX_PIXELS}"), ({"layers": 0}, "0 layers"),
        ({"layers": 256}, "256 layers"), ({"tile_px": 32}, "tiles of 32"),
        ({"tile_px": 1000}, "tiles of 1000"), ({"tile_px": 16384}, "tiles of 16384"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_hold_is_not_written(changes, words):
    with pytest.raises(DataError, match=words):
        container.write(header_of(**changes), [])


NEVER = "values that no encoder writes"
FORGED = [
    *((4, bytes([v]), f"version {v}: this mcml reads versions 1 and 2;") for v in (0, 3, 77, 255)),
    (4, b"\x02", NEVER),  # latents have no layers
    *(
        (6, struct.pack("<HH", *size), "{} x {} pixels: this mcml decodes at most".format(*size))
        for size in [(MAX_SIDE, MAX_SIDE), (16385, 16384), (4097, 65535)]
    ),
    *((6, struct.pack("<HH", *size), NEVER) for size in [(0, 40), (48, 0), (0, 0)]),
    *((5, bytes([flags]), NEVER) for flags in (0x74, 0xB4, 0x36, 0x37)),  # 6, 7: tiles beyond 2048 pixels
    *((18, bytes([layers]), NEVER) for layers in (0, 1)),
]


@pytest.mark.parametrize("place, value, words", FORGED)
def test_headers_that_no_encoder_of_this_version_writes_are_refused_as_such(place, value, words):
    packed = bytearray(header_of(layers=2).pack())
    assert packed[5] == 0x34 and packed[18] == 2
    packed[place : place + len(value)] = value
    for data in (packed, packed[:5] if "versions" in words else packed):
        with pytest.raises(CorruptStreamError if words == NEVER else UnsupportedStreamError, match=words):
            container.read(bytes(data))


@pytest.mark.parametrize("extra", [b"\0", b"x", bytes(100), b"MCML\x01" * 9])
def test_bytes_after_the_last_chunk_are_refused_and_counted(extra):
    packed = container.write(header_of(), chunks_of(header_of())) + extra
    for partial in (False, True):
        with pytest.raises(CorruptStreamError, match=f"^{len(extra)} bytes follow the last chunk$"):
            container.read(packed, partial=partial)


LENGTHS = {
    "length is written as no encoder writes it": (
        b"\x80\x00", b"\x83\x00", b"\x83\x80\x00", b"\x80\x80\x80\x80\x00", b"\xff" * 5 + b"\x01",
        b"\xff" * 9 + b"\x01",
    ),
    "ends within chunk 1": (b"\x04", b"\x7f", b"\xff\x7f", b"\xff\xff\xff\xff\x7f"),
}  # fmt: skip


@pytest.mark.parametrize("words, lengths", LENGTHS.items())
def test_lengths_beyond_the_end_and_in_another_than_the_shortest_form_are_refused(words, lengths):
    for length in lengths:
        data = header_of(rates=(5,)).pack() + length + b"abc"
        with pytest.raises(CorruptStreamError, match=words):
            container.read(data + zlib.crc32(data).to_bytes(4, "little"))


def test_a_checksum_covers_the_header_and_every_chunk_before_it():
    header = header_of()
    packed = container.write(header, chunks_of(header))
    other = container.write(header_of(rates=(700, 300, 201)), chunks_of(header))
    with pytest.raises(CorruptStreamError, match=r"chunk 1 \(bits of stream 1, tile 1, layer 1\) is damaged"):
        container.read(packed[: len(header.pack())] + other[len(header.pack()) :])
    first = len(header.pack()) + 10
    different = container.write(header, [b"other", *chunks_of(header)[1:]])
    assert len(packed) == len(different)
    with pytest.raises(CorruptStreamError, match=r"chunk 2 \(bits of stream 2"):
        container.read(packed[:first] + different[first:])


@settings(max_examples=40, deadline=None)
@given(header=headers(most_chunks=20), share=st.floats(0, 1))
def test_a_prefix_gives_its_whole_chunks_and_only_when_asked_to(header, share):
    chunks = chunks_of(header, 3)
    packed = container.write(header, chunks)
    begin = len(header.pack())
    cut = begin + int(share * (len(packed) - 1 - begin))
    whole = (cut - begin) // (1 + 3 + 4)
    assert container.read(packed[:cut], partial=True) == (header, chunks[:whole])
    with pytest.raises(CorruptStreamError, match=f"the file ends within chunk {whole + 1} "):
        container.read(packed[:cut])


@pytest.mark.parametrize("layers", [1, 3])
def test_a_prefix_of_the_header_is_refused_even_if_partial(layers):
    header = header_of(layers=layers)
    packed = header.pack()
    for cut in range(len(packed)):
        for partial in (False, True):
            words = f"after {cut} bytes" if cut else "the file is empty"
            with pytest.raises(CorruptStreamError, match=words):
                container.read(packed[:cut], partial=partial)


def test_partial_reading_gives_the_chunks_before_the_damage():
    header = header_of()
    chunks = chunks_of(header)
    packed = container.write(header, chunks)
    position = len(header.pack())
    for number, chunk in enumerate(chunks):
        for place in (position, position + 1, position + 1 + len(chunk)):  # length, data, checksum
            damaged = bytearray(packed)
            damaged[place] ^= 1
            assert container.read(bytes(damaged), partial=True) == (header, chunks[:number])
            content, error = container.describe(bytes(damaged))
            assert content["whole_chunks"] == number and not content["checksums"]
            assert content["overhead_bytes"] == len(header.pack()) + 5 * number
            assert isinstance(error, CorruptStreamError) and header.shows(number) == (number > 0)
            with pytest.raises(CorruptStreamError, match=rf"chunk {number + 1} "):
                container.read(bytes(damaged))
        position += 1 + len(chunk) + 4
