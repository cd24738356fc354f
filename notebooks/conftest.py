"""Lets `pytest --nbval notebooks` leave the results of real runs alone, and the user's settings out.

At import, not in a fixture: nbval's cells are not test functions and use no fixtures.
"""

import atexit
import os
import shutil
import tempfile

os.environ["MCML_RESULTS"] = tempfile.mkdtemp(prefix="mcml-nbval-")  # kernels inherit it
os.environ["IPYTHONDIR"] = os.environ["MCML_RESULTS"] + "/.ipython"  # not the user's start-up files
for name in ("JUPYTER_PATH", "PYTHONSTARTUP", "MPLBACKEND"):
    os.environ.pop(name, None)
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel
atexit.register(shutil.rmtree, os.environ["MCML_RESULTS"], ignore_errors=True)
