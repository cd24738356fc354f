"""All codecs by name, classical and learned, behind one interface."""

from __future__ import annotations

from pathlib import Path

from mcml.base.errors import choose
from mcml.codec import classical
from mcml.codec.learned import LearnedCodec
from mcml.codec.rate_search import Codec, RateSearch, bits_per_pixel, encode_at_bpp
from mcml.model.model_files import identity, model_folder, released

__all__ = ["Codec", "RateSearch", "bits_per_pixel", "encode_at_bpp", "get_codec", "names"]

_learned: dict[tuple[str, bytes], LearnedCodec] = {}


def names() -> list[str]:
    """Return the names of all codecs in the order of the tables: released networks, then classical ones."""
    return [*released(), *classical.CODECS]


def get_codec(name: str) -> Codec:
    """Return a codec by name, or a learned one by its model's folder.

    Raises:
        UsageError: naming the nearest for an unknown name.
    """
    if name in classical.CODECS:
        return classical.CODECS[name]
    if not Path(name).is_dir():
        choose("codec", name, names())
    key = (name, identity(model_folder(name)))  # a folder may be trained anew
    if key not in _learned:
        _learned[key] = LearnedCodec(name)
    return _learned[key]
