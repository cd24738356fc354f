"""The codec's training: staged, resumable to the bit, on one process or many, by lightning-fabric.

What a step descends and which weights learn when is the quantizer's (objectives.py). Streams are staged
between runs: luma first, then colour on its frozen code (`stage.train`), so that `independent` and
`fusion` differ by the fusion alone.

Each step draws for every patch a dial and takes the lambda that belongs to it, so that one weight file
serves every rate. What is evaluated and released is the running average of the weights.
Imports nothing but what a bare GPU machine has: torch, numpy, Pillow, safetensors, fabric.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcml.base.errors import UsageError
from mcml.data.patches import PatchStore, draw_patches
from mcml.model.model import Model, build
from mcml.model.settings import Recipe, dotted
from mcml.model.weights import copy_stream, digest
from mcml.training.objectives import OBJECTIVES
from mcml.training.run import Report, Run

WARM_UP = 3  # steps before a GPU's step is captured


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
        objective = OBJECTIVES[recipe.model.quantizer]
        per_stream = ("distortion", *objective.columns, "estimated_bpp", "psnr")
        self.columns = ["loss", "distortion", "rate", "weighted_rate", "gradient_norm"]
        self.columns += [f"{name}_{key}" for key in self.trained for name in per_stream]
        self.store = photographs(self.device) if callable(photographs) else photographs
        self.store.sample(1, train.patch_px, torch.Generator(self.device))  # large enough?
        draws = {"patches": torch.Generator(self.device), "scales": torch.Generator()}
        self.draws = {name: generator.manual_seed(train.seed) for name, generator in draws.items()}
        self.model = build(recipe.model, train.seed).to(self.device, memory_format=torch.channels_last)
        self.learner, self.averaged = self.model, copy.deepcopy(self.model).requires_grad_(False)
        self.objective = objective(self.model, recipe)
        self.columns += self.objective.seen
        self.model.requires_grad_(False)
        self.cuda = train.cuda if self.device.type == "cuda" else "eager"
        torch.backends.cudnn.benchmark = self.cuda != "eager"
        self.forward = torch.compile(self.model) if self.cuda == "compile" else self.model  # the same weights
        self.captured: dict[tuple, tuple] = {}
        self.ema = list(self.averaged.parameters()), list(self.model.parameters())  # collecting takes time
        parts = {name: params for name, params in self.objective.parts.items() if params}
        groups = [{"params": params, "name": name, "lr": 0.0} for name, params in parts.items()]
        how = {"fused": True} if self.device.type == "cuda" else {"foreach": True}
        self.optimizer = torch.optim.Adam(groups, betas=self.objective.betas, **how)
        if not self.resume():
            self._begin(initial)
            self.averaged.load_state_dict(self.model.state_dict())

    def _begin(self, initial: Model | None) -> None:
        """Set the first weights: the streams of `initial`, of the others the objective's start."""
        model = self.model
        kept = [key for key in model.streams if initial is not None and key in initial.streams]
        for key in kept:
            copy_stream(initial, model, key)
        side = min(128, 8 * (int(torch.minimum(self.store.heights, self.store.widths).max()) // 8))
        seeded = torch.Generator(self.device).manual_seed(self.recipe.train.seed)
        fresh = [key for key in model.streams if key not in kept]  # their start may look at the kept streams
        self.objective.start(lambda: self.store.sample(128, side, seeded).float() / 255, fresh)

    def train_step(self) -> dict[str, Tensor]:
        """Draw patches and dials, encode and decode, descend the objective; return its figures."""
        spent = self.progress()
        phase = self.objective.phase(self.step, spent)
        self._prepare(phase, spent)
        inputs = self._draw(phase)
        row = self._replay(phase, inputs) if self.cuda == "graph" else self._backward(phase, inputs)
        row["gradient_norm"] = self._reduce_and_clip()
        self.optimizer.step()
        if self.cuda != "graph":  # whose gradients lie where the capture put them
            self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.recipe.train.ema, (2 + self.step) / (11 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(*self.ema, 1 - decay)
        return row

    def _backward(self, phase: tuple[bool, ...], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradients of one step; return its figures."""
        drawn = dict(inputs)
        rgb, dial = drawn.pop("rgb"), drawn.pop("dial")
        with self.fabric.autocast():
            output = self.forward(rgb, dial, **self.objective.options(phase, drawn))
        total, row = self.objective.loss(output, rgb, dial, phase)
        if total.requires_grad:
            self.fabric.backward(total)
        return {name: value.detach() for name, value in row.items()}

    def _replay(self, phase: tuple[bool, ...], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do what `_backward` does as one CUDA graph, captured when a phase first comes."""
        learning = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if phase not in self.captured:
            static = {name: tensor.clone() for name, tensor in inputs.items()}
            graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.optimizer.zero_grad(set_to_none=True)
                    self._backward(phase, static)
            torch.cuda.current_stream().wait_stream(aside)
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                row = self._backward(phase, static)
            self.captured[phase] = graph, static, row, [p.grad for p in learning]
        graph, static, row, grads = self.captured[phase]
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, grad in zip(learning, grads, strict=True):
            parameter.grad = grad
        for name, tensor in inputs.items():
            static[name].copy_(tensor)
        graph.replay()
        return {name: value.clone() for name, value in row.items()}

    def _prepare(self, phase: tuple[bool, ...], spent: float) -> None:
        """Set learning rates, and which parts learn."""
        warmup = self.recipe.train.warmup
        wave = 0.505 + 0.495 * math.cos(math.pi * spent)
        rise = min(1.0, (spent + 1e-3) / warmup) if warmup else 1.0
        plan = self.objective.plan(phase)
        for group in self.optimizer.param_groups:
            rate, learns = plan[group["name"]]
            group["lr"] = rate * wave * rise
            for parameter in group["params"]:
                parameter.requires_grad_(learns)

    def _draw(self, phase: tuple[bool, ...]) -> dict[str, Tensor]:
        """Return this process's patches ("rgb"), dials ("dial") and what else the objective draws.

        Every process draws the whole batch and takes its share: N processes see what one would.
        """
        train, draws = self.recipe.train, self.draws["patches"]
        rgb = draw_patches(self.store, train.batch, train.patch_px, draws, self.draws["scales"])
        low, high = self.recipe.model.dial_range
        dial = low + (high - low) * torch.rand(train.batch, generator=draws, device=self.device)
        drawn = {"rgb": rgb, "dial": dial, **self.objective.draw(phase, draws, train.batch)}
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        drawn = {name: tensor[own] for name, tensor in drawn.items()}
        drawn["rgb"] = drawn["rgb"].contiguous(memory_format=torch.channels_last)
        return drawn

    def _reduce_and_clip(self) -> Tensor:
        """Average gradients over processes; clip apart what the objective says; return the codec's norm."""
        norms = [torch.zeros((), device=self.device)]
        for names in self.objective.apart:
            grads = [p.grad for n in names for p in self.objective.parts.get(n, []) if p.grad is not None]
            if not grads:
                continue
            if self.fabric.world_size > 1:
                mean = self.fabric.all_reduce(torch.cat([g.reshape(-1) for g in grads]))
                for grad, part in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
                    grad.copy_(part.view_as(grad))
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (self.recipe.train.clip / (norm + 1e-9)).clamp(max=1.0))
            norms += [norm] if names == self.objective.apart[-1] else []
        return norms[-1]
