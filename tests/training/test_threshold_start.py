"""The threshold code: its transform, its choice of bits, the weights it sets, and what they reach."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import fft

from mcml.base.errors import DataError
from mcml.data import sets as data
from mcml.data.patches import PatchStore
from mcml.lab.experiments import at_rate, luma_codec
from mcml.model.model import build
from mcml.model.settings import ModelConfig, StreamConfig
from mcml.model.validate import psnr, to_tensor, validate
from mcml.training.threshold_start import dct_basis, design, start

LUMA = StreamConfig(width=32, code_channels=96, levels=17, groups=1, blocks=1)
COLOR = StreamConfig(width=16, code_channels=24, levels=7, groups=1, blocks=1)


@pytest.fixture(scope="module")
def photographs():
    embedded = data.image_set("embedded")
    return [embedded.read(name) for name in ("astronaut", "coffee", "china")]


@pytest.fixture(scope="module")
def patches(photographs):
    """Draw (192, 3, 64, 64): at every level of luma at least some."""
    drawn = PatchStore(photographs).sample(192, 64, torch.Generator().manual_seed(0))
    return drawn.float() / 255


def model_of(variant, luma=LUMA, color=COLOR):
    return build(ModelConfig(variant=variant, luma=luma, color=color))


@pytest.fixture(scope="module")
def fusion(patches):
    model = model_of("fusion")
    start(model, patches)
    return model.eval()


@pytest.fixture(scope="module")
def designs(fusion, patches):
    """Each stream's code and coefficients, computed as the start did: a near tie is then decided alike."""
    codes = {}
    for key, plane in fusion.planes(patches).items():
        config = fusion.config.stream(key)
        every = torch.nn.functional.conv2d(plane, dct_basis(), stride=8)
        coefficients = every[:, every.var((0, 2, 3)).argsort(descending=True)[: config.width]]
        codes[key] = design(coefficients, config.code_channels), coefficients
    return codes


def synthetic(deviations, b=20, side=12):
    """Independent normal coefficients (B, C, h, w) of the given standard deviations."""
    drawn = torch.randn(b, len(deviations), side, side, generator=torch.Generator().manual_seed(0))
    return drawn * torch.tensor(deviations).view(-1, 1, 1)


def test_the_basis_is_orthonormal_and_scipys_dct_with_low_frequencies_first():
    """Of three channels: of grey and two differences."""
    squares = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    red, green, blue = (fft.dctn(square.numpy(), norm="ortho") for square in squares)
    order = sorted(np.ndindex(8, 8), key=sum)  # stable: row by row along each anti-diagonal
    mixes = ((red + green + blue) / 3**0.5, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5)
    for basis, channels, expected in ((dct_basis(), squares[:1], (red,)), (dct_basis(3), squares, mixes)):
        assert basis.shape == (64 * len(channels), len(channels), 8, 8)
        line = basis.flatten(1)
        torch.testing.assert_close(line @ line.T, torch.eye(len(line)), atol=1e-5, rtol=0)
        got = torch.einsum("kcij,cij->k", basis, channels).view(-1, 64).numpy()
        for row, coefficients in zip(got, expected, strict=True):
            np.testing.assert_allclose(row, [coefficients[at] for at in order], atol=1e-5)


def test_the_strongest_coefficient_is_asked_first_and_most():
    code = design(synthetic([0.1, 0.1, 3.0, 0.1]), 8)
    assert (code.coefficient[:5] == 2).all()
    assert abs(float(code.threshold[0])) < 3  # within a standard deviation; a skewed bit is a cheap one
    assert len(code.threshold.unique()) == 8
    twin = design(synthetic([1.0, 1.0]), 8)
    assert sorted(twin.coefficient[:2].tolist()) == [0, 1]


def test_saved_error_is_what_the_cells_centroids_save():
    """Replay the cuts: each coefficient's cells, every sample at its cell's mean."""
    coefficients = synthetic([2.0, 1.0, 0.5], b=6, side=9)
    code = design(coefficients, 24)
    samples = coefficients[:, :, 1:, 1:].transpose(0, 1).flatten(1).double().numpy()

    def error(cuts):
        total = 0.0
        for x, edges in zip(samples, cuts, strict=True):
            cell = np.searchsorted(np.sort(edges), x, side="left")  # x > threshold: the upper cell
            total += sum(x[cell == c].var() * (cell == c).mean() for c in np.unique(cell))
        return total

    cuts = [[], [], []]
    before = error(cuts)
    for coefficient, threshold, saved in zip(*(code[i].tolist() for i in (0, 1, 4)), strict=True):
        cuts[coefficient].append(threshold)
        after = error(cuts)
        assert before - after == pytest.approx(saved, rel=1e-5, abs=1e-9)
        before = after
    assert before < 0.1 * error([[], [], []])


@pytest.mark.parametrize("step", [2.0, 1e-9])  # with many samples that equal their threshold, and none
def test_entropy_and_odds_are_counted_in_the_cell_given_two_neighbours(step):
    coefficients = synthetic([8.0], b=8, side=10)
    coefficients[:, :, :, 1:] += coefficients[:, :, :, :-1]  # so that neighbours tell something
    coefficients = (coefficients / step).round() * step
    code = design(coefficients, 3)
    views = coefficients[..., 1:, 1:], coefficients[..., 1:, :-1], coefficients[..., :-1, 1:]
    x, left, above = (view.flatten() for view in views)
    cells = [torch.ones_like(x, dtype=torch.bool)]
    for k in range(3):
        t = code.threshold[k]
        cell = next(c for c in cells if x[c].min() <= t < x[c].max())
        one, entropy = x > t, 0.0
        for a, b in product((False, True), repeat=2):
            at = cell & ((left > t) == a) & ((above > t) == b)
            for side in (one, ~one):
                count = int((at & side).sum())
                entropy -= count * math.log2(count / int(at.sum())) if count else 0.0
        assert float(code.entropy[k]) == pytest.approx(entropy / len(x), rel=1e-4)
        odds = math.log(int((cell & one).sum()) / int((cell & ~one).sum()))
        assert float(code.odds[k]) == pytest.approx(odds, rel=1e-4)
        cells = [c for c in cells if c is not cell] + [cell & one, cell & ~one]


def test_a_design_does_not_promise_cells_that_the_samples_do_not_tell_apart():
    with pytest.raises(DataError, match=r"40 bits .*stage.start=plain"):
        design(synthetic([1.0], b=1, side=9), 40)
    with pytest.raises(DataError, match="4 bits"):
        design(torch.zeros(2, 3, 5, 5), 4)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 23, 24])
def test_groups_share_the_bits_and_about_their_entropy(count):
    code = design(synthetic([2.0, 1.0, 0.5]), 24)
    sizes = code.group_sizes(count)
    assert (len(sizes), sum(sizes)) == (count, 24)
    assert min(sizes) >= 1
    costs = [float(part.sum()) for part in code.entropy.split(sizes)]
    share, largest = float(code.entropy.sum()) / count, float(code.entropy.max())
    if share > largest:  # else a single bit is more than a group's share
        assert share - largest < min(costs) <= max(costs) < share + largest


@torch.no_grad()
def test_bits_say_whether_a_coefficient_exceeds_its_threshold(fusion, patches, designs):
    output = fusion(patches[:48], 20.0, estimate=False)
    for key, stream in fusion.streams.items():
        code, coefficients = designs[key]
        distance = coefficients[:48, code.coefficient] - code.threshold.float().view(-1, 1, 1)
        sure = distance.abs() > 1e-4  # beyond what float32 rounds
        assert sure.float().mean() > 0.98
        assert torch.equal(output.streams[key].bits[sure], (distance > 0).float()[sure])
        assert stream.groups.bincount()[1:].tolist() == code.group_sizes(stream.config.levels - 1)
        assert float(stream.full_bits) == pytest.approx(float(code.entropy.sum()), rel=1e-3)
        share = float(stream.full_bits / fusion.streams["Y"].full_bits)
        assert float(stream.rate_weight) == pytest.approx(share) and (share < 1 or key == "Y")


@pytest.mark.parametrize("key", ["Y", "Cb"])
@torch.no_grad()
def test_the_first_layer_shows_each_bit_once_and_not_what_earlier_bits_decided(fusion, patches, designs, key):
    """One where an open bit is news, in the half of its value; 0 elsewhere: at every level."""
    stream, (coefficient, threshold, *_) = fusion.streams[key], designs[key][0]
    n, levels = stream.config.code_channels, set()
    deciding = [[j for j in range(k) if coefficient[j] == coefficient[k]] for k in range(n)]
    for dial in (-4.0, -1.0, 0.5, 2.0, 20.0):
        output = fusion(patches[:2], dial, estimate=False).streams[key]
        levels |= set(output.level.unique().tolist())
        cells = torch.relu(stream.decoder.entry.cells(output.code))
        expected = torch.zeros_like(cells)
        for k in range(n):
            news = output.mask[:, k] > 0
            for j in deciding[k]:
                news = news & (output.bits[:, j] == float(threshold[j] < threshold[k]))
            expected[:, k] = (news & (output.bits[:, k] == 1)).float()
            expected[:, n + k] = (news & (output.bits[:, k] == 0)).float()
        torch.testing.assert_close(cells, expected, atol=1e-4, rtol=0)
    assert len(levels) >= 4


@torch.no_grad()
def test_decided_bits_cost_little_and_the_estimate_is_near_the_designs_entropy(fusion, patches):
    output = fusion(patches[:48], 20.0)
    for key, stream in fusion.streams.items():
        spent = output.streams[key].estimated_bits.mean() / 64  # of 64 positions
        levels = math.log2(stream.config.levels)
        assert 0.8 * stream.full_bits < spent < 2 * stream.full_bits + levels
        assert spent < 0.5 * stream.config.code_channels


@torch.no_grad()
def test_more_bits_and_more_quality_as_the_dial_opens_to_the_last_bit(fusion, patches):
    """Levels are drawn by position, so the decoder's fit sees the last as often as the others.

    (With one dial a patch, the open mask was up to 2 dB worse than with a quarter of the bits masked.)
    """
    planes = fusion.planes(patches[:96])
    rows = []
    for dial in (-3.0, -1.0, 0.0, 1.0, 20.0):
        output = fusion(patches[:96], dial).streams
        rows.append([(float(o.estimated_bits.sum()), psnr(o.x_hat - planes[k])) for k, o in output.items()])
    bits, quality = np.array(rows).transpose(2, 0, 1)
    assert (np.diff(bits, axis=0) > 0).all()
    assert (np.diff(quality, axis=0) > 0.1).all()


@torch.no_grad()
def test_lambda_is_the_slope_of_distortion_over_the_share_sent(fusion, patches):
    """An exponential through six shares: in the middle within a factor of two of a plain difference."""

    def error(share):
        dial = math.log(share / (1 - share))
        x_hat = fusion(patches[:32], dial, decode=("Y",), estimate=False).streams["Y"].x_hat
        return 255 * float((x_hat - fusion.planes(patches[:32])["Y"]).abs().mean())

    slope = (error(0.3) - error(0.7)) / 0.4
    assert 0.5 * slope < float(fusion.lmbda(torch.tensor([0.0]))) < 2 * slope


def test_luma_starts_within_two_decibels_of_jpeg_at_its_rate(fusion, photographs):
    """Whole photographs, 96 bits: measured 1.1 to 1.4 dB under JPEG from 0.1 to 0.24 bits a pixel."""
    jpeg = luma_codec(photographs, "jpeg", (3, 5, 8, 12))
    rows = validate(fusion, photographs, (-1.0, 0.0, 1.0, 20.0))
    for row in rows:
        assert row["psnr_Y"] > at_rate(jpeg, row["estimated_bpp_Y"], "psnr_Y", "bpp") - 2
    assert rows[-1]["psnr_Y"] > 24.5
    assert rows[-1]["psnr"] > 23


@pytest.mark.parametrize("changes", [{"importance": "uniform"}, {"width": 80}])  # wider than the transform
@pytest.mark.parametrize("variant", ["independent", "rgb"])
@torch.no_grad()
def test_every_variant_starts(variant, changes, patches):
    model = model_of(variant, replace(LUMA, **changes))
    planes = model.planes(patches[:64])
    start(model, patches[:64])
    output = model(patches[:64], 1.0).streams
    for key, plane in planes.items():
        flat = psnr(plane - plane.mean((2, 3), keepdim=True))  # a patch's mean for each patch
        assert psnr(output[key].x_hat - plane) > flat + 4, key


@torch.no_grad()
def test_a_start_of_colour_leaves_luma_alone(fusion, patches):
    model = model_of("independent")
    model.streams["Y"].load_state_dict(fusion.streams["Y"].state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start(model, patches[:64], ("Cb", "Cr"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed} == {"Cb", "Cr"}
    share = model.streams["Cr"].full_bits / model.streams["Y"].full_bits
    assert float(model.streams["Cr"].rate_weight) == pytest.approx(float(share))


def overfit(model, patch, steps, rates=(2e-4, 1e-2)):
    """Fit one patch with every bit open; return PSNR by stream and the encoders' first gradients."""
    parts = [[], []]  # all else, decoders
    for name, parameter in model.named_parameters():
        parts[".decoder." in name].append(parameter)
    optimizer = torch.optim.Adam([{"params": part} for part in parts])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(rates), steps, pct_start=0.1)
    planes, first = model.planes(patch), {}
    for _ in range(steps):
        output = model(patch, 20.0, estimate=False).streams
        optimizer.zero_grad()
        (100 * sum((output[key].x_hat - plane).square().mean() for key, plane in planes.items())).backward()
        first = first or {
            f"{key}.{name}": float(p.grad.abs().max())
            for key, stream in model.streams.items()
            for name, p in stream.encoder.named_parameters()
        }
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        output = model(patch, 20.0, estimate=False).streams
    assert all(output[key].mask.all() for key in planes)
    return {key: psnr(output[key].x_hat - plane) for key, plane in planes.items()}, first


@pytest.mark.parametrize("variant, steps", [("fusion", 100), ("rgb", 200)])
def test_each_stream_overfits_one_patch_to_above_30_db(variant, steps, photographs):
    small = StreamConfig(width=32, code_channels=32, levels=5, groups=1, blocks=1)
    model = model_of(variant, small, small)
    before = {key: stream.encoder.stem.weight.clone() for key, stream in model.streams.items()}
    patch = to_tensor(np.ascontiguousarray(photographs[0][90:122, 200:232]))
    reached, gradients = overfit(model, patch, steps)
    assert min(gradients.values()) > 0
    assert not any(torch.equal(s.encoder.stem.weight, before[key]) for key, s in model.streams.items())
    assert min(reached.values()) > 30, reached  # measured 34 to 41; a plane's mean gives about 15


def test_a_threshold_start_learns_one_patch_further(fusion, photographs):
    model = build(fusion.config)
    model.load_state_dict(fusion.state_dict())
    patch = to_tensor(np.ascontiguousarray(photographs[0][90:122, 200:232]))
    with torch.no_grad():
        begun = {k: psnr(o.x_hat - model.planes(patch)[k]) for k, o in model(patch, 20.0).streams.items()}
    reached, gradients = overfit(model, patch, 50, rates=(1e-5, 1e-3))
    moving = {name for name, value in gradients.items() if value > 0}
    assert {f"{key}.{part}.weight" for key in begun for part in ("stem", "code")} <= moving
    for key, value in begun.items():
        assert reached[key] > value + 5, (key, begun, reached)
