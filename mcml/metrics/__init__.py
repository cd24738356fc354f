"""Colour spaces, every distortion metric of a pair of images, and figures of their artefacts."""

from mcml.base import lazy_attributes

HOMES = dict.fromkeys(("compare", "Metrics", "mean_row", "ciede2000_map"), "distortion")
HOMES |= dict.fromkeys(("rgb_to_ycbcr", "ycbcr_to_rgb", "rgb_to_lab", "to_uint8"), "color")
HOMES |= dict.fromkeys(("artifact_maps", "block_bias", "worst_boxes"), "artifacts")
__getattr__ = lazy_attributes(__name__, HOMES)
