"""What several test modules look up: the checkout and its notebooks."""

from pathlib import Path

from mcml import config

ROOT = config.repo_root()


def notebooks() -> list[Path]:
    """Return the committed notebooks in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))
