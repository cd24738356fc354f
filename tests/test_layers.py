"""Imports point one way, heavy ones are lazy, and training's stay within the bare machine's."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT, TINY

LAYERS = {  # a module may import only from layers below its own
    "config": 0, "color": 0, "processes": 0, "coding_order": 0, "artifacts": 1, "color_difference": 1,
    "networks": 1, "quantization": 1, "rate": 1, "results": 1, "run_log": 1, "model_files": 1,
    "bitstream": 1, "range_coding": 1, "context_model": 1, "entropy": 2, "images": 2, "losses": 2,
    "file_contents": 2, "model_config": 2, "threshold_design": 2, "tile_coding": 3,
    "metrics": 3, "models": 3, "data": 4, "patches": 4, "classical": 4, "layout": 4, "recipes": 4,
    "threshold_code": 4, "validation": 4, "weights": 4, "checkpoints": 5, "rate_search": 5, "neural": 5,
    "entropy_training": 5, "learned": 6, "codec": 7, "evaluation": 8,
    "color_statistics": 8, "inspection": 8, "training": 8, "experiments": 9, "figures": 9,
    "accounting": 9, "jobs": 9,
    "report": 9, "network_figures": 10, "rate_figures": 10, "small_codecs": 10, "runner": 10,
    "train_cli": 10, "file_cli": 10,
    "entropy_cli": 11, "cli": 11, "__main__": 12,
}  # fmt: skip
ONLY_IN = {
    "matplotlib": {"figures", "network_figures", "rate_figures"},
    "seaborn": {"figures"},
    "pandas": {"evaluation", "color_statistics", "figures", "network_figures", "rate_figures", "report"},
    "papermill": {"runner"},
    "torch": {
        "accounting", "checkpoints", "color_difference", "context_model",
        "entropy_cli", "entropy_training", "experiments", "inspection", "layout", "losses", "models",
        "networks", "neural", "patches", "processes", "quantization", "rate", "run_log", "small_codecs",
        "threshold_code", "threshold_design", "train_cli", "training", "validation", "weights",
    },
    "safetensors": {"model_files", "weights"},
    "constriction": {"range_coding"},
    "lightning_fabric": {"processes"},
    "lightning": {"processes"},
    "typer": {"cli", "file_cli"},
}  # fmt: skip
BARE = {"torch", "numpy", "PIL", "safetensors", "lightning", "lightning_fabric", "mcml"}
ABSENT = [
    *("scipy", "skimage", "sklearn", "pandas", "matplotlib", "seaborn", "papermill", "joblib", "imagehash"),
    *("pooch", "requests", "typer", "rich", "bjontegaard", "pillow_jxl", "colour", "IPython", "nbformat"),
]
TRAINING = (  # all that `mcml train` and `mcml info` import, data sets by name left out
    *("train_cli", "training", "checkpoints", "layout", "recipes", "threshold_code", "validation", "weights"),
    *("patches", "models", "model_config", "losses", "images", "results", "run_log", "rate", "quantization"),
    *("networks", "color_difference", "processes", "color", "config", "threshold_design", "model_files"),
    *(
        "entropy_cli",
        "entropy_training",
        "context_model",
        "coding_order",
    ),
)


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


def test_every_module_that_training_imports_is_among_them():
    found, waiting = set(), {"train_cli", "entropy_cli"}
    while waiting:
        module = waiting.pop()
        found.add(module)
        names = {name.split(".")[1] for name in imports(ast.walk(tree(module))) if name.startswith("mcml.")}
        waiting |= (names & set(LAYERS)) - found - {"data"}  # imported only for a data set's name
    assert found == set(TRAINING)


def loaded_by(code):
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "matplotlib", "pandas", "skimage", "papermill", "scipy", "numpy", "PIL"}
    assert not heavy & loaded_by("import mcml")


def test_comparing_and_help_do_without_torch():
    heavy = {"torch", "matplotlib", "pandas", "papermill", "seaborn"}
    assert not heavy & loaded_by("from mcml import cli, metrics, images, codec")


HIDE = f"""
import sys
class Hide:
    'A finder for which the libraries that a bare machine lacks are not installed.'
    def __init__(self, inner):
        self.inner = inner
    def find_spec(self, name, path=None, target=None):
        absent = name.split('.')[0] in {ABSENT!r}
        return None if absent else self.inner.find_spec(name, path, target)
    def find_distributions(self, context):
        absent = {[name.lower() for name in ABSENT]!r}
        found = getattr(self.inner, 'find_distributions', lambda context: [])(context)
        return [d for d in found if (d.metadata['Name'] or '').lower().replace('-', '_') not in absent]
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""


def test_the_libraries_are_hidden_as_if_they_were_not_installed():
    code = f"""{HIDE}
import importlib.metadata, importlib.util
for name in {ABSENT!r}:
    assert importlib.util.find_spec(name) is None, name
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
assert importlib.metadata.version('numpy')
assert not list(importlib.metadata.distributions(name='pandas'))
"""
    assert not set(ABSENT) & loaded_by(code)


def test_training_runs_where_every_other_library_is_missing(photo_folder, tmp_path):
    """Neither mcml nor fabric may want more than torch, numpy, Pillow and safetensors."""
    settings = {**TINY, "model.variant": "fusion", "stage.start": "threshold", "train.augment": True}
    arguments = [
        *("train", "--profile", "gpu", "--variant", "fusion", "--steps", "1"),
        *("--data", str(photo_folder), "--valid", str(photo_folder), "--run-dir", str(tmp_path / "run")),
        *(f"--set={name}={str(value).lower()}" for name, value in settings.items()),
    ]
    code = f"{HIDE}\nfrom mcml import train_cli\nassert train_cli.main({arguments!r}) == 0"
    loaded = loaded_by(code)
    assert {"torch", "safetensors", "lightning_fabric"} <= loaded
    assert not set(ABSENT) & loaded
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"checkpoint-00000001", "log.csv", "model", "validation.csv"}
