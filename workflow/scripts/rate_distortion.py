"""Set the curves of several folders beside each other, and remade ones beside those that are kept.

rate_distortion.py NAME=FOLDER ... --rates 0.15,0.3 --kept KEPT --peers avif444 --out FOLDER
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from mcml.base.errors import McmlError
from mcml.base.files import atomic_write, to_csv
from mcml.lab import curves
from mcml.lab.output import as_rows, print_table, provenance
from mcml.lab.parameters import parse_bpp_list, parse_names

# What a machine's floats, or a library's next version, may move: means of 24 pictures at equal bytes.
TOLERANCES = {"psnr": 0.02, "ms_ssim": 0.0005, "ciede2000": 0.01, "rgb_angle": 0.01}


def drift(means: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Return what remade means differ by from kept ones: codec, bpp, column, both, `within` tolerance."""
    both, rows = means.merge(kept, on=["codec", "bpp"], suffixes=("", "_kept")), []
    for column, tolerance in TOLERANCES.items():
        part = both[["codec", "bpp"]].assign(column=column, remade=both[column], kept=both[f"{column}_kept"])
        part["difference"] = part.remade - part.kept
        rows.append(part.assign(tolerance=tolerance, within=part.difference.abs() <= tolerance).dropna())
    return pd.concat(rows)


def main(options: argparse.Namespace) -> None:
    """Write points.csv, means.csv, bd_rate.csv, drift.csv and run.json."""
    sources = {name: Path(folder) for name, _, folder in (word.partition("=") for word in options.folders)}
    records = {n: json.loads((folder / "run.json").read_text("utf-8")) for n, folder in sources.items()}
    points = [pd.read_csv(folder / "points.csv").assign(codec=name) for name, folder in sources.items()]
    settings = {name: next(iter(records[name]["settings"].values())) for name in sources}
    record = {key: next(iter(records.values()))[key] for key in ("data", "data_hash", "images")}
    peers, old = parse_names(options.peers), None
    if options.kept:
        kept = json.loads((options.kept / "run.json").read_text("utf-8"))
        if kept["data_hash"] != record["data_hash"]:
            sys.exit(f"rate_distortion: {options.kept} is of other pictures than these {record['images']}")
        old = pd.read_csv(options.kept / "points.csv")
        points.append(old[old.codec.isin(peers)])
        settings |= {name: kept["settings"][name] for name in peers}
        record["kept"] = {"codecs": peers, "folder": options.kept.name, "commit": kept["commit"]}
    rates = parse_bpp_list(options.rates)
    rows = as_rows(pd.concat(points))
    pictures = curves.at_equal_bytes(rows, rates)
    means, savings = curves.mean_of(pictures), curves.savings(pictures)
    tables = {"points": rows, "means": as_rows(means), "bd_rate": as_rows(savings)}
    if old is not None:
        same = [n for n in sources if kept["settings"].get(n) == settings[n]]
        own = as_rows(old[old.codec.isin(same)])
        if own:
            tables["drift"] = as_rows(drift(means, curves.mean_of(curves.at_equal_bytes(own, rates))))
            print_table([row for row in tables["drift"] if not row["within"]])
            beyond = sum(not row["within"] for row in tables["drift"])
            print(f"{beyond} of {len(tables['drift'])} means differ from the kept ones beyond tolerance")
    for name, table in tables.items():
        if table:
            atomic_write(options.out / f"{name}.csv", to_csv(table))
    run = {"codecs": list(sources), "rates_bpp": rates, "seconds": None, **provenance()}
    curves.write_record(options.out, record | {"settings": settings}, run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help="a codec's name in the tables")
    parser.add_argument("--rates", required=True, help="bits per pixel, by commas")
    parser.add_argument("--kept", default="", type=lambda text: text and Path(text), help="kept curves")
    parser.add_argument("--peers", default="", help="codecs of --kept that are taken over")
    parser.add_argument("--out", type=Path, required=True)
    try:
        main(parser.parse_args())
    except McmlError as error:
        sys.exit(f"rate_distortion: {error}")
