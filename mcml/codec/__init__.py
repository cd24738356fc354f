"""Bytes from an image and back: classical and learned codecs behind one interface."""

from mcml.base import lazy_attributes

__getattr__ = lazy_attributes(
    __name__, {"get_codec": "interface", "names": "interface", "encode_at_bpp": "interface"}
)
