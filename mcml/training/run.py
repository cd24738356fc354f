"""What every training run does: spend a budget, log, check, stop when told to, resume to the bit.

A run's folder holds log.csv and its last checkpoints, each whole or absent; what else lies there is left
alone. A checkpoint is one dictionary of tensors and plain values: all that decides what comes next (weights,
their average, Adam's moments, every random generator's state, what is spent) and the settings that the run
was begun with. Its files' SHA-256 tell damage.
"""

from __future__ import annotations

import csv
import io
import math
import os
import pickle
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mcml.base.errors import DataError, McmlError, StoppedError, UsageError
from mcml.base.files import atomic_write, check_writable, read_bytes, sha256, to_csv
from mcml.model.validate import psnr
from mcml.model.weights import FILE_LIMIT_BYTES, load_into, new_folder

Report = Callable[[Mapping[str, Any]], None]  # what is called with each row of the log
LOG, LOCK, SUMS = "log.csv", "lock", "SHA256SUMS"
BUDGET = ("train.steps", "train.minutes")  # settings that a resumed run may change
COUNTERS = ("step", "elapsed_s", "best")  # best: the least mean loss of a row so far
DIVERGED = 20.0  # a mean loss this many times the best so far stops the run
DAMAGED = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, EOFError, OSError,
           pickle.UnpicklingError)  # fmt: skip


class DivergedError(McmlError):
    """Training ended in NaN or ran away; the last good checkpoint is kept (exit code 1)."""


def make_fabric(precision: str) -> Any:
    """Return a launched Fabric: every process that torchrun started, else this one alone."""
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError:  # the `lightning` package carries it under its own name
        from lightning.fabric import Fabric

    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    precision = "bf16-mixed" if precision == "bf16" else "32-true"
    device, strategy = "cuda" if torch.cuda.is_available() else "cpu", "ddp" if world > 1 else "auto"
    places = {"devices": local, "num_nodes": world // local}
    fabric = Fabric(accelerator=device, strategy=strategy, precision=precision, **places)
    fabric.launch()
    return fabric


@contextmanager
def on_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of SIGTERM or SIGINT instead of dying; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {s: signal.signal(s, lambda number, _: stop(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; "" if it is over or no /proc tells."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if state[0] in "ZX" else state[19]
    return ""


def _in_use(path: Path) -> str:
    """Return who holds a lock, or "" if that process of this machine is over."""
    try:
        pid, began, host = path.read_text("utf-8").strip().split(maxsplit=2)
        if host == platform.node():
            os.kill(int(pid), 0)
            return f"process {pid}" if began in (_began(int(pid)), "-") else ""  # else its number went on
        return f"process {pid} on {host}"
    except (ProcessLookupError, FileNotFoundError):
        return ""
    except PermissionError:
        return f"process {pid} of another user"
    except (OSError, ValueError, OverflowError):
        return "an unknown process"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a folder by a file that names this process: no file system refuses that.

    `DataError` if another is at work there. What a killed one of this machine left is taken over. Whoever
    interrupts is told whether there is a checkpoint to go on from.
    """
    path, mine = run_dir / LOCK, f"{os.getpid()} {_began(os.getpid()) or '-'} {platform.node()}"
    if os.environ.get("RANK", "0") == "0":  # the first of several processes speaks for all
        check_writable(path)
        _take(path, mine)
    try:
        yield
    except StoppedError as stopped:
        if checkpoints(run_dir):
            stopped.then = "the same command goes on from here"
        raise
    finally:
        with suppress(OSError, ValueError):
            if path.read_text("utf-8") == mine:
                path.unlink()


def _take(path: Path, mine: str) -> None:
    if path.exists() and not _in_use(path):
        path.unlink(missing_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(mine)
    except FileExistsError as error:
        who = _in_use(path) or "another process"
        advice = "wait for it, give another --run-dir, or remove this file if it is over"
        raise DataError(f"{path}: {who} is training in this folder; {advice}") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def read_log(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of log.csv as numbers, without damaged ones; NaN is what a row did not measure."""
    rows = []
    for row in csv.DictReader(read_bytes(run_dir / LOG).decode("utf-8", "replace").splitlines()):
        with suppress(TypeError, ValueError, KeyError, OverflowError):
            rows.append({name: float(value) for name, value in row.items()} | {"step": int(row["step"])})
    return rows


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders named checkpoint-<digits>, oldest first, whole or not; no others are ours."""
    paths = run_dir.glob("checkpoint-*")
    return sorted((p for p in paths if re.fullmatch("checkpoint-[0-9]+", p.name) and p.is_dir()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.partition("-")[2])


def latest(run_dir: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None."""
    return _newest_whole(checkpoints(run_dir))


def _newest_whole(folders: Sequence[Path]) -> Path | None:
    for folder in reversed(folders):
        with suppress(DataError):
            read_checkpoint(folder)
            return folder
    return None


def write_checkpoint(run_dir: Path, state: Mapping[str, Any]) -> Path:
    """Write checkpoint-<step> in files of at most 15 MiB, which travel anywhere, and drop the oldest.

    It and the last whole one before it stay; so does what is no checkpoint, aside if it has this one's name.
    `DataError` if it cannot be written: nothing of it is kept, earlier ones are.
    """
    folder, content = run_dir / f"checkpoint-{state['step']:08d}", io.BytesIO()
    torch.save(dict(state), content)
    content.seek(0)
    with new_folder(folder) as place:
        sums = ""
        for i, part in enumerate(iter(partial(content.read, FILE_LIMIT_BYTES), b"")):
            (place / f"state-{i:03d}.pt").write_bytes(part)
            sums += f"{sha256(part)}  state-{i:03d}.pt\n"
        (place / SUMS).write_text(sums, "ascii")
        if folder.exists() and not (folder / "state-000.pt").exists():
            folder.rename(folder.with_name(f"{folder.name}.{time.time_ns()}"))
    before = [old for old in checkpoints(run_dir) if _step(old) < state["step"]]
    kept = _newest_whole(before)
    for old in before[: before.index(kept)] if kept else ():
        if (old / "state-000.pt").exists():
            with suppress(OSError):
                old.rename(old.with_name(f".{old.name}.retired"))
    cut = re.compile(r"\.checkpoint-[0-9]+\.(retired|[0-9a-f]{8})")  # by a kill, or retired now
    for old in [path for path in run_dir.glob(".checkpoint-*") if cut.fullmatch(path.name)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` was given, on the CPU; `DataError` if anything of it is damaged."""
    try:
        paths = sorted(folder.glob("state-*.pt"))
        content = [path.read_bytes() for path in paths]
        sums = "".join(f"{sha256(part)}  {path.name}\n" for part, path in zip(content, paths, strict=True))
        if (folder / SUMS).exists() and (folder / SUMS).read_text("ascii") != sums:  # older ones have none
            raise DataError(f"{folder}: not a whole checkpoint (its files differ from {SUMS})")
        state = torch.load(io.BytesIO(b"".join(content)), map_location="cpu", weights_only=True)
        if state["step"] != _step(folder):
            raise DataError(f"{folder}: not a whole checkpoint (a copy of step {state['step']})")
        return state
    except DAMAGED as error:
        raise DataError(f"{folder}: not a whole checkpoint (it cannot be unpacked)") from error


class Run:
    """A run in a folder. A subclass says what a step is and calls `resume` when all is built.

    `rows` is the log so far; `step` and `elapsed_s` count the sessions before this one too; `notes` are
    sentences on what of the folder was damaged.
    """

    columns: Sequence[str]  # the figures of a step, "loss" and "gradient_norm" among them
    learner: nn.Module
    averaged: nn.Module  # the running average of its weights
    optimizer: torch.optim.Optimizer
    draws: Mapping[str, torch.Generator]
    batch: int  # crops a step

    def __init__(
        self, run_dir: Path | None, settings: Mapping[str, Any], steps: int, minutes: float, *,
        precision: str = "32", report: Report | None = None,
    ) -> None:  # fmt: skip
        """Check the budget; `resume` looks into the folder.

        Args:
            run_dir: checkpoints and log.csv; created. None keeps nothing.
            settings: what a checkpoint must agree with, `BUDGET` excepted; "NAME@SHA256" by its hash.
            steps, minutes: the budget; 0 for no limit, `UsageError` if both are.
            precision: "32" or "bf16".
        """
        if steps <= 0 and minutes <= 0:
            raise UsageError(f"{steps} steps and {minutes:g} minutes: give one of them above 0")
        self.run_dir, self.settings, self.report = run_dir, dict(settings), report
        self.steps, self.minutes = steps or math.inf, minutes or math.inf
        self.step, self.elapsed_s, self.best, self.stopping = 0, 0.0, math.inf, 0
        self.rows: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.fabric = make_fabric(precision)
        self.device = self.fabric.device

    def save(self) -> None:
        """Write a checkpoint of everything that decides what comes next."""
        if self.run_dir is not None and self.fabric.is_global_zero:
            state = {name: getattr(self, name) for name in (*COUNTERS, "settings")}
            state |= {name: getattr(self, name).state_dict() for name in ("learner", "averaged", "optimizer")}
            state["draws"] = {name: generator.get_state() for name, generator in self.draws.items()}
            write_checkpoint(self.run_dir, state)
        self.fabric.barrier()  # who resumes after this finds it

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, if there is any, with the log up to it; say whether so.

        Raises:
            UsageError: naming the first setting that the run was not begun with.
            DataError: if there are checkpoints, but none is whole.
        """
        if self.run_dir is None:
            return False
        check_writable(self.run_dir / LOG)  # now, not after a minute
        ours = checkpoints(self.run_dir)
        for folder in reversed(ours):
            try:
                self._restore(folder)
                break
            except DataError as error:
                self.notes.append(f"{error}; the one before it is taken")
                if folder == ours[0]:
                    newest, advice = (
                        self.notes[0].rpartition(";")[0],
                        "restore one, or give another --run-dir",
                    )
                    raise DataError(f"{newest}, nor is any before it; {advice}") from error
        log = self.run_dir / LOG
        if ours and log.exists():
            rows = read_log(self.run_dir)
            if not rows or len(rows) + 1 != len(read_bytes(log).splitlines()):
                self.notes.append(f"{log}: damaged; the {len(rows)} rows that can be read are kept")
            self.rows = [row for row in rows if row["step"] <= self.step]
        elif self.step:
            self.notes.append(f"{log}: missing; its rows begin anew")
        return bool(ours)

    def _restore(self, folder: Path) -> None:
        """Take over a checkpoint; `DataError` if it is not whole, `UsageError` if it is of another run."""
        state = read_checkpoint(folder)
        try:
            for name, value in self.settings.items():
                was = state["settings"].get(name)
                if str(was).rpartition("@")[2] != str(value).rpartition("@")[2] and name not in BUDGET:
                    change = f"{name} was {was!r}, now {value!r}"
                    raise UsageError(f"{folder} is of another run: {change}; give another --run-dir")
            load_into(self.learner, state["learner"], str(folder))
            load_into(self.averaged, state["averaged"], str(folder))
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed_s, self.best = (state[name] for name in COUNTERS)
            for name, generator in self.draws.items():
                if generator.get_state().shape != state["draws"][name].shape:
                    raise UsageError(f"{folder} is of another kind of device than {self.device.type}")
                generator.set_state(state["draws"][name])
        except McmlError:
            raise
        except DAMAGED as error:
            raise DataError(f"{folder}: not a whole checkpoint ({error})") from error

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End `fit` after the step at work, with a checkpoint; what SIGTERM and SIGINT call."""
        self.stopping = number

    def progress(self) -> float:
        """Return the spent share of the budget, whichever of steps and minutes is further."""
        return max(self.step / self.steps, self.elapsed_s / 60 / self.minutes)

    def fit(self, *, log_every: int = 20, save_every_s: float = 300.0) -> str:
        """Train until the budget is spent or `stop` is called; write a checkpoint.

        Args:
            log_every: steps whose mean is a row of the log; the clock is read then.
            save_every_s: between checkpoints.

        Returns:
            "finished" or "interrupted".

        Raises:
            DivergedError: if the loss ran away or something is not finite; checkpoints are as they were.
            DataError: if a checkpoint cannot be written; earlier ones are kept.
        """
        steps: list[dict[str, Tensor]] = []
        saved_s, since = self.elapsed_s, time.monotonic()
        began = since - self.elapsed_s
        self.stopping, stopped = 0, False
        with on_signals(self.stop):
            while self.progress() < 1.0 and not stopped:
                steps.append({name: value.detach() for name, value in self.train_step().items()})
                self.step += 1
                stops_alone = self.stopping and self.fabric.world_size == 1
                if self.step % log_every and self.progress() < 1.0 and not stops_alone:
                    continue
                now = time.monotonic()  # all processes go by the first one's clock, and one stops all
                self.elapsed_s = self.fabric.broadcast(now - began)
                flag = torch.tensor(float(self.stopping > 0), device=self.device)
                stopped = bool(self.fabric.all_reduce(flag, reduce_op="max"))
                self._log(steps, now - since)
                steps, since = [], now
                if self.elapsed_s - saved_s > save_every_s:
                    self.save()
                    saved_s = self.elapsed_s
            if self.progress() >= 1.0:
                self.finish()
            self.save()
        return "interrupted" if self.progress() < 1.0 else "finished"

    def train_step(self) -> dict[str, Tensor]:
        """Do one step; return its figures by column, 0-d; `psnr_...` as squared errors of peak 1."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what is left when the budget is spent."""

    def _log(self, steps: Sequence[Mapping[str, Tensor]], seconds: float) -> None:
        """Add the means of some steps to the log, if they are fit; NaN is what none of them measured."""
        measured = [name for name in self.columns if any(name in step for step in steps)]
        means = [torch.stack([s[name].float() for s in steps if name in s]).mean() for name in measured]
        figures = dict(zip(measured, self.fabric.all_reduce(torch.stack(means)).tolist(), strict=True))
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if not bad and not all(bool(p.isfinite().all()) for p in self.learner.parameters()):
            bad = ["the weights"]
        if bad:
            self._fail(f"{', '.join(bad)} not finite (gradient norm {figures['gradient_norm']:.3g})")
        if figures["loss"] > DIVERGED * self.best:
            self._fail(f"the loss is {figures['loss']:.3g} after a best of {self.best:.3g}")
        self.best = min(self.best, figures["loss"])
        row = {"step": self.step, "seconds": round(self.elapsed_s, 2), "spent": round(self.progress(), 5)}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "images_per_s": self.batch * len(steps) / seconds}
        for name in self.columns:
            value = figures.get(name, math.nan)
            row[name] = psnr(torch.tensor(value).sqrt()) if name.startswith("psnr_") else value
        self.rows.append(row)
        if self.fabric.is_global_zero and self.run_dir is not None:
            atomic_write(self.run_dir / LOG, to_csv(self.rows))
        if self.fabric.is_global_zero and self.report is not None:
            self.report(row)

    def _fail(self, what: str) -> NoReturn:
        kept = latest(self.run_dir) if self.run_dir else None
        last = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written"
        raise DivergedError(f"step {self.step}: {what}; try a smaller learning rate (lr); {last}")
