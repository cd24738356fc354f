"""The codec's training: exact resume, what learns when, rates, averages, divergence, several processes."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, SCALAR, equal_tensors, flat_optimizer, rows_of, tiny_recipe

from mcml.base.errors import DataError
from mcml.data.patches import PatchStore
from mcml.model.model import build
from mcml.training import run, threshold_start
from mcml.training.objectives import OBJECTIVES
from mcml.training.trainer import Trainer


def trained(recipe, store, folder, *, stop_at=None, initial=None, watch=None, log_every=1):
    """Train; it is told to stop when the row of step `stop_at` is logged."""

    def report(row):
        if row["step"] == stop_at:
            trainer.stop()
        if watch is not None:
            watch(trainer, row)

    trainer = Trainer(recipe, store, folder, initial=initial, report=report)
    trainer.ended = trainer.fit(log_every=log_every, save_every_s=1e9)
    return trainer


QUANTIZERS = {"binary": {}, "scalar": SCALAR}
RUNS = {
    "everything learns": ("luma", {"stage.encoder_from": 0.0}),
    "bf16, uniform maps": ("luma", {"train.precision": "bf16", "stage.uniform_share": 0.5}),
    "encoder freed after the interruption": ("fusion", {"stage.encoder_from": 0.7}),
    "threshold code": ("luma", {"stage.start": "threshold"}),
    "scalar: noise, then rounding": ("fusion", {**SCALAR, "stage.encoder_from": 0.0}),
    "scalar in bf16": ("luma", {**SCALAR, "train.precision": "bf16", "stage.encoder_from": 0.7}),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_cut_in_two_equals_one_that_ran_through(store, whole, tmp_path, name):
    recipe = tiny_recipe(RUNS[name][0], **RUNS[name][1])
    through = whole if recipe == whole.recipe else trained(recipe, store, tmp_path / "through")
    first = trained(recipe, store, tmp_path / "cut", stop_at=2)
    assert first.ended == "interrupted" and 2 <= first.step < recipe.train.steps
    torch.manual_seed(12345)  # nothing hangs on the process's own generator
    second = trained(recipe, store, tmp_path / "cut")
    assert (second.ended, second.step) == ("finished", recipe.train.steps)
    assert equal_tensors(second.model.state_dict(), through.model.state_dict())
    assert equal_tensors(second.averaged.state_dict(), through.averaged.state_dict())
    assert equal_tensors(flat_optimizer(second), flat_optimizer(through))
    assert rows_of(tmp_path / "cut") == rows_of(through.run_dir)
    assert not equal_tensors(first.model.state_dict(), through.model.state_dict())


class StoppingStore(PatchStore):
    """Photographs whose second step's draw (the third: one checks the size) stops their trainer."""

    draws, trainer = 0, None

    def sample(self, *arguments, **options):
        self.draws += 1
        if self.draws == 3:
            self.trainer.stop()
        return super().sample(*arguments, **options)


def test_an_interruption_between_two_rows_of_the_log_changes_no_weight(astronaut, tmp_path):
    store, stopping = PatchStore([astronaut]), StoppingStore([astronaut])
    through = trained(tiny_recipe(), store, tmp_path / "through", log_every=4)
    stopping.trainer = first = Trainer(tiny_recipe(), stopping, tmp_path / "cut")
    assert (first.fit(log_every=4), first.step) == ("interrupted", 2)
    second = trained(tiny_recipe(), store, tmp_path / "cut", log_every=4)
    assert equal_tensors(second.model.state_dict(), through.model.state_dict())
    assert [row["step"] for row in through.rows] == [4, 6]
    assert [row["step"] for row in second.rows] == [2, 4, 6]


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_repeat_and_differ(store, whole, seed):
    model = trained(whole.recipe.changed(**{"train.seed": seed}), store, None).model
    assert equal_tensors(model.state_dict(), whole.model.state_dict()) == (seed == 0)


def test_a_finished_run_is_left_as_it_is_and_a_longer_budget_goes_on(store, whole, copied):
    again = trained(whole.recipe, store, copied)
    assert (again.ended, again.step, len(again.rows)) == ("finished", 6, 6)
    assert equal_tensors(again.model.state_dict(), whole.model.state_dict())
    longer = trained(whole.recipe.changed(**{"train.steps": 8}), store, copied)
    assert longer.step == 8
    assert [row["step"] for row in run.read_log(copied)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_learning_rate_warms_up_and_falls_to_a_hundredth(store):
    settings = {"train.lr": 1e-3, "train.context_lr": 5e-3, "train.warmup": 0.1, "train.steps": 40}
    trainer = Trainer(tiny_recipe(**settings), store, None)

    def rates(step):
        trainer.step = step
        spent = trainer.progress()
        trainer._prepare(trainer.objective.phase(step, spent), spent)
        return {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}

    def wave(share):
        return 0.505 + 0.495 * math.cos(math.pi * share)

    assert rates(0)["decoder"] == pytest.approx(1e-3 * 0.01)  # a thousandth into a warm-up of a tenth
    assert rates(2)["decoder"] == pytest.approx(1e-3 * 0.51 * wave(0.05))  # half of the warm-up is spent
    assert rates(4)["decoder"] == pytest.approx(1e-3 * wave(0.1))  # and all of it
    assert rates(20)["decoder"] == pytest.approx(1e-3 * 0.505)
    last = wave(39 / 40)
    assert last < 0.012
    expected = {"decoder": 1e-3, "encoder": 1e-4, "importance": 1e-4, "context": 5e-3}
    assert rates(39) == pytest.approx({name: rate * last for name, rate in expected.items()})


def test_minutes_end_the_run_near_their_time(store, tmp_path):
    settings = {"train.steps": 0, "train.minutes": 0.01, "train.warmup": 0.0}
    trainer = Trainer(tiny_recipe(**settings), store, tmp_path)
    began = time.monotonic()
    assert trainer.fit(log_every=1) == "finished"
    assert 0.6 <= trainer.elapsed_s <= time.monotonic() - began
    rows = run.read_log(tmp_path)
    assert rows[-1]["spent"] >= 1
    assert all(row["spent"] < 1 for row in rows[:-1])
    assert rows[-1]["seconds"] == pytest.approx(trainer.elapsed_s, abs=0.01)
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-3  # falls with the clock


def test_time_spent_before_an_interruption_counts(store, tmp_path):
    recipe = tiny_recipe(**{"train.steps": 0, "train.minutes": 100.0})
    first = trained(recipe, store, tmp_path, stop_at=1)
    assert first.ended == "interrupted" and first.elapsed_s > 0
    rest = Trainer(recipe, store, tmp_path)
    assert rest.elapsed_s == first.elapsed_s and rest.progress() == pytest.approx(first.elapsed_s / 6000)
    spent = recipe.changed(**{"train.minutes": first.elapsed_s / 60})
    assert trained(spent, store, tmp_path).step == first.step


@pytest.mark.parametrize("ema", [0.99, 0.3])
def test_averaged_weights_follow_the_formula(store, ema):
    seen = []

    def watch(trainer, _):
        seen.append([p.detach().double().clone() for p in trainer.model.parameters()])

    recipe = tiny_recipe(**{"train.warmup": 0.0, "train.ema": ema, "stage.encoder_from": 0.0})
    trainer = trained(recipe, store, None, watch=watch)
    expected = [p.detach().double() for p in build(recipe.model, recipe.train.seed).parameters()]
    for step, weights in enumerate(seen, 1):
        decay = min(ema, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, ...
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    moved = 0.0
    for average, wanted, last in zip(trainer.averaged.parameters(), expected, seen[-1], strict=True):
        torch.testing.assert_close(average.double(), wanted, rtol=0, atol=1e-6)  # six float32 roundings
        moved = max(moved, float((last - wanted).abs().max()))
    assert moved > 1e-4  # the average is not the last weight


def changes(recipe, store):
    """Return, by part of luma, the steps in which its weights changed."""
    before, steps = {}, {}

    def watch(trainer, row):
        for name, parameters in trainer.objective.parts.items():
            now = {str(i): p.detach().clone() for i, p in enumerate(parameters)}
            if name in before and not equal_tensors(before[name], now):
                steps.setdefault(name, []).append(row["step"])
            before[name] = now

    trainer = Trainer(recipe, store, None, report=lambda row: watch(trainer, row))
    watch(trainer, {})
    trainer.fit(log_every=1)
    return steps


@pytest.mark.parametrize("importance, encoder", [(0.0, 1.0), (0.5, 0.0), (1.0, 0.5)])
def test_a_part_learns_from_its_share_of_the_budget_on_and_context_models_every_few_steps(
    store, importance, encoder
):
    shares = {"importance": importance, "encoder": encoder}
    settings = {f"stage.{name}_from": share for name, share in shares.items()}
    steps = changes(tiny_recipe(**settings, **{"train.context_every": 2}), store)
    first = {0.0: 1, 0.5: 4, 1.0: 7}  # steps 1 to 3 of 6 are the first half
    expected = {name: list(range(first[share], 7)) for name, share in shares.items() if share < 1}
    assert steps == {"decoder": [1, 2, 3, 4, 5, 6], "context": [1, 3, 5], **expected}


@pytest.mark.parametrize(
    "encoder, prior, rounding, learns, tells",
    [
        (0.0, 0.0, 0.5, [1, 2, 3], [1, 2, 3, 4, 5, 6]),
        (0.5, 0.5, 0.6, [4], [4, 5, 6]),
        (1, 0, 1, [], [*range(1, 7)]),
    ],
)
def test_scalar_encoders_learn_until_rounding_is_real_and_priors_from_their_share_on(
    store, encoder, prior, rounding, learns, tells
):
    shares = {"stage.encoder_from": encoder, "stage.prior_from": prior, "stage.rounding_from": rounding}
    steps = changes(tiny_recipe(**SCALAR, **shares), store)
    assert (steps["decoder"], steps["prior"], steps.get("encoder", [])) == ([*range(1, 7)], tells, learns)


MODULES = (*OBJECTIVES["binary"].apart[1], "bit_model")


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("variant", ["independent", "fusion"])
def test_colour_trained_on_frozen_luma_leaves_its_weights_and_symbols(
    store, whole, astronaut, tmp_path, variant, quantizer
):
    luma = trained(tiny_recipe(**quantizer), store, None).averaged if quantizer else whole.averaged
    rgb = torch.from_numpy(astronaut).permute(2, 0, 1)[None].float() / 255
    settings = {"stage.train": "Cb,Cr", "stage.encoder_from": 0.0, "train.context_every": 1, "train.steps": 3}
    recipe = tiny_recipe(variant, **settings, **quantizer)
    fresh = Trainer(recipe, store, None, initial=luma).model
    trainer = trained(recipe, store, tmp_path, initial=luma)
    for model in (trainer.model, trainer.averaged):
        assert equal_tensors(model.streams["Y"].state_dict(), luma.streams["Y"].state_dict())
        assert torch.equal(model.rate_slope, luma.rate_slope)
    with torch.no_grad():
        alone, beside = (model.eval()(rgb, 0.5).streams["Y"] for model in (luma, trainer.averaged))
    for name, value in beside._asdict().items():
        assert value is None or torch.equal(value, getattr(alone, name)), name
    for key in ("Cb", "Cr"):
        stream = trainer.model.streams[key]
        for part in ("encoder", "decoder", "prior") if quantizer else MODULES:
            old, new = getattr(fresh.streams[key], part), getattr(stream, part)
            assert not equal_tensors(old.state_dict(), new.state_dict()), (key, part)
    assert not [name for name in run.read_log(tmp_path)[0] if name.endswith("_Y")]


def test_a_threshold_start_of_colour_is_fitted_to_the_luma_that_was_taken_over(store, whole, monkeypatch):
    begun, start = [], threshold_start.start

    def spy(model, *arguments, **options):
        begun.append({name: value.clone() for name, value in model.streams["Y"].state_dict().items()})
        start(model, *arguments, **options)

    monkeypatch.setattr(threshold_start, "start", spy)
    Trainer(tiny_recipe("fusion", **{"stage.start": "threshold"}), store, None, initial=whole.averaged)
    assert equal_tensors(begun[0], whole.averaged.streams["Y"].state_dict())


def test_scalar_streams_are_taken_over_by_another_fusion_whose_own_parts_begin_as_nothing(store):
    fusion = trained(tiny_recipe("fusion", **SCALAR, **{"stage.encoder_from": 0.0}), store, None).averaged
    theirs = fusion.streams["Cb"].state_dict()
    taken = Trainer(tiny_recipe("independent", **SCALAR), store, None, initial=fusion).averaged
    own = {name: v for name, v in taken.streams["Cb"].state_dict().items() if name not in theirs}
    shared = {name: v for name, v in taken.streams["Cb"].state_dict().items() if name in theirs}
    assert equal_tensors(shared, {name: theirs[name] for name in shared})
    assert all(name.startswith("decoder.trunk.tail") for name in own)  # a block that adds 0 at first
    assert not any(v.any() for name, v in own.items() if ".second." in name)
    back = Trainer(tiny_recipe("fusion", **SCALAR), store, None, initial=taken).averaged.streams["Cb"]
    assert not back.decoder.luma.weight.any() and equal_tensors(
        back.encoder.state_dict(), fusion.streams["Cb"].encoder.state_dict()
    )


def test_streams_that_are_not_named_stay_as_they_began(store):
    recipe = tiny_recipe("fusion", **{"stage.train": "Cr", "stage.encoder_from": 0.0, "train.steps": 2})
    pairs = (build(recipe.model, recipe.train.seed), trained(recipe, store, None).model)
    for key in recipe.model.streams:
        before, after = (model.streams[key].state_dict() for model in pairs)
        assert equal_tensors(before, after) == (key != "Cr")


def test_what_cannot_be_begun_is_refused(store, whole):
    with pytest.raises(DataError, match="stream Y: of another configuration"):
        Trainer(tiny_recipe("fusion", **{"model.luma.width": 9}), store, None, initial=whole.averaged)
    with pytest.raises(DataError, match="patch of 192 x 192"):
        Trainer(tiny_recipe(**{"train.patch_px": 192}), store, None)


def test_an_absurd_learning_rate_ends_with_the_step_and_keeps_a_good_checkpoint(store, tmp_path):
    recipe = tiny_recipe(**{"train.lr": 1e9, "train.steps": 50, "stage.encoder_from": 0.0})
    trainer = Trainer(recipe, store, tmp_path)
    trainer.save()
    with pytest.raises(run.DivergedError, match=r"step \d+: .*smaller learning rate.*checkpoint-0") as error:
        trainer.fit(log_every=1, save_every_s=1e9)
    assert f"step {trainer.step}:" in str(error.value) and trainer.step < 50
    kept = run.latest(tmp_path)
    assert str(kept) in str(error.value)
    assert all(bool(value.isfinite().all()) for value in run.read_checkpoint(kept)["learner"].values())
    assert Trainer(recipe, store, tmp_path).step == 0


def test_a_nan_in_the_weights_is_not_saved(store, tmp_path):
    def poison(trainer, row):
        if row["step"] == 3:
            next(trainer.model.streams["Y"].decoder.parameters()).data.fill_(math.nan)

    with pytest.raises(run.DivergedError, match=r"step 4: .*not finite.*no checkpoint had been written"):
        trained(tiny_recipe(), store, tmp_path, watch=poison)
    assert run.latest(tmp_path) is None
    assert [row["step"] for row in run.read_log(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("part", ["decoder", "encoder", "context"])
def test_a_nan_in_a_gradient_is_not_saved(store, whole, tmp_path, part):
    trainer = Trainer(whole.recipe, store, tmp_path)
    parameter = trainer.objective.parts[part][0].requires_grad_(True)
    parameter.register_hook(lambda grad: grad * (math.nan if trainer.step >= 3 else 1))
    with pytest.raises(run.DivergedError, match=r"step [45]: .*not finite .*the last good checkpoint is"):
        trainer.fit(log_every=1, save_every_s=0)
    assert run.latest(tmp_path).name in ("checkpoint-00000003", "checkpoint-00000004")
    for value in run.read_checkpoint(run.latest(tmp_path))["averaged"].values():
        assert value.isfinite().all()


def test_a_damaged_checkpoint_is_not_called_the_last_good_one(store, whole, tmp_path):
    def harm(grad):
        if trainer.step < 5:
            return grad
        with (run.latest(tmp_path) / "state-000.pt").open("r+b") as file:
            file.seek(5000)
            file.write(bytes(8))
        return grad * math.nan

    trainer = Trainer(whole.recipe, store, tmp_path)
    trainer.objective.parts["decoder"][0].requires_grad_(True).register_hook(harm)
    with pytest.raises(run.DivergedError, match=r"the last good checkpoint is .*checkpoint-00000004$"):
        trainer.fit(log_every=1, save_every_s=0)


# Two processes of torchrun's launcher, forked after the imports; one's second run is told to stop and both
# must, at the same step. Signals then: told within the run only, in processes that nothing else watches.
TWICE = """
import json, os, signal, sys
import lightning_fabric  # once, before the fork: it takes longer than all that follows
from pathlib import Path
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from mcml.data.images import read_image
from mcml.data.patches import PatchStore
from mcml.model.settings import Recipe
from mcml.training.run import on_signals
from mcml.training.trainer import Trainer
recipes = [Recipe().changed(**settings) for settings in json.loads(sys.argv[1])]
photos, folders = Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]

class Store(PatchStore):
    trainer = None

    def sample(self, *arguments, **options):
        if self.trainer is not None and os.environ["RANK"] == "1":
            self.trainer.stop()
        return super().sample(*arguments, **options)

def twice(recipe, folder):
    store = Store([read_image(path) for path in sorted(photos.iterdir())])
    ended = [Trainer(recipe, store, folder).fit(log_every=1)]
    trainer = Trainer(recipe.changed(**{"train.steps": 9}), store, folder)
    store.trainer = trainer
    ended += [trainer.fit(log_every=1), trainer.step]
    told, before = [], signal.getsignal(signal.SIGTERM)
    with on_signals(told.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    return [*ended, *told, signal.getsignal(signal.SIGTERM) is before]

def work():
    return [twice(*given) for given in zip(recipes, folders)]

launch = LaunchConfig(1, 1, 2, run_id="two", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                      start_method="fork", monitor_interval=0.1)
print(json.dumps(elastic_launch(launch, work)()))
"""


def test_two_processes_take_the_steps_of_one_and_stop_together(store, photo_folder, tmp_path):
    """In float32 only the order of sums differs: 2e-7 of a log's figure, 3e-8 of a weight were measured."""
    settings = {"train.steps": 3, "stage.encoder_from": 0.0, "train.context_every": 1}
    recipes = {name: tiny_recipe("fusion", **settings, **q) for name, q in QUANTIZERS.items()}
    folders = [tmp_path / name for name in recipes]
    arguments = [json.dumps([r.to_dict() for r in recipes.values()]), str(photo_folder), *map(str, folders)]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *arguments], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    both = json.loads(done.stdout.splitlines()[-1])
    assert both == {rank: [["finished", "interrupted", 4, 15, 2, True]] * 2 for rank in "01"}
    for folder, recipe in zip(folders, recipes.values(), strict=True):
        one, two = trained(recipe, store, tmp_path / "one" / folder.name), run.read_log(folder)
        assert [row["step"] for row in two] == [1, 2, 3, 4]
        for a, b in zip(one.rows, two, strict=False):
            figures = ({name: row[name] for name in one.columns} for row in (b, a))
            assert next(figures) == pytest.approx(next(figures), rel=1e-5)
        state = run.read_checkpoint(folder / "checkpoint-00000003")
        for name in ("learner", "averaged"):
            for key, value in getattr(one, name).state_dict().items():
                torch.testing.assert_close(state[name][key], value, rtol=0, atol=1e-5)  # of steps of 1e-3
