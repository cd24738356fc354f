"""Files of scalar latents on the smallest networks: the encoder's symbols come back, whole and in part."""

import functools
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import reference_decoder
from helpers import tiny_scalar
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcml.base.errors import CorruptStreamError, UsageError
from mcml.codec import container, prior
from mcml.codec.container import LATENTS
from mcml.codec.interface import bits_per_pixel, encode_at_bpp, get_codec
from mcml.codec.prior import dial_of
from mcml.codec.transforms import synthesis_transform
from mcml.data.sets import image_set
from mcml.model.settings import VARIANTS

ALONE, COLOR = {"model.condition": "none"}, {"model.condition": "color"}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def symbols(codec, data, **options):
    header, chunks = container.read(data)
    return header, codec.coder.read(header, chunks, **options)[0]


def assert_symbols(codec, analysis, data, tile_px=1024):
    """Check the decoded symbols against the encoder's networks, apart from the coder."""
    header, found = symbols(codec, data)
    assert (header.version, header.height, header.width) == (LATENTS, *analysis.size)
    assert (header.tile_px, set(found)) == (tile_px, set(codec.coder.keys))
    for (key, of), dial in zip(found.items(), header.rates, strict=True):
        gain = np.exp2(codec.coder.priors[key].log_gains(dial) / 4096)
        assert of.dtype == np.int16 and abs(of - analysis.latents[key] * gain).max() <= 0.6
    return found


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), quality=st.floats(0, 100), seed=st.integers(0, 99),
    tile_px=st.sampled_from([64, 1024]), variant=st.sampled_from(sorted(VARIANTS)),
    extra=st.sampled_from([{}, ALONE, COLOR]),
)  # fmt: skip
@example(height=1, width=1, quality=60, seed=0, tile_px=1024, variant="fusion", extra={})
@example(height=70, width=1, quality=60, seed=0, tile_px=64, variant="fusion", extra={})
@example(height=1, width=70, quality=100, seed=0, tile_px=64, variant="fusion", extra=ALONE)
@example(height=65, width=129, quality=60, seed=0, tile_px=64, variant="rgb", extra={})
@example(height=70, width=70, quality=60, seed=0, tile_px=64, variant="independent", extra=COLOR)
def test_pictures_of_any_size_come_back_as_the_encoders_symbols(
    codecs, height, width, quality, seed, tile_px, variant, extra
):
    codec, image = codecs(variant, tiny_scalar, **extra), noise(height, width, seed)
    analysis = codec.analyse(image, tile_px)
    data = codec.pack(analysis, quality, rounding=0).data
    assert_symbols(codec, analysis, data, tile_px)
    decoded = codec.decode_detailed(data)
    assert decoded.image.shape == image.shape and decoded.image.dtype == np.uint8 and decoded.layers == 1
    rounded = codec.pack(analysis, quality, rounding=0.1).data
    assert codec.decode(rounded).shape == image.shape


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("hyperprior", [True, False])
def test_priors_of_fewer_steps_and_without_side_information_code_too(codecs, crop, steps, hyperprior):
    more = {f"model.{key}.{k}": v for key in ("luma", "color")
            for k, v in (("prior_steps", steps), ("hyperprior", hyperprior))}  # fmt: skip
    codec = codecs("independent", tiny_scalar, **more)
    analysis = codec.analyse(crop, 64)
    for quality in (0, 55, 100):
        assert_symbols(codec, analysis, codec.pack(analysis, quality, rounding=0).data, 64)


def test_a_file_is_its_ideal_bits_and_a_small_overhead(latents):
    analysis = latents.analyse(noise(200, 280))
    for quality in (20, 60, 100):
        encoded = latents.pack(analysis, quality)
        header, chunks = container.read(encoded.data)
        ideal = sum(encoded.ideal_bits.values()) / 8
        assert set(encoded.ideal_bits) == {"Y hyper", "Y", "Cb", "Cr"} and not encoded.raw_bits
        framing = len(header.pack()) + sum(5 + (len(c) > 127) + (len(c) > 16383) for c in chunks)
        assert len(encoded.data) == framing + sum(map(len, chunks)) and len(chunks) == 3
        assert ideal - 4 <= sum(map(len, chunks)) <= 1.001 * ideal + 4 * len(chunks)


def test_files_grow_along_the_dial_and_hit_a_wanted_size(latents, crop):
    analysis = latents.analyse(crop)
    sizes = [len(latents.pack(analysis, quality).data) for quality in np.linspace(0, 100, 26)]
    assert all(b >= a - 8 for a, b in pairwise(sizes)) and sizes[-1] > 10 * sizes[0]
    image = image_set("embedded").read("coffee")[:160, :200]
    encoder = latents.encoder(image)
    for target in (1.0, 2.5):
        hit = encode_at_bpp(latents, image, target, encoder=encoder)
        assert hit.bpp == bits_per_pixel(hit.data, image)
        assert abs(hit.bpp / target - 1) < 0.01, hit.explain("tiny")
    with pytest.raises(UsageError, match="is not a number from 0 to 100"):
        latents.encode(crop, 101)


def test_options_of_binary_codes_are_refused(latents, fusion, crop):
    for codec, option in ((latents, "adaptive"), (latents, "layers"), (fusion, "rounding")):
        with pytest.raises(UsageError, match=f"has no option {option}"):
            codec.encode(crop, 50, **{option: 1})


def test_colours_dial_lies_beyond_lumas_by_the_share(latents, crop):
    for quality, share in ((50, 0), (50, 7.5), (50, -60), (95, 20)):
        header, _ = container.read_header(latents.encode(crop, quality, color_share=share))
        luma, *color = header.rates
        assert luma == round(quality / 100 * prior.DIALS)
        assert color == 2 * [round(min(max(quality + share, 0), 100) / 100 * prior.DIALS)]


# ---------------------------------------------------------------------------------- files in part


def test_streams_coded_before_are_taken_over_as_they_are(latents, crop):
    codec, kept = latents, {}
    analysis = codec.analyse(crop)
    write = functools.partial(codec.coder.write, codec.header(analysis), analysis, 40)
    whole = {share: write(color_share=share).data for share in (0, 10)}
    assert write(color_share=0, kept=kept).data == whole[0]
    before = dict(kept)
    assert write(color_share=10, kept=kept).data == whole[10] != whole[0]
    assert len(before) == 3 and len(kept) == 5  # luma's dial is the same, both colours' are new
    assert all(kept[name] is part for name, part in before.items())


def test_luma_alone_is_decoded_from_its_chunks_alone(latents, crop):
    data = latents.encode(crop, 60, tile_px=64)
    header, chunks = container.read(data)
    grey = latents.decode(data, luma_only=True)
    found = symbols(latents, data, luma_only=True)[1]
    assert set(found) == {"Y"} and (grey == grey[..., :1]).all()
    np.testing.assert_array_equal(found["Y"], symbols(latents, data)[1]["Y"])
    own = latents.coder.priors["Y"]
    code = {"Y": own.latents(found["Y"], header.rates[0])}
    expected = synthesis_transform(latents.model, code, {"Y": dial_of(header.rates[0])})
    assert abs(expected[:72, :80].astype(int) - grey).max() <= 1
    cut = container.write(header, chunks[: len(chunks) // 3])
    np.testing.assert_array_equal(latents.decode(cut, luma_only=True, partial=True), grey)
    np.testing.assert_array_equal(latents.decode(cut, partial=True), grey)
    with pytest.raises(CorruptStreamError, match="cut short"):
        latents.decode(cut, luma_only=True)


def ends(data):
    """Return where each of a file's chunks ends."""
    header, chunks = container.read(data)
    return len(header.pack()) + np.cumsum([len(c) + 5 + (len(c) > 127) + (len(c) > 16383) for c in chunks])


def test_a_cut_file_gives_whole_streams_of_whole_tiles(latents):
    """Middle grey where luma lacks, grey where Cb or Cr does, and the picture elsewhere."""
    image = image_set("embedded").read("coffee")[:384, :520]  # tiles of 256: 2 x 3
    data = latents.encode(image, 55, tile_px=256)
    header, chunks = container.read(data)
    whole, grey, tiles = latents.decode(data), latents.decode(data, luma_only=True), header.tiles()
    with pytest.raises(CorruptStreamError, match="before its first tile is whole"):
        latents.decode(data[: ends(data)[0] - 1], partial=True)
    for count, end in enumerate(ends(data), start=1):
        for more in (0, 5) if count < len(chunks) else (0,):
            decoded = latents.decode_detailed(data[: end + more], partial=True)
            assert decoded.layers == (count == len(chunks))
        for number, tile in enumerate(tiles):
            # what is far enough from other tiles, of which the networks see a few positions
            y, x = (slice(8 * s.start + 64, 8 * s.stop - 64) for s in tile)
            y, x = slice(y.start, min(y.stop, 384)), slice(x.start, min(x.stop, 520))
            streams = sum(number < count - stream * len(tiles) for stream in range(3))
            wanted = {0: np.full_like(whole, 128), 3: whole}.get(streams, grey)
            assert abs(decoded.image[y, x].astype(int) - wanted[y, x]).max(initial=0) <= 1, (count, number)


def test_every_prefix_decodes_to_what_is_whole_or_is_refused(latents, crop):
    data, done = latents.encode(crop, 40, tile_px=64), 0
    places = ends(data)
    for cut in sorted({*range(0, len(data), 31), *places.tolist(), *(places - 1).tolist()}):
        count = int((places <= cut).sum())
        try:
            header, chunks = container.read(data[:cut], partial=True)
            found, whole = latents.coder.read(header, chunks)
        except CorruptStreamError:
            assert count == 0
            continue
        done = max(done, len(chunks))
        assert len(chunks) == count and len(found) == -(-count // 4) and whole == (count == 12)
    assert done == 12


def test_the_digest_is_of_the_symbols(latents, crop):
    """By each stream's chunks: the hyperprior's, then its latents'; luma alone is not checked."""
    header, chunks = container.read(latents.encode(crop, 60))
    other = container.Header(**{**vars(header), "digest": b"none"})
    file = container.write(other, chunks)
    with pytest.raises(CorruptStreamError, match="the decoded integers differ"):
        latents.decode(file)
    latents.decode(file, luma_only=True)


TWO_STEPS = {"model.luma.prior_steps": 2, "model.color.prior_steps": 2}


@pytest.mark.parametrize(
    "extra, quality",
    [({}, 40), ({}, 100), (ALONE | TWO_STEPS, 60), (COLOR, 50)],
    ids=["", "escapes", "hyperpriors", "color"],
)
def test_a_decoder_written_from_the_format_page_gives_the_same_symbols(codecs, crop, extra, quality):
    assert_reference(codecs("fusion", tiny_scalar, **extra), crop, quality)


def test_it_does_on_a_released_model_too(crop):
    assert_reference(get_codec("scalar_fusion"), crop[:40, :56], 60)


def assert_reference(codec, image, quality):
    data = codec.encode(image, quality, tile_px=64)
    tensors = [{k: v.numpy() for k, v in of.state_dict().items()} for of in codec.model.streams.values()]
    found = reference_decoder.decode(data, tensors, codec.config["model"]["luma"]["prior_steps"])
    for of, wanted in zip(found, symbols(codec, data)[1].values(), strict=True):
        np.testing.assert_array_equal(of, wanted)


# ------------------------------------------------------------------------------ tiles and machines


def test_tiles_leave_no_seams(latents):
    """The halo of 16 positions is wider than what these networks see: at most rounding differs."""
    image = image_set("embedded").read("coffee")[:200, :264]
    first, second = (latents.analyse(image, side) for side in (1024, 64))
    for key, values in first.latents.items():
        np.testing.assert_allclose(values, second.latents[key], atol=1e-5)
    np.testing.assert_array_equal(first.hyper["Y"], second.hyper["Y"])
    whole, tiled = (latents.decode(latents.pack(of, 70).data).astype(int) for of in (first, second))
    assert (whole != tiled).mean() <= 2e-3 and abs(whole - tiled).max() <= 2


def test_threads_that_share_a_codec_write_and_read_the_same(latents, crop):
    analysis, data = latents.analyse(crop, 64), latents.encode(crop, 60, tile_px=64)
    picture, outcomes = latents.decode(data), []

    def work(quality):
        for _ in range(3):
            same = latents.pack(analysis, 60).data == data
            outcomes.append((same, latents.pack(analysis, quality).data, latents.decode(data)))

    workers = [threading.Thread(target=work, args=(10 * k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    files = {latents.pack(analysis, 10 * k).data for k in range(4)}
    assert len(outcomes) == 12 and all(same for same, *_ in outcomes)
    assert {file for _, file, _ in outcomes} == files
    assert max(abs(image.astype(int) - picture).max() for *_, image in outcomes) <= 1


PEAK = """
import resource, sys
from mcml.codec import container
from mcml.codec.learned import LearnedCodec
codec, data = LearnedCodec(sys.argv[1]), open(sys.argv[2], "rb").read()
codec.decode(data, partial=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
header, chunks = container.read(open(sys.argv[3], "rb").read(), partial=True)
codec.coder.read(header, chunks)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's lazy memory")
def test_a_cut_file_of_the_largest_picture_takes_the_memory_of_its_tiles(latents, crop, tmp_path):
    """Its first tile is there; the grid of symbols alone would be 400 MB."""
    data = latents.encode(crop, 40, tile_px=64)
    header, chunks = container.read(data)
    large = container.Header(**{**vars(header), "width": 16384, "height": 16384})
    paths = tmp_path / "small.mcml", tmp_path / "large.mcml"
    for path, content in zip(paths, (data, container.write(large, chunks[:1])), strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-c", PEAK, latents.folder, *paths]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 100  # MiB
