"""`mcml train-entropy`: give a trained model the entropy coder that its files need."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcml.base.errors import McmlError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code: 0, 1 for data, 2 for usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        return _train(_parser().parse_args([a for a in argv if a not in ("--debug", "train-entropy")]))
    except McmlError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mcml train-entropy", description="Train context models on a model's frozen bits."
    )
    parser.add_argument("--model", required=True, help="model folder, or a released one's name")
    parser.add_argument("--data", default="embedded", help="folder of photographs, or a data set's name")
    parser.add_argument("--run-dir", type=Path, required=True, help="contexts and model/ go here; resumes")
    parser.add_argument("--like", default="", help="take over the coder of a model with the same encoders")
    parser.add_argument("--minutes", type=float, default=0.0, help="budget in minutes")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps")
    parser.add_argument("--batch", type=int, default=8, help="crops a step")
    parser.add_argument("--side", type=int, default=24, help="positions of a crop's side, 8 pixels each")
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate")
    parser.add_argument("--bf16", action="store_true", help="autocast in the first three quarters")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of this process")
    return parser


def _train(options: argparse.Namespace) -> int:
    import torch

    from mcml.cli.train import command_line, photographs
    from mcml.data.images import read_image
    from mcml.model import weights
    from mcml.model.model_files import entropy_tensors, model_folder

    if not options.like and options.minutes <= 0 and options.steps <= 0:
        raise UsageError("give --minutes or --steps above 0, or --like")
    if options.threads < 1 or options.batch < 1 or options.side < 2:
        raise UsageError("--threads and --batch: expected a whole number from 1; --side: from 2")
    torch.set_num_threads(options.threads)
    model = weights.load(options.model, "cuda" if torch.cuda.is_available() else "cpu")
    record = weights.load_config(model_folder(options.model))[1]
    target = options.run_dir / "model"
    if options.like:
        entropy = entropy_tensors(model_folder(options.like))
        _check_same(model, weights.load(options.like))
        own = {"command": command_line(), "like": Path(options.like).name}
        weights.save_model(model, target, {**record, "entropy": own}, entropy=entropy)
        return 0
    from mcml.training.entropy import EntropyTrainer, FrozenBits

    paths, digest = photographs(options.data)
    print(f"encoding {len(paths)} photographs", file=sys.stderr)
    sources = {
        "--model": f"{Path(options.model).name}@{weights.digest(model)}",
        "--data": f"{Path(options.data).name}@{digest}",
    }
    trainer = EntropyTrainer(
        model, FrozenBits(model, [read_image(path) for path in paths]), minutes=options.minutes,
        steps=options.steps, batch=options.batch, side=options.side, lr=options.lr, bf16=options.bf16,
        run_dir=options.run_dir, sources=sources, report=_report,
    )  # fmt: skip
    if trainer.step:
        print(f"resumed at step {trainer.step}", file=sys.stderr)
    if trainer.fit() == "interrupted":
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 0
    entropy = trainer.export()
    own = {
        "command": command_line(), "minutes": options.minutes, "steps": trainer.step,
        "seconds": round(trainer.elapsed_s, 1), "photographs": len(paths), "data_hash": digest,
        "threads": options.threads, "batch": options.batch, "side": options.side,
    }  # fmt: skip
    weights.save_model(model, target, {**record, "entropy": own}, entropy=entropy)
    print(f"finished: {target}", file=sys.stderr)
    return 0


def _check_same(model: Any, other: Any) -> None:
    import torch

    for key, stream in model.streams.items():
        if key not in other.streams:
            raise UsageError(f"--like: that model has no stream {key}")
        theirs = other.streams[key]
        if theirs.config != stream.config or not torch.equal(theirs.groups.cpu(), stream.groups.cpu()):
            raise UsageError(f"--like: the models' codes of {key} differ")
        for name, part in (("encoder", stream.encoder), ("importance", stream.importance)):
            theirs = getattr(other.streams[key], name)
            if (part is None) != (theirs is None):
                raise UsageError(f"--like: the models' {name} of {key} differ")
            if part is None:
                continue
            own, found = part.state_dict(), theirs.state_dict()
            same = own.keys() == found.keys() and all(
                own[k].shape == found[k].shape and torch.equal(own[k].cpu(), found[k].cpu()) for k in own
            )
            if not same:
                raise UsageError(f"--like: the models' {name} of {key} differ, so their bits do")


def _report(row: Mapping[str, Any]) -> None:
    measured = {k[5:]: v for k, v in row.items() if k.startswith("bits_") and math.isfinite(v)}
    bits = "  ".join(f"{key} {value:.3f} bits a position" for key, value in measured.items())
    print(f"{100 * min(row['spent'], 1):5.1f} %  step {row['step']}  {bits}", file=sys.stderr, flush=True)
