"""The learned codec on the smallest networks: files of any picture come back as the encoder's integers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import tiny_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError, UsageError
from mcml.codec import container as bitstream
from mcml.codec import interface as codec
from mcml.codec import neural
from mcml.codec.learned import LearnedCodec, codec_of
from mcml.codec.tiles import unpack
from mcml.model import weights
from mcml.model.settings import VARIANTS

OPTIONS = [
    {},
    {"adaptive": True},
    {"layers": 3},
    {"adaptive": True, "layers": 4, "tile_px": 64},
    {"tile_px": 64},
    {"layers": 255},
]


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """One codec a variant, made when first asked for."""
    folder, found = tmp_path_factory.mktemp("models"), {}

    def get(variant):
        if variant not in found:
            found[variant] = tiny_codec(folder / variant, variant)
        return found[variant]

    return get


@pytest.fixture(scope="module")
def fusion(codecs):
    return codecs("fusion")


@pytest.fixture(scope="module")
def picture():
    from mcml.data import sets as data

    return data.image_set("embedded").read("astronaut")[:128, 60:220].copy()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def psnr(image, other):
    return -10 * np.log10(np.mean((image.astype(float) - other) ** 2) / 255**2 + 1e-12)


def integers(found, data, **options):
    """Return what a file decodes to before the networks: packed bits and opened groups."""
    header, chunks = bitstream.read(data, partial=options.get("partial", False))
    tiles, _ = found.coder.read(header, chunks, options.get("luma_only", False), options.get("layers"))
    return header, tiles


def assert_integers(found, image, data, quality, adaptive=False, layers=1, tile_px=1024):
    """Check the decoded integers against the encoder's networks, tile by tile, apart from the coder."""
    header, tiles = integers(found, data)
    pieces, _ = found.analyse(image, tile_px)
    assert (header.height, header.width) == image.shape[:2]
    assert (header.adaptive, header.layers, header.tile_px) == (adaptive, layers, tile_px)
    for piece, of, place in zip(pieces, tiles, header.tiles(), strict=True):
        assert set(of) == set(found.coder.keys)
        for key, (bits, opened) in of.items():
            if adaptive:
                levels = found.coder.adaptive(key, piece.logits[key], quality)
            else:
                levels = found.coder.flat(header, key, place)
            np.testing.assert_array_equal(opened, found.coder.opened(key, levels))
            n = found.coder.coders[key].n
            open_ = found.coder.channel_groups(key) <= opened[..., None]
            np.testing.assert_array_equal(unpack(bits, n), unpack(piece.bits[key], n) * open_)


# --------------------------------------------------------------------------------- round trip


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), quality=st.floats(0, 100), seed=st.integers(0, 99),
    options=st.sampled_from(OPTIONS), variant=st.sampled_from(sorted(VARIANTS)),
)  # fmt: skip
def test_pictures_of_any_size_come_back_as_the_encoders_integers(
    codecs, height, width, quality, seed, options, variant
):
    found, image = codecs(variant), noise(height, width, seed)
    data = found.encode(image, quality, **options)
    assert_integers(found, image, data, quality, **options)
    decoded = found.decode_detailed(data)
    assert decoded.image.shape == image.shape and decoded.image.dtype == np.uint8
    assert decoded.layers == decoded.header.layers == options.get("layers", 1)
    assert found.encode(image, quality, **options) == data


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_decodes_with_every_option(codecs, picture, variant, options):
    found = codecs(variant)
    for quality in (0, 41.3, 100):
        data = found.encode(picture, quality, **options)
        assert_integers(found, picture, data, quality, **options)
        assert found.decode(data).shape == picture.shape


@pytest.mark.parametrize("height, width", [(1, 1), (1, 70), (70, 1), (8, 8), (9, 7), (64, 64), (65, 129)])
@pytest.mark.parametrize("options", [{}, {"adaptive": True, "layers": 2, "tile_px": 64}], ids=str)
def test_the_smallest_and_the_narrowest_pictures_decode(fusion, height, width, options):
    image = noise(height, width)
    data = fusion.encode(image, 60, **options)
    assert_integers(fusion, image, data, 60, **options)
    assert fusion.decode(data).shape == image.shape


def test_maps_that_are_never_sent_decode_too(tmp_path, picture):
    settings_ = {"model.color.importance": "uniform"}
    found = tiny_codec(tmp_path / "other", "fusion", **settings_)
    for quality in (0, 30, 100):
        for layers in (1, 3):
            data = found.encode(picture, quality, layers=layers)
            assert_integers(found, picture, data, quality, layers=layers)
    with pytest.raises(UsageError, match="no importance maps"):
        found.encode(picture, 50, adaptive=True)


def test_adaptive_levels_follow_the_quality_and_the_map_from_none_to_all(fusion, picture):
    pieces, _ = fusion.analyse(picture)
    for key, top in fusion.coder.tops().items():
        logits = pieces[0].logits[key]
        assert logits.std() > 0.1
        levels = np.stack(
            [fusion.coder.adaptive(key, logits, quality) for quality in np.linspace(0, 100, 21)]
        )
        assert (np.diff(levels, axis=0) >= 0).all()
        assert (levels[0] == 0).mean() > 0.9 and (levels[-1] == top).mean() > 0.9
        order = logits.ravel().argsort()
        assert (np.diff(levels[10].ravel()[order]) >= 0).all()
        expected = np.floor((top + 1) / (1 + np.exp(-logits.astype(float))))
        np.testing.assert_array_equal(levels[10], expected)


@pytest.mark.parametrize("quality", [-1, 101, float("nan")])
def test_qualities_outside_the_range_are_refused(fusion, picture, quality):
    with pytest.raises(UsageError):
        fusion.encode(picture, quality)


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"layers": 256}, {"tile_px": 100}, {"tile_px": 32}], ids=str
)
def test_options_that_the_format_cannot_hold_are_refused(fusion, picture, options):
    with pytest.raises(DataError, match=r"layers|tiles of"):
        fusion.encode(picture, 50, **options)


def test_pictures_that_are_none_are_refused(fusion):
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DataError):
            fusion.encode(image, 50)


# --------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"layers": 2}], ids=str)
def test_a_file_is_its_ideal_bits_and_a_small_overhead(codecs, variant, options):
    """Within 1 % and the container; a chunk also ends in up to 4 bytes of the range coder's."""
    found, image = codecs(variant), noise(300, 280)
    for quality in (20, 100):
        encoded = found.encode_detailed(image, quality, **options)
        header, chunks = bitstream.read(encoded.data)
        ideal = sum(encoded.ideal_bits.values()) / 8
        container = len(header.pack()) + sum(4 + 1 + (len(chunk) > 127) for chunk in chunks)
        assert len(encoded.data) == container + sum(map(len, chunks))
        assert ideal - 4 <= sum(map(len, chunks)) <= 1.01 * ideal + 4 * len(chunks)
        if not options.get("layers"):
            assert container <= 64
        assert set(encoded.ideal_bits) == set(encoded.raw_bits)
        maps = {f"{key} map" for key in found.coder.keys} if options.get("adaptive") else set()
        assert set(encoded.ideal_bits) == {*found.coder.keys, *maps}


def test_raw_bits_are_the_open_ones(fusion, picture):
    encoded = fusion.encode_detailed(picture, 100)
    positions = (picture.shape[0] // 8) * (picture.shape[1] // 8)
    assert encoded.raw_bits == dict.fromkeys(("Y", "Cb", "Cr"), 16 * positions)
    assert sum(fusion.encode_detailed(picture, 0).raw_bits.values()) == 0
    layered = fusion.encode_detailed(picture, 100, layers=4)
    assert layered.raw_bits == encoded.raw_bits


@pytest.mark.parametrize("adaptive", [False, True])
def test_files_grow_along_the_range(fusion, picture, adaptive):
    sizes = [len(fusion.encode(picture, quality, adaptive=adaptive)) for quality in np.linspace(0, 100, 26)]
    slack = 12 * 2  # the coder's ends, and a map's own size
    assert all(b >= a - slack * adaptive - 3 for a, b in pairwise(sizes))
    assert sizes[-1] > 3 * sizes[0]
    ideal = [
        sum(v for k, v in fusion.encode_detailed(picture, quality).ideal_bits.items())
        for quality in np.linspace(0, 100, 26)
    ]
    assert all(b > a for a, b in pairwise(ideal))


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"tile_px": 64, "layers": 2}], ids=str)
@pytest.mark.parametrize("variant", ["fusion", "rgb"])
def test_search_hits_sizes_within_2_percent(codecs, variant, options):
    found, image = codecs(variant), noise(256, 256)
    smallest, largest = (codec.bits_per_pixel(found.encode(image, q, **options), image) for q in (1, 100))
    for share in (0.3, 0.55, 0.9):
        target = smallest + share * (largest - smallest)
        hit = found.search(image, target, **options)
        assert hit.reached, hit.explain(variant)
        assert hit.bpp == codec.bits_per_pixel(hit.data, image)
        assert hit.data == found.encode(image, hit.quality, **options)


def test_search_beyond_the_ends_gives_its_ends(fusion, picture):
    low, high = fusion.search(picture, 1e-4), fusion.search(picture, 20)
    assert not low.reached and low.data == fusion.encode(picture, 0)
    assert not high.reached and high.data == fusion.encode(picture, 100)
    assert not fusion.search(noise(1, 1), 0.5).reached
    for target in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="target bpp"):
            fusion.search(picture, target)


def test_the_search_of_every_codec_takes_a_learned_one(fusion, picture):
    assert codec.encode_at_bpp(codec.get_codec(str(fusion.folder)), picture, 0.15).reached


# --------------------------------------------------------------------------- parts of a file


@pytest.mark.parametrize("variant", ["fusion", "independent"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_luma_alone_is_the_luma_of_the_whole_file(codecs, picture, variant, options):
    found = codecs(variant)
    data = found.encode(picture, 70, **options)
    grey = found.decode(data, luma_only=True)
    assert (grey == grey[..., :1]).all()
    whole, luma = integers(found, data)[1], integers(found, data, luma_only=True)[1]
    for of, only in zip(whole, luma, strict=True):
        assert set(only) == {"Y"}
        np.testing.assert_array_equal(of["Y"][0], only["Y"][0])
    bits = np.zeros((16, 20, 16), np.float32)
    header = integers(found, data)[0]
    for (top, left, *_), only in zip(header.tiles(), luma, strict=True):
        packed, opened = only["Y"]
        sign = (2.0 * unpack(packed, 16) - 1) * (found.coder.channel_groups("Y") <= opened[..., None])
        bits[top // 8 : top // 8 + len(sign), left // 8 : left // 8 + sign.shape[1]] = sign
    expected = neural.synthesise(found.model, {"Y": bits})[:128, :160].astype(int)
    assert abs(expected - grey).max() <= 1


def test_luma_alone_needs_nothing_after_its_chunk(fusion, picture):
    data = fusion.encode(picture, 70)
    header, chunks = bitstream.read(data)
    cut = len(header.pack()) + len(chunks[0]) + 5 + (len(chunks[0]) > 127)
    grey = fusion.decode_detailed(data[:cut], luma_only=True, partial=True)
    np.testing.assert_array_equal(grey.image, fusion.decode(data, luma_only=True))
    np.testing.assert_array_equal(fusion.decode(data[:cut], partial=True), grey.image)
    with pytest.raises(CorruptStreamError, match="before its first stream is whole"):
        fusion.decode(data[: cut - 1], partial=True)
    with pytest.raises(CorruptStreamError, match="cut short"):
        fusion.decode(data[:cut], luma_only=True)
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(CorruptStreamError, match="checksum differs"):
        fusion.decode(damaged, luma_only=True)
    np.testing.assert_array_equal(fusion.decode(damaged, luma_only=True, partial=True), grey.image)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("tile_px", [64, 1024])
def test_prefixes_decode_layer_by_layer_to_ever_better_pictures(fusion, picture, adaptive, tile_px):
    data = fusion.encode(picture, 100, adaptive=adaptive, tile_px=tile_px, layers=4)
    header, chunks = bitstream.read(data)
    order = list(header.order())
    ends = len(header.pack()) + np.cumsum([len(c) + 5 + (len(c) > 127) for c in chunks])
    assert ends[-1] == len(data)
    qualities = []
    for layer in range(4):
        end = int(ends[max(i for i, (of, *_) in enumerate(order) if of == layer)])
        found = fusion.decode_detailed(data[:end], partial=True)
        assert found.layers == layer + 1
        qualities.append(psnr(picture, found.image))
        np.testing.assert_array_equal(found.image, fusion.decode(data, layers=layer + 1))
        if layer < 3:
            for more in (1, 4, 9):  # bytes of the next layer's first chunk
                again = fusion.decode_detailed(data[: end + more], partial=True)
                assert again.layers == layer + 1
                np.testing.assert_array_equal(again.image, found.image)
    assert all(b > a + 0.1 for a, b in pairwise(qualities)), qualities
    np.testing.assert_array_equal(fusion.decode(data, layers=99), fusion.decode(data))


def test_layers_of_adaptive_files_share_the_groups_that_are_sent(fusion, picture):
    header, _ = bitstream.read_header(fusion.encode(picture, 40, adaptive=True, layers=4))
    rng = np.random.default_rng(0)
    for most in (0, 1, 5, 16):
        opened = rng.binomial(most, 0.3, (9, 11))
        sent = [0, *np.cumsum([np.count_nonzero(opened > g) for g in range(16)])]
        last = [fusion.coder.last_group(header, "Y", layer, opened) for layer in range(4)]
        assert last[-1] == opened.max()
        for number, group in enumerate(last, start=1):
            assert 4 * sent[group] >= number * sent[-1]
            assert group == 0 or 4 * sent[group - 1] < number * sent[-1]


def test_every_prefix_decodes_to_more_or_is_refused(fusion, picture):
    data = fusion.encode(picture[:40, :48], 100, adaptive=True, layers=3)
    done = 0
    for cut in range(len(data) + 1):
        try:
            found = fusion.decode_detailed(data[:cut], partial=True)
        except CorruptStreamError:
            assert done == 0
            continue
        assert done <= found.layers or done == 0
        done = max(done, found.layers)
    assert done == 3


def test_a_layered_file_is_the_plain_one_and_a_few_bytes(fusion, picture):
    plain, layered = fusion.encode(picture, 80), fusion.encode(picture, 80, layers=3)
    np.testing.assert_array_equal(fusion.decode(layered), fusion.decode(plain))
    assert len(layered) <= len(plain) + 1 + 6 * 10


# -------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("depth", [{}, {"model.luma.groups": 2, "model.luma.blocks": 2}], ids=str)
def test_tiles_leave_no_seams(tmp_path, depth):
    """The halo of 16 positions is wider than what these networks see: at most rounding differs."""
    from mcml.data import sets as data

    found = tiny_codec(tmp_path / "model", "fusion", **depth)
    image = data.image_set("embedded").read("coffee")[:280, :330]
    whole = found.decode(found.encode(image, 90)).astype(int)
    tiled = found.decode(found.encode(image, 90, tile_px=64))
    first, second = (found.analyse(image, side)[0] for side in (1024, 64))
    header = found._header(image.shape[:2], 64)
    for piece, (top, left, height, width) in zip(second, header.tiles(), strict=True):
        part = np.s_[top // 8 : -(-(top + height) // 8), left // 8 : -(-(left + width) // 8)]
        for key in found.coder.keys:
            assert (first[0].bits[key][part] != piece.bits[key]).mean() <= 1e-3
    assert (whole != tiled).mean() <= 1e-3
    assert abs(whole - tiled).max() <= 1


# ----------------------------------------------------------------------------------- refusals


def test_files_of_another_model_are_refused_by_name(codecs, picture):
    data = codecs("fusion").encode(picture, 20)
    with pytest.raises(UnsupportedStreamError, match=r"was written by model .*: independent is") as error:
        codecs("independent").decode(data)
    assert codecs("fusion").identity.hex() in str(error.value)
    with pytest.raises(UnsupportedStreamError, match="which is not here"):
        codec_of(data)
    assert codec_of(data, codecs("fusion").folder).identity == codecs("fusion").identity


def test_a_file_that_claims_to_be_of_the_model_but_is_not_is_refused(codecs, picture):
    """The identity and every checksum are put right; streams and digest still differ."""
    header, chunks = bitstream.read(codecs("luma").encode(picture, 60))
    forged = bitstream.write(bitstream.Header(**{**vars(header), "model": codecs("fusion").identity}), chunks)
    with pytest.raises(CorruptStreamError, match="names 1 streams, the model has 3"):
        codecs("fusion").decode(forged)
    header, chunks = bitstream.read(codecs("luma").encode(picture, 60))
    forged = bitstream.write(bitstream.Header(**{**vars(header), "model": codecs("rgb").identity}), chunks)
    with pytest.raises(CorruptStreamError):
        codecs("rgb").decode(forged)


@pytest.mark.parametrize("what", ["weights", "entropy", "config"])
def test_a_model_whose_files_are_not_of_one_model_decodes_nothing(codecs, picture, tmp_path, what):
    shutil.copytree(codecs("fusion").folder, tmp_path / "model")
    data = codecs("fusion").encode(picture, 20)
    if what == "config":
        content = json.loads((tmp_path / "model" / "config.json").read_text())
        content["identity"] = "00" * 8 + content["identity"][16:]
        (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    else:
        source = tiny_codec(tmp_path / "other", "fusion", seed=1).folder
        shutil.copy(source / f"{what}-0.safetensors", tmp_path / "model")
    with pytest.raises((DataError, UnsupportedStreamError)):
        LearnedCodec(tmp_path / "model").decode(data)


def test_a_model_without_an_entropy_coder_is_refused(tmp_path, codecs):
    weights.save_model(codecs("fusion").model, tmp_path / "model", {})
    with pytest.raises(DataError, match="no entropy model yet"):
        LearnedCodec(tmp_path / "model")
    with pytest.raises(UsageError, match="unknown model"):
        LearnedCodec("no-such-model")


def test_a_copied_model_that_shares_its_coder_names_what_is_missing(tmp_path, codecs):
    folder = shutil.copytree(codecs("fusion").folder, tmp_path / "model")
    (folder / "entropy-0.safetensors").unlink()
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "shared": "elsewhere"}))
    with pytest.raises(DataError, match="coder of elsewhere, which is not beside it"):
        LearnedCodec(folder)


def test_models_that_share_luma_decode_like_those_that_do_not(codecs, picture, tmp_path):
    source = codecs("fusion")
    shutil.copytree(source.folder, tmp_path / "first")
    second = tmp_path / "second"
    second.mkdir()
    content = json.loads((source.folder / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**content, "shared": "first", "zeros": {}}))
    weights.save_tensors(second, "weights", {"rate_slope": source.model.rate_slope})
    second = LearnedCodec(second)
    assert second.identity == source.identity
    data = source.encode(picture, 50)
    assert second.encode(picture, 50) == data
    np.testing.assert_array_equal(second.decode(data), source.decode(data))


def test_names_of_models_come_from_their_files(monkeypatch, codecs, picture):
    from mcml.model import model_files

    monkeypatch.setattr(model_files, "released_folder", lambda: codecs("fusion").folder.parent)
    data = codecs("fusion").encode(picture, 20)
    assert model_files.name_of(codecs("fusion").identity) == "fusion"
    assert codec_of(data).name == "fusion"
    np.testing.assert_array_equal(codec_of(data).decode(data), codecs("fusion").decode(data))


# ------------------------------------------------------------------------------ other machines

ELSEWHERE = """
import hashlib, sys
import numpy as np, torch
from mcml.codec import container as bitstream
from mcml.codec.learned import LearnedCodec
torch.set_num_threads(int(sys.argv[4]))
found = LearnedCodec(sys.argv[1])
data = open(sys.argv[2], "rb").read()
tiles, _ = found.coder.read(*bitstream.read(data), False, None)
digest = hashlib.sha256()
for of in tiles:
    for key, (bits, opened) in of.items():
        digest.update(bits.tobytes() + opened.tobytes())
np.save(sys.argv[3], found.decode(data))
print(digest.hexdigest(), torch.backends.cpu.get_cpu_capability())
"""


OLD_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott", "ONEDNN_MAX_CPU_ISA": "SSE41",
}  # fmt: skip


@pytest.mark.parametrize(
    "environment, threads, capability",
    [
        ({}, 2, ""),
        (OLD_MACHINE, 1, "DEFAULT"),
    ],
    ids=["two threads", "another machine's instructions"],
)  # fmt: skip
def test_integers_are_equal_elsewhere_and_pixels_within_one_level(
    fusion, picture, tmp_path, environment, threads, capability
):
    data = fusion.encode(picture, 80, adaptive=True, layers=2, tile_px=64)
    (tmp_path / "file.mcml").write_bytes(data)
    arguments = [fusion.folder, tmp_path / "file.mcml", tmp_path / "pixels.npy", threads]
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), **environment},
    )  # fmt: skip
    digest = hashlib.sha256()
    for of in integers(fusion, data)[1]:
        for bits, opened in of.values():
            digest.update(bits.tobytes() + opened.tobytes())
    there, found = ran.stdout.split()
    assert found == (capability or found)
    assert there == digest.hexdigest()
    pixels = np.load(tmp_path / "pixels.npy").astype(int)
    assert abs(pixels - fusion.decode(data)).max() <= 1


def test_one_and_two_threads_of_torch_give_the_same_integers(fusion, picture):
    before, found = torch.get_num_threads(), []
    data = fusion.encode(picture, 80, adaptive=True)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tiles = integers(fusion, data)[1]
            found.append((fusion.decode(data).astype(int), [part.tobytes() for part in tiles[0]["Cr"]]))
    finally:
        torch.set_num_threads(before)
    assert found[0][1] == found[1][1]
    assert abs(found[0][0] - found[1][0]).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_networks_decode_to_the_same_pixels_within_one_level(tmp_path, picture):
    found = tiny_codec(tmp_path / "model", "fusion")
    data = found.encode(picture, 80)
    eager = found.decode(data).astype(int)
    for stream in found.model.streams.values():
        stream.decoder = torch.compile(stream.decoder)
    assert abs(found.decode(data) - eager).max() <= 1
