"""The learned codec: pictures to `.mcml` files and back, behind the interface of every codec."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController

from mcml.base import STRIDE
from mcml.base.errors import CorruptStreamError, DataError, UnsupportedStreamError, UsageError
from mcml.codec import container
from mcml.codec.classical import QualityRange
from mcml.codec.container import Header
from mcml.codec.latents import LatentCoder, Latents, Symbols, hyper_of
from mcml.codec.prior import HYPER_MAX, StreamPrior, dial_of
from mcml.codec.tiles import FULL, Analysis, Codes, Encoded, TileCoder
from mcml.data.images import check_rgb8
from mcml.model.model_files import (
    entropy_tensors,
    identity,
    is_scalar,
    model_folder,
    name_of,
    read_config,
)

if TYPE_CHECKING:
    from mcml.model.model import Model

TILE_PX = 1024
HALO = 16  # positions (128 pixels) beyond a tile's edges that its networks see
QUALITIES = (8.0, 15.0, 25.0, 40.0, 60.0, 85.0)
SCALAR_QUALITIES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0)
OPTIONS = {False: ("adaptive", "layers"), True: ("color_share", "rounding")}  # of `pack`, by whether scalar
KINDS = {False: "binary codes", True: "scalar latents"}


_threads = cache(ThreadpoolController)  # which looks through all libraries, 2 ms


def one_thread() -> Any:
    """Return a context with one BLAS thread: entropy coding's small products only lose time with more."""
    return _threads().limit(limits=1, user_api="blas")


@dataclass
class Decoded:
    """A picture (H, W, 3) uint8 and what it took; `layers` says how many of the file's were whole."""

    image: np.ndarray
    header: Header
    layers: int
    seconds: dict[str, float] = field(default_factory=dict)


class LearnedCodec:
    """A released or freshly trained model as a codec.

    Its quality is the percentage of luma's groups sent, or of the dial of scalar latents.
    """

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
        self.progress: Callable[[float], object] = float  # told the share that is done; nobody listens
        self.config = read_config(self.folder)
        self.scalar = is_scalar(self.config)
        self.encoder_settings = dict(self.config.get("encoder", {}))  # no matter to decoders
        self.encoder_settings.pop("window_px", None)  # which the networks have
        self.qualities = SCALAR_QUALITIES if self.scalar else QUALITIES
        if not self.scalar:  # a damaged entropy coder is told now
            self.coder = TileCoder(self.config["model"], entropy_tensors(self.folder))

    @cached_property
    def coder(self) -> TileCoder | LatentCoder:
        """Return the lossless half; that of scalar latents is made of the networks' weights."""
        priors = {}
        for key, stream in self.model.streams.items():
            tensors = {name: value.cpu().numpy() for name, value in stream.state_dict().items()}
            priors[key] = StreamPrior(tensors, stream.config.prior_steps, stream.known)
        return LatentCoder(priors, **self.encoder_settings)

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

    def analyse(self, image: np.ndarray, tile_px: int = TILE_PX) -> Analysis | Latents:
        """Run the encoders over an image's tiles, each with a halo of its neighbours' pixels.

        Args:
            image: (H, W, 3) uint8 sRGB.
            tile_px: side of the tiles, which are coded apart, a power of 2 from 64 to 2048.

        Raises:
            DataError: for an image that the format cannot hold.
        """
        from mcml.codec.transforms import analysis_transform, latent_transform

        began = time.perf_counter()
        image = np.ascontiguousarray(check_rgb8(image))
        analysis = (Latents if self.scalar else Analysis)(image.shape[:2], tile_px)
        header = self.header(analysis)
        for tile in self._told(header.tiles()):
            window, inside = with_halo(tile, header.grid)
            pixels = image[pixels_of(window)]
            if self.scalar:
                for key, (latents, z) in latent_transform(self.model, pixels).items():
                    _put(analysis.latents, key, header.grid, tile, latents[inside])
                    if z is not None:
                        z = np.clip(np.rint(z[hyper_of(inside)]), -HYPER_MAX, HYPER_MAX).astype(np.int8)
                        _put(analysis.hyper, key, header.grid, tile, z, 4)
            else:
                for key, (bits, logits) in analysis_transform(self.model, pixels).items():
                    _put(analysis.bits, key, header.grid, tile, np.packbits(bits[inside], axis=-1))
                    _put(analysis.logits, key, header.grid, tile, logits[inside])
        analysis.seconds = time.perf_counter() - began
        return analysis

    def _told(self, tiles: Sequence[tuple[slice, slice]]) -> Iterator[tuple[slice, slice]]:
        for number, tile in enumerate(tiles):
            self.progress(number / len(tiles))
            yield tile

    def pack(self, analysis: Analysis | Latents, quality: float, **options: Any) -> Encoded:
        """Entropy-code an analysis.

        Args:
            analysis: of `analyse`.
            quality: 0 to 100.
            options: of binary codes `adaptive` (send importance maps; otherwise one level everywhere,
                dithered between two) and `layers` (parts, each decodable from a file that ends after it); of
                scalar latents `color_share` and `rounding`, as in `LatentCoder.write`.

        Raises:
            UsageError: for a quality outside the range, maps of a model that has none, or an option of the
                other kind.
        """
        self.quality_range.check(quality, self.name)
        for name in options.keys() - (OPTIONS[self.scalar]):
            raise UsageError(f"{self.name}: has no option {name}; it is of {KINDS[not self.scalar]}")
        began = time.perf_counter()
        header = self.header(analysis, **{k: options.pop(k) for k in OPTIONS[False] if k in options})
        with one_thread():
            encoded = self.coder.write(header, analysis, quality, **options)
        encoded.seconds = {"networks": analysis.seconds, "entropy": time.perf_counter() - began}
        return encoded

    def header(self, analysis: Analysis | Latents, **options: Any) -> Header:
        """Return an analysis' header, with `adaptive` and `layers` of `pack`, still without dials."""
        height, width = analysis.size
        return Header(
            width=width, height=height, tile_px=analysis.tile_px, model=self.identity,
            rates=(0,) * (1 if self.config["model"]["variant"] in ("rgb", "luma") else 3), **options,
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
            partial: take what is whole in a cut file: layers of a binary code, of which luma's first must be
                there; of latents each stream of each tile, and the first tile's luma must be there.
            layers: decode no more than so many of a binary code.

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
        latents = header.version == container.LATENTS
        if latents != self.scalar:
            raise CorruptStreamError(f"the header is of {KINDS[latents]}, the model has {KINDS[self.scalar]}")
        if luma_only and "Y" not in self.coder.keys:
            raise UsageError(f"{self.name}: codes R, G and B together, so there is no luma to decode alone")
        header, chunks = container.read(data, partial=partial)
        _ = self.model  # which checks the folder: a model that was altered is not the file's fault
        began = time.perf_counter()
        with one_thread():
            codes, whole_layers = self.coder.read(header, chunks, luma_only=luma_only, layers=layers)
        middle = time.perf_counter()
        if self.scalar:
            image = self.synthesise_latents(header, codes, None if whole_layers else len(chunks))
        else:
            image = self.synthesise(header, codes)
        seconds = {"entropy": middle - began, "networks": time.perf_counter() - middle}
        return Decoded(image, header, whole_layers, seconds)

    def synthesise(self, header: Header, codes: Codes) -> np.ndarray:
        """Run the decoders window by window, each with a halo of bits, whatever the coded tiles' side."""
        from mcml.codec.transforms import synthesis_transform

        keys = list(codes) if len(codes) == len(self.coder.keys) else list(codes)[:1]  # luma alone is grey
        image = np.empty((header.height, header.width, 3), np.uint8)
        for tile in self._told(replace(header, tile_px=max(header.tile_px, TILE_PX)).tiles()):
            window, inside = with_halo(tile, header.grid)
            masked = {}
            for key in keys:
                packed, opened = (of[window] for of in codes[key])
                sign = 2 * np.unpackbits(packed, axis=-1, count=self.coder.coders[key].n).astype(np.int8) - 1
                masked[key] = sign * (self.coder.channel_groups(key) <= opened[..., None])
            place, pixels = image[pixels_of(tile)], synthesis_transform(self.model, masked)[pixels_of(inside)]
            place[:] = pixels[: len(place), : place.shape[1]]
        return image

    def synthesise_latents(self, header: Header, symbols: Symbols, chunks: int | None = None) -> np.ndarray:
        """Run the decoders on symbols, window by window; of a cut file's `chunks` on what is there.

        Where a tile lacks a colour stream it is grey, where it lacks luma too middle grey.
        """
        from mcml.codec.transforms import synthesis_transform

        shown = None
        if chunks is not None:
            shown, tiles = {key: np.zeros(header.grid, np.float32) for key in symbols}, header.tiles()
            for (_, tile, stream, _), _ in zip(header.order(), range(chunks), strict=False):
                if stream < len(symbols):
                    shown[self.coder.keys[stream]][tiles[tile]] = 1
        keys = list(symbols) if len(symbols) == len(self.coder.keys) else list(symbols)[:1]
        if shown and len(keys) > 1:  # one colour plane alone would be a cast
            shown |= dict.fromkeys(keys[1:], shown[keys[-1]])
        dials = dict(zip(self.coder.keys, header.rates, strict=True))
        image = np.empty((header.height, header.width, 3), np.uint8)
        for tile in self._told(replace(header, tile_px=max(header.tile_px, TILE_PX)).tiles()):
            window, inside = with_halo(tile, header.grid)
            if shown and not shown[keys[0]][tile].any():
                image[pixels_of(tile)] = 128
                continue
            codes = {key: self.coder.priors[key].latents(symbols[key][window], dials[key]) for key in keys}
            here = None if shown is None else {key: shown[key][window] for key in keys}
            own = {key: dial_of(dials[key]) for key in keys}
            pixels = synthesis_transform(self.model, codes, own, here)[pixels_of(inside)]
            place = image[pixels_of(tile)]
            place[:] = pixels[: len(place), : place.shape[1]]
        return image


def _put(
    into: dict[str, np.ndarray], key: str, grid: tuple[int, int], tile: tuple[slice, slice],
    values: np.ndarray, stride: int = 1,
) -> None:  # fmt: skip
    """Put a tile's values (h, w, ...) into a stream's array of the whole grid, which the first one makes."""
    if key not in into:
        into[key] = np.empty((-(-grid[0] // stride), -(-grid[1] // stride), *values.shape[2:]), values.dtype)
    y, x = (s.start // stride for s in tile)
    into[key][y : y + values.shape[0], x : x + values.shape[1]] = values


def with_halo(
    tile: tuple[slice, slice], grid: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return a tile with the positions around it that its networks see, and the tile's place in that."""
    window = tuple(
        slice(max(0, s.start - HALO), min(n, s.stop + HALO)) for s, n in zip(tile, grid, strict=True)
    )
    inside = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(tile, window, strict=True))
    return window, inside


def pixels_of(part: tuple[slice, ...]) -> tuple[slice, ...]:
    """Return the pixels of positions."""
    return tuple(slice(s.start * STRIDE, s.stop * STRIDE) for s in part)
