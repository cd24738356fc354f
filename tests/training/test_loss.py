"""The multi-loss against explicit loops, its slopes, its options, and the rate that it can be held to."""

import dataclasses
import math
import re

import pytest
import torch
from torch.autograd import gradcheck

from mcml.base.errors import UsageError
from mcml.metrics.color_difference import cie76, ciede2000
from mcml.training.loss import LMBDA_RANGE, LossConfig, RateTarget, multi_loss

torch.set_num_threads(1)

BATCH, HEIGHT, WIDTH = 3, 16, 24
THREE = ("Y", "Cb", "Cr")
PLAIN = LossConfig()
LMBDA = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)


def planes(streams=THREE, seed=0, batch=BATCH, dtype=torch.float64):
    """Planes, decodes that stray beyond 0..1, and importance maps at stride 8."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    shapes = {s: (batch, 3 if s == "RGB" else 1, HEIGHT, WIDTH) for s in streams}
    x = {s: draw(*shape) for s, shape in shapes.items()}
    x_hat = {s: (1.4 * draw(*shape) - 0.2).requires_grad_() for s, shape in shapes.items()}
    share = torch.linspace(0.5, 1, batch, dtype=dtype).reshape(-1, 1, 1, 1)  # mean p: 0.25 to 0.5
    p = {s: (share * draw(batch, 1, HEIGHT // 8, WIDTH // 8)).requires_grad_() for s in streams}
    return x, x_hat, p


def pictures(seed=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, BATCH, 3, HEIGHT, WIDTH, generator=generator, dtype=dtype)


def number(scalar):
    return scalar.detach().item()


def slope(of, at):
    return torch.autograd.grad(of, at, retain_graph=True, allow_unused=True)[0]


# ------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("distortion, power", [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("streams, channels", [(("Y",), 1), (THREE, 1), (("RGB",), 3)])
def test_total_is_the_posters_sum_over_images_pixels_and_positions(distortion, power, streams, channels):
    """The conversion that the docstring states, with lambda and gamma as the poster has them."""
    x, x_hat, p = planes(streams)
    pixels, gamma, poster_lmbda = HEIGHT * WIDTH, 0.4, 0.3
    poster = 0.0
    for b in range(BATCH):
        for s in streams:
            weight = gamma if s in ("Cb", "Cr") else 1
            pairs = zip(x[s][b].flatten().tolist(), x_hat[s][b].flatten().tolist(), strict=True)
            poster += weight * sum(abs(u - v) ** power for u, v in pairs)
            poster += poster_lmbda * sum(p[s][b].flatten().tolist())
    got = multi_loss(
        x,
        x_hat,
        p,
        poster_lmbda * 255**power / 64 / channels,
        LossConfig(distortion=distortion, gamma=gamma),
    )
    assert number(got.total) == pytest.approx(poster * 255**power / pixels / BATCH / channels, rel=1e-12)


@pytest.mark.parametrize("distortion", ["l1", "l2"])
@pytest.mark.parametrize("rate_streams", ["all", "luma"])
@pytest.mark.parametrize("threshold", [0, 0.4])
def test_every_term_agrees_with_a_loop(distortion, rate_streams, threshold):
    x, x_hat, p = planes()
    config = LossConfig(distortion=distortion, gamma=0.3, rate_streams=rate_streams, threshold=threshold)
    got = multi_loss(x, x_hat, p, LMBDA, config)

    costing = THREE if rate_streams == "all" else ("Y",)
    d_sum = r_sum = weighted_sum = 0.0
    per_stream, hinged = dict.fromkeys(THREE, 0.0), []
    for b in range(BATCH):
        for s in THREE:
            error = [255 * v for v in (x[s][b] - x_hat[s][b]).flatten().tolist()]
            mean = sum(abs(e) if distortion == "l1" else e * e for e in error) / len(error)
            per_stream[s] += mean / BATCH
            d_sum += (1 if s == "Y" else 0.3) * mean
        rate = sum(sum(p[s][b].flatten().tolist()) / p[s][b].numel() for s in costing)
        hinged.append(rate <= threshold * len(costing))
        rate = max(0.0, rate - threshold * len(costing))
        r_sum, weighted_sum = r_sum + rate, weighted_sum + float(LMBDA[b]) * rate
    assert any(hinged) == (threshold > 0) and not all(hinged)  # the drawn maps lie on both sides

    assert number(got.distortion) == pytest.approx(d_sum / BATCH, rel=1e-12)
    assert number(got.rate) == pytest.approx(r_sum / BATCH, rel=1e-12)
    assert number(got.weighted_rate) == pytest.approx(weighted_sum / BATCH, rel=1e-12)
    assert number(got.total) == pytest.approx((d_sum + weighted_sum) / BATCH, rel=1e-12)
    assert number(got.color) == 0
    for s in THREE:
        assert number(got.distortion_per_stream[s]) == pytest.approx(per_stream[s], rel=1e-12)
        assert number(got.rate_per_stream[s]) == pytest.approx(number(p[s].mean()), rel=1e-12)
    assert got.total.dtype == torch.float64
    assert all(term.shape == () for term in (*got[:5], *got[5].values(), *got[6].values()))


@pytest.mark.parametrize("kind, difference", [("cielab", cie76), ("ciede2000", ciede2000)])
def test_colour_term_is_the_weighted_mean_difference_of_every_pixel(kind, difference):
    x, x_hat, p = planes()
    rgb, rgb_hat = pictures()
    rgb_hat.requires_grad_()
    without = multi_loss(x, x_hat, p, LMBDA, PLAIN)
    expected = difference(rgb, rgb_hat).mean()
    for weight in (0.0, 0.7):
        config = LossConfig(color_difference=kind, color_weight=weight)
        got = multi_loss(x, x_hat, p, LMBDA, config, rgb=rgb, rgb_hat=rgb_hat)
        torch.testing.assert_close(got.color, expected)
        torch.testing.assert_close(got.total, without.total + weight * expected)
        torch.testing.assert_close(slope(got.total, rgb_hat), weight * slope(expected, rgb_hat))
    assert slope(expected, rgb_hat).abs().min() > 0


def test_half_precision_planes_and_maps_are_averaged_in_float32():
    x, x_hat, p = planes()
    half = [{s: t.detach().bfloat16() for s, t in group.items()} for group in (x, x_hat, p)]
    wide = [{s: t.double() for s, t in group.items()} for group in half]
    got, expected = multi_loss(*half, 3.0, PLAIN), multi_loss(*wide, 3.0, PLAIN)
    assert got.total.dtype == torch.float32
    assert number(got.total) == pytest.approx(number(expected.total), rel=1e-6)


# ---------------------------------------------------------------------------------- slopes


@pytest.mark.parametrize("distortion", ["l1", "l2"])
@pytest.mark.parametrize("rate_streams", ["all", "luma"])
@pytest.mark.parametrize("kind", ["none", "cielab", "ciede2000"])
def test_slopes_agree_with_finite_differences(distortion, rate_streams, kind):
    config = LossConfig(
        distortion=distortion,
        gamma=0.6,
        rate_streams=rate_streams,
        threshold=0.2,
        color_difference=kind,
        color_weight=0 if kind == "none" else 2,
    )
    torch.manual_seed(0)
    x = {s: torch.rand(2, 1, 2, 2, dtype=torch.float64) for s in THREE}
    rgb = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    lmbda = torch.tensor([3.0, 40.0], dtype=torch.float64)

    def total(y, cb, cr, p_y, p_cb, rgb_hat):
        x_hat = dict(zip(THREE, (y, cb, cr), strict=True))
        return multi_loss(x, x_hat, {"Y": p_y, "Cb": p_cb}, lmbda, config, rgb=rgb, rgb_hat=rgb_hat).total

    hats = [x[s] + 0.1 * torch.randn(2, 1, 2, 2, dtype=torch.float64).sign() for s in THREE]  # off the kink
    maps = [0.3 + 0.6 * torch.rand(2, 1, 1, 1, dtype=torch.float64) for _ in range(2)]  # above the threshold
    inputs = [*hats, *maps, 0.1 + 0.8 * torch.rand(2, 3, 2, 2, dtype=torch.float64)]
    assert gradcheck(total, [t.requires_grad_() for t in inputs], eps=1e-6, rtol=1e-4, atol=1e-3)


def test_gamma_0_trains_luma_alone_but_still_reports_colour():
    x, x_hat, p = planes()
    got = multi_loss(x, x_hat, p, LMBDA, LossConfig(gamma=0))
    assert slope(got.total, x_hat["Y"]).abs().min() > 0
    for s in ("Cb", "Cr"):
        assert slope(got.total, x_hat[s]).abs().max() == 0
        assert got.distortion_per_stream[s] > 0
    torch.testing.assert_close(got.distortion, got.distortion_per_stream["Y"])


def test_a_sample_under_the_threshold_is_not_pulled_and_the_others_fully():
    x, x_hat, _ = planes(("Y",))
    p = torch.tensor([0.2, 0.3, 0.8], dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, 1, 2, 3).clone()
    p.requires_grad_()
    got = multi_loss(x, x_hat, {"Y": p}, LMBDA, LossConfig(threshold=0.31))
    pull = slope(got.total, p)
    assert pull[:2].abs().max() == 0
    torch.testing.assert_close(pull[2], torch.full((1, 2, 3), 7.0 / 3 / 6, dtype=torch.float64))
    assert number(got.rate) == pytest.approx((0.8 - 0.31) / 3)
    assert number(got.rate_per_stream["Y"]) == pytest.approx(1.3 / 3)


def test_streams_share_one_allowance():
    x, x_hat, _ = planes(("Y", "Cb"), batch=1)
    p = {s: torch.full((1, 1, 2, 3), v, dtype=torch.float64) for s, v in {"Y": 0.9, "Cb": 0.1}.items()}
    assert number(multi_loss(x, x_hat, p, 1.0, LossConfig(threshold=0.5)).rate) == pytest.approx(0, abs=1e-12)
    assert number(multi_loss(x, x_hat, p, 1.0, LossConfig(threshold=0.4)).rate) == pytest.approx(0.2)


def test_lmbda_of_each_sample_scales_its_own_pull():
    x, x_hat, p = planes()
    got = multi_loss(x, x_hat, p, LMBDA, PLAIN)
    for s in THREE:
        for b in range(BATCH):
            expected = torch.full((1, 2, 3), float(LMBDA[b]) / BATCH / 6, dtype=torch.float64)
            torch.testing.assert_close(slope(got.total, p[s])[b], expected)


def test_one_lmbda_is_the_same_for_every_sample_whatever_it_is_given_as():
    x, x_hat, p = planes()
    forms = (2.5, torch.tensor(2.5, dtype=torch.float64), torch.full((BATCH,), 2.5, dtype=torch.float64))
    totals = [number(multi_loss(x, x_hat, p, lmbda, PLAIN).total) for lmbda in forms]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-14)
    plain = multi_loss(x, x_hat, p, 0, PLAIN)
    assert totals[0] == pytest.approx(number(plain.total + 2.5 * plain.rate), rel=1e-12)
    assert plain.total == plain.distortion


# --------------------------------------------------------------------- which streams there are


def test_luma_rate_leaves_the_colour_maps_free():
    x, x_hat, p = planes()
    got = multi_loss(x, x_hat, p, LMBDA, LossConfig(rate_streams="luma"))
    assert slope(got.total, p["Y"]).min() > 0
    assert slope(got.total, p["Cb"]) is None and slope(got.total, p["Cr"]) is None
    torch.testing.assert_close(got.rate, p["Y"].mean())
    assert set(got.rate_per_stream) == set(THREE)


def test_rgb_counts_as_luma():
    x, x_hat, p = planes(("RGB",))
    luma, every = (multi_loss(x, x_hat, p, LMBDA, LossConfig(rate_streams=s)) for s in ("luma", "all"))
    assert luma.rate == every.rate > 0


@pytest.mark.parametrize("maps", [("Cb", "Cr"), ()])
def test_without_a_map_that_costs_the_rate_is_0_and_the_distortion_trains(maps):
    x, x_hat, p = planes(("Cb", "Cr"))
    config = LossConfig(rate_streams="luma", threshold=0.2)
    got = multi_loss(x, x_hat, {s: p[s] for s in maps}, LMBDA, config)
    assert got.rate == got.weighted_rate == 0
    assert got.total == got.distortion > 0
    for s in ("Cb", "Cr"):
        assert slope(got.total, x_hat[s]).abs().min() > 0
    assert set(got.rate_per_stream) == set(maps)


def test_a_frozen_streams_map_counts_without_its_planes_and_at_another_stride():
    x, x_hat, p = planes(("Cb", "Cr"))
    frozen = torch.full((BATCH, 1, 4, 6), 0.25, dtype=torch.float64)
    got = multi_loss(x, x_hat, {"Y": frozen, **p}, LMBDA, PLAIN)
    torch.testing.assert_close(got.rate, 0.25 + p["Cb"].mean() + p["Cr"].mean())
    assert set(got.distortion_per_stream) == {"Cb", "Cr"}


# ---------------------------------------------------------------------------------- errors


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


Y, P = zeros(2, 1, 8, 8), zeros(2, 1, 1, 1)


@pytest.mark.parametrize(
    "x, x_hat, p, lmbda, message",
    [
        ({"Y": Y, "Cb": Y}, {"Y": Y}, {}, 1.0, "x has streams ['Cb', 'Y'], x_hat ['Y']"),
        ({}, {}, {}, 1.0, "at least one"),
        ({"cb": Y}, {"cb": Y}, {}, 1.0, "unknown stream 'cb': did you mean 'Cb'?"),
        ({"Y": Y}, {"Y": zeros(2, 1, 8, 9)}, {}, 1.0, "x_hat['Y'] of shape (2, 1, 8, 9)"),
        ({"Y": Y, "Cb": Y[:1]}, {"Y": Y, "Cb": Y[:1]}, {}, 1.0, "x['Cb'] of shape (1, 1, 8, 8)"),
        (
            {"RGB": Y},
            {"RGB": Y},
            {},
            1.0,
            "x['RGB'] of shape (2, 1, 8, 8), torch.float32: expected (2, 3, H, W)",
        ),
        ({"Y": Y[0]}, {"Y": Y[0]}, {}, 1.0, "x['Y'] of shape (1, 8, 8)"),
        ({"Y": Y[..., :0]}, {"Y": Y[..., :0]}, {}, 1.0, "not empty"),
        ({"Y": Y.byte()}, {"Y": Y}, {}, 1.0, "x['Y'] of shape (2, 1, 8, 8), torch.uint8"),
        ({"Y": Y}, {"Y": Y}, {"Z": P}, 1.0, "unknown stream 'Z'"),
        ({"Y": Y}, {"Y": Y}, {"Y": P[:1]}, 1.0, "importance['Y'] of shape (1, 1, 1, 1)"),
        ({"Y": Y}, {"Y": Y}, {"Y": P[:, 0]}, 1.0, "importance['Y'] of shape (2, 1, 1)"),
        ({"Y": Y}, {"Y": Y}, {"Cb": zeros(2, 3, 1, 1)}, 1.0, "importance['Cb'] of shape (2, 3, 1, 1)"),
        ({"Y": Y}, {"Y": Y}, {"Y": P}, zeros(3), "lmbda of shape (3,): expected (2,)"),
        ({"Y": Y}, {"Y": Y}, {"Y": P}, zeros(2, 1), "lmbda of shape (2, 1)"),
        ({"Y": Y}, {"Y": Y}, {"Y": P}, -1.0, "lmbda is -1.0"),
        ({"Y": Y}, {"Y": Y}, {"Y": P}, math.inf, "lmbda is inf"),
    ],
)
def test_what_does_not_fit_is_named(x, x_hat, p, lmbda, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        multi_loss(x, x_hat, p, lmbda, PLAIN)


@pytest.mark.parametrize(
    "rgb, rgb_hat, message",
    [
        (None, zeros(2, 3, 8, 8), "'cielab' compares RGB: give rgb and rgb_hat"),
        (zeros(2, 3, 8, 8), None, "'cielab' compares RGB: give rgb and rgb_hat"),
        (zeros(1, 3, 8, 8), zeros(1, 3, 8, 8), "rgb of shape (1, 3, 8, 8): expected (2, 3, H, W)"),
        (zeros(2, 3, 8, 8), zeros(2, 3, 8, 9), "(2, 3, 8, 8) and (2, 3, 8, 9)"),
        (zeros(2, 1, 8, 8), zeros(2, 1, 8, 8), "(2, 1, 8, 8)"),
    ],
)
def test_a_colour_term_without_fitting_rgb_is_named(rgb, rgb_hat, message):
    config = LossConfig(color_difference="cielab", color_weight=1)
    with pytest.raises(UsageError, match=re.escape(message)):
        multi_loss({"Y": Y}, {"Y": Y}, {"Y": P}, 1.0, config, rgb=rgb, rgb_hat=rgb_hat)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("distortion", "l3", "unknown distortion 'l3'"),
        ("rate_streams", "chroma", "unknown rate_streams 'chroma'"),
        ("color_difference", "cielab76", "did you mean 'cielab'?"),
        ("gamma", -0.1, "gamma is -0.1"),
        ("gamma", math.nan, "gamma is nan"),
        ("gamma", True, "gamma is True"),
        ("threshold", 1, "threshold is 1"),
        ("threshold", -1e-9, "threshold is -1e-09"),
        ("color_weight", math.inf, "color_weight is inf"),
        ("color_weight", "1", "color_weight is '1'"),
        ("color_weight", 0.5, "without a color_difference"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        LossConfig(**{field: value})


def test_a_config_stays_as_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.gamma = -1


# ------------------------------------------------------------------------------ rate target


def test_an_update_moves_log_lambda_by_the_relative_excess():
    target = RateTarget(0.2, lmbda=3.0, step=0.1)
    target.update(torch.tensor([0.2, 0.4]))
    assert float(target.log_lambda) == pytest.approx(math.log(3) + 0.1 * 0.5, rel=1e-6)
    target.update(torch.tensor(0.05))
    assert float(target.lmbda) == pytest.approx(3 * math.exp(0.1 * (0.5 - 0.75)), rel=1e-6)


@pytest.mark.parametrize("wanted", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("first", LMBDA_RANGE)
def test_lambda_converges_where_the_rate_meets_the_target(wanted, first):
    """The rate is 1 / (1 + lambda / 9): met at lambda = 9 (1 / rate - 1), from either end of the range."""
    target = RateTarget(wanted, lmbda=first, step=0.1)
    for _ in range(3000):
        target.update(1 / (1 + target.lmbda / 9))
    assert float(target.lmbda) == pytest.approx(9 * (1 / wanted - 1), rel=1e-3)


def test_training_is_held_to_the_wanted_rate_and_brought_back_after_a_change():
    """Bits that buy distortion: x_hat falls short of x = 1 by exp(-4 p) / 4, and p is trained."""
    logit = torch.zeros(4, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([logit], lr=0.5)
    target, x = RateTarget(0.3, lmbda=0.01, step=0.05), {"Y": torch.ones(4, 1, 2, 2, dtype=torch.float64)}
    for gain in (1.0, 0.5):  # the same bits come to be worth half
        for step in range(900):
            p = torch.sigmoid(logit)
            got = multi_loss(x, {"Y": 1 - gain * torch.exp(-4 * p) / 4}, {"Y": p}, target.lmbda, PLAIN)
            target.update(got.rate)  # in place, yet the graph behind this step's lambda stays whole
            optimiser.zero_grad()
            got.total.backward()
            optimiser.step()
            if step >= 750:
                assert number(got.rate) == pytest.approx(0.3, rel=0.01)
        assert float(target.lmbda) == pytest.approx(255 * gain * math.exp(-4 * 0.3), rel=0.02)  # -dD/dp there


def test_lambda_stays_within_its_range_when_no_rate_would_do():
    low, high = LMBDA_RANGE
    for rate, end in ((0.0, low), (1.0, high)):
        target = RateTarget(0.01, lmbda=1.0, step=10)
        for _ in range(3):
            target.update(torch.tensor(rate))
        assert float(target.lmbda) == pytest.approx(end, rel=1e-4)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf])
def test_a_rate_that_is_not_finite_changes_nothing(rate):
    target = RateTarget(0.2, lmbda=3.0)
    before = target.log_lambda.clone()
    target.update(torch.tensor(rate))
    assert target.log_lambda == before


def test_a_restored_target_goes_on_exactly(tmp_path):
    def advance(target, steps):
        for _ in range(steps):
            target.update(1 / (1 + target.lmbda / 9))
        return target

    whole = advance(RateTarget(0.2, lmbda=5.0, step=0.03), 40)
    torch.save(advance(RateTarget(0.2, lmbda=5.0, step=0.03), 17).state_dict(), tmp_path / "state.pt")
    resumed = RateTarget(0.2, step=0.03)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert advance(resumed, 23).log_lambda == whole.log_lambda != RateTarget(0.2, lmbda=5.0).log_lambda


def test_lambda_is_a_copy_without_slope():
    target = RateTarget(0.2, lmbda=3.0)
    before = target.lmbda
    target.update(torch.tensor(1.0, requires_grad=True))
    assert float(before) == pytest.approx(3.0, rel=1e-6) and target.lmbda > before
    assert not target.lmbda.requires_grad


def test_nothing_waits_for_the_device():
    """The meta device has no values to read: any look at one raises."""
    x, x_hat, p = ({s: t.to("meta") for s, t in group.items()} for group in planes())
    rgb, rgb_hat = (t.to("meta") for t in pictures())
    target = RateTarget(0.2).to("meta")
    for kind in ("cielab", "ciede2000"):
        config = LossConfig(color_difference=kind, color_weight=1, threshold=0.1)
        got = multi_loss(x, x_hat, p, target.lmbda, config, rgb=rgb, rgb_hat=rgb_hat)
        target.update(got.rate)
        assert got.total.device.type == target.log_lambda.device.type == "meta"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"target": 0}, "target is 0"),
        ({"target": math.nan}, "target is nan"),
        ({"target": 0.1, "step": -1}, "step is -1"),
        ({"target": 0.1, "lmbda": 0}, "lmbda is 0: expected a number from 0.0001 to 1e+06"),
        ({"target": 0.1, "lmbda": 1e7}, "lmbda is 10000000.0"),
    ],
)
def test_a_target_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        RateTarget(**arguments)
