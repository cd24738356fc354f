"""Settings: defaults, ranges and words; profiles and --set; mistakes get the nearest name."""

import math

import pytest
from helpers import TINY
from hypothesis import given
from hypothesis import strategies as st

from mcml.base.errors import UsageError
from mcml.model import settings
from mcml.model.settings import VARIANTS, LossConfig, ModelConfig, Recipe, StreamConfig, dotted, load_recipe


@pytest.mark.parametrize("profile", settings.training_profiles())
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("quantizer", settings.QUANTIZERS)
def test_every_profile_loads_for_every_variant_and_survives_a_dictionary(profile, variant, quantizer):
    recipe = load_recipe(profile, variant, quantizer=quantizer)
    assert (recipe.model.variant, recipe.model.quantizer) == (variant, quantizer)
    assert Recipe().changed(**recipe.to_dict()) == recipe
    assert Recipe().changed(**dotted(recipe.to_dict())) == recipe
    assert recipe.trained_streams() == recipe.model.streams


def test_profiles_are_those_of_the_folder():
    assert {"quick", "cpu", "gpu"} <= set(settings.training_profiles())
    quick, gpu = (load_recipe(name, "luma") for name in ("quick", "gpu"))
    assert quick.model.luma.width < gpu.model.luma.width
    assert gpu.train.steps == 0 < gpu.train.minutes


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Write a profile of one's own."""

    def write(text):
        (tmp_path / "own.toml").write_text(text)
        return "own"

    monkeypatch.setattr(settings, "profile_folder", lambda: tmp_path)
    return write


def test_settings_lie_over_the_profile_over_the_defaults(profile):
    name = profile("[train]\nlr = 0.5\nbatch = 3\nclip = 2.0\n[model.luma]\nwidth = 12\n")
    rgb = load_recipe(name, "rgb", ["train.clip=7.0", "train.seed=1", "train.seed=2"])
    assert (rgb.train.lr, rgb.train.batch, rgb.train.clip, rgb.train.seed) == (0.5, 3, 7.0, 2)
    assert rgb.train.ema == Recipe().train.ema
    assert rgb.model.luma == StreamConfig(width=12)
    assert rgb.model.color == Recipe().model.color


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("train.steps=5", "train.steps", 5),
        ("train.cuda=graph", "train.cuda", "graph"),
        ("train.lr=1", "train.lr", 1.0),
        ("train.lr=1e-2", "train.lr", 0.01),
        (" train.precision = bf16 ", "train.precision", "bf16"),
        ('train.precision="bf16"', "train.precision", "bf16"),
        ("stage.train=Cb,Cr", "stage.train", "Cb,Cr"),
        ("stage.train=", "stage.train", ""),
        ("model.luma.width=7", "model.luma.width", 7),
        ("model.color.code_channels=32", "model.color.code_channels", 32),
        ("loss.gamma=0.5", "loss.gamma", 0.5),
        ("stage.encoder_from=0", "stage.encoder_from", 0.0),
    ],
)
def test_settings_are_numbers_or_words(text, name, value):
    got = dotted(load_recipe("quick", "fusion", [text]).to_dict())[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("train.steps", "--set train.steps: expected table.name=value"),
        ("steps=5", "--set steps=5: expected table.name=value"),
        ("train=5", "--set train=5: expected table.name=value"),
        ("tarin.steps=5", "unknown setting 'tarin': did you mean 'train'"),
        ("train.stepps=5", "unknown setting 'train.stepps': did you mean 'train.steps'"),
        ("model.luma.widht=5", "unknown setting 'model.luma.widht': did you mean 'model.luma.width'"),
        ("model.lumma.width=5", "unknown setting 'model.lumma': did you mean 'model.luma'"),
        ("model.variant.width=5", "model.variant is one setting"),
        ("train.lr={more=5}", "train.lr is one setting"),
        ("model.luma=5", "model.luma is 5: expected a table of settings"),
        ("train.steps=1.5", "steps is 1.5: expected int"),
        ("train.steps=many", "steps is 'many': expected int"),
        ("train.steps=true", "steps is True: expected int"),
        ("train.lr=true", "lr is True: expected float"),
        ("train.lr='1'", "lr is '1': expected float"),
        ("train.precision=16", "precision is 16: expected str"),
        ("train.precision=bf61", "unknown precision 'bf61': did you mean 'bf16'"),
        ("stage.start=treshold", "unknown start 'treshold': did you mean 'threshold'"),
        ("stage.train=Cb,Cx", "unknown stream 'Cx'"),
        ("loss.distortion=l3", "unknown distortion 'l3'"),
        ("loss.rate_streams=chroma", "unknown rate_streams 'chroma'"),
        ("model.luma.importance=unifrom", "did you mean 'uniform'"),
        ("train.steps=-1", "steps is -1: expected 0 to"),
        ("train.steps=0", "steps and minutes are both 0"),
        ("train.lr=nan", "lr is nan"),
        ("train.lr=inf", "lr is inf"),
        ("loss.gamma=-0.1", "gamma is -0.1"),
        ("train.ema=1", "ema is 1.0"),
        ("train.batch=0", "batch is 0"),
        ("train.patch_px=100", "patch_px is 100: expected a multiple of 8"),
        ("stage.encoder_from=2", "encoder_from is 2.0: expected 0 to 1"),
        ("stage.uniform_share=-0.1", "uniform_share is -0.1"),
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


@pytest.mark.parametrize(
    "text, words",
    [
        ("[train\n", "own.toml is not valid TOML"),
        ("train = 5\n", "train is 5: expected a table"),
        ("[train.steps]\nmany = 1\n", "train.steps is one setting"),
    ],
)
def test_a_mistyped_profile_is_refused(profile, text, words):
    with pytest.raises(UsageError) as error:
        load_recipe(profile(text), "luma")
    assert words in str(error.value)


def test_a_changed_recipe_leaves_the_first_and_checks_again():
    first = Recipe()
    second = first.changed(**TINY, **{"train.steps": 5})
    assert (second.train.steps, second.model.luma.width, second.model.color.width) == (5, 8, 8)
    assert first == Recipe() and second.changed() == second
    with pytest.raises(AttributeError):
        first.train.steps = 5


def test_streams_that_learn_come_in_coding_order():
    assert Recipe().changed(**{"stage.train": " Cr , Y"}).trained_streams() == ("Y", "Cr")


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (StreamConfig, {"width": 0}, "width is 0: expected 1 to 1024"),
        (StreamConfig, {"width": 1025}, "expected 1 to 1024"),
        (StreamConfig, {"code_channels": 1025}, "code_channels is 1025"),
        (StreamConfig, {"code_channels": 30}, "32 levels need 31"),
        (StreamConfig, {"levels": 1}, "levels is 1: expected 2 to 256"),
        (StreamConfig, {"levels": 257}, "levels is 257"),
        (StreamConfig, {"groups": 0}, "groups is 0: expected 1 to 32"),
        (StreamConfig, {"blocks": 33}, "blocks is 33"),
        (StreamConfig, {"importance": None}, "importance is None: expected str"),
        (ModelConfig, {"variant": "fusoin"}, "did you mean 'fusion'"),
        (ModelConfig, {"luma": {"width": 8}}, "expected StreamConfig"),
        (LossConfig, {"gamma": math.nan}, "gamma is nan"),
        (LossConfig, {"gamma": True}, "gamma is True"),
    ],
)
def test_a_bad_value_is_named_wherever_settings_are_made(kind, changes, message):
    with pytest.raises(UsageError, match=message):
        kind(**changes)


def test_the_bounds_themselves_are_allowed():
    StreamConfig(width=1, code_channels=1, levels=2, groups=1, blocks=1)
    StreamConfig(width=1024, code_channels=1024, levels=256, groups=32, blocks=32)
    StreamConfig(code_channels=31)


@given(st.integers(2, 20), st.integers(0, 60))
def test_even_groups_differ_by_one_at_most_and_grow(levels, more):
    count = levels - 1
    sizes = StreamConfig(code_channels=count + more, levels=levels).even_groups()
    assert (len(sizes), sum(sizes)) == (count, count + more)
    assert sizes == sorted(sizes)
    assert sizes[-1] - sizes[0] <= 1
