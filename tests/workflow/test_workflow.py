"""The workflow's graph, its commands, what a change makes anew, and going on after a kill."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from helpers import ROOT, TINY

from mcml.cli.main import parser
from mcml.cli.train import _recipe
from mcml.lab import runner

WORKFLOW = ROOT / "workflow"
PROFILES = sorted(path.stem for path in (WORKFLOW / "config").glob("*.yaml"))
FIXED = {"data": 1, "rate_distortion": 1, "paper_table": 1, "report": 1, "all": 1}
TRAINED = {"joint": 4, "literal": 1, "entropy": 7, "coders": 1, "joint_table": 1} | FIXED
RULES = {
    "quick": {"luma": 1, "cell": 12, "points": 3, "scalar": 2, "binary": 4, "curves": 11} | TRAINED,
    "cpu": {"cell": 40, "points": 4, "scalar": 2, "binary": 10, "curves": 14} | TRAINED,
    "gpu": {"luma": 1, "cell": 48, "points": 2, "scalar": 3, "binary": 6, "curves": 14} | TRAINED,
    "released": {"points": 1, "curves": 9} | FIXED,
}


def start(folder, *words, profile="quick", **config):
    """Start snakemake in a folder that has the notebooks and no results."""
    with suppress(FileExistsError):
        (folder / "notebooks").symlink_to(ROOT / "notebooks")
    command = [sys.executable, "-m", "snakemake", *words, "--nolock", "--rerun-incomplete", "--directory"]
    command += [str(folder), "--snakefile", str(WORKFLOW / "Snakefile"), "--config", f"profile={profile}"]
    command += [f"{name}={value}" for name, value in config.items()]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def snakemake(folder, *words, code=0, **config):
    """Run snakemake to its end; return what it prints."""
    process = start(folder, *words, **config)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == code, text
    return text


def jobs(text):
    """Return the number of jobs by rule."""
    table = text.partition("Job stats:")[2].partition("\n\n")[0]
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
    assert counts.pop("total", 0) == sum(counts.values())
    return counts


# ------------------------------------------------------------------------------------------- graphs


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """Each profile's plan, with commands."""
    words = ("--dry-run", "-p", "--cores", "2")
    running = {p: start(tmp_path_factory.mktemp(p), *words, profile=p) for p in RULES}
    return {profile: process.communicate(timeout=300)[0] for profile, process in running.items()}


@pytest.mark.parametrize("profile", RULES)
def test_a_dry_run_of_each_profile_plans_its_rules(profile, dry_runs):
    assert sorted(RULES) == PROFILES
    counts = jobs(dry_runs[profile])
    assert counts.pop("notebook") >= 3
    assert counts == RULES[profile]


def test_the_cluster_s_profile_plans_the_same_with_its_resources(tmp_path, dry_runs):
    profile = yaml.safe_load((WORKFLOW / "slurm" / "config.yaml").read_text("utf-8"))
    assert profile["executor"] == "slurm"
    text = snakemake(tmp_path, "--dry-run", "--profile", str(WORKFLOW / "slurm"), profile="gpu")
    assert jobs(text) == jobs(dry_runs["gpu"])
    cell = re.search(r"^rule cell:.*?resources: ([^\n]+)", text, re.M | re.S)[1]
    assert "gpu=1" in cell and "runtime=240" in cell and "mem_mb=16000" in cell


@pytest.mark.parametrize("profile", RULES)
def test_every_command_is_one_that_mcml_or_a_script_accepts(profile, dry_runs):
    commands, used = parser().get_default("commands"), set()
    for line in re.findall(r"^Shell command: (MCML_RULE=.*)$", dry_runs[profile], re.M):
        words = shlex.split(line.partition(">>")[0])
        if "mcml" in words:
            name, *options = words[words.index("mcml") + 1 :]
            parsed = commands[name].parse_intermixed_args(options)
            if name == "train":
                _recipe(parsed, parsed.variant, parsed.set)
            if name == "reproduce" and parsed.parameter:
                values = dict(text.split("=") for text in parsed.parameter)
                assert runner.plan(parsed.profile, parsed.only.split(",") if parsed.only else None, values)
        else:
            name = next(Path(w).name for w in words[1:] if w.endswith(".py") and "alone" not in w)
            text = (WORKFLOW / "scripts" / name).read_text("utf-8")
            assert [o for o in words if o.startswith("--") and f'"{o}"' not in text] == []
        used.add(name)
    assert used >= {"data.py", "evaluate", "points.py", "rate_distortion.py", "paper_table.py", "reproduce"}
    assert profile == "released" or used >= {"train", "train-entropy"}


def test_several_processes_train_by_torchrun(tmp_path):
    (tmp_path / "several.yaml").write_text("training: {processes: 2}", "utf-8")
    words = ("results/gpu/records/models/luma.json", "--configfile", str(tmp_path / "several.yaml"))
    text = snakemake(tmp_path, *words, "--dry-run", "-p", "--cores", "4", profile="gpu")
    assert "-m torch.distributed.run --standalone --nproc-per-node 2 -m mcml train --profile gpu" in text
    assert "gpu=2" in text


def test_an_unknown_profile_is_one_sentence(tmp_path):
    text = snakemake(tmp_path, "--dry-run", profile="quik", code=1)
    assert "profile 'quik': expected one of cpu, gpu, quick, released" in text and "Traceback" not in text


def test_remade_means_beyond_tolerance_are_told():
    spec = importlib.util.spec_from_file_location("rates", WORKFLOW / "scripts" / "rate_distortion.py")
    spec.loader.exec_module(rates := importlib.util.module_from_spec(spec))
    kept = pd.DataFrame([{"codec": "webp", "bpp": 0.25, **dict.fromkeys(rates.TOLERANCES, 2.0)}])
    remade = pd.concat([kept.assign(psnr=2.25), kept.assign(bpp=0.5), kept.assign(codec="png")])
    rows = rates.drift(remade, kept)
    assert len(rows) == len(rates.TOLERANCES)
    beyond = rows[~rows.within].to_dict("records")
    assert [(row["column"], row["remade"], row["kept"], row["difference"]) for row in beyond] == [
        ("psnr", 2.25, 2.0, 0.25)
    ]


@pytest.mark.parametrize("psnr, beyond", [(0.0, "0 of 4"), (1.0, "1 of 4")])
def test_curves_beside_kept_ones_say_how_many_means_drift(tmp_path, psnr, beyond):
    points = pd.read_csv(ROOT / "results/released/rate_distortion_kodak/points.csv")
    kept = points[points.codec == "webp"]
    about = {"data": "kodak", "data_hash": "1", "images": 24, "settings": {"webp": "method 6"}, "commit": "c"}
    for name, table in (("kept", kept), ("remade", kept.assign(psnr=kept.psnr + psnr))):
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "points.csv", index=False)
        (tmp_path / name / "run.json").write_text(json.dumps(about), "utf-8")
    script = [sys.executable, str(WORKFLOW / "scripts" / "rate_distortion.py"), f"webp={tmp_path / 'remade'}"]
    script += ["--rates", "0.3", "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "out")]
    done = subprocess.run(script, check=True, capture_output=True, text=True)
    assert f"{beyond} means differ from the kept ones beyond tolerance" in done.stdout
    assert len(pd.read_csv(tmp_path / "out" / "drift.csv")) == 4


# ------------------------------------------------------------------------------------------- runs

SMALL = [f"{name}={value}" for name, value in TINY.items()]
SMALL += [f"model.{stream}.prior_width=8" for stream in ("luma", "color")]


def tiny(folder, luma_steps=2, cell_steps=2, entropy_steps=20):
    """Write quick's configuration with the smallest networks; return the words that name it and a cell."""
    config = yaml.safe_load((WORKFLOW / "config" / "quick.yaml").read_text("utf-8"))
    config["luma"] = {"parts": [{"steps": luma_steps, "set": SMALL}]}
    config["cells"] = {"from_nothing": [{"features": [4], "seeds": [0], "steps": cell_steps, "set": SMALL}]}
    config["entropy"] = {"steps": entropy_steps}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), "utf-8")
    target = "results/quick/records/models/from_nothing_codes_no_4_0.json"
    return ["--configfile", str(folder / "tiny.yaml"), "--cores", "2", target]


def test_a_changed_parameter_makes_anew_what_hangs_on_it_and_nothing_else(tmp_path):
    words = tiny(tmp_path)
    assert jobs(snakemake(tmp_path, *words)) == {"data": 1, "luma": 1, "cell": 1}
    record = json.loads((tmp_path / words[-1]).read_text("utf-8"))["record"]
    assert record["rule"] == "cell" and record["steps"] == 2 and record["from"]["name"] == "model"
    assert json.loads((tmp_path / "results/quick/records/data.json").read_text("utf-8"))["rule"] == "data"
    nothing = "Nothing to be done"
    assert nothing in snakemake(tmp_path, *words, "--dry-run")
    assert nothing in snakemake(tmp_path, *tiny(tmp_path, entropy_steps=21), "--dry-run")
    assert jobs(snakemake(tmp_path, *tiny(tmp_path, cell_steps=3), "--dry-run")) == {"cell": 1}
    assert jobs(snakemake(tmp_path, *tiny(tmp_path, luma_steps=3), "--dry-run")) == {"luma": 1, "cell": 1}


def wait_for(happened, seconds=300):
    """Wait until a function returns something, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            if found := happened():
                return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_a_run_that_was_killed_goes_on_and_two_at_once_are_told_apart(tmp_path):
    """Killed, snakemake leaves its training behind; the next run waits for that, and resumes it."""
    *words, _ = tiny(tmp_path, luma_steps=400)
    words.append("results/quick/records/models/luma.json")
    first = start(tmp_path, *words)
    run = wait_for(lambda: next((tmp_path / "results/quick/runs").glob("*/luma/log.csv"), None)).parent
    assert "another run of the workflow is at work" in snakemake(tmp_path, *words, code=1)
    left = [p for p in psutil.Process(first.pid).children(recursive=True) if "mcml" in p.cmdline()]
    first.kill()
    first.wait()
    second = start(tmp_path, *words)
    log = tmp_path / "results/quick/logs/luma.log"
    wait_for(lambda: "another command is at work there" in log.read_text("utf-8"))
    for process in left:
        process.send_signal(signal.SIGTERM)
    text = second.communicate(timeout=300)[0]
    assert second.returncode == 0, text
    assert 0 < int(re.search(r"resumed at step (\d+)", log.read_text("utf-8"))[1]) < 400
    assert json.loads((tmp_path / words[-1]).read_text("utf-8"))["record"]["steps"] == 400
    assert list((tmp_path / "results/quick/runs").iterdir()) == [run.parent]
