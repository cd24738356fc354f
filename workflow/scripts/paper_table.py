"""Write the paper's table: the poster's rows beside ours at its rates, real files on Kodak.

python workflow/scripts/paper_table.py --more runs/joint "equal short training, 700 steps"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcml.base.files import atomic_write, sha256, to_csv
from mcml.lab.curves import at_equal_bytes, mean_of
from mcml.lab.output import as_rows, provenance, to_latex, to_markdown

RATES = (0.15, 0.3, 0.489, 0.577, 0.596)  # the last three are the poster's
FOLDERS = ("rate_distortion_kodak", "kodak_at_poster_rates")  # of points; slow codecs go on in the second
METRICS = ("mse", "psnr", "ssim", "cmssim", "delta_e76", "rgb_angle", "ciede2000")
KINDS = {
    "ours, scalar": ("scalar_fusion", "scalar_independent"),
    "ours, binary": ("fusion", "independent"),
    "classical": ("jpeg444", "jpeg2000", "webp", "jpegxl", "avif444", "hevc444", "vvc420"),
}
CAPTION = (
    "The poster's rows as printed, and codecs on the 24 Kodak pictures at its rates: means over the "
    "pictures, each read on its own curve of real files. Blank: not given, or most of the curves end before."
)


def published(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of others' systems: the poster's, and [7]'s from its published decodes."""
    rows = []
    for name, kind in (("poster", "poster, as printed"), ("li2018", "[7], its decodes")):
        for own in as_rows(pd.read_csv(folder / f"{name}.csv").rename(columns={"lab": "delta_e76"})):
            note = own["source"]
            if name == "poster":  # means of PSNR over pictures are never below that of the mean MSE
                note = f"images unknown; PSNR of its MSE: {10 * np.log10(255**2 / own['mse']):.2f} dB"
            values = {metric: own.get(metric, np.nan) for metric in METRICS}
            rows.append({"kind": kind, "system": own["system"], "bpp": own["bpp"], **values, "note": note})
    return rows


def measured(points: pd.DataFrame, rates: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for each rate and codec of `mcml.lab.curves` points, which have a `kind` and a `note`."""
    rows = []
    about = points.drop_duplicates("codec").set_index("codec")
    means = mean_of(at_equal_bytes(as_rows(points), rates))
    for own in as_rows(means.sort_values("bpp", kind="stable")):
        kind, note = about.loc[own["codec"], ["kind", "note"]]
        if own["extended"]:
            blank = 2 * own["extended"] > own["images"]
            ends = f"{own['extended']} of {own['images']} curves end before"
            note = "; ".join(filter(None, [note, ends + ("" if blank else ", continued")]))
        values = {metric: own[metric] for metric in METRICS}
        rows.append({"kind": kind, "system": own["codec"], "bpp": own["bpp"], **values, "note": note})
    return rows


def read_points(files: Sequence[Path], more: Sequence[tuple[Path, str]]) -> pd.DataFrame:
    """Return the points of all codecs of the table, in its order; those of `more` folders with their notes.

    Files may go on with each other's curves.

    A model's folder, as ``joint_rgb/model``, is named by what holds it.
    """
    whole, tables = pd.concat(map(pd.read_csv, files)), {}
    whole = whole.drop_duplicates(["codec", "image", "quality"])
    for kind, names in KINDS.items():
        chosen = whole[whole.codec.isin(names)].assign(kind=kind, note="")
        tables[kind] = [chosen[chosen.codec == name] for name in names]
    for folder, note in more:
        own = pd.read_csv(folder / "points.csv")
        names = [path.parent.name if path.name == "model" else path.name for path in map(Path, own.codec)]
        tables["ours, binary"].append(own.assign(codec=names, kind="ours, short", note=note))
    return pd.concat([table for kind in tables.values() for table in kind], ignore_index=True)


def write(rows: Sequence[dict[str, Any]], inputs: Sequence[Path], out: Path) -> None:
    """Write ``paper_table.csv`` (full precision), ``.md`` and ``.tex`` (rounded) and ``.json`` (whence)."""
    blank = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]
    texts = {
        "csv": to_csv(blank),
        "md": to_markdown(blank),
        "tex": to_latex(rows, CAPTION).replace("n/a", ""),
    }
    for suffix, text in texts.items():
        atomic_write(out / f"paper_table.{suffix}", text)
    record: dict[str, Any] = {"rule": "paper_table", "caption": CAPTION, **provenance()}
    record["inputs"] = {file.as_posix(): sha256(file) for file in inputs}
    record["files"] = {f"paper_table.{suffix}": sha256(out / f"paper_table.{suffix}") for suffix in texts}
    atomic_write(out / "paper_table.json", json.dumps(record, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--profile", default="released", help="whose results/<profile> holds curves and gets the table")
    add("--points", type=Path, nargs="+", help="curves (those in results/<profile>)")
    add("--published", type=Path, default=Path("data/published"), help="folder of others' figures")
    add("--more", nargs=2, action="append", default=[], metavar=("FOLDER", "NOTE"),
        help="curves of further models of ours, by `mcml evaluate --out`, and a note on them")  # fmt: skip
    add("--rates", default=",".join(map(str, RATES)), help="bits a pixel")
    add("--out", type=Path, help="folder (results/<profile>)")
    options = parser.parse_args(arguments)
    out = options.out or Path("results") / options.profile
    places = [Path("results") / options.profile / name / "points.csv" for name in FOLDERS]
    files = options.points or [place for place in places if place.exists()]
    more = [(Path(folder), note) for folder, note in options.more]
    rows = published(options.published)
    rows += measured(read_points(files, more), [float(rate) for rate in options.rates.split(",")])
    inputs = [options.published / "poster.csv", options.published / "li2018.csv", *files]
    write(rows, [*inputs, *(folder / "points.csv" for folder, _ in more)], out)


if __name__ == "__main__":
    main()
