"""Notebook parameters and profiles: a bad value stops with a sentence."""

import random

import numpy as np
import pytest
import torch

from mcml.base.errors import UsageError
from mcml.lab import parameters, runner
from mcml.lab.parameters import CHECKS


@pytest.fixture
def profile_files(monkeypatch, tmp_path):
    monkeypatch.setattr(parameters, "repo_root", lambda: tmp_path)
    folder = tmp_path / "notebooks" / "profiles"
    folder.mkdir(parents=True)
    (folder / "quick.toml").write_text('[01_data]\nseed = 3\ncodecs = "webp"\n[02_more]\nbatch = 4\n')
    return folder


VALUES = [  # names, good values, bad values
    ("seed", [0, 7], [-1, 1.0, True, "1", None]),
    ("max_images train_images", [0, 24], [-1, 2.5, False]),
    ("workers", [0, 2], [-1, None]),
    ("target_bpp", [0.1, 1, 24], [0, -0.1, 24.1, "0.5", True, float("nan"), float("inf")]),
    ("patch_px zoom_px side_px", [8, 256, 4096], [7, 4097, 64.0, "96"]),
    ("crop_px", [0, 64, 384], [1, 63, -8, 384.0]),
    ("batch steps color_steps", [1, 6000], [0, 1.5, True]),
    ("repeats", [1, 5, 1000], [0, 1001, 1.0, True]),
    ("width code_channels color_channels", [1, 96, 1024], [0, 1025, 32.0]),
    ("gamma", [0, 1, 2.5], [-0.1, "1", True]),
    ("sample_image", ["", "kodim05"], [None, 3]),
    ("measured", ["results/released/luma_for_color"], ["", None, 3]),
    ("held_out", ["", "chelsea,coffee"], [None, ["chelsea"]]),
    ("profile", ["quick"], ["fast", "", 1]),
    ("training_profile", ["quick", "cpu"], ["", 1]),
    ("dataset", ["kodak", "some/folder"], ["", 3]),
    ("test_dataset", ["", "kodak"], [None, 3]),
    ("codecs anchors", ["webp", "jpeg420, webp"], ["", " , ", ["webp"]]),
    ("sweep_bpp equal_bpp", ["0.15", "0.15, 0.3,1"], ["", "0", "0.1,x", "-1", "25", "nan", "inf", 0.3]),
    ("qualities", ["6,45", "0, 50,100"], ["", "6", "a,b", "-1,5", "5,101", "5,nan", 6]),
    ("dials", ["-1,2", "-3, 0.5, 20"], ["", "1", "a,b", "-21,0", "0,nan", 3]),
    ("seeds", ["0", "0,1,2"], ["", "-1", "0.5", "a", 3]),
]


def test_every_check_is_of_a_notebook_s_parameter_and_tested_here():
    in_notebooks = {name for path in runner.notebooks() for name in runner.notebook_parameters(path)}
    assert {name for names, _, _ in VALUES for name in names.split()} == set(CHECKS) == in_notebooks


@pytest.mark.parametrize("names, good, bad", VALUES, ids=[names for names, _, _ in VALUES])
def test_good_values_pass_and_bad_ones_are_named_with_what_was_expected(profile_files, names, good, bad):
    for name in names.split():
        for value in good:
            assert parameters.check_parameters(**{name: value}) == {name: value}
        for value in bad:
            with pytest.raises(UsageError) as error:
                parameters.check_parameters(**{name: value})
            assert str(error.value) == f"parameter {name} is {value!r}: expected {CHECKS[name][1]}"


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(UsageError, match="unknown parameter 'target_bbp': did you mean 'target_bpp'"):
        parameters.check_parameters(target_bbp=0.3)


def test_rates_names_and_numbers_are_split_at_commas():
    assert parameters.parse_bpp_list("0.15, 0.3,") == [0.15, 0.3]
    assert parameters.parse_names(" jpeg420,webp ,") == ["jpeg420", "webp"]
    assert parameters.parse_numbers("-1, 0.5,2,-1,") == [-1.0, 0.5, 2.0]
    with pytest.raises(UsageError, match=r"bpp list '0\.1;0\.2': expected rates .*, as in 0\.15,0\.3"):
        parameters.parse_bpp_list("0.1;0.2")


def test_profile_is_read_by_notebook(profile_files):
    assert list(parameters.profiles()) == ["quick"]
    content = {"01_data": {"seed": 3, "codecs": "webp"}, "02_more": {"batch": 4}}
    assert parameters.load_profile("quick") == content
    with pytest.raises(UsageError, match="unknown profile 'quik': did you mean 'quick'"):
        parameters.load_profile("quik")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"[broken", "not valid TOML"),
        (b"seed = 3\n", "'seed' stands outside a"),
        (b"[a]\nx = 1\nx = 2\n", "not valid TOML"),
        (b'[a]\nname = "caf\xe9"\n', "not valid TOML"),  # not UTF-8
    ],
)
def test_broken_profile_is_refused_by_name(profile_files, content, reason):
    (profile_files / "broken.toml").write_bytes(content)
    with pytest.raises(UsageError, match=rf"profile broken\.toml.*{reason}"):
        parameters.load_profile("broken")


def test_seed_everything_makes_every_generator_repeat():
    def draw():
        parameters.seed_everything(5)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw() == draw()
