"""Decodes and figures of whole pictures agree with the model's own output."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from mcml.lab import inspect as inspection
from mcml.metrics import color, distortion
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.settings import load_recipe
from mcml.model.validate import validate

SMALL = {
    "model.luma.width": 8, "model.luma.code_channels": 12, "model.luma.levels": 4, "model.luma.groups": 1,
    "model.luma.blocks": 1, "model.color.width": 8, "model.color.code_channels": 8, "model.color.levels": 4,
    "model.color.groups": 1, "model.color.blocks": 1,
}  # fmt: skip


def model(variant, quantizer="binary"):
    return build(load_recipe("quick", variant, quantizer=quantizer).changed(**SMALL).model).eval()


@pytest.fixture
def picture(astronaut):
    return astronaut[:70, :100].copy()  # no multiples of 8


def test_a_decode_is_the_output_rounded_to_eight_bits(picture):
    decoded, output = inspection.decode(model("fusion"), picture, 0.5)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    expected = (255 * output.x_hat[0].permute(1, 2, 0)).round().clamp(0, 255)
    np.testing.assert_array_equal(decoded, expected.numpy())
    assert not output.x_hat.requires_grad


def test_a_luma_model_decodes_to_grey(picture):
    decoded, _ = inspection.decode(model("luma"), picture, 0.0)
    assert np.ptp(decoded.astype(int), axis=-1).max() == 0


def test_chroma_only_keeps_the_chroma_at_mid_luma(picture):
    before, after = color.rgb_to_ycbcr(picture), color.rgb_to_ycbcr(inspection.chroma_only(picture))
    muted = (np.abs(before[..., 1:] - 128) < 40).all(axis=-1)  # nothing is clipped there
    assert muted.any()
    assert np.abs(after[muted][:, 0] - 128).max() < 1
    assert np.abs(after[muted][:, 1:] - before[muted][:, 1:]).max() < 1.5


def test_measuring_side_by_side_is_validation_and_ciede2000(picture):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    models = {"a": model("fusion"), "b": model("rgb")}
    try:
        rows = inspection.measure_all(models, {"face": picture}, [-1.0, 1.0], workers=2)
        inspection.measure(models["b"], {"face": picture}, [0.0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert [(row["system"], row["dial"]) for row in rows] == [("a", -1), ("a", 1), ("b", -1), ("b", 1)]
    expected = validate(models["a"], [picture], [-1.0, 1.0])
    for row, known in zip(rows[:2], expected, strict=True):
        assert {k: row[k] for k in known} == pytest.approx(known, rel=1e-3)  # rounding may differ by threads
        decoded, _ = inspection.decode(models["a"], picture, row["dial"])
        assert row["ciede2000"] == pytest.approx(distortion.compare(picture, decoded).ciede2000, rel=1e-3)
    assert all(math.isfinite(row["ciede2000"]) for row in rows)


def test_released_models_are_those_with_the_wanted_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "released_folder", lambda: tmp_path)
    assert inspection.released_models("Y", quantizer="binary") == {}
    for variant in ("luma", "fusion", "rgb"):
        weights.save_model(model(variant), tmp_path / variant, {})
    weights.save_model(model("fusion", "scalar"), tmp_path / "scalar", {})
    binary = partial(inspection.released_models, quantizer="binary")
    assert list(binary()) == ["fusion", "luma", "rgb"]
    assert list(binary("Y")) == ["fusion", "luma"]
    assert list(binary("Y", "Cb", "Cr")) == ["fusion"]
    assert list(inspection.released_models("Y", quantizer="scalar")) == ["scalar"]
