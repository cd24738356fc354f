"""Short runs, photographs that cannot leak, other importance maps, and curves read at equal rates."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mcml.base.errors import DataError, UsageError
from mcml.data import sets as data
from mcml.lab import experiments
from mcml.model.cost import codec_cost
from mcml.model.model import build
from mcml.model.settings import load_recipe

SMALL = {
    "model.luma.width": 8, "model.luma.code_channels": 12, "model.luma.levels": 4, "model.luma.groups": 1,
    "model.luma.blocks": 1, "model.color.width": 8, "model.color.code_channels": 6, "model.color.levels": 4,
    "model.color.groups": 1, "model.color.blocks": 1, "train.steps": 12, "train.batch": 2,
    "train.patch_px": 32, "stage.start": "plain", "stage.encoder_from": 0.0,
}  # fmt: skip


def recipe(variant="luma", **settings):
    return load_recipe("quick", variant).changed(**SMALL).changed(**settings)


@pytest.fixture(scope="module")
def picture():
    return data.image_set("embedded").read("astronaut")[:96, 60:188].copy()


# ------------------------------------------------------------------------------- photographs


def test_held_out_photographs_are_not_trained_on():
    found = experiments.photographs("embedded", "", held_out="chelsea, rocket", crop_px=64)
    assert set(found.test) == {"chelsea", "rocket"}
    assert {image.shape for image in found.test.values()} == {(64, 64, 3)}
    assert not set(found.train) & set(found.test) and len(found.train) == 5
    assert found.digest == data.image_set("embedded").digest
    whole = data.image_set("embedded").read("chelsea")
    np.testing.assert_array_equal(found.test["chelsea"], whole[118:182, 193:257])


def test_a_number_of_training_photographs_and_whole_test_pictures():
    found = experiments.photographs("embedded", "", held_out="chelsea", train_images=2)
    assert len(found.train) == 2 and found.test["chelsea"].shape == (300, 451, 3)


def test_a_test_set_of_its_own_leaves_all_others_to_training(tmp_path):
    flower = data.image_set("embedded").read("flower")
    Image.fromarray(flower[:200, :200]).save(tmp_path / "bloom.png")
    found = experiments.photographs("embedded", str(tmp_path), held_out="chelsea")
    assert list(found.test) == ["bloom"] and len(found.train) == 7  # held_out counts without a test set only
    assert found.digest != data.image_set("embedded").digest


def test_a_picture_of_both_sets_is_refused(photo_folder):
    with pytest.raises(DataError, match="look alike"):
        experiments.photographs(str(photo_folder), str(photo_folder))


@pytest.mark.parametrize("held_out, words", [("", "0 to judge by"), ("chelsey", "did you mean 'chelsea'")])
def test_without_a_picture_to_judge_by_it_says_so(held_out, words):
    with pytest.raises(UsageError, match=words):
        experiments.photographs("embedded", "", held_out=held_out)


# -------------------------------------------------------------------------------------- runs


def test_runs_side_by_side_are_the_runs_one_by_one(picture):
    jobs = {f"seed {s}": experiments.Job(recipe(**{"train.seed": s})) for s in (0, 1)}
    together = experiments.run_all(jobs, [picture], workers=2)
    assert list(together) == ["seed 0", "seed 1"]
    alone, log = experiments.run(jobs["seed 1"].recipe, [picture])
    found, rows = together["seed 1"]
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), found.parameters(), strict=True))
    assert [r["loss"] for r in rows] == [r["loss"] for r in log]
    assert rows[-1]["step"] == 12
    other = together["seed 0"][0]
    assert not torch.equal(other.streams["Y"].encoder.stem.weight, found.streams["Y"].encoder.stem.weight)


def test_colour_jobs_keep_the_luma_they_start_from(picture):
    luma, _ = experiments.run(recipe(), [picture])
    job = experiments.Job(recipe("fusion", **{"stage.train": "Cb,Cr"}), luma)
    found = experiments.run_all({"fusion": job}, [picture], workers=1)["fusion"][0]
    assert all(
        torch.equal(a, b)
        for a, b in zip(luma.streams["Y"].parameters(), found.streams["Y"].parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", ["uniform"])
def test_another_importance_map_keeps_all_other_weights(kind, picture):
    model = build(recipe().model).eval()
    torch.nn.init.normal_(model.streams["Y"].importance.last.weight)
    changed = experiments.with_importance(model, kind)
    assert changed.streams["Y"].importance is None
    back = experiments.with_importance(changed, "adaptive")
    own = dict(back.named_parameters())
    for name, value in model.named_parameters():
        if "importance" not in name:
            assert torch.equal(value, own[name]), name
    rgb = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        level = back(rgb, 0.3).streams["Y"].level
        assert len(level.unique()) == 1  # a new map starts flat
        assert len(model(rgb, 0.3).streams["Y"].importance.unique()) > 1


def test_colour_bits_and_levels_that_fit():
    base = load_recipe("quick", "fusion")
    few, many = (experiments.with_color_code(base, n).model.color for n in (5, 200))
    assert (few.code_channels, few.levels) == (5, 6)
    assert (many.code_channels, many.levels) == (200, base.model.color.levels)


def test_the_rgb_recipe_costs_what_the_streams_cost():
    base = recipe("fusion", **{"stage.train": "Cb,Cr"})
    rgb = experiments.rgb_recipe(base, 33)
    assert rgb.model.variant == "rgb" and rgb.train.steps == 33
    assert rgb.trained_streams() == ("RGB",)
    assert codec_cost(rgb.model)[1] == pytest.approx(codec_cost(base.model)[1], rel=0.2)


# ------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000"])
def test_classical_luma_has_whole_files_and_rises_with_the_rate(codec, picture):
    qualities = experiments.LUMA_QUALITIES[codec][-3:]
    rows = experiments.luma_codec([picture], codec, qualities)
    assert [row["quality"] for row in rows] == list(qualities)
    assert [r["bpp"] for r in rows] == sorted(r["bpp"] for r in rows)
    assert [r["psnr_Y"] for r in rows] == sorted(r["psnr_Y"] for r in rows)
    assert rows[0]["bpp"] * picture.shape[0] * picture.shape[1] / 8 > 150  # headers and all


def test_an_unknown_luma_codec_is_refused(picture):
    with pytest.raises(UsageError, match="known are jpeg, jpeg2000"):
        experiments.luma_codec([picture], "webp")


def test_at_rate_is_linear_in_log_rate_and_nan_outside():
    rows = [{"bpp": 0.4, "psnr": 30.0}, {"bpp": 0.1, "psnr": 26.0}]
    assert experiments.at_rate(rows, 0.2, "psnr", "bpp") == pytest.approx(28.0)
    assert math.isnan(experiments.at_rate(rows, 0.05, "psnr", "bpp"))
    assert math.isnan(experiments.at_rate(rows, 0.5, "psnr", "bpp"))


def test_gains_pair_fusion_and_independent_by_seed():
    rows = [
        {"variant": v, "colour features": 8, "seed": s, "estimated_bpp": bpp, "psnr": bpp * 10 + add + s}
        for v, add in (("fusion", 0.5), ("independent", 0.2))
        for s in (0, 1)
        for bpp in (0.1, 0.3)
    ]
    gains = experiments.paired_gains(rows, [0.1, 0.3, 0.9], ["psnr"])
    assert [(g["seed"], g["estimated_bpp"]) for g in gains] == [
        (s, r) for s in (0, 1) for r in (0.1, 0.3, 0.9)
    ]
    inside = [g["psnr"] for g in gains if g["estimated_bpp"] < 0.9]
    assert inside == pytest.approx([0.3] * 4)
    assert all(math.isnan(g["psnr"]) for g in gains if g["estimated_bpp"] > 0.9)
