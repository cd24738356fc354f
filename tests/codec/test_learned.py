"""The learned codec on the smallest networks: files of any picture come back as the encoder's integers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio
from threadpoolctl import threadpool_info, threadpool_limits

from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError, UsageError
from mcml.codec import container
from mcml.codec.interface import bits_per_pixel, encode_at_bpp, get_codec
from mcml.codec.learned import LearnedCodec
from mcml.codec.transforms import synthesis_transform
from mcml.data.sets import image_set
from mcml.model import model_files, weights
from mcml.model.settings import VARIANTS

OPTIONS = [
    {}, {"adaptive": True}, {"layers": 3}, {"adaptive": True, "layers": 4, "tile_px": 64}, {"tile_px": 64},
    {"layers": 255},
]  # fmt: skip


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def integers(codec, data, **options):
    """Return what a file decodes to before the networks: packed bits and opened groups by stream."""
    header, chunks = container.read(data)
    return header, codec.coder.read(header, chunks, **options)[0]


def assert_integers(codec, analysis, data, quality, adaptive=False, layers=1, tile_px=1024):
    """Check the decoded integers against the encoder's networks, apart from the coder."""
    header, codes = integers(codec, data)
    assert (header.height, header.width) == analysis.size
    assert (header.adaptive, header.layers, header.tile_px) == (adaptive, layers, tile_px)
    assert set(codes) == set(codec.coder.keys)
    for key, (packed, opened) in codes.items():
        levels = codec.coder.uniform(header, key)
        if adaptive:
            levels = codec.coder.adaptive(key, analysis.logits[key], quality)
        np.testing.assert_array_equal(opened, levels)
        mask = np.packbits(codec.coder.channel_groups(key) <= levels[..., None], axis=-1)
        np.testing.assert_array_equal(packed, analysis.bits[key] & mask)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), quality=st.floats(0, 100), seed=st.integers(0, 99),
    options=st.sampled_from(OPTIONS), variant=st.sampled_from(sorted(VARIANTS)),
)  # fmt: skip
@example(height=1, width=1, quality=60, seed=0, options=OPTIONS[0], variant="fusion")
@example(height=70, width=1, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
@example(height=1, width=70, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
@example(height=8, width=8, quality=60, seed=0, options=OPTIONS[0], variant="fusion")
@example(height=65, width=129, quality=60, seed=0, options=OPTIONS[3], variant="fusion")
def test_pictures_of_any_size_come_back_as_the_encoders_integers(
    codecs, height, width, quality, seed, options, variant
):
    codec, image = codecs(variant), noise(height, width, seed)
    data = codec.encode(image, quality, **options)
    analysis = codec.analyse(image, options.get("tile_px", 1024))
    assert_integers(codec, analysis, data, quality, **options)
    decoded = codec.decode_detailed(data)
    assert decoded.image.shape == image.shape and decoded.image.dtype == np.uint8
    assert decoded.layers == decoded.header.layers == options.get("layers", 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", [*sorted(VARIANTS), "without maps"])
def test_every_variant_decodes_with_every_option_whole_and_luma_alone(codecs, crop, variant, options):
    uniform = variant == "without maps"
    codec = codecs("fusion", **{"model.color.importance": "uniform"}) if uniform else codecs(variant)
    analysis = codec.analyse(crop, options.get("tile_px", 1024))
    packing = {name: value for name, value in options.items() if name != "tile_px"}
    if uniform and packing.get("adaptive"):
        with pytest.raises(UsageError, match="no importance maps"):
            codec.pack(analysis, 50, **packing)
        return
    for quality in (0, 41.3, 100, 70):
        data = codec.pack(analysis, quality, **packing).data
        assert_integers(codec, analysis, data, quality, **options)
        assert codec.decode(data).shape == crop.shape
    if variant == "rgb":
        with pytest.raises(UsageError, match="no luma to decode alone"):
            codec.decode(data, luma_only=True)
        return
    grey = codec.decode(data, luma_only=True)
    assert (grey == grey[..., :1]).all()
    (_, whole), (_, luma) = integers(codec, data), integers(codec, data, luma_only=True)
    assert set(luma) == {"Y"}
    for array, alone in zip(whole["Y"], luma["Y"], strict=True):
        np.testing.assert_array_equal(array, alone)
    packed, opened = luma["Y"]
    sign = 2 * np.unpackbits(packed, axis=-1, count=16).astype(np.int8) - 1
    code = sign * (codec.coder.channel_groups("Y") <= opened[..., None])
    expected = synthesis_transform(codec.model, {"Y": code})[:72, :80].astype(int)
    assert abs(expected - grey).max() <= 1


def test_adaptive_levels_follow_the_quality_and_the_map_from_none_to_all(fusion, astronaut):
    for key, top in fusion.coder.tops.items():
        logits = fusion.analyse(astronaut).logits[key]
        assert logits.std() > 0.1
        levels = np.stack([fusion.coder.adaptive(key, logits, of) for of in np.linspace(0, 100, 21)])
        assert (np.diff(levels, axis=0) >= 0).all()
        assert (levels[0] == 0).mean() > 0.9 and (levels[-1] == top).mean() > 0.9
        assert (np.diff(levels[10].ravel()[logits.ravel().argsort()]) >= 0).all()
    middles = np.log([(k + 0.5) / (4.5 - k) for k in range(5)]).astype(np.float32)  # p = (k + 1/2) / 5
    np.testing.assert_array_equal(fusion.coder.adaptive("Y", middles, 50), np.arange(5))


def test_qualities_options_and_pictures_that_cannot_be_coded_are_refused(fusion, crop):
    for quality in (-1, 101, float("nan")):
        with pytest.raises(UsageError, match="is not a number from 0 to 100"):
            fusion.encode(crop, quality)
    for options in ({"layers": 0}, {"layers": 256}, {"tile_px": 100}, {"tile_px": 32}):
        with pytest.raises(DataError, match=r"layers|tiles of"):
            fusion.encode(crop, 50, **options)
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DataError, match="expected"):
            fusion.encode(image, 50)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"layers": 2}], ids=str)
def test_a_file_is_its_ideal_bits_and_a_small_overhead(codecs, variant, options):
    """Within 1 % and the container; a chunk also ends in up to 4 bytes of the range coder's."""
    codec = codecs(variant)
    analysis = codec.analyse(noise(200, 280))
    for quality in (20, 100):
        encoded = codec.pack(analysis, quality, **options)
        header, chunks = container.read(encoded.data)
        ideal = sum(encoded.ideal_bits.values()) / 8
        framing = len(header.pack()) + sum(4 + 1 + (len(chunk) > 127) for chunk in chunks)
        assert len(encoded.data) == framing + sum(map(len, chunks))
        assert ideal - 4 <= sum(map(len, chunks)) <= 1.01 * ideal + 4 * len(chunks)
        assert set(encoded.ideal_bits) == set(encoded.raw_bits)
        maps = {f"{key} map" for key in codec.coder.keys} if options.get("adaptive") else set()
        assert set(encoded.ideal_bits) == {*codec.coder.keys, *maps}


@pytest.mark.parametrize("adaptive", [False, True])
def test_files_grow_along_the_range(fusion, crop, adaptive):
    analysis = fusion.analyse(crop)
    files = [fusion.pack(analysis, quality, adaptive=adaptive) for quality in np.linspace(0, 100, 26)]
    sizes = [len(file.data) for file in files]
    slack = 24 if adaptive else 0  # a map's own size
    assert all(b >= a - slack - 3 for a, b in pairwise(sizes))  # and 3 bytes where the coder ends
    assert sizes[-1] > (2 if adaptive else 3) * sizes[0]
    if not adaptive:  # every bit is open at the end
        assert sum(files[0].raw_bits.values()) == 0
        assert files[-1].raw_bits == dict.fromkeys(("Y", "Cb", "Cr"), 16 * 9 * 10)
    ideal = [sum(file.ideal_bits.values()) for file in files]
    assert adaptive or all(b > a for a, b in pairwise(ideal))


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"tile_px": 64, "layers": 2}], ids=str)
@pytest.mark.parametrize("variant", ["fusion", "rgb"])
def test_search_hits_sizes_within_2_percent_and_analyses_once(codecs, variant, options):
    codec, image = codecs(variant), noise(160, 128)
    encoder = codec.encoder(image, **options)
    smallest, largest = (bits_per_pixel(encoder(quality), image) for quality in (1, 100))
    for share in (0.4, 0.9):
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
    for codec in (fusion, get_codec("webp")):
        search = encode_at_bpp(codec, noise(1, 1), 0.5)
        assert not search.reached and search.bpp == 8 * len(search.data)


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
def test_prefixes_decode_layer_by_layer_to_ever_better_pictures(fusion, crop, adaptive, tile_px):
    """And the whole file is the plain one with a few bytes more."""
    analysis = fusion.analyse(crop, tile_px)
    plain, layered = (fusion.pack(analysis, 100, adaptive=adaptive, layers=layers) for layers in (1, 4))
    data = layered.data
    assert layered.raw_bits == plain.raw_bits
    header, chunks = container.read(data)
    order = list(header.order())
    ends = len(header.pack()) + np.cumsum([len(c) + 5 + (len(c) > 127) for c in chunks])
    assert ends[-1] == len(data)
    qualities = []
    for layer in range(4):
        end = int(ends[max(i for i, (of, *_) in enumerate(order) if of == layer)])
        whole = fusion.decode(data, layers=layer + 1)
        for more in (0, 1, 4, 9) if layer < 3 else (0,):  # bytes of the next layer's first chunk
            decoded = fusion.decode_detailed(data[: end + more], partial=True)
            assert decoded.layers == layer + 1
            np.testing.assert_array_equal(decoded.image, whole)
        qualities.append(peak_signal_noise_ratio(crop, whole))
    assert all(b > a + 0.1 for a, b in pairwise(qualities)), qualities
    np.testing.assert_array_equal(fusion.decode(data, layers=99), fusion.decode(data))
    np.testing.assert_array_equal(fusion.decode(data), fusion.decode(plain.data))
    assert len(data) <= len(plain.data) + 1 + 9 * 10 * header.tile_count()


def test_layers_of_adaptive_files_share_the_groups_that_are_sent(fusion, crop):
    header, _ = container.read_header(fusion.encode(crop, 40, adaptive=True, layers=4))
    rng = np.random.default_rng(0)
    for most in (0, 1, 5, 16):
        opened = rng.binomial(most, 0.3, (9, 11))
        sent = [0, *np.cumsum([np.count_nonzero(opened > g) for g in range(16)])]
        last = [fusion.coder.last_group(header, "Y", layer, opened) for layer in range(4)]
        assert last[-1] == opened.max()
        for number, group in enumerate(last, start=1):
            assert 4 * sent[group] >= number * sent[-1]
            assert group == 0 or 4 * sent[group - 1] < number * sent[-1]


def test_every_prefix_decodes_to_more_or_is_refused(fusion, crop):
    data, done = fusion.encode(crop[:40, :48], 100, adaptive=True, layers=3), 0
    for cut in range(len(data) + 1):
        try:
            layers = fusion.coder.read(*container.read(data[:cut], partial=True))[1]
        except CorruptStreamError:
            assert done == 0
            continue
        assert layers >= done
        done = layers
    assert done == 3


@pytest.mark.parametrize("depth", [{}, {"model.luma.groups": 2, "model.luma.blocks": 2}], ids=str)
def test_tiles_leave_no_seams(codecs, depth):
    """The halo of 16 positions is wider than what these networks see: at most rounding differs."""
    codec = codecs("fusion", **depth)
    image = image_set("embedded").read("coffee")[:200, :264]
    first, second = (codec.analyse(image, side) for side in (1024, 64))
    whole, tiled = (codec.decode(codec.pack(of, 90).data).astype(int) for of in (first, second))
    for key in codec.coder.keys:
        assert (first.bits[key] != second.bits[key]).mean() <= 8e-3  # of bytes: 1e-3 of bits
    assert (whole != tiled).mean() <= 1e-3
    assert abs(whole - tiled).max() <= 1


def test_files_of_another_model_are_refused_by_name(codecs, fusion, crop):
    data, other = fusion.encode(crop, 20), codecs("independent")
    words = f"was written by model {fusion.identity.hex()}: independent is {other.identity.hex()}"
    with pytest.raises(UnsupportedStreamError, match=words):
        other.decode(data)
    with pytest.raises(UnsupportedStreamError, match="which is not here"):
        model_files.name_of(fusion.identity)
    released = (ROOT / "tests" / "golden" / "fusion.mcml").read_bytes()
    with pytest.raises(UnsupportedStreamError, match="written by fusion: independent cannot decode it"):
        LearnedCodec("independent").decode(released)


def test_a_file_that_claims_to_be_of_the_model_but_is_not_is_refused(codecs, astronaut):
    """The identity and every checksum are put right; streams and digest still differ."""
    header, chunks = container.read(codecs("luma").encode(astronaut, 60))
    for name, words in (("fusion", "names 1 streams, the model has 3"), ("rgb", "symbols|differ")):
        forged = container.write(replace(header, model=codecs(name).identity), chunks)
        with pytest.raises(CorruptStreamError, match=words):
            codecs(name).decode(forged)


def copied(folder, source, **changes):
    """Copy a model's folder, with other contents of its configuration."""
    shutil.copytree(source.folder, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize("what", ["weights", "entropy", "config"])
def test_a_model_whose_files_are_not_of_one_model_decodes_nothing(codecs, fusion, crop, tmp_path, what):
    changes = {"identity": fusion.identity[::-1].hex() * 4} if what == "config" else {}
    folder = copied(tmp_path / "model", fusion, **changes)
    if what != "config":
        shutil.copy(codecs("fusion", seed=1).folder / f"{what}-0.safetensors.gz", folder)
    with pytest.raises((DataError, UnsupportedStreamError)):
        LearnedCodec(folder).decode(fusion.encode(crop, 20))


def test_a_model_without_an_entropy_coder_is_refused(tmp_path, fusion):
    weights.save_model(fusion.model, tmp_path / "model", {})
    with pytest.raises(DataError, match="no entropy model yet"):
        LearnedCodec(tmp_path / "model")
    with pytest.raises(UsageError, match="unknown model"):
        LearnedCodec("no-such-model")
    folder = copied(tmp_path / "copy", fusion, shared="elsewhere")
    (folder / "entropy-0.safetensors.gz").unlink()
    with pytest.raises(DataError, match="coder of elsewhere, which is not beside it"):
        LearnedCodec(folder)


def test_models_that_share_luma_decode_like_those_that_do_not(fusion, crop, tmp_path):
    copied(tmp_path / "first", fusion)
    folder = copied(tmp_path / "second", fusion, shared="first")
    for path in folder.glob("*.safetensors.gz"):
        path.unlink()
    weights.save_tensors(folder, "weights", {"rate_slope": fusion.model.rate_slope})
    second, data = LearnedCodec(folder), fusion.encode(crop, 50)
    assert second.identity == fusion.identity
    assert second.encode(crop, 50) == data
    np.testing.assert_array_equal(second.decode(data), fusion.decode(data))


def test_names_of_models_come_from_their_files(monkeypatch, fusion, crop):
    monkeypatch.setattr(model_files, "released_folder", lambda: fusion.folder.parent)
    data = fusion.encode(crop, 20)
    named = LearnedCodec(model_files.name_of(data[10:18]))
    assert named.name == "fusion"
    np.testing.assert_array_equal(named.decode(data), fusion.decode(data))


ELSEWHERE = """
import sys
import numpy as np, torch
from mcml.codec.learned import LearnedCodec
torch.set_num_threads(2)
np.save(sys.argv[3], LearnedCodec(sys.argv[1]).decode(open(sys.argv[2], "rb").read()))
print(torch.backends.cpu.get_cpu_capability())
"""
MACHINES = {
    "old": {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


@pytest.mark.parametrize("which, machine", [("fusion", "old"), ("latents", "old"), ("latents", "avx2")])
def test_integers_are_equal_on_other_machines_and_pixels_within_one_level(
    request, astronaut, tmp_path, which, machine
):
    """A whole file's digest is of the integers: decoding raises if one differs."""
    codec, file, pixels = request.getfixturevalue(which), tmp_path / "file.mcml", tmp_path / "pixels.npy"
    options = {"fusion": {"adaptive": True, "layers": 2}, "latents": {}}[which]
    file.write_bytes(codec.encode(astronaut, 80, tile_px=64, **options))
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, codec.folder, file, pixels], capture_output=True, text=True,
        timeout=300, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "2", **MACHINES[machine]},
    )  # fmt: skip
    assert ran.stdout.strip() in ("DEFAULT", "NO AVX") or machine != "old"
    assert abs(np.load(pixels).astype(int) - codec.decode(file.read_bytes())).max() <= 1


@pytest.mark.parametrize("which", ["fusion", "latents"])
def test_numbers_of_threads_stay_as_the_caller_set_them(request, which, astronaut):
    """And whatever they are, of torch and of BLAS, a file decodes to the same integers."""

    def threads():
        pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
        return torch.get_num_threads(), pools

    codec, before, files, pictures = request.getfixturevalue(which), torch.get_num_threads(), [], []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            with threadpool_limits(number, user_api="blas"):
                wanted = threads()
                files.append(codec.encode(astronaut, 80))
                pictures.append(codec.decode(files[0]).astype(int))  # which checks the integers' digest
                with pytest.raises(CorruptStreamError):
                    codec.decode(files[-1][:-1])
                encode_at_bpp(codec, astronaut, 0.5)
                assert threads() == wanted
    finally:
        torch.set_num_threads(before)
    assert abs(len(files[0]) - len(files[1])) <= 8  # a float may round a bit over the threshold
    assert abs(pictures[0] - pictures[1]).max() <= 1


NO_COMPILER = shutil.which(os.environ.get("CXX", "c++")) is None


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("which", ["fusion", "latents"])
def test_compiled_networks_decode_to_the_same_pixels_within_one_level(request, which, astronaut):
    whole = request.getfixturevalue(which)
    codec, data = LearnedCodec(whole.folder), whole.encode(astronaut, 80)
    for stream in codec.model.streams.values():
        stream.decoder = torch.compile(stream.decoder)
    assert abs(codec.decode(data).astype(int) - whole.decode(data)).max() <= 1
