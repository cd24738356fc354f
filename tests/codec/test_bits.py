"""The integer entropy coder: lossless at every size, exact in any order, causal, and as good as in float."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from mcml.base.errors import CorruptStreamError, DataError
from mcml.codec.bits import BitCoder, Reader, Writer, read_levels, write_levels
from mcml.codec.context_model import ContextModel
from mcml.codec.order import (
    KNOWN,
    LATTICES,
    LEVEL_STRIDE,
    ONE,
    REST,
    SPREADS,
    TAPS,
    bayer,
    level_passes,
    probability_table,
    uniform_levels,
)
from mcml.training.entropy import normalised

SIDES = st.integers(1, 13)
GROUPS = (1, 3, 2)


def random_context(rng, sizes=GROUPS, hidden=6, inherited=(), scale=1.0):
    """Return a context model whose every weight matters."""
    context = ContextModel(
        torch.repeat_interleave(torch.arange(len(sizes)) + 1, torch.tensor(sizes)), hidden, inherited
    )
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


def coded(coder, bits, opened, field=None, states=(), cuts=()):
    """Return the chunks of a stream that is cut after some groups, its state and the ideal bits."""
    state = coder.begin(*opened.shape, field, states)
    chunks, ideal = [], 0.0
    for upto in (*cuts, len(coder.sizes)):
        writer = Writer()
        coder.write(state, bits, opened, upto, writer)
        chunks.append(writer.finish())
        ideal += writer.bits
    return chunks, state, ideal


def hidden(state):
    """Return a state's numbers in place, (h, w, H)."""
    found = np.zeros((state.height, state.width, state.hidden[0].shape[1]))
    for part, (row, column) in zip(state.hidden, LATTICES, strict=True):
        place = found[row::2, column::2]
        place[:] = part.reshape(place.shape)
    return found


def decoded(coder, chunks, opened, field=None, states=(), cuts=()):
    state = coder.begin(*opened.shape, field, states)
    for chunk, upto in zip(chunks, (*cuts, len(coder.sizes)), strict=True):
        reader = Reader(chunk)
        coder.read(state, opened, upto, reader)
        reader.finish()
    return state


def mask_of(opened, sizes=GROUPS):
    return np.repeat(np.arange(len(sizes)), sizes) < opened[..., None]


# -------------------------------------------------------------------------------- round trip


@settings(max_examples=60, deadline=None)
@given(
    height=SIDES, width=SIDES, seed=st.integers(0, 2**32 - 1), adaptive=st.booleans(), uniform=st.booleans(),
    cuts=st.lists(st.integers(0, len(GROUPS)), max_size=3).map(sorted),
)  # fmt: skip
def test_bits_of_any_size_come_back_with_the_state(height, width, seed, adaptive, uniform, cuts):
    rng = np.random.default_rng(seed)
    first, second = random_coder(rng), random_coder(rng, hidden=4, inherited=(6,))
    if uniform:
        opened = np.full((height, width), rng.integers(0, len(GROUPS) + 1))
    else:
        opened = rng.integers(0, len(GROUPS) + 1, (height, width))
    field = field_of(opened) if adaptive else None
    written, read = [], []
    for coder in (first, second):
        bits = random_bits(rng, height, width)
        chunks, state, ideal = coded(coder, bits, opened, field, written, cuts)
        found = decoded(coder, chunks, opened, field, read, cuts)
        np.testing.assert_array_equal(found.code(), (2.0 * bits - 1) * mask_of(opened))
        np.testing.assert_array_equal(hidden(found), hidden(state))
        np.testing.assert_array_equal(hidden(found), np.round(hidden(found)))
        spent = 8 * sum(map(len, chunks))
        assert ideal - 32 * len(chunks) <= spent <= 1.001 * ideal + 64 * len(chunks)
        written.append(state)
        read.append(found)


def test_a_stream_that_goes_on_after_others_have_learned_more_comes_back():
    rng = np.random.default_rng(5)
    first, second = random_coder(rng), random_coder(rng, hidden=4, inherited=(6,))
    opened = rng.integers(0, 4, (6, 7))
    bits = [random_bits(rng, 6, 7) for _ in range(2)]
    states = [[], []]
    chunks = []
    for upto in (1, 3):
        for number, coder in enumerate((first, second)):
            if upto == 1:
                states[0].append(coder.begin(6, 7, None, states[0][:number]))
            else:
                coder.refresh(states[0][number], states[0][:number])
            writer = Writer()
            coder.write(states[0][number], bits[number], opened, upto, writer)
            chunks.append(writer.finish())
    whole = second.begin(6, 7, None, states[0][:1])
    fresh = second.begin(6, 7, None, [first.begin(6, 7, None, ())])
    assert not np.array_equal(hidden(whole), hidden(fresh))
    left = iter(chunks)
    for upto in (1, 3):
        for number, coder in enumerate((first, second)):
            if upto == 1:
                states[1].append(coder.begin(6, 7, None, states[1][:number]))
            else:
                coder.refresh(states[1][number], states[1][:number])
            reader = Reader(next(left))
            coder.read(states[1][number], opened, upto, reader)
            reader.finish()
    for number in range(2):
        np.testing.assert_array_equal(states[1][number].code(), (2.0 * bits[number] - 1) * mask_of(opened))
        np.testing.assert_array_equal(hidden(states[1][number]), hidden(states[0][number]))


def test_states_taken_over_again_replace_those_before():
    rng = np.random.default_rng(6)
    first, second = random_coder(rng), random_coder(rng, hidden=4, inherited=(6,))
    opened = np.full((5, 4), len(GROUPS))
    early = first.begin(5, 4, None, ())
    late = coded(first, random_bits(rng, 5, 4), opened)[1]
    state = second.begin(5, 4, None, [early])
    alone = hidden(state).copy()
    second.refresh(state, [early])
    np.testing.assert_array_equal(hidden(state), alone)
    second.refresh(state, [late])
    np.testing.assert_array_equal(hidden(state), hidden(second.begin(5, 4, None, [late])))
    assert not np.array_equal(hidden(state), alone)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    levels=st.integers(2, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_maps_of_any_size_come_back(height, width, levels, seed):
    rng = np.random.default_rng(seed)
    tables = level_tables(rng, levels)
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


def level_tables(rng, levels):
    passes = 2 * int(np.log2(LEVEL_STRIDE)) + 1
    return normalised(rng.gamma(0.3, 40, (passes, len(SPREADS) + 1, levels, levels)))


def test_level_tables_are_whole_shares_of_65536_from_1():
    tables = level_tables(np.random.default_rng(0), 32)
    assert tables.dtype == np.uint16 and tables.min() >= 1
    np.testing.assert_array_equal(tables.sum(-1, dtype=np.int64), ONE)
    empty = normalised(np.zeros((1, 1, 5, 5)))[0, 0]
    np.testing.assert_array_equal(empty.argmax(-1), np.arange(5))


# ------------------------------------------------------------------------------ range coder


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 300), likely=st.booleans())
def test_coded_bits_end_in_no_zero_byte_and_come_back(seed, count, likely):
    rng = np.random.default_rng(seed)
    ones = rng.integers(1, ONE, count).astype(np.float64)
    bits = (rng.random(count) * ONE < ones if likely else rng.random(count) < 0.5).astype(np.int32)
    writer = Writer()
    for part in np.array_split(np.arange(count), 3):
        writer.put_bits(bits[part], ones[part])
    chunk = writer.finish()
    assert not chunk.endswith(b"\0")
    reader = Reader(chunk)
    np.testing.assert_array_equal(reader.get_bits(ones), bits)
    reader.finish()


@pytest.mark.parametrize("one", [1, ONE - 1])
@pytest.mark.parametrize("bit", [0, 1])
def test_long_runs_at_the_ends_of_the_table_come_back(one, bit):
    ones, bits = np.full(3000, float(one)), np.full(3000, bit)
    writer = Writer()
    writer.put_bits(bits, ones)
    reader = Reader(writer.finish())
    np.testing.assert_array_equal(reader.get_bits(ones), bits)
    reader.finish()


def test_nothing_is_coded_as_nothing():
    assert Writer().finish() == b""
    reader = Reader(b"")
    assert len(reader.get_bits(np.zeros(0))) == len(reader.get_levels(np.zeros((0, 4)))) == 0
    reader.finish()


def test_chunks_that_no_encoder_writes_are_refused():
    with pytest.raises(CorruptStreamError, match="zero bytes"):
        Reader(b"abc\0")
    writer = Writer()
    rng = np.random.default_rng(0)
    writer.put_bits(rng.integers(0, 2, 400), np.full(400, 32768.0))
    reader = Reader(writer.finish())
    reader.get_bits(np.full(100, 32768.0))
    with pytest.raises(CorruptStreamError, match="longer than its symbols"):
        reader.finish()


# -------------------------------------------------------------------------- integers and float


def sensible(steps=60):
    """Return a context model trained on smooth bits, and such bits (h, w, n) with their levels."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.normal(size=(9, 1, 10, 10))).float()
    value = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")[:, 0, :, :, None]
    value = value + 0.15 * torch.from_numpy(rng.normal(size=value.shape)).float()
    bits = (value > torch.tensor([0.0, -0.7, 0.7, -0.3, 0.3, 1.2])).float()
    opened = torch.from_numpy(rng.integers(0, 4, (9, 4, 4))).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask = torch.from_numpy(mask_of(opened.numpy())).float()
    field = field_of(opened).float() / 8
    code = (2 * bits - 1) * mask
    context = random_context(rng, hidden=12, scale=0.3)
    optimizer = torch.optim.Adam(context.parameters(), lr=0.02)
    for _ in range(steps):
        logits, _ = context(code[1:], field[1:])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, bits[1:], weight=mask[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return context, bits[:1], opened[:1], mask[:1], field[:1]


@pytest.fixture(scope="module")
def trained():
    return sensible()


def test_integers_cost_at_most_half_a_percent_more_than_float(trained):
    context, bits, opened, mask, field = trained
    with torch.no_grad():
        logits, state = context((2 * bits - 1) * mask, field)
    nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    expected = float((nats * mask).sum()) / np.log(2)
    assert 0.1 < expected / float(mask.sum()) < 0.7  # it has learned something, and not everything
    coder = BitCoder(context.export())
    field_ = field_of(opened[0].numpy())
    _, found, ideal = coded(coder, bits[0].numpy().astype(np.uint8), opened[0].numpy(), field_)
    assert abs(ideal / expected - 1) < 0.005
    np.testing.assert_allclose(hidden(found) / 1024, state[0].numpy(), atol=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_integer_log_odds_are_the_float_models_at_every_position(seed):
    rng = np.random.default_rng(seed)
    context, other = random_context(rng, inherited=(5,)), random_context(rng, hidden=5)
    bits, before = random_bits(rng, 7, 6), random_bits(rng, 7, 6)
    opened = np.full((7, 6), len(GROUPS))
    field = rng.integers(-3, 4, (7, 6)).astype(np.float64)
    with torch.no_grad():
        signs = [torch.from_numpy(2.0 * b - 1).float()[None] for b in (before, bits)]
        _, state = other(signs[0])
        logits, _ = context(signs[1], torch.from_numpy(field).float()[None] / 8, [state])
    coder, first = BitCoder(context.export()), BitCoder(other.export())
    inherited = coded(first, before, opened)[1]
    found = probabilities(coder, bits, opened, field, [inherited])
    np.testing.assert_allclose(found / ONE, torch.sigmoid(logits[0]).numpy(), atol=0.02)


def probabilities(coder, bits, opened, field=None, states=()):
    """Return the probability of a one (h, w, n) that the coder gave each open bit, 0 elsewhere."""
    found = np.zeros(bits.shape)
    order = []

    class Listener(Writer):
        def put_bits(self, bits, ones):
            super().put_bits(bits, ones)
            order.append(ones)

    coder.write(coder.begin(*opened.shape, field, states), bits, opened, len(coder.sizes), Listener())
    left = iter(order)
    for group, span in enumerate(coder.spans):
        for row, column in LATTICES:
            place = found[row::2, column::2, span]
            open_ = opened[row::2, column::2] > group
            place[open_] = next(left).reshape(span.stop - span.start, int(open_.sum())).T
    return found


def test_the_probability_table_is_the_sigmoid_clamped_and_odd():
    table = probability_table()
    assert len(table) == 1537 and table.dtype == np.int32
    middle = (np.arange(-768, 769) + 0.5) / 64
    np.testing.assert_allclose(table / ONE, 1 / (1 + np.exp(-middle)), atol=1.01 / ONE)
    assert table.min() >= 1 and table.max() <= ONE - 1
    assert (np.diff(table) >= 0).all()
    np.testing.assert_array_equal(table[:-1] + table[-2::-1], ONE)


# ------------------------------------------------------------------------------------ causality


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
    lattice = np.empty((height, width), int)
    for number, (row, column) in enumerate(LATTICES):
        lattice[row::2, column::2] = number
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
        known = [t for t, (y, x) in enumerate(TAPS) if ((row + y) % 2, (column + x) % 2) in earlier]
        assert known == list(KNOWN[number])
        assert sorted([*KNOWN[number], *REST[number]]) == list(range(len(TAPS)))


def test_masked_bits_are_neither_coded_nor_seen():
    rng = np.random.default_rng(2)
    coder = random_coder(rng)
    opened = rng.integers(0, 4, (6, 5))
    bits = random_bits(rng, 6, 5)
    other = np.where(mask_of(opened), bits, 1 - bits)
    assert coded(coder, bits, opened)[0] == coded(coder, other, opened)[0]


# ------------------------------------------------------------------------------------ exactness


def chunk_of(seed, height=24, width=25):
    rng = np.random.default_rng(seed)
    first, second = random_coder(rng, hidden=40), random_coder(rng, hidden=24, inherited=(40,))
    opened = rng.integers(0, 4, (height, width))
    found = []
    for coder in (first, second):
        states = [found[0][1]] if found else []
        found.append(coded(coder, random_bits(rng, height, width), opened, field_of(opened), states))
    return [(chunks, hidden(state).tobytes()) for chunks, state, _ in found]


def test_files_are_equal_with_1_and_2_blas_threads():
    with threadpool_limits(1):
        one = chunk_of(7)
    with threadpool_limits(2):
        two = chunk_of(7)
    assert one == two


def test_sums_are_the_same_in_whatever_order_they_are_added():
    """Permuting the state's units and the channels of a group permutes every sum's terms."""
    rng = np.random.default_rng(9)
    plain = random_context(rng, hidden=40).export()
    order = rng.permutation(40)
    permuted = dict(plain)
    for name in ("gather", "level_gather", "state_bias", "group_bias"):
        permuted[name] = plain[name][..., order]
    permuted["readout"] = plain["readout"][:, np.concatenate([order, order + 40])]
    assert not np.array_equal(permuted["gather"], plain["gather"])
    opened = rng.integers(0, 4, (11, 12))
    bits = random_bits(rng, 11, 12)
    first = coded(BitCoder(plain), bits, opened, field_of(opened))
    second = coded(BitCoder(permuted), bits, opened, field_of(opened))
    assert first[0] == second[0]
    np.testing.assert_array_equal(hidden(first[1])[..., order], hidden(second[1]))


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


@pytest.mark.parametrize("value", [0, ONE])
def test_probabilities_of_0_and_1_are_refused(value):
    tensors = random_context(np.random.default_rng(0)).export()
    tensors["table"] = np.where(np.arange(1537) == 4, value, tensors["table"])
    with pytest.raises(DataError, match="between 1 and 65535"):
        BitCoder(tensors)


def test_missing_and_misshapen_tensors_are_refused():
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


# ------------------------------------------------------------------------------ coding order


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_level_passes_visit_each_position_once_and_know_their_neighbours(height, width):
    known = np.zeros((height, width), int)
    for number, (which, rows, columns, near) in enumerate(level_passes(height, width)):
        assert which == number
        assert len(near) == (0 if number == 0 else 4)
        for y, x in near:
            assert ((y >= 0) & (y < height) & (x >= 0) & (x < width)).all()
            assert known[y, x].all()
            distance = np.maximum(abs(y - rows), abs(x - columns))
            assert (distance <= LEVEL_STRIDE >> ((number + 1) // 2)).all()
        known[rows, columns] += 1
    np.testing.assert_array_equal(known, 1)
    assert number == 6


def test_the_dither_ranks_every_value_once_in_16_by_16_from_any_corner_on():
    whole = bayer(160, 160)
    for row, column in [(0, 0), (3, 11), (16, 32), (129, 77)]:
        part = whole[row : row + 16, column : column + 16]
        np.testing.assert_array_equal(np.sort(part.ravel()), np.arange(256))


@settings(max_examples=60, deadline=None)
@given(rate=st.integers(0, 65280), row=st.integers(0, 300), column=st.integers(0, 300))
def test_uniform_levels_are_the_rate_on_average_over_any_16_by_16(rate, row, column):
    levels = uniform_levels(rate, row + 16, column + 16)[row:, column:]
    assert levels.sum() == rate
    assert levels.max() - levels.min() <= 1


def test_uniform_levels_only_rise_with_the_rate_and_one_position_at_a_time():
    before = uniform_levels(0, 16, 16)
    assert not before.any()
    for rate in range(1, 1025):
        levels = uniform_levels(rate, 16, 16)
        assert (levels >= before).all() and (levels - before).sum() == 1
        before = levels


def test_every_quarter_of_the_dither_holds_a_quarter_of_any_rate():
    for rate in range(0, 257, 4):
        levels = uniform_levels(rate, 16, 16)
        quarters = levels.reshape(2, 8, 2, 8).sum(axis=(1, 3))
        np.testing.assert_array_equal(quarters, rate // 4)


def test_half_a_level_is_a_checkerboard_and_a_quarter_every_other_row_and_column():
    y, x = np.indices((16, 16))
    np.testing.assert_array_equal(uniform_levels(128, 16, 16), (y + x) % 2 == 0)
    np.testing.assert_array_equal(uniform_levels(64, 16, 16), (y % 2 == 0) & (x % 2 == 0))
    np.testing.assert_array_equal(uniform_levels(32, 16, 16), (y % 4 == x % 4) & (y % 2 == 0))
