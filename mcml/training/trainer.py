"""The training loop: staged, resumable to the bit, on one process or many, by lightning-fabric.

Imports nothing but what a bare GPU machine has: torch, numpy, Pillow, safetensors, fabric.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcml.base.errors import DataError, UsageError
from mcml.base.files import check_writable
from mcml.data.patches import PatchStore, draw_patches
from mcml.model.model import Model, build
from mcml.model.settings import DIAL_RANGE, Recipe
from mcml.model.weights import copy_stream
from mcml.training import checkpoints, run_log
from mcml.training import threshold_start as threshold_code
from mcml.training.loss import LossTerms, multi_loss
from mcml.training.processes import caught_signals, make_fabric

PARTS = ("decoder", "importance", "encoder")
PLAIN_SLOPES = {"l1": (11.0, 1.0), "l2": (530.0, 2.3)}  # lambda(p) as threshold codes measure it
START_PATCHES = 128  # of 128 x 128, for the threshold code


class Trainer:
    """A run in a folder: call `fit`; `model` and `averaged` are what came of it."""

    def __init__(
        self,
        recipe: Recipe,
        photographs: PatchStore | Callable[[torch.device], PatchStore],
        run_dir: Path,
        *,
        initial: Model | None = None,
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Prepare the networks, or resume what the folder holds.

        Args:
            recipe: what to train and how.
            photographs: a store, or what makes one for the process's device.
            run_dir: checkpoints and log.csv; created.
            initial: a model whose streams are taken over; they must be configured alike.
            report: gets each row of the log and what the progress bar needs.
        """
        self.recipe, self.run_dir, self.report = recipe, run_dir, report
        self.fabric = make_fabric(recipe.train.precision)
        self.device = self.fabric.device
        batch, processes = recipe.train.batch, self.fabric.world_size
        if batch % processes:  # shares of different sizes would weigh differently
            raise UsageError(f"train.batch is {batch}: expected a multiple of the {processes} processes")
        self.store = photographs(self.device) if callable(photographs) else photographs
        check_writable(checkpoints.log_file(run_dir))  # now, not after a minute
        self.draws = torch.Generator(self.device).manual_seed(recipe.train.seed)
        self.host = torch.Generator().manual_seed(recipe.train.seed)
        self.step, self.elapsed_s, self.best = 0, 0.0, math.inf
        self.model = build(recipe.model, recipe.train.seed).to(self.device, memory_format=torch.channels_last)
        self.trained = recipe.trained_streams()
        found = checkpoints.latest(run_dir)
        if found is None:
            self._begin(initial)
            if self.fabric.is_global_zero:
                checkpoints.trim_log(run_dir, 0)  # of a run that was killed before its first checkpoint
        self.averaged = build(recipe.model).to(self.device, memory_format=torch.channels_last)
        self.averaged.load_state_dict(self.model.state_dict())
        self.averaged.requires_grad_(False)
        self.parts = self._parts()
        self.optimizer = torch.optim.Adam(
            [{"params": params, "name": name, "lr": 0.0} for name, params in self.parts.items()], foreach=True
        )
        if found is not None:
            self._resume(found)

    def _begin(self, initial: Model | None) -> None:
        self.store.sample(1, self.recipe.train.patch_px, torch.Generator(self.device))  # large enough?
        if self.recipe.stage.start == "threshold":
            size = min(128, 8 * (int(torch.minimum(self.store.heights, self.store.widths).max()) // 8))
            seeded = torch.Generator(self.device).manual_seed(self.recipe.train.seed)
            patches = self.store.sample(START_PATCHES, size, seeded).float() / 255
        kept = [k for k in self.model.streams if initial is not None and k in initial.streams]
        for key in kept:
            copy_stream(initial, self.model, key)
        fresh = [key for key in self.model.streams if key not in kept]
        if fresh and self.recipe.stage.start == "threshold":
            threshold_code.start(self.model, patches, fresh, distortion=self.recipe.loss.distortion)
        elif fresh:
            bits = self.model.streams[self.model.config.streams[0]].full_bits
            for key in fresh:  # untrained bits cost about one each
                self.model.streams[key].rate_weight.copy_(self.model.streams[key].full_bits / bits)
        if self.model.config.streams[0] in fresh and self.recipe.stage.start == "plain":
            self.model.rate_slope.copy_(torch.tensor(PLAIN_SLOPES[self.recipe.loss.distortion]))

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        parts: dict[str, list[nn.Parameter]] = {name: [] for name in (*PARTS, "context")}
        self.model.requires_grad_(False)
        for key in self.trained:
            stream = self.model.streams[key]
            for name in PARTS:
                module = getattr(stream, name)
                parts[name] += [] if module is None else list(module.parameters())
            parts["context"] += [*stream.bit_model.parameters(), *stream.level_model.parameters()]
        return {name: params for name, params in parts.items() if params}

    # ------------------------------------------------------------------------------ one step

    def progress(self) -> float:
        """Return the spent share of the budget, whichever of steps and minutes is further."""
        train = self.recipe.train
        by_steps = self.step / train.steps if train.steps else 0.0
        return max(by_steps, self.elapsed_s / 60 / train.minutes if train.minutes else 0.0)

    def _prepare_step(self) -> None:
        """Set learning rates, and which parts learn, by the spent share of the budget."""
        spent, train, stage = self.progress(), self.recipe.train, self.recipe.stage
        wave = 0.505 + 0.495 * math.cos(math.pi * min(spent, 1.0))
        rise = min(1.0, (spent + 1e-3) / train.warmup) if train.warmup else 1.0
        for group in self.optimizer.param_groups:
            name = group["name"]
            share = stage.encoder_lr if name in ("encoder", "importance") else 1.0
            begins = getattr(stage, f"{name}_from", 0.0)  # the decoder learns from the start
            learns = spent >= begins and begins < 1
            if name == "context":
                learns = self.step % train.context_every == 0
            group["lr"] = (train.context_lr if name == "context" else train.lr * share) * wave * rise
            for parameter in group["params"]:
                parameter.requires_grad_(learns)

    def _train_step(self) -> Tensor:
        """Do one step; return a row of figures as one tensor on the device."""
        train, stage = self.recipe.train, self.recipe.stage
        self._prepare_step()
        fabric = self.fabric
        rgb = draw_patches(self.store, train.batch, train.patch_px, self.draws, self.host)
        dial = torch.rand(train.batch, generator=self.draws, device=self.device)
        dial = DIAL_RANGE[0] + (DIAL_RANGE[1] - DIAL_RANGE[0]) * dial
        uniform = torch.zeros(train.batch, dtype=torch.bool, device=self.device)
        if stage.uniform_share:
            uniform = torch.rand(train.batch, generator=self.draws, device=self.device) < stage.uniform_share
        # Every process draws the whole batch and takes its share: N processes see what one would.
        rgb, dial, uniform = (x[fabric.global_rank :: fabric.world_size] for x in (rgb, dial, uniform))
        rgb = rgb.contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            output = self.model(
                rgb, dial, decode=self.trained, estimate=self.step % train.context_every == 0, uniform=uniform
            )
        terms = self._loss(rgb, dial, output)
        total = terms.total * 1.0
        if self.step % train.context_every == 0:
            pixels = rgb.shape[-1] * rgb.shape[-2]
            total = total + sum(output.streams[k].estimated_bits.mean() for k in self.trained) / pixels
        if total.requires_grad:
            fabric.backward(total)
        norm = self._reduce_and_clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        return self._figures(terms, output, rgb, norm)

    def _loss(self, rgb: Tensor, dial: Tensor, output: Any) -> LossTerms:
        planes = self.model.planes(rgb)
        literal = self.recipe.loss.rate_streams == "luma"
        return multi_loss(
            {key: planes[key] for key in self.trained},
            {key: output.streams[key].x_hat for key in self.trained},
            # A map's unit is the first stream's: one step of p then costs the same coded bits everywhere.
            {
                key: output.streams[key].importance
                * (1.0 if literal else self.model.streams[key].rate_weight)
                for key in self.trained
            },
            self.model.lmbda(dial),
            self.recipe.loss,
        )

    def _reduce_and_clip(self) -> Tensor:
        """Average gradients over processes and clip codec and context models apart; return the norm."""
        norm = torch.zeros((), device=self.device)
        for names in ((*PARTS,), ("context",)):
            grads = [p.grad for n in names for p in self.parts.get(n, []) if p.grad is not None]
            if not grads:
                continue
            if self.fabric.world_size > 1:
                flat = self.fabric.all_reduce(torch.cat([g.reshape(-1) for g in grads]))
                for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                    grad.copy_(part.view_as(grad))
            found = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (self.recipe.train.clip / (found + 1e-9)).clamp(max=1.0))
            norm = found if names != ("context",) else norm
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.train.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def _figures(self, terms: LossTerms, output: Any, rgb: Tensor, norm: Tensor) -> Tensor:
        planes = self.model.planes(rgb)
        row = [terms.total, terms.distortion, terms.rate, terms.weighted_rate, norm]
        for key in self.trained:
            stream = output.streams[key]
            row += [
                terms.distortion_per_stream[key],
                stream.importance.mean(),
                stream.mask.float().mean(),
                (stream.x_hat - planes[key]).square().mean(),
                stream.estimated_bits.mean() / (rgb.shape[-1] * rgb.shape[-2]),
            ]
        return torch.stack([value.detach().float().reshape(()) for value in row])

    # ------------------------------------------------------------------------------ the run

    def fit(self, *, log_every: int = 20, save_every_s: float = 300.0) -> str:
        """Train until the budget is spent, a signal comes, or the loss runs away.

        Returns:
            "finished" or "interrupted"; a checkpoint was written in both cases.

        Raises:
            run_log.DivergedError: with what went wrong; checkpoints are as they were.
            DataError: if a checkpoint cannot be written; earlier ones are kept.
        """
        sums, rows, before_s = None, 0, self.elapsed_s
        began = since = saved_at = time.monotonic()
        with caught_signals() as stop:
            while self.progress() < 1.0:
                row = self._train_step()
                weight = torch.ones_like(row)
                if self.step % self.recipe.train.context_every != 1 % self.recipe.train.context_every:
                    weight[9::5] = 0  # no estimate in this step
                sums = (row * weight, weight) if sums is None else (sums[0] + row * weight, sums[1] + weight)
                rows += 1
                if self.step % log_every and self.progress() < 1.0 and not (stop and self._alone()):
                    continue
                self.elapsed_s = self._agree(before_s + time.monotonic() - began)
                stopping = bool(self._agree(float(bool(stop)), "max"))
                speed = self.recipe.train.batch * rows / (time.monotonic() - since)
                self._log(sums[0] / sums[1].clamp(min=1), speed)
                sums, rows, since = None, 0, time.monotonic()
                if stopping or time.monotonic() - saved_at > save_every_s:
                    self.save()
                    saved_at = time.monotonic()
                if stopping:
                    return "interrupted"
        self.save()
        return "finished"

    def _alone(self) -> bool:
        return self.fabric.world_size == 1

    def _agree(self, value: float, how: str = "first") -> float:
        """Return one number for all processes: the first's, or the largest."""
        if self._alone():
            return value
        tensor = torch.tensor(value, device=self.device)
        if how == "max":
            return float(self.fabric.all_reduce(tensor, reduce_op="sum"))
        return float(self.fabric.broadcast(tensor))

    def _log(self, row: Tensor, speed: float) -> None:
        values = (self.fabric.all_reduce(row) if not self._alone() else row).tolist()
        found = run_log.name_figures(values, self.trained)
        run_log.check(found, self.model, self.step, self.best, checkpoints.latest(self.run_dir))
        self.best = min(self.best, found["loss"])
        row_out = {
            "step": self.step, "seconds": round(self.elapsed_s, 2), "spent": round(self.progress(), 5),
            "lr": self.optimizer.param_groups[0]["lr"], "images_per_s": speed, **found,
        }  # fmt: skip
        if self.fabric.is_global_zero:
            checkpoints.append_log(self.run_dir, row_out)
            if self.report is not None:
                self.report(row_out)

    # --------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write a checkpoint of everything that decides what comes next."""
        if self.fabric.is_global_zero:
            state = {
                "recipe": self.recipe.to_dict(), "step": self.step, "elapsed_s": self.elapsed_s,
                "best": self.best,
            }  # fmt: skip
            extra = {"draws": self.draws.get_state(), "host": self.host.get_state()}
            checkpoints.write(self.run_dir, self.model, self.averaged, self.optimizer, extra, state)
        if not self._alone():
            self.fabric.barrier()

    def _resume(self, folder: Path) -> None:
        extra, state = checkpoints.read(folder, self.recipe, self.model, self.averaged, self.optimizer)
        try:
            self.draws.set_state(extra["draws"].cpu())
        except RuntimeError as error:
            raise UsageError(f"{folder} is of another kind of device than {self.device.type}") from error
        self.host.set_state(extra["host"].cpu())
        self.step, self.elapsed_s, self.best = state["step"], state["elapsed_s"], state["best"]
        if self.fabric.is_global_zero:
            checkpoints.trim_log(self.run_dir, self.step)


def photographs_of(paths: Sequence[Path]) -> Callable[[torch.device], PatchStore]:
    """Return what decodes `paths` into a store on a device."""
    if not paths:
        raise DataError("no photographs to train on")
    return lambda device: PatchStore.from_files(paths, device)
