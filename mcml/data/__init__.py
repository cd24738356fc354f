"""Photographs: any file as 8-bit sRGB, registered sets of them, patches to train on."""

from mcml.base import lazy_attributes

__getattr__ = lazy_attributes(
    __name__, {"image_set": "sets", "read_image": "images", "write_png": "images", "list_images": "images"}
)
