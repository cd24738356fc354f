"""The learned codec on the smallest networks: files of any picture come back as the encoder's integers."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ROOT, tiny_codec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError, UsageError
from mcml.codec import container
from mcml.codec.container import Header
from mcml.codec.interface import bits_per_pixel, encode_at_bpp, get_codec
from mcml.codec.learned import LearnedCodec, codec_of
from mcml.codec.transforms import synthesis_transform
from mcml.data.sets import image_set
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


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def psnr(image, other):
    return -10 * np.log10(np.mean((image.astype(float) - other) ** 2) / 255**2 + 1e-12)


def integers(codec, data, **options):
    """Return what a file decodes to before the networks: packed bits and opened groups by stream."""
    header, chunks = container.read(data)
    return header, codec.coder.read(header, chunks, **options)[0]


def assert_integers(codec, image, data, quality, adaptive=False, layers=1, tile_px=1024):
    """Check the decoded integers against the encoder's networks, apart from the coder."""
    header, codes = integers(codec, data)
    analysis = codec.analyse(image, tile_px)
    assert (header.height, header.width) == image.shape[:2]
    assert (header.adaptive, header.layers, header.tile_px) == (adaptive, layers, tile_px)
    assert set(codes) == set(codec.coder.keys)
    for key, (packed, opened) in codes.items():
        levels = codec.coder.uniform(header, key)
        if adaptive:
            levels = codec.coder.adaptive(key, analysis.logits[key], quality)
        np.testing.assert_array_equal(opened, levels)
        mask = np.packbits(codec.coder.channel_groups(key) <= levels[..., None], axis=-1)
        np.testing.assert_array_equal(packed, analysis.bits[key] & mask)


# --------------------------------------------------------------------------------- round trip


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), quality=st.floats(0, 100), seed=st.integers(0, 99),
    options=st.sampled_from(OPTIONS), variant=st.sampled_from(sorted(VARIANTS)),
)  # fmt: skip
@example(height=1, width=1, quality=60, seed=0, options={}, variant="fusion")
@example(height=70, width=1, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
@example(height=1, width=70, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
@example(height=8, width=8, quality=60, seed=0, options={}, variant="fusion")
@example(height=65, width=129, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
def test_pictures_of_any_size_come_back_as_the_encoders_integers(
    codecs, height, width, quality, seed, options, variant
):
    codec, image = codecs(variant), noise(height, width, seed)
    data = codec.encode(image, quality, **options)
    assert_integers(codec, image, data, quality, **options)
    decoded = codec.decode_detailed(data)
    assert decoded.image.shape == image.shape and decoded.image.dtype == np.uint8
    assert decoded.layers == decoded.header.layers == options.get("layers", 1)
    assert codec.encode(image, quality, **options) == data


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_decodes_with_every_option(codecs, astronaut, variant, options):
    codec = codecs(variant)
    for quality in (0, 41.3, 100):
        data = codec.encode(astronaut, quality, **options)
        assert_integers(codec, astronaut, data, quality, **options)
        assert codec.decode(data).shape == astronaut.shape


def test_maps_that_are_never_sent_decode_too(tmp_path, astronaut):
    codec = tiny_codec(tmp_path / "other", "fusion", **{"model.color.importance": "uniform"})
    for quality, layers in itertools.product((0, 30, 100), (1, 3)):
        data = codec.encode(astronaut, quality, layers=layers)
        assert_integers(codec, astronaut, data, quality, layers=layers)
    with pytest.raises(UsageError, match="no importance maps"):
        codec.encode(astronaut, 50, adaptive=True)


def test_adaptive_levels_follow_the_quality_and_the_map_from_none_to_all(fusion, astronaut):
    for key, top in fusion.coder.tops.items():
        logits = fusion.analyse(astronaut).logits[key]
        assert logits.std() > 0.1
        levels = np.stack(
            [fusion.coder.adaptive(key, logits, quality) for quality in np.linspace(0, 100, 21)]
        )
        assert (np.diff(levels, axis=0) >= 0).all()
        assert (levels[0] == 0).mean() > 0.9 and (levels[-1] == top).mean() > 0.9
        assert (np.diff(levels[10].ravel()[logits.ravel().argsort()]) >= 0).all()
    middles = np.log([(k + 0.5) / (4.5 - k) for k in range(5)]).astype(np.float32)  # p = (k + 1/2) / 5
    np.testing.assert_array_equal(fusion.coder.adaptive("Y", middles, 50), np.arange(5))


@pytest.mark.parametrize("quality", [-1, 101, float("nan")])
def test_qualities_outside_the_range_are_refused(fusion, astronaut, quality):
    with pytest.raises(UsageError):
        fusion.encode(astronaut, quality)


@pytest.mark.parametrize(
    "options", [{"layers": 0}, {"layers": 256}, {"tile_px": 100}, {"tile_px": 32}], ids=str
)
def test_options_that_the_format_cannot_hold_are_refused(fusion, astronaut, options):
    with pytest.raises(DataError, match=r"layers|tiles of"):
        fusion.encode(astronaut, 50, **options)


def test_pictures_that_are_none_are_refused(fusion):
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DataError):
            fusion.encode(image, 50)


# --------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"layers": 2}], ids=str)
def test_a_file_is_its_ideal_bits_and_a_small_overhead(codecs, variant, options):
    """Within 1 % and the container; a chunk also ends in up to 4 bytes of the range coder's."""
    codec = codecs(variant)
    analysis = codec.analyse(noise(300, 280))
    for quality in (20, 100):
        encoded = codec.pack(analysis, quality, **options)
        header, chunks = container.read(encoded.data)
        ideal = sum(encoded.ideal_bits.values()) / 8
        framing = len(header.pack()) + sum(4 + 1 + (len(chunk) > 127) for chunk in chunks)
        assert len(encoded.data) == framing + sum(map(len, chunks))
        assert ideal - 4 <= sum(map(len, chunks)) <= 1.01 * ideal + 4 * len(chunks)
        if not options.get("layers"):
            assert framing <= 64
        assert set(encoded.ideal_bits) == set(encoded.raw_bits)
        maps = {f"{key} map" for key in codec.coder.keys} if options.get("adaptive") else set()
        assert set(encoded.ideal_bits) == {*codec.coder.keys, *maps}


def test_raw_bits_are_the_open_ones(fusion, astronaut):
    analysis = fusion.analyse(astronaut)
    encoded = fusion.pack(analysis, 100)
    positions = (astronaut.shape[0] // 8) * (astronaut.shape[1] // 8)
    assert encoded.raw_bits == dict.fromkeys(("Y", "Cb", "Cr"), 16 * positions)
    assert sum(fusion.pack(analysis, 0).raw_bits.values()) == 0
    layered = fusion.pack(analysis, 100, layers=4)
    assert layered.raw_bits == encoded.raw_bits


@pytest.mark.parametrize("adaptive", [False, True])
def test_files_grow_along_the_range(fusion, astronaut, adaptive):
    analysis = fusion.analyse(astronaut)
    files = [fusion.pack(analysis, quality, adaptive=adaptive) for quality in np.linspace(0, 100, 26)]
    sizes = [len(file.data) for file in files]
    slack = 24 if adaptive else 0  # a map's own size
    assert all(b >= a - slack - 3 for a, b in pairwise(sizes))  # and 3 bytes where the coder ends
    assert sizes[-1] > 3 * sizes[0]
    ideal = [sum(file.ideal_bits.values()) for file in files]
    assert adaptive or all(b > a for a, b in pairwise(ideal))


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"tile_px": 64, "layers": 2}], ids=str)
@pytest.mark.parametrize("variant", ["fusion", "rgb"])
def test_search_hits_sizes_within_2_percent_and_analyses_once(codecs, variant, options):
    codec, image = codecs(variant), noise(256, 256)
    encoder = codec.encoder(image, **options)
    smallest, largest = (bits_per_pixel(encoder(quality), image) for quality in (1, 100))
    for share in (0.3, 0.55, 0.9):
        target = smallest + share * (largest - smallest)
        hit = encode_at_bpp(codec, image, target, encoder=encoder)
        assert hit.reached, hit.explain(variant)
        assert hit.bpp == bits_per_pixel(hit.data, image)
        assert hit.data == encoder(hit.quality)
    assert hit.data == codec.encode(image, hit.quality, **options)
    assert encode_at_bpp(get_codec(str(codec.folder)), image, target, **options) == hit


def test_search_beyond_the_ends_gives_the_ends_after_few_files(fusion, astronaut):
    encoder, tried = fusion.encoder(astronaut), []

    def counted(quality):
        tried.append(quality)
        return encoder(quality)

    for target, end in ((1e-4, 0), (20, 100)):
        tried.clear()
        search = encode_at_bpp(fusion, astronaut, target, encoder=counted)
        assert not search.reached and search.data == fusion.encode(astronaut, end)
        assert len(tried) <= 3
    assert not encode_at_bpp(fusion, noise(1, 1), 0.5).reached


# --------------------------------------------------------------------------- parts of a file


@pytest.mark.parametrize("variant", ["fusion", "independent"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_luma_alone_is_the_luma_of_the_whole_file(codecs, astronaut, variant, options):
    codec = codecs(variant)
    data = codec.encode(astronaut, 70, **options)
    grey = codec.decode(data, luma_only=True)
    assert (grey == grey[..., :1]).all()
    (_, whole), (_, luma) = integers(codec, data), integers(codec, data, luma_only=True)
    assert set(luma) == {"Y"}
    for array, alone in zip(whole["Y"], luma["Y"], strict=True):
        np.testing.assert_array_equal(array, alone)
    packed, opened = luma["Y"]
    sign = 2 * np.unpackbits(packed, axis=-1, count=16).astype(np.int8) - 1
    code = sign * (codec.coder.channel_groups("Y") <= opened[..., None])
    expected = synthesis_transform(codec.model, {"Y": code})[:128, :160].astype(int)
    assert abs(expected - grey).max() <= 1


def test_luma_alone_needs_nothing_after_its_chunk(fusion, astronaut):
    data = fusion.encode(astronaut, 70)
    header, chunks = container.read(data)
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
def test_prefixes_decode_layer_by_layer_to_ever_better_pictures(fusion, astronaut, adaptive, tile_px):
    data = fusion.encode(astronaut, 100, adaptive=adaptive, tile_px=tile_px, layers=4)
    header, chunks = container.read(data)
    order = list(header.order())
    ends = len(header.pack()) + np.cumsum([len(c) + 5 + (len(c) > 127) for c in chunks])
    assert ends[-1] == len(data)
    qualities = []
    for layer in range(4):
        end = int(ends[max(i for i, (of, *_) in enumerate(order) if of == layer)])
        found = fusion.decode_detailed(data[:end], partial=True)
        assert found.layers == layer + 1
        qualities.append(psnr(astronaut, found.image))
        np.testing.assert_array_equal(found.image, fusion.decode(data, layers=layer + 1))
        if layer < 3:
            for more in (1, 4, 9):  # bytes of the next layer's first chunk
                again = fusion.decode_detailed(data[: end + more], partial=True)
                assert again.layers == layer + 1
                np.testing.assert_array_equal(again.image, found.image)
    assert all(b > a + 0.1 for a, b in pairwise(qualities)), qualities
    np.testing.assert_array_equal(fusion.decode(data, layers=99), fusion.decode(data))


def test_layers_of_adaptive_files_share_the_groups_that_are_sent(fusion, astronaut):
    header, _ = container.read_header(fusion.encode(astronaut, 40, adaptive=True, layers=4))
    rng = np.random.default_rng(0)
    for most in (0, 1, 5, 16):
        opened = rng.binomial(most, 0.3, (9, 11))
        sent = [0, *np.cumsum([np.count_nonzero(opened > g) for g in range(16)])]
        last = [fusion.coder.last_group(header, "Y", layer, opened) for layer in range(4)]
        assert last[-1] == opened.max()
        for number, group in enumerate(last, start=1):
            assert 4 * sent[group] >= number * sent[-1]
            assert group == 0 or 4 * sent[group - 1] < number * sent[-1]


def test_every_prefix_decodes_to_more_or_is_refused(fusion, astronaut):
    data = fusion.encode(astronaut[:40, :48], 100, adaptive=True, layers=3)
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


def test_a_layered_file_is_the_plain_one_and_a_few_bytes(fusion, astronaut):
    plain, layered = fusion.encode(astronaut, 80), fusion.encode(astronaut, 80, layers=3)
    np.testing.assert_array_equal(fusion.decode(layered), fusion.decode(plain))
    assert len(layered) <= len(plain) + 1 + 6 * 10


# -------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("depth", [{}, {"model.luma.groups": 2, "model.luma.blocks": 2}], ids=str)
def test_tiles_leave_no_seams(tmp_path, depth):
    """The halo of 16 positions is wider than what these networks see: at most rounding differs."""
    codec = tiny_codec(tmp_path / "model", "fusion", **depth)
    image = image_set("embedded").read("coffee")[:280, :330]
    whole = codec.decode(codec.encode(image, 90)).astype(int)
    tiled = codec.decode(codec.encode(image, 90, tile_px=64))
    first, second = (codec.analyse(image, side) for side in (1024, 64))
    for key in codec.coder.keys:
        assert (first.bits[key] != second.bits[key]).mean() <= 8e-3  # of bytes: 1e-3 of bits
    assert (whole != tiled).mean() <= 1e-3
    assert abs(whole - tiled).max() <= 1


# ----------------------------------------------------------------------------------- refusals


def test_files_of_another_model_are_refused_by_name(codecs, astronaut):
    data = codecs("fusion").encode(astronaut, 20)
    mine, other = (codecs(name).identity.hex() for name in ("fusion", "independent"))
    with pytest.raises(UnsupportedStreamError, match=f"was written by model {mine}: independent is {other}"):
        codecs("independent").decode(data)
    with pytest.raises(UnsupportedStreamError, match="which is not here"):
        codec_of(data)
    assert codec_of(data, codecs("fusion").folder).identity == codecs("fusion").identity
    released = (ROOT / "tests" / "golden" / "fusion.mcml").read_bytes()
    with pytest.raises(UnsupportedStreamError, match="written by fusion: independent cannot decode it"):
        LearnedCodec("independent").decode(released)


def test_a_file_that_claims_to_be_of_the_model_but_is_not_is_refused(codecs, astronaut):
    """The identity and every checksum are put right; streams and digest still differ."""
    header, chunks = container.read(codecs("luma").encode(astronaut, 60))
    forged = container.write(Header(**{**vars(header), "model": codecs("fusion").identity}), chunks)
    with pytest.raises(CorruptStreamError, match="names 1 streams, the model has 3"):
        codecs("fusion").decode(forged)
    header, chunks = container.read(codecs("luma").encode(astronaut, 60))
    forged = container.write(Header(**{**vars(header), "model": codecs("rgb").identity}), chunks)
    with pytest.raises(CorruptStreamError):
        codecs("rgb").decode(forged)


@pytest.mark.parametrize("what", ["weights", "entropy", "config"])
def test_a_model_whose_files_are_not_of_one_model_decodes_nothing(codecs, astronaut, tmp_path, what):
    shutil.copytree(codecs("fusion").folder, tmp_path / "model")
    data = codecs("fusion").encode(astronaut, 20)
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


def test_models_that_share_luma_decode_like_those_that_do_not(codecs, astronaut, tmp_path):
    source = codecs("fusion")
    shutil.copytree(source.folder, tmp_path / "first")
    second = tmp_path / "second"
    second.mkdir()
    content = json.loads((source.folder / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**content, "shared": "first", "zeros": {}}))
    weights.save_tensors(second, "weights", {"rate_slope": source.model.rate_slope})
    second = LearnedCodec(second)
    assert second.identity == source.identity
    data = source.encode(astronaut, 50)
    assert second.encode(astronaut, 50) == data
    np.testing.assert_array_equal(second.decode(data), source.decode(data))


def test_names_of_models_come_from_their_files(monkeypatch, codecs, astronaut):
    from mcml.model import model_files

    monkeypatch.setattr(model_files, "released_folder", lambda: codecs("fusion").folder.parent)
    data = codecs("fusion").encode(astronaut, 20)
    assert model_files.name_of(codecs("fusion").identity) == "fusion"
    assert codec_of(data).name == "fusion"
    np.testing.assert_array_equal(codec_of(data).decode(data), codecs("fusion").decode(data))


# ------------------------------------------------------------------------------ other machines

ELSEWHERE = """
import sys
import numpy as np, torch
from mcml.codec import container
from mcml.codec.learned import LearnedCodec
torch.set_num_threads(int(sys.argv[4]))
codec = LearnedCodec(sys.argv[1])
data = open(sys.argv[2], "rb").read()
codes, _ = codec.coder.read(*container.read(data))
arrays = {f"{key} {name}": array for key, of in codes.items() for name, array in zip(("bits", "opened"), of)}
np.savez(sys.argv[3], pixels=codec.decode(data), **arrays)
print(torch.backends.cpu.get_cpu_capability())
"""
OLD_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott", "ONEDNN_MAX_CPU_ISA": "SSE41",
}  # fmt: skip


@pytest.mark.parametrize("environment, threads", [({}, 2), (OLD_MACHINE, 1)], ids=["threads", "instructions"])
def test_integers_are_equal_elsewhere_and_pixels_within_one_level(
    fusion, astronaut, tmp_path, environment, threads
):
    data = fusion.encode(astronaut, 80, adaptive=True, layers=2, tile_px=64)
    (tmp_path / "file.mcml").write_bytes(data)
    arguments = [fusion.folder, tmp_path / "file.mcml", tmp_path / "arrays.npz", threads]
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), **environment},
    )  # fmt: skip
    assert not environment or ran.stdout.strip() in ("DEFAULT", "NO AVX")
    there = np.load(tmp_path / "arrays.npz")
    for key, (bits, opened) in integers(fusion, data)[1].items():
        np.testing.assert_array_equal(there[f"{key} bits"], bits)
        np.testing.assert_array_equal(there[f"{key} opened"], opened)
    assert abs(there["pixels"].astype(int) - fusion.decode(data)).max() <= 1


def test_numbers_of_threads_stay_as_the_caller_set_them(fusion, astronaut):
    """And files are equal whatever they are: threads of torch and of BLAS."""

    def threads():
        return torch.get_num_threads(), [
            (pool["filepath"], pool["num_threads"]) for pool in threadpool_info()
        ]

    before, files = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            with threadpool_limits(number, user_api="blas"):
                wanted = threads()
                files.append(fusion.encode(astronaut, 80))
                fusion.decode(files[-1])
                with pytest.raises(CorruptStreamError):
                    fusion.decode(files[-1][:-1])
                encode_at_bpp(fusion, astronaut, 0.5)
                assert threads() == wanted
    finally:
        torch.set_num_threads(before)
    assert abs(len(files[0]) - len(files[1])) <= 8  # a float may round a bit over the threshold


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_networks_decode_to_the_same_pixels_within_one_level(tmp_path, astronaut):
    found = tiny_codec(tmp_path / "model", "fusion")
    data = found.encode(astronaut, 80)
    eager = found.decode(data).astype(int)
    for stream in found.model.streams.values():
        stream.decoder = torch.compile(stream.decoder)
    assert abs(found.decode(data) - eager).max() <= 1
