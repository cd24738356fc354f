"""The search for a wanted rate, and codecs by name."""

import json
import shutil

import numpy as np
import pytest
from helpers import failed, tiny_scalar
from skimage import data

from mcml.base.errors import DataError, UsageError
from mcml.codec import interface as codec
from mcml.lab import inspect as inspection
from mcml.model import model_files

ASTRONAUT = data.astronaut()[:384]
CROP = np.ascontiguousarray(ASTRONAUT[20:148, 100:228])


def rate(data, image):
    return 8 * len(data) / (image.shape[0] * image.shape[1])


@pytest.mark.parametrize("name", ["jpeg2000", "webp", "jpeg420"])
@pytest.mark.parametrize("target", [0.3, 1.0])
def test_search_hits_the_wanted_rate_within_2_percent(name, target):
    wanted = codec.get_codec(name)
    found = codec.encode_at_bpp(wanted, ASTRONAUT, target)
    assert found.reached
    assert found.bpp == rate(found.data, ASTRONAUT)
    assert abs(found.bpp - target) <= 0.02 * target
    assert found.data == wanted.encode(ASTRONAUT, found.quality)


def test_search_of_whole_qualities_finds_the_nearest_of_all():
    avif, small = codec.get_codec("avif420_speed6"), CROP[:48, :64]
    rates = [rate(avif.encode(small, quality), small) for quality in range(101)]
    for target in (0.3, 0.8, 2.0):
        nearest = min(abs(np.log(bpp / target)) for bpp in rates)
        assert abs(np.log(codec.encode_at_bpp(avif, small, target).bpp / target)) == nearest


@pytest.mark.parametrize("name", ["jpeg420", "jpeg2000", "webp", "avif420_speed6", "jpegxl"])
@pytest.mark.parametrize("target, end, sign", [(1e-4, "coarsest", "+"), (24, "finest", "-")])
def test_rate_out_of_reach_gives_the_size_at_the_end_of_the_range_and_says_how_far(name, target, end, sign):
    wanted = codec.get_codec(name)
    found = codec.encode_at_bpp(wanted, CROP, target)
    assert not found.reached
    assert found.bpp == rate(wanted.encode(CROP, getattr(wanted.quality_range, end)), CROP)
    percent = 100 * (found.bpp / target - 1)
    assert found.explain(name).startswith(f"{name}: nearest to {target:g} bpp is {found.bpp:.4f} bpp ({sign}")
    assert f"{percent:+.1f} %" in found.explain(name)
    assert found.explain(name).endswith(f"at quality {found.quality:g}")


def test_reached_means_within_2_percent_on_both_sides():
    searches = [codec.RateSearch(b"", 1, bpp, target_bpp=1.0) for bpp in (0.979, 0.981, 1.019, 1.021)]
    assert [search.reached for search in searches] == [False, True, True, False]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("target", [0, -0.5, float("nan"), float("inf")])
def test_bad_target_is_refused(target):
    with pytest.raises(UsageError, match="target bpp"):
        codec.encode_at_bpp(codec.get_codec("jpeg420"), CROP, target)


def test_every_listed_codec_is_found_by_its_name():
    assert codec.names()[:5] == ["fusion", "independent", "scalar_fusion", "scalar_independent", "jpeg420"]
    assert all(codec.get_codec(name).name == name for name in codec.names())


@pytest.mark.parametrize(
    "name, meant", [("jpg420", "'jpeg420'"), ("jpeg", "'jpeg2000', 'jpeg420', 'jpeg444' or 'jpegxl'")]
)
def test_an_unknown_codec_names_the_nearest_and_the_beginning_of_names_all_of_them(name, meant):
    with pytest.raises(UsageError, match=f"unknown codec '{name}': did you mean {meant}"):
        codec.get_codec(name)


def test_a_scalar_model_from_before_there_were_files_is_shown_but_writes_none(
    tmp_path, monkeypatch, mcml, photo_folder
):
    writers, released = model_files.writers(), tmp_path / "released"
    shutil.copytree(model_files.released_folder(), released)
    tiny_scalar(released / "latents")
    config = released / "latents" / "config.json"
    content = json.loads(config.read_text())
    del content["identity"]
    config.write_text(json.dumps(content))
    monkeypatch.setattr(model_files, "released_folder", lambda: released)
    assert set(model_files.released()) == {*writers, "latents"} and model_files.writers() == writers
    scalar = {"latents", *(name for name in writers if name.startswith("scalar"))}
    assert set(inspection.released_models("Cb", quantizer="scalar")) == scalar
    assert "latents" not in inspection.released_models(quantizer="binary")
    words = "latents: has no identity: it was written by an mcml without files of scalar latents"
    for name in ("latents", str(released / "latents")):
        with pytest.raises(DataError, match=words):
            codec.get_codec(name)
    picture = photo_folder / "one.png"
    failed(mcml("compress", picture, "--model", "latents"), 1, words)
    failed(mcml("evaluate", photo_folder, "--codecs", "latents", "--csv", "new.csv"), 1, words)
    options = ("--model", "latents", "--data", photo_folder, "--run-dir", "run", "--steps", "1")
    failed(mcml("train-entropy", *options), 2, "has scalar latents, whose prior was trained with them")
