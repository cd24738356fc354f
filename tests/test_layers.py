"""Imports point one way, heavy ones are lazy, and training's stay within the bare machine's."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT, tiny_arguments

ROOMS = ("base", "data", "metrics", "model", "codec", "training", "lab", "cli")  # each sees those before it
LINES = {  # of Python, at most: a room of mcml, all of mcml, all tests
    "mcml/base": 360, "mcml/data": 1880, "mcml/metrics": 470, "mcml/model": 1790, "mcml/codec": 2923,
    "mcml/training": 1502, "mcml/lab": 3116, "mcml/cli": 1512, "mcml": 13560, "tests": 17470,
}  # fmt: skip
ONLY_IN = {  # rooms, or files of them
    **dict.fromkeys(("matplotlib", "seaborn", "pandas"), ("lab",)),
    **dict.fromkeys(("lightning_fabric", "lightning"), ("training/run",)),
    "papermill": ("lab/runner",),
    "torch": ("data/patches", "model", "codec", "training", "lab", "cli/train"),
    "safetensors": ("model",),
    "constriction": ("codec/bits",),
}
BARE = {"torch", "numpy", "PIL", "safetensors", "lightning", "lightning_fabric", "mcml"}
ABSENT = [
    *("scipy", "skimage", "sklearn", "pandas", "matplotlib", "seaborn", "papermill", "joblib", "imagehash"),
    *("argcomplete", "pooch", "requests", "bjontegaard", "pillow_jxl", "colour", "IPython", "nbformat"),
]
FILES = sorted(str(p.relative_to(ROOT / "mcml").with_suffix("")) for p in (ROOT / "mcml").rglob("*.py"))
INSIDE = [name for name in FILES if "/" in name]


def tree(module):
    return ast.parse((ROOT / "mcml" / f"{module}.py").read_text("utf-8"))


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module.split(".")[0] == "mcml":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_is_in_a_room():
    assert {name.split("/")[0] for name in INSIDE} == set(ROOMS)
    assert set(FILES) - set(INSIDE) == {"__init__", "__main__"}


@pytest.mark.parametrize("module", INSIDE)
def test_arrows_point_down(module):
    room = module.split("/")[0]
    for name in imports(ast.walk(tree(module))):
        target = name.split(".")[1] if name.startswith("mcml.") else room
        if target in ROOMS:
            assert ROOMS.index(target) <= ROOMS.index(room), f"{module} imports {name}"


@pytest.mark.parametrize("module", FILES)
def test_libraries_stay_in_their_place(module):
    for name in imports(ast.walk(tree(module))):
        owners = ONLY_IN.get(name.split(".")[0])
        assert owners is None or module.startswith(owners), f"{module} imports {name}"


def test_training_and_all_that_it_imports_need_only_what_a_bare_machine_has():
    visited, waiting = set(), {"cli/train"}
    while waiting:
        module = waiting.pop()
        visited.add(module)
        outside = {name.split(".")[0] for name in imports(tree(module).body)}
        assert outside <= BARE | set(sys.stdlib_module_names), module
        names = {name.removeprefix("mcml.").replace(".", "/") for name in imports(ast.walk(tree(module)))}
        waiting |= (names & set(FILES)) - visited - {"cli/files", "cli/tables"}  # other commands


def loaded_by(code):
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_the_package_loads_nothing_heavy_and_comparing_and_help_no_torch():
    heavy = {"torch", "matplotlib", "pandas", "papermill", "seaborn"}
    assert not (heavy | {"skimage", "scipy", "numpy", "PIL"}) & loaded_by("import mcml")
    used = ("cli.main", "metrics.distortion", "data.images", "codec.interface")
    assert not heavy & loaded_by("import " + ", ".join(f"mcml.{name}" for name in used))


HIDE = f"""
import importlib.metadata, importlib.util, sys
class Hide:
    'A finder for which the libraries that a bare machine lacks are not installed.'
    def __init__(self, inner):
        self.inner = inner
    def find_spec(self, name, path=None, target=None):
        absent = name.split('.')[0] in {ABSENT!r}
        return None if absent else self.inner.find_spec(name, path, target)
    def find_distributions(self, context):
        absent = {[name.lower() for name in ABSENT]!r}
        here = getattr(self.inner, 'find_distributions', lambda context: [])(context)
        return [d for d in here if (d.metadata['Name'] or '').lower().replace('-', '_') not in absent]
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
assert not any(map(importlib.util.find_spec, {ABSENT!r})) and importlib.metadata.version('numpy')
assert not list(importlib.metadata.distributions(name='pandas'))
"""


def test_training_runs_where_every_other_library_is_missing(photo_folder, tmp_path):
    """Neither mcml nor fabric may want more than torch, numpy, Pillow and safetensors."""
    start = {"model.variant": "fusion", "stage.start": "threshold", "stage.uniform_share": 0.5}
    arguments = [
        *("train", "--profile", "gpu", "--variant", "fusion", "--steps", "1", *tiny_arguments(**start)),
        *("--data", str(photo_folder), "--valid", str(photo_folder), "--run-dir", str(tmp_path / "run")),
    ]
    loaded = loaded_by(f"{HIDE}\nfrom mcml.cli.main import run\nassert run({arguments!r}) == 0")
    assert {"torch", "safetensors", "lightning_fabric"} <= loaded
    assert not set(ABSENT) & loaded
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"checkpoint-00000001", "log.csv", "model", "validation.csv"}


def test_budgets_of_lines_are_kept():
    """A file has the length that its idea needs; a room has a limit, so that all stays readable."""
    for folder, most in LINES.items():
        lines = sum(len(p.read_text("utf-8").splitlines()) for p in (ROOT / folder).rglob("*.py"))
        assert lines <= most, f"{folder}: {lines} lines"
