"""The README's commands exist, its links lead somewhere, its figure and table are the project's."""

import io
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT, notebooks
from PIL import Image

from mcml.cli.main import run
from mcml.codec import interface as codec
from mcml.data import sets as data
from mcml.lab import figures, parameters, runner
from mcml.metrics import artifacts
from mcml.metrics import distortion as metrics
from mcml.model.settings import VARIANTS, training_profiles

README = (ROOT / "README.md").read_text("utf-8")
SHELL = (
    "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    + "\n"
    + "\n".join(re.findall(r"`([^`\n]+)`", README.replace("```", "")))
)


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README and "TODO" not in README


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 6
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", SHELL))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"(?<=\.venv/bin/)mcml [^`#\n]+", SHELL))))
def test_commands_and_options_exist(line, capsys, monkeypatch):
    words = shlex.split(line)
    monkeypatch.setenv("COLUMNS", "200")
    code, text = run([words[1], "--help"]), capsys.readouterr().out
    assert code == 0, text
    for option in (word for word in words if word.startswith("-")):
        assert option in text, option


@pytest.mark.parametrize("line", sorted(set(re.findall(r"(?<=\.venv/bin/)mcml train [^`#\n]+", SHELL))))
def test_training_commands_name_known_variants_and_profiles(line):
    words = shlex.split(line)
    assert words[words.index("--variant") + 1] in VARIANTS
    assert words[words.index("--profile") + 1] in training_profiles()


def test_parameters_in_commands_are_the_notebooks():
    every = {name for path in notebooks() for name in runner.notebook_parameters(path)}
    named = re.findall(r"-p (\w+)[ =]", README)
    assert named and set(named) <= every


def test_every_metric_codec_profile_and_notebook_is_named():
    for column in set(metrics.COLUMNS):
        assert f"`{column}`" in README, column
    for name in codec.names():
        assert f"`{name}`" in README, name
    for name in parameters.profiles():
        assert f"`{name}`" in README, name
    for path in notebooks():
        assert f"(notebooks/{path.name})" in README


def test_the_figure_is_what_the_code_draws():
    shown = np.asarray(Image.open(ROOT / "docs" / "figures" / "artefacts.png").convert("RGB")).astype(int)
    (artefacts,) = (path for path in notebooks() if path.name.startswith("05"))
    names = parameters.parse_names(runner.notebook_parameters(artefacts)["codecs"])
    original = data.image_set("embedded").read("china")
    decodes = {}
    for name in names:
        coder = codec.get_codec(name)
        decodes[name] = coder.decode(codec.encode_at_bpp(coder, original, 0.16).data)
    maps = [artifacts.artifact_maps(original, decode) for decode in decodes.values()]
    boxes = artifacts.worst_boxes({kind: sum(m[kind] for m in maps) for kind in maps[0]}, 72)
    figures.use_style()
    figure = figures.zooms(original, decodes, boxes, "'china' at 0.16 bpp, enlarged")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    figures.plt.close(figure)
    drawn = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 1  # levels; other CPUs may round a decoder's pixel differently


EXAMPLES = {
    ("weights" if "model.load" in text else "codec"): text
    for text in re.findall(r"```python\n(.*?)```", README, re.S)
}


def test_the_codec_example_runs(capsys):
    exec(compile(EXAMPLES["codec"], "README.md", "exec"), {})
    bpp, ciede2000 = map(float, capsys.readouterr().out.split())
    assert abs(bpp / 0.3 - 1) < 0.02 and 0 < ciede2000 < 10


def test_the_weights_example_runs(capsys):
    exec(compile(EXAMPLES["weights"], "README.md", "exec"), {})
    bpp, shape = capsys.readouterr().out.split(" ", 1)
    assert 0.1 < float(bpp) < 1 and shape.strip() == "torch.Size([1, 3, 400, 600])"
