"""The commands on networks: `mcml train | train-entropy | info`; they run on a bare machine with a GPU."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcml.base import STRIDE
from mcml.base.errors import StoppedError, UsageError, choose
from mcml.base.files import atomic_write, legible, shown, to_csv
from mcml.cli.main import MODEL, Progress, add_command, number, tell
from mcml.lab.output import print_table

LEAST_WINDOW_PX = 192  # of encoders in files; smaller windows are mostly margins
SHOWN = 5  # pictures that are left out, by name

if TYPE_CHECKING:
    import numpy as np

    from mcml.data.sets import ImageSet
    from mcml.model.model import Model
    from mcml.model.settings import Recipe
    from mcml.training.run import Run


def add_commands(commands: Any) -> None:
    """Declare the commands on networks."""
    run_dir = "holds the run, which goes on, and its model/"
    every, between = (
        "steps whose mean is a row of log.csv",
        "minutes between checkpoints, which follow a row",
    )
    quantizer = {"default": "binary", "metavar": "NAME", "help": "binary (the poster's) or scalar"}
    shared = {
        "--profile": {"default": "quick", "metavar": "NAME", "help": "a training profile: quick, cpu or gpu"},
        "--data": {
            "default": "embedded",
            "metavar": "FOLDER",
            "help": "of photographs, or a data set's name",
        },
        "--run-dir": {"type": Path, "required": True, "metavar": "FOLDER", "help": run_dir},
        "--steps": {"type": number(int, 0), "metavar": "N", "help": "budget in steps; 0 for none"},
        "--minutes": {"type": number(float, 0), "metavar": "N", "help": "budget in minutes; 0 for none"},
        "--threads": {"type": number(int, 1), "default": 1, "metavar": "N", "help": "of this process's CPU"},
        "--set": {"action": "append", "default": [], "metavar": "TABLE.NAME=VALUE", "help": "one setting"},
        "--strict": {"flag": False, "help": "refuse pictures that else are left out, as damaged ones"},
        "--log-every": {"type": number(int, 1), "default": 20, "metavar": "N", "help": every},
        "--save-minutes": {"type": number(float, 0), "default": 5.0, "metavar": "N", "help": between},
    }
    add = add_command(commands, train)
    add("--variant", default="luma", metavar="NAME", help="luma, independent, fusion or rgb")
    add("--from", dest="initial", default="", metavar="MODEL", help="model whose streams are taken over")
    take = "streams of --from that are taken over, as Y (default: all)"
    add("--take", default="", metavar="STREAMS", help=take)
    learn = "streams that learn, as Cb,Cr; the others are frozen (default: as the profile says)"
    add("--train", metavar="STREAMS", help=learn)
    add("--valid", default="", metavar="FOLDER", help="to evaluate on, as --data (default: none)")
    add("--quantizer", **quantizer)
    for name, about in shared.items():
        add(name, **about)

    add = add_command(commands, train_entropy)
    add("--model", required=True, help="a released model, or a model's folder", **MODEL)
    add("--like", default="", metavar="MODEL", help="take over the coder of a model with the same encoders")
    learn = "streams whose coder learns nevertheless, as Cb,Cr (default: none)"
    add("--train", default="", metavar="STREAMS", help=learn)
    told = "what colour's coder is told: luma, color (Cr: Cb) or none"
    add("--condition", default="luma", metavar="NAME", help=told)
    add("--lr", type=number(float, 1e-9, 1), default=2e-3, metavar="RATE", help="Adam's learning rate")
    add("--bf16", flag=False, help="autocast in the first three quarters of each part")
    for name, about in shared.items():
        if name not in ("--profile", "--set"):
            add(name, **about)

    add = add_command(commands, info)
    add("--variant", default="", metavar="NAME", help="luma, independent, fusion or rgb (default: all)")
    add("--quantizer", **quantizer)
    for name in ("--profile", "--set"):
        add(name, **shared[name])


def _recipe(options: argparse.Namespace, variant: str, settings: Sequence[str]) -> Recipe:
    """Return a variant's settings; `rgb` has the width that costs as much as `fusion`, unless one is set."""
    from mcml.model.cost import equal_cost_rgb
    from mcml.model.settings import load_recipe

    recipe = load_recipe(options.profile, variant, settings, quantizer=options.quantizer)
    if variant != "rgb" or any(text.startswith("model.luma.width") for text in settings):
        return recipe
    luma = equal_cost_rgb(
        load_recipe(options.profile, "fusion", settings, quantizer=options.quantizer).model
    ).luma
    return recipe.changed(model={"luma": {"width": luma.width, "code_channels": luma.code_channels}})


def _photographs(
    name: str, options: argparse.Namespace, least_px: int = 1
) -> tuple[ImageSet, list[np.ndarray], dict[str, Any]]:
    """Read a data set; return what is used of it, its pixels, and what a record tells; print what is not."""
    from mcml.data.sets import image_set, read_all

    whole = image_set(name)
    images, pixels, problems = read_all(whole, least_px, strict=options.strict)
    if problems and os.environ.get("RANK", "0") == "0":
        count = f"{len(problems)} of {len(whole.paths)} pictures of {shown(whole.name)} are left out"
        tell(f"{count} (--strict refuses them):")
        for problem in list(problems.values())[:SHOWN]:
            tell(f"  {shown(problem)}")
        if len(problems) > SHOWN:
            tell(f"  and {len(problems) - SHOWN} more")
    told = {"photographs": len(pixels), "data_hash": images.digest}
    return images, pixels, told | {"left_out": [legible(path.name) for path in problems]}


def _initial(options: argparse.Namespace) -> tuple[Model | None, dict[str, Any]]:
    """Return the model of --from with the streams that are taken over, and what a record tells of it."""
    from mcml.model import weights

    if not options.initial:
        if options.take:
            raise UsageError(f"--take {options.take}: from which model? give --from")
        return None, {}
    initial = weights.load(options.initial)
    origin = {"name": Path(options.initial).name, "sha256": weights.digest(initial)}
    taken = [choose("stream", key, initial.streams) for key in options.take.split(",") if key]
    for key in set(initial.streams).difference(taken or initial.streams):
        del initial.streams[key]
    return initial, origin | ({"taken": taken} if taken else {})


def _fit(what: str, make: Callable[..., Run], options: argparse.Namespace) -> tuple[Run, str]:
    """Make a run and train it under a progress line; return it and how it ended."""
    wanted = ("loss", "estimated_bpp_", "psnr_", "bits_", "images_per_s")
    with Progress(what, every_s=30.0) as progress:

        def report(row: Mapping[str, Any]) -> None:
            figures = {name: v for name, v in row.items() if name.startswith(wanted) and math.isfinite(v)}
            texts = [f"step {row['step']}", *(f"{name} {value:.3f}" for name, value in figures.items())]
            progress.update(row["spent"], "  ".join(texts))

        run = make(report=report)
        if run.step and run.fabric.is_global_zero:
            for line in (*run.notes, f"resumed at step {run.step}"):
                progress.say(shown(line))
        return run, run.fit(log_every=options.log_every, save_every_s=60 * options.save_minutes)


def _record(run: Run, photographs: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return what a model tells of the run that made it."""
    import torch

    on_gpu = run.device.type == "cuda"
    return {
        "command": _command_line(), **photographs,
        **({"rule": os.environ["MCML_RULE"]} if "MCML_RULE" in os.environ else {}),
        "steps": run.step, "seconds": round(run.elapsed_s, 1), "threads": options.threads,
        "device": torch.cuda.get_device_name(run.device) if on_gpu else f"CPU {platform.machine()}",
        "processes": run.fabric.world_size, "torch": torch.__version__,
    }  # fmt: skip


def _command_line() -> str:
    """Return the command line with folders by their last name: a record travels with the weights."""
    return legible(" ".join(["mcml", *(Path(word).name if "/" in word else word for word in sys.argv[1:])]))


def train(options: argparse.Namespace) -> None:
    """Train a variant's networks and evaluate them; goes on where the run in --run-dir ended.

    mcml train --profile cpu --data train --valid valid --run-dir runs/luma
    mcml train --variant fusion --from runs/luma/model --train Cb,Cr --run-dir r2
    """
    import torch

    from mcml.data.patches import PatchStore
    from mcml.model import weights
    from mcml.model.validate import validate
    from mcml.training.run import checkpoints, locked
    from mcml.training.trainer import Trainer

    settings = list(options.set)
    if options.steps is not None or options.minutes is not None:  # either replaces both of the profile
        settings += [f"train.steps={options.steps or 0}", f"train.minutes={options.minutes or 0.0}"]
    if options.train is not None:
        settings.append(f"stage.train={json.dumps(options.train)}")
    recipe = _recipe(options, options.variant, settings)
    target = options.run_dir / "model"
    if target.exists() and not checkpoints(options.run_dir):
        raise UsageError(f"{target}: holds a model that no run there made: name another --run-dir")
    torch.set_num_threads(options.threads)
    initial, origin = _initial(options)
    photographs, pixels, used = _photographs(options.data, options, recipe.train.patch_px)
    valid = _photographs(options.valid, options) if options.valid else None
    sources = {"--data": f"{photographs.name}@{photographs.digest}"}
    if initial is not None:
        sources["--from"] = " ".join([f"{origin['name']}@{origin['sha256']}", *origin.get("taken", ())])

    def store(device: torch.device) -> PatchStore:
        made = PatchStore(pixels, device)
        pixels.clear()  # it has a copy
        return made

    make = partial(Trainer, recipe, store, options.run_dir, initial=initial, sources=sources)
    with locked(options.run_dir):
        run, ended = _fit("train", make, options)
        if not run.fabric.is_global_zero:
            return
        record = _record(run, used, options)
        record |= {"ended": ended, "recipe": recipe.to_dict(), "trained": list(run.trained)}
        if initial is not None:
            record["from"] = origin
        if valid:
            record["valid"] = {"name": legible(valid[0].name), **valid[2]}
        encoder = None
        if recipe.model.quantizer == "scalar":  # encoders see in files what they saw in training
            encoder = {"window_px": max(recipe.train.patch_px, LEAST_WINDOW_PX)}
        weights.save_model(run.averaged, target, record, encoder=encoder)
        tell(f"{ended} at step {run.step}: {shown(target)}")
        if ended == "interrupted":  # maybe by the signal that another process got
            raise StoppedError(run.stopping or signal.SIGTERM)
        if valid:
            averaged = weights.load(target, run.device)  # from the file, rounded as released
            rows = validate(averaged, valid[1])
            atomic_write(options.run_dir / "validation.csv", to_csv(rows))
            print_table(rows)


def train_entropy(options: argparse.Namespace) -> None:
    """Give a trained model the entropy coder of its files: context models, trained on its frozen bits.

    mcml train-entropy --model runs/a/model --data train --minutes 30 --run-dir e1
    mcml train-entropy --model runs/b/model --like e1/model --run-dir e2
    mcml train-entropy --model fusion --like fusion --train Cb,Cr --steps 400 --run-dir e3
    """
    import torch

    from mcml.model import weights
    from mcml.model.model_files import entropy_tensors, identity, model_folder
    from mcml.training.entropy import EntropyTrainer, FrozenBits
    from mcml.training.run import locked

    budget = {"steps": options.steps or 0, "minutes": options.minutes or 0.0}
    learning = {"lr": options.lr, "bf16": options.bf16}
    if not (any(budget.values()) or (options.like and not options.train)):
        raise UsageError("give --minutes or --steps above 0, or --like without --train")
    if options.train and not options.like:
        raise UsageError("--train: give --like, whose coder the other streams take over")
    torch.set_num_threads(options.threads)
    model = weights.load(options.model, "cuda" if torch.cuda.is_available() else "cpu")
    if model.config.quantizer == "scalar":
        raise UsageError(f"--model {options.model}: has scalar latents, whose prior was trained with them")
    record = weights.load_config(model_folder(options.model))[1]
    target = options.run_dir / "model"
    if target.exists() and weights.digest(weights.load(target)) != weights.digest(model):
        raise UsageError(f"{target}: holds another model: name another --run-dir")
    entropy = {}
    if options.like:
        entropy, theirs = entropy_tensors(model_folder(options.like)), weights.load(options.like).state_dict()
        for name, tensor in model.state_dict().items():
            same = name in theirs and torch.equal(tensor.cpu(), theirs[name].cpu())
            if re.match(r"streams\.\w+\.(encoder|importance|groups)\b", name) and not same:
                raise UsageError(f"--like: the models differ in {name}, so their bits do")
        own = {"command": _command_line(), "like": Path(options.like).name}
    if not options.like or options.train:
        learn = [choose("stream", key, model.streams) for key in options.train.split(",") if key]
        kept = {name: value for name, value in entropy.items() if name.partition(".")[0] not in learn}
        photographs, pixels, used = _photographs(options.data, options, STRIDE)
        tell(f"encoding {len(pixels)} photographs")
        bits = FrozenBits(model, pixels)
        sources = {
            "--model": f"{Path(options.model).name}@{weights.digest(model)}",
            "--data": f"{photographs.name}@{photographs.digest}",
        }
        if options.like:
            sources["--like"] = f"{Path(options.like).name}@{identity(model_folder(options.like)).hex()}"
        make = partial(
            EntropyTrainer, model, bits, condition=options.condition, kept=kept, run_dir=options.run_dir,
            sources=sources, **budget, **learning,
        )  # fmt: skip
        with locked(options.run_dir):
            run, ended = _fit("train-entropy", make, options)
            if ended == "interrupted":
                raise StoppedError(run.stopping)
            own = {**_record(run, used, options), "minutes": budget["minutes"]}
            own |= {"condition": options.condition, "like": Path(options.like).name}
            own["trained"], entropy = run.parts[-1][2], run.export()
    with locked(options.run_dir):
        weights.save_model(model, target, {**record, "entropy": own}, entropy=entropy)
    tell(f"finished: {shown(target)}")


def info(options: argparse.Namespace) -> None:
    """Print a variant's settings, parameters and MACs per pixel.

    mcml info --variant fusion --profile cpu
    """
    from mcml.model.cost import codec_cost, part_costs
    from mcml.model.settings import VARIANTS

    for name in [options.variant] if options.variant else VARIANTS:
        config = _recipe(options, name, options.set).model
        parameters, macs = codec_cost(config)
        print(f"{name}: {VARIANTS[name]}\n  {parameters:,} parameters, {macs:,.0f} MACs a pixel")
        for key in ("luma", "color") if name in ("independent", "fusion") else ("luma",):
            print(f"  {key}: " + ", ".join(f"{k} {v}" for k, v in config.to_dict()[key].items()))
        print_table([{**row, "macs_per_pixel": round(row["macs_per_pixel"])} for row in part_costs(config)])
    print("context models (bit_model, level_model) only estimate rates; totals leave them out, not priors.")
