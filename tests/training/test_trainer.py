"""The training loop: exact resume, what learns when, divergence, full disks, several processes."""

import math
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import equal_tensors, tiny_arguments, tiny_recipe

from mcml.base.errors import DataError, UsageError
from mcml.cli import train as train_cli
from mcml.data.patches import PatchStore
from mcml.model.model import build
from mcml.model.weights import load_tensors
from mcml.training import checkpoints
from mcml.training.run_log import DivergedError
from mcml.training.trainer import PARTS, Trainer, photographs_of


@pytest.fixture(scope="module")
def store(astronaut):
    return PatchStore([astronaut, np.ascontiguousarray(astronaut[::-1, :96])])


def optimizer_state(trainer):
    state = trainer.optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def rows_of(folder):
    """The log without what the clock decides."""
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "images_per_s")}
        for row in checkpoints.read_log(folder)
    ]


def trained(recipe, store, folder, *, stop_at=None, initial=None, watch=None, log_every=1):
    """Train; SIGTERM comes to this process when the row of step `stop_at` is logged."""

    def report(row):
        if row["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if watch is not None:
            watch(trainer, row)

    trainer = Trainer(recipe, store, folder, initial=initial, report=report)
    trainer.ended = trainer.fit(log_every=log_every, save_every_s=1e9)
    return trainer


# Two processes against one after 3 steps in float32; measured: 2e-7 of a log's figure, 3e-8 of a weight
# (whose steps are 1e-3: gradients that were not shared would differ by about that).
LOG_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-5

# ---------------------------------------------------------------------------- exact resume

RUNS = {
    "everything learns": tiny_recipe(**{"stage.encoder_from": 0.0, "train.context_every": 1}),
    "bf16": tiny_recipe(**{"stage.encoder_from": 0.0, "train.precision": "bf16"}),
    "encoder freed after the interruption": tiny_recipe("fusion", **{"stage.encoder_from": 0.6}),
    "threshold code": tiny_recipe(**{"stage.start": "threshold"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_cut_in_two_equals_one_that_ran_through(store, tmp_path, name):
    recipe = RUNS[name]
    whole = trained(recipe, store, tmp_path / "whole")
    first = trained(recipe, store, tmp_path / "cut", stop_at=2)
    assert first.ended == "interrupted" and 2 <= first.step < recipe.train.steps
    torch.manual_seed(12345)  # nothing hangs on the process's own generator
    second = trained(recipe, store, tmp_path / "cut")
    assert (whole.ended, second.ended) == ("finished", "finished")
    assert second.step == whole.step == recipe.train.steps
    assert equal_tensors(second.model.state_dict(), whole.model.state_dict())
    assert equal_tensors(second.averaged.state_dict(), whole.averaged.state_dict())
    assert equal_tensors(optimizer_state(second), optimizer_state(whole))
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert not equal_tensors(first.model.state_dict(), whole.model.state_dict())


class StoppingStore(PatchStore):
    """Photographs whose second step's draw (the third: one checks the size) comes with a SIGTERM."""

    draws = 0

    def sample(self, *arguments, **options):
        self.draws += 1
        if self.draws == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().sample(*arguments, **options)


def test_an_interruption_between_two_rows_of_the_log_changes_no_weight(astronaut, tmp_path):
    store = PatchStore([astronaut])
    whole = trained(tiny_recipe(), store, tmp_path / "whole", log_every=4)
    first = trained(tiny_recipe(), StoppingStore([astronaut]), tmp_path / "cut", log_every=4)
    assert (first.ended, first.step) == ("interrupted", 2)
    second = trained(tiny_recipe(), store, tmp_path / "cut", log_every=4)
    assert equal_tensors(second.model.state_dict(), whole.model.state_dict())
    assert [row["step"] for row in checkpoints.read_log(tmp_path / "whole")] == [4, 6]
    assert [row["step"] for row in checkpoints.read_log(tmp_path / "cut")] == [2, 4, 6]


def test_seeds_repeat_and_differ(store, tmp_path):
    runs = [
        trained(tiny_recipe(**{"train.seed": seed}), store, tmp_path / f"{i}")
        for i, seed in enumerate((3, 3, 4))
    ]
    states = [run.model.state_dict() for run in runs]
    assert equal_tensors(states[0], states[1])
    assert not equal_tensors(states[0], states[2])


def test_a_finished_run_is_left_as_it_is(store, tmp_path):
    first = trained(tiny_recipe(), store, tmp_path)
    again = trained(tiny_recipe(), store, tmp_path)
    assert again.ended == "finished" and again.step == first.step
    assert equal_tensors(again.model.state_dict(), first.model.state_dict())
    assert len(checkpoints.read_log(tmp_path)) == 6


def test_a_longer_budget_goes_on_from_a_finished_run(store, tmp_path):
    trained(tiny_recipe(), store, tmp_path)
    longer = trained(tiny_recipe(**{"train.steps": 8}), store, tmp_path)
    assert longer.step == 8
    assert [row["step"] for row in checkpoints.read_log(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(store, tmp_path):
    checkpoints.append_log(tmp_path, {"step": 1, "loss": 7.0})
    trained(tiny_recipe(), store, tmp_path)
    assert [row["step"] for row in checkpoints.read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


# -------------------------------------------------------------------------- budget and rates


def test_learning_rate_warms_up_and_falls_to_a_hundredth(store, tmp_path):
    settings = {"train.lr": 1e-3, "train.context_lr": 5e-3, "train.warmup": 0.1, "train.steps": 40}
    run = trained(tiny_recipe(**settings, **{"stage.encoder_from": 0.0}), store, tmp_path)
    rate = {row["step"]: row["lr"] for row in checkpoints.read_log(tmp_path)}
    assert rate[1] == pytest.approx(1e-3 * 0.01)  # a thousandth of the budget into a warm-up of a tenth
    wave = 0.505 + 0.495 * math.cos(math.pi * 0.05)
    assert rate[3] == pytest.approx(1e-3 * 0.51 * wave)  # half of the warm-up is spent
    assert rate[5] == pytest.approx(1e-3 * (0.505 + 0.495 * math.cos(math.pi * 0.1)))  # and all of it
    assert rate[21] == pytest.approx(1e-3 * 0.505)
    last = 0.505 + 0.495 * math.cos(math.pi * 39 / 40)
    assert rate[40] == pytest.approx(1e-3 * last) and last < 0.012
    groups = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
    assert groups == pytest.approx(
        {
            "decoder": 1e-3 * last, "encoder": 1e-4 * last, "importance": 1e-4 * last, "context": 5e-3 * last,
        }
    )  # fmt: skip


def test_minutes_end_the_run_near_their_time(store, tmp_path):
    settings = {"train.steps": 0, "train.minutes": 0.02, "train.warmup": 0.0}
    run = Trainer(tiny_recipe(**settings), store, tmp_path)
    began = time.monotonic()
    assert run.fit(log_every=1) == "finished"
    assert 1.2 <= run.elapsed_s <= time.monotonic() - began < 1.2 + 5  # a step takes a hundredth of a second
    rows = checkpoints.read_log(tmp_path)
    assert rows[-1]["spent"] >= 1 > rows[-2]["spent"]
    assert rows[-1]["seconds"] == pytest.approx(run.elapsed_s, abs=0.01)
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] == 1e-3  # falls with the clock


def test_time_spent_before_an_interruption_counts(store, tmp_path):
    recipe = tiny_recipe(**{"train.steps": 0, "train.minutes": 10.0})
    first = trained(recipe, store, tmp_path, stop_at=2)
    assert first.ended == "interrupted" and first.elapsed_s > 0
    rest = Trainer(recipe, store, tmp_path)
    assert rest.elapsed_s == first.elapsed_s and rest.progress() == pytest.approx(first.elapsed_s / 600)
    spent = recipe.changed(**{"train.minutes": first.elapsed_s / 60})
    assert trained(spent, store, tmp_path).step == first.step


@pytest.mark.parametrize("ema", [0.99, 0.3])
def test_averaged_weights_follow_the_formula(store, tmp_path, ema):
    seen = []

    def watch(trainer, _):
        seen.append([p.detach().double().clone() for p in trainer.model.parameters()])

    recipe = tiny_recipe(**{"train.warmup": 0.0, "train.ema": ema, "stage.encoder_from": 0.0})
    run = trained(recipe, store, tmp_path, watch=watch)
    expected = [p.detach().double() for p in build(recipe.model, recipe.train.seed).parameters()]
    for step, weights in enumerate(seen, 1):
        decay = min(ema, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, ...
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    moved = 0.0
    for found, wanted, last in zip(run.averaged.parameters(), expected, seen[-1], strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-7)
        moved = max(moved, float((last - wanted).abs().max()))
    assert moved > 1e-4  # the average is not the last weight


# ----------------------------------------------------------------------- what learns, and when


def first_changes(recipe, store, folder, modules, **more):
    """Return, by name, the step in which each module's weights changed first."""
    before, found = {}, {}

    def watch(trainer, row):
        for name, module in modules(trainer).items():
            now = [p.detach().clone() for p in module.parameters()]
            if any(not torch.equal(a, b) for a, b in zip(before[name], now, strict=True)):
                found.setdefault(name, row["step"])

    trainer = Trainer(
        recipe, store, folder, report=lambda row: watch(trainer, row), initial=more.get("initial")
    )
    for name, module in modules(trainer).items():
        before[name] = [p.detach().clone() for p in module.parameters()]
    trainer.fit(log_every=1)
    return found


def parts(trainer):
    stream = trainer.model.streams["Y"]
    return {name: getattr(stream, name) for name in (*PARTS, "bit_model", "level_model")}


@pytest.mark.parametrize("part", ["importance", "encoder"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_part_learns_from_its_share_of_the_budget_on(store, tmp_path, part, share):
    free = {"stage.importance_from": 0.0, "stage.encoder_from": 0.0} | {f"stage.{part}_from": share}
    found = first_changes(tiny_recipe(**free, **{"train.context_every": 1}), store, tmp_path, parts)
    begins = {0.0: 1, 0.5: 4}.get(share)  # steps 1 to 3 of 6 are the first half
    expected = dict.fromkeys((*PARTS, "bit_model", "level_model"), 1) | {part: begins}
    assert found == {name: step for name, step in expected.items() if step is not None}


def test_context_models_learn_every_few_steps(store, tmp_path):
    changed = []

    def watch(trainer, row):
        now = [p.detach().clone() for p in trainer.model.streams["Y"].bit_model.parameters()]
        if not changed or any(not torch.equal(a, b) for a, b in zip(changed[-1][1], now, strict=True)):
            changed.append((row["step"], now))

    trained(tiny_recipe(**{"train.context_every": 2}), store, tmp_path, watch=watch)
    assert [step for step, _ in changed] == [1, 3, 5]


@pytest.fixture(scope="module")
def luma(store, tmp_path_factory):
    recipe = tiny_recipe(**{"stage.encoder_from": 0.0})
    return trained(recipe, store, tmp_path_factory.mktemp("luma")).averaged


def test_colour_trained_on_frozen_luma_leaves_its_weights_and_bits(store, luma, astronaut, tmp_path):
    rgb = torch.from_numpy(astronaut).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        alone = luma(rgb, 0.5).streams["Y"]
    for variant in ("independent", "fusion"):
        settings = {"stage.train": "Cb,Cr", "stage.encoder_from": 0.0, "train.context_every": 1}
        recipe = tiny_recipe(variant, **settings)
        fresh = build(recipe.model, recipe.train.seed)
        run = trained(recipe, store, tmp_path / variant, initial=luma)
        for model in (run.model, run.averaged):
            assert equal_tensors(model.streams["Y"].state_dict(), luma.streams["Y"].state_dict())
            assert torch.equal(model.rate_slope, luma.rate_slope)
        with torch.no_grad():
            found = run.averaged.eval()(rgb, 0.5)
        for name in ("bits", "importance", "level", "mask", "code", "x_hat", "estimated_bits"):
            assert torch.equal(getattr(found.streams["Y"], name), getattr(alone, name)), name
        for key in ("Cb", "Cr"):
            stream = run.model.streams[key]
            for part in (*PARTS, "bit_model"):
                old, new = getattr(fresh.streams[key], part), getattr(stream, part)
                assert not equal_tensors(old.state_dict(), new.state_dict()), (variant, key, part)
        assert not [name for name in checkpoints.read_log(tmp_path / variant)[0] if name.endswith("_Y")]


def test_streams_that_are_not_named_stay_as_they_began(store, tmp_path):
    recipe = tiny_recipe("fusion", **{"stage.train": "Cr", "stage.encoder_from": 0.0})
    fresh = build(recipe.model, recipe.train.seed)
    run = trained(recipe, store, tmp_path)
    for key in ("Y", "Cb"):
        assert equal_tensors(run.model.streams[key].state_dict(), fresh.streams[key].state_dict())
    assert not equal_tensors(run.model.streams["Cr"].state_dict(), fresh.streams["Cr"].state_dict())


def test_an_initial_model_of_other_networks_is_refused(store, luma, tmp_path):
    with pytest.raises(UsageError, match=r"stream Y: .*configured differently"):
        Trainer(tiny_recipe("fusion", **{"model.luma.width": 9}), store, tmp_path, initial=luma)


# ------------------------------------------------------------------------------- divergence


def test_an_absurd_learning_rate_ends_with_the_step_and_keeps_a_good_checkpoint(store, tmp_path):
    recipe = tiny_recipe(**{"train.lr": 1e9, "train.steps": 50, "stage.encoder_from": 0.0})
    trainer = Trainer(recipe, store, tmp_path)
    trainer.save()
    with pytest.raises(DivergedError, match=r"step \d+: .*try a smaller train\.lr.*checkpoint-0") as error:
        trainer.fit(log_every=1, save_every_s=1e9)
    assert f"step {trainer.step}:" in str(error.value) and trainer.step < 50
    kept = checkpoints.latest(tmp_path)
    assert str(kept) in str(error.value)
    assert all(bool(value.isfinite().all()) for value in load_tensors(kept, "model").values())
    assert Trainer(recipe, store, tmp_path).step == 0


def test_a_nan_in_the_weights_is_not_saved(store, tmp_path):
    recipe = tiny_recipe()

    def poison(trainer, row):
        if row["step"] == 3:
            next(trainer.model.streams["Y"].decoder.parameters()).data.fill_(math.nan)

    with pytest.raises(DivergedError, match=r"step 4: .*not finite.*no checkpoint had been written"):
        trained(recipe, store, tmp_path, watch=poison)
    assert checkpoints.latest(tmp_path) is None
    assert [row["step"] for row in checkpoints.read_log(tmp_path)] == [1, 2, 3]


# ------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("limit", [20_000, 1])  # the checkpoint does not fit; the log neither
def test_full_disk_gives_a_sentence_and_keeps_the_earlier_checkpoint(store, tmp_path, limit):
    recipe = tiny_recipe()
    first = trained(recipe, store, tmp_path, stop_at=2)
    before = {path: path.read_bytes() for path in checkpoints.latest(tmp_path).iterdir()}
    assert max(len(content) for content in before.values()) > limit
    trainer = Trainer(recipe, store, tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(DataError, match="cannot be written") as error:
            trainer.fit(log_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(tmp_path) in str(error.value) and "None" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-{first.step:08d}", "log.csv"]
    assert {path: path.read_bytes() for path in checkpoints.latest(tmp_path).iterdir()} == before
    whole = trained(recipe, store, tmp_path.with_name("whole"))
    again = trained(recipe, store, tmp_path)
    assert equal_tensors(again.model.state_dict(), whole.model.state_dict())
    assert rows_of(tmp_path) == rows_of(tmp_path.with_name("whole"))


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_written_is_refused_by_name(store, tmp_path, place):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="cannot be written") as error:
        trained(tiny_recipe(), store, tmp_path / place)
    assert str(tmp_path / "file") in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_no_photographs_and_patches_larger_than_them_are_refused(store, tmp_path):
    with pytest.raises(DataError, match="no photographs"):
        photographs_of([])
    with pytest.raises(DataError, match="patch of 192 x 192"):
        trained(tiny_recipe(**{"train.patch_px": 192}), store, tmp_path)


# -------------------------------------------------------------------------- several processes


def test_two_processes_take_the_steps_of_one(photo_folder, tmp_path):
    """The same patches and dials, so only the order of sums differs."""
    common = [
        *("train", "--data", str(photo_folder), "--steps", "3", "--log-every", "1", "--variant", "fusion"),
        *tiny_arguments(**{"stage.encoder_from": 0.0, "train.context_every": 1}),
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mcml"]
    done = subprocess.run(
        [sys.executable, *launch, *common, "--run-dir", str(tmp_path / "two")],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert train_cli.main([*common, "--run-dir", str(tmp_path / "one")]) == 0
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=LOG_TOLERANCE)
    folders = [checkpoints.latest(tmp_path / name) for name in ("one", "two")]
    for name in ("model", "averaged"):
        first, second = (load_tensors(folder, name) for folder in folders)
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=0, atol=WEIGHT_TOLERANCE)
