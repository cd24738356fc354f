"""Checkpoints: whole or absent, of this configuration or refused; and the log beside them."""

import json

import numpy as np
import pytest
import torch
from helpers import equal_tensors, tiny_recipe

from mcml.base.errors import DataError, UsageError
from mcml.data.patches import PatchStore
from mcml.model.model import Model
from mcml.model.settings import VARIANTS, load_recipe, training_profiles
from mcml.model.weights import FILE_LIMIT_BYTES, load_tensors, save_tensors
from mcml.training import checkpoints
from mcml.training.trainer import Trainer

LIMIT = 16 * 2**20


@pytest.fixture(scope="module")
def store(astronaut):
    return PatchStore([astronaut])


@pytest.fixture
def run(store, tmp_path):
    """A finished run of two steps in a folder."""
    trainer = Trainer(tiny_recipe(**{"train.steps": 2}), store, tmp_path / "run")
    trainer.fit(log_every=1)
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_two_newest_checkpoints_are_kept(run):
    assert names(run.run_dir) == ["checkpoint-00000002", "log.csv"]
    for step in (3, 4, 10):
        run.step = step
        run.save()
    assert names(run.run_dir) == ["checkpoint-00000004", "checkpoint-00000010", "log.csv"]
    assert checkpoints.latest(run.run_dir).name == "checkpoint-00000010"


def test_a_checkpoint_written_again_takes_the_place_of_the_first(run):
    folder = checkpoints.latest(run.run_dir)
    run.model.rate_slope.fill_(5.0)
    run.save()
    assert float(load_tensors(folder, "model")["rate_slope"][0]) == 5
    assert names(run.run_dir) == ["checkpoint-00000002", "log.csv"]


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "none") is None


def test_what_a_killed_process_left_is_ignored(run, store):
    whole = checkpoints.latest(run.run_dir)
    cut = run.run_dir / ".checkpoint-00000009.1234abcd"
    cut.mkdir()
    (cut / "state.json").write_text((whole / "state.json").read_text().replace('"step": 2', '"step": 9'))
    (run.run_dir / "checkpoint-00000008").mkdir()  # without state.json: being removed when it was cut off
    assert checkpoints.latest(run.run_dir) == whole
    assert Trainer(run.recipe, store, run.run_dir).step == 2


def test_a_checkpoint_brings_back_everything_it_was_written_from(run, store):
    again = Trainer(run.recipe, store, run.run_dir)
    assert equal_tensors(again.model.state_dict(), run.model.state_dict())
    assert equal_tensors(again.averaged.state_dict(), run.averaged.state_dict())
    for parameter, entry in run.optimizer.state.items():
        place = [
            p for p, q in zip(again.model.parameters(), run.model.parameters(), strict=True) if q is parameter
        ]
        assert equal_tensors(again.optimizer.state[place[0]], entry)
    assert (again.step, again.elapsed_s, again.best) == (run.step, run.elapsed_s, run.best)
    assert torch.equal(again.draws.get_state(), run.draws.get_state())
    assert torch.equal(again.host.get_state(), run.host.get_state())


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("train.lr", 0.5, r"train\.lr was 0\.001, now 0\.5"),
        ("train.seed", 1, r"train\.seed was 0, now 1"),
        ("stage.encoder_from", 0.25, r"stage\.encoder_from was 1\.0, now 0\.25"),
        ("loss.distortion", "l2", r"loss\.distortion was 'l1', now 'l2'"),
        ("model.luma.width", 9, r"model\.luma\.width was 8, now 9"),
        ("model.variant", "fusion", r"model\.variant was 'luma', now 'fusion'"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_setting(run, store, name, value, words):
    recipe = run.recipe.changed(**{name: value})
    with pytest.raises(UsageError, match=words) as error:
        Trainer(recipe, store, run.run_dir)
    text = str(error.value)
    assert "--run-dir" in text and str(checkpoints.latest(run.run_dir)) in text and len(text) < 300


def test_the_budget_alone_may_change(run, store):
    recipe = run.recipe.changed(**{"train.steps": 7, "train.minutes": 1.0})
    assert Trainer(recipe, store, run.run_dir).step == 2


FILES = ["state.json", *(f"{name}-0.safetensors" for name in ("model", "averaged", "optimizer", "extra"))]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_checkpoint_is_refused(run, store, file, damage):
    path = checkpoints.latest(run.run_dir) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
        if file == "state.json":
            assert checkpoints.latest(run.run_dir) is None  # not a checkpoint at all
            return
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(DataError) as error:
        Trainer(run.recipe, store, run.run_dir)
    assert str(path.parent) in str(error.value)


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("recipe"), lambda s: s.pop("step"), lambda s: s.update(recipe=[])]
)
def test_a_state_that_lacks_something_is_refused(run, store, change):
    path = checkpoints.latest(run.run_dir) / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    with pytest.raises(DataError, match="not a whole checkpoint"):
        Trainer(run.recipe, store, run.run_dir)


def test_tensors_of_other_shapes_are_refused(run, store):
    folder = checkpoints.latest(run.run_dir)
    tensors = load_tensors(folder, "averaged")
    tensors["rate_slope"] = torch.zeros(3)
    save_tensors(folder, "averaged", tensors)
    with pytest.raises(DataError, match=r"rate_slope is \(3,\), expected \(2,\)"):
        Trainer(run.recipe, store, run.run_dir)


# ---------------------------------------------------------------------------------- sizes


def test_tensors_are_spread_over_files_under_16_mib(tmp_path):
    draws = torch.Generator().manual_seed(0)
    tensors = {f"t{i}": torch.rand(1_500_000, generator=draws) for i in range(7)}  # 6 MB each
    tensors |= {"flag": torch.tensor(True), "count": torch.arange(5), "half": torch.rand(3).half()}
    files = save_tensors(tmp_path, "some", tensors)
    assert sorted(tmp_path.iterdir()) == files and len(files) == 4
    sizes = [path.stat().st_size for path in files]
    assert sum(sizes) > 40e6 and max(sizes) < LIMIT
    assert equal_tensors(load_tensors(tmp_path, "some"), tensors)


def test_tensors_of_the_limit_fill_a_file_each(tmp_path):
    tensors = {f"t{i}": torch.full((FILE_LIMIT_BYTES,), i, dtype=torch.uint8) for i in range(3)}
    assert len(save_tensors(tmp_path, "full", tensors)) == 3
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < LIMIT
    assert equal_tensors(load_tensors(tmp_path, "full"), tensors)


def test_a_tensor_that_no_file_holds_is_refused_by_name(tmp_path):
    tensors = {"large": torch.zeros(FILE_LIMIT_BYTES + 1, dtype=torch.uint8)}
    with pytest.raises(DataError, match="tensor large"):
        save_tensors(tmp_path, "some", tensors)


@pytest.mark.parametrize("profile", training_profiles())
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_of_every_profile_fits_into_a_file(profile, variant):
    with torch.device("meta"):
        model = Model(load_recipe(profile, variant).model)
    sizes = {name: value.numel() * value.element_size() for name, value in model.state_dict().items()}
    assert max(sizes.values()) <= FILE_LIMIT_BYTES


# ------------------------------------------------------------------------------------ log


def test_the_log_gives_back_its_rows(tmp_path):
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-300}]
    for row in rows:
        checkpoints.append_log(tmp_path / "deep" / "run", row)
    assert checkpoints.read_log(tmp_path / "deep" / "run") == rows


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    for step in (1, 2, 10):
        checkpoints.append_log(tmp_path, {"step": step, "loss": step / 3})
    checkpoints.trim_log(tmp_path, 2)
    assert checkpoints.read_log(tmp_path) == [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 2 / 3}]
    assert names(tmp_path) == ["log.csv"]
    checkpoints.trim_log(tmp_path / "none", 2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("cut", ["1", "12", "12,", "12,0."])
def test_a_row_that_was_cut_off_is_dropped(tmp_path, cut):
    checkpoints.append_log(tmp_path, {"step": 2, "loss": 0.5})
    path = checkpoints.log_file(tmp_path)
    path.write_text(path.read_text() + cut)
    checkpoints.trim_log(tmp_path, 2)
    checkpoints.append_log(tmp_path, {"step": 3, "loss": 0.25})
    assert checkpoints.read_log(tmp_path) == [{"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_files_of_a_run_are_small_enough_for_a_repository(run):
    files = [path for path in run.run_dir.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert max(path.stat().st_size for path in files) < LIMIT
    assert np.isfinite(checkpoints.read_log(run.run_dir)[-1]["loss"])
