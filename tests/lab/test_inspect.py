"""Decodes, maps, loss terms and metrics of whole pictures agree with the model's own output."""

import math

import numpy as np
import pytest
import torch

from mcml.lab import experiments
from mcml.lab import inspect as inspection
from mcml.metrics import color
from mcml.metrics import distortion as metrics
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.rate import bits_of
from mcml.model.settings import load_recipe
from mcml.model.validate import validate
from mcml.training.loss import LossConfig

SMALL = {
    "model.luma.width": 8, "model.luma.code_channels": 12, "model.luma.levels": 4, "model.luma.groups": 1,
    "model.luma.blocks": 1, "model.color.width": 8, "model.color.code_channels": 6, "model.color.levels": 4,
    "model.color.groups": 1, "model.color.blocks": 1,
}  # fmt: skip


def model(variant):
    return build(load_recipe("quick", variant).changed(**SMALL).model).eval()


@pytest.fixture(scope="module")
def fusion():
    return model("fusion")


@pytest.fixture
def picture(astronaut):
    return astronaut[:70, :100].copy()  # no multiples of 8


def test_a_decode_is_the_output_rounded_to_eight_bits(fusion, picture):
    decoded, output = inspection.decode(fusion, picture, 0.5)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    expected = (255 * output.x_hat[0].permute(1, 2, 0)).round().clamp(0, 255)
    np.testing.assert_array_equal(decoded, expected.numpy())
    assert not output.x_hat.requires_grad


def test_a_luma_model_decodes_to_grey(picture):
    decoded, _ = inspection.decode(model("luma"), picture, 0.0)
    assert np.ptp(decoded.astype(int), axis=-1).max() == 0


def test_grey_has_the_luma_and_chroma_only_the_chroma(picture):
    grey, colors = inspection.grey(picture), inspection.chroma_only(picture)
    assert np.abs(grey[..., 0] - color.luma(picture)).max() <= 0.5
    assert np.ptp(grey.astype(int), axis=-1).max() == 0
    before, after = color.rgb_to_ycbcr(picture), color.rgb_to_ycbcr(colors)
    muted = (np.abs(before[..., 1:] - 128) < 40).all(axis=-1)  # nothing is clipped there
    assert muted.any()
    assert np.abs(after[muted][:, 0] - 128).max() < 1
    assert np.abs(after[muted][:, 1:] - before[muted][:, 1:]).max() < 1.5


def test_stream_log_takes_one_streams_columns():
    rows = [{"step": 10.0, "loss": 3.0, "psnr_Cb": 30.0, "psnr_Cr": 31.0, "open_Cb": 0.5}]
    assert inspection.stream_log(rows, "Cb") == [{"step": 10.0, "psnr": 30.0, "open": 0.5}]


def test_loss_terms_add_up_and_gamma_weighs_colour(fusion, picture):
    one, two = (inspection.loss_terms(fusion, [picture], 0.5, LossConfig(gamma=g)) for g in (1.0, 2.0))
    luma, chroma = one["distortion_Y"], one["distortion_Cb"] + one["distortion_Cr"]
    assert one["total"] == pytest.approx(luma + chroma + one["weighted_rate"], rel=1e-5)
    assert two["total"] == pytest.approx(luma + 2 * chroma + one["weighted_rate"], rel=1e-5)
    assert one["weighted_rate"] == pytest.approx(one["lmbda"] * one["rate"], rel=1e-5)
    assert one["lmbda"] == pytest.approx(float(fusion.lmbda(torch.tensor([0.5]))))


def test_activity_bins_hold_every_whole_square_once(picture):
    network = model("luma")
    torch.nn.init.normal_(network.streams["Y"].importance.last.weight)
    rows = inspection.activity_levels(network, [picture, picture[:32]], [-1.0, 1.0], bins=3)
    assert [row["dial"] for row in rows] == [-1.0] * 3 + [1.0] * 3
    assert sum(row["positions"] for row in rows[:3]) == 8 * 12 + 4 * 12
    activity = [row["activity"] for row in rows[:3]]
    assert activity == sorted(activity) and len(set(activity)) == 3
    assert all(0 <= row["level"] <= 4 for row in rows)
    assert np.mean([r["level"] for r in rows[3:]]) > np.mean([r["level"] for r in rows[:3]])


def test_map_bits_are_what_the_bits_alone_leave_of_the_total(picture):
    network = model("luma")
    found = inspection.map_bpp(network, [picture], 0.0)
    _, output = inspection.decode(network, picture, 0.0)
    stream, of = network.streams["Y"], output.streams["Y"]
    with torch.no_grad():
        bits = bits_of(stream.bit_model(of.code, of.level), of.bits, of.mask)
    pixels = picture.shape[0] * picture.shape[1]
    assert found > 0
    assert found + float(bits) / pixels == pytest.approx(float(output.estimated_bpp), rel=1e-5)
    assert inspection.map_bpp(experiments.with_importance(network, "uniform"), [picture], 0.0) == 0


def test_compared_decodes_have_the_models_rate_and_the_metrics(fusion, picture):
    (row,) = inspection.compare_decodes(fusion, {"face": picture}, [0.0])
    decoded, output = inspection.decode(fusion, picture, 0.0)
    assert row["image"] == "face" and row["estimated_bpp"] == pytest.approx(float(output.estimated_bpp))
    parts = [row[f"estimated_bpp_{key}"] for key in ("Y", "Cb", "Cr")]
    assert sum(parts) == pytest.approx(row["estimated_bpp"], rel=1e-5)
    expected = vars(metrics.compare(picture, decoded))
    assert {k: row[k] for k in expected} == pytest.approx(expected, nan_ok=True)


def test_measuring_side_by_side_is_validation_and_ciede2000(fusion, picture):
    models = {"a": fusion, "b": model("rgb")}
    rows = inspection.measure_all(models, {"face": picture}, [-1.0, 1.0], workers=2)
    assert [(row["system"], row["dial"]) for row in rows] == [("a", -1), ("a", 1), ("b", -1), ("b", 1)]
    expected = validate(fusion, [picture], [-1.0, 1.0])
    for row, known in zip(rows[:2], expected, strict=True):
        assert {k: row[k] for k in known} == pytest.approx(known, rel=1e-5)
        decoded, _ = inspection.decode(fusion, picture, row["dial"])
        assert row["ciede2000"] == pytest.approx(metrics.compare(picture, decoded).ciede2000)
    assert all(math.isfinite(row["ciede2000"]) for row in rows)


def test_released_models_are_those_with_the_wanted_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "released_folder", lambda: tmp_path)
    assert inspection.released_models("Y") == {}
    for variant in ("luma", "fusion", "rgb"):
        weights.save_model(model(variant), tmp_path / variant, {})
    assert list(inspection.released_models()) == ["fusion", "luma", "rgb"]
    assert list(inspection.released_models("Y")) == ["fusion", "luma"]
    assert list(inspection.released_models("Y", "Cb", "Cr")) == ["fusion"]
