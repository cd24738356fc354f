"""Lossless coding: bits and importance levels by integer context models, and the range coder below them.

Whatever decides a probability is integer arithmetic: whole numbers in float64, whose sums stay
below 2^53 and are therefore exact in whatever order a machine adds. No exp and no division; the
last number indexes a table of probabilities that is part of the model. Source: Balle, Johnston and
Minnen, "Integer networks for data compression with latent-variable models", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from constriction import stream as constriction

from mcml.base.errors import CorruptStreamError, DataError
from mcml.codec import order
from mcml.codec.order import KNOWN, LATTICES, ONE, REACH, REST, SCALE_BITS, STEP_BITS, TAPS

STATE_CAP = 2.0**24  # of an inherited state
EXACT = 2.0**53  # whole numbers below it are exact in float64
BIT = constriction.model.Bernoulli(perfect=False)
LEVEL = constriction.model.Categorical(perfect=False)


class Writer:
    """Collects symbols with their probabilities, then codes them all."""

    def __init__(self) -> None:
        self.encoder = constriction.queue.RangeEncoder()
        self.bits = 0.0  # ideal length so far

    def put_bits(self, bits: np.ndarray, ones: np.ndarray) -> None:
        """Code bits (N,) in {0, 1} with probabilities of a one (N,) in 1 / 65536."""
        self.encoder.encode(bits.astype(np.int32), BIT, ones / ONE)
        self.bits -= float(np.log2(np.where(bits, ones, ONE - ones) / ONE).sum())

    def put_levels(self, levels: np.ndarray, shares: np.ndarray) -> None:
        """Code levels (N,) with shares (N, L) of 65536."""
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
        return self._get(BIT, ones / ONE)

    def get_levels(self, shares: np.ndarray) -> np.ndarray:
        """Return levels (N,) int32."""
        return self._get(LEVEL, shares / ONE)

    def finish(self) -> None:
        """Raise `CorruptStreamError` if symbols are left."""
        if not self.decoder.maybe_exhausted():
            raise CorruptStreamError("a chunk is longer than its symbols")


# ----------------------------------------------------------------------- bits of the code


@dataclass
class BitState:
    """A stream's bits in the course of coding, by lattice: position (r, c) is in that of its parities.

    Attributes:
        height: positions.
        width: positions.
        codes: (N, n) float64 each, masked bits in {-1, 0, +1}; 0 where not coded yet.
        hidden: (N, H) float64 whole numbers each, the state in units of 2^-10.
        inherited: the part of `hidden` that comes from other streams.
        group: how many groups were coded.
    """

    height: int
    width: int
    codes: list[np.ndarray]
    hidden: list[np.ndarray]
    inherited: list[np.ndarray]
    group: int = 0

    def code(self) -> np.ndarray:
        """Return all masked bits in place, (h, w, n) int8."""
        whole = np.zeros((self.height, self.width, self.codes[0].shape[1]), np.int8)
        for lattice, part in enumerate(self.codes):
            place = _lattice(whole, lattice)
            place[:] = part.reshape(place.shape)
        return whole

    def packed(self) -> np.ndarray:
        """Return the ones in place, (h, w, n / 8) uint8, the first bit highest."""
        return np.packbits(self.code() > 0, axis=-1)


class BitCoder:
    """One stream's integer context model."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Check and take a model's integers.

        Raises:
            DataError: if a tensor is missing or misshapen, or sums could pass 2^53.
        """
        if any(np.asarray(value).dtype.kind not in "iu" for value in tensors.values()):
            raise DataError("entropy model: its tensors must be of whole numbers")
        wide = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
        try:
            self.sizes = [int(size) for size in tensors["group_sizes"]]
            self.n, self.size = n, size = sum(self.sizes), len(tensors["state_bias"])
            taps = len(TAPS)
            shapes = {
                "gather": (taps, n, size), "level_gather": (taps, size), "state_bias": (size,),
                "group_bias": (len(self.sizes), size), "readout": (n, 2 * size), "before": (n, n),
                "bias": (n,), "table": (2 * (REACH << STEP_BITS) + 1,),
            }  # fmt: skip
            for name, shape in shapes.items():
                if wide[name].shape != shape:
                    raise DataError(f"entropy model: a tensor is {wide[name].shape}, expected {shape}")
        except KeyError as error:
            raise DataError(f"entropy model: lacks {error}") from error
        self.level_gather, self.state_bias = wide["level_gather"], wide["state_bias"]
        self.group_bias, self.readout, self.bias = wide["group_bias"], wide["readout"], wide["bias"]
        self.before, self.table = wide["before"] * 2.0**SCALE_BITS, wide["table"]
        self.inherit = [wide[name] for name in sorted(wide) if name.startswith("inherit_")]
        if any(w.ndim != 2 or w.shape[1] != size for w in self.inherit):
            raise DataError("entropy model: inherited weights of another size")
        if not ((self.table >= 1) & (self.table < ONE)).all():
            raise DataError("entropy model: probabilities must lie between 1 and 65535")
        self._check_exact(wide["gather"])
        ends = np.cumsum(self.sizes)
        self.spans = [slice(int(e) - s, int(e)) for e, s in zip(ends, self.sizes, strict=True)]
        self.known, self.rest = (  # by lattice and group
            [[wide["gather"][list(taps), span].reshape(-1, size) for span in self.spans] for taps in lattices]
            for lattices in (KNOWN, REST)
        )

    def _check_exact(self, gather: np.ndarray) -> None:
        """Bound every sum by weights alone; states of other streams are capped at 2^24."""
        state = np.abs(gather).sum(axis=(0, 1)) + 1024 * np.abs(self.level_gather).sum(axis=0)
        state += np.abs(self.state_bias) + np.abs(self.group_bias).max(axis=0)
        products = [STATE_CAP * np.abs(weight).sum(axis=0) for weight in self.inherit]
        for product in products:
            state += product * 2.0**-SCALE_BITS + 1
        total = np.abs(self.readout) @ np.tile(state, 2) + np.abs(self.before).sum(axis=1) + np.abs(self.bias)
        if max(np.max(sums, initial=0) for sums in (*products, state, total)) >= EXACT:
            raise DataError("entropy model: its weights are too large for exact sums")

    def begin(
        self, height: int, width: int, level_field: np.ndarray | None, states: Sequence[BitState]
    ) -> BitState:
        """Return the state before the first bit.

        Args:
            height: positions.
            width: positions.
            level_field: (h, w) 2 Q - (L - 1) of an adaptive map, None for a uniform one.
            states: of the streams that were coded before.
        """
        hidden = np.broadcast_to(self.state_bias, (height, width, self.size)).copy()
        if level_field is not None:
            around = np.pad(level_field.astype(np.float64), 1)
            near = np.stack([around[1 + y :, 1 + x :][:height, :width] for y, x in TAPS], axis=-1)
            hidden += np.floor(near @ self.level_gather / 8)
        parts = [_lattice(hidden, q).reshape(-1, self.size) for q in range(len(LATTICES))]
        codes = [np.zeros((len(part), self.n)) for part in parts]
        zeros = [np.zeros_like(part) for part in parts]
        state = BitState(height, width, codes, [np.ascontiguousarray(part) for part in parts], zeros)
        self.refresh(state, states)
        return state

    def refresh(self, state: BitState, states: Sequence[BitState]) -> None:
        """Take over what the streams that were coded before say now."""
        for lattice, hidden in enumerate(state.hidden):
            inherited = np.zeros_like(hidden)
            for weight, other in zip(self.inherit, states, strict=True):
                seen = np.clip(other.hidden[lattice], 0, STATE_CAP)
                inherited += np.floor(seen @ weight * 2.0**-SCALE_BITS)
            hidden += inherited - state.inherited[lattice]
            state.inherited[lattice] = inherited

    def write(self, state: BitState, bits: np.ndarray, opened: np.ndarray, upto: int, writer: Writer) -> None:
        """Code groups state.group + 1 .. upto of bits (h, w, n); a position has its first `opened` groups."""

        def put(logits: np.ndarray, span: slice, lattice: int, open_: np.ndarray) -> np.ndarray:
            own = 2.0 * _lattice(bits[:, :, span], lattice)[open_] - 1
            ones = self._ones(logits + own @ np.tril(self.before[span, span], -1).T)
            writer.put_bits((own.T > 0).ravel(), ones.T.ravel())
            return own

        self._code(state, opened, upto, put)

    def read(self, state: BitState, opened: np.ndarray, upto: int, reader: Reader) -> None:
        """Decode groups state.group + 1 .. upto into the state."""

        def get(logits: np.ndarray, span: slice, lattice: int, open_: np.ndarray) -> np.ndarray:
            own, logits = np.zeros(logits.shape[::-1]), np.ascontiguousarray(logits.T)
            within = self.before[span, span]
            for k in range(len(own)):
                own[k] = 2.0 * reader.get_bits(self._ones(logits[k])) - 1
                logits[k + 1 :] += within[k + 1 :, k, None] * own[k]
            return own.T

        self._code(state, opened, upto, get)

    def _code(self, state: BitState, opened: np.ndarray, upto: int, code: Callable[..., np.ndarray]) -> None:
        """Go through groups and lattices in their order.

        `code` takes log-odds (N, size) in 2^-20 without the group's own bits, the group's channels, the
        lattice and which of its positions (h', w') are open, and gives these bits (N, size) in {-1, +1}.
        """
        height, width = opened.shape
        for group in range(state.group, upto):
            span = self.spans[group]
            weight, padded = self.readout[span], np.zeros((height + 2, width + 2, span.stop - span.start))
            partials: list[np.ndarray | float] = []  # what the known neighbours add to the state
            for lattice, hidden in enumerate(state.hidden):
                near = _near(padded, KNOWN[lattice], lattice) @ self.known[lattice][group] if lattice else 0.0
                partials.append(near)
                open_ = _lattice(opened, lattice) > group
                which = slice(None) if open_.all() else open_.ravel()
                seen = (hidden + near)[which]
                logits = seen @ weight[:, : self.size].T + self.bias[span]
                logits += np.maximum(seen + self.group_bias[group], 0) @ weight[:, self.size :].T
                logits += state.codes[lattice][which, : span.start] @ self.before[span, : span.start].T
                _lattice(padded[1:-1, 1:-1], lattice)[open_] = code(logits, span, lattice, open_)
            for lattice, hidden in enumerate(state.hidden):
                hidden += (
                    partials[lattice] + _near(padded, REST[lattice], lattice) @ self.rest[lattice][group]
                )
                own = _lattice(padded[1:-1, 1:-1], lattice)
                state.codes[lattice][:, span] = own.reshape(-1, own.shape[-1])
            state.group = group + 1

    def _ones(self, logits: np.ndarray) -> np.ndarray:
        index = np.floor(logits * 2.0 ** (STEP_BITS - 2 * SCALE_BITS))
        reach = REACH << STEP_BITS
        return self.table[(np.clip(index, -reach, reach) + reach).astype(np.int64)]


def _lattice(values: np.ndarray, lattice: int) -> np.ndarray:
    row, column = LATTICES[lattice]
    return values[row::2, column::2]


def _near(padded: np.ndarray, taps: Sequence[int], lattice: int) -> np.ndarray:
    """Return (N, taps x size): a group's bits around each position of a lattice."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    around = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in (TAPS[t] for t in taps)]
    near = np.concatenate([_lattice(part, lattice) for part in around], axis=2)
    return near.reshape(-1, near.shape[2])


# -------------------------------------------------------------------------- importance map


def write_levels(levels: np.ndarray, tables: np.ndarray, middle: int, writer: Writer) -> None:
    """Code a map (h, w); `middle` predicts its anchors. `tables`: (P, S, L, L) uint16."""
    for number, rows, columns, near in order.level_passes(*levels.shape):
        shares = tables[number][order.level_context(levels, middle, rows, near)]
        writer.put_levels(levels[rows, columns], shares.astype(np.float64))


def read_levels(height: int, width: int, tables: np.ndarray, middle: int, reader: Reader) -> np.ndarray:
    """Decode a map (h, w) int64."""
    levels = np.zeros((height, width), np.int64)
    for number, rows, columns, near in order.level_passes(height, width):
        shares = tables[number][order.level_context(levels, middle, rows, near)]
        levels[rows, columns] = reader.get_levels(shares.astype(np.float64))
    return levels
