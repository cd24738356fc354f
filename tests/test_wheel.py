"""The wheel, installed away from the checkout, holds what it needs and works in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
import pytest
from helpers import ROOT, failed
from PIL import Image


def pip(python, command, *arguments):
    flags = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    line = [sys.executable, "-m", "pip", "--python", python, command, *flags, *arguments]
    subprocess.run(list(map(str, line)), check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "mcml", folder / "source/mcml", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip(sys.executable, "wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment that sees this one's libraries but not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    pip(binaries / "python", "install", wheel)
    # A path inside a .pth file is taken as it stands: .pth files that lie there, as the checkout's, are not.
    (packages,) = folder.rglob("site-packages")
    libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "libraries.pth").write_text("\n".join(libraries))
    return binaries


@pytest.fixture
def run(installed, tmp_path):
    """Run a program of the new environment in an empty folder; it is to succeed, or its end is returned."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MCML_", "PYTHON"))}

    def run(program, *arguments, code=0):
        command = [installed / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=own)
        assert done.returncode == code, done.stderr
        return done

    return run


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path.relative_to(ROOT) for path in (ROOT / "mcml").rglob("*") if path.is_file())
    assert inside == {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_a_picture_is_compressed_and_decoded_in_an_empty_folder(run, tmp_path, astronaut):
    code = "import sys, mcml.lab.output as o; print(o.__file__, o.results_root(), *sys.path, sep='\\n')"
    file, results, *path = run("python", "-c", code).stdout.splitlines()
    assert str(tmp_path.parent) in file and str(ROOT) not in path
    assert results == str(tmp_path / "results")
    Image.fromarray(astronaut[:64, :72]).save(tmp_path / "photo.png")
    steps = ("compress photo.png --bpp 0.4", "identify photo.mcml", "decompress photo.mcml -o back.png")
    for words in (*steps, "compare photo.png back.png"):
        run("mcml", *words.split())
    assert (tmp_path / "photo.mcml").stat().st_size < 64 * 72 * 0.4 / 8 * 1.05
    error = np.asarray(Image.open(tmp_path / "back.png"), float) - astronaut[:64, :72]
    assert np.sqrt(np.mean(error**2)) < 20  # grey levels: the picture, not just some picture


def test_data_are_listed_and_a_folder_is_evaluated(run, tmp_path, photo_folder):
    assert "here, hash as registered" in run("mcml", "data").stdout
    words = ["--codecs", "webp", "--csv", "table.csv", "--bpp", "0.5", "--workers", "1"]
    run("mcml", "evaluate", "photos", *words)
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3


def test_what_needs_the_notebooks_is_refused_with_a_sentence(run, tmp_path):
    done = run("mcml", "reproduce", code=1)
    failed(done, 1, "mcml: `mcml reproduce` needs the notebooks: clone the repository and run it there\n")
    assert list(tmp_path.iterdir()) == []
