"""The poster's system: settings, networks, quantisation, the three streams, their weights."""

from mcml.base import lazy_attributes

__getattr__ = lazy_attributes(
    __name__,
    {
        "load": "weights",
        "save_model": "weights",
        "released": "model_files",
        "build": "model",
        "to_tensor": "validate",
        "codec_cost": "cost",
        "load_recipe": "settings",
    },
)
