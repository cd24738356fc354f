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
    copied, all_free, store
):
    assert names(copied) == ["checkpoint-00000006", "log.csv"]
    trainer = Trainer(all_free, store, copied)
    for step in (7, 8, 10, 10):
        trainer.step = step
        trainer.model.rate_slope.fill_(trainer.best)
        trainer.save()
        trainer.best = 5.0
    assert names(copied) == ["checkpoint-00000008", "checkpoint-00000010", "log.csv"]
    assert run.latest(copied).name == "checkpoint-00000010"
    assert float(run.read_checkpoint(run.latest(copied))["learner"]["rate_slope"][0]) == 5


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert run.latest(tmp_path) is None
    assert run.latest(tmp_path / "none") is None


def test_what_a_killed_process_left_is_ignored(copied, all_free, store):
    newest = run.latest(copied)
    cut = copied / ".checkpoint-00000009.1234abcd"
    cut.mkdir()
    (cut / "state-000.pt").write_bytes((newest / "state-000.pt").read_bytes())
    (copied / "checkpoint-00000008").mkdir()  # being removed when it was cut off
    assert run.latest(copied) == newest
    assert Trainer(all_free, store, copied).step == 6


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
    "name, value, words",
    [
        ("train.lr", 0.5, r"train\.lr was 0\.001, now 0\.5"),
        ("train.seed", 1, r"train\.seed was 0, now 1"),
        ("stage.encoder_from", 0.25, r"stage\.encoder_from was 0\.0, now 0\.25"),
        ("loss.distortion", "l2", r"loss\.distortion was 'l1', now 'l2'"),
        ("model.luma.width", 9, r"model\.luma\.width was 8, now 9"),
        ("model.variant", "fusion", r"model\.variant was 'luma', now 'fusion'"),
    ],
)
def test_a_run_of_other_settings_is_refused_by_name(whole, store, name, value, words):
    with pytest.raises(UsageError, match=words) as error:
        Trainer(whole.recipe.changed(**{name: value}), store, whole.run_dir)
    text = str(error.value)
    assert "give another --run-dir" in text and str(run.latest(whole.run_dir)) in text and len(text) < 300


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


def test_the_budget_alone_may_change(whole, store):
    recipe = whole.recipe.changed(**{"train.steps": 7, "train.minutes": 1.0})
    assert Trainer(recipe, store, whole.run_dir).step == 6


def test_a_run_without_a_budget_is_refused():
    with pytest.raises(UsageError, match="0 steps and 0 minutes: give one of them above 0"):
        run.Run(None, {}, steps=0, minutes=0.0, precision="32", report=None)


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "other"])
def test_a_damaged_checkpoint_is_refused(copied, all_free, store, damage):
    path = run.latest(copied) / "state-000.pt"
    content = path.read_bytes()
    if damage == "other":  # something else that torch wrote
        torch.save([1, 2], path)
    else:
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "pickle": b"\x80\x02K\x01."}[damage]
        )
    with pytest.raises(DataError, match="not a whole checkpoint") as error:
        Trainer(all_free, store, copied)
    assert str(path.parent) in str(error.value)
    path.unlink()
    assert run.latest(copied) is None  # not a checkpoint at all


@pytest.mark.parametrize("name", ["step", "settings", "learner", "averaged", "optimizer", "draws", "best"])
def test_a_state_that_lacks_something_is_refused(copied, all_free, store, name):
    folder = run.latest(copied)
    state = run.read_checkpoint(folder)
    del state[name]
    torch.save(state, folder / "state-000.pt")
    with pytest.raises(DataError, match="not a whole checkpoint"):
        Trainer(all_free, store, copied)


@pytest.mark.parametrize(
    "table, name, value, error, words",
    [
        ("averaged", "rate_slope", torch.zeros(3), DataError, "of another configuration: .*rate_slope"),
        (
            "draws",
            "patches",
            torch.zeros(16, dtype=torch.uint8),
            UsageError,
            "another kind of device than cpu",
        ),
    ],
)
def test_what_belongs_to_other_networks_or_devices_is_refused(
    copied, all_free, store, table, name, value, error, words
):
    folder = run.latest(copied)
    state = run.read_checkpoint(folder)
    state[table][name] = value
    torch.save(state, folder / "state-000.pt")
    with pytest.raises(error, match=words):
        Trainer(all_free, store, copied)


def test_a_checkpoint_is_spread_over_files_under_16_mib_and_needs_each(tmp_path):
    draws = torch.Generator().manual_seed(0)
    state = {"step": 3, "large": torch.rand(9_000_000, generator=draws), "none": None, "best": math.inf}
    state |= {"half": torch.rand(3, generator=draws).half(), "names": ["a", {"b": True}]}
    folder = run.write_checkpoint(tmp_path, state)
    files = sorted(folder.iterdir())
    assert len(files) == 3 and max(path.stat().st_size for path in files) <= FILE_LIMIT_BYTES < 16 * 2**20
    again = run.read_checkpoint(folder)
    assert torch.equal(again.pop("large"), state.pop("large")) and torch.equal(
        again.pop("half"), state.pop("half")
    )
    assert again == state
    files[1].unlink()
    with pytest.raises(DataError, match="not a whole checkpoint"):
        run.read_checkpoint(folder)


# ------------------------------------------------------------------------------------ log


def test_the_log_says_nan_where_nothing_was_measured(store, tmp_path):
    trainer = Trainer(tiny_recipe(**{"train.context_every": 4}), store, tmp_path)
    trainer.fit(log_every=1)
    shown = [row["estimated_bpp_Y"] for row in run.read_log(tmp_path)]
    assert [step for step, bpp in enumerate(shown, 1) if math.isfinite(bpp)] == [1, 5]  # steps 0 and 4
    assert min(bpp for bpp in shown if math.isfinite(bpp)) > 0
    assert repr(trainer.rows) == repr(run.read_log(tmp_path))


def test_a_run_killed_after_rows_that_no_checkpoint_covers_writes_them_again(store, tmp_path, whole):
    (tmp_path / "log.csv").write_text("step,loss\n1,7.0\n")
    Trainer(whole.recipe, store, tmp_path).fit(log_every=1)
    assert rows_of(tmp_path) == rows_of(whole.run_dir)


# ------------------------------------------------------------------------------ full disks


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


# --------------------------------------------------------------------------------- signals


def test_beside_the_main_thread_signals_stay_as_they_are():
    seen = []

    def look():
        with run.on_signals(seen.append):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
