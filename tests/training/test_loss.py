"""The multi-loss against explicit loops, its slopes and its options."""

import math
import re
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from mcml.base.errors import UsageError
from mcml.model.settings import LossConfig
from mcml.training.loss import multi_loss

BATCH, HEIGHT, WIDTH = 3, 16, 24
THREE = ("Y", "Cb", "Cr")
PLAIN = LossConfig()
LMBDA = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)


def drawing():
    """What draws float64 tensors of a shape, the same ones each time."""
    return partial(torch.rand, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def planes(streams=THREE):
    """Planes, decodes that stray beyond 0..1, and importance maps at stride 8."""
    draw, shapes = drawing(), {s: (BATCH, 3 if s == "RGB" else 1, HEIGHT, WIDTH) for s in streams}
    x = {s: draw(shape) for s, shape in shapes.items()}
    x_hat = {s: 1.4 * draw(shape) - 0.2 for s, shape in shapes.items()}
    return x, x_hat, {s: draw(BATCH, 1, HEIGHT // 8, WIDTH // 8) for s in streams}


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
    lmbda = poster_lmbda * 255**power / 64 / channels
    got = multi_loss(x, x_hat, p, lmbda, LossConfig(distortion=distortion, gamma=gamma))
    assert float(got.total) == pytest.approx(poster * 255**power / pixels / BATCH / channels, rel=1e-12)


@pytest.mark.parametrize("distortion", ["l1", "l2"])
@pytest.mark.parametrize("rate_streams", ["all", "luma"])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_every_term_is_the_mean_that_its_name_says(distortion, rate_streams, gamma):
    x, x_hat, p = planes()
    p["Y"] = torch.full((BATCH, 1, 4, 6), 0.25, dtype=torch.float64)  # at another stride
    config = LossConfig(distortion=distortion, gamma=gamma, rate_streams=rate_streams)
    got = multi_loss(x, x_hat, p, LMBDA, config)
    errors = {s: 255 * (x[s] - x_hat[s]) for s in THREE}
    means = {s: (e.abs() if distortion == "l1" else e**2).flatten(1).mean(1) for s, e in errors.items()}
    rate = sum(p[s].flatten(1).mean(1) for s in (THREE if rate_streams == "all" else ("Y",)))
    expected = {"distortion": (means["Y"] + gamma * (means["Cb"] + means["Cr"])).mean()}
    expected |= {"rate": rate.mean(), "weighted_rate": (LMBDA * rate).mean()}
    expected["total"] = expected["distortion"] + expected["weighted_rate"]
    for name, value in expected.items():
        torch.testing.assert_close(getattr(got, name), value, msg=name)
    for s in THREE:  # unweighted, whether they cost or not
        torch.testing.assert_close(got.distortion_per_stream[s], means[s].mean())


@pytest.mark.parametrize("distortion", ["l1", "l2"])
@pytest.mark.parametrize("rate_streams", ["all", "luma"])
def test_slopes_agree_with_finite_differences(distortion, rate_streams):
    config = LossConfig(distortion=distortion, gamma=0.6, rate_streams=rate_streams)
    draw, lmbda = drawing(), torch.tensor([3.0, 40.0], dtype=torch.float64)
    x = {s: draw(2, 1, 2, 2) for s in THREE}

    def total(y, cb, cr, p_y, p_cb):
        x_hat = dict(zip(THREE, (y, cb, cr), strict=True))
        return multi_loss(x, x_hat, {"Y": p_y, "Cb": p_cb}, lmbda, config).total

    hats = [x[s] + 0.1 * (draw(2, 1, 2, 2) - 0.5).sign() for s in THREE]  # off the kink
    maps = [draw(2, 1, 1, 1) for _ in range(2)]
    assert gradcheck(total, [t.requires_grad_() for t in (*hats, *maps)], eps=1e-6, rtol=1e-4, atol=1e-3)


def test_half_precision_planes_and_maps_are_averaged_in_float32():
    x, x_hat, p = planes()
    half = [{s: t.detach().bfloat16() for s, t in group.items()} for group in (x, x_hat, p)]
    wide = [{s: t.double() for s, t in group.items()} for group in half]
    got, expected = multi_loss(*half, 3.0, PLAIN), multi_loss(*wide, 3.0, PLAIN)
    assert got.total.dtype == torch.float32 and expected.total.dtype == torch.float64
    assert float(got.total) == pytest.approx(float(expected.total), rel=1e-6)


def test_one_lmbda_is_the_same_for_every_sample_whatever_it_is_given_as():
    x, x_hat, p = planes()
    forms = (2.5, torch.tensor(2.5, dtype=torch.float64), torch.full((BATCH,), 2.5, dtype=torch.float64))
    totals = [float(multi_loss(x, x_hat, p, lmbda, PLAIN).total) for lmbda in forms]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-14)
    plain = multi_loss(x, x_hat, p, 0, PLAIN)
    assert totals[0] == pytest.approx(float(plain.total + 2.5 * plain.rate), rel=1e-12)


def test_rgb_counts_as_luma():
    x, x_hat, p = planes(("RGB",))
    luma, every = (multi_loss(x, x_hat, p, LMBDA, LossConfig(rate_streams=s)) for s in ("luma", "all"))
    assert luma.rate == every.rate > 0


@pytest.mark.parametrize("maps", [("Cb", "Cr"), ()])
def test_without_a_map_that_costs_the_rate_is_0_and_the_distortion_trains(maps):
    x, x_hat, p = planes(("Cb", "Cr"))
    x_hat = {s: plane.requires_grad_() for s, plane in x_hat.items()}
    got = multi_loss(x, x_hat, {s: p[s] for s in maps}, LMBDA, LossConfig(rate_streams="luma"))
    assert got.rate == got.weighted_rate == 0
    assert got.total == got.distortion > 0
    assert all(slope.abs().min() > 0 for slope in torch.autograd.grad(got.total, x_hat.values()))


def test_a_frozen_streams_map_counts_without_its_planes():
    x, x_hat, p = planes(("Cb", "Cr"))
    got = multi_loss(x, x_hat, {"Y": torch.full((BATCH, 1, 4, 6), 0.25).double(), **p}, LMBDA, PLAIN)
    torch.testing.assert_close(got.rate, 0.25 + p["Cb"].mean() + p["Cr"].mean())
    assert set(got.distortion_per_stream) == {"Cb", "Cr"}


zeros = torch.zeros
Y, P = zeros(2, 1, 8, 8), zeros(2, 1, 1, 1)
FAULTS = [
    ({"Y": Y, "Cb": Y}, {"Y": Y}, {}, 1.0, "x has streams ['Cb', 'Y'], x_hat ['Y']"),
    ({}, {}, {}, 1.0, "at least one"),
    ({"cb": Y}, {"cb": Y}, {}, 1.0, "unknown stream 'cb': did you mean 'Cb'?"),
    ({"Y": Y}, {"Y": zeros(2, 1, 8, 9)}, {}, 1.0, "x_hat['Y'] of shape (2, 1, 8, 9)"),
    ({"Y": Y, "Cb": Y[:1]}, {"Y": Y, "Cb": Y[:1]}, {}, 1.0, "x['Cb'] of shape (1, 1, 8, 8)"),
    ({"RGB": Y}, {"RGB": Y}, {}, 1.0, "x['RGB'] of shape (2, 1, 8, 8), torch.float32: expected (2, 3, H, W)"),
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
]


@pytest.mark.parametrize("x, x_hat, p, lmbda, message", FAULTS, ids=[fault[-1] for fault in FAULTS])
def test_what_does_not_fit_is_named(x, x_hat, p, lmbda, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        multi_loss(x, x_hat, p, lmbda, PLAIN)


def test_nothing_waits_for_the_device():
    """The meta device has no values to read: any look at one raises."""
    x, x_hat, p = ({s: t.to("meta") for s, t in group.items()} for group in planes())
    assert multi_loss(x, x_hat, p, torch.ones((), device="meta"), PLAIN).total.device.type == "meta"
