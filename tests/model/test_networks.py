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


def test_encoder_and_decoder_have_sixteen_blocks_and_a_fusion_decoder_fifteen():
    """Five groups of three, and one more."""
    for network in (Encoder(1, 4, 6), Decoder(1, 4, 6), FusionDecoder(1, 4, 6, luma=5)):
        more = 0 if isinstance(network, FusionDecoder) else 1
        assert len(blocks_of(network)) == 15 + more
        assert [len(group) for group in network.trunk.groups] == [3] * 5
        assert len(network.trunk.tail) == more


def test_a_zeroed_trunk_is_the_identity_and_can_leave_it():
    trunk, x = seeded(lambda: Trunk(4)), noise(2, 4, 5, 3)
    assert not torch.equal(trunk(x), x)
    trunk.zero_()
    assert torch.equal(trunk(x), x)
    (trunk(x) * noise(2, 4, 5, 3, seed=2)).sum().backward()
    assert all(block.second.weight.grad.abs().max() > 0 for block in blocks_of(trunk))


def test_the_code_is_the_sigmoid_of_a_convolution_of_the_features():
    encoder = seeded(lambda: Encoder(1, 3, 4, groups=1, blocks=1))
    features, e = encoder(noise(2, 1, 8, 16))
    torch.testing.assert_close(features, encoder.trunk(encoder.stem(noise(2, 1, 8, 16))))
    logit = torch.einsum("bchw,nc->bnhw", features, encoder.code.weight[:, :, 0, 0])
    torch.testing.assert_close(e, torch.sigmoid(logit + encoder.code.bias[:, None, None]))


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


SMOOTH = {
    "stem and trunk": (lambda: Encoder(1, 2, 3, groups=2, blocks=1), (1, 1, 8, 16)),
    "entry and trunk": (lambda: Decoder(1, 2, 3, groups=1, blocks=2), (1, 3, 2, 2)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_agree_with_finite_differences(name):
    """In float64, of the input and of every weight; the networks' last step to float32 is left out."""
    make, shape = SMOOTH[name]
    network = seeded(lambda: torch.nn.Sequential(*[*make().children()][:2]), seed=3, dtype=torch.float64)
    names = [n for n, _ in network.named_parameters()]
    weights = [network.get_parameter(n) for n in names]

    def run(x, *values):
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x,))

    x = noise(*shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)
