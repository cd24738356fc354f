"""Fixtures that several test modules share."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mcml import data


@pytest.fixture
def mcml(tmp_path):
    """Run the command line in a folder of its own, as a user's shell would."""

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "mcml", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "MCML_RESULTS": str(tmp_path / "results"), "COLUMNS": "200", **environment},
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def astronaut():
    """The upper left 160 x 128 of a photograph."""
    return data.image_set("embedded").read("astronaut")[:128, 60:220].copy()


@pytest.fixture
def photo_folder(tmp_path, astronaut):
    """Two small PNGs in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "one.png")
    Image.fromarray(np.ascontiguousarray(astronaut[::-1, :96])).save(folder / "two.png")
    return folder
