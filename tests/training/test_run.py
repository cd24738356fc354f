"""A run's folder: checkpoints whole or passed over, of this run or refused; strangers, the log, the lock."""

import math
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import equal_tensors, flat_optimizer, rows_of, tiny_recipe

from mcml.base.errors import DataError, StoppedError, UsageError
from mcml.model.model import build
from mcml.model.weights import FILE_LIMIT_BYTES
from mcml.training import run
from mcml.training.trainer import Trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_two_newest_checkpoints_are_kept_and_one_written_again_takes_the_place_of_the_first(
    copied, whole, store
):
    assert names(copied) == ["checkpoint-00000006", "log.csv"]
    trainer = Trainer(whole.recipe, store, copied)
    for step in (7, 8, 10, 10):
        trainer.step = step
        trainer.model.rate_slope.fill_(trainer.best)
        trainer.save()
        trainer.best = 5.0
    assert names(copied) == ["checkpoint-00000008", "checkpoint-00000010", "log.csv"]
    assert run.latest(copied).name == "checkpoint-00000010"
    assert float(run.read_checkpoint(run.latest(copied))["learner"]["rate_slope"][0]) == 5


def test_what_a_killed_process_left_is_ignored_and_swept_away(copied, whole, store):
    newest = run.latest(copied)
    cut = shutil.copytree(newest, copied / ".checkpoint-00000009.1234abcd")
    shutil.copytree(newest, copied / ".checkpoint-00000003.retired")
    assert run.latest(copied) == newest
    assert run.latest(cut) is None and run.latest(copied / "none") is None
    trainer = Trainer(whole.recipe, store, copied)
    assert (trainer.step, trainer.notes) == (6, [])
    trainer.save()
    assert names(copied) == ["checkpoint-00000006", "log.csv"]


COPIES = ("checkpoint-best", "checkpoint-00000003.bak", "checkpoint-x", "checkpoint-", "checkpoint-7a",
          "old-checkpoint-9", ".checkpoint-best", ".checkpoint-00000006", ".checkpoint-9.mine")  # fmt: skip


def test_strangers_in_the_folder_neither_count_nor_are_deleted(copied, whole, store):
    newest = run.latest(copied)
    for name in (*COPIES, "checkpoint-00000099"):  # the last is named like one of ours
        shutil.copytree(newest, copied / name)
    kept = {name: (copied / name / "state-000.pt").read_bytes() for name in (*COPIES, "checkpoint-00000099")}
    (copied / "checkpoint-00000008").mkdir()
    (copied / "checkpoint-00000008" / "notes.txt").write_text("mine")
    (copied / "checkpoint-00000009").write_text("a file")
    assert run.latest(copied) == newest
    longer = whole.recipe.changed(**{"train.steps": 10})
    trainer = Trainer(longer, store, copied)
    said = "checkpoint-00000099: not a whole checkpoint (a copy of step 6); the one before it is taken"
    assert trainer.step == 6 and trainer.notes[0] == f"{copied / said}"
    trainer.fit(log_every=1, save_every_s=0)
    ours = {f"checkpoint-000000{number}" for number in ("09", "10", "99")}
    assert {path.name for path in run.checkpoints(copied)} == ours
    assert names(copied / "checkpoint-00000009") == [run.SUMS, "state-000.pt"]
    assert kept == {name: (copied / name / "state-000.pt").read_bytes() for name in kept}
    assert [path.read_text() for path in copied.glob("checkpoint-00000008.*/notes.txt")] == ["mine"]
    assert [path.read_text() for path in copied.glob("checkpoint-00000009.*")] == ["a file"]
    assert Trainer(longer, store, copied).step == 10
    (copied / "checkpoint-00000077").mkdir()  # empty
    assert len(Trainer(longer, store, copied).notes) == 2


def test_a_checkpoint_brings_back_everything_it_was_written_from(whole, store):
    again = Trainer(whole.recipe, store, whole.run_dir)
    assert equal_tensors(again.model.state_dict(), whole.model.state_dict())
    assert equal_tensors(again.averaged.state_dict(), whole.averaged.state_dict())
    assert equal_tensors(flat_optimizer(again), flat_optimizer(whole))
    assert (again.step, again.elapsed_s, again.best) == (whole.step, whole.elapsed_s, whole.best)
    assert repr(again.rows) == repr(run.read_log(whole.run_dir))
    for name, generator in whole.draws.items():
        assert torch.equal(again.draws[name].get_state(), generator.get_state())
    for old, new in zip(whole.optimizer.state.values(), again.optimizer.state.values(), strict=True):
        assert old["exp_avg"].stride() == new["exp_avg"].stride()  # channels last, as it was


@pytest.mark.parametrize(
    "name, was, now",
    [
        ("train.lr", 0.001, 0.5),
        ("train.seed", 0, 1),
        ("stage.encoder_from", 0.0, 0.25),
        ("loss.distortion", "l1", "l2"),
        ("model.luma.width", 8, 9),
        ("model.variant", "luma", "fusion"),
        ("train.precision", "32", "bf16"),
        ("stage.train", "", "Y"),
    ],
)
def test_a_run_of_other_settings_is_refused_by_name(whole, store, name, was, now):
    with pytest.raises(UsageError) as error:
        Trainer(whole.recipe.changed(**{name: now}), store, whole.run_dir)
    change = f"{name} was {was!r}, now {now!r}; give another --run-dir"
    assert str(error.value) == f"{run.latest(whole.run_dir)} is of another run: {change}"


def test_a_run_goes_on_only_on_the_data_and_the_weights_that_it_was_begun_with(store, tmp_path):
    recipe, first = tiny_recipe(**{"train.steps": 1}), build(tiny_recipe().model, 1)
    data, other = f"photos@{'a' * 64}", f"others@{'b' * 64}"
    Trainer(recipe, store, tmp_path, initial=first, sources={"--data": data}).fit()
    moved = {"--data": f"elsewhere@{'a' * 64}"}
    assert Trainer(recipe, store, tmp_path, initial=first, sources=moved).step == 1
    with pytest.raises(UsageError, match=f"--data was '{data}', now '{other}'; give another --run-dir"):
        Trainer(recipe, store, tmp_path, initial=first, sources={"--data": other})
    for initial in (None, build(tiny_recipe().model, 2)):
        with pytest.raises(UsageError, match=r"--from was '\w{64}', now .*; give another --run-dir"):
            Trainer(recipe, store, tmp_path, initial=initial, sources={"--data": data})


def flip(path):
    """Flip the last bit of the first value of a weight's average, wherever that lies in the file."""
    state, raw = torch.load(path), bytearray(path.read_bytes())
    weight = next(value for name, value in state["averaged"].items() if name.endswith("stem.weight"))
    raw[raw.index(weight.permute(0, 2, 3, 1).numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    assert not equal_tensors(torch.load(path)["averaged"], state["averaged"])  # torch does not notice


def without_sums(path):
    """Be as those that were written before there were sums: damage shows when it is unpacked."""
    (path.parent / run.SUMS).unlink()
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(b"\x80\x02K\x01."),
    "something else that torch wrote": lambda path: torch.save([1, 2], path),
    "a part is missing": Path.unlink,
    "the sums are cut": lambda path: (path.parent / run.SUMS).write_bytes(b""),
    "the sums are bytes": lambda path: (path.parent / run.SUMS).write_bytes(b"\xff\x00"),
    "a part too many": lambda path: (path.parent / "state-001.pt").write_bytes(b"more"),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "nothing in it": lambda path: [p.unlink() for p in list(path.parent.iterdir())],
    "cut, of an older version": without_sums,
}


@pytest.fixture(scope="session")
def two_of(whole, store, tmp_path_factory):
    """The folder of the same run, with its last two checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    Trainer(whole.recipe, store, folder).fit(log_every=1, save_every_s=0)
    assert names(folder) == ["checkpoint-00000005", "checkpoint-00000006", "log.csv"]
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(
    two_of, tmp_path, whole, store, damage
):
    folder = shutil.copytree(two_of, tmp_path / "run")
    newest, before = folder / "checkpoint-00000006", folder / "checkpoint-00000005"
    DAMAGE[damage](newest / "state-000.pt")
    assert run.latest(folder) == before
    trainer = Trainer(whole.recipe, store, folder)
    (note,) = trainer.notes
    assert note.startswith(f"{newest}: not a whole checkpoint (")
    assert note.endswith("); the one before it is taken") and "Error" not in note
    assert trainer.step == 5 and [row["step"] for row in trainer.rows] == [1, 2, 3, 4, 5]
    assert trainer.fit(log_every=1) == "finished"
    assert equal_tensors(trainer.model.state_dict(), whole.model.state_dict())
    assert rows_of(folder) == rows_of(whole.run_dir)
    assert run.latest(folder) == newest


def test_a_damaged_checkpoint_takes_no_whole_one_s_place(two_of, tmp_path, whole, store):
    folder = shutil.copytree(two_of, tmp_path / "run")
    DAMAGE["flipped"](folder / "checkpoint-00000006" / "state-000.pt")
    trainer = Trainer(whole.recipe.changed(**{"train.steps": 9}), store, folder)
    trainer.step = 8
    trainer.save()
    assert {"checkpoint-00000005", "checkpoint-00000008"} < set(names(folder))  # two that are whole


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeroed", "a part is missing", "nothing in it"])
def test_a_run_without_any_whole_checkpoint_is_refused_and_left_as_it_is(
    two_of, tmp_path, whole, store, damage
):
    folder = shutil.copytree(two_of, tmp_path / "run")
    for name in ("checkpoint-00000005", "checkpoint-00000006"):
        DAMAGE[damage](folder / name / "state-000.pt")
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(DataError, match=r"not a whole checkpoint .*, nor is any before it; restore") as error:
        Trainer(whole.recipe, store, folder)
    assert str(error.value).startswith(f"{folder / 'checkpoint-00000006'}: ")
    assert before == {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    assert run.latest(folder) is None


LOGS = {  # of rows 1 to 6: what is left
    "missing": (lambda path: path.unlink(), []),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), [1, 2, 3, 4, 5]),
    "empty": (lambda path: path.write_bytes(b""), []),
    "zeroed": (lambda path: path.write_bytes(bytes(path.stat().st_size)), []),
    "without its header": (lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[2]), []),
    "bytes in a row": (lambda path: path.write_bytes(path.read_bytes().replace(b"\n3,", b"\n\xff,")),
                       [1, 2, 4, 5, 6]),
    "a row too long": (lambda path: path.write_bytes(path.read_bytes() + b"7" + b",1" * 40),
                       [1, 2, 3, 4, 5, 6]),
}  # fmt: skip


@pytest.mark.parametrize("damage", LOGS)
def test_a_damaged_log_loses_its_damaged_rows_and_that_is_said(copied, whole, store, damage):
    harm, left = LOGS[damage]
    harm(copied / run.LOG)
    trainer = Trainer(whole.recipe.changed(**{"train.steps": 7}), store, copied)
    assert trainer.step == 6 and [row["step"] for row in trainer.rows] == left
    (note,) = trainer.notes
    assert note.startswith(f"{copied / run.LOG}: {'missing' if damage == 'missing' else 'damaged'}; ")
    trainer.fit(log_every=1)
    assert [row["step"] for row in run.read_log(copied)] == [*left, 7]


@pytest.mark.parametrize(
    "table, name, value, error, words",
    [
        *((None, part, None, DataError, "not a whole checkpoint") for part in
          ("step", "settings", "learner", "averaged", "optimizer", "draws", "best")),
        ("averaged", "rate_slope", torch.zeros(3), DataError, "of another configuration: .*rate_slope"),
        ("draws", "patches", torch.zeros(16).byte(), UsageError, "another kind of device than cpu"),
    ],
)  # fmt: skip
def test_a_state_that_lacks_something_or_is_of_other_networks_or_devices_is_refused(
    copied, whole, store, table, name, value, error, words
):
    folder = run.latest(copied)
    state = run.read_checkpoint(folder)
    if table:
        state[table][name] = value
    else:
        del state[name]
    torch.save(state, folder / "state-000.pt")
    (folder / run.SUMS).unlink()
    with pytest.raises(error, match=words):
        Trainer(whole.recipe, store, copied)


def test_a_checkpoint_is_spread_over_files_under_16_mib_and_needs_each(tmp_path):
    state = {"step": 3, "large": torch.arange(9_000_000, dtype=torch.float32), "none": None, "best": math.inf}
    state |= {"half": torch.tensor([0.5, -0.25]).half(), "names": ["a", {"b": True}]}
    folder = run.write_checkpoint(tmp_path, state)
    files = sorted(folder.glob("state-*"))
    assert (
        names(folder)[0] == run.SUMS
        and len(files) == 3
        and max(path.stat().st_size for path in files) <= FILE_LIMIT_BYTES < 16 * 2**20
    )
    again = run.read_checkpoint(folder)
    tensors = [{name: of.pop(name) for name in ("large", "half")} for of in (state, again)]
    assert again == state and equal_tensors(*tensors)
    files[1].unlink()
    with pytest.raises(DataError, match="not a whole checkpoint"):
        run.read_checkpoint(folder)


def test_the_log_says_nan_where_nothing_was_measured(store, tmp_path):
    trainer = Trainer(tiny_recipe(**{"train.context_every": 4}), store, tmp_path)
    trainer.fit(log_every=1)
    shown = [row["estimated_bpp_Y"] for row in run.read_log(tmp_path)]
    assert [step for step, bpp in enumerate(shown, 1) if bpp > 0] == [1, 5]  # steps 0 and 4
    assert [math.isnan(bpp) for bpp in shown].count(True) == 4
    assert repr(trainer.rows) == repr(run.read_log(tmp_path))


def test_a_run_killed_after_rows_that_no_checkpoint_covers_writes_them_again(store, tmp_path, whole):
    (tmp_path / "log.csv").write_text("step,loss\n1,7.0\n")
    Trainer(whole.recipe, store, tmp_path).fit(log_every=1)
    assert rows_of(tmp_path) == rows_of(whole.run_dir)


@pytest.mark.parametrize("limit", [20_000, 1])  # the checkpoint does not fit; the log neither
def test_full_disk_gives_a_sentence_and_keeps_the_earlier_checkpoint(store, whole, tmp_path, limit):
    first = Trainer(whole.recipe, store, tmp_path)
    first.report = lambda row: first.stop() if row["step"] == 2 else None
    assert first.fit(log_every=1) == "interrupted"
    before = {path: path.read_bytes() for path in run.latest(tmp_path).iterdir()}
    assert max(len(content) for content in before.values()) > limit
    trainer = Trainer(whole.recipe, store, tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(DataError, match="cannot be written") as error:
            trainer.fit(log_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(tmp_path) in str(error.value) and "None" not in str(error.value)
    assert names(tmp_path) == [f"checkpoint-{first.step:08d}", "log.csv"]
    assert {path: path.read_bytes() for path in run.latest(tmp_path).iterdir()} == before
    again = Trainer(whole.recipe, store, tmp_path)
    again.fit(log_every=1)
    assert equal_tensors(again.model.state_dict(), whole.model.state_dict())
    assert rows_of(tmp_path) == rows_of(whole.run_dir)


@pytest.mark.parametrize("place", ["file", "file/run", "read-only", "/proc/run"])
def test_a_run_folder_that_cannot_be_written_is_refused_by_name(store, tmp_path, place):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "read-only").mkdir(mode=0o555)
    if place == "read-only" and os.access(tmp_path / place, os.W_OK):
        pytest.skip("this user may write anywhere")
    if place == "/proc/run" and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    for begin in (partial(Trainer, tiny_recipe(), store), lambda folder: run.locked(folder).__enter__()):
        with pytest.raises(DataError, match="cannot be written") as error:
            begin(tmp_path / place)
        assert str(tmp_path / (place if place == "/proc/run" else place.partition("/")[0])) in str(
            error.value
        )
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_folder_that_vanishes_is_made_anew(store, whole, tmp_path):
    trainer = Trainer(whole.recipe, store, tmp_path / "run")
    trainer.report = lambda row: row["step"] in (2, 5) and shutil.rmtree(tmp_path / "run")
    assert trainer.fit(log_every=1, save_every_s=0) == "finished"
    assert rows_of(tmp_path / "run") == rows_of(whole.run_dir)
    assert equal_tensors(
        run.read_checkpoint(run.latest(tmp_path / "run"))["learner"], whole.model.state_dict()
    )


def holder(pid, began, host=None):
    return f"{pid} {began} {platform.node() if host is None else host}\n"


def over():
    """Return the number of a process that is over."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_folder_is_locked_while_a_training_is_at_work(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "run"
    with run.locked(folder):
        with pytest.raises(DataError, match=f"lock: process {os.getpid()} is training in this folder; wait"):
            run.locked(folder).__enter__()
        monkeypatch.setenv("RANK", "1")  # the others of several processes do not lock each other out
        with run.locked(folder):
            pass
        monkeypatch.delenv("RANK")
        with run.locked(tmp_path / "other"):
            pass
    assert names(folder) == []
    with pytest.raises(KeyError), run.locked(folder):
        raise KeyError
    with run.locked(folder):
        shutil.rmtree(folder)
    with run.locked(folder):
        (folder / run.LOCK).write_text("another's")  # who was told to remove it, and began
    assert (folder / run.LOCK).read_text() == "another's"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_interrupts_is_told_truly_what_is_left(copied, tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    (tmp_path / "empty" / "checkpoint-best").mkdir(parents=True)
    for folder, left in (
        (copied, "the same command goes on from here"),
        (tmp_path / "empty", "nothing was written"),
    ):
        with pytest.raises(StoppedError, match=f"^interrupted; {left}$"), run.locked(folder):
            raise StoppedError(signal.SIGINT)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    began = run._began(os.getpid())
    unwaited = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    its = run._began(unwaited.pid)
    unwaited.kill()
    os.waitid(os.P_PID, unwaited.pid, os.WEXITED | os.WNOWAIT)  # over, and still in the table
    stale = [holder(over(), "1"), holder(os.getpid(), f"{began}0"), holder(over(), "-")]
    if began:  # where /proc tells
        stale.append(holder(unwaited.pid, its))
    for text in stale:
        (tmp_path / run.LOCK).write_text(text)
        with run.locked(tmp_path):
            assert (tmp_path / run.LOCK).read_text().startswith(f"{os.getpid()} ")
        assert names(tmp_path) == []
    unwaited.wait()


@pytest.mark.parametrize(
    "text, who",
    [
        (holder(os.getppid(), run._began(os.getppid()) or "-"), f"process {os.getppid()}"),
        (holder(7, "1", "another.example"), "process 7 on another.example"),
        ("", "an unknown process"),
        ("7 1", "an unknown process"),
        (holder("x", "1"), "an unknown process"),
        (holder(10**30, "1"), "an unknown process"),
        ("\0\0\0", "an unknown process"),
    ],
)
def test_a_lock_that_may_be_held_is_respected_and_says_what_to_remove(tmp_path, text, who):
    (tmp_path / run.LOCK).write_text(text)
    with pytest.raises(DataError) as error:
        run.locked(tmp_path).__enter__()
    what = f"{tmp_path / 'lock'}: {who} is training in this folder; wait for it, give another --run-dir"
    assert str(error.value) == f"{what}, or remove this file if it is over"
    assert (tmp_path / run.LOCK).read_text() == text


def test_beside_the_main_thread_signals_stay_as_they_are():
    seen = []

    def look():
        with run.on_signals(seen.append):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
