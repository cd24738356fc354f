"""Imports point one way, heavy ones are lazy, and training's stay within the bare machine's."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

LAYERS = {  # a module may import only from layers below its own
    "config": 0, "color": 0, "artifacts": 1, "results": 1, "images": 2, "metrics": 3,
    "data": 4, "patches": 4, "classical": 4, "codec": 5, "evaluation": 6,
    "color_statistics": 6, "figures": 7, "jobs": 7, "report": 7, "runner": 8, "cli": 9,
}  # fmt: skip
ONLY_IN = {
    "matplotlib": {"figures"},
    "seaborn": {"figures"},
    "pandas": {"evaluation", "color_statistics", "figures", "report"},
    "papermill": {"runner"},
    "torch": {"patches"},
    "typer": {"cli"},
}
BARE = {"torch", "numpy", "PIL", "safetensors", "lightning", "lightning_fabric", "mcml"}
ABSENT = [
    *("scipy", "skimage", "sklearn", "pandas", "matplotlib", "seaborn", "papermill", "joblib", "imagehash"),
    *("pooch", "requests", "typer", "rich", "bjontegaard", "pillow_jxl", "colour", "IPython", "nbformat"),
]
TRAINING = ("patches", "images", "results", "config")


def tree(module):
    return ast.parse((ROOT / "mcml" / f"{module}.py").read_text("utf-8"))


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "mcml":
                yield from (f"mcml.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer():
    modules = {path.stem for path in (ROOT / "mcml").glob("*.py")} - {"__init__"}
    assert modules == set(LAYERS)


@pytest.mark.parametrize("module", LAYERS)
def test_arrows_point_down(module):
    for name in imports(ast.walk(tree(module))):
        if name.startswith("mcml.") and name.split(".")[1] in LAYERS:
            target = name.split(".")[1]
            assert LAYERS[target] < LAYERS[module], f"{module} imports {target}"


@pytest.mark.parametrize("module", LAYERS)
def test_libraries_stay_in_their_place(module):
    for name in imports(ast.walk(tree(module))):
        owner = ONLY_IN.get(name.split(".")[0])
        assert owner is None or module in owner, f"{module} imports {name}"


@pytest.mark.parametrize("module", LAYERS)
def test_files_stay_small(module):
    assert len((ROOT / "mcml" / f"{module}.py").read_text("utf-8").splitlines()) <= 330


@pytest.mark.parametrize("module", TRAINING)
def test_training_needs_only_what_a_bare_machine_has(module):
    top = {name.split(".")[0] for name in imports(tree(module).body)}
    assert top <= BARE | set(sys.stdlib_module_names)


def loaded_by(code):
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "matplotlib", "pandas", "skimage", "papermill", "scipy", "numpy", "PIL"}
    assert not heavy & loaded_by("import mcml")


def test_comparing_and_help_do_without_torch():
    heavy = {"torch", "matplotlib", "pandas", "papermill", "seaborn"}
    assert not heavy & loaded_by("from mcml import cli, metrics, images, codec")


def test_patches_can_be_drawn_where_every_other_library_is_missing():
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ABSENT!r}:
            raise ImportError(f'{{name}} is not on the bare machine')
sys.meta_path.insert(0, Block())
import numpy as np, torch
from mcml.patches import PatchStore
store = PatchStore([np.zeros((40, 30, 3), np.uint8)])
assert store.sample(2, 16, torch.Generator().manual_seed(0)).shape == (2, 3, 16, 16)
"""
    assert "torch" in loaded_by(code)
