"""The transform coder that scalar streams start as, and what a stream learns from there."""

import math

import numpy as np
import pytest
import torch
from helpers import SCALAR, tiny_recipe
from scipy import fft

from mcml.data.patches import PatchStore
from mcml.data.sets import image_set
from mcml.model.model import build
from mcml.model.scalar import ANCHORS, lmbda_of
from mcml.model.validate import to_tensor, validate
from mcml.training.objectives import ScalarObjective
from mcml.training.transform_start import FINER, start


def sizes(width):
    names = [f"model.{stream}.{name}" for stream in ("luma", "color") for name in ("width", "code_channels")]
    return {**SCALAR, **dict.fromkeys(names, width)}


@pytest.fixture(scope="module")
def patches(astronaut):
    return PatchStore([astronaut]).sample(48, 64, torch.Generator().manual_seed(0)).float() / 255


@pytest.fixture(scope="module")
def whole_transform(patches):
    model = build(tiny_recipe("fusion", **sizes(64)).model)
    start(model, patches)
    return model.eval()


@torch.no_grad()
def test_latents_are_dct_coefficients_over_their_deviations_and_decode_inverts_them(whole_transform, patches):
    planes, dial = whole_transform.planes(patches), torch.full((48,), 0.4)
    for key, stream in whole_transform.streams.items():
        blocks = planes[key].numpy().reshape(48, 8, 8, 8, 8).transpose(0, 1, 3, 2, 4)
        coefficients = fft.dctn(blocks, axes=(3, 4), norm="ortho").reshape(-1, 64)
        sigma = np.sqrt((coefficients**2).mean(0))
        order = np.argsort(-sigma)
        latents = stream.encoder(planes[key])[1]
        got = latents.permute(0, 2, 3, 1).reshape(-1, 64).square().mean(0).sqrt()
        torch.testing.assert_close(got, torch.ones(64), rtol=1e-3, atol=0)
        expected = (coefficients / sigma)[:, order]
        got = latents.permute(0, 2, 3, 1).reshape(-1, 64).numpy()
        clear = np.ones(64, bool)  # coefficients of nearly equal deviation may change places
        clear[1:] &= np.diff(sigma[order]) < -1e-5
        clear[:-1] &= np.diff(sigma[order]) < -1e-5
        assert clear.sum() > 32
        np.testing.assert_allclose(got[:, clear], expected[:, clear], atol=2e-3)
        torch.testing.assert_close(stream.decode(latents, dial, latents), planes[key], rtol=0, atol=1e-4)
        step = FINER * (6 / (math.log(2) * lmbda_of(torch.linspace(0, 1, ANCHORS)))).sqrt() / 255
        steps = torch.from_numpy(sigma[order]) / stream.log_gain.exp()
        torch.testing.assert_close(steps, step[:, None].expand(-1, 64), rtol=1e-3, atol=0)


def test_more_dial_is_a_higher_rate_and_a_smaller_error_before_any_training(whole_transform, astronaut):
    rows = validate(whole_transform, [astronaut], np.linspace(0, 1, 9).tolist())
    for key in ("Y", "Cb", "Cr"):
        assert (np.diff([row[f"estimated_bpp_{key}"] for row in rows]) > 0).all()
        assert (np.diff([row[f"psnr_{key}"] for row in rows]) > 0).all()
    assert rows[-1]["psnr_Y"] > 35 and rows[-1]["psnr"] > 35


@pytest.mark.parametrize("width, code_channels", [(8, 16), (80, 64), (80, 96)])  # fewer, more than 64 or 192
@pytest.mark.parametrize("variant", ["independent", "rgb"])
@torch.no_grad()
def test_every_shape_starts_near_its_picture(variant, width, code_channels, patches):
    shape = {"model.luma.width": width, "model.luma.code_channels": code_channels}
    model = build(tiny_recipe(variant, **SCALAR, **shape).model)
    start(model, patches, model.config.streams[:1])
    key = model.config.streams[0]
    plane, x_hat = model.planes(patches)[key], model(patches, 1.0).streams[key].x_hat
    flat = (plane - plane.mean((2, 3), keepdim=True)).square().mean()
    assert (x_hat - plane).square().mean() < 0.4 * flat
    assert model.streams[key].log_gain.isfinite().all()
    for other in model.config.streams[1:]:
        assert not model.streams[other].log_gain.any()


def test_each_stream_overfits_one_patch_to_above_40_db():
    """With a quarter of the coefficients, on noise for rounding, at dial 1: from 28.7 dB of luma."""
    recipe = tiny_recipe("fusion", **sizes(16))
    image = image_set("embedded").read("astronaut")[72:104, 172:204].copy()
    patch, dial, steps = to_tensor(image), torch.ones(1), 120
    model, generator = build(recipe.model), torch.Generator().manual_seed(0)
    objective = ScalarObjective(model, recipe)
    objective.start(lambda: patch, model.config.streams)
    begun = validate(model, [image], (1.0,))[0]
    optimizer = torch.optim.Adam(model.parameters(), betas=objective.betas)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    phase = objective.phase(0, 0.0)
    for _ in range(steps):
        output = model(patch, dial, **objective.options(phase, objective.draw(phase, generator, 1)))
        optimizer.zero_grad()
        objective.loss(output, patch, dial, phase)[0].backward()
        optimizer.step()
        schedule.step()
    (row,) = validate(model, [image], (1.0,))
    assert begun["psnr_Y"] < 32 and row["estimated_bpp"] < 0.5 * begun["estimated_bpp"]
    assert min(row[f"psnr_{key}"] for key in ("Y", "Cb", "Cr")) > 40, row
