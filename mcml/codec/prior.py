"""Scalar latents in whole numbers: the prior of `mcml.model.scalar` as every machine computes it alike.

Weights and features are whole numbers in float32, whose sums stay below 2^24 by construction and are
therefore exact in whatever order a machine adds: features and latents in units of 2^-6, an output's weights
in the finest power of two for which no sum can be larger. Symbols, gains (logarithms in 2^-12) and means are
whole numbers in float64. Tables stand for exp and for the logistic distribution. Source: Balle, Johnston and
Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019.

A symbol is coded as yes-or-no questions about its distance from the rounded mean: is it 0, is it above,
is it one more, ...; after `MORE` of these by an Exp-Golomb code of even odds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mcml.base.errors import CorruptStreamError, DataError
from mcml.codec.bits import Reader, Writer
from mcml.codec.order import CROSS, DIAGONAL, ONE

FEATURE_BITS, LOG_BITS, DIAL_BITS = 6, 12, 10
MEAN_BITS, INVERSE_BITS = 16, 20  # of means, and of 1 / gain
LN_2 = 0.6931471805599453  # numpy's logarithm may differ in its last bit
EXACT = 2**24  # whole numbers up to it are exact in float32
ANCHOR_DIALS = 1024  # dials from one anchor of gains to the next
BELOW, ABOVE = 2, 3  # anchors beyond those that were trained
DIALS = (BELOW + 7 + ABOVE) * ANCHOR_DIALS  # the largest dial
ANCHOR_LOG_GAIN = 2330  # from one anchor to the next beyond the trained: the root of 250^(1/7), lambda's step
LARGEST = 16 << FEATURE_BITS  # of features; latents and means reach twice that
ORDER = np.array(((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)))  # step of a group at a lattice
LATTICES = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column modulo 2
NEAR = sorted(((0, 0), *CROSS, *DIAGONAL))  # the 3 x 3 neighbourhood, row by row

LOWEST, SCALES = -8.5, 160  # scales are 2^(LOWEST + i / 8)
FRACTIONS = 64  # of the mean, from its rounded value - 1/2
MORE = 15
SYMBOL_MAX, HYPER_MAX = 32767, 32  # of latents' symbols, of a hyperprior's


# ------------------------------------------------------------------------------- tables


class Odds(NamedTuple):
    """Probabilities in 1 / 65536 by scale and fraction f of F; the lower side's are at F - 1 - f."""

    zero: np.ndarray  # (S, F) the symbol is the rounded mean
    above: np.ndarray  # (S, F) if it is not: it is above
    more: np.ndarray  # (S, F, 15) if it is k or more above: k + 1 or more, k = 1..15


@cache
def odds() -> Odds:
    """Return the logistic distribution's tables, (160, 64) and (160, 64, 15).

    No entry lies so near to the middle of two whole numbers that machines could differ (a test).
    """
    scale = 2.0 ** (LOWEST + np.arange(SCALES) / 8)[:, None, None]
    mean = ((np.arange(FRACTIONS) + 0.5) / FRACTIONS - 0.5)[None, :, None]
    edge = np.arange(MORE + 1) + 0.5

    def log_beyond(mean: np.ndarray) -> np.ndarray:
        return -np.logaddexp(0, (edge - mean) / scale)

    up, down = log_beyond(mean), log_beyond(-mean)[..., 0]
    above = 1 / (1 + np.exp(np.minimum(down - up[..., 0], 700)))
    shares = -np.expm1(np.logaddexp(up[..., 0], down)), above, np.exp(np.diff(up, axis=-1))
    return Odds(*(np.clip(np.round(ONE * share), 1, ONE - 1) for share in shares))


def odds_of(means: np.ndarray, log_scales: np.ndarray) -> Odds:
    """Return tables of distributions of their own, (N, 2): fraction 1 is a mean in -1/2..1/2 as it is.

    By decimals, which every machine rounds alike.
    """
    tables = Odds(*(np.empty((len(means), 2, *more)) for more in ((), (), (MORE,))))
    with localcontext(Context(prec=40)):
        half, one = Decimal("0.5"), Decimal(1)
        for i, (mean, log_scale) in enumerate(zip(means.tolist(), log_scales.tolist(), strict=True)):
            scale = Decimal(log_scale).exp()
            for side, center in enumerate((-Decimal(mean), Decimal(mean))):
                beyond = [one / (one + ((k + half - center) / scale).exp()) for k in range(MORE + 1)]
                below = one / (one + ((half + center) / scale).exp())
                shares = [one - beyond[0] - below, beyond[0] / (beyond[0] + below)]
                shares += [after / before for before, after in pairwise(beyond)]
                whole = [min(max(int((ONE * share).to_integral_value()), 1), ONE - 1) for share in shares]
                tables.zero[i, side], tables.above[i, side] = whole[:2]
                tables.more[i, side] = whole[2:]
    return tables


@cache
def _powers() -> np.ndarray:
    """Return (4096,) 2^(i / 4096) in units of 2^-30."""
    return np.round(2.0 ** (30 + np.arange(1 << LOG_BITS) / (1 << LOG_BITS)))


def power_of_two(exponent: np.ndarray, bits: int) -> np.ndarray:
    """Return 2^exponent in units of 2^-bits, for whole exponents in units of 2^-12."""
    whole = np.floor(exponent * 2.0**-LOG_BITS)
    part = _powers()[(exponent - whole * (1 << LOG_BITS)).astype(np.int64)]
    return np.floor(np.ldexp(part, (whole + bits - 30).astype(np.int64)) + 0.5)


# ------------------------------------------------------------------------------- symbols


Place = tuple[slice, slice, np.ndarray]  # rows and columns of a lattice, channels


class Expected(NamedTuple):
    """What the prior says of symbols, (N,) each."""

    rounded: np.ndarray  # float64 whole numbers: the mean
    scale: np.ndarray  # int64, the table's row
    fraction: np.ndarray  # int64, its column
    table: Odds


def expected(mean: np.ndarray, log_scale: np.ndarray) -> Expected:
    """Split means in units of 2^-28 and logarithms of scales in units of 2^-12."""
    shifted = mean * 2.0 ** -(MEAN_BITS + LOG_BITS) + 0.5
    rounded = np.floor(shifted)
    scale = np.floor((log_scale * 2.0**-LOG_BITS - LOWEST) * 8 + 0.5)
    fraction = np.floor((shifted - rounded) * FRACTIONS)
    row = np.clip(scale, 0, SCALES - 1).astype(np.int64)
    rounded = np.clip(rounded, -SYMBOL_MAX, SYMBOL_MAX)  # so that no distance needs a longer escape
    return Expected(rounded, row, fraction.astype(np.int64), odds())


def write_symbols(symbols: np.ndarray, given: Expected, writer: Writer) -> None:
    """Code symbols (N,), whole numbers of at most 32767."""
    distance, table = symbols - given.rounded, given.table
    writer.put_bits(distance == 0, table.zero[given.scale, given.fraction])
    left = np.flatnonzero(distance)
    above, scale, fraction = distance[left] > 0, given.scale[left], given.fraction[left]
    writer.put_bits(above, table.above[scale, fraction])
    fraction, size = _on_its_side(fraction, above, table), np.abs(distance[left])
    for k in range(1, MORE + 1):
        if not len(size):
            return
        is_more = size > k
        writer.put_bits(is_more, table.more[scale, fraction, k - 1])
        size, scale, fraction = size[is_more], scale[is_more], fraction[is_more]
    if len(size):
        _write_far(size.astype(np.int64) - MORE - 1, _golomb(scale), writer)


@cache
def _ideal() -> np.ndarray:
    """Return (160, 64, 16) bits of a distance of 0..15 above the rounded mean."""
    zero, above, more = (table / ONE for table in odds())
    first = -np.log2(1 - zero) - np.log2(above)
    going = np.concatenate([np.zeros((SCALES, FRACTIONS, 1)), -np.log2(more).cumsum(-1)[..., :-1]], -1)
    return np.concatenate([-np.log2(zero)[..., None], first[..., None] + going - np.log2(1 - more)], -1)


def choose(wanted: np.ndarray, given: Expected, weight: float) -> np.ndarray:
    """Return whole numbers (N,) near `wanted` (N,), of the fewest bits + weight * squared error.

    Of the nearest number and the one beside it towards the rounded mean.
    """
    chosen = np.rint(wanted)
    distance = chosen - given.rounded
    some = np.flatnonzero(distance) if weight else np.empty(0, np.int64)
    sign, size = np.sign(distance[some]), np.minimum(np.abs(distance[some]), MORE).astype(np.int64)
    scale, fraction = given.scale[some], _on_its_side(given.fraction[some], sign > 0, given.table)
    saved = _ideal()[scale, fraction, size] - _ideal()[scale, fraction, size - 1]
    error = (wanted[some] - chosen[some]) * sign  # from -1/2 to 1/2; moved: 1 more
    moves = saved > weight * (1 + 2 * error)
    chosen[some[moves]] -= sign[moves]
    return chosen


def read_symbols(given: Expected, reader: Reader) -> np.ndarray:
    """Decode symbols (N,) float64; `CorruptStreamError` for one beyond 32767."""
    table, symbols = given.table, given.rounded.copy()
    left = np.flatnonzero(reader.get_bits(table.zero[given.scale, given.fraction]) == 0)
    scale, fraction = given.scale[left], given.fraction[left]
    above = reader.get_bits(table.above[scale, fraction]) > 0
    sign, fraction = np.where(above, 1.0, -1.0), _on_its_side(fraction, above, table)
    symbols[left] += sign
    for k in range(1, MORE + 1):
        if not len(left):
            break
        more = reader.get_bits(table.more[scale, fraction, k - 1]) > 0
        left, sign, scale, fraction = left[more], sign[more], scale[more], fraction[more]
        symbols[left] += sign
    if len(left):
        symbols[left] += sign * _read_far(_golomb(scale), reader)
    if np.abs(symbols).max(initial=0) > SYMBOL_MAX:
        raise CorruptStreamError("a chunk's symbols lie beyond what an encoder writes")
    return symbols


def _on_its_side(fraction: np.ndarray, above: np.ndarray, table: Odds) -> np.ndarray:
    return np.where(above, fraction, table.zero.shape[1] - 1 - fraction)


def _golomb(scale: np.ndarray) -> np.ndarray:
    """Return the order of the Exp-Golomb code by scale: the whole part of its logarithm, from 0."""
    return np.maximum(np.floor(LOWEST + scale / 8), 0).astype(np.int64)


def _write_far(rest: np.ndarray, order: np.ndarray, writer: Writer) -> None:
    """Code numbers (N,) from 0: how many bits there are beyond `order`, in unary, then the bits."""
    value = rest + (1 << order)
    length = np.frexp(value.astype(np.float64))[1] - 1  # of the bits below the highest
    for extra in range(int((length - order).max()) + 1):
        those = length - order >= extra
        _even(length[those] - order[those] > extra, writer.put_bits)
    for bit in range(int(length.max()) - 1, -1, -1):
        those = length > bit
        _even((value[those] >> bit) & 1, writer.put_bits)


def _read_far(order: np.ndarray, reader: Reader) -> np.ndarray:
    length, going = order.copy(), np.arange(len(order))
    while len(going):
        going = going[reader.get_bits(np.full(len(going), ONE / 2)) > 0]
        length[going] += 1
        if length.max() > 16:
            raise CorruptStreamError("a chunk's symbols lie beyond what an encoder writes")
    value = np.ones(len(order), np.int64)
    for bit in range(int(length.max()) - 1, -1, -1):
        those = np.flatnonzero(length > bit)
        value[those] = 2 * value[those] + reader.get_bits(np.full(len(those), ONE / 2))
    return value - (1 << order)


def _even(bits: np.ndarray, put: Callable[[np.ndarray, np.ndarray], None]) -> None:
    put(bits, np.full(len(bits), ONE / 2))


# ------------------------------------------------------------------------------- networks


class Layer:
    """Products of bounded features with weights, and what is added: an output's in a unit of its own."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, largest: int, factor: np.ndarray | float = 1.0):
        """Round weights (inputs, outputs) of inputs up to `largest` and biases (outputs,), times `factor`.

        Raises:
            DataError: if no unit keeps a sum below 2^24.
        """
        weight, bias = (np.asarray(part, np.float64) * factor for part in (weight, bias))
        fine = np.abs(np.round(weight * 2.0**16)).sum(0) * largest + np.abs(np.round(bias * 2.0**22))
        bits = np.minimum(38 - np.frexp(np.maximum(fine, 1))[1], 14)  # sums of them below 2^22 or so
        self.unit = np.ldexp(1.0, -bits - FEATURE_BITS)
        self.weight, self.bias = np.round(np.ldexp(weight, bits)), np.round(bias / self.unit)
        sums = np.abs(self.weight).sum(0) * largest + np.abs(self.bias) + 1
        if not (sums.max() < EXACT / 2 and bits.min() >= 0):  # nor is NaN
            raise DataError("the prior's weights are too large for exact sums")
        self.shift = np.ldexp(1.0, -bits).astype(np.float32)
        self.weight, self.half = self.weight.astype(np.float32), np.ldexp(0.5, bits)
        self.added = (self.bias + self.half).astype(np.float32)

    def features(
        self, x: np.ndarray, out: np.ndarray | None = None, added: np.ndarray | None = None
    ) -> np.ndarray:
        """Map features (N, inputs) to features (N, outputs), rounded and bounded; all in float32.

        `added` is another bias than the layer's own, within its size.
        """
        x = np.matmul(x, self.weight, out=out)
        x += self.added if added is None else added
        x *= self.shift
        return np.clip(np.floor(x, out=x), 0, LARGEST, out=x)

    def values(self, x: np.ndarray, bits: int) -> np.ndarray:
        """Map features (N, inputs) to float64 whole numbers (N, outputs) in units of 2^-bits."""
        sums = (x @ self.weight).astype(np.float64) + self.bias
        return np.floor(sums * (self.unit * 2.0**bits) + 0.5)


def _taps(tensors: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a convolution (outputs, inputs, k, k) as weights (k k inputs, outputs) and biases."""
    weight = np.asarray(tensors[f"{name}.weight"], np.float64)
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)), np.asarray(tensors[f"{name}.bias"])


def _around(x: np.ndarray) -> np.ndarray:
    """Return the 3 x 3 neighbourhoods (h w, 9 c) of (h, w, c); zeros lie outside."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    (h, w, _), near = x.shape, [(y + 1, x + 1) for y, x in NEAR]
    return np.concatenate([padded[y : y + h, x : x + w] for y, x in near], 2).reshape(h * w, -1)


def _shuffled(x: np.ndarray) -> np.ndarray:
    """Turn (h, w, 4 c) into (2 h, 2 w, c), as torch's pixel_shuffle orders channels."""
    h, w, c = x.shape
    return x.reshape(h, w, c // 4, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, c // 4)


def dial_of(dial: int) -> float:
    """Return what `mcml.model.scalar` calls a dial: 0..1 where it was trained."""
    return (dial - BELOW * ANCHOR_DIALS) / (7 * ANCHOR_DIALS)


class StreamPrior:
    """One stream's prior: `n` channels, `steps`, a hyperprior or none (`hyper`), streams `known` to it."""

    def __init__(self, tensors: Mapping[str, np.ndarray], steps: int, known: Sequence[str] = ()) -> None:
        """Round a `ScalarStream`'s tensors, by their names there.

        Raises:
            DataError: if one is missing, or sums could pass 2^24.
        """
        self.known = tuple(known)
        try:
            self._build(tensors, steps)
        except (KeyError, IndexError, ValueError, OverflowError, ArithmeticError) as error:
            raise DataError(f"the model's prior is not that of a scalar stream ({error!r})") from error

    def _build(self, tensors: Mapping[str, np.ndarray], steps: int) -> None:
        log_gain = np.round(np.asarray(tensors["log_gain"], np.float64) * ((1 << LOG_BITS) / LN_2))
        further = ANCHOR_LOG_GAIN * np.arange(1.0, 4.0)[:, None]
        below, above = log_gain[:1] - further[BELOW - 1 :: -1], log_gain[-1:] + further[:ABOVE]
        self.log_gain, self.n = np.concatenate([below, log_gain, above]), log_gain.shape[1]
        if not np.abs(self.log_gain).max() < 14 << LOG_BITS:
            raise DataError("the model's gains are beyond 2^14")
        self.hyper, self.side = "hyperprior.mean" in tensors, None
        if self.hyper:
            self.expand = Layer(*_taps(tensors, "hyperprior.expand"), 2 * LARGEST)
            self.refine = Layer(*_taps(tensors, "hyperprior.refine"), LARGEST)
            mean, log_scale = (
                np.asarray(tensors[f"hyperprior.{k}"], np.float64) for k in ("mean", "log_scale")
            )
            rounded, channels = np.floor(mean + 0.5), np.arange(len(mean))
            if not np.abs(rounded).max() <= HYPER_MAX:
                raise DataError("the hyperprior's means are beyond its symbols")
            table = odds_of(mean - rounded, np.clip(log_scale, -6, 8))
            self.hyper_expected = Expected(rounded, channels, np.ones_like(channels), table)
        elif "side.weight" in tensors:
            self.side = Layer(*_taps(tensors, "side"), 2 * LARGEST)
        # Columns of a lattice's neighbourhoods in the order in which they become known: what a step sees
        # are the first of them.
        step_of, m = ORDER // (4 // steps), self.n // 4  # (group, lattice)
        self.order = []  # by lattice: (step, tap, group)
        for y, x in LATTICES:
            others = [2 * ((y + dy) % 2) + (x + dx) % 2 for dy, dx in NEAR]
            known = [(int(step_of[g, other]), tap, g) for tap, other in enumerate(others) for g in range(4)]
            self.order.append(sorted(known))
        self.groups_at = [
            [[g for g in range(4) if step_of[g, lattice] == step] for lattice in range(4)]
            for step in range(steps)
        ]
        per_natural = np.ones(2 * self.n)
        per_natural[self.n :] /= LN_2  # networks give natural logarithms of scales
        self.plan = []  # by step: (mix, dial's weights, by lattice (near, last, own channels))
        for step in range(steps):
            weight, bias = _taps(tensors, f"prior.mix.{step}")
            mix = Layer(weight[:-1], np.abs(bias) + np.abs(weight[-1]), LARGEST)  # room for any dial
            dialled = np.round(bias.astype(np.float64) * 2.0**24), np.round(weight[-1] * 2.0**14)
            if step:
                near, near_bias = _taps(tensors, f"prior.near.{step - 1}")
            last, last_bias = _taps(tensors, f"prior.last.{step}")
            row = []
            for lattice, order in enumerate(self.order):
                rows = [tap * self.n + g * m + np.arange(m) for s, tap, g in order if s < step]
                own = np.concatenate([g * m + np.arange(m) for g in self.groups_at[step][lattice]])
                both = np.concatenate([own, own + self.n])
                seen = Layer(near[np.concatenate(rows)], near_bias, 2 * LARGEST) if step else None
                row.append((seen, Layer(last[:, both], last_bias[both], LARGEST, per_natural[both]), own))
            self.plan.append((mix, dialled, row))

    def log_gains(self, dial: int) -> np.ndarray:
        """Return (n,) logarithms, base 2, of the gains of a dial in 0..12288, in units of 2^-12."""
        anchor = min(dial // ANCHOR_DIALS, len(self.log_gain) - 2)
        part = dial - ANCHOR_DIALS * anchor
        low, high = self.log_gain[anchor], self.log_gain[anchor + 1]
        return np.floor((low * (ANCHOR_DIALS - part) + high * part) / ANCHOR_DIALS + 0.5)

    def inverse(self, dial: int) -> np.ndarray:
        """Return (n,) 1 / gain in units of 2^-20."""
        return power_of_two(-self.log_gains(dial), INVERSE_BITS)

    def latents(self, symbols: np.ndarray, dial: int) -> np.ndarray:
        """Return what symbols (..., n) stand for, float32, for a decoder's networks."""
        return (symbols * (self.inverse(dial) * 2.0**-INVERSE_BITS)).astype(np.float32)

    def inputs(self, symbols: np.ndarray, dial: int) -> np.ndarray:
        """Return the same in units of 2^-6, within 32: whole numbers for other streams' side features."""
        return _as_inputs(symbols, self.inverse(dial))

    def hyper_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return rows, columns and channels of the hyperprior's symbols for so many positions."""
        return -(-height // 4), -(-width // 4), len(self.hyper_expected.scale)

    def hyper_given(self, height: int, width: int) -> Expected:
        """Return what is expected of them, row by row."""
        rows, columns, _ = self.hyper_shape(height, width)
        *parts, table = self.hyper_expected
        return Expected(*(np.tile(part, rows * columns) for part in parts), table)

    def features(
        self, height: int, width: int, hyper: np.ndarray | None, known: Sequence[np.ndarray]
    ) -> np.ndarray | None:
        """Return side features (h, w, width), from the hyperprior's symbols or earlier streams' `inputs`."""
        if self.hyper:
            rows, columns, _ = hyper.shape
            x = hyper * np.float32(1 << FEATURE_BITS)
            x = _shuffled(self.expand.features(_around(x)).reshape(rows, columns, -1))
            x = self.refine.features(x.reshape(4 * rows * columns, -1)).reshape(2 * rows, 2 * columns, -1)
            return _shuffled(x)[:height, :width]
        if self.side is None:
            return None
        return self.side.features(_around(np.concatenate(known, 2))).reshape(height, width, -1)

    def passes(
        self, height: int, width: int, dial: int, side: np.ndarray | None
    ) -> Iterator[tuple[Expected, list[Place], Callable[[np.ndarray], None]]]:
        """Yield each step: what is expected of its symbols, where they are, and what takes them.

        Symbols are in one row (N,): lattice by lattice, position by position, channel by channel.
        """
        log_gain, inverse = self.log_gains(dial), self.inverse(dial)
        gain = power_of_two(log_gain, LOG_BITS)
        places = [(slice(y, height, 2), slice(x, width, 2)) for y, x in LATTICES]
        shapes = [(len(range(y, height, 2)), len(range(x, width, 2))) for y, x in LATTICES]
        around = [np.zeros((*shape, 9 * self.n), np.float32) for shape in shapes]
        width_near = self.plan[0][0].weight.shape[1] // 2  # features of a neighbourhood
        seen = [
            np.empty((len(x) * x.shape[1], width_near + (0 if side is None else side.shape[2])), np.float32)
            for x in around
        ]
        for place, features in zip(places, seen, strict=True):
            if side is not None:
                features[:, width_near:] = side[place].reshape(len(features), side.shape[2])
        known = float(min(max(dial - BELOW * ANCHOR_DIALS, 0) // 7, 1 << DIAL_BITS))
        for step, (mix, (bias, weight), row) in enumerate(self.plan):
            added = np.floor((bias + weight * known) * (2.0**-24 / mix.unit) + 0.5) + mix.half
            added = added.astype(np.float32)
            means, scales = [], []
            for (near, last, own), x, features in zip(row, around, seen, strict=True):
                if step:
                    near.features(x.reshape(-1, 9 * self.n)[:, : len(near.weight)], features[:, :width_near])
                found = last.values(
                    mix.features(features if step else features[:, width_near:], None, added), MEAN_BITS
                )
                most = 2 * LARGEST << MEAN_BITS - FEATURE_BITS
                means.append((np.clip(found[:, : len(own)], -most, most) * gain[own]).ravel())
                scale = np.floor(found[:, len(own) :] * 2.0 ** (LOG_BITS - MEAN_BITS) + 0.5)
                scales.append((scale + log_gain[own]).ravel())
            where = [(*place, own) for place, (*_, own) in zip(places, row, strict=True)]

            def take(symbols: np.ndarray, step: int = step, where: list[Place] = where) -> None:
                if step + 1 == len(self.plan):
                    return  # nobody looks
                parts, begin = [], 0
                for shape, (_, _, own) in zip(shapes, where, strict=True):
                    end = begin + shape[0] * shape[1] * len(own)
                    parts.append(_as_inputs(symbols[begin:end].reshape(*shape, len(own)), inverse[own]))
                    begin = end
                self._spread(step, parts, around)

            yield expected(np.concatenate(means), np.concatenate(scales)), where, take

    def _spread(self, step: int, parts: Sequence[np.ndarray], around: Sequence[np.ndarray]) -> None:
        """Write what a step coded, by lattice, to where neighbours see it."""
        m = self.n // 4
        for (y, x), order, seen in zip(LATTICES, self.order, around, strict=True):
            for column, (coded, tap, group) in enumerate(order):
                if coded != step:
                    continue
                dy, dx = y + NEAR[tap][0], x + NEAR[tap][1]
                lattice = 2 * (dy % 2) + dx % 2
                rows, columns = dy // 2, dx // 2  # of its grid to this one's: -1, 0 or 1
                place = self.groups_at[step][lattice].index(group) * m
                part = parts[lattice][max(rows, 0) :, max(columns, 0) :, place : place + m]
                target = seen[max(-rows, 0) :, max(-columns, 0) :, column * m : column * m + m]
                height, width = min(len(part), len(target)), min(part.shape[1], target.shape[1])
                target[:height, :width] = part[:height, :width]


def _as_inputs(symbols: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    scaled = np.floor(symbols * inverse * 2.0 ** (FEATURE_BITS - INVERSE_BITS) + 0.5)
    return np.clip(scaled, -2 * LARGEST, 2 * LARGEST).astype(np.float32)
