"""Check the claims against their tables; print them as Markdown, or write them into a page.

python workflow/scripts/claims.py --write docs/RESULTS.md
"""

from __future__ import annotations

import argparse
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mcml.base.errors import DataError, choose
from mcml.base.files import atomic_write
from mcml.lab.output import to_markdown

VERDICTS = ("holds", "holds in part", "does not hold")
BEGIN, END = "<!-- claims -->\n", "<!-- end of claims -->\n"  # around the table in the page


def cell(table: pd.DataFrame, where: Mapping[str, Any], column: str) -> float:
    """Return the value of the one row in which all of `where` holds; `DataError` if there is no such one."""
    rows = table
    for name, value in where.items():
        rows = rows[rows[name].isna() if value == "nan" else rows[name] == value]
    if len(rows) != 1:
        raise DataError(f"{len(rows)} rows with {dict(where)}: expected one")
    return float(rows[column].iloc[0])


def measured(claim: Mapping[str, Any], root: Path = Path()) -> float:
    """Return what a claim's table says."""
    table = pd.read_csv(root / claim["table"])
    value = cell(table, claim["where"], claim["column"])
    return value - cell(table, claim["minus"], claim["column"]) if "minus" in claim else value


def failures(claims: Sequence[Mapping[str, Any]], root: Path = Path()) -> list[str]:
    """Return a sentence for each claim that its table does not bear out."""
    said = []
    for claim in claims:
        choose("verdict", claim["verdict"], VERDICTS)
        found = measured(claim, root)
        if not math.isclose(found, claim["value"], rel_tol=0, abs_tol=claim["tolerance"]):
            said.append(f"{claim['claim']}: {claim['value']} is claimed, {claim['table']} has {found:.6g}")
    return said


def to_table(claims: Sequence[Mapping[str, Any]], root: str = "../") -> str:
    """Return the claims as a Markdown table, whose links lead from a page to `root`."""
    rows = [
        {
            "claim": own["claim"],
            "notebook": f"[{own['notebook'][:2]}]({root}notebooks/{own['notebook']}.ipynb)",
            "table": f"[{Path(own['table']).name}]({root}{own['table']})",
            "value": f"{own['value']:g}", "tolerance": f"{own['tolerance']:g}", "verdict": own["verdict"],
        }
        for own in claims
    ]  # fmt: skip
    return to_markdown(rows)


def replaced(text: str, table: str) -> str:
    """Return a page with its table of claims replaced; `DataError` if it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataError(f"no lines {BEGIN.strip()} and {END.strip()} for the table")
    return before + begin + "\n" + table + "\n" + end + after


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, check, and print or write; exit with 1 if a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claims", type=Path, default=Path("workflow/claims.toml"), help="the claims")
    parser.add_argument("--write", type=Path, help="file whose table of claims is replaced")
    options = parser.parse_args(arguments)
    claims = tomllib.loads(options.claims.read_text("utf-8"))["claim"]
    if said := failures(claims):
        sys.exit("\n".join(said))
    if options.write:
        atomic_write(options.write, replaced(options.write.read_text("utf-8"), to_table(claims)))
    else:
        print(to_table(claims), end="")


if __name__ == "__main__":
    main()
