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

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
}
EXTRAS = PROJECT["project"]["optional-dependencies"]
WANTED = [Requirement(r) for r in [*PROJECT["project"]["dependencies"], *EXTRAS["test"], *EXTRAS["dev"]]]


def test_every_line_of_the_lock_is_one_exact_version():
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), (
            line
        )


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_what_pyproject_wants_is_locked_within_its_range(wanted):
    assert wanted.specifier.contains(LOCK[canonicalize_name(wanted.name)])


def test_the_lock_holds_one_torch_and_nothing_that_pulls_another():
    assert LOCK["torch"] == "2.13.0"
    assert not {"torchvision", "torchaudio", "lpips", "piq", "pyiqa", "timm"} & LOCK.keys()
    assert not [name for name in LOCK if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_lock_is_closed_under_dependencies():
    for name in LOCK:
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.name.startswith(("nvidia-", "cuda-", "triton")):
                continue  # torch's GPU libraries: which ones depends on the build that the platform gets
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in LOCK, f"{name} needs {needed}"


def test_what_is_installed_is_what_is_locked():
    differing = {n: v for n, v in LOCK.items() if metadata.version(n).split("+")[0] != v}
    assert differing == {}


def test_conda_users_get_the_lock_and_nothing_else():
    content = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    conda = [d for d in content["dependencies"] if isinstance(d, str)]
    assert [re.split("[=<>]", d)[0] for d in conda] == ["python", "pip"]
    python = conda[0].split("=")[1]
    assert Requirement(f"python{PROJECT['project']['requires-python']}").specifier.contains(python)
    assert content["dependencies"][-1] == {"pip": ["-r requirements.lock", "-e ."]}


def test_makefile_and_ci_use_the_lock():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "pip install" in makefile and "-r requirements.lock" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_nothing_in_the_repository_names_a_machine_or_a_registry():
    # spelled in pieces, so that this file does not name them itself
    bad = re.compile("/" + "work/|/" + r"root/|/home/\w+/|py" + r"pi\.org|python" + r"hosted\.org")
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in (".git", ".venv", "results") or not path.is_file():
            continue
        if path.suffix in (
            ".py",
            ".ipynb",
            ".md",
            ".toml",
            ".yml",
            ".lock",
            ".csv",
            ".json",
            ".html",
            ".cff",
        ):
            assert not bad.search(path.read_text("utf-8")), relative


def test_a_clone_of_the_package_s_own_name_does_not_hide_it(tmp_path):
    (tmp_path / "mcml" / "results").mkdir(parents=True)  # as seen from the folder above a clone
    code = "import mcml.lab.output; print(mcml.lab.output.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "mcml" / "lab" / "output.py")
