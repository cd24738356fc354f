"""The claims: every value is its table's, and docs/RESULTS.md shows them as they are."""

import importlib.util
import tomllib

import pytest
from helpers import ROOT

from mcml.base.errors import DataError, UsageError

spec = importlib.util.spec_from_file_location("claims", ROOT / "workflow/scripts/claims.py")
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)
CLAIMS = tomllib.loads((ROOT / "workflow" / "claims.toml").read_text("utf-8"))["claim"]


def test_every_claim_is_its_tables():
    assert claims.failures(CLAIMS, ROOT) == []
    for claim in CLAIMS:
        assert (ROOT / "notebooks" / f"{claim['notebook']}.ipynb").is_file()


def test_the_page_of_results_shows_the_claims_as_they_are():
    text = (ROOT / "docs" / "RESULTS.md").read_text("utf-8")
    assert claims.replaced(text, claims.to_table(CLAIMS)) == text


def test_values_are_read_by_rows_and_differences_and_mistakes_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("codec,bpp,psnr\na,0.5,30.25\nb,0.5,29\nb,1,33\n")
    claim = {"claim": "a leads", "notebook": "06_rate_distortion", "table": "t.csv", "column": "psnr",
             "where": {"codec": "a"}, "minus": {"codec": "b", "bpp": 0.5}, "value": 1.2, "tolerance": 0.06,
             "verdict": "holds"}  # fmt: skip
    assert claims.measured(claim, tmp_path) == 1.25
    assert claims.failures([claim], tmp_path) == []
    wrong = claim | {"value": 1.3, "tolerance": 0.04}
    assert claims.failures([wrong], tmp_path) == ["a leads: 1.3 is claimed, t.csv has 1.25"]
    with pytest.raises(DataError, match="2 rows with"):
        claims.measured(claim | {"where": {"codec": "b"}}, tmp_path)
    with pytest.raises(UsageError, match="unknown verdict"):
        claims.failures([claim | {"verdict": "hold"}], tmp_path)
    table = claims.to_table([claim], root="")
    assert (
        "| a leads | [06](notebooks/06_rate_distortion.ipynb) | [t.csv](t.csv) | 1.2 | 0.06 | holds |"
        in table
    )
    page = claims.BEGIN + "old\n" + claims.END + "end\n"
    assert claims.replaced("x\n" + page, table) == f"x\n{claims.BEGIN}\n{table}\n{claims.END}end\n"
    with pytest.raises(DataError, match="no lines"):
        claims.replaced("x", table)


def test_every_claim_answers_a_question_of_the_report():
    asked = tomllib.loads((ROOT / "workflow" / "claims.toml").read_text("utf-8"))["question"]
    assert {claim["question"] for claim in CLAIMS} <= {own["name"] for own in asked}
