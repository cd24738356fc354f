"""The weights that ship: whole, small, documented, and one dial over the rates they promise."""

import json

import numpy as np
import pytest
import torch
from helpers import ROOT

from mcml import data, experiments, validation, weights

NAMES = model_files.released()
DIALS = (-3.0, -1.5, 0.0, 1.5, 3.0)


@pytest.fixture(scope="module")
def photographs():
    found = data.image_set("embedded")
    return [found.read(name)[:256, :256] for name in ("chelsea", "coffee", "rocket")]


def test_something_is_released():
    assert NAMES


def test_all_weights_together_stay_within_their_budget():
    files = list(model_files.released_folder().rglob("*.safetensors"))
    assert max(path.stat().st_size for path in files) < 16 * 2**20
    assert sum(path.stat().st_size for path in files) <= 14e6


@pytest.mark.parametrize("name", NAMES)
def test_each_model_says_how_it_was_made(name):
    _, record = weights.load_config(model_files.released_folder() / name)
    for key in ("command", "data_hash", "seconds", "device", "steps", "photographs", "recipe"):
        assert record[key], key
    assert name in (ROOT / "docs" / "MODELS.md").read_text("utf-8")
    assert "/" not in json.dumps(record["command"])


@pytest.mark.parametrize("name", NAMES)
def test_more_dial_is_more_bits_at_every_position(name, photographs):
    model = weights.load_model(name)
    rgb = validation.to_tensor(photographs[0])
    before = None
    with torch.no_grad():
        for dial in np.linspace(-4, 4, 17):
            output = model(rgb, float(dial), decode=(), estimate=False)
            masks = torch.cat([stream.mask for stream in output.streams.values()], dim=1)
            assert before is None or bool((masks >= before).all())
            before = masks


@pytest.mark.parametrize("name", NAMES)
def test_rate_and_quality_rise_with_the_dial_and_span_ultra_low_to_high(name, photographs):
    model = weights.load_model(name)
    rows = validation.validate(model, photographs, DIALS)
    rates = [row["estimated_bpp"] for row in rows]
    assert rates == sorted(rates)
    assert rates[0] <= 0.1
    assert rates[-1] >= 5 * rates[0]
    for key in model.config.streams:
        quality = [row[f"psnr_{key}"] for row in rows]
        assert quality == sorted(quality)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rgb"])
def test_luma_beats_jpeg_at_its_estimated_rate(name, photographs):
    model = weights.load_model(name)
    rows = validation.validate(model, photographs, DIALS)
    jpeg = experiments.luma_codec(photographs, "jpeg")
    for rate in (0.2, 0.3):
        ours = experiments.at_rate(rows, rate, "psnr_Y", "estimated_bpp_Y")
        assert ours > experiments.at_rate(jpeg, rate, "psnr_Y", "bpp")
