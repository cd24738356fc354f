"""The commands on networks: `mcml train | train-entropy | info`; they run on a bare machine with a GPU."""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcml.base.errors import StoppedError, UsageError, choose
from mcml.base.files import atomic_write, to_csv
from mcml.cli.main import Progress, add_command, number
from mcml.lab.output import print_table

if TYPE_CHECKING:
    from mcml.model.settings import Recipe

LINE_EVERY_S = 30.0  # where stderr is no terminal
DECIDES_BITS = re.compile(r"streams\.\w+\.(encoder|importance|groups)\b")  # names of tensors


def add_commands(commands: Any) -> None:
    """Declare the commands on networks."""
    variant = {"help": "luma, independent, fusion or rgb (train: luma; info: all of them)"}
    profile = {"default": "quick", "help": "a training profile: quick, cpu or gpu (quick)"}
    setting = {"action": "append", "default": [], "metavar": "TABLE.NAME=VALUE", "help": "one setting"}
    data = {"default": "embedded", "help": "folder of photographs, or a data set's name (embedded)"}
    threads = {"type": number(int, 1), "default": 1, "help": "CPU threads of this process (1)"}
    folder = {"type": Path, "required": True, "help": "holds the run, which goes on there, and its model/"}

    add = add_command(commands, train)
    add("--variant", default="luma", **variant)
    add("--profile", **profile)
    add("--data", **data)
    add("--valid", default="", help="photographs to evaluate on, as --data; '' for none")
    add("--run-dir", **folder)
    add("--from", dest="initial", default="", help="model whose streams are taken over")
    add("--train", help="streams that learn, as Cb,Cr; the others are frozen")
    add("--steps", type=number(int, 0), help="budget in steps; 0 for none (the profile's)")
    add("--minutes", type=number(float, 0), help="budget in minutes; 0 for none (the profile's)")
    add("--threads", **threads)
    add("--log-every", type=number(int, 1), default=20, help="steps between rows of the log (20)")
    add("--save-minutes", type=number(float, 0), default=5.0, help="minutes between checkpoints (5)")
    add("--set", **setting)

    add = add_command(commands, train_entropy)
    add("--model", required=True, help="model folder, or a released one's name")
    add("--data", **data)
    add("--run-dir", **folder)
    add("--like", default="", help="take over the coder of a model with the same encoders")
    add("--minutes", type=number(float, 0), default=0.0, help="budget in minutes")
    add("--steps", type=number(int, 0), default=0, help="budget in steps")
    add("--batch", type=number(int, 1), default=8, help="crops a step (8)")
    add("--side", type=number(int, 2), default=24, help="a crop's side in squares of 8 pixels (24)")
    add("--lr", type=number(float, 0), default=2e-3, help="Adam's learning rate (0.002)")
    add("--bf16", action="store_true", help="autocast in the first three quarters")
    add("--threads", **threads)

    add = add_command(commands, info)
    add("--variant", default="", **variant)
    add("--profile", **profile)
    add("--set", **setting)
    add("--json", action="store_true", help="print an object for each variant")


def _recipe(options: argparse.Namespace, variant: str, settings: Sequence[str]) -> Recipe:
    """Return a variant's settings; `rgb` has the width that costs as much as `fusion`, unless one is set."""
    from mcml.model.cost import equal_cost_rgb
    from mcml.model.settings import load_recipe

    recipe = load_recipe(options.profile, variant, settings)
    if variant != "rgb" or any(text.startswith("model.luma.width") for text in settings):
        return recipe
    luma = equal_cost_rgb(load_recipe(options.profile, "fusion", settings).model).luma
    return recipe.changed(model={"luma": {"width": luma.width, "code_channels": luma.code_channels}})


def train(options: argparse.Namespace) -> None:
    """Train a variant's networks and evaluate them; goes on where the run in --run-dir ended.

    mcml train --variant luma --profile cpu --data train --valid valid --run-dir runs/luma --minutes 60
    mcml train --variant fusion --data my_photos --run-dir runs/fusion --from runs/luma/model --train Cb,Cr
    """
    import torch

    from mcml.data.images import read_image
    from mcml.data.patches import PatchStore
    from mcml.data.sets import image_set
    from mcml.model import weights
    from mcml.model.validate import validate
    from mcml.training import run
    from mcml.training.trainer import Trainer

    settings = list(options.set)
    if options.steps is not None or options.minutes is not None:  # either replaces both of the profile
        settings += [f"train.steps={options.steps or 0}", f"train.minutes={float(options.minutes or 0)}"]
    if options.train is not None:
        settings.append(f"stage.train={json.dumps(options.train)}")
    recipe = _recipe(options, options.variant, settings)
    target = options.run_dir / "model"
    if target.exists() and run.latest(options.run_dir) is None:
        raise UsageError(f"{target}: holds a model that no run there made: name another --run-dir")
    torch.set_num_threads(options.threads)
    photographs = image_set(options.data)
    valid = image_set(options.valid).paths if options.valid else ()
    sources = {"--data": f"{photographs.name}@{photographs.digest}"}
    initial = weights.load(options.initial) if options.initial else None
    if initial is not None:
        sources["--from"] = f"{Path(options.initial).name}@{weights.digest(initial)}"
    began = time.monotonic()
    with Progress("train", LINE_EVERY_S) as progress:
        trainer = Trainer(
            recipe, lambda device: PatchStore([read_image(path) for path in photographs.paths], device),
            options.run_dir, initial=initial, sources=sources, report=_reporter(progress),
        )  # fmt: skip
        is_first = trainer.fabric.is_global_zero
        if trainer.step and is_first:
            progress.say(f"resumed at step {trainer.step}")
        ended = trainer.fit(log_every=options.log_every, save_every_s=60 * options.save_minutes)
    if not is_first:
        return
    on_gpu = trainer.device.type == "cuda"
    device = torch.cuda.get_device_name(trainer.device) if on_gpu else f"CPU {platform.machine()}"
    record = {
        "command": _command_line(), "photographs": len(photographs.paths), "data_hash": photographs.digest,
        "steps": trainer.step, "seconds": round(trainer.elapsed_s, 1), "device": device,
        "processes": trainer.fabric.world_size, "threads": options.threads, "torch": torch.__version__,
        "ended": ended, "recipe": recipe.to_dict(), "trained": list(trainer.trained),
    }  # fmt: skip
    if initial is not None:
        record["from"] = {"name": Path(options.initial).name, "sha256": weights.digest(initial)}
    weights.save_model(trainer.averaged, target, record)
    print(f"{ended} at step {trainer.step}: {target}", file=sys.stderr)
    if ended == "interrupted":
        raise StoppedError(trainer.stopping or signal.SIGTERM, "the same command goes on from here")
    if valid:
        averaged = weights.load(target, trainer.device)  # from the file, float16 as released
        rows = validate(averaged, [read_image(path) for path in valid])
        atomic_write(options.run_dir / "validation.csv", to_csv(rows))
        print_table(rows)
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)


def _reporter(progress: Progress) -> Callable[[Mapping[str, Any]], None]:
    wanted = ("loss", "estimated_bpp_", "psnr_", "bits_", "images_per_s")

    def report(row: Mapping[str, Any]) -> None:
        figures = {name: v for name, v in row.items() if name.startswith(wanted) and math.isfinite(v)}
        texts = (f"{name} {value:.3f}" for name, value in figures.items())
        progress.update(row["spent"], "  ".join([f"step {row['step']}", *texts]))

    return report


def _command_line() -> str:
    """Return the command line with folders by their last name: a record travels with the weights."""
    return " ".join(["mcml", *(Path(word).name if "/" in word else word for word in sys.argv[1:])])


def train_entropy(options: argparse.Namespace) -> None:
    """Give a trained model the entropy coder of its files: context models, trained on its frozen bits.

    mcml train-entropy --model runs/fusion/model --data train --run-dir runs/entropy --minutes 30
    mcml train-entropy --model runs/independent/model --like runs/entropy/model --run-dir runs/entropy2
    """
    import torch

    from mcml.data.images import read_image
    from mcml.data.sets import image_set
    from mcml.model import weights
    from mcml.model.model_files import entropy_tensors, model_folder
    from mcml.training.entropy import EntropyTrainer, FrozenBits

    if not options.like and options.minutes <= 0 and options.steps <= 0:
        raise UsageError("give --minutes or --steps above 0, or --like")
    torch.set_num_threads(options.threads)
    model = weights.load(options.model, "cuda" if torch.cuda.is_available() else "cpu")
    record = weights.load_config(model_folder(options.model))[1]
    target = options.run_dir / "model"
    if target.exists() and weights.digest(weights.load(target)) != weights.digest(model):
        raise UsageError(f"{target}: holds another model: name another --run-dir")
    if options.like:
        entropy, theirs = entropy_tensors(model_folder(options.like)), weights.load(options.like).state_dict()
        for name, tensor in model.state_dict().items():
            same = name in theirs and torch.equal(tensor.cpu(), theirs[name].cpu())
            if DECIDES_BITS.match(name) and not same:
                raise UsageError(f"--like: the models differ in {name}, so their bits do")
        own = {"command": _command_line(), "like": Path(options.like).name}
        weights.save_model(model, target, {**record, "entropy": own}, entropy=entropy)
        return
    photographs = image_set(options.data)
    print(f"encoding {len(photographs.paths)} photographs", file=sys.stderr)
    bits = FrozenBits(model, [read_image(path) for path in photographs.paths])
    sources = {
        "--model": f"{Path(options.model).name}@{weights.digest(model)}",
        "--data": f"{photographs.name}@{photographs.digest}",
    }
    with Progress("train-entropy", LINE_EVERY_S) as progress:
        trainer = EntropyTrainer(
            model, bits, minutes=options.minutes, steps=options.steps, batch=options.batch, side=options.side,
            lr=options.lr, bf16=options.bf16, run_dir=options.run_dir, sources=sources,
            report=_reporter(progress),
        )  # fmt: skip
        if trainer.step:
            progress.say(f"resumed at step {trainer.step}")
        ended = trainer.fit()
    if ended == "interrupted":
        raise StoppedError(trainer.stopping or signal.SIGTERM, "the same command goes on from here")
    own = {
        "command": _command_line(), "minutes": options.minutes, "steps": trainer.step,
        "seconds": round(trainer.elapsed_s, 1), "photographs": len(photographs.paths),
        "data_hash": photographs.digest, "threads": options.threads, "batch": options.batch,
        "side": options.side,
    }  # fmt: skip
    weights.save_model(model, target, {**record, "entropy": own}, entropy=trainer.export())
    print(f"finished: {target}", file=sys.stderr)


def info(options: argparse.Namespace) -> None:
    """Print a variant's settings, parameters and MACs per pixel.

    mcml info --variant fusion --profile cpu
    """
    from mcml.model.cost import codec_cost, part_costs
    from mcml.model.settings import VARIANTS

    names = [choose("variant", options.variant, VARIANTS)] if options.variant else list(VARIANTS)
    contents: dict[str, Any] = {}
    for name in names:
        config = _recipe(options, name, options.set).model
        parameters, macs = codec_cost(config)
        contents[name] = {
            "parameters": parameters, "macs_per_pixel": macs, "rows": part_costs(config),
            "config": config.to_dict(),
        }  # fmt: skip
    if options.json:
        print(json.dumps(contents, indent=2))
        return
    for name, content in contents.items():
        print(f"{name}: {VARIANTS[name]}")
        print(f"  {content['parameters']:,} parameters, {content['macs_per_pixel']:,.0f} MACs a pixel")
        for key in ("luma", "color") if name in ("independent", "fusion") else ("luma",):
            print(f"  {key}: " + ", ".join(f"{k} {v}" for k, v in content["config"][key].items()))
        print_table([{**row, "macs_per_pixel": round(row["macs_per_pixel"])} for row in content["rows"]])
    print("context models (bit_model, level_model) only estimate rates; totals leave them out.")
