"""Fixtures that several test modules share."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import portrait
from PIL import Image

from mcml.cli.main import run


@pytest.fixture
def mcml(tmp_path, monkeypatch, capsys):
    """Run the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*words, **environment):
        words = list(map(str, words))
        threads = "torch" in sys.modules and sys.modules["torch"].get_num_threads()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["mcml", *words])
            for name, value in {"MCML_RESULTS": "results", "COLUMNS": "200", **environment}.items():
                patch.setenv(name, value)
            capsys.readouterr()
            code = run(words)
        if threads:
            sys.modules["torch"].set_num_threads(threads)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)

    return call


@pytest.fixture(scope="session")
def astronaut():
    """A part of a photograph, 160 x 128."""
    return portrait()


@pytest.fixture
def photo_folder(tmp_path, astronaut):
    """Two small PNGs in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(astronaut).save(folder / "one.png")
    Image.fromarray(np.ascontiguousarray(astronaut[::-1, :96])).save(folder / "two.png")
    return folder
