"""What a `.mcml` file holds, told without decoding it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcml.base.errors import CorruptStreamError, DataError
from mcml.codec import container as bitstream
from mcml.model import model_files


def describe(data: bytes) -> tuple[dict[str, Any], CorruptStreamError | None]:
    """Return what a file's bytes hold, by JSON's names, and what is wrong with one that was cut or damaged.

    Raises:
        CorruptStreamError: if there is no whole header.
        UnsupportedStreamError: for another version, or more pixels than `bitstream.MAX_PIXELS`.
    """
    found = bitstream.take_stock(data)
    header = found.header
    try:
        name = model_files.name_of(header.model)
        variant = model_files.read_config(model_files.released_folder() / name)["model"]["variant"]
    except (DataError, KeyError):
        name = variant = ""
    streams = ("Y", "Cb", "Cr") if len(header.rates) == 3 else ({"rgb": "RGB", "": "1"}.get(variant, "Y"),)
    sizes: dict[str, dict[str, int]] = {"bits": {}, "map": {}}
    for (stream, kind), size in found.sizes.items():
        sizes[kind][streams[stream]] = size
    return {
        "version": bitstream.VERSION, "width": header.width, "height": header.height, "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height), "model": name or header.model.hex(),
        "model_id": header.model.hex(), "maps": "adaptive" if header.adaptive else "flat",
        "rates": dict(zip(streams, header.rates, strict=True)), "layers": header.layers,
        "tiles": header.tile_count(), "tile_px": header.tile_px, "stream_bytes": sizes["bits"],
        "map_bytes": sizes["map"], "overhead_bytes": found.framing,
        "unusable_bytes": len(data) - found.framing - sum(found.sizes.values()),
        "digest": header.digest.hex(), "chunks": found.chunks, "whole_chunks": found.whole,
        "checksums": found.error is None,
    }, found.error  # fmt: skip


def block(content: Mapping[str, Any]) -> str:
    """Return what `describe` found as lines for people."""
    unit = "level" if content["maps"] == "adaptive" else "level x 256"
    here = ", which is not here" if content["model"] == content["model_id"] else ""
    whole, chunks = content["whole_chunks"], content["chunks"]
    rates = "  ".join(f"{key} {value}" for key, value in content["rates"].items())
    lines = {
        "format": f"version {content['version']}",
        "picture": f"{content['width']} x {content['height']} pixels",
        "file": f"{content['bytes']} bytes, {content['bpp']:.4f} bpp",
        "model": content["model"] + here,
        "maps": content["maps"],
        "rates": f"{rates}  ({unit})",
        "layers": content["layers"],
        "tiles": f"{content['tiles']} of up to {content['tile_px']} pixels",
        **{f"stream {key}": f"{size} bytes" for key, size in content["stream_bytes"].items()},
        **{f"map {key}": f"{size} bytes" for key, size in content["map_bytes"].items()},
        "overhead": f"{content['overhead_bytes']} bytes",
        "digest": content["digest"],
        "checksums": f"all {chunks} hold" if content["checksums"] else f"{whole} of {chunks} hold",
    }
    if unusable := content["unusable_bytes"]:
        lines["unusable"] = f"{unusable} bytes, cut off or damaged"
    return "\n".join([content["file"], *(f"  {name:<10} {text}" for name, text in lines.items())])
