"""Colour spaces, every distortion metric of a pair of images, and figures of their artefacts."""

from mcml.base import lazy_attributes

HOMES = {"compare": "distortion", "Metrics": "distortion", "mean_row": "distortion"}
__getattr__ = lazy_attributes(__name__, HOMES)
