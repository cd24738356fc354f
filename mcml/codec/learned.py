"""The learned codec: pictures to `.mcml` files and back, behind the interface of every codec."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from mcml.base import STRIDE
from mcml.base.errors import DataError, UnsupportedStreamError, UsageError
from mcml.codec import container
from mcml.codec.classical import QualityRange
from mcml.codec.container import Header
from mcml.codec.tiles import FULL, Analysis, Codes, Encoded, TileCoder
from mcml.data.images import check_rgb8
from mcml.model.model_files import entropy_tensors, identity, model_folder, name_of, read_config

if TYPE_CHECKING:
    from mcml.model.model import Model

TILE_PX = 1024
HALO = 16  # positions (128 pixels) beyond a tile's edges that its networks see
QUALITIES = (8.0, 15.0, 25.0, 40.0, 60.0, 85.0)


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
        self.quality_range = QualityRange(0.0, FULL, "real")
        self.qualities = QUALITIES
        self.coder = TileCoder(read_config(self.folder)["model"], entropy_tensors(self.folder))

    @cached_property
    def model(self) -> Model:
        """Return the networks."""
        from mcml.model import weights

        model = weights.load(self.folder)
        if identity(self.folder) != self.identity:
            raise DataError(f"{self.folder}: was replaced by another model meanwhile; open it again")
        return model

    # ------------------------------------------------------------------------------ picture to file

    def encode(self, image: np.ndarray, quality: float, **options: Any) -> bytes:
        """Compress (H, W, 3) uint8 sRGB; options as in `encoder`."""
        return self.encoder(image, **options)(quality)

    def encoder(
        self, image: np.ndarray, *, tile_px: int = TILE_PX, **options: Any
    ) -> Callable[[float], bytes]:
        """Analyse an image once; return what compresses it at any quality, options as in `pack`."""
        analysis = self.analyse(image, tile_px)
        return lambda quality: self.pack(analysis, quality, **options).data

    def analyse(self, image: np.ndarray, tile_px: int = TILE_PX) -> Analysis:
        """Run the encoders over an image's tiles, each with a halo of its neighbours' pixels.

        Args:
            image: (H, W, 3) uint8 sRGB.
            tile_px: side of the tiles, which are coded apart, a power of 2 from 64 to 2048.

        Raises:
            DataError: for an image that the format cannot hold.
        """
        from mcml.codec.transforms import analysis_transform

        began = time.perf_counter()
        image = np.ascontiguousarray(check_rgb8(image))
        header = self._header(analysis := Analysis(image.shape[:2], tile_px))
        for key in self.coder.keys:
            analysis.bits[key] = np.empty((*header.grid, -(-self.coder.coders[key].n // 8)), np.uint8)
            analysis.logits[key] = np.empty(header.grid, np.float32)
        for tile in header.tiles():
            window, inside = _with_halo(tile, header.grid)
            for key, (bits, logits) in analysis_transform(self.model, image[_pixels(window)]).items():
                analysis.bits[key][tile] = np.packbits(bits[inside], axis=-1)
                analysis.logits[key][tile] = logits[inside]
        analysis.seconds = time.perf_counter() - began
        return analysis

    def pack(self, analysis: Analysis, quality: float, *, adaptive: bool = False, layers: int = 1) -> Encoded:
        """Entropy-code an analysis.

        Args:
            analysis: of `analyse`.
            quality: percentage of luma's groups that are sent, 0 to 100.
            adaptive: send importance maps; otherwise one level everywhere, dithered between two.
            layers: parts of the code, each decodable from a file that ends after it.

        Raises:
            UsageError: for a quality outside the range, or maps of a model that has none.
        """
        self.quality_range.check(quality, self.name)
        began = time.perf_counter()
        header = self._header(analysis, adaptive=adaptive, layers=layers)
        with one_thread():
            encoded = self.coder.write(header, analysis, quality)
        encoded.seconds = {"networks": analysis.seconds, "entropy": time.perf_counter() - began}
        return encoded

    def _header(self, analysis: Analysis, **options: Any) -> Header:
        height, width = analysis.size
        return Header(
            width=width, height=height, tile_px=analysis.tile_px, model=self.identity,
            rates=self.coder.rates(FULL), **options,
        ).check()  # fmt: skip

    # ------------------------------------------------------------------------------ file to picture

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
        header, _ = container.read_header(data)
        if header.model != self.identity:
            try:
                other, here = name_of(header.model), f"{self.name} cannot decode it; leave --model away"
            except UnsupportedStreamError:
                other, here = f"model {header.model.hex()}", f"{self.name} is {self.identity.hex()}"
            raise UnsupportedStreamError(f"the file was written by {other}: {here}")
        if luma_only and "Y" not in self.coder.keys:
            raise UsageError(f"{self.name}: codes R, G and B together, so there is no luma to decode alone")
        header, chunks = container.read(data, partial=partial)
        _ = self.model  # which checks the folder: a model that was altered is not the file's fault
        began = time.perf_counter()
        with one_thread():
            codes, whole_layers = self.coder.read(header, chunks, luma_only=luma_only, layers=layers)
        middle = time.perf_counter()
        image = self.synthesise(header, codes)
        seconds = {"entropy": middle - began, "networks": time.perf_counter() - middle}
        return Decoded(image, header, whole_layers, seconds)

    def synthesise(self, header: Header, codes: Codes) -> np.ndarray:
        """Run the decoders window by window, each with a halo of bits, whatever the coded tiles' side."""
        from mcml.codec.transforms import synthesis_transform

        keys = list(codes) if len(codes) == len(self.coder.keys) else list(codes)[:1]  # luma alone is grey
        image = np.empty((header.height, header.width, 3), np.uint8)
        for tile in replace(header, tile_px=max(header.tile_px, TILE_PX)).tiles():
            window, inside = _with_halo(tile, header.grid)
            masked = {}
            for key in keys:
                packed, opened = (of[window] for of in codes[key])
                sign = 2 * np.unpackbits(packed, axis=-1, count=self.coder.coders[key].n).astype(np.int8) - 1
                masked[key] = sign * (self.coder.channel_groups(key) <= opened[..., None])
            place, pixels = image[_pixels(tile)], synthesis_transform(self.model, masked)[_pixels(inside)]
            place[:] = pixels[: len(place), : place.shape[1]]
        return image


def _with_halo(
    tile: tuple[slice, slice], grid: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return a tile with the positions around it that its networks see, and the tile's place in that."""
    window = tuple(
        slice(max(0, s.start - HALO), min(n, s.stop + HALO)) for s, n in zip(tile, grid, strict=True)
    )
    inside = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(tile, window, strict=True))
    return window, inside


def _pixels(part: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(s.start * STRIDE, s.stop * STRIDE) for s in part)
