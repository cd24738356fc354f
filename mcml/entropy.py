"""Lossless coding of bits and importance levels: integer context models and a range coder.

Whatever decides a probability is integer arithmetic: whole numbers in float64, whose sums stay
below 2^53 and are therefore exact in whatever order a machine adds. No exp and no division; the
last number indexes a table of probabilities that is part of the model. Source: Balle, Johnston and
Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from constriction import stream as constriction

from mcml.coding_order import (
    KNOWN,
    LATTICES,
    ONE,
    REACH,
    SCALE_BITS,
    STEP_BITS,
    TAPS,
    level_context,
    level_passes,
)  # fmt: skip
from mcml.config import CorruptStreamError, DataError

BIT = constriction.model.Bernoulli(perfect=False)
LEVEL = constriction.model.Categorical(perfect=False)
EXACT = 2.0**53  # whole numbers below it are exact in float64


class Writer:
    """Collects symbols with their probabilities, then codes them all."""

    def __init__(self) -> None:
        self.encoder = constriction.queue.RangeEncoder()
        self.bits = 0.0  # ideal length so far

    def put_bits(self, bits: np.ndarray, ones: np.ndarray) -> None:
        """Code bits (N,) in {0, 1} with probabilities of a one (N,) in 1 / 65536."""
        if len(bits):
            self.encoder.encode(bits.astype(np.int32), BIT, ones / ONE)
            self.bits -= float(np.log2(np.where(bits, ones, ONE - ones) / ONE).sum())

    def put_levels(self, levels: np.ndarray, shares: np.ndarray) -> None:
        """Code levels (N,) with shares (N, L) of 65536."""
        if len(levels):
            self.encoder.encode(levels.astype(np.int32), LEVEL, shares / ONE)
            self.bits -= float(np.log2(np.take_along_axis(shares, levels[:, None], 1) / ONE).sum())

    def finish(self) -> bytes:
        """Return the coded symbols, without trailing zero bytes (a reader puts them back)."""
        words = self.encoder.get_compressed().astype("<u4")
        return words.tobytes().rstrip(b"\0")


class Reader:
    """Gives back what a `Writer` coded, asked with the same probabilities in the same order."""

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise CorruptStreamError("a chunk ends in zero bytes, which no encoder writes")
        words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
        self.decoder = constriction.queue.RangeDecoder(words)

    def _get(self, family: object, parameters: np.ndarray) -> np.ndarray:
        try:
            return self.decoder.decode(family, parameters)
        except AssertionError as error:  # the library's word for data that no encoder can have written
            raise CorruptStreamError("a chunk's symbols cannot be decoded") from error

    def get_bits(self, ones: np.ndarray) -> np.ndarray:
        """Return bits (N,) int32."""
        return self._get(BIT, ones / ONE) if len(ones) else np.zeros(0, np.int32)

    def get_levels(self, shares: np.ndarray) -> np.ndarray:
        """Return levels (N,) int32."""
        return self._get(LEVEL, shares / ONE) if len(shares) else np.zeros(0, np.int32)

    def finish(self) -> None:
        """Raise `CorruptStreamError` if symbols are left."""
        if not self.decoder.maybe_exhausted():
            raise CorruptStreamError("a chunk is longer than its symbols")


@dataclass
class BitState:
    """A stream's bits in the course of coding.

    Attributes:
        code: (h, w, n) float64 masked bits in {-1, 0, +1}; 0 where not coded yet.
        hidden: (h, w, H) float64 whole numbers, the state in units of 2^-10.
        group: how many groups were coded.
    """

    code: np.ndarray
    hidden: np.ndarray
    group: int = 0
    inherited: np.ndarray | None = None  # the part of `hidden` that comes from other streams
    costs: list[float] = field(default_factory=list)  # ideal bits of each group, when writing


class BitCoder:
    """One stream's integer context model."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Check and take a model's integers.

        Raises:
            DataError: if a tensor is missing or misshapen, or sums could pass 2^53.
        """
        try:
            wide = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
            self.sizes = [int(size) for size in tensors["group_sizes"]]
            self.gather, self.level_gather = wide["gather"], wide["level_gather"]
            self.state_bias, self.group_bias = wide["state_bias"], wide["group_bias"]
            self.readout = wide["readout"]
            self.before, self.bias = wide["before"] * 2.0**SCALE_BITS, wide["bias"]
            self.table = np.asarray(tensors["table"], np.float64)
            inherited = sorted(name for name in tensors if name.startswith("inherit_"))
            self.inherit = [wide[name] for name in inherited]
        except KeyError as error:
            raise DataError(f"entropy model: lacks {error}") from error
        self.n, self.size = sum(self.sizes), len(self.state_bias)
        taps, n, size = len(TAPS), self.n, self.size
        expected = [
            (self.gather, (taps, n, size)), (self.level_gather, (taps, size)),
            (self.group_bias, (len(self.sizes), size)), (self.readout, (n, 2 * size)),
            (self.before, (n, n)), (self.bias, (n,)), (self.table, (2 * (REACH << STEP_BITS) + 1,)),
        ]  # fmt: skip
        for value, shape in expected:
            if value.shape != shape:
                raise DataError(f"entropy model: a tensor is {value.shape}, expected {shape}")
        if any(w.ndim != 2 or w.shape[1] != size for w in self.inherit):
            raise DataError("entropy model: inherited weights of another size")
        if not ((self.table >= 1) & (self.table < ONE)).all():
            raise DataError("entropy model: probabilities must lie between 1 and 65535")
        self._check_exact()
        ends = np.cumsum(self.sizes)
        self.spans = [slice(int(e) - s, int(e)) for e, s in zip(ends, self.sizes, strict=True)]

    def _check_exact(self) -> None:
        """Bound every sum by weights alone; states of other streams are capped at 2^24."""
        state = np.abs(self.gather).sum(axis=(0, 1)) + 1024 * np.abs(self.level_gather).sum(axis=0)
        state = state + np.abs(self.state_bias) + np.abs(self.group_bias).max(axis=0)
        for weight in self.inherit:
            state = state + 2.0**24 * np.abs(weight).sum(axis=0)
        wide = np.concatenate([state, state])
        total = (
            (np.abs(self.readout) * wide).sum(axis=1) + np.abs(self.before).sum(axis=1) + np.abs(self.bias)
        )
        if max(total.max(), state.max()) >= EXACT:
            raise DataError("entropy model: its weights are too large for exact sums")

    def begin(
        self, height: int, width: int, level_field: np.ndarray | None, states: Sequence[BitState]
    ) -> BitState:
        """Return the state before the first bit.

        Args:
            height: positions.
            width: positions.
            level_field: (h, w) 2 Q - (L - 1) of an adaptive map, None for a flat one.
            states: of the streams that were coded before.
        """
        hidden = np.broadcast_to(self.state_bias, (height, width, self.size)).copy()
        if level_field is not None:
            around = np.pad(level_field.astype(np.float64), 1)
            near = np.stack([_window(around, tap, height, width) for tap in TAPS], axis=-1)
            hidden += np.floor(near @ self.level_gather / 8)
        state = BitState(np.zeros((height, width, self.n)), hidden)
        self.refresh(state, states)
        return state

    def refresh(self, state: BitState, states: Sequence[BitState]) -> None:
        """Take over what the streams that were coded before say now."""
        found = np.zeros_like(state.hidden)
        for weight, other in zip(self.inherit, states, strict=True):
            found += np.floor(np.clip(other.hidden, 0, 2**24) @ weight * 2.0**-SCALE_BITS)
        state.hidden += found if state.inherited is None else found - state.inherited
        state.inherited = found

    def write(self, state: BitState, bits: np.ndarray, opened: np.ndarray, upto: int, writer: Writer) -> None:
        """Code groups state.group + 1 .. upto of bits (h, w, n); a position has its first `opened` groups."""
        whole = 2.0 * bits - 1
        for group in range(state.group, upto):
            span, before = self.spans[group], writer.bits
            code = whole[:, :, span] * (opened > group)[:, :, None]
            padded = np.pad(code, ((1, 1), (1, 1), (0, 0)))
            inside = np.tril(self.before[span, span]).T
            for lattice in range(len(LATTICES)):
                logits, open_ = self._logits(state, group, padded, lattice, opened)
                own = _lattice(code, lattice).reshape(-1, code.shape[-1])[open_]
                ones = self._ones(logits + own @ inside)
                writer.put_bits((own.T > 0).ravel(), ones.T.ravel())
            self._advance(state, group, padded)
            state.costs.append(writer.bits - before)

    def read(self, state: BitState, opened: np.ndarray, upto: int, reader: Reader) -> None:
        """Decode groups state.group + 1 .. upto into the state."""
        height, width = opened.shape
        for group in range(state.group, upto):
            span = self.spans[group]
            size = span.stop - span.start
            padded = np.zeros((height + 2, width + 2, size))
            within = self.before[span, span]
            for lattice, (row, column) in enumerate(LATTICES):
                logits, open_ = self._logits(state, group, padded, lattice, opened)
                own = np.zeros((size, len(logits)))
                logits = np.ascontiguousarray(logits.T)
                for k in range(size):
                    own[k] = 2.0 * reader.get_bits(self._ones(logits[k])) - 1
                    if k + 1 < size:
                        logits[k + 1 :] += within[k + 1 :, k, None] * own[k]
                place = padded[1 + row : 1 + height : 2, 1 + column : 1 + width : 2]
                flat = np.zeros((place.shape[0] * place.shape[1], size))
                flat[open_] = own.T
                place[:] = flat.reshape(place.shape)
            self._advance(state, group, padded)

    def _logits(
        self, state: BitState, group: int, padded: np.ndarray, lattice: int, opened: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return log-odds (N, size) in 2^-20 without the group's own bits, and which positions are open."""
        span = self.spans[group]
        open_ = (_lattice(opened, lattice) > group).ravel()
        seen = _lattice(state.hidden, lattice).reshape(-1, self.size)[open_]
        earlier = _lattice(state.code, lattice).reshape(-1, self.n)[open_, : span.start]
        taps = range(len(TAPS))[KNOWN[lattice]]
        if taps:
            row, column = LATTICES[lattice]
            height, width = opened.shape
            near = [
                padded[1 + row + dy : 1 + dy + height : 2, 1 + column + dx : 1 + dx + width : 2].reshape(
                    -1, padded.shape[-1]
                )[open_]
                for dy, dx in (TAPS[t] for t in taps)
            ]
            weight = self.gather[KNOWN[lattice], span]
            seen = seen + np.concatenate(near, axis=1) @ weight.reshape(-1, self.size)
        features = np.concatenate([seen, np.maximum(seen + self.group_bias[group], 0)], axis=1)
        logits = features @ self.readout[span].T + self.bias[span]
        return logits + earlier @ self.before[span, : span.start].T, open_

    def _ones(self, logits: np.ndarray) -> np.ndarray:
        index = np.floor(logits * 2.0 ** (STEP_BITS - 2 * SCALE_BITS))
        reach = REACH << STEP_BITS
        return self.table[(np.clip(index, -reach, reach) + reach).astype(np.int64)]

    def _advance(self, state: BitState, group: int, padded: np.ndarray) -> None:
        """Put a finished group into the state."""
        span = self.spans[group]
        height, width = state.code.shape[:2]
        near = np.concatenate([_window(padded, tap, height, width) for tap in TAPS], axis=-1)
        state.hidden += near @ self.gather[:, span].reshape(-1, self.size)
        state.code[:, :, span] = padded[1:-1, 1:-1]
        state.group = group + 1


def _window(padded: np.ndarray, tap: tuple[int, int], height: int, width: int) -> np.ndarray:
    return padded[1 + tap[0] : 1 + tap[0] + height, 1 + tap[1] : 1 + tap[1] + width]


def _lattice(values: np.ndarray, lattice: int) -> np.ndarray:
    row, column = LATTICES[lattice]
    return values[row::2, column::2]


# -------------------------------------------------------------------------- importance map


def write_levels(levels: np.ndarray, tables: np.ndarray, middle: int, writer: Writer) -> None:
    """Code a map (h, w); `middle` predicts its anchors. `tables`: (P, S, L, L) uint16."""
    count = tables.shape[-1]
    for number, rows, columns, near in level_passes(*levels.shape):
        shares = _shares(levels, tables, middle, number, rows, near, count)
        writer.put_levels(levels[rows, columns], shares)


def read_levels(height: int, width: int, tables: np.ndarray, middle: int, reader: Reader) -> np.ndarray:
    """Decode a map (h, w) int64."""
    count = tables.shape[-1]
    levels = np.zeros((height, width), np.int64)
    for number, rows, columns, near in level_passes(height, width):
        levels[rows, columns] = reader.get_levels(_shares(levels, tables, middle, number, rows, near, count))
    return levels


def _shares(levels, tables, middle, number, rows, near, count) -> np.ndarray:
    if near:
        predicted, spread = level_context(np.stack([levels[pair] for pair in near]), count)
    else:
        predicted, spread = np.full(len(rows), middle), np.zeros(len(rows), np.int64)
    return tables[number, spread, predicted].astype(np.float64)
