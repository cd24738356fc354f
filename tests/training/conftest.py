"""Runs of the smallest networks, trained once and looked at by many tests."""

import shutil

import numpy as np
import pytest
from helpers import tiny_recipe

from mcml.data.patches import PatchStore
from mcml.training.trainer import Trainer


@pytest.fixture(scope="session")
def store(astronaut):
    return PatchStore([astronaut, np.ascontiguousarray(astronaut[::-1, :96])])


@pytest.fixture(scope="session")
def whole(store, tmp_path_factory):
    """A run of six steps in which every part learns, trained through; a row of the log every step."""
    recipe = tiny_recipe(**{"stage.encoder_from": 0.0})
    trainer = Trainer(recipe, store, tmp_path_factory.mktemp("whole"))
    assert trainer.fit(log_every=1) == "finished"
    return trainer


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of its folder, to do harm to."""
    return shutil.copytree(whole.run_dir, tmp_path / "copied")
