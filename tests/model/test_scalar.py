"""Scalar latents: what symbols cost, the prior's order, what each stream may see, gains, configurations."""

import math

import numpy as np
import pytest
import torch
from helpers import SCALAR, tiny_recipe
from scipy.special import expit

from mcml.base.errors import DataError, UsageError
from mcml.data.sets import image_set
from mcml.model import model_files, weights
from mcml.model.model import build
from mcml.model.scalar import (
    ANCHORS,
    LARGEST,
    Hyperprior,
    QuadtreePrior,
    bounded,
    logistic_bits,
    round_through,
)
from mcml.model.settings import STREAMS, ModelConfig, StreamConfig
from mcml.model.validate import to_tensor, validate

CONDITION = "model.condition"
HEARS = {"model.color.hyperprior": False}  # others or nothing, in place of a hyperprior


def tiny(variant="fusion", *, seed=0, **settings):
    """Return a model whose symbols differ and whose priors, constant at the start, say something."""
    model = build(tiny_recipe(variant, **SCALAR, **settings).model, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for stream in model.streams.values():
        stream.log_gain.data = torch.linspace(1, 4, ANCHORS)[:, None] + torch.rand(16, generator=generator)
        for layer in stream.prior.last:
            torch.nn.init.normal_(layer.weight, std=0.3, generator=generator)
    return model


def noise(height, width, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_bits_are_those_of_a_logistics_mass_within_a_half():
    draw = np.random.default_rng(0)
    symbols, mean, log_scale = draw.integers(-9, 9, 999), draw.normal(0, 4, 999), draw.uniform(-2, 4, 999)
    near, far = (sign * 0.5 - np.abs(symbols - mean) for sign in (1, -1))
    mass = expit(near / np.exp(log_scale)) - expit(far / np.exp(log_scale))
    given = (torch.tensor(x, dtype=torch.float64) for x in (symbols, mean, log_scale))
    np.testing.assert_allclose(logistic_bits(*given), -np.log2(mass), rtol=1e-9)


@pytest.mark.parametrize("mean, log_scale", [(0.3, -9.0), (-0.5, -1.0), (0.1, 0.0), (7.7, 3.0)])
def test_the_masses_of_whole_numbers_sum_to_one(mean, log_scale):
    symbols = torch.arange(-1000.0, 1000.0, dtype=torch.float64)
    bits = logistic_bits(symbols, torch.tensor(mean), torch.tensor(log_scale))
    assert float(torch.exp2(-bits).sum()) == pytest.approx(1, abs=1e-6) and bool((bits >= 0).all())


@pytest.mark.parametrize(
    "log_scale, scale", [(-99.0, math.exp(-6)), (-6.0, math.exp(-6)), (0.0, 1.0), (3.0, 20.0855)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_far_tails_are_finite_in_float32_and_slope_towards_the_mean(log_scale, scale, sign):
    symbol = torch.tensor([sign * 1e4], requires_grad=True)
    bits = logistic_bits(symbol, torch.zeros(1), torch.tensor([log_scale]))
    bits.backward()
    assert float(symbol.grad) == pytest.approx(sign / scale / math.log(2), rel=1e-3)
    assert float(bits.detach()) == pytest.approx(1e4 / scale / math.log(2), rel=1e-2)


def test_rounding_is_exact_with_the_identitys_slope_and_bounds_stop_it():
    x = torch.linspace(-40, 40, 9999, requires_grad=True)
    for function, value, slope in (
        (round_through, x.round(), torch.ones_like(x)),
        (bounded, x.clamp(0, LARGEST), ((x > 0) & (x < LARGEST)).float()),
    ):
        assert torch.equal(function(x), value)
        assert torch.equal(torch.autograd.grad(function(x).sum(), x)[0], slope)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_are_a_latin_square_of_channel_groups_and_lattices(steps):
    order = QuadtreePrior(8, 4, steps).step_of(6, 8)
    assert order.shape == (8, 6, 8) and torch.equal(order[0::2], order[1::2])  # two channels a group
    square = order[::2, :2, :2].flatten(1)
    assert torch.equal(order[::2, 2:4, 4:6].flatten(1), square)  # every two rows and columns
    for line in (*square, *square.T):  # of a group over the lattices, of a lattice over the groups
        assert line.bincount(minlength=steps).tolist() == [4 // steps] * steps


@pytest.mark.parametrize("steps", [1, 2, 4])
@torch.no_grad()
def test_no_mean_or_scale_sees_its_own_step_or_a_later_one(steps):
    model = tiny("luma", **{"model.luma.prior_steps": steps})
    prior, draw = model.streams["Y"].prior, torch.Generator().manual_seed(1)
    code, other = (4 * torch.randn(1, 16, 7, 9, generator=draw) for _ in range(2))
    side, dial = torch.rand(1, 12, 7, 9, generator=draw), torch.tensor([0.3])
    step_of, before = prior.step_of(7, 9), torch.cat(prior(code, side, dial))
    for step in range(steps):
        after = torch.cat(prior(torch.where(step_of == step, other, code), side, dial))
        assert torch.equal(after[:, step_of <= step], before[:, step_of <= step])
        later = step_of > step
        assert not later.any() or (after != before)[:, later].float().mean() > 0.5
    for seen in (prior(code, side + 1, dial), prior(code, side, dial + 0.5)):
        assert (torch.cat(seen) != before).flatten(2).any(2).all()


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (4, 8), (9, 7)])
@torch.no_grad()
def test_a_hyperprior_serves_any_size(height, width):
    hyperprior, stream = Hyperprior(16, 12), tiny("luma").streams["Y"]
    latents = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(0))
    shape = stream.noise_shapes(height, width)["hyperprior"]
    assert shape == (32, math.ceil(height / 4), math.ceil(width / 4))
    for drawn in (None, torch.zeros(2, *shape)):
        features, spent = hyperprior(latents, drawn)
        assert features.shape == (2, 12, height, width) and spent.shape == (2,) and bool((spent > 0).all())
        assert 0 <= features.min() <= features.max() <= LARGEST


def test_gains_are_the_anchors_and_geometric_between_them():
    stream = tiny("luma").streams["Y"]
    at = [float(k) / (ANCHORS - 1) for k in range(ANCHORS)]
    dials = torch.tensor([*at, (at[2] + at[3]) / 2, -1.0, 2.0])
    log_gain = stream.log_gain
    expected = torch.cat([log_gain, (log_gain[2:3] + log_gain[3:4]) / 2, log_gain[:1], log_gain[-1:]]).exp()
    torch.testing.assert_close(stream.gain(dials)[:, :, 0, 0], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 9), (33, 49)])
@pytest.mark.parametrize("variant, condition", [*((v, "luma") for v in STREAMS), ("fusion", "none")])
@torch.no_grad()
def test_every_variant_codes_any_size(variant, condition, height, width):
    model, dial = tiny(variant, **{CONDITION: condition}), torch.tensor([0.2, 0.9])
    output = model(noise(height, width, batch=2), dial)
    assert output.x_hat.shape == (2, 3, height, width) and tuple(output.streams) == STREAMS[variant]
    for key, stream in output.streams.items():
        assert stream.symbols.shape == (2, 16, -(-height // 8), -(-width // 8))
        assert torch.equal(stream.symbols, stream.symbols.round()) and len(stream.symbols.unique()) > 3
        torch.testing.assert_close(stream.code * model.streams[key].gain(dial), stream.symbols)
        assert stream.bits is stream.mask is stream.level is stream.importance is None
        assert bool((stream.estimated_bits > 0).all()) and bool((stream.estimated_bits < 1e6).all())
    spent = sum(stream.estimated_bits for stream in output.streams.values())
    torch.testing.assert_close(output.estimated_bpp, spent / (height * width))


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one_and_streams_have_dials_of_their_own():
    model, x, dial = tiny(), noise(17, 24, batch=3), torch.tensor([0.1, 0.5, 1.0])
    dials = {"Y": dial, "Cb": dial.flip(0), "Cr": torch.full((3,), 0.3)}
    together = model(x, {**dials, "Cr": 0.3})
    for i in range(3):
        alone = model(x[i : i + 1], {key: float(own[i]) for key, own in dials.items()})
        for key, (x_hat, spent, code, *_) in together.streams.items():
            assert (alone.streams[key].symbols != together.streams[key].symbols[i]).float().mean() < 0.01
            assert float(alone.streams[key].estimated_bits) == pytest.approx(float(spent[i]), rel=0.02)
            luma = together.streams["Y"].code[i : i + 1]
            decoded = model.streams[key].decode(code[i : i + 1], dials[key][i : i + 1], luma)[..., :17, :24]
            torch.testing.assert_close(decoded, x_hat[i : i + 1])
    own = model(x, dial).streams["Y"]  # of one dial for all: luma is the same, colour is not
    assert torch.equal(own.symbols, together.streams["Y"].symbols)
    assert not torch.equal(model(x, dial).streams["Cr"].symbols, together.streams["Cr"].symbols)


@torch.no_grad()
def test_the_prior_is_of_latents_and_prices_symbols():
    """A latent's mass within half a step, 1 / g, of the symbol's value s / g."""
    model, dial = tiny("luma", **{"model.luma.hyperprior": False}), torch.tensor([0.6])
    output, stream = model(noise(24, 40), dial).streams["Y"], model.streams["Y"]
    gain = stream.gain(dial).double()
    mean, log_scale = (x.double() for x in stream.prior(output.code, None, dial))
    near, far = (
        ((output.symbols / gain - mean).abs() + side / gain) / log_scale.exp() for side in (-0.5, 0.5)
    )
    bits = -torch.log2(torch.sigmoid(-near) - torch.sigmoid(-far))
    assert float(output.estimated_bits) == pytest.approx(float(bits.sum()), rel=1e-4)


@torch.no_grad()
def test_only_what_was_asked_for_is_decoded_and_estimated_and_noise_moves_rates_alone():
    model, x = tiny(), noise(16, 16)
    whole, some = model(x, 0.5), model(x, 0.5, decode=("Cb",), estimate=("Cr",))
    assert [some.streams[k].x_hat is None for k in STREAMS["fusion"]] == [True, False, True]
    assert [float(s.estimated_bits) > 0 for s in some.streams.values()] == [False, False, True]
    assert torch.equal(some.estimated_bpp * 256, whole.streams["Cr"].estimated_bits)
    noises = {name: torch.full((1, *shape), 0.3) for name, shape in model.noise_shapes(16, 16).items()}
    assert set(noises) == {"Y.latents", "Y.hyperprior", "Cb.latents", "Cr.latents"}
    noisy = model(x, 0.5, noise=noises)
    assert torch.equal(noisy.x_hat, whole.x_hat)
    for key, stream in noisy.streams.items():
        assert torch.equal(stream.symbols, whole.streams[key].symbols)
        assert not torch.equal(stream.estimated_bits, whole.streams[key].estimated_bits)


@pytest.mark.parametrize(
    "variant, condition", [(v, c) for v in ("independent", "fusion") for c in ("luma", "color", "none")]
)
@pytest.mark.parametrize("shaken", STREAMS["fusion"])
@torch.no_grad()
def test_a_streams_weights_move_fusion_decoders_by_luma_and_rates_of_the_streams_that_know_it(
    variant, condition, shaken
):
    model, x, order = tiny(variant, **{CONDITION: condition}), noise(16, 24), STREAMS[variant]
    before, generator = model(x, 0.5).streams, torch.Generator().manual_seed(9)
    for tensor in model.streams[shaken].parameters():
        tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    after = model(x, 0.5).streams
    assert not torch.equal(after[shaken].code, before[shaken].code)
    for key in set(order) - {shaken}:
        assert torch.equal(after[key].symbols, before[key].symbols)
        borrows = variant == "fusion" and shaken == "Y"
        assert torch.equal(after[key].x_hat, before[key].x_hat) is not borrows
        told = {"luma": order[: order.index(key)], "color": ("Cb",) if key == "Cr" else (), "none": ()}
        knows = shaken in told[condition]
        assert torch.equal(after[key].estimated_bits, before[key].estimated_bits) is not knows


def test_gradients_reach_every_weight_of_a_stream_and_none_of_those_before():
    model, rgb = tiny(), noise(40, 40).requires_grad_()
    output = model(rgb, 0.5).streams
    for number, (key, stream) in enumerate(output.items()):
        model.zero_grad(set_to_none=True)
        (stream.x_hat.square().sum() + stream.estimated_bits.sum()).backward(retain_graph=True)
        moved = {k for k, of in model.streams.items() if any(p.grad is not None for p in of.parameters())}
        assert moved == {key}
        assert not [name for name, p in model.streams[key].named_parameters() if p.grad is None]
        if not number:  # luma sees each colour by its luma alone
            g = rgb.grad[0] / model.to_ycbcr[0][:, None, None]
            torch.testing.assert_close(
                g[:1].expand(3, -1, -1), g, rtol=1e-3, atol=1e-3 * float(g.abs().max())
            )


def test_a_frozen_encoder_is_run_without_gradients():
    model = tiny("luma")
    for p in model.streams["Y"].parts()["encoder"]:
        p.requires_grad_(False)
    output = model(noise(16, 16), 0.5).streams["Y"]
    assert not output.code.requires_grad
    assert output.x_hat.requires_grad and output.estimated_bits.requires_grad


def test_dictionaries_hold_what_counts_for_the_quantizer_and_come_back():
    own = {"quantizer", "prior_width", "prior_steps", "hyperprior"}
    both = {"width", "code_channels", "groups", "blocks"}
    tables = ModelConfig().to_dict()  # what the identity of a binary model hashes
    assert list(tables) == ["variant", "luma", "color"]
    assert all(tables[k].keys() == both | {"levels", "importance"} for k in ("luma", "color"))
    scalar = tiny_recipe(**SCALAR, **{CONDITION: "none", "model.luma.prior_steps": 2}).model
    assert scalar.to_dict()["luma"].keys() == scalar.to_dict()["color"].keys() == both | own
    mixed = ModelConfig(variant="luma", luma=scalar.luma, color=StreamConfig(code_channels=9, levels=4))
    for config in (scalar, mixed, tiny_recipe().model):
        assert ModelConfig().changed(**config.to_dict()) == config
    plain = StreamConfig(quantizer="scalar")
    assert StreamConfig(quantizer="scalar", levels=7, importance="uniform") == plain


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model.color.quantizer": "binary", "model.variant": "fusion"}, "luma is scalar, color binary"),
        ({"model.luma.quantizer": "vector"}, "unknown quantizer 'vector'"),
        ({"model.luma.code_channels": 18}, "code_channels is 18: latents need a multiple of 4"),
        ({"model.luma.prior_steps": 3}, "prior_steps is 3: expected 1, 2 or 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        tiny_recipe(**{**SCALAR, **settings})


SHIPPED = [
    name
    for name in model_files.released()
    if "quantizer" in model_files.read_config(model_files.model_folder(name))["model"]["luma"]
]
if SHIPPED:

    @pytest.mark.parametrize("name", SHIPPED)
    @torch.no_grad()
    def test_noise_overprices_rounding_less_the_higher_the_dial(name):
        """Noise pays for a latent that rounding surely sends to 0; priors end their training on rounding."""
        model, rgb = weights.load(name), to_tensor(image_set("embedded").read("chelsea")[:256, :256])
        shapes, draw = model.noise_shapes(256, 256).items(), torch.Generator().manual_seed(0)
        noises = {k: torch.rand(1, *shape, generator=draw) - 0.5 for k, shape in shapes}
        ratios = []
        for dial in (0.25, 0.5, 0.75, 1.0):
            noisy, rounded = (model(rgb, dial, decode=(), noise=given) for given in (noises, None))
            ratios.append(float(noisy.estimated_bpp / rounded.estimated_bpp))
        assert ratios == sorted(ratios, reverse=True) and 1 < ratios[-1] < 1.5

    @pytest.mark.parametrize("name", SHIPPED)
    @torch.no_grad()
    def test_rate_falls_and_error_grows_from_dial_to_dial(name):
        image = image_set("embedded").read("coffee")[:128, :192]
        rows = validate(weights.load(name), [image], [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        for column in (f"{c}{k}" for c in ("estimated_bpp", "psnr") for k in ("", "_Y", "_Cb", "_Cr")):
            values = [row[column] for row in rows]
            assert values == sorted(values), column


@pytest.mark.parametrize("told, key", [("color", "Cb"), ("color", "Cr"), ("none", "Cr")])
@torch.no_grad()
def test_a_prior_that_is_told_less_is_the_one_that_hears_nothing_there(told, key):
    """Cutting luma out is the same as weights of zero where luma came in."""
    source, alone = tiny("independent", **HEARS), tiny("independent", **HEARS, **{CONDITION: told})
    for stream in source.streams.values():
        for tensor in stream.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    for name in alone.streams:
        weights.copy_stream(source, alone, name)
    own = source.streams[key]
    heard = [k in alone.streams[key].known for k in own.known]
    sizes = [source.config.stream(k).code_channels for k in own.known]
    for part, kept in zip(own.side.weight.split(sizes, 1), heard, strict=True):
        part.mul_(kept)
    if not any(heard):  # what is left of the side features is a constant
        own.side.bias.fill_(-1.0)
    x = noise(24, 40)
    wanted, found = (model(x, 0.5).streams[key] for model in (source, alone))
    torch.testing.assert_close(found.estimated_bits, wanted.estimated_bits, rtol=1e-5, atol=1e-3)
    assert torch.equal(found.symbols, wanted.symbols) and torch.equal(found.x_hat, wanted.x_hat)


def test_a_prior_cannot_be_told_more_than_where_it_comes_from():
    source, target = tiny("independent", **HEARS, **{CONDITION: "color"}), tiny("independent", **HEARS)
    with pytest.raises(DataError, match="stream Cr: its prior is told Cb there, Y, Cb here"):
        weights.copy_stream(source, target, "Cr")
