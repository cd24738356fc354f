"""mcml: multi-channel multi-loss image compression, its colour metrics and its notebooks.

Importing the package loads nothing heavy; take what you need from its modules,
for example ``from mcml import metrics`` or ``from mcml import classical``.
"""

__version__ = "0.1.0"
