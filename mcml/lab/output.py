"""Results on disk: rounded tables, and the provenance of each run."""

from __future__ import annotations

import datetime
import io
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mcml.base import files
from mcml.base.errors import DataError
from mcml.base.files import Row, columns_of, expanded, in_checkout, plain, repo_root, shown, to_csv, to_json

PACKAGES = ("numpy", "scipy", "pandas", "pillow", "pillow-jxl-plugin", "scikit-image", "torch", "matplotlib")
DIGITS = {  # decimals in rounded tables; CSV keeps everything
    "mse": 2, "psnr": 2, "y_psnr": 2, "psnr_b": 2, "ringing": 1, "ms_ssim_scales": 0,
    "quality": 1, "images": 0, "identical": 0,
}  # fmt: skip
OLD_S = 7 * 86400  # age at which the files of a run that never finished are taken for left behind


def results_root() -> Path:
    """Return ``MCML_RESULTS`` or ``results`` of the checkout; of the current folder, if installed."""
    home = repo_root() if in_checkout() else Path()
    return expanded(os.environ.get("MCML_RESULTS") or home / "results").resolve()


# ---------------------------------------------------------------------------------- tables


def as_rows(table: Any) -> list[dict[str, Any]]:
    """Turn a DataFrame or an iterable of mappings into a list of dicts."""
    return table.to_dict("records") if hasattr(table, "to_dict") else list(map(dict, table))


def format_value(column: str, value: Any) -> str:
    """Round one value for a table that people read."""
    value = plain(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "n/a")
    return f"{value:.{DIGITS.get(column, 3)}f}"


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the columns' names and then the rows, rounded, each text on one line."""
    columns = columns_of(rows)
    lines = [columns, *([format_value(c, row.get(c)) for c in columns] for row in rows)]
    return [[shown(" ".join(text.split())) for text in line] for line in lines]


def to_markdown(rows: Sequence[Row]) -> str:
    """Return rows as a rounded Markdown table."""
    header, *body = _lines(rows)
    lines = [[text.replace("|", r"\|") for text in line] for line in (header, ["---"] * len(header), *body)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def to_latex(rows: Sequence[Row], caption: str = "") -> str:
    """Return rows as a rounded LaTeX table (booktabs)."""
    from pandas import DataFrame

    header, *body = _lines(rows)
    numeric = [all(isinstance(plain(row.get(c)), (int, float)) for row in rows) for c in columns_of(rows)]
    title = DataFrame([caption]).style.hide().hide(axis="columns").format(escape="latex").to_string()
    table = DataFrame(body, columns=header).style.hide().format(escape="latex")
    return table.format_index(escape="latex", axis="columns").to_latex(
        hrules=True, caption=" ".join(title.split()), column_format="".join("lr"[n] for n in numeric)
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as a rounded table, text to the left, numbers to the right; or nothing.

    One row alone is a list of its names and values, and so is each of a table that is too wide for the
    terminal although its first column was cut.
    """
    if not rows:
        return
    header, *body = lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    over = sum(widths) + 2 * len(widths) - 2 - shutil.get_terminal_size().columns
    over *= sys.stdout.isatty()
    if len(rows) == 1 or over > max(0, widths[0] - 13):
        widest = max(map(len, header))
        lists = [
            "\n".join(f"{n:<{widest}}  {t}".rstrip() for n, t in zip(header, texts, strict=True))
            for texts in body
        ]
        print("\n\n".join(lists))
        return
    if over > 0:
        widths[0] -= over
        lines = [[t if len(t) <= widths[0] else f"..{t[2 - widths[0] :]}", *others] for t, *others in lines]
    left = [any(isinstance(row.get(name), str) for row in rows) for name in header]
    for line in lines:
        texts = [
            t.ljust(w) if to_left else t.rjust(w) for t, w, to_left in zip(line, widths, left, strict=True)
        ]
        print("  ".join(texts).rstrip())


# ------------------------------------------------------------------------------ provenance


def _git(*arguments: str) -> str:
    """Return what git says of this checkout; "" where there is none, whatever repository is around it."""
    try:
        command = ["git", "-C", str(repo_root()), *arguments]
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        own["GIT_CEILING_DIRECTORIES"] = str(repo_root().parent)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=own)
        return done.stdout.strip()
    except (DataError, OSError, subprocess.SubprocessError):  # no checkout, or no git
        return ""


def provenance() -> dict[str, Any]:
    """Describe the code and the machine: commit, dirty flag, versions, threads, load; the workflow's rule."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "command": os.environ.get("MCML_COMMAND") or command_line(),
        **({"rule": os.environ["MCML_RULE"]} if "MCML_RULE" in os.environ else {}),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "mcml", "notebooks", "data", "requirements.lock")),
        "versions": {"python": platform.python_version()} | {n: metadata.version(n) for n in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS") or "default",
        "load": [round(v, 2) for v in os.getloadavg()],
    }


def command_line() -> str:
    """Return the command that started this process, without its folder."""
    program = Path(sys.argv[0]).name
    if program.startswith("ipykernel"):
        return "a Jupyter kernel"
    return shlex.join(["mcml" if program == "__main__.py" else program, *sys.argv[1:]])


def banner(profile: str) -> str:
    """Return one line for the top of a notebook: profile, device, versions."""
    about = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"profile {profile} | {about['device']}, {about['cores']} cores | {versions}"


class Output:
    """One notebook's results: its tables, its figures and the `run.json` that explains them.

    Files go to ``results/<profile>/<notebook>/``. Every table becomes ``.csv`` (full
    precision), ``.md`` and ``.tex`` (rounded); every figure a ``.png`` with the ``.csv`` it
    was drawn from. Until `finish` all of it lies in a hidden folder beside, one for each
    `Output`, so that results are there whole or not at all.
    """

    def __init__(self, notebook: str, profile: str, parameters: Mapping[str, Any], **about: Any) -> None:
        """Begin; `about` is what else ``run.json`` is to say, as `data_hash` and `seed`."""
        self.folder = results_root() / profile / notebook
        self._record = {"notebook": notebook, "profile": profile, "parameters": dict(parameters), **about}
        self._record |= {"tables": [], "figures": []}
        self._files: dict[str, str] = {}
        self._began = time.perf_counter()
        for left in self.folder.parent.glob(f".{notebook}.*.partial"):  # by runs that were killed
            if time.time() - left.stat().st_mtime > OLD_S:
                shutil.rmtree(left, ignore_errors=True)
        self._scratch = self.folder.with_name(f".{notebook}.{uuid.uuid4().hex[:8]}.partial")
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)

    def _write(self, name: str, content: bytes | str) -> None:
        if name in self._files:
            raise ValueError(f"{name} was saved before: give every table and figure a name of its own")
        content = files.legible(content).encode() if isinstance(content, str) else content
        files.atomic_write(self._scratch / name, content)
        self._files[name] = files.sha256(content)

    def table(self, name: str, rows: Any, caption: str) -> None:
        """Save rows (a DataFrame or dicts) as ``name.csv``, ``name.md`` and ``name.tex``."""
        rows = as_rows(rows)
        self._write(f"{name}.csv", to_csv(rows))
        self._write(f"{name}.md", to_markdown(rows))
        self._write(f"{name}.tex", to_latex(rows, caption))
        text = [c for c in columns_of(rows) if any(isinstance(plain(row.get(c)), str) for row in rows)]
        self._record["tables"].append({"name": name, "caption": caption, "text_columns": text})

    def figure(self, name: str, figure: Any, caption: str, data: Any, alt: str = "") -> None:
        """Save a matplotlib figure as ``name.png`` and what it shows as ``name.csv``.

        `alt`, by default the caption without its number, becomes the figure's label: the alternative
        text wherever it is shown. Curves are saved at twice the resolution, pictures pixel by pixel.
        """
        alt = alt or caption.partition(": ")[2] or caption
        figure.set_label(alt)
        buffer = io.BytesIO()
        dpi = figure.dpi * (1 if any(ax.images for ax in figure.axes) else 2)
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Description": alt})
        self._write(f"{name}.png", buffer.getvalue())
        self._write(f"{name}.csv", to_csv(as_rows(data)))
        self._record["figures"].append({"name": name, "caption": caption, "alt": alt})

    def finish(self) -> Path:
        """Write ``run.json``, put the whole folder in place of an earlier one, and return it."""
        ended = {
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._began, 1),
            "files": dict(sorted(self._files.items())),
        }
        self._write("run.json", to_json({**self._record, **provenance(), **ended}) + "\n")
        files.replace_folder(self._scratch, self.folder)
        return self.folder
