"""Networks against explicit compositions, the poster's block counts, and finite differences."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from mcml.model.networks import Decoder, Encoder, Entry, FusionDecoder, ImportanceHead, ResidualBlock, Trunk

conv3 = partial(functional.conv2d, padding=1)


def seeded(make, seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype)


def noise(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def blocks_of(module):
    return [m for m in module.modules() if isinstance(m, ResidualBlock)]


def test_a_residual_block_is_two_convolutions_beside_the_identity():
    block, x = seeded(lambda: ResidualBlock(4)), noise(2, 4, 5, 6)
    hidden = conv3(x, block.first.weight, block.first.bias).clamp(min=0)
    torch.testing.assert_close(block(x), x + conv3(hidden, block.second.weight, block.second.bias))
    assert block.first.kernel_size == block.second.kernel_size == (3, 3)


@pytest.mark.parametrize("groups, blocks, tail", [(5, 3, 1), (5, 3, 0), (2, 1, 2), (1, 2, 0)])
def test_the_trunk_averages_each_group_and_the_whole_with_their_inputs(groups, blocks, tail):
    trunk, x = seeded(lambda: Trunk(3, groups, blocks, tail)), noise(1, 3, 4, 5)
    every = iter(blocks_of(trunk))
    y = x
    for _ in range(groups):
        inside = y
        for _ in range(blocks):
            inside = next(every)(inside)
        y = 0.5 * y + 0.5 * inside
    for _ in range(tail):
        y = next(every)(y)
    assert next(every, None) is None
    torch.testing.assert_close(trunk(x), 0.5 * x + 0.5 * y)


def test_encoder_and_decoder_have_sixteen_blocks_in_five_groups_of_three_and_one():
    for network in (Encoder(1, 4, 6), Decoder(1, 4, 6)):
        assert len(blocks_of(network)) == 16
        assert [len(group) for group in network.trunk.groups] == [3] * 5
        assert len(network.trunk.tail) == 1


def test_a_fusion_decoder_has_fifteen_blocks_in_five_groups_of_three():
    network = FusionDecoder(1, 4, 6, luma=5)
    assert len(blocks_of(network)) == 15
    assert [len(group) for group in network.trunk.groups] == [3] * 5


@pytest.mark.parametrize("skipped", range(5))
def test_each_group_has_a_skip_of_its_own(skipped):
    """Where a group gives nothing, half of its input still comes through; so do five in a row."""
    trunk, x = seeded(lambda: Trunk(3)), noise(1, 3, 4, 4)
    trunk.zero_()
    trunk.groups[skipped].register_forward_hook(lambda module, given, made: 0 * made)
    torch.testing.assert_close(trunk(x), (x + x / 2) / 2)


def test_the_long_skip_spans_everything():
    trunk, x = seeded(lambda: Trunk(3)), noise(1, 3, 4, 4)
    trunk.tail.register_forward_hook(lambda module, given, made: 0 * made)
    torch.testing.assert_close(trunk(x), x / 2)


def test_a_zeroed_trunk_is_the_identity_and_can_leave_it():
    trunk, x = seeded(lambda: Trunk(4)), noise(2, 4, 5, 3)
    assert not torch.equal(trunk(x), x)
    trunk.zero_()
    assert torch.equal(trunk(x), x)
    (trunk(x) * noise(2, 4, 5, 3, seed=2)).sum().backward()
    assert all(block.second.weight.grad.abs().max() > 0 for block in blocks_of(trunk))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height, width", [(8, 8), (24, 40)])
def test_an_encoder_gives_one_position_for_eight_by_eight_pixels(height, width, channels):
    encoder = seeded(lambda: Encoder(channels, 4, 6, groups=1, blocks=1))
    features, e = encoder(noise(2, channels, height, width))
    assert features.shape == (2, 4, height // 8, width // 8)
    assert e.shape == (2, 6, height // 8, width // 8)
    assert ((e > 0) & (e < 1)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_decoder_gives_eight_by_eight_pixels_a_position(channels):
    code, luma = noise(2, 6, 3, 5), noise(2, 5, 3, 5)
    for decoder in (Decoder(channels, 4, 6, 1, 1), FusionDecoder(channels, 4, 6, 1, 1, luma=5)):
        assert decoder(code, luma).shape == (2, channels, 24, 40)


def test_a_square_of_pixels_meets_its_own_position():
    """Where the trunk is the identity, a code's position looks at its own square and no other."""
    encoder = seeded(lambda: Encoder(1, 8, 8, groups=1, blocks=1))
    encoder.trunk.zero_()
    plane = torch.zeros(1, 1, 40, 40, requires_grad=True)
    _, e = encoder(plane)
    (slope,) = torch.autograd.grad(e[0, :, 2, 3].square().sum(), plane)
    by_square = slope.square().view(5, 8, 5, 8).sum((1, 3))
    assert by_square.flatten().nonzero().tolist() == [[2 * 5 + 3]]


def test_a_position_paints_its_own_square():
    decoder = seeded(lambda: Decoder(1, 8, 6, groups=1, blocks=1))
    decoder.trunk.zero_()
    with torch.no_grad():
        decoder.entry.mix.weight *= torch.eye(3)[1].outer(torch.eye(3)[1])  # the middle tap alone
    blank, dotted = torch.zeros(2, 6, 4, 5).split(1)
    dotted = dotted.clone()
    dotted[0, :, 1, 3] = 1
    changed = (decoder(dotted) - decoder(blank)).abs().view(4, 8, 5, 8).amax((1, 3))
    assert changed[1, 3] > 0
    assert changed.count_nonzero() == 1


def test_the_sub_pixel_layer_orders_pixels_row_by_row():
    decoder = seeded(lambda: Decoder(1, 4, 6, groups=1, blocks=1))
    code = noise(1, 6, 2, 3)
    values = decoder.exit(decoder.trunk(decoder.entry(code)))[0]
    image = decoder(code)[0, 0]
    for row in (0, 5, 9, 15):
        for column in (0, 7, 12, 23):
            pixel = (row % 8) * 8 + column % 8
            assert image[row, column] == values[pixel, row // 8, column // 8]


def test_the_importance_map_starts_uniform_and_can_leave_it():
    head, features = seeded(lambda: ImportanceHead(4)), noise(2, 4, 5, 6)
    logit = head(features)
    assert torch.equal(logit, torch.zeros(2, 1, 5, 6))
    logit.sum().backward()
    assert head.last.weight.grad.abs().min() > 0
    with torch.no_grad():
        head.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    hidden = conv3(features, head.hidden.weight, head.hidden.bias).clamp(min=0)
    expected = torch.einsum("bchw,oc->bohw", hidden, head.last.weight[:, :, 0, 0]) + head.last.bias
    torch.testing.assert_close(head(features), expected)


def test_the_entry_widens_twice_before_it_mixes():
    entry, code = seeded(lambda: Entry(5, 4)), noise(2, 5, 3, 4).sign()
    cells = functional.conv2d(code, entry.cells.weight, entry.cells.bias).clamp(min=0)
    assert cells.shape == (2, 10, 3, 4)
    torch.testing.assert_close(entry(code), conv3(cells, entry.mix.weight, entry.mix.bias))


def test_two_entries_added_are_one_entry_of_the_concatenated_codes():
    """The poster's drawing concatenates; the decoder stores that convolution in two parts."""
    decoder = seeded(lambda: FusionDecoder(1, 4, 3, 1, 1, luma=5))
    one = Entry(8, 4)
    own, luma = decoder.entry, decoder.luma
    with torch.no_grad():
        one.cells.weight.copy_(
            torch.block_diag(own.cells.weight[:, :, 0, 0], luma.cells.weight[:, :, 0, 0])[:, :, None, None]
        )
        one.cells.bias.copy_(torch.cat([own.cells.bias, luma.cells.bias]))
        one.mix.weight.copy_(torch.cat([own.mix.weight, luma.mix.weight], dim=1))
        one.mix.bias.copy_(own.mix.bias + luma.mix.bias)
    code, of_luma = noise(1, 3, 4, 4).sign(), noise(1, 5, 4, 4, seed=2).sign()
    expected = decoder.synthesis(one(torch.cat([code, of_luma], dim=1)))
    torch.testing.assert_close(decoder(code, of_luma), expected)


def before_code(encoder):
    return torch.nn.Sequential(encoder.stem, encoder.trunk)


def before_exit(decoder):
    return torch.nn.Sequential(decoder.entry, decoder.trunk)


SMOOTH = {
    "block": (lambda: ResidualBlock(2), (1, 2, 3, 3)),
    "trunk": (lambda: Trunk(2, 2, 1, 1), (1, 2, 3, 2)),
    "entry": (lambda: Entry(3, 2), (1, 3, 2, 2)),
    "stem and trunk": (lambda: before_code(Encoder(1, 2, 3, groups=1, blocks=1)), (1, 1, 8, 16)),
    "entry and trunk": (lambda: before_exit(Decoder(1, 2, 3, groups=1, blocks=1)), (1, 3, 2, 2)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_agree_with_finite_differences(name):
    """In float64, of the input and of every weight; the networks' last step to float32 is left out."""
    make, shape = SMOOTH[name]
    network = seeded(make, seed=3, dtype=torch.float64)
    names = [n for n, _ in network.named_parameters()]
    weights = [network.get_parameter(n) for n in names]

    def run(x, *values):
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,))

    x = noise(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


def test_the_last_steps_gradients_agree_with_the_chain_rule():
    """What the finite differences leave out: the sigmoid of the code and the sub-pixel exit."""
    encoder = seeded(lambda: Encoder(1, 3, 4, groups=1, blocks=1))
    features, e = encoder(noise(1, 1, 8, 16))
    incoming = noise(*e.shape, seed=5)
    (got,) = torch.autograd.grad(e, encoder.code.weight, incoming)
    slope = incoming * e * (1 - e)
    torch.testing.assert_close(got[:, :, 0, 0], torch.einsum("bnhw,bchw->nc", slope, features))

    decoder = seeded(lambda: Decoder(1, 3, 4, groups=1, blocks=1))
    code = noise(1, 4, 2, 3).sign()
    image = decoder(code)
    incoming = noise(*image.shape, seed=6)
    (got,) = torch.autograd.grad(image, decoder.exit.weight, incoming)
    apart = functional.pixel_unshuffle(incoming, 8)
    expected = torch.einsum("bnhw,bchw->nc", apart, decoder.trunk(decoder.entry(code)))
    torch.testing.assert_close(got[:, :, 0, 0], expected)
