"""The runner: plans, refusals, resume, failures, and signals at any moment."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product

import nbformat
import psutil
import pytest
from helpers import ROOT, files_of, tiny_codec

from mcml.base.errors import DataError, UsageError
from mcml.lab import parameters, runner

PARAMETERS = """profile: str = "small"  # folder of results
seed: int = 0  # any whole number
scale: float = 1.0  # factor
dataset: str = "embedded"  # a data set or a folder
test_dataset: str = ""  # a data set or a folder
sample_image: str = ""  # an image of the data set
codecs: str = "jpeg420"  # names or folders
mode: str = "good"  # good, bad, silent, or a moment at which to wait"""
WORK = """import os, time
from functools import partial
from pathlib import Path
from mcml.lab.output import Output
from mcml.lab.workers import side_by_side
def pause(moment):
    if mode == moment:
        side_by_side([partial(abs, 1)] * 2, 2)  # workers that wait for more
        Path(os.environ["MARK"]).touch()
        time.sleep(600)
pause("before")
output = Output(NAME, profile, {"seed": seed, "scale": scale}, seed=seed)
if mode == "bad":
    raise ValueError(f"seed {seed} is not liked")
if mode != "silent":
    output.table("numbers", [{"seed": seed, "product": seed * scale}], "Numbers.")
    pause("half saved")
    output.finish()
pause("finished")"""
COMMAND = """
import sys
from pathlib import Path
from mcml.lab import parameters, runner
root = Path(sys.argv[1])
runner.repo_root = parameters.repo_root = lambda: root
from mcml.cli.main import main
sys.argv = ["mcml", *sys.argv[2:]]
main()
"""


def write_notebook(path, work=WORK):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.cells = [
        nbformat.v4.new_markdown_cell(f"# {path.stem}"),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(work.replace("NAME", repr(path.stem))),
    ]
    nbformat.write(notebook, path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two small notebooks and a profile; results go beside it."""
    root = tmp_path / "checkout"
    (root / "notebooks" / "profiles").mkdir(parents=True)
    for name in ("01_first", "02_second"):
        write_notebook(root / "notebooks" / f"{name}.ipynb")
    (root / "notebooks" / "profiles" / "small.toml").write_text("[01_first]\nseed = 3\n\n[02_second]\n")
    (root / "requirements.lock").touch()
    for module in (parameters, runner):
        monkeypatch.setattr(module, "repo_root", lambda: root)
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.delenv("MCML_DATA", raising=False)
    return root


def results_of(folder):
    """Everything that must not depend on when and how often the run was started."""
    names = [name for name in files_of(folder) if name.endswith((".csv", ".md", ".tex"))]
    return {name: (folder / name).read_bytes() for name in names}


def command(checkout, *words):
    arguments = [str(checkout), "reproduce", "--profile", "small", "--only", "01", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], **pipes)


# ---------------------------------------------------------------------------------- plans


def test_profile_and_command_line_lie_over_the_defaults(checkout):
    defaults = runner.notebook_parameters(checkout / "notebooks" / "01_first.ipynb")
    assert list(defaults.values()) == ["small", 0, 1.0, "embedded", "", "", "jpeg420", "good"]
    first, second = runner.plan("small", overrides={"scale": "2.5"})
    assert first.parameters == defaults | {"seed": 3, "scale": 2.5}
    assert second.parameters == defaults | {"scale": 2.5}
    assert [run.name for run in runner.plan("small", only=["02"])] == ["02_second"]
    assert runner.plan("small", overrides={"mode": "0.3"})[0].parameters["mode"] == "0.3"


@pytest.mark.parametrize(
    "profile, only, overrides, words",
    [
        ("smal", None, {}, "unknown profile 'smal': did you mean 'small'"),
        ("small", ["07"], {}, "unknown notebook '07'"),
        ("small", None, {"sead": 1}, "unknown parameter 'sead': did you mean 'seed'"),
        ("small", None, {"seed": "one"}, "parameter seed is 'one': expected a whole number from 0"),
        ("small", None, {"seed": "-1"}, "parameter seed is -1: expected a whole number from 0"),
        ("small", None, {"codecs": "jpeg2k"}, "unknown codec 'jpeg2k'"),
        ("small", None, {"codecs": "webp,runs/none"}, "unknown codec 'runs/none'"),
        ("small", None, {"test_dataset": "kodac"}, "unknown data set 'kodac': did you mean 'kodak'"),
        ("sede", None, {}, "unknown parameter of 01_first 'sede': did you mean 'seed'"),
        ("frist", None, {}, "unknown notebook in profile frist '01_frist'"),
        ("small", ["03"], {}, r"03_third\.ipynb has no cell tagged 'parameters'"),
    ],
)
def test_unknown_names_and_bad_values_are_refused_before_any_kernel(
    checkout, profile, only, overrides, words
):
    profiles = checkout / "notebooks" / "profiles"
    (profiles / "sede.toml").write_text("[01_first]\nsede = 1\n")
    (profiles / "frist.toml").write_text("[01_frist]\n")
    nbformat.write(nbformat.v4.new_notebook(), checkout / "notebooks" / "03_third.ipynb")
    with pytest.raises(UsageError, match=words):
        runner.plan(profile, only, overrides)


def test_places_are_meant_from_where_the_command_was_typed(checkout, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(photo_folder.parent)
    tiny_codec(tmp_path / "runs" / "model")
    overrides = {"dataset": "photos", "test_dataset": "./photos", "codecs": "webp, runs/model"}
    for run in runner.plan("small", overrides=overrides):
        assert run.parameters["dataset"] == run.parameters["test_dataset"] == str(photo_folder.resolve())
        assert run.parameters["codecs"] == f"webp,{(tmp_path / 'runs' / 'model').resolve()}"
        run.check_data()
    (tmp_path / "empty").mkdir()
    for name, place in product(("dataset", "test_dataset"), ("./nowhere", "empty")):
        with pytest.raises(DataError, match=place):
            runner.plan("small", overrides={name: place})
    run = runner.plan("small", overrides=overrides | {"sample_image": "three"})[0]
    with pytest.raises(UsageError, match="unknown image 'three'"):
        run.check_data()


def test_every_place_among_the_parameters_is_known_as_one():
    """A new parameter that names a data set or codecs must be made absolute and hashed, too."""
    folders = {name for name, (_, expected) in parameters.CHECKS.items() if "a folder" in expected}
    codecs = {name for name, (_, expected) in parameters.CHECKS.items() if "codec names" in expected}
    assert (folders, codecs) == (set(parameters.DATA_SETS), set(parameters.CODECS))


def test_the_fingerprint_follows_everything_that_decides_the_results(checkout, photo_folder, tmp_path):
    places = {name: str(tmp_path / name) for name in ("dataset", "test_dataset", "codecs")}
    places["measured"] = "results/released/points"
    for name in ("dataset", "test_dataset"):
        shutil.copytree(photo_folder, tmp_path / name)
    run = runner.NotebookRun(runner.notebooks()[0], places)
    seen = {run.fingerprint(), runner.NotebookRun(run.path, places | {"seed": 4}).fingerprint()}
    assert len(seen) == 2
    for path, content in (
        (checkout / "mcml" / "metrics" / "color.py", b"x = 1\n"),
        (checkout / "mcml" / "model" / "profiles" / "cpu.toml", b"x = 1\n"),
        (checkout / "mcml" / "model" / "released" / "a" / "weights.safetensors", b"x"),
        (checkout / "mcml" / "data" / "registry.toml", b"x = 1\n"),
        (checkout / "requirements.lock", b"x==1\n"),
        (checkout / "data" / "published" / "curves.csv", b"x\n1\n"),
        (checkout / "results" / "released" / "points" / "one" / "points.csv", b"x\n1\n"),
        (checkout / "results" / "released" / "paper_table.csv", b"x\n1\n"),
        (tmp_path / "codecs" / "notes.txt", b"x"),
        (tmp_path / "dataset" / "two.png", (photo_folder / "one.png").read_bytes()),
        (tmp_path / "test_dataset" / "two.png", (photo_folder / "one.png").read_bytes()),
        (run.path, run.path.read_bytes().replace(b"600", b"700")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        assert run.fingerprint() not in seen, path
        seen.add(run.fingerprint())
    for name in ("cli/main.py", "lab/runner.py", "lab/templates/report.html", "data/__pycache__/a.pyc"):
        (checkout / "mcml" / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / "mcml" / name).write_text("x = 1\n")  # what prints a line decides no number
    assert run.fingerprint() in seen


def test_notebooks_whose_data_are_not_here_are_left_out_unless_asked_for(
    checkout, tmp_path, photo_folder, monkeypatch
):
    profile = checkout / "notebooks" / "profiles" / "small.toml"
    profile.write_text('[01_first]\n\n[02_second]\ntest_dataset = "train"\n')
    sentence = "left out, MCML_DATA names no folder that holds the data set train: "
    said = []
    report = runner.reproduce("small", say=said.append)
    assert said[0] == "profile small: 1 notebook" and said[2].startswith("01_first: done in")
    assert said[1] == sentence + "02_second"
    assert said[1] in report.read_text("utf-8") and not (report.parent / "02_second").exists()
    with pytest.raises(DataError, match=sentence + "02_second"):
        runner.reproduce("small", only=["02"])
    with pytest.raises(DataError, match=sentence + "01_first, 02_second"):
        runner.reproduce("small", overrides={"test_dataset": "train"})
    shutil.copytree(photo_folder, tmp_path / "data" / "train")
    monkeypatch.setenv("MCML_DATA", str(tmp_path / "data"))
    assert not any(run.absent_sets() for run in runner.plan("small"))


# ----------------------------------------------------------------------------------- runs


def test_run_resume_rerun_failure_and_mending(checkout, tmp_path):
    folder, said, ticks = tmp_path / "results" / "small", [], []

    def run(**options):
        said.clear()
        return runner.reproduce("small", say=said.append, progress=lambda *t: ticks.append(t), **options)

    report = run()
    assert report == folder / "report.html" and "numbers" in report.read_text("utf-8")
    assert (folder / "01_first" / "numbers.csv").read_text() == "seed,product\n3,3.0\n"
    # papermill adds a cell with the injected parameters
    assert [tick for tick in ticks if tick[0] == "01_first"] == [("01_first", n, 4) for n in range(5)]
    assert not list((folder / ".scratch").iterdir())
    record = json.loads((folder / "01_first" / "run.json").read_text())
    assert record["seed"] == 3 and record["parameters"] == {"seed": 3, "scale": 1.0}
    executed = (folder / "01_first" / "01_first.ipynb").read_text("utf-8")
    assert "injected-parameters" in executed
    assert str(tmp_path) not in executed and "start_time" not in executed and "iopub" not in executed

    run()
    assert said[0] == "profile small: 2 notebooks"
    assert all("skipped" in line for line in said[1:]) and len(said) == 3

    (folder / "02_second" / "numbers.csv").write_text("tampered\n")
    run()
    assert "skipped" in said[1] and "done in" in said[2]
    assert (folder / "02_second" / "numbers.csv").read_text() == "seed,product\n0,0.0\n"

    run(only=["02"], overrides={"seed": 5})
    assert "done in" in said[1]
    assert (folder / "02_second" / "numbers.csv").read_text() == "seed,product\n5,5.0\n"

    before = results_of(folder)
    with pytest.raises(runner.NotebookError) as failure:
        run(only=["02"], overrides={"mode": "bad"})
    text = str(failure.value)
    assert "02_second: cell In [3] failed with ValueError: seed 0 is not liked" in text
    assert "pause(" in text and "what to do:" in text
    kept = folder / ".failed" / "02_second.ipynb"
    assert str(kept) in text and "seed 0 is not liked" in kept.read_text("utf-8")
    with pytest.raises(runner.NotebookError, match="ended without saving its results"):
        run(only=["02"], overrides={"mode": "silent"})
    kept.unlink()
    assert results_of(folder) == before  # the earlier results stand untouched


@pytest.mark.parametrize(
    "work, kind, words",
    [
        ("import os; os._exit(1)", runner.NotebookError, "its kernel did not start, or died"),
        ("from mcml.base.errors import *\nraise DataError('x: torn')", DataError, "02_second: x: torn"),
        ("from mcml.base.errors import *\nraise UsageError('no such thing')", UsageError, "no such thing"),
    ],
)
def test_a_dead_kernel_and_bad_input_in_a_cell_are_explained(checkout, tmp_path, work, kind, words):
    write_notebook(checkout / "notebooks" / "02_second.ipynb", work)
    with pytest.raises(kind, match=words) as error:
        runner.reproduce("small", only=["02"], say=lambda _: None)
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "results" / "small" / "02_second").exists()


def test_a_results_folder_that_cannot_be_written_is_one_sentence(checkout, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        runner.reproduce("small")


@pytest.mark.parametrize(
    "number, moment, last_line",
    [
        (signal.SIGINT, "half saved", "mcml: interrupted; " + runner.KEPT),
        (signal.SIGTERM, "finished", "mcml: terminated; " + runner.KEPT),
        (signal.SIGKILL, "before", None),
    ],
)
def test_a_signal_leaves_neither_processes_nor_half_results(checkout, tmp_path, number, moment, last_line):
    folder, mark = tmp_path / "results" / "small", tmp_path / "mark"
    process = command(checkout, "-p", f"mode={moment}")
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # a kernel and its two workers
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert not (folder / "01_first").exists() and not out
    if last_line:
        assert process.returncode == 128 + number
        assert err.splitlines() == ["profile small: 1 notebook", "01_first: running 4 cells", last_line]

    again = command(checkout)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    results = results_of(folder)
    assert list(results) == [f"01_first/numbers.{kind}" for kind in ("csv", "md", "tex")]
    assert results["01_first/numbers.csv"] == b"seed,product\n3,3.0\n"
    assert (folder / "report.html").exists() and "report:" in out
    record = json.loads((folder / "01_first" / "run.json").read_text())
    assert record["command"] == "mcml reproduce --profile small --only 01"


def test_a_second_run_of_a_notebook_waits_for_the_first(tmp_path):
    code = f"""
from pathlib import Path
from mcml.lab import runner
with runner._lock(Path({str(tmp_path)!r}), "01_first", lambda line: print(line, flush=True)):
    print("mine", flush=True)
"""
    with runner._lock(tmp_path, "02_second"), open(tmp_path / ".01_first.lock", "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "01_first: another run is at work on it, waiting for its end\n"
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert other.communicate(timeout=60)[0].strip() == "mine"


def test_nbval_leaves_the_results_of_real_runs_alone(tmp_path):
    """As a user would, without a results folder of the caller's own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "notebooks" / "conftest.py", folder)
    write_notebook(folder / "07_other.ipynb", WORK + "\nassert 'mcml-nbval' in str(output.folder)")
    options = ["-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MCML_RESULTS", "PYTEST_"))}
    call = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-m", "pytest", *options], check=False, **call)
    assert done.returncode == 0, done.stdout[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"]
    assert not (ROOT / "results" / "small").exists()


# ------------------------------------------------------------------------------ surroundings


def test_a_run_is_the_same_whatever_the_user_s_jupyter_ipython_home_and_disk_are(
    checkout, tmp_path, monkeypatch
):
    """A foreign kernel of our name, start-up files, a disk without locks, braces and dollars in names."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    foreign = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(foreign))
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "0.py"
    startup.parent.mkdir(parents=True)
    for file in (startup, tmp_path / "startup.py"):
        file.write_text("leaked = True\n")
    work = """import os, sys
assert "leaked" not in globals()
assert sys.executable == EXECUTABLE
import matplotlib
matplotlib.use("agg", force=False)
from mcml.lab.output import Output
output = Output(NAME, profile, {"seed": seed}, seed=seed)
output.table("numbers", [{"home": os.path.expanduser("~") != "~"}], "Numbers.")
output.finish()""".replace("EXECUTABLE", repr(sys.executable))
    write_notebook(checkout / "notebooks" / "01_first.ipynb", work)
    results = tmp_path / "r{x} {{y} $5_$6 {0}"
    for name, value in {
        "JUPYTER_PATH": spec.parent.parent, "IPYTHONDIR": tmp_path / "ipython", "HOME": "/proc/nowhere",
        "PYTHONSTARTUP": tmp_path / "startup.py", "MPLBACKEND": "tkagg", "MCML_RESULTS": results,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    report = runner.reproduce("small", ["01"], say=lambda _: None)
    assert report == results / "small" / "report.html"
    assert (results / "small" / "01_first" / "numbers.csv").read_text() == "home\nTrue\n"
    executed = json.loads((results / "small" / "01_first" / "01_first.ipynb").read_text("utf-8"))
    assert executed["metadata"]["kernelspec"]["name"] == "python3"
    assert os.environ["MPLBACKEND"] == "tkagg"  # the caller's own is as it was


def test_a_picture_whose_name_notebooks_cannot_print_is_told_before_they_start(
    checkout, photo_folder, tmp_path, monkeypatch
):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photo_folder / "one.png").rename(photo_folder / name)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    folder = photo_folder.rename(tmp_path / os.fsdecode(b"\xe9"))
    (tmp_path / "plain").mkdir()
    shutil.copy(folder / "two.png", tmp_path / "plain")
    for dataset, results in ((folder, "r"), (tmp_path / "plain", os.fsdecode(b"r\xe9"))):
        monkeypatch.setenv("MCML_RESULTS", str(tmp_path / results))
        with pytest.raises(DataError, match="its name is not UTF-8, which notebooks cannot print: rename it"):
            runner.reproduce("small", ["01"], {"dataset": str(dataset)}, say=lambda _: None)
