"""The integer prior: what the float one says, alike on every machine, and symbols that come back."""

from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import tiny_scalar
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from mcml.base.errors import CorruptStreamError, DataError
from mcml.codec import prior
from mcml.codec.bits import Reader, Writer
from mcml.codec.interface import get_codec
from mcml.codec.latents import _place
from mcml.codec.order import ONE
from mcml.codec.prior import (
    BELOW,
    DIALS,
    EXACT,
    FRACTIONS,
    LARGEST,
    LOWEST,
    MORE,
    SCALES,
    SYMBOL_MAX,
    Expected,
    Layer,
    StreamPrior,
    dial_of,
    expected,
    odds,
    odds_of,
    power_of_two,
    read_symbols,
    write_symbols,
)
from mcml.data.sets import image_set
from mcml.model import scalar

NONE = {"model.condition": "none"}
BARE = {"model.luma.hyperprior": False, "model.color.hyperprior": False}


# ------------------------------------------------------------------------ against the float prior


def said(own, symbols, dial, side):
    """Return what the integer prior says of symbols (h, w, n): means, logarithms of scales in base 2."""
    found, spoken = np.empty((2, *symbols.shape)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "expected", lambda mean, scale: spoken.append((mean, scale)))
        for _, where, take in own.passes(*symbols.shape[:2], dial, side):
            for into, values, bits in zip(found, spoken.pop(), (28, 12), strict=True):
                _place(into, where, values * 2.0**-bits)
            take(np.concatenate([symbols[y, x][..., channels].ravel() for y, x, channels in where]))
    return found


def as_tensor(values):
    return torch.from_numpy(np.asarray(values, np.float32)).permute(2, 0, 1)[None]


def both(codec, grid, dial, seed=0):
    """Return by stream what the integer and what the float prior say of random symbols, (2, h, w, n) each."""
    rng, symbols, answers = np.random.default_rng(seed), {}, {}
    for i, (key, stream) in enumerate(codec.model.streams.items()):
        own, hyper, side = codec.coder.priors[key], None, None
        gain = np.exp2(own.log_gains(dial) / 4096)
        symbols[key] = np.rint(rng.laplace(0, 0.7 * gain, (*grid, own.n)))  # latents of variance 1
        codes = {k: as_tensor(codec.coder.priors[k].latents(of, dial)) for k, of in symbols.items()}
        known = [codec.coder.priors[k].inputs(symbols[k], dial) for k in codec.coder.keys[:i]]
        if stream.hyperprior is not None:
            hyper = np.rint(rng.normal(0, 2, own.hyper_shape(*grid))).astype(np.int8)
            side = stream.hyperprior.synthesis(as_tensor(hyper))[..., : grid[0], : grid[1]]
        elif stream.side is not None:
            inputs = torch.cat([codes[k] for k in codec.coder.keys[:i]], 1).clamp(-32, 32)
            side = scalar.bounded(stream.side(inputs))
        share = torch.tensor([dial_of(dial)])
        found = torch.stack(stream.prior(codes[key], side, share))[:, 0].permute(0, 2, 3, 1).double().numpy()
        exact = np.stack([found[0] * gain, found[1] / np.log(2) + np.log2(gain)])
        answers[key] = said(own, symbols[key], dial, own.features(*grid, hyper, known)), exact
    return answers


@torch.no_grad()
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (5, 1), (2, 2), (7, 9), (8, 12)], ids=str)
@pytest.mark.parametrize("extra", [{}, NONE, NONE | BARE], ids=["luma", "hyperpriors", "nothing"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_means_and_scales_are_the_float_priors_within_the_rounding(codecs, grid, extra, steps):
    """Of features to 2^-6 and weights; at the dials that were trained."""
    of_steps = {f"model.{stream}.prior_steps": steps for stream in ("luma", "color")}
    codec = codecs("fusion", tiny_scalar, **of_steps, **extra)
    for dial in (BELOW * 1024, 5000, (BELOW + 7) * 1024):
        for key, (found, exact) in both(codec, grid, dial).items():
            error = abs(found - exact)
            error[0] /= np.exp2(codec.coder.priors[key].log_gains(dial) / 4096)  # latents, of variance 1
            assert error[0].mean() < 0.02 and error[0].max() < 0.15, (key, dial)
            assert error[1].mean() < 0.03 and error[1].max() < 0.25, (key, dial)
            assert found[1].std() > 0.3


@torch.no_grad()
def float_bits(codec, analysis, dials):
    """Return what a model's own prior estimates for the symbols of an analysis, in one tile."""
    codes, total = [], 0.0
    for (key, stream), dial in zip(codec.model.streams.items(), dials, strict=True):
        share, side = torch.tensor([dial_of(dial)]), None
        gain, latents = stream.gain(share), as_tensor(analysis.latents[key])
        symbols = (latents * gain).round()
        if stream.hyperprior is not None:
            z, (h, w) = as_tensor(analysis.hyper[key]), latents.shape[-2:]
            of = (part.view(1, -1, 1, 1) for part in (stream.hyperprior.mean, stream.hyperprior.log_scale))
            total += float(scalar.logistic_bits(z, *of).sum())
            side = stream.hyperprior.synthesis(z)[..., :h, :w]
        elif stream.side is not None:
            side = scalar.bounded(stream.side(torch.cat(codes, 1).clamp(-32, 32)))
        codes.append(symbols / gain)
        mean, log_scale = stream.prior(codes[-1], side, share)
        total += float(scalar.logistic_bits(symbols, mean * gain, log_scale + gain.log()).sum())
    return total


@pytest.mark.parametrize("quality", [35, 50])
def test_a_photograph_takes_at_most_half_a_percent_more_bits_than_the_float_prior_says(quality):
    """Fewer where a symbol is a surprise, which the tables bound and the logistic does not."""
    codec, image = get_codec("scalar_fusion"), image_set("embedded").read("coffee")[:256, :256]
    analysis = codec.analyse(image)
    encoded = codec.pack(analysis, quality, rounding=0, color_share=0).ideal_bits.total()
    assert 0.9 < encoded / float_bits(codec, analysis, codec.coder.dials(quality, 0)) < 1.005


# ---------------------------------------------------------------------------------------- tables


def test_no_entry_of_the_tables_is_so_near_a_tie_that_machines_could_differ():
    """All by decimals of 30 digits, which also say that they are a logistic's."""
    table, nearest = odds(), Decimal(1)
    half, one = Decimal("0.5"), Decimal(1)
    with localcontext(prec=30):
        logs = [(Decimal(2).ln() * (Decimal(LOWEST) + Decimal(i) / 8)).exp() for i in range(SCALES)]
        for scale, fraction in np.ndindex(SCALES, FRACTIONS // 2):  # the others are their mirrors
            mean = (Decimal(fraction) + half) / FRACTIONS - half
            # e^(x / s) for x = 1/2 - mean, 1/2 + mean, and from the first on k more
            grown, step = ((half - mean) / logs[scale]).exp(), (one / logs[scale]).exp()
            down = one / (one + ((half + mean) / logs[scale]).exp())
            up = []
            for _ in range(MORE + 1):
                up.append(one / (one + grown))
                grown *= step
            shares = [one - up[0] - down, up[0] / (up[0] + down)]
            shares += [after / before for before, after in pairwise(up)]
            found = [table.zero[scale, fraction], table.above[scale, fraction], *table.more[scale, fraction]]
            for share, entry in zip(shares, found, strict=True):
                rest = share * ONE % 1
                nearest = min(nearest, abs(rest - half))
                assert entry == min(max(round(share * ONE), 1), ONE - 1)
    assert nearest > 1e-7
    for entries in table:
        assert entries.min() >= 1 and entries.max() <= ONE - 1


def test_tables_of_mirrored_means_are_mirrored():
    """Which the lower side's coding builds on."""
    zero, above, _ = odds()
    np.testing.assert_array_equal(zero, zero[:, ::-1])
    np.testing.assert_array_equal(above, np.clip(ONE - above[:, ::-1], 1, ONE - 1))


def test_tables_of_a_hyperpriors_own_distributions_are_their_logistics():
    rng = np.random.default_rng(0)
    mean, log_scale = rng.uniform(-0.5, 0.5, 32), rng.uniform(-6, 8, 32)
    table = odds_of(mean, log_scale)
    for side, center in enumerate((-mean, mean)):
        beyond = expit(-(np.arange(MORE + 1)[:, None] + 0.5 - center) / np.exp(log_scale))
        below = expit(-(0.5 + center) / np.exp(log_scale))
        shares = {"zero": 1 - beyond[0] - below, "above": beyond[0] / np.maximum(beyond[0] + below, 1e-300)}
        for name, share in shares.items():
            np.testing.assert_allclose(getattr(table, name)[:, side], ONE * share, atol=1.01)
        likely = beyond[:-1] > 1e-200
        more = np.where(likely, beyond[1:] / np.where(likely, beyond[:-1], 1), 0)
        np.testing.assert_allclose(table.more[:, side].T, ONE * more, atol=1.01)


def test_powers_of_two_are_the_nearest_whole_numbers_on_every_machine():
    with localcontext(prec=40):
        root = Decimal(2) ** (Decimal(1) / 4096)
        exact = [root**i * 2**30 for i in range(4096)]
    assert min(abs(value % 1 - Decimal("0.5")) for value in exact) > 1e-5  # a double is good to 1e-7
    assert prior._powers().tolist() == [round(value) for value in exact]
    exponents = np.random.default_rng(0).integers(-14 * 4096, 14 * 4096, 2000)
    for bits in (prior.LOG_BITS, prior.INVERSE_BITS):
        for exponent, found in zip(exponents.tolist(), power_of_two(exponents * 1.0, bits), strict=True):
            whole, part = divmod(exponent, 4096)
            shift = 30 - bits - whole
            power = int(prior._powers()[part])
            assert found == (power + (1 << shift >> 1) >> shift if shift > 0 else power << -shift)


# --------------------------------------------------------------------------------------- symbols


def drawn(rng, count, wide):
    """Return symbols, means in 2^-28 and logarithms of scales in 2^-12, unrelated where `wide`."""
    mean = np.rint(rng.normal(0, 2.0 ** rng.uniform(-3, 17 if wide else 6), count) * 2**28)
    log_scale = np.rint(rng.uniform(-8, 14, count) * 4096)
    symbols = rng.normal(mean * 2.0**-28, np.exp2(np.clip(log_scale / 4096, -3, 11)))
    if wide:
        symbols = rng.integers(-SYMBOL_MAX, SYMBOL_MAX, count, endpoint=True)
    return np.clip(np.rint(symbols), -SYMBOL_MAX, SYMBOL_MAX).astype(np.float64), mean, log_scale


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 400), wide=st.booleans())
def test_symbols_come_back_whatever_is_expected_of_them(seed, count, wide):
    symbols, mean, log_scale = drawn(np.random.default_rng(seed), count, wide)
    writer = Writer()
    write_symbols(symbols, expected(mean, log_scale), writer)
    chunk = writer.finish()
    reader = Reader(chunk)
    np.testing.assert_array_equal(read_symbols(expected(mean, log_scale), reader), symbols)
    reader.finish()
    assert writer.bits - 32 <= 8 * len(chunk) <= 1.001 * writer.bits + 64


def test_the_farthest_symbols_of_every_scale_come_back():
    for symbol, mean in ((SYMBOL_MAX, -(2.0**48)), (-SYMBOL_MAX, 2.0**48)):
        given = expected(np.full(SCALES, mean), (np.arange(SCALES) / 8 + LOWEST) * 4096)
        assert sorted(set(given.scale)) == list(range(SCALES))
        writer, symbols = Writer(), np.full(SCALES, float(symbol))
        write_symbols(symbols, given, writer)
        np.testing.assert_array_equal(read_symbols(given, Reader(writer.finish())), symbols)


def test_symbols_beyond_what_an_encoder_writes_are_refused():
    given = expected(np.array([32760.0 * 2**28]), np.array([8 * 4096.0]))
    for symbol in (SYMBOL_MAX + 1, 65000, 10**6):
        writer = Writer()
        write_symbols(np.array([float(symbol)]), given, writer)
        with pytest.raises(CorruptStreamError, match="beyond what an encoder writes"):
            read_symbols(given, Reader(writer.finish()))


@pytest.mark.parametrize("low, high, most", [(-4, 1, 0.002), (1, 3, 0.02), (3, 11, 0.04)])
def test_symbols_take_the_bits_of_a_logistic_and_a_little_more(low, high, most):
    """Where scales pass 2^3 the escape's even odds begin to cost."""
    rng = np.random.default_rng(3)
    mean, log_scale = rng.uniform(-0.5, 0.5, 20000), rng.uniform(low, high, 20000)
    symbols, writer = np.rint(rng.logistic(mean, np.exp2(log_scale))), Writer()
    write_symbols(symbols, expected(np.rint(mean * 2**28), np.rint(log_scale * 4096)), writer)
    parts = (symbols, mean, log_scale * np.log(2))
    bits = float(scalar.logistic_bits(*map(torch.from_numpy, parts)).sum())
    assert bits < writer.bits < (1 + most) * bits


# --------------------------------------------------------------------------------------- exactness


def extremes(layer, lowest, largest):
    """Return inputs that make a layer's sums as large and as small as they can be."""
    up = np.where(layer.weight.T > 0, largest, lowest).astype(np.float32)
    down = np.where(layer.weight.T > 0, lowest, largest).astype(np.float32)
    return np.concatenate([up, down])


def layers_of(own):
    """Yield the layers of a prior with the lowest and the largest number that they are fed."""
    if own.hyper:
        yield own.expand, -2 * LARGEST, 2 * LARGEST
        yield own.refine, 0, LARGEST
    if own.side is not None:
        yield own.side, -2 * LARGEST, 2 * LARGEST
    for mix, _, row in own.plan:
        yield mix, 0, LARGEST
        for near, last, _ in row:
            yield last, 0, LARGEST
            if near is not None:
                yield near, -2 * LARGEST, 2 * LARGEST


def assert_exact(layer, lowest, largest):
    x = extremes(layer, lowest, largest)
    exact = x.astype(np.int64) @ layer.weight.astype(np.int64) + layer.bias.astype(np.int64)
    assert abs(exact).max() < EXACT / 2
    wanted = np.floor(exact * (layer.unit * 2.0**20) + 0.5)
    np.testing.assert_array_equal(layer.values(x, 20), wanted)
    bits = -np.log2(layer.shift).astype(np.int64)
    rounded = np.floor((exact + layer.half) / np.exp2(bits))
    np.testing.assert_array_equal(layer.features(x), np.clip(rounded, 0, LARGEST))


@pytest.mark.parametrize("name", ["tiny", "scalar_fusion", "scalar_independent"])
def test_the_largest_sums_that_any_input_can_make_are_exact(latents, name):
    codec, count = latents if name == "tiny" else get_codec(name), 0
    for own in codec.coder.priors.values():
        for layer, lowest, largest in layers_of(own):
            assert_exact(layer, lowest, largest)
            count += 1
    assert count == 3 * (4 + 2 * 16 - 4) + 4  # mixes, lasts and nears of three streams; expand, refine, sides


@pytest.mark.parametrize("size", [2.0**k for k in range(-24, 10, 3)])
def test_weights_of_any_size_give_exact_sums_or_are_refused(size):
    """Adversarial: all of one sign, so that sums come as near to the bound as they can."""
    rng = np.random.default_rng(0)
    for inputs, low, largest in ((1, 0, LARGEST), (700, -2 * LARGEST, 2 * LARGEST)):
        weight, bias = size * rng.uniform(0.5, 1, (inputs, 5)), size * rng.normal(0, 1, 5)
        try:
            layer = Layer(weight, bias, largest)
        except DataError:
            assert 0.4 * size * inputs * largest > 2.0**22 or size * largest * inputs > EXACT / 4
            continue
        assert_exact(layer, low, largest)
        step = np.ldexp(1.0, np.log2(layer.shift).astype(np.int64))
        assert (step <= np.maximum(2.0**-14, np.abs(weight).sum(0) * largest * 2.0**-20)).all()  # fine enough


def test_the_dials_part_of_a_bias_stays_within_its_layers_room(latents):
    for own in latents.coder.priors.values():
        for mix, (bias, weight), _ in own.plan:
            for known in (0, 1 << prior.DIAL_BITS):
                added = np.floor((bias + weight * known) * (2.0**-24 / mix.unit) + 0.5)
                sums = np.abs(mix.weight.astype(np.float64)).sum(0) * LARGEST + np.abs(added) + mix.half
                assert sums.max(initial=0) < EXACT


def tensors_of(codec, key="Y"):
    return {name: value.numpy().copy() for name, value in codec.model.streams[key].state_dict().items()}


PARTS = [
    "log_gain", "hyperprior.mean", "hyperprior.log_scale", "hyperprior.expand.weight",
    "hyperprior.refine.bias", "prior.near.1.weight", "prior.mix.0.weight", "prior.mix.3.bias",
    "prior.last.0.weight", "prior.last.3.bias",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e9, 1e-45])
@pytest.mark.parametrize("name", PARTS)
def test_hostile_weights_are_refused_or_exact(latents, name, value):
    tensors = tensors_of(latents)
    tensors[name].flat[3] = value
    if value == 1e-45 or (name == "hyperprior.log_scale" and not np.isnan(value)):
        own = StreamPrior(tensors, 4)  # scales are bounded
        for layer, lowest, largest in layers_of(own):
            assert_exact(layer, lowest, largest)
    else:
        with pytest.raises(DataError):
            StreamPrior(tensors, 4)


def test_a_prior_that_lacks_a_tensor_is_refused(latents):
    tensors = tensors_of(latents)
    for name in PARTS:
        if name != "hyperprior.mean":  # without it, it is a prior without a hyperprior
            with pytest.raises(DataError, match=f"not that of a scalar stream .*{name}"):
                StreamPrior({k: v for k, v in tensors.items() if k != name}, 4)


# ------------------------------------------------------------------------------------------- gains


def test_gains_are_the_models_where_it_was_trained_and_go_on_beyond(latents):
    for key, own in latents.coder.priors.items():
        with torch.no_grad():
            for dial in (BELOW * 1024, 3000, 5000, 9216):
                gain = latents.model.streams[key].gain(torch.tensor([dial_of(dial)])).flatten().numpy()
                np.testing.assert_allclose(2 ** (own.log_gains(dial) / 4096), gain, rtol=4e-4)
                np.testing.assert_allclose(own.inverse(dial) * 2.0**-20 * gain, 1, rtol=1e-3)
        steps = np.diff([own.log_gains(dial) for dial in range(0, DIALS + 1, 1024)], axis=0)
        beyond = np.concatenate([steps[:BELOW], steps[-3:]])
        np.testing.assert_array_equal(beyond, prior.ANCHOR_LOG_GAIN)
        assert abs(np.log2(250) / 14 * 4096 - prior.ANCHOR_LOG_GAIN) < 1
        assert len(steps) == 12
        between = np.array([own.log_gains(dial) for dial in range(4096, 5121, 64)])
        line = np.linspace(between[0], between[-1], len(between))
        assert abs(between - line).max() <= 0.5


# ---------------------------------------------------------------------------------- encoder's choice


def cost(symbol, given, index):
    """Return the bits of one symbol."""
    writer = Writer()
    one = Expected(*(part[index : index + 1] for part in given[:3]), given.table)
    write_symbols(np.array([symbol]), one, writer)
    return writer.bits


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weight=st.floats(0.1, 50))
def test_a_symbol_is_the_cheaper_of_the_nearest_and_the_one_beside_it_towards_the_mean(seed, weight):
    rng = np.random.default_rng(seed)
    symbols, mean, log_scale = drawn(rng, 40, wide=False)
    wanted = np.clip(symbols + rng.uniform(-0.5, 0.5, 40), -SYMBOL_MAX, SYMBOL_MAX)
    given = expected(mean, log_scale)  # means within what the table of ideal lengths covers
    near = np.clip(given.rounded, np.rint(wanted) - MORE, np.rint(wanted) + MORE)
    given = given._replace(rounded=near)
    chosen = prior.choose(wanted, given, weight)
    np.testing.assert_array_equal(prior.choose(wanted, given, 0), np.rint(wanted))
    for i, (want, found) in enumerate(zip(wanted, chosen, strict=True)):
        nearest = np.rint(want)
        beside = nearest - np.sign(nearest - given.rounded[i])
        costs = {s: cost(s, given, i) + weight * (want - s) ** 2 for s in (nearest, beside)}
        assert costs[found] <= min(costs.values()) + 1e-6
