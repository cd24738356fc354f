"""The range coder: symbols with their probabilities to bytes and back, by `constriction`."""

from __future__ import annotations

import numpy as np
from constriction import stream as constriction

from mcml.base.errors import CorruptStreamError
from mcml.codec.order import ONE

BIT = constriction.model.Bernoulli(perfect=False)
LEVEL = constriction.model.Categorical(perfect=False)


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
