"""Lets `pytest --nbval notebooks` leave the results of real runs alone.

At import, not in a fixture: nbval's cells are not test functions and use no fixtures.
"""

import atexit
import os
import shutil
import tempfile

os.environ["MCML_RESULTS"] = tempfile.mkdtemp(prefix="mcml-nbval-")  # kernels inherit it
atexit.register(shutil.rmtree, os.environ["MCML_RESULTS"], ignore_errors=True)
