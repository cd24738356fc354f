"""What a step on scalar latents descends: phases, noise, the loss by hand."""

import pytest
import torch
from helpers import SCALAR, tiny_recipe

from mcml.model.model import build
from mcml.model.perceptual import color_difference, ms_ssim
from mcml.training.objectives import ScalarObjective


def objective(variant="fusion", **settings):
    recipe = tiny_recipe(variant, **SCALAR, **settings)
    return ScalarObjective(build(recipe.model), recipe)


@pytest.mark.parametrize(
    "spent, phase",
    [
        (0.0, (False, False, False)),
        (0.2, (True, False, False)),
        (0.4, (True, True, False)),
        (0.8, (False, True, True)),
    ],
)
def test_phases_begin_at_their_shares_of_the_budget(spent, phase):
    shares = {"encoder_from": 0.2, "prior_from": 0.4, "rounding_from": 0.8, "encoder_lr": 0.5}
    settings = {f"stage.{name}": share for name, share in shares.items()}
    of = objective(**settings, **{"train.lr": 2e-3})
    assert of.phase(7, spent) == phase
    learns = {"decoder": (2e-3, True), "encoder": (1e-3, phase[0]), "prior": (2e-3, phase[1])}
    assert of.plan(phase) == learns | {"analysis": (2e-3, phase[1] and not phase[2])}
    options = of.options(phase, of.draw(phase, torch.Generator(), 1))
    assert (options["noise"] is None) is phase[2]
    assert set(options["estimate"]) == ({"Y", "Cb", "Cr"} if any(phase[:2]) else set())


def test_every_weight_is_in_one_part():
    of = objective()
    parts = [id(p) for part in of.parts.values() for p in part]
    assert sorted(parts) == sorted(id(p) for p in of.model.parameters())
    assert any(p is of.model.streams["Y"].log_gain for p in of.parts["encoder"])
    analysis = of.model.streams["Y"].hyperprior.analysis  # learns where the encoder does not
    assert list(map(id, of.parts["analysis"])) == list(map(id, analysis.parameters()))


def test_noise_is_uniform_within_a_half_and_drawn_by_the_generator():
    of = objective(**{"train.patch_px": 64})
    phase = of.phase(0, 0.0)
    first, second, other = (of.draw(phase, torch.Generator().manual_seed(s), 32) for s in (1, 1, 2))
    assert {k: tuple(v.shape[1:]) for k, v in first.items()} == of.model.noise_shapes(64, 64)
    for name, drawn in first.items():
        assert torch.equal(drawn, second[name]) and not torch.equal(drawn, other[name])
        assert -0.5 <= drawn.min() < -0.49 and 0.49 < drawn.max() <= 0.5
        assert abs(float(drawn.mean())) < 0.03 and float(drawn.var()) == pytest.approx(1 / 12, rel=0.05)


@torch.no_grad()
def test_the_loss_by_hand():
    """Squared errors by their shares in RGB's: of 1 in Cb, 0.344 in green and 1.772 in blue."""
    of = objective(**{"stage.encoder_from": 0.0})
    rgb, dial = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.9])
    phase = of.phase(0, 0.0)
    output = of.model(rgb, dial, **of.options(phase, {}))
    total, row = of.loss(output, rgb, dial, phase)
    planes = {key: plane.double() for key, plane in of.model.planes(rgb).items()}
    errors = {
        k: (255 * (output.streams[k].x_hat - x)).square().mean((1, 2, 3)).numpy() for k, x in planes.items()
    }
    weights = {"Y": 1, "Cb": 1.5 * (0.344136**2 + 1.772**2) / 3, "Cr": 1.5 * (1.402**2 + 0.714136**2) / 3}
    distortion = sum(weights[key] * error for key, error in errors.items())
    rate, lmbda = output.estimated_bpp.numpy(), 2e-4 * 250 ** dial.numpy()  # from 0.0002 to 0.05
    figures = {"distortion": distortion, "rate": rate, "weighted_rate": lmbda**-0.35 * rate}
    figures["loss"] = lmbda**-0.35 * (lmbda * distortion + rate)
    figures |= {f"distortion_{key}": error for key, error in errors.items()}
    figures |= {f"psnr_{key}": error / 255**2 for key, error in errors.items()}
    figures |= {f"estimated_bpp_{k}": s.estimated_bits.numpy() / 768 for k, s in output.streams.items()}
    assert {k: float(v) for k, v in row.items()} == pytest.approx(
        {k: v.mean() for k, v in figures.items()}, rel=1e-4
    )
    assert total == row["loss"]


def test_other_distortions_count_by_their_relative_change():
    """The gradient: that of squared error's logarithm, plus the weights' shares of the others'."""
    weights = {"loss.dissimilarity": 1.0, "loss.color_difference": 0.5}
    plain, mixed = objective(**{"train.patch_px": 192}), objective(**weights, **{"train.patch_px": 192})
    rgb, dial = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4])
    phase, gradients, terms = plain.phase(0, 0.0), {}, {}
    for name, of in {"squared": plain, "mixed": mixed}.items():
        output = of.model(rgb, dial, **of.options(phase, {}))
        exit_bias = of.model.streams["Y"].decoder.exit.bias.requires_grad_()
        total, terms[name] = of.loss(of.model(rgb, dial, **of.options(phase, {})), rgb, dial, phase)
        gradients[name] = torch.autograd.grad(total, exit_bias)[0]
        x_hat = of.model.join({key: s.x_hat for key, s in output.streams.items()})
        assert x_hat.shape == rgb.shape
    lmbda = 2e-4 * 250**0.4
    output = mixed.model(rgb, dial, **mixed.options(phase, {}))
    seen = {
        "dissimilarity": 1 - ms_ssim(rgb, output.x_hat),
        "color_difference": color_difference(rgb, output.x_hat),
    }
    bias = mixed.model.streams["Y"].decoder.exit.bias
    expected = gradients["squared"].clone()
    for name, value in seen.items():
        assert float(terms["mixed"][name]) == pytest.approx(float(value.detach()), rel=1e-3)
        own = torch.autograd.grad(value, bias, retain_graph=True)[0]
        share = weights[f"loss.{name}"] * lmbda**0.65 * float(terms["mixed"]["distortion"])
        expected += share * own / (float(value) + 1e-3)
    assert torch.allclose(
        gradients["mixed"], expected / 2.5, rtol=2e-3, atol=1e-4 * float(expected.abs().max())
    )
