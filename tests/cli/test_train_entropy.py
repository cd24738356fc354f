"""`mcml train-entropy`: a trained model gets its coder, and files come of it."""

import numpy as np
import pytest
from helpers import equal_tensors, tiny_recipe

from mcml.cli import train_entropy as entropy_cli
from mcml.codec.learned import LearnedCodec
from mcml.data import images
from mcml.model import model_files, weights
from mcml.model.model import build


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def make(variant, seed=5):
        path = folder / f"{variant}{seed}"
        if not path.exists():
            weights.save_model(build(tiny_recipe(variant).model, seed), path, {"steps": 1})
        return path

    return make


def run(*words):
    return entropy_cli.main(["train-entropy", *map(str, words)])


def test_a_model_gets_a_coder_and_writes_files(model_of, photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ("--model", model_of("fusion"), "--data", photo_folder, "--steps", 3, "--side", 4, "--batch", 2)
    assert run(*words, "--run-dir", out) == 0
    _, record = weights.load_config(out / "model")
    assert record["steps"] == 1 and record["entropy"]["steps"] == 3
    image = images.read_image(sorted(photo_folder.iterdir())[0])[:40, :56]
    coder = LearnedCodec(out / "model")
    assert coder.decode(coder.encode(image, 50.0)).shape == image.shape
    assert equal_tensors(
        weights.load(out / "model").state_dict(), weights.load(model_of("fusion")).state_dict()
    )
    before = model_files.entropy_tensors(out / "model")
    assert run(*words, "--run-dir", out) == 0  # a finished run is left as it is
    after = model_files.entropy_tensors(out / "model")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    capsys.readouterr()
    assert run(*words, "--run-dir", out, "--model", model_of("fusion", 8)) == 2
    said = capsys.readouterr().err
    assert "--model was 'fusion5@" in said and "now 'fusion8@" in said and "give another --run-dir" in said


def test_a_coder_is_taken_over_only_where_bits_are_the_same(model_of, photo_folder, tmp_path, capsys):
    words = ("--data", photo_folder, "--steps", 1, "--side", 4, "--batch", 2)
    assert run("--model", model_of("independent"), *words, "--run-dir", tmp_path / "a") == 0
    source = tmp_path / "a" / "model"
    assert run("--model", model_of("independent", 6), "--like", source, "--run-dir", tmp_path / "b") == 2
    assert "differ" in capsys.readouterr().err
    other = weights.load(model_of("fusion", 7))
    mine = weights.load(source)
    for key, stream in other.streams.items():
        stream.encoder.load_state_dict(mine.streams[key].encoder.state_dict())
        if stream.importance is not None:
            stream.importance.load_state_dict(mine.streams[key].importance.state_dict())
    weights.save_model(other, tmp_path / "same", {}, half=False)
    assert run("--model", tmp_path / "same", "--like", source, "--run-dir", tmp_path / "c") == 0
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    first = LearnedCodec(source).encode(image, 60.0)
    second = LearnedCodec(tmp_path / "c" / "model").encode(image, 60.0)
    assert len(first) == len(second) and first[24:28] == second[24:28]


@pytest.mark.parametrize(
    ("words", "code"),
    [((), 2), (("--steps", 1, "--threads", 0), 2), (("--steps", 1, "--data", "nowhere"), 2)],
)
def test_mistakes_are_named(model_of, tmp_path, capsys, words, code):
    assert run("--model", model_of("luma"), "--run-dir", tmp_path / "run", *words) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "run" / "model").exists()
