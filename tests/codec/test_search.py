"""The search over latents, on transform coders of the smallest size: less loss, any picture, always alike."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import SCALAR, failed, tiny_recipe, tiny_scalar

from mcml.base.errors import UsageError
from mcml.codec import search
from mcml.codec.interface import bits_per_pixel, encode_at_bpp
from mcml.codec.learned import LearnedCodec
from mcml.codec.prior import dial_of
from mcml.codec.search import refine, refined_encoder
from mcml.data.images import read_image, write_png
from mcml.metrics import distortion
from mcml.metrics.color import rgb_to_lab
from mcml.model import weights
from mcml.model.model import build
from mcml.model.perceptual import RGB_SHARES
from mcml.model.scalar import lmbda_of
from mcml.training.transform_start import start


def transform_codec(folder, image, variant="fusion", **loss):
    """Write a model that is as its training would begin, and return its codec."""
    patches = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    patches = patches.unfold(1, 32, 32).unfold(2, 32, 32).flatten(1, 2).transpose(0, 1)
    model = build(tiny_recipe(variant, **SCALAR).model)
    start(model, patches)
    weights.save_model(model, folder, {"recipe": {"loss": {"distortion": "l2", "gamma": 1.5, **loss}}})
    return LearnedCodec(folder)


@pytest.fixture(scope="module")
def codec(tmp_path_factory, astronaut):
    return transform_codec(tmp_path_factory.mktemp("scalar") / "fusion", astronaut)


@pytest.fixture(scope="module")
def picture(astronaut):
    """72 x 88 pixels: four tiles of 64, if they are asked for."""
    return np.ascontiguousarray(astronaut[20:92, 30:118])


def loss_of(codec, image, data, quality):
    """Return what the search descends, in bits a pixel, as the file itself says it."""
    pair = [torch.from_numpy(of / 255).permute(2, 0, 1)[None] for of in (image, codec.decode(data))]
    planes, decoded = map(codec.model.planes, pair)
    total = bits_per_pixel(data, image)
    for key, dial in zip(planes, codec.coder.dials(quality), strict=True):
        weight = RGB_SHARES[key] * (1 if key == "Y" else 1.5) * float(lmbda_of(torch.tensor(dial_of(dial))))
        total += weight * 255**2 * float((planes[key] - decoded[key]).square().mean())
    return total


@pytest.mark.parametrize("variant, tile_px", [("luma", 1024), ("independent", 1024), ("fusion", 64)])
def test_refined_latents_make_a_smaller_loss_and_file_and_are_the_same_each_time(
    tmp_path, codec, picture, variant, tile_px
):
    if variant != "fusion":
        codec = transform_codec(tmp_path / "model", picture, variant)
    analysis, shares = codec.analyse(picture, tile_px), []
    before = {key: latents.copy() for key, latents in analysis.latents.items()}
    refined = refine(codec, picture, analysis, 20, steps=40, progress=shares.append)
    first, then = (codec.pack(of, 20, rounding=0.0) for of in (analysis, refined))
    assert sum(then.ideal_bits.values()) < 0.99 * sum(first.ideal_bits.values())
    assert loss_of(codec, picture, then.data, 20) < loss_of(codec, picture, first.data, 20)
    tiles = 1 if tile_px > 64 else 4
    np.testing.assert_allclose(shares, np.arange(1, 40 * tiles + 1) / (40 * tiles))
    assert refined.seconds > analysis.seconds
    for key, latents in before.items():
        np.testing.assert_array_equal(analysis.latents[key], latents)
    if variant == "fusion":
        again = refine(codec, picture, analysis, 20, steps=40)
        assert codec.pack(again, 20, rounding=0.0).data == then.data


@pytest.mark.parametrize("height, width", [(1, 1), (1, 65), (9, 7), (66, 3)])
def test_pictures_of_any_size_can_be_searched(codec, astronaut, height, width):
    image = np.ascontiguousarray(astronaut[:height, :width])
    encode = refined_encoder(codec, image, quality=40, steps=2)
    assert codec.decode(encode(40)).shape == image.shape


def test_the_loss_is_that_of_the_models_training(tmp_path, codec, astronaut):
    image = np.pad(astronaut, ((0, 48), (0, 16), (0, 0)), "reflect")  # large enough for MS-SSIM
    color = transform_codec(tmp_path / "color", astronaut, color_difference=50, dissimilarity=0.5)

    def difference(codec):
        data = codec.pack(refine(codec, image, codec.analyse(image), 20, steps=12), 20, rounding=0.0).data
        return distortion.ciede2000_map(rgb_to_lab(image), rgb_to_lab(codec.decode(data))).mean()

    assert difference(color) < difference(codec)


def test_a_wanted_size_is_met_and_colors_share_and_progress_are_passed_on(codec, picture):
    shares = []
    wanted = {"target_bpp": 0.6, "color_share": 12.0}
    encode = refined_encoder(codec, picture, **wanted, steps=10, progress=shares.append)
    np.testing.assert_allclose(shares, np.arange(1, 11) / 10)
    found = encode_at_bpp(codec, picture, 0.6, encoder=encode)
    assert abs(found.bpp / 0.6 - 1) < 0.01
    plain = encode_at_bpp(codec, picture, 0.6, color_share=12.0)
    assert found.quality > plain.quality  # of more symbols, which cost less
    dials = codec.decode_detailed(found.data).header.rates
    assert dials == codec.coder.dials(found.quality, 12.0) and dials[1] > dials[0]


def test_compress_takes_effort_and_colors_share(mcml, codec, picture, tmp_path, monkeypatch):
    write_png(tmp_path / "face.png", picture[:40, :40])
    arguments = ["compress", "face.png", "--no-metrics", "--quality", 40, "--model", codec.folder]
    encoder = partial(refined_encoder, steps=3)
    monkeypatch.setattr(search, "refined_encoder", encoder)  # else it takes its time
    for options in (["normal.mcml"], ["share.mcml", "--color-share", 20], ["high.mcml", "--effort", "high"]):
        result = mcml(*arguments, "-o", *options)
        assert result.returncode == 0 and "seconds" in result.stdout, result.stderr
    image = read_image(tmp_path / "face.png")
    expected = codec.encode(image, 40), codec.encode(image, 40, color_share=20.0)
    expected += (encoder(codec, image, quality=40.0)(40.0),)
    for name, data in zip(("normal", "share", "high"), expected, strict=True):
        assert (tmp_path / f"{name}.mcml").read_bytes() == data
    assert len(set(expected)) == 3
    failed(mcml(*arguments, "--layers", 2, "-o", "x.mcml"), 2, "--layers", "codes latents in one part")
    for option in ("--effort=high", "--color-share=3"):
        words = ("compress", "face.png", option, "--model", "fusion")
        failed(mcml(*words), 2, "codes bits", "scalar latents")


def test_colors_share_of_a_network_on_rgb_is_refused(mcml, codecs, picture, tmp_path):
    write_png(tmp_path / "face.png", picture[:40, :40])
    joint = codecs("rgb", tiny_scalar).folder
    failed(mcml("compress", "face.png", "--color-share", 3, "--model", joint), 2, "codes no colour")


def test_codes_of_bits_cannot_be_searched(picture):
    with pytest.raises(UsageError, match="codes bits"):
        refined_encoder(LearnedCodec("fusion"), picture)
