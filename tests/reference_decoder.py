"""A decoder of version 2's integers from docs/FORMAT.md alone: slow, in whole numbers, without `mcml.codec`.

Section numbers are that page's.
"""

import hashlib
import struct
import zlib
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from constriction import stream

BERNOULLI = stream.model.Bernoulli(perfect=False)
ORDER = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1))
OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def split(data):
    """Return width, height, tile's side, dials, digest, and chunks by stream and tile (1, 2)."""
    magic, version, flags, width, height, _ = struct.unpack_from("<4sBBHH8s", data)
    assert (magic, version, flags & 0xD8) == (b"MCML", 2, 0)
    streams, side = 3 if flags & 0x20 else 1, 64 << (flags & 7)
    dials, end = struct.unpack_from(f"<{streams}H", data, 18), 18 + 2 * streams + 4
    digest, checked, chunks, tiles = (
        data[end - 4 : end],
        data[:end],
        [],
        -(-width // side) * -(-height // side),
    )
    for _ in range(streams * tiles):
        length, begin, shift = 0, end, 0
        while True:
            byte, begin = data[begin], begin + 1
            length, shift = length | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        checked += data[end : begin + length]
        chunks.append(data[begin : begin + length])
        end = begin + length + 4
        assert struct.unpack_from("<I", data, end - 4)[0] == zlib.crc32(checked)
    assert end == len(data)
    return width, height, side, dials, digest, [chunks[i * tiles : (i + 1) * tiles] for i in range(streams)]


class Bits:
    """The range decoder (3)."""

    def __init__(self, chunk):
        words = np.frombuffer(chunk + bytes(-len(chunk) % 4), "<u4").astype(np.uint32)
        self.decoder = stream.queue.RangeDecoder(words)

    def read(self, shares):
        """Return a bit for each of the probabilities in 1/65536."""
        return self.decoder.decode(BERNOULLI, np.array(shares, np.float64) / 65536).tolist() if shares else []


@cache
def shares(mean, scale):
    """Return the questions' probabilities (5.4): zero, above, and fifteen of one more above."""
    with localcontext(prec=40):
        half, one = Decimal("0.5"), Decimal(1)
        up = [one / (one + ((k + half - mean) / scale).exp()) for k in range(16)]
        down = one / (one + ((half + mean) / scale).exp())
        exact = [one - up[0] - down, up[0] / (up[0] + down), *(up[k] / up[k - 1] for k in range(1, 16))]
        zero, above, *more = (min(max(round(65536 * share), 1), 65535) for share in exact)
    return zero, above, more


def read_symbols(expected, bits):
    """Return a symbol for each (rounded mean, rest of the mean, scale, order of the escape) (5.4)."""
    found = [r for r, *_ in expected]
    unequal = bits.read([shares(mean, scale)[0] for _, mean, scale, _ in expected])
    left = [i for i, zero in enumerate(unequal) if not zero]
    above = dict(zip(left, bits.read([shares(*expected[i][1:3])[1] for i in left]), strict=True))
    sides = {i: (shares(m if above[i] else -m, s)[2], 1 if above[i] else -1)
             for i, (_, m, s, _) in enumerate(expected) if i in above}  # fmt: skip
    size = dict.fromkeys(left, 1)
    for k in range(15):
        left = [i for i, more in zip(left, bits.read([sides[i][0][k] for i in left]), strict=True) if more]
        size |= {i: size[i] + 1 for i in left}
    length, going = {i: expected[i][3] for i in left}, left
    while going:
        going = [i for i, more in zip(going, bits.read([32768] * len(going)), strict=True) if more]
        length |= {i: length[i] + 1 for i in going}
    value = dict.fromkeys(left, 1)
    for bit in range(max(length.values(), default=0) - 1, -1, -1):
        those = [i for i in left if length[i] > bit]
        value |= {i: 2 * value[i] + b for i, b in zip(those, bits.read([32768] * len(those)), strict=True)}
    for i in left:
        size[i] += value[i] - (1 << expected[i][3])
    for i, count in size.items():
        found[i] += sides[i][1] * count
    return found


class Layer:
    """Whole weights (outputs, inputs) in each output's own unit (5.2)."""

    def __init__(self, weight, bias, largest, factor=1.0):
        weight, bias = np.asarray(weight, np.float64) * factor, np.asarray(bias, np.float64) * factor
        fine = largest * np.abs(np.rint(weight * 2.0**16)).sum(1) + np.abs(np.rint(bias * 2.0**22))
        self.bits = [min(38 - max(int(f), 1).bit_length(), 14) for f in fine]
        self.weight = np.array(
            [np.rint(w * 2.0**b) for w, b in zip(weight, self.bits, strict=True)], np.int64
        )
        self.bias = [int(np.rint(v * 2.0 ** (b + 6))) for v, b in zip(bias, self.bits, strict=True)]

    def features(self, x, bias=None):
        """Return features for inputs, a list of whole numbers."""
        sums = zip((self.weight @ np.array(x, np.int64)).tolist(), bias or self.bias, self.bits, strict=True)
        return [min(max((2 * (s + b) + (1 << bits)) >> bits + 1, 0), 1024) for s, b, bits in sums]

    def values(self, x):
        """Return values in units of 2^-16."""
        sums = zip((self.weight @ np.array(x, np.int64)).tolist(), self.bias, self.bits, strict=True)
        return [shifted(s + b, 10 - bits) for s, b, bits in sums]


def shifted(value, bits):
    """Return value times 2^bits to the nearest whole number, halves upwards."""
    return value << bits if bits >= 0 else (value + (1 << -bits - 1)) >> -bits


def power(exponent, bits):
    """Return 2^exponent in units of 2^-bits for an exponent in units of 2^-12 (5.1)."""
    with localcontext(prec=40):
        part = round(Decimal(2) ** (30 + Decimal(exponent % 4096) / 4096))
    return shifted(part, exponent // 4096 + bits - 30)


def near(grid, y, x):
    """Return the 3 x 3 neighbourhood of lists, row by row; zeros lie outside."""
    zeros, (h, w) = [0] * len(grid[0][0]), (len(grid), len(grid[0]))
    around = [(y + dy, x + dx) for dy, dx in OFFSETS]
    return [v for r, c in around for v in (grid[r][c] if 0 <= r < h and 0 <= c < w else zeros)]


def flat(weight):
    """Return a convolution's weights (outputs, inputs, k, k) as (outputs, k k inputs)."""
    return np.asarray(weight, np.float64).transpose(0, 2, 3, 1).reshape(len(weight), -1)


def shuffled(grid):
    """Return features of twice the rows and columns from four times the channels."""
    h, w = len(grid), len(grid[0])
    return [[grid[y // 2][x // 2][2 * (y % 2) + x % 2 :: 4] for x in range(2 * w)] for y in range(2 * h)]


class Stream:
    """One stream at one dial: `tensors` by their names in the model's stream, float32."""

    def __init__(self, tensors, steps, dial):
        self.tensors, self.steps, self.dial = tensors, steps, dial
        anchors = np.rint(np.asarray(tensors["log_gain"], np.float64) * (4096 / 0.6931471805599453))
        rows = [anchors[0] - 4660, anchors[0] - 2330, *anchors, *(anchors[-1] + 2330 * k for k in (1, 2, 3))]
        k = min(dial // 1024, 11)
        t = dial - 1024 * k
        mixed = [int(a) * (1024 - t) + int(b) * t for a, b in zip(rows[k], rows[k + 1], strict=True)]
        self.log_gain = [shifted(value, -10) for value in mixed]
        self.gain, self.inverse = (
            [power(g, 12) for g in self.log_gain],
            [power(-g, 20) for g in self.log_gain],
        )
        self.n = len(self.gain)

    def layer(self, name, largest):
        """Return a convolution of the model."""
        return Layer(flat(self.tensors[f"{name}.weight"]), self.tensors[f"{name}.bias"], largest)

    def inputs(self, symbols):
        """Return what others see of symbols (h, w, n), as lists."""
        see = [[[shifted(int(s) * i, -14) for s, i in zip(cell, self.inverse, strict=True)] for cell in row]
               for row in symbols]  # fmt: skip
        return [[[min(max(v, -2048), 2048) for v in cell] for cell in row] for row in see]

    def hyper(self, h, w, bits):
        """Decode the hyperprior's symbols; return them and the side features (5.3)."""
        rows, columns, given = -(-h // 4), -(-w // 4), []
        for a, b in zip(self.tensors["hyperprior.mean"], self.tensors["hyperprior.log_scale"], strict=True):
            rounded = int(np.floor(float(a) + 0.5))
            with localcontext(prec=40):
                scale = Decimal(min(max(float(b), -6.0), 8.0)).exp()
            given.append((rounded, Decimal(float(a) - rounded), scale, 0))
        z = np.array(read_symbols(given * (rows * columns), bits)).reshape(rows, columns, -1)
        grid, expand = (64 * z).tolist(), self.layer("hyperprior.expand", 2048)
        refine = self.layer("hyperprior.refine", 1024)
        x = shuffled([[expand.features(near(grid, y, x)) for x in range(columns)] for y in range(rows)])
        x = shuffled([[refine.features(cell) for cell in row] for row in x])
        return z, [row[:w] for row in x[:h]]

    def decode(self, h, w, side, bits):
        """Decode a tile's symbols (h, w, n) given side features or None (5.5)."""
        m, symbols = self.n // 4, np.zeros((h, w, self.n), np.int64)
        step_of = [[step // (4 // self.steps) for step in row] for row in ORDER]  # by group and lattice
        dial = min(max(self.dial - 2048, 0) // 7, 1024)
        for step in range(self.steps):
            seen, expected, places = self.inputs(symbols), [], []
            weight = flat(self.tensors[f"prior.mix.{step}.weight"])
            bias = np.asarray(self.tensors[f"prior.mix.{step}.bias"], np.float64)
            mix = Layer(weight[:, :-1], np.abs(bias) + np.abs(weight[:, -1]), 1024)
            added = [shifted(int(np.rint(b * 2.0**24)) + int(np.rint(v * 2.0**14)) * dial, of - 18)
                     for b, v, of in zip(bias, weight[:, -1], mix.bits, strict=True)]  # fmt: skip
            for lattice in range(4):
                around = [2 * ((lattice // 2 + y) % 2) + (lattice % 2 + x) % 2 for y, x in OFFSETS]
                known = [step_of[c // m][other] < step for other in around for c in range(self.n)]
                own = [c for c in range(self.n) if step_of[c // m][lattice] == step]
                if step:
                    kernel = flat(self.tensors[f"prior.near.{step - 1}.weight"]) * known
                    nearby = Layer(kernel, self.tensors[f"prior.near.{step - 1}.bias"], 2048)
                last, to = (
                    flat(self.tensors[f"prior.last.{step}.weight"]),
                    self.tensors[f"prior.last.{step}.bias"],
                )
                scales = [self.n + c for c in own]
                means = Layer(last[own], to[own], 1024)
                spreads = Layer(last[scales], to[scales], 1024, 1 / 0.6931471805599453)
                for y, x in ((y, x) for y in range(lattice // 2, h, 2) for x in range(lattice % 2, w, 2)):
                    features = (nearby.features(near(seen, y, x)) if step else []) + (
                        side[y][x] if side else []
                    )
                    mixed = mix.features(features, added)
                    for c, mean, spread in zip(own, means.values(mixed), spreads.values(mixed), strict=True):
                        mean = min(max(mean, -(1 << 21)), 1 << 21) * self.gain[c] + (1 << 27)
                        rounded, fraction = mean >> 28, (mean >> 22) & 63
                        # in units of 2^-12; the table's row is the nearest eighth above -8.5
                        row = min(max(shifted(shifted(spread, -4) + self.log_gain[c] + 34816, -9), 0), 159)
                        with localcontext(prec=40):
                            scale = Decimal(2) ** (Decimal(row) / 8 - Decimal("8.5"))
                        rest = Decimal(2 * fraction + 1) / 128 - Decimal("0.5")
                        expected.append(
                            (min(max(rounded, -32767), 32767), rest, scale, max((row - 68) // 8, 0))
                        )
                        places.append((y, x, c))
            for place, symbol in zip(places, read_symbols(expected, bits), strict=True):
                symbols[place] = symbol
        return symbols


def decode(data, tensors, steps):
    """Return the symbols (h, w, n) of each stream, whose tensors are given in coding order."""
    width, height, side_px, dials, digest, chunks = split(data)
    h, w, side = -(-height // 8), -(-width // 8), side_px // 8
    tiles = [(slice(y, min(y + side, h)), slice(x, min(x + side, w)))
             for y in range(0, h, side) for x in range(0, w, side)]  # fmt: skip
    sha, done = hashlib.sha256(struct.pack("<HH", width, height)), []
    for own, dial, parts in zip(tensors, dials, chunks, strict=True):
        stream_ = Stream(own, steps, dial)
        symbols = np.zeros((h, w, stream_.n), np.int64)
        for (rows, columns), chunk in zip(tiles, parts, strict=True):
            bits, extent, features = Bits(chunk), (rows.stop - rows.start, columns.stop - columns.start), None
            if "hyperprior.mean" in own:
                z, features = stream_.hyper(*extent, bits)
                sha.update(z.astype(np.int8).tobytes())
            elif "side.weight" in own:
                layer = stream_.layer("side", 2048)
                first = 0  # of the streams that it knows: all before it, or Cr's Cb alone
                while sum(other.n for other, _ in done[first:]) > own["side.weight"].shape[1]:
                    first += 1
                before = [other.inputs(found[rows, columns]) for other, found in done[first:]]
                grid = [
                    [[v for of in before for v in of[y][x]] for x in range(extent[1])]
                    for y in range(extent[0])
                ]
                features = [
                    [layer.features(near(grid, y, x)) for x in range(extent[1])] for y in range(extent[0])
                ]
            symbols[rows, columns] = stream_.decode(*extent, features, bits)
            sha.update(symbols[rows, columns].astype("<i2").tobytes())
        done.append((stream_, symbols))
    assert sha.digest()[:4] == digest
    return [found for _, found in done]
