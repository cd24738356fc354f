"""Recipes: profiles load for every variant, settings lie over them, mistakes get the nearest name."""

import pytest
from helpers import TINY

from mcml.base.errors import UsageError
from mcml.model import recipes
from mcml.model.model import VARIANTS
from mcml.model.recipes import Recipe, from_dict, load_recipe, training_profiles


@pytest.mark.parametrize("profile", training_profiles())
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_profile_loads_for_every_variant_and_survives_a_dictionary(profile, variant):
    recipe = load_recipe(profile, variant)
    assert recipe.model.variant == variant
    assert from_dict(recipe.to_dict()) == recipe
    assert recipe.trained_streams() == recipe.model.streams


def test_profiles_are_those_of_the_folder():
    assert {"quick", "cpu", "gpu"} <= set(training_profiles())
    assert load_recipe("quick", "luma").model.luma.width < load_recipe("gpu", "luma").model.luma.width
    assert load_recipe("gpu", "luma").train.steps == 0 < load_recipe("gpu", "luma").train.minutes


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Write a profile of one's own."""

    def write(text):
        (tmp_path / "own.toml").write_text(text)
        return "own"

    monkeypatch.setattr(recipes, "profile_folder", lambda: tmp_path)
    return write


def test_settings_lie_over_the_variant_over_the_profile_over_the_defaults(profile):
    name = profile(
        "[train]\nlr = 0.5\nbatch = 3\nclip = 2.0\n[variants.rgb.train]\nbatch = 5\nclip = 4.0\n"
        "[variants.fusion.model.luma]\nwidth = 12\n"
    )
    rgb = load_recipe(name, "rgb", ["train.clip=7.0", "train.seed=1", "train.seed=2"])
    assert (rgb.train.lr, rgb.train.batch, rgb.train.clip, rgb.train.seed) == (0.5, 5, 7.0, 2)
    assert rgb.train.ema == Recipe().train.ema
    luma = load_recipe(name, "luma")
    assert (luma.train.batch, luma.train.clip) == (3, 2.0)
    assert load_recipe(name, "fusion").model.luma.width == 12
    assert luma.model.luma.width == Recipe().model.luma.width


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("train.steps=5", "train.steps", 5),
        ("train.lr=1", "train.lr", 1.0),
        ("train.lr=1e-2", "train.lr", 0.01),
        (" train.augment = false ", "train.augment", False),
        ("train.precision=bf16", "train.precision", "bf16"),
        ('train.precision="bf16"', "train.precision", "bf16"),
        ("stage.train=Cb,Cr", "stage.train", "Cb,Cr"),
        ("stage.train=", "stage.train", ""),
        ("model.luma.width=7", "model.luma.width", 7),
        ("model.dial_low=-2.5", "model.dial_low", -2.5),
    ],
)
def test_settings_are_numbers_truths_or_words(text, name, value):
    found = load_recipe("quick", "fusion", [text]).to_dict()
    for part in name.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("train.steps", "--set train.steps: expected table.name=value"),
        ("steps=5", "setting 'steps': expected table.name"),
        ("tarin.steps=5", "unknown table 'tarin': did you mean 'train'"),
        ("train.stepps=5", "unknown setting 'stepps': did you mean 'steps'"),
        ("model.luma.widht=5", "unknown setting 'widht': did you mean 'width'"),
        ("model.lumma.width=5", "unknown table 'lumma': did you mean 'luma'"),
        ("model.variant.width=5", "unknown table 'variant'"),
        ("train.lr.more=5", "unknown table 'lr'"),
        ("model.luma=5", "luma is 5: expected StreamConfig"),
        ("train=5", "expected table.name"),
        ("train.steps=1.5", "train.steps is 1.5: expected int"),
        ("train.steps=many", "train.steps is 'many': expected int"),
        ("train.steps=true", "train.steps is True: expected int"),
        ("train.augment=1", "train.augment is 1: expected bool"),
        ("train.precision=16", "train.precision is 16: expected str"),
        ("model.luma.width=8.0", "width is 8.0: expected int"),
        ("train.precision=bf61", "unknown precision 'bf61': did you mean 'bf16'"),
        ("stage.start=treshold", "unknown start 'treshold': did you mean 'threshold'"),
        ("stage.train=Cb,Cx", "unknown stream 'Cx'"),
        ("loss.distortion=l3", "unknown distortion 'l3'"),
        ("train.steps=-1", "steps is -1: expected 0 to"),
        ("train.lr=nan", "lr is nan"),
        ("train.lr=inf", "lr is inf"),
        ("train.ema=1", "ema is 1.0"),
        ("train.batch=0", "batch is 0"),
        ("train.patch_px=100", "patch_px is 100: expected a multiple of 8"),
        ("stage.encoder_from=2", "encoder_from is 2.0: expected 0 to 1"),
        ("stage.rate_target=-0.1", "rate_target is -0.1"),
        ("model.luma.code_channels=2", "code_channels is 2: 25 levels need 24 or more"),
    ],
)
def test_mistaken_settings_are_refused(text, words):
    with pytest.raises(UsageError) as error:
        load_recipe("quick", "fusion", [text])
    assert words in str(error.value)


def test_unknown_variants_and_profiles_are_refused():
    with pytest.raises(UsageError, match="unknown variant 'fuson': did you mean 'fusion'"):
        load_recipe("quick", "fuson")
    with pytest.raises(UsageError, match="unknown training profile 'quik': did you mean 'quick'"):
        load_recipe("quik", "luma")


def test_a_run_without_any_budget_is_refused():
    with pytest.raises(UsageError, match="steps and minutes are both 0"):
        load_recipe("quick", "luma", ["train.steps=0", "train.minutes=0"])


@pytest.mark.parametrize(
    "text, words",
    [
        ("[train\n", "own.toml is not valid TOML"),
        ("[tarin]\nsteps = 1\n", "did you mean 'train'"),
        ("steps = 1\n", "expected table.name"),
        ("[train]\nstepps = 1\n", "did you mean 'steps'"),
        ("[variants.luma.train]\nstepps = 1\n", "did you mean 'steps'"),
        ("[train.steps]\nmany = 1\n", "unknown table 'steps'"),
        ("[variants.lumma.train]\nsteps = 1\n", "did you mean 'luma'"),
    ],
)
def test_a_mistyped_profile_is_refused(profile, text, words):
    with pytest.raises(UsageError) as error:
        load_recipe(profile(text), "luma")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"train": 5}, "'train' is 5: expected a table"),
        ({"trian": {}}, "did you mean 'train'"),
        ({"train": {"lrr": 1}}, "did you mean 'lr'"),
        ({"model": {"luma": {"wide": 1}}}, "unknown model.luma setting 'wide'"),
    ],
)
def test_mistaken_dictionaries_are_refused(values, words):
    with pytest.raises(UsageError) as error:
        from_dict(values)
    assert words in str(error.value)


def test_a_changed_recipe_leaves_the_first_and_checks_again():
    first = Recipe()
    second = first.changed(**TINY, **{"train.steps": 5})
    assert (second.train.steps, second.model.luma.width, second.model.color.width) == (5, 8, 8)
    assert first == Recipe() and second.changed() == second
    assert (
        second.changed(**{"train.steps": first.train.steps}).train
        == first.changed(**{"train.batch": 4, "train.patch_px": 32}).train
    )
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        first.changed(**{"train.stepps": 5})
    with pytest.raises(UsageError, match="expected int"):
        first.changed(**{"train.steps": "5"})


def test_streams_that_learn_come_in_coding_order():
    recipe = Recipe().changed(**{"stage.train": " Cr , Y"})
    assert recipe.trained_streams() == ("Y", "Cr")
    with pytest.raises(UsageError, match="unknown stream 'Cb'"):
        Recipe().changed(**{"model.variant": "luma", "stage.train": "Cb"})
