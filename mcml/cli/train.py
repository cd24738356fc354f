"""`mcml train` and `mcml info`: argparse, so that they run where nothing else is installed."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcml.base.errors import DataError, McmlError, UsageError, choose

COLUMNS = ("step", "loss", "estimated bpp", "PSNR dB", "images/s", "left")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train` or `info` and return the exit code: 0, 1 for data, 2 for usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        options = _parser().parse_args([a for a in argv if a != "--debug"])
        return options.run(options)
    except McmlError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    from mcml.model.settings import VARIANTS, training_profiles

    parser = argparse.ArgumentParser(prog="mcml", description="Train networks, or print what they cost.")
    commands = parser.add_subparsers(required=True)
    what = f"one of {', '.join(VARIANTS)}"
    profiles = f"one of {', '.join(training_profiles())} (mcml/profiles)"

    train = commands.add_parser(
        "train", help="Train a variant and evaluate it; resumes what --run-dir holds."
    )
    train.add_argument("--variant", default="luma", help=what)
    train.add_argument("--profile", default="quick", help=profiles)
    train.add_argument("--data", default="embedded", help="folder of photographs, or a data set's name")
    train.add_argument("--valid", default="", help="folder of photographs to evaluate on; '' for none")
    train.add_argument("--run-dir", type=Path, required=True, help="checkpoints, log.csv, model/ go here")
    train.add_argument("--from", dest="initial", default="", help="model whose streams are taken over")
    train.add_argument("--train", default=None, help="streams that learn, as Cb,Cr; the others are frozen")
    train.add_argument("--steps", type=int, default=None, help="budget in steps; 0 for none")
    train.add_argument("--minutes", type=float, default=None, help="budget in minutes; 0 for none")
    train.add_argument("--threads", type=int, default=1, help="CPU threads of this process")
    train.add_argument("--log-every", type=int, default=20, help="steps between rows of the log")
    train.add_argument("--save-minutes", type=float, default=5.0, help="minutes between checkpoints")
    train.add_argument("--set", action="append", default=[], metavar="TABLE.NAME=VALUE", help="one setting")
    train.set_defaults(run=_train)

    info = commands.add_parser("info", help="Print layout, parameters and MACs per pixel.")
    info.add_argument("--variant", default="", help=f"{what}; '' for all")
    info.add_argument("--profile", default="quick", help=profiles)
    info.add_argument("--set", action="append", default=[], metavar="TABLE.NAME=VALUE", help="one setting")
    info.add_argument("--json", action="store_true", help="machine-readable")
    info.set_defaults(run=_info)
    return parser


# ----------------------------------------------------------------------------------- train


def _train(options: argparse.Namespace) -> int:
    import torch

    from mcml.data.patches import PatchStore
    from mcml.model import weights
    from mcml.model.cost import equal_cost_rgb
    from mcml.model.settings import load_recipe
    from mcml.training.trainer import Trainer

    settings = list(options.set)
    for name, value in (("steps", options.steps), ("minutes", options.minutes)):
        if value is not None:
            settings.append(f"train.{name}={value}")
    if options.minutes is not None and options.steps is None:
        settings.append("train.steps=0")
    if options.steps is not None and options.minutes is None:
        settings.append("train.minutes=0.0")
    if options.train is not None:
        settings.append(f"stage.train={json.dumps(options.train)}")
    recipe = load_recipe(options.profile, options.variant, settings)
    if options.variant == "rgb" and not any(text.startswith("model.luma.width") for text in settings):
        wanted = equal_cost_rgb(load_recipe(options.profile, "fusion", settings).model).luma
        recipe = recipe.changed(
            **{"model.luma.width": wanted.width, "model.luma.code_channels": wanted.code_channels}
        )
    if options.threads < 1 or options.log_every < 1:
        raise UsageError("--threads and --log-every: expected a whole number from 1")
    torch.set_num_threads(options.threads)
    paths, digest = photographs(options.data)
    valid = photographs(options.valid)[0] if options.valid else []
    initial = weights.load(options.initial) if options.initial else None
    began = time.time()
    sources = {"--data": f"{Path(options.data).name}@{digest}"}
    sources |= {"--from": f"{Path(options.initial).name}@{weights.digest(initial)}"} if initial else {}
    trainer = Trainer(
        recipe, lambda device: PatchStore.from_files(paths, device), options.run_dir,
        initial=initial, sources=sources, report=_Bar(recipe),
    )  # fmt: skip
    is_first = trainer.fabric.is_global_zero
    if trainer.step and is_first:
        print(f"resumed at step {trainer.step}", file=sys.stderr)
    ended = trainer.fit(log_every=options.log_every, save_every_s=60 * options.save_minutes)
    if not is_first:
        return 0
    record = {
        "command": command_line(), "photographs": len(paths),
        "data_hash": digest,
        "steps": trainer.step, "seconds": round(trainer.elapsed_s, 1), "device": _device(trainer.device),
        "processes": trainer.fabric.world_size, "threads": options.threads, "torch": torch.__version__,
        "ended": ended, "recipe": recipe.to_dict(), "trained": list(trainer.trained),
    }  # fmt: skip
    if initial is not None:
        record["from"] = {"name": Path(options.initial).name, "sha256": weights.digest(initial)}
    weights.save_model(trainer.averaged, options.run_dir / "model", record)
    print(f"{ended} at step {trainer.step}: {options.run_dir / 'model'}", file=sys.stderr)
    if ended == "interrupted":
        print("the same command goes on from here", file=sys.stderr)
        return 0
    if valid:
        _evaluate(options.run_dir, valid, trainer.device)
    print(f"{time.time() - began:.0f} s in all", file=sys.stderr)
    return 0


def photographs(source: str) -> tuple[list[Path], str]:
    """Return a folder's images, or a registered set's where the libraries for that are installed."""
    from mcml.data.images import data_digest, list_images

    if Path(source).is_dir():
        paths = list_images(Path(source))
    else:
        try:
            from mcml.data.sets import image_set
        except ImportError as error:
            raise UsageError(f"{source}: no such folder (data sets by name need {error.name})") from error
        found = image_set(source)
        paths = list(found.paths)
    if not paths:
        raise DataError(f"{source}: no images in it")
    return paths, data_digest(paths)


def _evaluate(run_dir: Path, paths: Sequence[Path], device: Any) -> None:
    from mcml.base.files import atomic_write, to_csv
    from mcml.data.images import read_image
    from mcml.model import validate as validation
    from mcml.model import weights

    model = weights.load(run_dir / "model", device)  # from the file, float16 as released
    rows = validation.validate(model, [read_image(path) for path in paths])
    atomic_write(run_dir / "validation.csv", to_csv(rows))
    writer = csv.writer(sys.stdout, delimiter="\t")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(f"{value:.4f}" for value in row.values())


def command_line() -> str:
    """Return the command line with folders by their last name: a record travels with the weights."""
    return " ".join(["mcml", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])


def _device(device: Any) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


class _Bar:
    """One line on stderr: rewritten on a terminal, else one every half minute."""

    def __init__(self, recipe: Any) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.shown = 0.0
        self.began = time.monotonic()
        self.first: float | None = None

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = row["spent"]
        gained = row["spent"] - self.first
        left = f"{(now - self.began) * (1 - row['spent']) / gained:.0f} s" if gained > 0 else "?"
        if not self.is_terminal and now - self.shown < 30 and row["spent"] < 1:
            return
        self.shown = now
        bpp = sum(v for k, v in row.items() if k.startswith("estimated_bpp_"))  # NaN: none was made
        quality = " ".join(f"{k[5:]} {v:.2f}" for k, v in row.items() if k.startswith("psnr_"))
        cells = (
            f"{row['step']}", f"{row['loss']:.3f}", f"{bpp:.3f}", quality, f"{row['images_per_s']:.1f}",
            "0 s" if row["spent"] >= 1 else left,
        )  # fmt: skip
        line = f"{100 * row['spent']:5.1f} %  " + "  ".join(
            f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True)
        )
        print(line, end="\r" if self.is_terminal and row["spent"] < 1 else "\n", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------ info


def _info(options: argparse.Namespace) -> int:
    from mcml.model.cost import codec_cost, equal_cost_rgb, part_costs
    from mcml.model.settings import VARIANTS, load_recipe

    names = [choose("variant", options.variant, VARIANTS)] if options.variant else list(VARIANTS)
    found: dict[str, Any] = {}
    for name in names:
        config = load_recipe(options.profile, name, options.set).model
        if name == "rgb":
            config = equal_cost_rgb(load_recipe(options.profile, "fusion", options.set).model)
        parameters, macs = codec_cost(config)
        found[name] = {"parameters": parameters, "macs_per_pixel": macs, "rows": part_costs(config),
                       "config": config.to_dict()}  # fmt: skip
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, content in found.items():
        print(f"{name}: {VARIANTS[name]}")
        print(f"  {content['parameters']:,} parameters, {content['macs_per_pixel']:,.0f} MACs a pixel")
        for key, settings in (("luma", content["config"]["luma"]), ("color", content["config"]["color"])):
            if key == "luma" or name in ("independent", "fusion"):
                print(f"  {key}: " + ", ".join(f"{k} {v}" for k, v in settings.items()))
        print(f"  {'stream':8}{'part':14}{'parameters':>12}{'MACs/pixel':>12}")
        for row in content["rows"]:
            print(
                f"  {row['stream']:8}{row['part']:14}{row['parameters']:>12,}{row['macs_per_pixel']:>12,.0f}"
            )
    print("context models (bit_model, level_model) only estimate rates; totals leave them out.")
    return 0
