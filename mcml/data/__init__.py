"""Photographs: any file as 8-bit sRGB, registered sets of them, patches to train on."""

from mcml.base import lazy_attributes

HOMES = dict.fromkeys(("image_set", "describe", "split_images", "check_disjoint"), "sets")
HOMES |= dict.fromkeys(("read_image", "write_png", "list_images"), "images") | {"PatchStore": "patches"}
__getattr__ = lazy_attributes(__name__, HOMES)
