"""The poster's system: settings, networks, quantisation, the three streams, their weights."""

from mcml.base import lazy_attributes

__getattr__ = lazy_attributes(
    __name__, {"load": "weights", "released": "model_files", "to_tensor": "validate"}
)
