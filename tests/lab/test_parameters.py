"""Names with hints, notebook parameters, profiles and folders: a bad value stops with a sentence."""

import random

import numpy as np
import pytest

from mcml.base import files
from mcml.base.errors import UsageError
from mcml.lab import output, parameters
from mcml.lab.parameters import CHECKS


@pytest.fixture
def profile_files(monkeypatch, tmp_path):
    monkeypatch.setattr(parameters, "profile_folder", lambda: tmp_path)
    (tmp_path / "quick.toml").write_text('[01_data]\nseed = 3\ncodecs = "webp"\n[02_more]\nbatch = 4\n')
    return tmp_path


PARAMETERS = {  # name: (good values, bad values)
    "seed": ([0, 7], [-1, 1.0, True, "1", None]),
    "max_images": ([0, 24], [-1, 2.5, False]),
    "target_bpp": ([0.1, 1, 24], [0, -0.1, 24.1, "0.5", True, float("nan"), float("inf")]),
    "patch_px": ([8, 256, 4096], [7, 4097, 64.0]),
    "zoom_px": ([8, 96, 4096], [7, 4097, "96"]),
    "batch": ([1, 64], [0, 1.5, True]),
    "workers": ([0, 2], [-1, None]),
    "sample_image": (["", "kodim05"], [None, 3]),
    "dataset": (["kodak", "some/folder"], ["", 3]),
    "codecs": (["webp", "jpeg420, webp"], ["", " , ", ["webp"]]),
    "sweep_bpp": (["0.15", "0.15, 0.3,1"], ["", "0", "0.1,x", "-1", "25", "nan", "inf", 0.3]),
    "profile": (["quick"], ["fast", "", 1]),
    "test_dataset": (["", "kodak"], [None, 3]),
    "held_out": (["", "chelsea,coffee"], [None, ["chelsea"]]),
    "train_images": ([0, 24], [-1, 2.5, False]),
    "crop_px": ([0, 64, 384], [1, 63, -8, 384.0]),
    "training_profile": (["quick", "cpu"], ["", 1]),
    "steps": ([1, 6000], [0, 1.5, True]),
    "color_steps": ([1, 6000], [0, 1.5, True]),
    "width": ([1, 96, 1024], [0, 1025, 32.0]),
    "code_channels": ([1, 384, 1024], [0, 1025, 32.0]),
    "color_channels": ([1, 48, 1024], [0, 1025, 32.0]),
    "gamma": ([0, 1, 2.5], [-0.1, "1", True]),
    "with_rgb": ([True, False], [0, 1, "yes"]),
    "dials": (["-1,2", "-3, 0.5, 20"], ["", "1", "a,b", "-21,0", "0,nan", 3]),
    "seeds": (["0", "0,1,2"], ["", "-1", "0.5", "a", 3]),
    "anchors": (["jpeg420", "jpeg420, independent"], ["", " , ", 3]),
    "equal_bpp": (["0.15", "0.15, 0.3"], ["", "0", "0.1,x", "-1", "nan", 0.3]),
    "qualities": (["6,45", "0, 50,100"], ["", "6", "a,b", "-1,5", "5,101", "5,nan", 6]),
    "repeats": ([1, 5, 1000], [0, 1001, 1.0, True]),
    "entropy_steps": ([1, 400], [0, 1.5, True]),
    "train_rgb_steps": ([1, 400], [0, 1.5, True]),
    "train_dataset": (["kodak", "some/folder"], ["", 3]),
    "feature_counts": (["12", "12,36"], ["", "0", "1025", "1.5", "a", 12]),
}


def test_every_check_is_tested_here():
    assert set(PARAMETERS) == set(CHECKS)


@pytest.mark.parametrize("name, value", [(n, v) for n, (good, _) in PARAMETERS.items() for v in good])
def test_good_parameters_pass(profile_files, name, value):
    assert parameters.check_parameters(**{name: value}) == {name: value}


@pytest.mark.parametrize("name, value", [(n, v) for n, (_, bad) in PARAMETERS.items() for v in bad])
def test_bad_parameters_are_named_with_what_was_expected(profile_files, name, value):
    with pytest.raises(UsageError) as error:
        parameters.check_parameters(**{name: value})
    assert str(error.value) == f"parameter {name} is {value!r}: expected {CHECKS[name][1]}"


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(UsageError, match="unknown parameter 'target_bbp': did you mean 'target_bpp'"):
        parameters.check_parameters(target_bbp=0.3)


def test_rates_and_names_are_split_at_commas():
    assert parameters.parse_bpp_list("0.15, 0.3,") == [0.15, 0.3]
    assert parameters.parse_names(" jpeg420,webp ,") == ["jpeg420", "webp"]
    assert parameters.parse_numbers("-1, 0.5,2,-1,") == [-1.0, 0.5, 2.0]


@pytest.mark.parametrize("text", ["", "0.1;0.2", "0", "nan", "25"])
def test_bad_rates_are_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"as in 0\.15,0\.3"):
        parameters.parse_bpp_list(text)


def test_profile_is_read_by_notebook(profile_files):
    assert parameters.profiles() == ["quick"]
    assert parameters.load_profile("quick") == {
        "01_data": {"seed": 3, "codecs": "webp"},
        "02_more": {"batch": 4},
    }


def test_unknown_profile_names_the_nearest(profile_files):
    with pytest.raises(UsageError, match="unknown profile 'quik': did you mean 'quick'"):
        parameters.load_profile("quik")


@pytest.mark.parametrize(
    "content, reason",
    [
        ("[broken", "not valid TOML"),
        ("seed = 3\n", "'seed' stands outside a"),
        ("[a]\nx = 1\nx = 2\n", "not valid"),
    ],
)
def test_broken_profile_is_refused_by_name(profile_files, content, reason):
    (profile_files / "broken.toml").write_text(content)
    with pytest.raises(UsageError, match=f"profile broken.toml.*{reason}"):
        parameters.load_profile("broken")


def test_profile_that_is_not_utf8_is_refused_by_name(profile_files):
    (profile_files / "latin.toml").write_bytes(b'[a]\nname = "caf\xe9"\n')
    with pytest.raises(UsageError, match=r"profile latin\.toml"):
        parameters.load_profile("latin")


def test_results_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MCML_RESULTS", str(tmp_path / "elsewhere"))
    assert output.results_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("MCML_RESULTS", "")
    assert output.results_root() == files.repo_root() / "results"


def test_seed_everything_makes_every_generator_repeat():
    import torch

    def draw():
        parameters.seed_everything(5)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw() == draw()
