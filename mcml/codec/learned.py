"""The learned codec: pictures to `.mcml` files and back, behind the interface of every codec."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from mcml.base.errors import DataError, UnsupportedStreamError, UsageError
from mcml.codec import bits as entropy
from mcml.codec import container as bitstream
from mcml.codec.classical import QualityRange
from mcml.codec.container import Header
from mcml.codec.rate_search import RateSearch, bits_per_pixel
from mcml.codec.tiles import FULL, STRIDE, Encoded, Piece, TileCoder, unpack
from mcml.data.images import check_rgb8
from mcml.model.model_files import entropy_tensors, identity, model_folder, name_of, read_config

TILE_PX = 1024
QUALITIES = (8.0, 15.0, 25.0, 40.0, 60.0, 85.0)
SIZED_TILES = 9  # of a large image, whose costs stand for all when a size is searched


def one_thread() -> Any:
    """Return a context with one BLAS thread: entropy coding's small products only lose time with more."""
    return ThreadpoolController().limit(limits=1, user_api="blas")


@dataclass
class Decoded:
    """A picture (H, W, 3) uint8 and what it took; `layers` says how many of the file's were whole."""

    image: np.ndarray
    header: Header
    layers: int
    seconds: dict[str, float] = field(default_factory=dict)


class LearnedCodec:
    """A released or freshly trained model as a codec; its quality is the percentage of luma's groups sent."""

    def __init__(self, model: str | Path) -> None:
        """Take a model by name or folder; networks are loaded when first needed.

        Raises:
            DataError: for a folder that is no model's or that has no entropy coder.
            UsageError: for an unknown name.
        """
        self.folder = model_folder(model)
        self.name = self.folder.name if Path(model).is_dir() else str(model)
        self.identity = identity(self.folder)
        self.quality_range = QualityRange(coarsest=0.0, finest=FULL, kind="real")
        self.qualities = QUALITIES
        self._last: tuple[Any, list[Piece]] | None = None
        self.coder = TileCoder(read_config(self.folder)["model"], entropy_tensors(self.folder))

    @cached_property
    def model(self) -> Any:
        """Return the networks."""
        from mcml.model import weights

        found = weights.load(self.folder)
        if identity(self.folder) != self.identity:
            raise DataError(f"{self.folder}: was replaced by another model meanwhile; open it again")
        return found

    # ---------------------------------------------------------------------------- encoding

    def analyse(self, image: np.ndarray, tile_px: int = TILE_PX) -> tuple[list[Piece], float]:
        """Run the encoders over an image's tiles; return what they say and the seconds it took."""
        from mcml.codec import neural

        began = time.perf_counter()
        image = np.ascontiguousarray(check_rgb8(image))
        header = self._header(image.shape[:2], tile_px)
        pieces, halo = [], neural.HALO * STRIDE
        for top, left, height, width in header.tiles():
            above, before = min(halo, top), min(halo, left)
            window = image[top - above : top + height + halo, left - before : left + width + halo]
            y, x = above // STRIDE, before // STRIDE
            h, w = -(-height // STRIDE), -(-width // STRIDE)
            found = neural.analyse(self.model, window)
            pieces.append(
                Piece(
                    {k: np.packbits(b[y : y + h, x : x + w], axis=-1) for k, (b, _) in found.items()},
                    {k: logit[y : y + h, x : x + w] for k, (_, logit) in found.items()},
                )
            )
        return pieces, time.perf_counter() - began

    def _analysis(self, image: np.ndarray, tile_px: int) -> list[Piece]:
        """Analyse, or give the last image's analysis again: several rates are searched on one image."""
        check_rgb8(image)
        key = (hashlib.sha256(np.ascontiguousarray(image)).digest(), image.shape, tile_px)
        if self._last is None or self._last[0] != key:
            self._last = (key, self.analyse(image, tile_px)[0])
        return self._last[1]

    def encode(self, image: np.ndarray, quality: float, **options: Any) -> bytes:
        """Compress (H, W, 3) uint8 sRGB at 0 to 100; see `encode_detailed` for options."""
        return self.encode_detailed(image, quality, **options).data

    def encode_detailed(
        self,
        image: np.ndarray,
        quality: float,
        *,
        adaptive: bool = False,
        layers: int = 1,
        tile_px: int = TILE_PX,
    ) -> Encoded:
        """Compress, and tell bits and seconds.

        Args:
            image: (H, W, 3) uint8 sRGB.
            quality: percentage of luma's groups that are sent, 0 to 100.
            adaptive: send importance maps; otherwise one level everywhere, dithered between two.
            layers: parts of the code, each decodable from a file that ends after it.
            tile_px: side of the tiles that are coded apart, a power of 2 from 64 to 2048.

        Raises:
            UsageError: for a quality outside the range.
            DataError: for an image that the format cannot hold.
        """
        self.quality_range.check(quality, self.name)
        pieces, seconds = self.analyse(image, tile_px)
        found = self.pack(image.shape[:2], pieces, quality, adaptive=adaptive, layers=layers, tile_px=tile_px)
        found.seconds["networks"] = seconds
        return found

    def pack(
        self, size: tuple[int, int], pieces: Sequence[Piece], quality: float, *,
        adaptive: bool = False, layers: int = 1, tile_px: int = TILE_PX,
    ) -> Encoded:  # fmt: skip
        """Entropy-code an analysis of an image of a size (H, W); options as in `encode_detailed`."""
        began = time.perf_counter()
        header = self._header(size, tile_px, adaptive=adaptive, layers=layers)
        with one_thread():
            found = self.coder.write(header, pieces, quality)
        found.seconds["entropy"] = time.perf_counter() - began
        return found

    def _header(self, size: tuple[int, int], tile_px: int, **options: Any) -> Header:
        return Header(
            width=size[1], height=size[0], model=self.identity, rates=self.coder.rates(FULL), tile_px=tile_px,
            **options,
        ).check()  # fmt: skip

    def search(self, image: np.ndarray, target_bpp: float, **options: Any) -> RateSearch:
        """Find the quality whose file is nearest to a wanted size; the networks run once.

        With flat maps a group costs the same whatever comes after it, so one pass with every group
        open tells every file's size nearly exactly; a second and third file correct the rest.
        """
        tile_px = options.pop("tile_px", TILE_PX)
        if not 0 < target_bpp < math.inf:
            raise UsageError(f"target bpp {target_bpp}: expected a number above 0")
        pieces = self._analysis(image, tile_px)
        tried: dict[float, RateSearch] = {}

        def attempt(quality: float) -> RateSearch:
            if quality not in tried:
                data = self.pack(image.shape[:2], pieces, quality, tile_px=tile_px, **options).data
                tried[quality] = RateSearch(
                    data=data, quality=quality, bpp=bits_per_pixel(data, image), target_bpp=target_bpp
                )
            return tried[quality]

        low, high = 0.0, FULL
        guess = FULL / 2
        wanted = math.log(target_bpp)
        with one_thread():
            model = None if options.get("adaptive") else self._sizes(image.shape[:2], pieces, tile_px)
        correction = 0.0
        for _ in range(12 if model is None else 8):
            if model is not None:
                grid, sizes = model
                guess = float(np.interp(wanted + correction, np.log(sizes), grid))
            found = attempt(guess)
            miss = math.log(found.bpp) - wanted
            if abs(miss) < 0.0025 or high - low < 1e-3:
                break
            if model is not None:
                correction -= miss
            else:
                low, high = (guess, high) if miss < 0 else (low, guess)
                guess = (low + high) / 2
        return min(tried.values(), key=lambda found: abs(math.log(found.bpp) - wanted))

    def _sizes(
        self, size: tuple[int, int], pieces: Sequence[Piece], tile_px: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return qualities and the estimated bpp of their flat files, rising."""
        coder = self.coder
        header = replace(
            self._header(size, tile_px), rates=tuple(256 * top for top in coder.tops().values())
        )  # every group of every stream
        costs = {key: np.zeros(len(coder.coders[key].sizes)) for key in coder.keys}
        tiles = header.tiles()
        for number in np.linspace(0, len(tiles) - 1, min(len(tiles), SIZED_TILES)).round().astype(int):
            states: dict[str, entropy.BitState] = {}
            for key in coder.keys:
                level = coder.flat(header, key, tiles[number])
                upto = coder.prepare(header, key, level, states, 0)
                bits = unpack(pieces[number].bits[key], coder.coders[key].n)
                coder.coders[key].write(states[key], bits, level, upto, entropy.Writer())
                costs[key] += states[key].costs
        scale = len(tiles) / min(len(tiles), SIZED_TILES)
        grid = np.linspace(0, FULL, 1601)
        total = np.full(len(grid), 8.0 * (len(header.pack()) + 7 * len(tiles) * len(coder.keys)))
        rates = np.array([coder.rates(q) for q in grid])
        for column, key in enumerate(coder.keys):
            sums = scale * np.concatenate([[0.0], np.cumsum(costs[key])])
            total += np.interp(rates[:, column], 256 * np.arange(len(sums)), sums)
        rising = np.maximum.accumulate(total + 1e-6 * np.arange(len(grid)))
        return grid, rising / (size[0] * size[1])

    # ---------------------------------------------------------------------------- decoding

    def decode(self, data: bytes, **options: Any) -> np.ndarray:
        """Decompress to (H, W, 3) uint8 sRGB; see `decode_detailed` for options."""
        return self.decode_detailed(data, **options).image

    def decode_detailed(
        self, data: bytes, *, luma_only: bool = False, partial: bool = False, layers: int | None = None
    ) -> Decoded:
        """Decompress, and tell the seconds.

        Args:
            data: a whole file; with `partial` also one that was cut short.
            luma_only: decode Y alone, to grey.
            partial: take the whole layers of a cut file; at least luma's first must be there.
            layers: decode no more than so many.

        Raises:
            CorruptStreamError: for damaged files.
            UnsupportedStreamError: for files of another version or model.
        """
        found, _ = bitstream.read_header(data)
        if found.model != self.identity:
            raise UnsupportedStreamError(
                f"the file was written by model {found.model.hex()}: {self.name} is {self.identity.hex()}"
            )
        if luma_only and "Y" not in self.coder.keys:
            raise UsageError(f"{self.name}: codes R, G and B together, so there is no luma to decode alone")
        header, chunks = bitstream.read(data, partial=partial)
        _ = self.model  # which checks the folder: a model that was altered is not the file's fault
        began = time.perf_counter()
        with one_thread():
            codes, done = self.coder.read(header, chunks, luma_only, layers)
        middle = time.perf_counter()
        image = self._synthesise(header, codes)
        seconds = {"entropy": middle - began, "networks": time.perf_counter() - middle}
        return Decoded(image, header, done, seconds)

    def _synthesise(self, header: Header, tiles: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Decode window by window, each with a halo of bits, whatever the side of the coded tiles."""
        from mcml.codec import neural

        coder = self.coder
        windows = replace(header, tile_px=max(header.tile_px, TILE_PX)).tiles()
        rows, columns = -(-header.height // STRIDE), -(-header.width // STRIDE)
        image = np.empty((header.height, header.width, 3), np.uint8)
        across = -(-header.width // header.tile_px)
        side = header.tile_px // STRIDE
        keys = [key for key in coder.keys if all(key in of for of in tiles)]
        if "RGB" not in keys and len(keys) < len(coder.keys):
            keys = keys[:1]
        for top, left, height, width in windows:
            y0, x0 = max(0, top // STRIDE - neural.HALO), max(0, left // STRIDE - neural.HALO)
            y1 = min(rows, -(-(top + height) // STRIDE) + neural.HALO)
            x1 = min(columns, -(-(left + width) // STRIDE) + neural.HALO)
            codes = {key: np.zeros((y1 - y0, x1 - x0, coder.coders[key].n), np.int8) for key in keys}
            for r in range(y0 // side, (y1 - 1) // side + 1):
                for c in range(x0 // side, (x1 - 1) // side + 1):
                    a, b = max(y0, r * side), max(x0, c * side)
                    e, f = min(y1, (r + 1) * side), min(x1, (c + 1) * side)
                    inside = np.s_[a - r * side : e - r * side, b - c * side : f - c * side]
                    for key in keys:
                        bits, opened = tiles[r * across + c][key]
                        open_ = coder.channel_groups(key) <= opened[inside][..., None]
                        sign = 2 * unpack(bits[inside], coder.coders[key].n).astype(np.int8) - 1
                        codes[key][a - y0 : e - y0, b - x0 : f - x0] = sign * open_
            piece = neural.synthesise(self.model, codes)
            y, x = top - y0 * STRIDE, left - x0 * STRIDE
            image[top : top + height, left : left + width] = piece[y : y + height, x : x + width]
        return image


def codec_of(data: bytes, model: str | Path | None = None) -> LearnedCodec:
    """Return the codec that decodes a file: the released model that it names, or the one given.

    Raises:
        CorruptStreamError: for bytes that are no mcml file.
        UnsupportedStreamError: for a model that is not here.
    """
    header, _ = bitstream.read_header(data)
    return LearnedCodec(model if model is not None else name_of(header.model))
