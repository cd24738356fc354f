"""Variants: what they give, what each stream may see, the dial, and the configuration's checks."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcml.base.errors import UsageError
from mcml.metrics import color
from mcml.model.model import build, pad_to_multiple
from mcml.model.quantization import masked_bits
from mcml.model.settings import STREAMS, VARIANTS, ModelConfig, StreamConfig

IMPORTANCE = ("adaptive", "uniform")

LUMA = StreamConfig(width=8, code_channels=12, levels=5, groups=1, blocks=1)
COLOR = StreamConfig(width=8, code_channels=9, levels=4, groups=1, blocks=1)
SIZES = [(1, 1), (7, 9), (65, 97)]


def tiny(variant="fusion", *, seed=0, **changes):
    """Return a model whose importance maps and context models, uniform at the start, say something."""
    luma, colors = replace(LUMA, **changes), replace(COLOR, **changes)
    model = build(ModelConfig(variant=variant, luma=luma, color=colors), seed).eval()
    generator = torch.Generator().manual_seed(0)
    for stream in model.streams.values():
        for tensor in stream.bit_model.parameters():
            torch.nn.init.normal_(tensor, std=0.3, generator=generator)
        if stream.importance:
            torch.nn.init.normal_(stream.importance.last.weight, std=4, generator=generator)
    return model


def noise(height, width, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    """Compare every field of two streams' outputs bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if y is not None)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_every_variant_codes_any_size(variant, height, width):
    model = tiny(variant)
    output = model(noise(height, width, batch=2), 0.5)
    assert output.x_hat.shape == (2, 3, height, width)
    assert tuple(output.streams) == STREAMS[variant]
    h, w = -(-height // 8), -(-width // 8)
    spent = torch.zeros(2)
    for key, stream in output.streams.items():
        settings = model.config.stream(key)
        n = settings.code_channels
        assert stream.x_hat.shape == (2, 3 if key == "RGB" else 1, height, width)
        assert stream.bits.shape == stream.mask.shape == stream.code.shape == (2, n, h, w)
        assert stream.importance.shape == (2, 1, h, w)
        assert (stream.level.shape, stream.level.dtype) == ((2, h, w), torch.int64)
        assert set(stream.bits.unique().tolist()) <= {0.0, 1.0}
        assert set(stream.mask.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(stream.code, masked_bits(stream.bits, stream.mask))
        assert 0 < stream.importance.min() <= stream.importance.max() < 1
        assert 0 <= stream.level.min() <= stream.level.max() <= settings.levels - 1
        opened = torch.tensor([0, *settings.even_groups()]).cumsum(0)
        assert torch.equal(stream.mask.sum(1).long(), opened[stream.level])
        assert (stream.estimated_bits > 0).all()
        luma = output.streams["Y"].code if key in ("Cb", "Cr") else None  # the context of colours' bits
        expected = model.streams[key].estimated_bits(stream.bits, stream.level, stream.mask, luma)
        torch.testing.assert_close(stream.estimated_bits, expected)
        spent = spent + stream.estimated_bits
        if (height, width) == SIZES[-1]:  # the checks above would pass on constants
            assert 0.1 < stream.bits.mean() < 0.9
            assert 0 < stream.mask.mean() < 1
            assert len(stream.level.unique()) > 1
            assert stream.x_hat.std() > 0.01
    torch.testing.assert_close(output.estimated_bpp, spent / (height * width))
    planes = {key: stream.x_hat for key, stream in output.streams.items()}
    torch.testing.assert_close(output.x_hat, model.join(planes))


@torch.no_grad()
def test_only_what_was_asked_for_is_decoded_and_estimated():
    model, x = tiny(), noise(16, 16)
    whole = model(x, 0.0)
    some, none = model(x, 0.0, decode=("Cb",)), model(x, 0.0, decode=(), estimate=False)
    assert whole.x_hat is not None and some.x_hat is None and none.x_hat is None
    assert [some.streams[k].x_hat is None for k in ("Y", "Cb", "Cr")] == [True, False, True]
    assert torch.equal(some.streams["Cb"].x_hat, whole.streams["Cb"].x_hat)
    for key, stream in none.streams.items():
        assert same(stream[2:7], whole.streams[key][2:7])
    assert whole.estimated_bpp > 0
    assert none.estimated_bpp == 0


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one():
    model, x = tiny(), noise(17, 24, batch=3)
    dial = torch.tensor([-1.0, 0.0, 2.0])
    together = model(x, dial)
    for i in range(3):
        alone = model(x[i : i + 1], float(dial[i])).streams
        of_image = {
            key: [field[i : i + 1] for field in fields[:7]] for key, fields in together.streams.items()
        }
        for key, (x_hat, spent, code, bits, importance, level, mask) in of_image.items():
            torch.testing.assert_close(alone[key].importance, importance)
            flipped = alone[key].bits != bits  # values within rounding of a half may
            assert flipped.float().mean() < 0.01
            luma = of_image["Y"][2] if key != "Y" else None
            decoded = model.streams[key].decoder(code, luma)[..., :17, :24]
            torch.testing.assert_close(decoded, x_hat)
            torch.testing.assert_close(model.streams[key].estimated_bits(bits, level, mask, luma), spent)


def test_the_seed_decides_the_weights_and_leaves_the_callers_generator_alone():
    config = ModelConfig(luma=LUMA, color=COLOR)
    before = torch.get_rng_state()
    a, b, c = build(config, 1), build(config, 1), build(config, 2)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (m.streams["Cb"].encoder.stem.weight for m in (a, b, c))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@settings(deadline=None)
@given(st.integers(1, 21), st.integers(1, 21), st.sampled_from([4, 8, 16]))
def test_padding_is_numpys_reflection_down_to_one_pixel(height, width, multiple):
    x = noise(height, width, batch=2)
    padded, size = pad_to_multiple(x, multiple)
    more = ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple))
    np.testing.assert_array_equal(padded.numpy(), np.pad(x.numpy(), more, mode="reflect"))
    assert size == (height, width)


@torch.no_grad()
def test_an_odd_size_decodes_as_its_padded_picture_does():
    model, x = tiny(), noise(13, 18)
    padded, _ = pad_to_multiple(x, 8)
    torch.testing.assert_close(model(x, 1.0).x_hat, model(padded, 1.0).x_hat[..., :13, :18])


@pytest.mark.parametrize("variant", VARIANTS)
def test_planes_are_the_projects_ycbcr_centred_at_zero_and_join_inverts_them(variant, astronaut):
    rgb = torch.from_numpy(astronaut.copy()).permute(2, 0, 1)[None] / 255
    model = tiny(variant)
    planes = model.planes(rgb)
    ycbcr = torch.from_numpy((color.rgb_to_ycbcr(astronaut) - (127.5, 128, 128)) / 255).permute(2, 0, 1)[None]
    expected = {"RGB": rgb - 0.5, **dict(zip(STREAMS["fusion"], ycbcr.float().split(1, dim=1), strict=True))}
    for key in STREAMS[variant]:
        torch.testing.assert_close(planes[key], expected[key], atol=1e-6, rtol=0)
    whole = (expected["Y"] + 0.5).expand(-1, 3, -1, -1) if variant == "luma" else rgb
    torch.testing.assert_close(model.join(planes), whole, atol=1e-6, rtol=0)


@torch.no_grad()
def test_luma_is_the_same_whatever_variant_holds_it():
    x, outputs = noise(19, 24), []
    source = tiny("fusion", seed=3).streams["Y"].state_dict()
    for seed, variant in enumerate(("luma", "independent", "fusion")):
        model = tiny(variant, seed=seed)
        model.streams["Y"].load_state_dict(source)
        outputs.append(model(x, 0.3).streams["Y"])
    assert same(outputs[0], outputs[1])
    assert same(outputs[0], outputs[2])


@pytest.mark.parametrize("variant", ["luma", "independent", "fusion"])
@torch.no_grad()
def test_luma_never_sees_colour(variant):
    """Pictures of equal luma and other colours everywhere: Y is bit-identical, code and decode."""
    model = tiny(variant)
    model.to_ycbcr[0] = torch.tensor([0.25, 0.5, 0.25])  # exact in float32 for colours of 64ths
    generator = torch.Generator().manual_seed(7)
    a = torch.randint(16, 48, (1, 3, 24, 32), generator=generator) / 64
    shift = torch.randint(1, 16, (1, 1, 24, 32), generator=generator) / 64
    b = a + torch.cat([shift, -shift, shift], dim=1)
    assert torch.equal(model.planes(a)["Y"], model.planes(b)["Y"])
    one, other = model(a, 0.5).streams, model(b, 0.5).streams
    assert same(one["Y"], other["Y"])
    for key in STREAMS[variant][1:]:
        assert not torch.equal(one[key].importance, other[key].importance)


@pytest.mark.parametrize("variant, shaken", [("independent", "Y"), *product(["fusion"], STREAMS["fusion"])])
@torch.no_grad()
def test_a_streams_weights_move_no_other_but_for_fusion_decoders_and_rates_by_luma(variant, shaken):
    model, x = tiny(variant), noise(16, 24)
    before = model(x, 0.5).streams
    generator = torch.Generator().manual_seed(9)
    for tensor in model.streams[shaken].parameters():
        tensor.add_(torch.randn(tensor.shape, generator=generator))
    after = model(x, 0.5).streams
    assert not torch.equal(after[shaken].code, before[shaken].code)
    for key in set(STREAMS[variant]) - {shaken}:
        assert same(after[key][2:7], before[key][2:7])  # what is sent never depends on another stream
        borrows = variant == "fusion" and shaken == "Y"
        assert torch.equal(after[key].x_hat, before[key].x_hat) is not borrows
        assert torch.equal(after[key].estimated_bits, before[key].estimated_bits) is (shaken != "Y")


@pytest.mark.parametrize("importance", IMPORTANCE)
@torch.no_grad()
def test_a_larger_dial_keeps_the_same_bits_and_more(importance):
    model, x = tiny(importance=importance), noise(64, 64)
    dials = [-20.0, -3.0, -1.3, -0.4, 0.0, 0.6, 1.5, 3.0, 20.0]
    outputs = [model(x, dial, estimate=False).streams for dial in dials]
    for key in STREAMS["fusion"]:
        masks = torch.stack([output[key].mask for output in outputs])
        assert (masks.diff(dim=0) >= 0).all()
        assert all(torch.equal(output[key].bits, outputs[0][key].bits) for output in outputs)
        assert not masks[0].any()
        assert masks[-1].all()
        assert len(masks.flatten(1).sum(1).unique()) >= 4
        levels = model.config.stream(key).levels
        for dial, output in list(zip(dials, outputs, strict=True))[2:-2]:
            if importance == "adaptive":
                assert len(output[key].level.unique()) > 1
            else:  # one level everywhere
                assert output[key].level.unique().tolist() == [int(levels / (1 + math.exp(-dial)))]


@torch.no_grad()
def test_the_dial_is_a_bias_on_the_importance_logit():
    model, x = tiny(), noise(24, 24)
    at_zero, at_two = (model(x, dial).streams["Y"].importance for dial in (0.0, 2.0))
    torch.testing.assert_close(at_two, torch.sigmoid(torch.logit(at_zero) + 2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_lambda_falls_with_the_share_that_is_sent():
    model = tiny()
    model.rate_slope.copy_(torch.tensor([20.0, 2.0]))
    dial = torch.tensor([-3.0, 0.0, 3.0])
    expected = [20 * np.exp(-2 / (1 + np.exp(-b))) for b in dial.tolist()]
    np.testing.assert_allclose(model.lmbda(dial).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_the_estimate_moves_the_context_models_only(importance):
    model = tiny(importance=importance)
    model(noise(32, 32), 0.0).estimated_bpp.sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split(".")[2] for name in moved} <= {"bit_model", "level_model"}
    for key in STREAMS["fusion"]:
        assert f"streams.{key}.bit_model.causal.weight" in moved
        assert (f"streams.{key}.level_model.tables" in moved) is (importance == "adaptive")


@pytest.mark.parametrize("variant", VARIANTS)
def test_distortion_reaches_encoder_importance_and_decoder(variant):
    model = tiny(variant)
    model(noise(32, 32), 0.0).x_hat.square().mean().backward()
    for key, stream in model.streams.items():
        for part in ("encoder", "importance", "decoder"):
            for name, p in getattr(stream, part).named_parameters():
                assert p.grad.abs().max() > 0, f"{key}.{part}.{name}"
        assert all(p.grad is None for p in stream.bit_model.parameters())


def test_a_frozen_encoder_is_run_without_gradients():
    model = tiny()
    model.streams["Y"].encoder.requires_grad_(False)
    model.streams["Y"].importance.requires_grad_(False)
    assert not model.streams["Y"].encoder_learns()
    output = model(noise(16, 16), 0.0).streams
    assert not output["Y"].code.requires_grad
    assert output["Y"].x_hat.requires_grad  # its decoder still learns
    assert output["Cb"].code.requires_grad
    model.streams["Y"].importance.requires_grad_(True)
    assert model(noise(16, 16), 0.0).streams["Y"].code.requires_grad


@torch.no_grad()
def test_other_groups_survive_a_state_dict():
    model, x = tiny(), noise(24, 32)
    even = model(x, -0.5)
    for key, sizes in {"Y": [1, 2, 3, 6], "Cr": [5, 3, 1]}.items():
        model.streams[key].set_groups(sizes)
    before = model(x, -0.5)
    assert not torch.equal(before.streams["Y"].mask, even.streams["Y"].mask)
    other = tiny(seed=5)
    other.load_state_dict(model.state_dict())
    assert other.streams["Y"].groups.tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4]
    assert other.streams["Cb"].groups.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    after = other(x, -0.5)
    for key in STREAMS["fusion"]:
        assert same(after.streams[key], before.streams[key])
    for name, buffer in model.named_buffers():  # the context models' masks too, which are not stored
        assert torch.equal(other.get_buffer(name), buffer), name


@pytest.mark.parametrize("sizes", [[3, 3, 3], [3, 3, 3, 4], [4, 4, 4, 1, 1], [12], [0, 4, 4, 4]])
def test_groups_must_fit_the_code_and_none_is_empty(sizes):
    with pytest.raises(UsageError, match="expected 4 groups of 12" if min(sizes) else "group sizes"):
        tiny().streams["Y"].set_groups(sizes)
