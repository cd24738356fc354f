"""The container: what is written is read, small, and nothing that no encoder writes is taken."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError
from mcml.codec import container
from mcml.codec.container import MAX_PIXELS, MAX_SIDE, Header


@st.composite
def headers(draw, most_chunks=60):
    adaptive = draw(st.booleans())
    rate = st.integers(0, 255 if adaptive else 65535)
    tile = 1 << draw(st.sampled_from(container.TILE_LOG2))
    header = Header(
        width=draw(st.integers(1, 3 * tile)), height=draw(st.integers(1, 3 * tile)),
        model=draw(st.binary(min_size=8, max_size=8)), adaptive=adaptive, tile_px=tile,
        rates=draw(st.one_of(st.tuples(rate), st.tuples(rate, rate, rate))),
        layers=draw(st.one_of(st.just(1), st.integers(2, 255))),
        digest=draw(st.binary(min_size=4, max_size=4)),
    )  # fmt: skip
    return header if len(list(header.order())) <= most_chunks else Header(**{**vars(header), "layers": 1})


def header_of(**changes):
    return Header(**{"width": 48, "height": 40, "model": b"8 bytes.", "rates": (700, 300, 200), **changes})


def chunks_of(header, size=5):
    return [bytes([i % 256]) * size for i, _ in enumerate(header.order())]


def with_chunk(header, body):
    """Return a header's bytes and one raw chunk with the checksum that it should have."""
    data = header.pack() + body
    return data + zlib.crc32(data).to_bytes(4, "little")


# --------------------------------------------------------------------------------- round trip


@settings(max_examples=100, deadline=None)
@given(header=headers(), data=st.data())
def test_header_and_chunks_come_back(header, data):
    sizes = st.one_of(st.integers(0, 20), st.sampled_from([127, 128, 129, 16383, 16384]))
    size = data.draw(sizes)
    chunks = [bytes([i % 251]) * (size if i == 0 else i % 3) for i, _ in enumerate(header.order())]
    packed = container.write(header, chunks)
    assert container.read(packed) == (header, chunks)
    assert container.read(packed, partial=True) == (header, chunks)
    assert container.read_header(packed) == (header, len(header.pack()))


@settings(max_examples=60, deadline=None)
@given(header=headers())
def test_tiles_cover_every_pixel_once_and_the_order_names_every_chunk_once(header):
    covered = np.zeros(header.grid, int)
    assert [
        8 * (n - 1) < px <= 8 * n for n, px in zip(header.grid, (header.height, header.width), strict=True)
    ]
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


@pytest.mark.parametrize("size", [(1, 1), (MAX_SIDE, 1), (1, MAX_SIDE), (16384, 16384)])
def test_the_smallest_and_the_largest_pictures_fit(size):
    header = header_of(width=size[0], height=size[1], tile_px=2048)
    packed = container.write(header, chunks_of(header))
    assert container.read(packed)[0] == header


# ----------------------------------------------------------------------------------- overhead


@pytest.mark.parametrize("adaptive, header_bytes", [(False, 28), (True, 25)])
@pytest.mark.parametrize("size", [0, 100, 5000, 16383])
def test_a_colour_files_overhead_is_at_most_64_bytes(adaptive, header_bytes, size):
    header = header_of(adaptive=adaptive, rates=(7, 3, 2), width=1024, height=1024)
    chunks = chunks_of(header, size)
    overhead = len(container.write(header, chunks)) - sum(map(len, chunks))
    assert len(header.pack()) == header_bytes
    assert overhead <= 64
    assert overhead == header_bytes + len(chunks) * (4 + 1 + (size > 127))


def test_chunks_of_bits_may_be_long_before_the_overhead_passes_64_bytes():
    header = header_of(adaptive=True, rates=(7, 3, 2), width=1024, height=1024)
    chunks = [bytes(2_000_000 if kind == "bits" else 16383) for *_, kind in header.order()]
    assert len(container.write(header, chunks)) - sum(map(len, chunks)) == 64


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": 0}, "0 x 40 pixels"),
        ({"height": MAX_SIDE + 1}, "sides of 1 to 65535"),
        ({"width": 16385, "height": 16384}, f"at most {MAX_PIXELS}"),
        ({"layers": 0}, "0 layers"),
        ({"layers": 256}, "256 layers"),
        ({"tile_px": 32}, "tiles of 32"),
        ({"tile_px": 1000}, "tiles of 1000"),
        ({"tile_px": 16384}, "tiles of 16384"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(changes, words):
    with pytest.raises(DataError, match=words):
        container.write(header_of(**changes), [])


@pytest.mark.parametrize("version", [0, 2, 3, 77, 255])
def test_other_versions_are_refused_as_such(version):
    packed = bytearray(container.write(header_of(), chunks_of(header_of())))
    packed[4] = version
    for data in (packed, packed[:5]):
        with pytest.raises(
            UnsupportedStreamError, match=f"format version {version}: this mcml reads version 1"
        ):
            container.read(bytes(data))


@pytest.mark.parametrize("width, height", [(MAX_SIDE, MAX_SIDE), (16385, 16384), (4097, 65535)])
def test_too_many_pixels_are_refused_before_anything_is_made_of_them(width, height):
    packed = bytearray(header_of().pack())
    struct.pack_into("<HH", packed, 6, width, height)
    with pytest.raises(UnsupportedStreamError, match=f"{width} x {height} pixels: this mcml decodes at most"):
        container.read(bytes(packed))


@pytest.mark.parametrize("width, height", [(0, 40), (48, 0), (0, 0)])
def test_pictures_without_pixels_are_refused(width, height):
    packed = bytearray(header_of().pack())
    struct.pack_into("<HH", packed, 6, width, height)
    with pytest.raises(CorruptStreamError, match="no encoder writes"):
        container.read(bytes(packed))


@pytest.mark.parametrize("flag", [0x40, 0x80, 6, 7])  # 6, 7: tiles larger than 2048 pixels
def test_flags_without_a_meaning_are_refused(flag):
    packed = bytearray(header_of().pack())
    packed[5] = (packed[5] & ~7 if flag < 8 else packed[5]) | flag
    with pytest.raises(CorruptStreamError, match="no encoder writes"):
        container.read(bytes(packed))


@pytest.mark.parametrize("layers", [0, 1])
def test_a_layered_file_of_fewer_than_two_layers_is_refused(layers):
    packed = bytearray(header_of(layers=2).pack())
    assert packed[18] == 2
    packed[18] = layers
    with pytest.raises(CorruptStreamError, match="no encoder writes"):
        container.read(bytes(packed))


@pytest.mark.parametrize("extra", [b"\0", b"x", bytes(100), b"MCML\x01" * 9])
def test_bytes_after_the_last_chunk_are_refused_and_counted(extra):
    packed = container.write(header_of(), chunks_of(header_of())) + extra
    for partial in (False, True):
        with pytest.raises(CorruptStreamError, match=f"^{len(extra)} bytes follow the last chunk$"):
            container.read(packed, partial=partial)


@pytest.mark.parametrize(
    "length",
    [b"\x80\x00", b"\x83\x00", b"\x83\x80\x00", b"\x80\x80\x80\x80\x00", b"\xff\xff\xff\xff\xff\x01"],
)
def test_lengths_in_another_than_the_shortest_form_are_refused(length):
    header = header_of(rates=(5,))
    packed = with_chunk(header, length + b"abc")
    with pytest.raises(CorruptStreamError, match="length is written as no encoder writes it"):
        container.read(packed)
    assert container.read(with_chunk(header, b"\x03abc"))[1] == [b"abc"]


@pytest.mark.parametrize("length", [b"\x04", b"\x7f", b"\xff\x7f", b"\xff\xff\xff\xff\x7f"])
def test_lengths_beyond_the_end_are_refused(length):
    packed = with_chunk(header_of(rates=(5,)), length + b"abc")
    with pytest.raises(CorruptStreamError, match="ends within chunk 1"):
        container.read(packed)


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


# ------------------------------------------------------------------------------------- partial


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
            with pytest.raises(
                CorruptStreamError, match="the file is empty" if cut == 0 else f"after {cut} bytes"
            ):
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
    with pytest.raises(CorruptStreamError, match="1 bytes follow"):
        container.read(packed + b"x", partial=True)


@settings(max_examples=40, deadline=None)
@given(header=headers(most_chunks=40))
def test_a_picture_shows_from_the_first_layers_last_tile_on(header):
    shown, tiles = False, header.tile_count()
    assert not header.shows(0)
    for number, name in enumerate(header.order(), start=1):
        shown = shown or name == (0, tiles - 1, 0, "bits")
        assert header.shows(number) == shown


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_kind_of_bytes_is_read(kind):
    packed = container.write(header_of(), chunks_of(header_of()))
    assert container.read(kind(packed)) == container.read(packed)
