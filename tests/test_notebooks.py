"""The committed notebooks have their anatomy, are executed, small, and free of machines."""

import ast
import json
import re
import tomllib

import pytest
from helpers import ROOT, notebooks

from mcml.lab import parameters, runner


@pytest.fixture(params=notebooks(), ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def tags(cell):
    return cell["metadata"].get("tags", [])


def test_there_are_notebooks():
    assert {path.stem for path in notebooks()} >= {"01_data_preparation", "05_artifact_visualization"}


def test_it_opens_with_question_files_time_and_expectation(cells):
    opening = source(cells[0])
    assert opening.startswith("# ")
    for word in ("**Question.**", "**Reads**", "**Writes**", "**Run time**", "**Answers**"):
        assert word in opening
    assert "expect" in source(cells[1]) and re.search(r"\d", source(cells[1]))


def test_parameters_cell_is_typed_commented_literals(cells):
    first = code(cells)[0]
    assert tags(first) == ["parameters"]
    for line in source(first).splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool) = [^=]+  # [^=]+", line), line
    for node in ast.parse(source(first)).body:
        value = ast.literal_eval(node.value)
        assert type(value).__name__ == node.annotation.id


def test_imports_are_tagged_and_then_the_parameters_are_checked(path, cells):
    second, third = code(cells)[1:3]
    assert "nbval-ignore-output" in tags(second)
    assert "banner(profile)" in source(second)
    assert "check_parameters(" in source(third)
    for name in runner.notebook_parameters(path):
        assert f"{name}={name}" in source(third), f"{name} is not checked"
        assert name in parameters.CHECKS


def test_it_ends_with_facts_saving_and_summary(cells):
    kinds = [tags(cell) for cell in code(cells)]
    assert ["nbval-check-output"] in kinds
    assert "output.finish()" in source(code(cells)[-1])
    last = source(cells[-1])
    assert last.startswith("## Summary") and "**Limits.**" in last and "**Next.**" in last
    assert last.count("\n- ") == 3


def is_a_list(cell):
    """Whether a cell only lists: parameters, imports, or parameters handed over to be checked."""
    return tags(cell) == ["parameters"] or "check_parameters(" in source(cell) or "banner(" in source(cell)


def test_cells_are_short_and_prose_explains(cells):
    for cell in code(cells):
        assert is_a_list(cell) or len(source(cell).splitlines()) <= 15, source(cell)
        assert not source(cell).rstrip().endswith(";")
    words = sum(len(source(cell).split()) for cell in cells if cell["cell_type"] == "markdown")
    assert words > 400


def test_no_four_lines_of_code_stand_in_two_notebooks():
    """What two notebooks need belongs into `mcml.lab`; imports, parameters and saving are alike by design."""
    seen = {}
    for path in notebooks():
        for cell in code(json.loads(path.read_text("utf-8"))["cells"])[3:-1]:
            lines = [line.strip() for line in source(cell).splitlines() if len(line.strip()) > 8]
            for i in range(len(lines) - 3):
                other = seen.setdefault(tuple(lines[i : i + 4]), path.stem)
                assert other == path.stem, f"in {other} and {path.stem}: {lines[i : i + 4]}"


def test_the_readme_says_how_many_outputs_nbval_compares():
    every = [cell for path in notebooks() for cell in code(json.loads(path.read_text("utf-8"))["cells"])]
    compared = [cell for cell in every if "nbval-ignore-output" not in tags(cell)]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"compares the outputs of {len(compared)} of their {len(every)} cells" in readme
    assert len(compared) > 0.6 * len(every)


def test_every_cell_was_executed_in_order_without_error(cells):
    counts = [cell["execution_count"] for cell in code(cells)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(cells) for output in cell["outputs"]]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_each_figure_is_saved_shown_and_described(cells):
    text = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    for cell in code(cells):
        if "output.figure(" in source(cell):
            assert source(cell).rstrip().endswith("plt.show()")
            caption = re.search(r"Figure \d\.\d", source(cell))
            assert caption, "output.figure has no numbered caption"
    described = set(re.findall(r"^Figure (\d\.\d)", text, re.M))
    saved = {
        c for cell in code(cells) for c in re.findall(r"\"Figure (\d\.\d)|f\"Figure (\d\.\d)", source(cell))
    }
    assert described >= {first or second for first, second in saved} and len(described) >= 5


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
    assert list(content) == [path.stem for path in notebooks() if path.stem[:2].isdigit()]
    for run in runner.plan("quick"):
        assert run.parameters == runner.notebook_parameters(run.path)
