"""mcml: multi-channel multi-loss image compression, its colour metrics and its notebooks.

Importing the package loads nothing heavy; its rooms' faces hold what users call, for example
``from mcml import codec, data, metrics, model``.
"""

__version__ = "0.1.0"
