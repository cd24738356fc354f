"""The committed notebooks have their anatomy, are executed, small, and free of machines."""

import ast
import re
import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest
import regenerate
from helpers import ROOT, notebooks

from mcml.lab import parameters, runner

CELLS = {path: nbformat.read(path, as_version=4).cells for path in notebooks()}
CODE = {path: [cell for cell in cells if cell.cell_type == "code"] for path, cells in CELLS.items()}
NUMBER = r"\d[a-z]?\.\d"  # of a figure
each_notebook = pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)


def tags(cell):
    return cell.metadata.get("tags", [])


def prose(path):
    return "\n".join(cell.source for cell in CELLS[path] if cell.cell_type == "markdown")


@each_notebook
def test_its_text_is_in_step(path, tmp_path):
    """`make lint` writes it anew."""
    (tmp_path / "text").mkdir()
    regenerate.write_text(Path(shutil.copy(path, tmp_path)))
    text = path.parent / "text" / f"{path.stem}.py"
    assert text.read_text("utf-8") == (tmp_path / "text" / text.name).read_text("utf-8")


def test_no_text_is_left_of_a_notebook_that_is_gone():
    assert {p.stem for p in (ROOT / "notebooks" / "text").iterdir()} == {path.stem for path in CELLS}


@each_notebook
def test_it_opens_with_question_files_time_and_expectation(path):
    opening, expected = (cell.source for cell in CELLS[path][:2])
    assert opening.startswith("# ")
    for word in ("**Question.**", "**Reads**", "**Writes**", "**Run time**", "**Answers**"):
        assert word in opening
    assert "expect" in expected and re.search(r"\d", expected)


@each_notebook
def test_parameters_cell_is_typed_commented_literals(path):
    first = CODE[path][0]
    assert tags(first) == ["parameters"]
    for line in first.source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool) = [^=]+  # [^=]+", line), line
    for node in ast.parse(first.source).body:
        assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id


@each_notebook
def test_imports_are_tagged_and_then_the_parameters_are_checked(path):
    second, third = CODE[path][1:3]
    assert "nbval-ignore-output" in tags(second)
    assert "banner(profile)" in second.source
    assert "check_parameters(" in third.source
    for name in runner.notebook_parameters(path):
        assert f"{name}={name}" in third.source, f"{name} is not checked"
        assert name in parameters.CHECKS


@each_notebook
def test_it_ends_with_facts_saving_and_summary(path):
    assert ["nbval-check-output"] in map(tags, CODE[path])
    assert "output.finish()" in CODE[path][-1].source
    last = CELLS[path][-1].source
    assert last.startswith("## Summary") and "**Limits.**" in last and "**Next.**" in last
    assert last.count("\n- ") == 3


@each_notebook
def test_cells_are_short_and_prose_explains(path):
    for cell in CODE[path]:
        is_a_list = tags(cell) == ["parameters"] or re.search(r"check_parameters\(|banner\(", cell.source)
        assert is_a_list or len(cell.source.splitlines()) <= 15, cell.source
        assert not cell.source.rstrip().endswith(";")
    assert len(prose(path).split()) > 400


def test_no_four_lines_of_code_stand_in_two_notebooks():
    """What two notebooks need belongs into `mcml.lab`; imports, parameters and saving are alike by design."""
    seen = {}
    for path, cells in CODE.items():
        for cell in cells[3:-1]:
            lines = [line.strip() for line in cell.source.splitlines() if len(line.strip()) > 8]
            for i in range(len(lines) - 3):
                other = seen.setdefault(tuple(lines[i : i + 4]), path.stem)
                assert other == path.stem, f"in {other} and {path.stem}: {lines[i : i + 4]}"


def test_a_page_says_how_many_outputs_nbval_compares():
    every = [cell for cells in CODE.values() for cell in cells]
    compared = sum("nbval-ignore-output" not in tags(cell) for cell in every)
    page = (ROOT / "docs" / "REPRODUCING.md").read_text("utf-8")
    assert f"compares the outputs of {compared} of their {len(every)} cells" in page
    assert compared > 0.6 * len(every)


@each_notebook
def test_every_cell_was_executed_in_order_without_error(path):
    assert [cell.execution_count for cell in CODE[path]] == list(range(1, len(CODE[path]) + 1))
    outputs = [output for cell in CODE[path] for output in cell.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@each_notebook
def test_each_figure_is_saved_shown_and_described(path):
    described, saved = set(re.findall(rf"^Figure ({NUMBER})", prose(path), re.M)), set()
    for cell in CODE[path]:
        if "output.figure(" in cell.source:
            assert cell.source.rstrip().endswith("plt.show()")
            assert re.search(f"Figure {NUMBER}", cell.source), "output.figure has no numbered caption"
        saved.update(re.findall(f'"Figure ({NUMBER})', cell.source))
    assert described >= saved and len(described) >= 5


@each_notebook
def test_each_picture_has_alternative_text_or_a_caption_that_follows(path):
    captions = re.findall(rf"^Figure {NUMBER}: ", prose(path), re.M)
    outputs = [output for cell in CODE[path] for output in cell.outputs]
    images = [o.metadata.get("image/png", {}) for o in outputs if "image/" in " ".join(o.get("data", {}))]
    assert len(images) >= 5
    assert len(captions) >= len(images) or all(len(image.get("alt", "")) > 20 for image in images)


@each_notebook
def test_it_is_small_and_names_no_machine(path):
    text = path.read_text("utf-8")
    assert len(text) < 1_000_000
    assert not re.search("/" + r"(home|root|tmp|work|Users)/", text)
    said = re.sub(r'"image/\w+": "[^"]*"', "", text)  # base64 may hold any four letters
    assert "0x7f" not in said and "it/s]" not in said


@pytest.mark.parametrize("profile", parameters.profiles())
def test_profiles_name_only_known_parameters(profile):
    planned = runner.plan(profile)
    assert planned
    for run in planned:
        parameters.check_parameters(**run.parameters)
        assert run.parameters["profile"] == profile


def test_the_quick_profile_is_every_notebook_as_committed():
    content = tomllib.loads((ROOT / "notebooks" / "profiles" / "quick.toml").read_text("utf-8"))
    assert list(content) == [path.stem for path in CELLS if path.stem[:2].isdigit()] != []
    for run in runner.plan("quick"):
        assert run.parameters == runner.notebook_parameters(run.path)
