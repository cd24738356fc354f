"""The codec's training: staged, resumable to the bit, on one process or many, by lightning-fabric.

Training goes from what is cheap and safe to what is delicate, by shares of the budget. Decoders and
context models (which only estimate rates) learn from the first step on; the importance map, which
decides where bits go, from `importance_from`; the encoder, whose bits all else has come to rely on,
late and slowly or never (`encoder_from`, `encoder_lr`). Streams are staged between runs: luma first,
then colour on its frozen bits (`stage.train`), so that `independent` and `fusion` differ by the
fusion alone.

Each step draws for every patch a dial b and takes the lambda(b) that belongs to it, so that one
weight file serves every rate. What is evaluated and released is the running average of the weights.
Imports nothing but what a bare GPU machine has: torch, numpy, Pillow, safetensors, fabric.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mcml.base.errors import UsageError
from mcml.data.patches import PatchStore, draw_patches
from mcml.model.model import Model, build
from mcml.model.settings import DIAL_RANGE, Recipe, dotted
from mcml.model.weights import copy_stream, digest
from mcml.training import threshold_start
from mcml.training.loss import multi_loss
from mcml.training.run import Report, Run

PARTS = ("decoder", "importance", "encoder")  # of a stream, in the order in which they are set free
PLAIN_SLOPES = {"l1": (11.0, 1.0), "l2": (530.0, 2.3)}  # lambda(p) as threshold codes measure it


class Trainer(Run):
    """A run of a recipe: call `fit`; `model` and `averaged` are what came of it."""

    def __init__(
        self, recipe: Recipe, photographs: PatchStore | Callable[[torch.device], PatchStore],
        run_dir: Path | None, *, initial: Model | None = None, sources: Mapping[str, str] = {},
        report: Report | None = None,
    ) -> None:  # fmt: skip
        """Prepare the networks, or resume what the folder holds.

        Args:
            recipe: what to train and how.
            photographs: a store, or what makes one for the process's device.
            initial: a model whose streams are taken over; they must be configured alike.
            sources: "NAME@SHA256" of "--data" and "--from" (without, the digest of `initial` is used).
            run_dir, report: see `Run`.
        """
        train = recipe.train
        settings = {**dotted(recipe.to_dict()), "--from": digest(initial) if initial else None, **sources}
        budget = train.steps, train.minutes
        super().__init__(run_dir, settings, *budget, precision=train.precision, report=report)
        self.recipe, self.batch, self.trained = recipe, train.batch, recipe.trained_streams()
        many = self.fabric.world_size
        if train.batch % many:  # shares of different sizes would weigh differently
            raise UsageError(f"train.batch is {train.batch}: expected a multiple of the {many} processes")
        per_stream = ("distortion", "importance", "open", "estimated_bpp", "psnr")
        self.columns = ["loss", "distortion", "rate", "weighted_rate", "gradient_norm"]
        self.columns += [f"{name}_{key}" for key in self.trained for name in per_stream]
        self.store = photographs(self.device) if callable(photographs) else photographs
        self.store.sample(1, train.patch_px, torch.Generator(self.device))  # large enough?
        draws = {"patches": torch.Generator(self.device), "scales": torch.Generator()}
        self.draws = {name: generator.manual_seed(train.seed) for name, generator in draws.items()}
        self.model = build(recipe.model, train.seed).to(self.device, memory_format=torch.channels_last)
        self.learner, self.averaged = self.model, copy.deepcopy(self.model).requires_grad_(False)
        compiled = train.compile and self.device.type == "cuda"
        self.forward = torch.compile(self.model) if compiled else self.model  # the same weights
        self.ema = list(self.averaged.parameters()), list(self.model.parameters())  # collecting takes time
        self.parts = self._parts()
        groups = [{"params": params, "name": name, "lr": 0.0} for name, params in self.parts.items()]
        self.optimizer = torch.optim.Adam(groups, foreach=True)
        if not self.resume():
            self._begin(initial)
            self.averaged.load_state_dict(self.model.state_dict())

    def _begin(self, initial: Model | None) -> None:
        """Set the first weights: the streams of `initial`, of the others the start that the recipe names."""
        model, distortion = self.model, self.recipe.loss.distortion
        kept = [key for key in model.streams if initial is not None and key in initial.streams]
        for key in kept:
            copy_stream(initial, model, key)
        fresh, first = [key for key in model.streams if key not in kept], model.config.streams[0]
        if fresh and self.recipe.stage.start == "threshold":
            side = min(128, 8 * (int(torch.minimum(self.store.heights, self.store.widths).max()) // 8))
            seeded = torch.Generator(self.device).manual_seed(self.recipe.train.seed)
            patches = self.store.sample(128, side, seeded).float() / 255
            threshold_start.start(model, patches, fresh, distortion=distortion)
            return
        for key in fresh:  # untrained bits cost about one each
            stream = model.streams[key]
            stream.rate_weight.copy_(stream.full_bits / model.streams[first].full_bits)
        if first in fresh:
            model.rate_slope.copy_(torch.tensor(PLAIN_SLOPES[distortion]))

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the weights that may learn: the trained streams' `PARTS`, and "context" for their rates."""
        self.model.requires_grad_(False)
        streams = [self.model.streams[key] for key in self.trained]
        modules = {name: [getattr(stream, name) for stream in streams] for name in PARTS}
        modules["context"] = [m for stream in streams for m in (stream.bit_model, stream.level_model)]
        parts = {name: [p for m in of if m for p in m.parameters()] for name, of in modules.items()}
        return {name: params for name, params in parts.items() if params}

    def train_step(self) -> dict[str, Tensor]:
        """Draw patches and dials, encode and decode, descend the multi-loss; return its figures."""
        train = self.recipe.train
        estimates = self.step % train.context_every == 0
        self._prepare_step(estimates)
        rgb, dial, uniform = self._draw()
        with self.fabric.autocast():
            output = self.forward(rgb, dial, decode=self.trained, estimate=estimates, uniform=uniform)
        streams = {key: output.streams[key] for key in self.trained}
        x = {key: plane for key, plane in self.model.planes(rgb).items() if key in streams}
        x_hat = {key: stream.x_hat for key, stream in streams.items()}
        importance = {key: stream.importance for key, stream in streams.items()}
        if self.recipe.loss.rate_streams != "luma":  # a step of p then costs the same bits in every stream
            importance = {key: p * self.model.streams[key].rate_weight for key, p in importance.items()}
        terms = multi_loss(x, x_hat, importance, self.model.lmbda(dial), self.recipe.loss)
        row = {name: getattr(terms, name) for name in ("distortion", "rate", "weighted_rate")}
        row["loss"] = terms.total
        for key, stream in streams.items():
            row[f"distortion_{key}"] = terms.distortion_per_stream[key]
            row[f"importance_{key}"] = stream.importance.mean()
            row[f"open_{key}"] = stream.mask.float().mean()
            row[f"psnr_{key}"] = (stream.x_hat - x[key]).square().mean()
            if estimates:
                row[f"estimated_bpp_{key}"] = stream.estimated_bits.mean() / train.patch_px**2
        # Estimated bits reach the context models alone: they follow the codec and do not move it.
        total = terms.total + sum(row[f"estimated_bpp_{key}"] for key in streams if estimates)
        if total.requires_grad:
            self.fabric.backward(total)
        row["gradient_norm"] = self._reduce_and_clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(train.ema, (2 + self.step) / (11 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(*self.ema, 1 - decay)
        return row

    def _prepare_step(self, estimates: bool) -> None:
        """Set learning rates, and which parts learn, by the spent share of the budget."""
        spent, train, stage = self.progress(), self.recipe.train, self.recipe.stage
        wave = 0.505 + 0.495 * math.cos(math.pi * spent)
        rise = min(1.0, (spent + 1e-3) / train.warmup) if train.warmup else 1.0
        slow = train.lr * stage.encoder_lr  # shares of 1 are never: no step has spent all
        plan = {"decoder": (train.lr, True), "context": (train.context_lr, estimates)}
        plan |= {n: (slow, getattr(stage, f"{n}_from") <= spent) for n in ("importance", "encoder")}
        for group in self.optimizer.param_groups:
            rate, learns = plan[group["name"]]
            group["lr"] = rate * wave * rise
            for parameter in group["params"]:
                parameter.requires_grad_(learns)

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return this process's patches, dials, and which of them get a uniform map.

        Every process draws the whole batch and takes its share: N processes see what one would.
        """
        train, draws = self.recipe.train, self.draws["patches"]
        rgb = draw_patches(self.store, train.batch, train.patch_px, draws, self.draws["scales"])
        low, high = DIAL_RANGE
        dial = low + (high - low) * torch.rand(train.batch, generator=draws, device=self.device)
        share, uniform = self.recipe.stage.uniform_share, torch.zeros_like(dial, dtype=torch.bool)
        if share:
            uniform = torch.rand(train.batch, generator=draws, device=self.device) < share
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        return rgb[own].contiguous(memory_format=torch.channels_last), dial[own], uniform[own]

    def _reduce_and_clip(self) -> Tensor:
        """Average gradients over processes; clip codec and context models apart; return the codec's norm."""
        norms = [torch.zeros((), device=self.device)]
        for names in (("context",), PARTS):
            grads = [p.grad for name in names for p in self.parts.get(name, []) if p.grad is not None]
            if not grads:
                continue
            if self.fabric.world_size > 1:
                mean = self.fabric.all_reduce(torch.cat([g.reshape(-1) for g in grads]))
                for grad, part in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
                    grad.copy_(part.view_as(grad))
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (self.recipe.train.clip / (norm + 1e-9)).clamp(max=1.0))
            norms += [norm] if names == PARTS else []
        return norms[-1]
