"""A run's folder: checkpoints whole or absent, of this run or refused; the log; full disks; signals."""

import math
import resource
import signal
import threading

import pytest
import torch
from helpers import equal_tensors, flat_optimizer, rows_of, tiny_recipe

from mcml.base.errors import DataError, UsageError
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


def test_what_a_killed_process_left_is_ignored(copied, whole, store):
    newest = run.latest(copied)
    cut = copied / ".checkpoint-00000009.1234abcd"
    cut.mkdir()
    (cut / "state-000.pt").write_bytes((newest / "state-000.pt").read_bytes())
    (copied / "checkpoint-00000008").mkdir()  # being removed when it was cut off
    assert run.latest(copied) == newest
    assert Trainer(whole.recipe, store, copied).step == 6
    assert run.latest(cut) is None and run.latest(copied / "none") is None


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


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(b"\x80\x02K\x01."),
    "something else that torch wrote": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(copied, whole, store, damage):
    path = run.latest(copied) / "state-000.pt"
    DAMAGE[damage](path)
    with pytest.raises(DataError, match="not a whole checkpoint") as error:
        Trainer(whole.recipe, store, copied)
    assert str(path.parent) in str(error.value)
    path.unlink()
    assert run.latest(copied) is None  # not a checkpoint at all


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
    with pytest.raises(error, match=words):
        Trainer(whole.recipe, store, copied)


def test_a_checkpoint_is_spread_over_files_under_16_mib_and_needs_each(tmp_path):
    state = {"step": 3, "large": torch.arange(9_000_000, dtype=torch.float32), "none": None, "best": math.inf}
    state |= {"half": torch.tensor([0.5, -0.25]).half(), "names": ["a", {"b": True}]}
    folder = run.write_checkpoint(tmp_path, state)
    files = sorted(folder.iterdir())
    assert len(files) == 3 and max(path.stat().st_size for path in files) <= FILE_LIMIT_BYTES < 16 * 2**20
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


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_written_is_refused_by_name(store, tmp_path, place):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="cannot be written") as error:
        Trainer(tiny_recipe(), store, tmp_path / place)
    assert str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_beside_the_main_thread_signals_stay_as_they_are():
    seen = []

    def look():
        with run.on_signals(seen.append):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
