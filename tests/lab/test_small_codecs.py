"""Systems of equal training, and codecs that share an entropy coder and so their bytes."""

import numpy as np
import pytest
import torch
from helpers import TINY

from mcml.codec.learned import LearnedCodec
from mcml.data import sets as data
from mcml.lab import accounting, small_codecs


@pytest.fixture(scope="module")
def picture():
    return data.image_set("embedded").read("astronaut")[:160, 60:220].copy()


@pytest.fixture(scope="module")
def models(picture):
    settings = {**TINY, "train.steps": 3, "stage.start": "threshold"}
    return small_codecs.equal_systems("quick", settings, 8, [picture], workers=1)


def test_all_are_trained_and_the_color_systems_share_luma(models):
    assert list(models) == ["fusion", "independent", "rgb"]
    assert [m.config.variant for m in models.values()] == list(models)
    assert models["fusion"].config.color.code_channels == 8
    assert models["rgb"].config.luma.code_channels == 16 + 2 * 8
    luma = [models[name].streams["Y"].state_dict() for name in ("fusion", "independent")]
    assert all(torch.equal(luma[0][key], luma[1][key]) for key in luma[0])
    encoders = [models[name].streams["Cb"].encoder.state_dict() for name in ("fusion", "independent")]
    assert all(torch.equal(encoders[0][key], encoders[1][key]) for key in encoders[0])


def test_a_shared_coder_gives_the_same_bytes_and_other_pictures(models, picture, tmp_path):
    places = small_codecs.make_codecs(
        models, [picture], 2, tmp_path, coder_of={"independent": "fusion"}, workers=1
    )
    assert list(places) == list(models)
    found = {name: LearnedCodec(place) for name, place in places.items()}
    files = {name: coder.encode(picture, 50) for name, coder in found.items()}
    assert accounting.same_chunks(files["fusion"], files["independent"])
    assert files["fusion"] != files["independent"]  # they name their models
    assert not accounting.same_chunks(files["fusion"], files["rgb"])
    decodes = {name: found[name].decode(files[name]) for name in files}
    assert not np.array_equal(decodes["fusion"], decodes["independent"])
    for decoded in decodes.values():
        assert decoded.shape == picture.shape


def test_an_entropy_coder_follows_from_its_seed(models, picture):
    first, again, other = (
        small_codecs.entropy_coder(models["independent"], [picture], 1, seed=seed) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)
