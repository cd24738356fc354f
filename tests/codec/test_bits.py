"""The integer entropy coder: lossless at every size, exact in any order, causal, and as good as in float."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits
from torch import nn

from mcml.base.errors import DataError
from mcml.codec import order
from mcml.codec.bits import BitCoder, Reader, Writer, read_levels, write_levels
from mcml.codec.context_model import ContextModel
from mcml.codec.order import LATTICES, ONE, probability_table, uniform_levels
from mcml.training.entropy import normalised

GROUPS = (1, 3, 2)


def random_context(rng, sizes=GROUPS, hidden=6, inherited=(), scale=1.0):
    """Return a context model whose every weight matters."""
    groups = torch.from_numpy(np.repeat(np.arange(len(sizes)) + 1, sizes))
    context = ContextModel(groups, hidden, inherited)
    with torch.no_grad():
        for name, value in context.named_parameters():
            drawn = torch.from_numpy(rng.normal(size=value.shape)).float()
            value.copy_(scale * drawn * (0.3 if name in ("gather", "readout") else 0.5))
    return context


def random_coder(rng, **options):
    return BitCoder(random_context(rng, **options).export())


def random_bits(rng, height, width):
    return rng.integers(0, 2, (height, width, sum(GROUPS)), dtype=np.uint8)


def field_of(opened):
    return 2.0 * opened - len(GROUPS)


def through(coders, opened, field, cuts, step):
    """Go through streams layer by layer as files do, calling step(number, coder, state, upto)."""
    states = []
    for upto in (*cuts, len(GROUPS)):
        for number, coder in enumerate(coders):
            if number == len(states):
                states.append(coder.begin(*opened.shape, field, states[:number]))
            else:
                coder.refresh(states[number], states[:number])
            step(number, coder, states[number], upto)
    return states


def coded(coders, bits, opened, field=None, cuts=()):
    """Return the chunks of streams that are cut after some groups, their states and the ideal bits."""
    chunks, ideal = [], []

    def write(number, coder, state, upto):
        writer = Writer()
        coder.write(state, bits[number], opened, upto, writer)
        chunks.append(writer.finish())
        ideal.append(writer.bits)

    return chunks, through(coders, opened, field, cuts, write), sum(ideal)


def decoded(coders, chunks, opened, field=None, cuts=()):
    left = iter(chunks)

    def read(number, coder, state, upto):
        reader = Reader(next(left))
        coder.read(state, opened, upto, reader)
        reader.finish()

    return through(coders, opened, field, cuts, read)


def hidden(state):
    """Return a state's numbers in place, (h, w, H)."""
    whole = np.zeros((state.height, state.width, state.hidden[0].shape[1]))
    for part, (row, column) in zip(state.hidden, LATTICES, strict=True):
        place = whole[row::2, column::2]
        place[:] = part.reshape(place.shape)
    return whole


def mask_of(opened):
    return np.repeat(np.arange(len(GROUPS)), GROUPS) < opened[..., None]


def probabilities(coder, bits, opened, field=None, states=()):
    """Return the probability of a one (h, w, n) that the coder gave each open bit, 0 elsewhere."""
    given = []

    class Listener(Writer):
        def put_bits(self, bits, ones):
            given.append(ones)

    coder.write(coder.begin(*opened.shape, field, states), bits, opened, len(coder.sizes), Listener())
    whole, left = np.zeros(bits.shape), iter(given)
    for group, span in enumerate(coder.spans):
        for row, column in LATTICES:
            open_ = opened[row::2, column::2] > group
            whole[row::2, column::2, span][open_] = next(left).reshape(span.stop - span.start, -1).T
    return whole


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 13), width=st.integers(1, 13), seed=st.integers(0, 2**32 - 1),
    adaptive=st.booleans(), uniform=st.booleans(),
    cuts=st.lists(st.integers(0, len(GROUPS)), max_size=3).map(sorted),
)  # fmt: skip
def test_bits_of_any_size_come_back_with_the_state(height, width, seed, adaptive, uniform, cuts):
    rng = np.random.default_rng(seed)
    coders = random_coder(rng), random_coder(rng, hidden=4, inherited=(6,))
    opened = rng.integers(0, len(GROUPS) + 1, (height, width))
    if uniform:
        opened[:] = opened[0, 0]
    field = field_of(opened) if adaptive else None
    bits = [random_bits(rng, height, width) for _ in coders]
    chunks, written, ideal = coded(coders, bits, opened, field, cuts)
    for state, there, own in zip(decoded(coders, chunks, opened, field, cuts), written, bits, strict=True):
        np.testing.assert_array_equal(state.code(), (2.0 * own - 1) * mask_of(opened))
        np.testing.assert_array_equal(hidden(state), hidden(there))
        np.testing.assert_array_equal(hidden(state), np.round(hidden(state)))
    spent = 8 * sum(map(len, chunks))
    assert ideal - 32 * len(chunks) <= spent <= 1.001 * ideal + 64 * len(chunks)


def test_states_taken_over_again_replace_those_before():
    rng = np.random.default_rng(6)
    first, second = random_coder(rng), random_coder(rng, hidden=4, inherited=(6,))
    early = first.begin(5, 4, None, ())
    (late,) = coded([first], [random_bits(rng, 5, 4)], np.full((5, 4), len(GROUPS)))[1]
    state = second.begin(5, 4, None, [early])
    alone = hidden(state).copy()
    second.refresh(state, [early])
    np.testing.assert_array_equal(hidden(state), alone)
    second.refresh(state, [late])
    np.testing.assert_array_equal(hidden(state), hidden(second.begin(5, 4, None, [late])))
    assert not np.array_equal(hidden(state), alone)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([2, 3, 5, 9, 32]), st.integers(0, 2**32 - 1))
def test_maps_of_any_size_come_back(height, width, levels, seed):
    rng = np.random.default_rng(seed)
    counts = rng.gamma(0.3, 40, (order.LEVEL_PASSES, len(order.SPREADS) + 1, levels, levels))
    tables = normalised(counts)
    assert tables.dtype == np.uint16 and tables.min() >= 1  # whole shares of 65536
    assert (tables.sum(-1, dtype=np.int64) == ONE).all()
    np.testing.assert_array_equal(normalised(0 * counts)[0, 0].argmax(-1), np.arange(levels))
    middle = int(rng.integers(levels))
    wanted = rng.integers(0, levels, (height, width))
    if rng.random() < 0.5:
        wanted = np.minimum(wanted, wanted[:1] // 2 + 1)  # smoother
    writer = Writer()
    write_levels(wanted, tables, middle, writer)
    chunk = writer.finish()
    reader = Reader(chunk)
    np.testing.assert_array_equal(read_levels(height, width, tables, middle, reader), wanted)
    reader.finish()
    assert writer.bits - 32 <= 8 * len(chunk) <= 1.001 * writer.bits + 64


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 3000), one=st.sampled_from([0, 1, ONE - 1]),
    kind=st.sampled_from(["likely", "even", "zeros", "ones"]),
)  # fmt: skip
@example(seed=0, count=0, one=0, kind="even")
@example(seed=0, count=3000, one=1, kind="ones")
@example(seed=0, count=3000, one=ONE - 1, kind="zeros")
def test_coded_bits_end_in_no_zero_byte_and_come_back(seed, count, one, kind):
    """Whatever their odds; `one` is an end of the table for all of them, 0 any."""
    rng = np.random.default_rng(seed)
    ones = np.full(count, float(one)) if one else rng.integers(1, ONE, count).astype(np.float64)
    below = {"likely": ones, "even": ONE / 2, "zeros": 0, "ones": ONE}[kind]
    bits = (rng.random(count) * ONE < below).astype(np.int32)
    writer = Writer()
    for part in np.array_split(np.arange(count), 3):
        writer.put_bits(bits[part], ones[part])
    chunk = writer.finish()
    assert not chunk.endswith(b"\0") and (count or chunk == b"")
    reader = Reader(chunk)
    np.testing.assert_array_equal(reader.get_bits(ones), bits)
    reader.finish()


@pytest.mark.parametrize("seed", range(3))
def test_integer_log_odds_states_and_lengths_are_the_float_models(seed):
    rng = np.random.default_rng(seed)
    first, second = random_context(rng, hidden=5, scale=0.5), random_context(rng, inherited=(5,), scale=0.5)
    coders = [BitCoder(context.export()) for context in (first, second)]
    bits, opened = [random_bits(rng, 17, 16) for _ in coders], rng.integers(0, 4, (17, 16))
    field, mask = field_of(opened), torch.from_numpy(mask_of(opened))
    level, states, nats = torch.from_numpy(field).float()[None] / 8, [], 0.0
    _, found, ideal = coded(coders, bits, opened, field)
    for number, context in enumerate((first, second)):
        ones = torch.from_numpy(bits[number]).float()
        with torch.no_grad():
            logits, state = context(((2 * ones - 1) * mask)[None], level, states)
        given = probabilities(coders[number], bits[number], opened, field, found[:number]) / ONE
        np.testing.assert_allclose(given, torch.sigmoid(logits[0]) * mask, atol=0.02)
        np.testing.assert_allclose(hidden(found[number]) / 1024, state[0], atol=0.06)
        lengths = nn.functional.binary_cross_entropy_with_logits(logits[0], ones, reduction="none")
        nats, states = nats + float((lengths * mask).sum()), [state]
    assert abs(ideal * np.log(2) / nats - 1) < 0.005


def test_the_probability_table_is_the_sigmoid_clamped_and_odd():
    table = probability_table()
    assert len(table) == 1537 and table.dtype == np.int32
    middle = (np.arange(-768, 769) + 0.5) / 64
    np.testing.assert_allclose(table / ONE, 1 / (1 + np.exp(-middle)), atol=1.01 / ONE)
    assert table.min() >= 1 and table.max() <= ONE - 1
    assert (np.diff(table) >= 0).all()
    np.testing.assert_array_equal(table[:-1] + table[-2::-1], ONE)


@pytest.mark.parametrize("adaptive", [False, True])
def test_changing_a_later_bit_never_changes_an_earlier_probability(adaptive):
    rng = np.random.default_rng(11)
    coder = random_coder(rng)
    height, width, n = 5, 6, sum(GROUPS)
    opened = rng.integers(1, 4, (height, width)) if adaptive else np.full((height, width), 3)
    field = field_of(opened) if adaptive else None
    bits = random_bits(rng, height, width)
    before = probabilities(coder, bits, opened, field)
    group = np.repeat(np.arange(len(GROUPS)), GROUPS)
    lattice = np.array([[0, 2], [3, 1]])[np.arange(height)[:, None] % 2, np.arange(width) % 2]
    changed = 0
    for y, x, k in np.ndindex(height, width, n):
        if opened[y, x] <= group[k]:
            continue
        other = bits.copy()
        other[y, x, k] ^= 1
        after = probabilities(coder, other, opened, field)
        later = (group > group[k]) | ((group == group[k]) & (lattice[..., None] > lattice[y, x]))
        later[y, x] |= np.arange(n) > k
        assert not (after != before)[~later].any()
        changed += int((after != before).sum())
    assert changed > 1000  # and the later ones do listen


def test_each_lattice_knows_exactly_the_neighbours_that_were_coded_before_it():
    for number, (row, column) in enumerate(LATTICES):
        earlier = LATTICES[:number]
        known = [t for t, (y, x) in enumerate(order.TAPS) if ((row + y) % 2, (column + x) % 2) in earlier]
        assert known == list(order.KNOWN[number])
        assert sorted([*order.KNOWN[number], *order.REST[number]]) == list(range(len(order.TAPS)))


def test_sums_are_the_same_in_whatever_order_they_are_added():
    """Permuting the state's units and a group's channels permutes every sum's terms, threads split them."""
    rng = np.random.default_rng(9)
    plain = random_context(rng, hidden=40).export()
    shuffled = rng.permutation(40)
    permuted = dict(plain)
    for name in ("gather", "level_gather", "state_bias", "group_bias"):
        permuted[name] = plain[name][..., shuffled]
    permuted["readout"] = plain["readout"][:, np.concatenate([shuffled, shuffled + 40])]
    assert not np.array_equal(permuted["gather"], plain["gather"])
    opened, bits, chunks, states = rng.integers(0, 4, (24, 25)), random_bits(rng, 24, 25), [], []
    for tensors, threads in ((plain, 1), (plain, 2), (permuted, 1)):
        with threadpool_limits(threads):
            file, (state,), _ = coded([BitCoder(tensors)], [bits], opened, field_of(opened))
        chunks.append(file)
        states.append(hidden(state))
    assert chunks[0] == chunks[1] == chunks[2]
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0][..., shuffled], states[2])


@pytest.mark.parametrize("rest", [-40, -3, 0, 1, 25])
def test_terms_of_2_to_the_46_cancel_exactly(rest):
    """For w s - w (s + g) = -w g, whatever s is; float32 would leave noise of 2^22 instead."""
    tensors = random_context(np.random.default_rng(1), sizes=(1,), hidden=2).export()
    tensors["state_bias"] = np.array([2**31 - 1, 2**31 - 12345], np.int32)
    tensors["group_bias"] = np.array([[-7 * rest, 11 * rest]], np.int32)
    tensors["readout"] = np.array([[32767, -32749, -32767, 32749]], np.int16)
    tensors["bias"] = np.array([5], np.int32)
    logit = 7 * rest * 32767 + 11 * rest * 32749 + 5
    found = probabilities(BitCoder(tensors), np.zeros((1, 1, 1), np.uint8), np.array([[1]]))
    index = min(max(logit >> 14, -768), 768)
    assert found == probability_table()[index + 768]


@pytest.mark.parametrize(
    "name, value",
    [("bias", 2.0**53), ("before", 2.0**44), ("readout", 2.0**43), ("state_bias", 2.0**53),
     ("gather", 2.0**52), ("level_gather", 2.0**43), ("inherit_0", 2.0**30), ("group_bias", 2.0**53)],
)  # fmt: skip
def test_weights_too_large_for_exact_sums_are_refused(name, value):
    tensors = random_context(np.random.default_rng(0), inherited=(6,)).export()
    BitCoder(tensors)
    tensors[name] = tensors[name].astype(np.int64)
    tensors[name][(0,) * tensors[name].ndim] = value
    with pytest.raises(DataError, match="too large for exact sums"):
        BitCoder(tensors)


def test_states_of_other_streams_are_capped_so_that_the_bound_holds():
    rng = np.random.default_rng(0)
    coder = random_coder(rng, hidden=4, inherited=(2,))

    def says(first, second):
        state = random_coder(rng, hidden=2).begin(1, 1, None, ())
        state.hidden[0][:] = first, second
        return hidden(coder.begin(1, 1, None, [state]))

    np.testing.assert_array_equal(says(2.0**50, -(2.0**50)), says(2.0**24, 0))
    assert not np.array_equal(says(2.0**24, 0), says(2.0**23, 0))


def test_missing_and_misshapen_and_impossible_tensors_are_refused():
    tensors = random_context(np.random.default_rng(0), inherited=(6,)).export()
    for name in tensors:
        if not name.startswith("inherit"):
            with pytest.raises(DataError, match=f"lacks '{name}'"):
                BitCoder({n: v for n, v in tensors.items() if n != name})
        if name != "group_sizes":
            with pytest.raises(DataError, match="entropy model: "):
                BitCoder({**tensors, name: tensors[name][..., :-1]})
    with pytest.raises(DataError, match="entropy model: a tensor is"):
        BitCoder({**tensors, "group_sizes": tensors["group_sizes"][1:]})
    for value in (0, ONE):
        with pytest.raises(DataError, match="between 1 and 65535"):
            BitCoder({**tensors, "table": np.where(np.arange(1537) == 4, value, tensors["table"])})


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_level_passes_visit_each_position_once_and_know_their_neighbours(height, width):
    known = np.zeros((height, width), int)
    for number, (which, rows, columns, near) in enumerate(order.level_passes(height, width)):
        assert which == number
        assert len(near) == (0 if number == 0 else 4)
        for y, x in near:
            assert ((y >= 0) & (y < height) & (x >= 0) & (x < width)).all()
            assert known[y, x].all()
            distance = np.maximum(abs(y - rows), abs(x - columns))
            assert (distance <= order.LEVEL_STRIDE >> ((number + 1) // 2)).all()
        known[rows, columns] += 1
    np.testing.assert_array_equal(known, 1)
    assert number == 6


def test_uniform_levels_are_the_rate_on_average_over_any_16_by_16_and_rise_one_position_at_a_time():
    before = np.full((96, 96), -1)
    for rate in range(1025):
        levels = uniform_levels(rate, 96, 96)
        for row, column in [(0, 0), (3, 11), (16, 32), (77, 61)]:
            part = levels[row : row + 16, column : column + 16]
            assert part.sum() == rate and part.max() - part.min() <= 1
        quarters = levels[:16, :16].reshape(2, 8, 2, 8).sum(axis=(1, 3))
        assert (abs(quarters - rate / 4) < 1).all()
        assert (levels >= before).all()
        before = levels
    assert uniform_levels(65280, 1, 1) == 255


def test_half_a_level_is_a_checkerboard_and_a_quarter_every_other_row_and_column():
    y, x = np.indices((16, 16))
    np.testing.assert_array_equal(uniform_levels(128, 16, 16), (y + x) % 2 == 0)
    np.testing.assert_array_equal(uniform_levels(64, 16, 16), (y % 2 == 0) & (x % 2 == 0))
    np.testing.assert_array_equal(uniform_levels(32, 16, 16), (y % 4 == x % 4) & (y % 2 == 0))
