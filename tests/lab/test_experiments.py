"""Photographs that cannot leak, short runs, small codecs, and curves read at equal rates."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mcml.base.errors import DataError, UsageError
from mcml.data import sets
from mcml.lab import experiments
from mcml.lab.experiments import TrainingRun
from mcml.model.settings import load_recipe

SMALL = {
    "model.luma.width": 8, "model.luma.code_channels": 12, "model.luma.levels": 4, "model.luma.groups": 1,
    "model.luma.blocks": 1, "model.color.width": 8, "model.color.code_channels": 6, "model.color.levels": 4,
    "model.color.groups": 1, "model.color.blocks": 1, "train.steps": 12, "train.batch": 2,
    "train.patch_px": 32, "stage.start": "plain", "stage.encoder_from": 0.0,
}  # fmt: skip


def recipe(variant="luma", **settings):
    return load_recipe("quick", variant).changed(**SMALL).changed(**settings)


def same(first, second, key="Y"):
    pairs = zip(first.streams[key].parameters(), second.streams[key].parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def picture(astronaut):
    return astronaut[:96, 60:188].copy()


# ------------------------------------------------------------------------------- photographs


def test_held_out_photographs_are_not_trained_on():
    split = experiments.split_photographs("embedded", "", held_out="chelsea, rocket", crop_px=64)
    assert set(split.test) == {"chelsea", "rocket"}
    assert {image.shape for image in split.test.values()} == {(64, 64, 3)}
    assert not set(split.train) & set(split.test) and len(split.train) == 5
    assert split.digest == sets.image_set("embedded").digest
    whole = sets.image_set("embedded").read("chelsea")
    np.testing.assert_array_equal(split.test["chelsea"], whole[118:182, 193:257])


def test_a_number_of_training_photographs_and_whole_test_pictures():
    split = experiments.split_photographs("embedded", "", held_out="chelsea", train_images=2)
    assert len(split.train) == 2 and split.test["chelsea"].shape == (300, 451, 3)


def test_a_test_set_of_its_own_leaves_all_others_to_training(tmp_path):
    flower = sets.image_set("embedded").read("flower")
    Image.fromarray(flower[:200, :200]).save(tmp_path / "bloom.png")
    split = experiments.split_photographs("embedded", str(tmp_path), held_out="chelsea")
    assert list(split.test) == ["bloom"] and len(split.train) == 7  # held_out counts without a test set only
    assert split.digest != sets.image_set("embedded").digest


def test_a_picture_of_both_sets_is_refused(photo_folder):
    with pytest.raises(DataError, match="look alike"):
        experiments.split_photographs(str(photo_folder), str(photo_folder))


@pytest.mark.parametrize("held_out, words", [("", "0 to judge by"), ("chelsey", "did you mean 'chelsea'")])
def test_without_a_picture_to_judge_by_it_says_so(held_out, words):
    with pytest.raises(UsageError, match=words):
        experiments.split_photographs("embedded", "", held_out=held_out)


# -------------------------------------------------------------------------------------- runs


def test_runs_side_by_side_are_the_runs_one_by_one_and_keep_the_callers_threads(picture):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        runs = {f"seed {s}": TrainingRun(recipe(**{"train.seed": s})) for s in (0, 1)}
        together = experiments.run_all(runs, [picture], workers=2)
        alone, log = experiments.run(runs["seed 1"].recipe, [picture])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert list(together) == ["seed 0", "seed 1"]
    model, rows = together["seed 1"]
    assert same(alone, model)
    assert [r["loss"] for r in rows] == [r["loss"] for r in log] and rows[-1]["step"] == 12
    assert not same(together["seed 0"][0], model)


def test_colour_runs_keep_the_luma_they_start_from(picture):
    luma, _ = experiments.run(recipe(), [picture])
    run = TrainingRun(recipe("fusion", **{"stage.train": "Cb,Cr"}), luma)
    assert same(luma, experiments.run_all({"fusion": run}, [picture], workers=1)["fusion"][0])


def test_an_untrained_model_is_what_a_run_begins_with(picture):
    luma, _ = experiments.run(recipe(), [picture])
    colors = recipe("fusion", **{"stage.train": "Cb,Cr", "stage.start": "threshold"})
    begin = experiments.untrained(colors, [picture], initial=luma)
    still = colors.changed(**{"train.steps": 1, "train.lr": 0.0, "train.context_lr": 0.0})
    still, _ = experiments.run(still, [picture], initial=luma)
    assert all(same(begin, still, key) for key in ("Y", "Cb", "Cr")) and same(begin, luma)


# ------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "avif"])
def test_classical_luma_has_whole_files_and_rises_with_the_rate(codec, picture):
    qualities = experiments.LUMA_QUALITIES[codec][-3:]
    rows = experiments.luma_codec([picture], codec, qualities)
    assert [row["quality"] for row in rows] == list(qualities)
    assert [r["bpp"] for r in rows] == sorted(r["bpp"] for r in rows)
    assert [r["psnr_Y"] for r in rows] == sorted(r["psnr_Y"] for r in rows)
    assert rows[0]["bpp"] * picture.shape[0] * picture.shape[1] / 8 > 150  # headers and all


def test_an_unknown_luma_codec_is_refused(picture):
    with pytest.raises(UsageError, match="unknown luma codec 'webp'"):
        experiments.luma_codec([picture], "webp")


def test_at_rate_is_linear_in_log_rate_and_nan_outside():
    rows = [{"bpp": 0.4, "psnr": 30.0}, {"bpp": 0.1, "psnr": 26.0}]
    assert experiments.at_rate(rows, 0.2, "psnr", "bpp") == pytest.approx(28.0)
    assert math.isnan(experiments.at_rate(rows, 0.05, "psnr", "bpp"))
    assert math.isnan(experiments.at_rate(rows, 0.5, "psnr", "bpp"))
    for rate, value in ((0.05, 24.0), (0.8, 32.0)):
        assert experiments.at_rate(rows, rate, "psnr", "bpp", extend=True) == pytest.approx(value)


def test_cubics_read_a_bent_curve_of_few_points_and_leave_out_what_is_infinite():
    rows = [{"bpp": bpp, "psnr": math.log(bpp) ** 2} for bpp in (1.0, 2.0, 4.0, 8.0)]
    straight, cubic = (experiments.at_rate(rows, 3.0, "psnr", "bpp", smooth=s) for s in (False, True))
    assert abs(cubic - math.log(3) ** 2) < 0.2 * abs(straight - math.log(3) ** 2)
    lossless = [*rows, {"bpp": 9.0, "psnr": math.inf}]
    assert experiments.at_rate(lossless, 3.0, "psnr", "bpp", smooth=True) == cubic
    assert math.isnan(experiments.at_rate(lossless[-1:], 9.0, "psnr", "bpp"))


def test_systems_at_equal_rates_are_means_of_each_pictures_own_curve():
    points = {"a": ((0.1, 26.0), (0.4, 30.0)), "b": ((0.1, 30.0), (0.2, 33.0), (0.4, 34.0))}
    rows = [
        {"system": system, "image": image, "bpp": bpp * (1 + (system == "dear")), "psnr": psnr}
        for system in ("dear", "cheap")
        for image, curve in points.items()
        for bpp, psnr in curve
    ]
    table = experiments.at_rates(rows, (0.2, 0.8, 1.6), ("psnr",), "bpp")
    assert [(row["system"], row["rate"]) for row in table[:3]] == [("dear", r) for r in (0.2, 0.8, 1.6)]
    assert [row["psnr"] for row in table] == pytest.approx([28.0, 32.0, 33.5, 30.5, 33.5, 35.0])
    assert [row["extended"] for row in table] == [0, 0, 2, 0, 2, 2] and table[0]["images"] == 2
