"""Lets `pytest --nbval notebooks` leave the results of real runs alone."""

import os
import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
def _results_elsewhere():
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("MCML_RESULTS")
        os.environ["MCML_RESULTS"] = folder  # kernels inherit it
        yield
        if before is None:
            del os.environ["MCML_RESULTS"]
        else:
            os.environ["MCML_RESULTS"] = before
