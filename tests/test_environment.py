"""One truth for the environment: the lock, pyproject, environment.yml and what is installed."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINES = [
    line for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if not line.startswith("#")
]
LOCK = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def pins(path):
    """Return the exact versions that a file of requirements names."""
    lines = (ROOT / path).read_text("utf-8").splitlines()
    split = (line.partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, _, version in split}


WORKFLOW, DOCS = pins("workflow/requirements.txt"), pins("docs/requirements.txt")
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [Requirement(r) for r in [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["dev"]]]
OF_A_GPU = ("nvidia-", "cuda-", "triton")  # torch's: which ones depends on the build that the platform gets
TEXTS = {".py", ".ipynb", ".md", ".toml", ".yml", ".lock", ".csv", ".json", ".html", ".cff"}


def test_every_line_of_the_lock_is_one_exact_version():
    assert not [line for line in LINES if line and not re.fullmatch(r"[\w.-]+==[A-Za-z0-9.!]+", line)]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_what_pyproject_wants_is_locked_within_its_range(wanted):
    assert wanted.specifier.contains(LOCK[canonicalize_name(wanted.name)])


def test_the_lock_holds_one_torch_and_nothing_that_pulls_another():
    assert LOCK["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio", "lpips", "piq", "pyiqa", "timm"} & LOCK.keys()
    assert not [name for name in LOCK if name.startswith(OF_A_GPU)]


def test_what_is_installed_is_locked_with_all_that_it_needs():
    assert {n: v for n, v in LOCK.items() if metadata.version(n).split("+")[0] != v} == {}
    for name in LOCK:
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                locked = canonicalize_name(needed.name) in LOCK or needed.name.startswith(OF_A_GPU)
                assert locked, f"{name} needs {needed}"


# The lock's packaging is newer than snakemake asks for; tests/workflow run with it.
@pytest.mark.parametrize(
    ("beside", "newer"), [(WORKFLOW, {"packaging"}), (DOCS, set())], ids=["workflow", "docs"]
)
def test_packages_beside_the_lock_are_pinned_with_all_that_they_need(beside, newer):
    assert not beside.keys() & LOCK.keys()
    everything, beyond = LOCK | beside, set()
    for name, version in beside.items():
        assert metadata.version(name) == version
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                found = everything[canonicalize_name(needed.name)]
                beyond |= {needed.name} if not needed.specifier.contains(found) else set()
    assert beyond == newer


def test_workflow_and_docs_agree():
    assert set(EXTRAS["workflow"]) <= {f"{name}=={version}" for name, version in WORKFLOW.items()}
    assert {name: DOCS[name] for name in DOCS.keys() & WORKFLOW.keys()}.items() <= WORKFLOW.items()


def test_conda_users_get_the_lock_and_nothing_else():
    content = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, pip, pips = content["dependencies"]
    assert re.fullmatch("python=[0-9.]+", python) and re.match(r"pip\b", pip)
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    assert pips == {"pip": ["-r requirements.lock", "-e ."]}


def test_makefile_and_ci_use_the_lock():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "pip install" in makefile and "-r requirements.lock" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_nothing_in_the_repository_names_a_machine_or_a_registry():
    # spelled in pieces, so that this file does not name them itself
    bad = re.compile("/" + "work/|/" + r"root/|/home/\w+/|py" + r"pi\.org|python" + r"hosted\.org")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout: nothing tells what belongs to the repository")
    for path in (ROOT / name for name in listed.stdout.split("\0")):  # others' builds come and go meanwhile
        if path.suffix in TEXTS and path.is_file():
            assert not bad.search(path.read_text("utf-8")), path


def test_a_clone_of_the_package_s_own_name_does_not_hide_it(tmp_path):
    (tmp_path / "mcml" / "results").mkdir(parents=True)  # as seen from the folder above a clone
    command = [sys.executable, "-c", "import mcml.lab.output; print(mcml.lab.output.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "mcml" / "lab" / "output.py")
