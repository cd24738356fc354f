"""The context models' training: what is drawn, stages, exact resume, and files that come of it."""

import re

import numpy as np
import pytest
import torch
from helpers import equal_tensors, flat_optimizer, rows_of, tiny_recipe

from mcml.base.errors import DataError, UsageError
from mcml.codec.learned import LearnedCodec
from mcml.codec.transforms import analysis_transform
from mcml.model.model import build
from mcml.model.weights import save_model
from mcml.training.entropy import EntropyTrainer, FrozenBits

HIDDEN = {"Y": 8, "Cb": 4, "Cr": 4}
STEPS = 10  # six of luma, four of colour


@pytest.fixture(scope="module")
def model():
    return build(tiny_recipe("fusion").model, 5).eval()


@pytest.fixture(scope="module")
def bits(model, astronaut):
    return FrozenBits(model, [astronaut])


def trainer_of(model, bits, folder=None, steps=STEPS, **options):
    smallest = {"batch": 2, "side": 8, "hidden": HIDDEN}
    return EntropyTrainer(model, bits, steps=steps, run_dir=folder, **smallest, **options)


@pytest.fixture(scope="module")
def whole(model, bits, tmp_path_factory):
    trainer = trainer_of(model, bits, tmp_path_factory.mktemp("entropy"))
    assert trainer.fit(log_every=1) == "finished"
    return trainer


class StoppingBits(FrozenBits):
    """Bits that stop their trainer while the crops of step `last` are drawn."""

    def __init__(self, bits, last):
        self.config, self.tiles, self.last, self.trainer = bits.config, bits.tiles, last, None

    def sample(self, *arguments):
        self.last -= 1
        if self.last == 0:
            self.trainer.stop()
        return super().sample(*arguments)


@pytest.mark.parametrize("last", [1, 4, 6, 7, 9])  # within luma's part, at its end, within colour's
def test_a_run_cut_in_two_equals_one_that_ran_through(model, bits, whole, tmp_path, last):
    stopping = StoppingBits(bits, last)
    stopping.trainer = first = trainer_of(model, stopping, tmp_path)
    assert (first.fit(log_every=1), first.step) == ("interrupted", last)
    torch.manual_seed(12345)  # nothing hangs on the process's own generator
    second = trainer_of(model, bits, tmp_path)
    assert (second.step, second.elapsed_s) == (last, first.elapsed_s)
    assert second.fit(log_every=1) == "finished"
    for name in ("contexts", "averaged"):
        assert equal_tensors(getattr(second, name).state_dict(), getattr(whole, name).state_dict())
    assert equal_tensors(flat_optimizer(second), flat_optimizer(whole))
    assert rows_of(tmp_path) == rows_of(whole.run_dir)
    assert not equal_tensors(first.contexts.state_dict(), whole.contexts.state_dict())
    exported = [trainer_of(model, bits, place).export(2) for place in (tmp_path, whole.run_dir)]
    np.testing.assert_equal(*exported)


def test_luma_learns_first_then_colour_on_its_average(whole, model, bits):
    shown = [{key for key in HIDDEN if np.isfinite(row[f"bits_{key}"])} for row in whole.rows]
    assert shown == [{"Y"}] * 6 + [{"Cb", "Cr"}] * 4
    fresh = trainer_of(model, bits)
    for key, context in whole.contexts.items():
        assert equal_tensors(context.state_dict(), whole.averaged[key].state_dict())
        assert not equal_tensors(context.state_dict(), fresh.contexts[key].state_dict())
    joint = trainer_of(model, bits, joint=True)
    joint.fit(log_every=1)
    assert all(np.isfinite(value) for row in joint.rows for value in row.values())


def test_a_run_of_another_budget_data_or_model_is_refused(model, bits, tmp_path):
    sources = {"--model": f"luma@{'a' * 64}", "--data": f"photos@{'b' * 64}"}
    trainer_of(model, bits, tmp_path, steps=1, sources=sources).fit()
    with pytest.raises(UsageError, match="--steps was 1, now 2; give another --run-dir"):
        trainer_of(model, bits, tmp_path, steps=2, sources=sources)
    other = f"other@{'c' * 64}"
    for name, was in sources.items():
        with pytest.raises(UsageError, match=f"{name} was '{was}', now '{other}'"):
            trainer_of(model, bits, tmp_path, steps=1, sources=sources | {name: other})


def test_a_run_that_would_never_end_is_refused(model, bits):
    with pytest.raises(UsageError, match="0 steps and 0 minutes: give one of them above 0"):
        EntropyTrainer(model, bits)


def test_frozen_bits_are_the_encoders_in_tiles_without_what_is_less_than_a_square(model, astronaut):
    cut = astronaut[:77, :99]
    tiles = FrozenBits(model, [cut, cut[:7]], tile_px=64).tiles
    assert [tile["Y"][1].shape for tile in tiles] == [(8, 8), (8, 4), (1, 8), (1, 4)]
    expected = analysis_transform(model, cut[64:72, 64:96])
    for key, (packed, logit) in tiles[3].items():
        n = model.config.stream(key).code_channels
        assert np.array_equal(np.unpackbits(packed, axis=-1, count=n), expected[key][0])
        np.testing.assert_array_equal(logit, expected[key][1].astype(np.float16))
    with pytest.raises(DataError, match=re.escape("no photograph has 72 x 72 pixels")):
        FrozenBits(model, [cut], tile_px=64).sample(2, 9, torch.Generator())


def test_without_wholly_open_samples_colour_meets_luma_as_far_open_as_in_its_files(model, bits):
    trainer = trainer_of(model, bits)
    for whole, least, most in ((True, 0.42, 0.78), (False, 0.04, 0.3)):  # expected .6 and .17, 5 sigma
        batch = trainer.draw(200, 8, whole)
        share = {key: batch[key][1].mean(dim=(1, 2, 3)) for key in model.config.streams}
        assert least < (share["Y"] == 1).float().mean() < most
        if not whole:
            uniform = (batch["Y"][3] == 0).all(dim=2).all(dim=1)
            apart = (share["Y"] - share["Cb"]).abs()[uniform]
            assert uniform.float().mean() > 0.5 and apart.mean() < 0.25


@pytest.mark.parametrize("whole", [True, False])
def test_masks_open_the_first_groups_and_codes_are_their_bits(model, bits, whole):
    trainer = trainer_of(model, bits)
    for key, (drawn, mask, code, field) in trainer.draw(40, 8, whole).items():
        levels, groups = model.streams[key].config.levels, model.streams[key].groups
        opened = (groups * mask).amax(dim=-1)
        assert torch.equal(mask, (groups <= opened[..., None]).float())
        assert torch.equal(code, (2 * drawn - 1) * mask)
        adaptive = field != 0
        assert torch.equal(field[adaptive], ((2 * opened - (levels - 1)) / 8)[adaptive])


@pytest.mark.parametrize("condition, told", [("color", [[False], [False, True]]), ("none", [[False]] * 2)])
def test_colours_coder_without_luma_writes_files_with_the_luma_that_is_kept(
    model, bits, whole, tmp_path, astronaut, condition, told
):
    luma = {name: value for name, value in whole.export(2).items() if name.startswith("Y.")}
    trainer = trainer_of(model, bits, steps=4, condition=condition, kept=luma, seed=1)
    trainer.fit(log_every=1)
    assert all(np.isfinite(row["bits_Cb"] + row["bits_Cr"]) and "bits_Y" not in row for row in trainer.rows)
    tensors = trainer.export(2)
    np.testing.assert_equal({name: tensors[name] for name in luma}, luma)
    for key, sees in zip(("Cb", "Cr"), told, strict=True):
        for i, seen in enumerate(sees):
            assert tensors[f"{key}.inherit_{i}"].any() == seen
    files = []
    for name, integers in (("with", whole.export(2)), ("without", tensors)):
        save_model(model, tmp_path / name, {}, entropy=integers)
        codec = LearnedCodec(tmp_path / name)
        analysis = codec.analyse(astronaut[:64, :64])
        encoded = codec.pack(analysis, 60.0)
        files.append((codec.identity, encoded.ideal_bits["Y"], codec.decode(encoded.data)))
    (first, bits_with, image), (second, bits_without, same) = files
    assert first != second and bits_with == bits_without
    assert np.array_equal(image, same)


def test_a_condition_that_means_nothing_and_a_coder_of_another_size_are_refused(model, bits, whole):
    with pytest.raises(UsageError, match="unknown condition 'colour'"):
        trainer_of(model, bits, condition="colour")
    kept = whole.export(2)
    with pytest.raises(UsageError, match="no stream is to learn"):
        trainer_of(model, bits, kept=kept)
    with pytest.raises(DataError, match=r"expected \(8,\)"):
        trainer_of(model, bits, kept={**kept, "Y.state_bias": np.zeros(9, np.int32)})
    luma = build(tiny_recipe("luma").model, 5).eval()
    with pytest.raises(UsageError, match="no colour to tell"):
        trainer_of(luma, bits, condition="color")
