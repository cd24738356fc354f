"""MS-SSIM and the colour difference that training descends, against the metrics and colour-science."""

import colour
import numpy as np
import pytest
import torch

from mcml import data
from mcml.metrics import distortion
from mcml.model.perceptual import color_difference, ms_ssim


def pair(deviation, seed=0):
    noise = np.random.default_rng(seed).normal(0, deviation, (192, 208, 3))
    original = data.image_set("embedded").read("astronaut")[:192, 150:358]
    return original, np.clip(original + noise, 0, 255).astype(np.uint8)


def tensor(*images):
    return torch.stack([torch.from_numpy(i).permute(2, 0, 1).double() / 255 for i in images])


@pytest.mark.parametrize("deviation", [2, 12, 40])
def test_ms_ssim_is_the_metric(deviation):
    original, decoded = pair(deviation)
    value = ms_ssim(tensor(original), tensor(decoded))
    assert float(value) == pytest.approx(distortion.compare(original, decoded).ms_ssim, abs=1e-6)
    single = ms_ssim(tensor(original).float(), tensor(decoded).float())
    assert float(single) == pytest.approx(float(value), abs=1e-4)


def test_the_color_difference_is_cie94():
    original, decoded = pair(9)
    lab = [colour.XYZ_to_Lab(colour.sRGB_to_XYZ(i / 255)) for i in (original, decoded)]
    expected = colour.difference.delta_E_CIE1994(*lab, textiles=False).mean()
    assert float(color_difference(tensor(original), tensor(decoded))) == pytest.approx(expected, rel=5e-3)
    assert float(color_difference(tensor(original), tensor(original))) == pytest.approx(0.01, abs=1e-3)


def test_batches_are_measured_picture_by_picture():
    (a, b), (_, d) = pair(5), pair(20, 1)
    for measure in (ms_ssim, color_difference):
        alone = [float(measure(tensor(a), tensor(x))) for x in (b, d)]
        assert measure(tensor(a, a), tensor(b, d)).tolist() == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("measure", [ms_ssim, color_difference])
def test_gradients_are_finite_on_black_grey_white_and_beyond(measure):
    flat = torch.tensor([0.0, 0.5, 1.0, 0.02]).view(4, 1, 1, 1).expand(4, 3, 176, 176)
    ramp = torch.linspace(-0.2, 1.3, 176).expand(4, 3, 176, 176)
    for decoded in (flat, ramp, flat + 1e-4 * ramp):
        decoded = decoded.clone().requires_grad_()
        measure(flat, decoded).sum().backward()
        assert decoded.grad.isfinite().all() and float(decoded.grad.abs().max()) < 100
