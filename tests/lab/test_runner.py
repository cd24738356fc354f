"""The runner: plans, refusals, resume, failures, and kills at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from mcml.base import files
from mcml.base.errors import DataError, UsageError
from mcml.lab import jobs, parameters, runner

PARAMETERS = """profile: str = "small"  # folder of results
seed: int = 0  # any whole number
scale: float = 1.0  # factor
mode: str = "good"  # good, bad or silent"""
WORK = """from mcml.lab.output import Output
output = Output(NAME, profile, {"seed": seed, "scale": scale}, seed=seed)
if mode == "bad":
    raise ValueError(f"seed {seed} is not liked")
if mode != "silent":
    output.table("numbers", [{"seed": seed, "product": seed * scale}], "Numbers.")
    output.finish()"""


def write_notebook(path: Path, name: str) -> None:
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(WORK.replace("NAME", repr(name))),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two small notebooks and a profile; results go beside it."""
    root = tmp_path / "checkout"
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "data").mkdir()
    for name in ("01_first", "02_second"):
        write_notebook(root / "notebooks" / f"{name}.ipynb", name)
    (root / "notebooks" / "profiles" / "small.toml").write_text("[01_first]\nseed = 3\n\n[02_second]\n")
    for module in (parameters, jobs):
        monkeypatch.setattr(module, "repo_root", lambda: root)
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path / "results"))
    return root


def results_of(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on when and how often the run was started."""
    skip = {"run.json", "complete.json", ".lock", "report.html"}
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in skip)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.suffix != ".ipynb"}


# ---------------------------------------------------------------------------------- plans


def test_parameters_are_read_with_types_and_meaning(checkout):
    found = jobs.notebook_parameters(checkout / "notebooks" / "01_first.ipynb")
    assert found["scale"] == jobs.Parameter(1.0, "float", "factor")
    assert list(found) == ["profile", "seed", "scale", "mode"]


def test_profile_and_command_line_lie_over_the_defaults(checkout):
    first, second = jobs.plan("small", overrides={"scale": 2})
    assert first.parameters == {"profile": "small", "seed": 3, "scale": 2.0, "mode": "good"}
    assert second.parameters["seed"] == 0
    assert [job.name for job in jobs.plan("small", only=["02"])] == ["02_second"]


@pytest.mark.parametrize(
    "profile, only, overrides, words",
    [
        ("smal", None, {}, "unknown profile 'smal': did you mean 'small'?"),
        ("small", ["07"], {}, "unknown notebook '07'"),
        ("small", None, {"sead": 1}, "unknown parameter 'sead': did you mean 'seed'?"),
        ("small", None, {"seed": "one"}, "parameter seed of 01_first is 'one': expected int"),
        ("small", None, {"seed": 1.5}, "expected int"),
        ("small", None, {"seed": True}, "expected int"),
    ],
)
def test_unknown_names_and_wrong_types_are_refused(checkout, profile, only, overrides, words):
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        jobs.plan(profile, only, overrides)


@pytest.mark.parametrize(
    "text, words",
    [
        ("[01_first]\nsede = 1\n", "unknown parameter of 01_first 'sede': did you mean 'seed'"),
        ("[01_frist]\n", "unknown notebook in profile small '01_frist'"),
        ("seed = 1\n", "stands outside a"),
        ("[01_first\n", "not valid TOML"),
    ],
)
def test_a_mistyped_profile_is_refused(checkout, text, words):
    (checkout / "notebooks" / "profiles" / "small.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        jobs.plan("small")


def test_a_notebook_without_parameters_cell_is_refused(checkout):
    path = checkout / "notebooks" / "01_first.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    with pytest.raises(UsageError, match=r"01_first\.ipynb has no cell tagged 'parameters'"):
        jobs.plan("small")


def test_the_fingerprint_follows_everything_that_decides_the_results(checkout):
    job = jobs.plan("small")[0]
    seen = {job.fingerprint()}
    (checkout / "mcml").mkdir()
    for step in ("code", "lock", "registry", "cells", "parameters"):
        if step == "code":
            (checkout / "mcml" / "metrics.py").write_text("x = 1\n")
        elif step == "lock":
            (checkout / "requirements.lock").write_text("numpy==1\n")
        elif step == "registry":
            (checkout / "mcml" / "data").mkdir()
            (checkout / "mcml" / "data" / "registry.toml").write_text("[a]\n")
        elif step == "cells":
            write_notebook(job.path, "other")
        else:
            job = jobs.plan("small", overrides={"seed": 4})[0]
        assert job.fingerprint() not in seen, step
        seen.add(job.fingerprint())
    (checkout / "mcml" / "cli.py").write_text("x = 1\n")  # what prints a line decides no number
    assert job.fingerprint() in seen


# ----------------------------------------------------------------------------------- runs


def test_run_resume_rerun_failure_and_mending(checkout, tmp_path):
    folder, said, ticks = tmp_path / "results" / "small", [], []

    def run(**options):
        said.clear()
        return runner.reproduce("small", say=said.append, progress=lambda *t: ticks.append(t), **options)

    report = run()
    assert report == folder / "report.html" and "numbers" in report.read_text("utf-8")
    assert (folder / "01_first" / "numbers.csv").read_text() == "seed,product\n3,3.0\n"
    assert ("01_first", 4, 4) in ticks  # papermill adds a cell with the injected parameters
    assert not (folder / ".scratch").exists() or not list((folder / ".scratch").iterdir())

    run()
    assert all("skipped" in line for line in said) and len(said) == 2

    (folder / "02_second" / "numbers.csv").write_text("tampered\n")
    run()
    assert "skipped" in said[0] and "done in" in said[1]
    assert (folder / "02_second" / "numbers.csv").read_text() == "seed,product\n0,0.0\n"

    run(only=["02"], overrides={"seed": 5})
    assert "done in" in said[0]
    assert (folder / "02_second" / "numbers.csv").read_text() == "seed,product\n5,5.0\n"

    before = results_of(folder)
    with pytest.raises(runner.NotebookError) as failure:
        run(only=["02"], overrides={"mode": "bad"})
    text = str(failure.value)
    assert "02_second: cell In [3] failed with ValueError: seed 0 is not liked" in text
    assert 'raise ValueError(f"seed {seed} is not liked")' in text and "what to do:" in text
    kept = folder / ".failed" / "02_second.ipynb"
    assert str(kept) in text and "seed 0 is not liked" in kept.read_text("utf-8")
    kept.unlink()
    assert results_of(folder) == before  # the earlier results stand untouched

    with pytest.raises(runner.NotebookError, match="ended without saving its results"):
        run(only=["02"], overrides={"mode": "silent"})
    assert results_of(folder) == before


def test_a_dead_kernel_and_bad_input_in_a_cell_are_explained(checkout, tmp_path):
    path = checkout / "notebooks" / "02_second.ipynb"
    for line, kind, words in (
        ("import os; os._exit(1)", runner.NotebookError, "its kernel did not start, or died"),
        (
            "from mcml.base.errors import DataError\nraise DataError('x.png: damaged')",
            DataError,
            "02_second: x.png: damaged",
        ),
        (
            "from mcml.base.errors import UsageError\nraise UsageError('no such thing')",
            UsageError,
            "no such thing",
        ),
    ):
        write_notebook(path, "02_second")
        notebook = nbformat.read(path, 4)
        notebook.cells[2].source = line
        nbformat.write(notebook, path)
        with pytest.raises(kind, match=words) as error:
            runner.reproduce("small", only=["02"], say=lambda _: None)
        assert "Traceback" not in str(error.value)
        assert not (tmp_path / "results" / "small" / "02_second").exists()


def test_a_folder_is_meant_from_where_the_command_was_typed(tmp_path, photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder.parent)
    job = jobs.plan("quick", only=["05"], overrides={"dataset": "photos"})[0]
    assert job.parameters["dataset"] == str(photo_folder.resolve())
    job.check_data()
    job = jobs.plan("quick", only=["05"], overrides={"dataset": "photos", "sample_image": "three"})[0]
    with pytest.raises(UsageError, match="unknown image 'three'"):
        job.check_data()


@pytest.mark.parametrize(
    "name, value, words",
    [("target_bpp", "-1", "expected bits per pixel above 0"), ("codecs", "jpeg2k", "unknown codec 'jpeg2k'")],
)
def test_bad_values_are_refused_before_any_kernel_starts(name, value, words):
    with pytest.raises(UsageError, match=words):
        jobs.plan("quick", overrides={name: value})


def test_a_word_on_the_command_line_takes_the_parameter_s_type():
    job = jobs.plan("quick", only=["05"], overrides={"sweep_bpp": "0.3", "max_images": "2"})[0]
    assert (job.parameters["sweep_bpp"], job.parameters["max_images"]) == ("0.3", 2)


def test_ctrl_c_is_one_sentence(tmp_path):
    process = start(tmp_path)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept" in err.splitlines()[-1]


def test_a_results_folder_that_cannot_be_written_is_one_sentence(checkout, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path / "taken"))
    with pytest.raises(DataError, match="results cannot be written there"):
        runner.reproduce("small")


def test_a_full_disk_is_one_sentence_and_leaves_no_results(checkout, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
    code = f"""
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{limit}
from pathlib import Path
from mcml.base.errors import DataError
from mcml.lab.output import Output
output = Output("01_first", "small", {{}})
try:
    output.table("big", [{{"n": i}} for i in range(1000)], "Too big.")
except DataError as error:
    print(error)
print(sorted(p.name for p in output.folder.glob("*")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "big.csv: cannot be written (File too large)" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def start(results: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "mcml", "reproduce", "--only", "01", "-p", "max_images=2"]
    environment = {**os.environ, "MCML_RESULTS": str(results)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    process = start(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    record = json.loads((folder / "quick" / "01_data_preparation" / "run.json").read_text())
    assert record["command"] == "mcml reproduce --only 01 -p max_images=2"
    return results_of(folder / "quick"), time.monotonic() - began


@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9])
def test_a_kill_and_a_second_start_end_in_the_same_results(undisturbed, moment, tmp_path):
    expected, seconds = undisturbed
    process = start(tmp_path)
    time.sleep(moment * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = tmp_path / "quick" / "01_data_preparation"
    assert not half.exists() or (half / "complete.json").exists()  # whole or not at all
    again = start(tmp_path)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert results_of(tmp_path / "quick") == expected
    assert len(expected) > 20
    assert (tmp_path / "quick" / "report.html").exists()


def test_a_second_run_waits_for_the_first(checkout, tmp_path):
    import fcntl

    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from mcml.lab import runner
with runner._lock(Path({str(folder)!r}), lambda line: print(line, flush=True)):
    print("mine", flush=True)
"""
    with open(folder / ".lock", "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert "another run is at work on profile 'small'" in other.stdout.readline()
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert other.communicate(timeout=30)[0].strip() == "mine"


def test_the_record_of_a_run_says_how_it_was_made(checkout, tmp_path):
    runner.reproduce("small", only=["01"], say=lambda _: None)
    record = json.loads((tmp_path / "results" / "small" / "01_first" / "run.json").read_text())
    assert record["command"]
    assert record["seed"] == 3 and record["parameters"] == {"seed": 3, "scale": 1.0}
    keys = {"commit", "dirty", "versions", "device", "threads", "load", "seconds", "data_hash", "files"}
    assert keys <= record.keys()


def test_nbval_leaves_the_results_of_real_runs_alone(tmp_path):
    """As a user would: with a results folder that holds something, from the repository's root."""
    results = files.repo_root() / "results"
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MCML_RESULTS", "PYTEST_"))}
    done = subprocess.run(
        [*command, "notebooks/01_data_preparation.ipynb"],
        cwd=files.repo_root(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before
