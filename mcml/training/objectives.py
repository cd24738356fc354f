"""What a step of training descends, for each quantizer, and which weights learn when.

Binary: decoders and context models (which only estimate rates) learn from the first step on; the
importance map, which decides where bits go, from `importance_from`; the encoder, whose bits all else has
come to rely on, late and slowly or never (`encoder_from`, `encoder_lr`).

Scalar: all learn at once, noise standing for the rounding where rates are estimated; from `rounding_from`
on encoders and gains stay, and decoders and priors learn on what rounding really gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mcml.model.model import Model, ModelOutput
from mcml.model.perceptual import DISTORTIONS
from mcml.model.settings import Recipe
from mcml.training import threshold_start, transform_start
from mcml.training.loss import LossTerms, multi_loss, rate_distortion_loss

PLAIN_SLOPES = {"l1": (11.0, 1.0), "l2": (530.0, 2.3)}  # lambda(p) as threshold codes measure it
Plan = dict[str, tuple[float, bool]]  # by part: rate before warm-up and cosine, and whether it learns
Planes = dict[str, Tensor]


def planes_of(model: Model, rgb: Tensor, output: ModelOutput, keys: Sequence[str]) -> tuple[Planes, Planes]:
    """Return the planes of some streams, originals and decodes."""
    originals = model.planes(rgb)
    return {key: originals[key] for key in keys}, {key: output.streams[key].x_hat for key in keys}


def log_row(terms: LossTerms, x: Planes, x_hat: Planes) -> dict[str, Tensor]:
    """Return the log's figures that both losses have."""
    row = {name: getattr(terms, name) for name in ("distortion", "rate", "weighted_rate")}
    row |= {f"distortion_{key}": error for key, error in terms.distortion_per_stream.items()}
    row |= {f"psnr_{key}": (x_hat[key] - plane).square().mean() for key, plane in x.items()}
    return row | {"loss": terms.total}


class BinaryObjective:
    """The multi-loss of the poster; its parts are clipped apart from the context models'."""

    betas = (0.9, 0.999)
    columns = ("importance", "open")
    seen: Sequence[str] = ()
    apart = (("context",), ("decoder", "importance", "encoder"))

    def __init__(self, model: Model, recipe: Recipe) -> None:
        """Say which weights of the trained streams may learn, in `parts`."""
        self.model, self.recipe, self.trained = model, recipe, recipe.trained_streams()
        streams = [model.streams[key] for key in self.trained]
        modules = {name: [getattr(stream, name) for stream in streams] for name in self.apart[1]}
        modules["context"] = [m for stream in streams for m in (stream.bit_model, stream.level_model)]
        self.parts = {name: [p for m in of if m for p in m.parameters()] for name, of in modules.items()}

    def start(self, sample: Callable[[], Tensor], fresh: Sequence[str]) -> None:
        """Set the first weights of `fresh` streams by the recipe's start, from sampled patches."""
        model, distortion, first = self.model, self.recipe.loss.distortion, self.model.config.streams[0]
        if fresh and self.recipe.stage.start == "threshold":
            threshold_start.start(model, sample(), fresh, distortion=distortion)
            return
        for key in fresh:  # untrained bits cost about one each
            stream = model.streams[key]
            stream.rate_weight.copy_(stream.full_bits / model.streams[first].full_bits)
        if first in fresh:
            model.rate_slope.copy_(torch.tensor(PLAIN_SLOPES[distortion]))

    def phase(self, step: int, spent: float) -> tuple[bool, ...]:
        """Return whether rates are estimated, and whether importance map and encoder learn."""
        stage = self.recipe.stage
        estimates = step % self.recipe.train.context_every == 0
        return estimates, stage.importance_from <= spent, stage.encoder_from <= spent

    def plan(self, phase: tuple[bool, ...]) -> Plan:
        """Return learning rate and whether it learns, by part."""
        train = self.recipe.train
        slow = train.lr * self.recipe.stage.encoder_lr  # shares of 1 are never: no step has spent all
        plan = {"decoder": (train.lr, True), "context": (train.context_lr, phase[0])}
        return plan | {"importance": (slow, phase[1]), "encoder": (slow, phase[2])}

    def draw(self, phase: tuple[bool, ...], generator: torch.Generator, batch: int) -> dict[str, Tensor]:
        """Draw which of the samples get a uniform map."""
        share, device = self.recipe.stage.uniform_share, self.model.rate_slope.device
        if not share:
            return {"uniform": torch.zeros(batch, dtype=torch.bool, device=device)}
        return {"uniform": torch.rand(batch, generator=generator, device=device) < share}

    def options(self, phase: tuple[bool, ...], drawn: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `Model.forward` beside pixels and dial."""
        return {"decode": self.trained, "estimate": phase[0], "uniform": drawn["uniform"]}

    def loss(
        self, output: ModelOutput, rgb: Tensor, dial: Tensor, phase: tuple[bool, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is descended and the log's figures."""
        streams = {key: output.streams[key] for key in self.trained}
        x, x_hat = planes_of(self.model, rgb, output, self.trained)
        importance = {key: stream.importance for key, stream in streams.items()}
        if self.recipe.loss.rate_streams != "luma":  # a step of p then costs the same bits in every stream
            importance = {key: p * self.model.streams[key].rate_weight for key, p in importance.items()}
        terms = multi_loss(x, x_hat, importance, self.model.lmbda(dial), self.recipe.loss)
        row = log_row(terms, x, x_hat)
        for key, stream in streams.items():
            row[f"importance_{key}"] = stream.importance.mean()
            row[f"open_{key}"] = stream.mask.float().mean()
            if phase[0]:
                row[f"estimated_bpp_{key}"] = stream.estimated_bits.mean() / (rgb.shape[-1] * rgb.shape[-2])
        # Estimated bits reach the context models alone: they follow the codec and do not move it.
        return terms.total + sum(row[f"estimated_bpp_{key}"] for key in streams if phase[0]), row


class ScalarObjective:
    """Rate and distortion of scalar latents, with a lambda for each dial."""

    betas = (0.9, 0.99)
    columns = ()
    apart = (("decoder", "encoder", "analysis", "prior"),)

    def __init__(self, model: Model, recipe: Recipe) -> None:
        """Say which weights of the trained streams may learn, in `parts`."""
        self.model, self.recipe, self.trained = model, recipe, recipe.trained_streams()
        parts = [model.streams[key].parts() for key in self.trained]
        self.parts = {name: [p for of in parts for p in of[name]] for name in self.apart[0]}
        self.seen = [name for name in DISTORTIONS if getattr(recipe.loss, name)]

    def start(self, sample: Callable[[], Tensor], fresh: Sequence[str]) -> None:
        """Set the first weights of `fresh` streams to a transform coder, measured on sampled patches."""
        if fresh:
            transform_start.start(self.model, sample(), fresh)

    def phase(self, step: int, spent: float) -> tuple[bool, ...]:
        """Return whether encoder and prior learn, and whether rounding is real."""
        stage = self.recipe.stage
        rounding = stage.rounding_from <= spent
        encoder = stage.encoder_from <= spent and not rounding
        return encoder, stage.prior_from <= spent, rounding

    def plan(self, phase: tuple[bool, ...]) -> Plan:
        """Return learning rate and whether it learns, by part."""
        lr = self.recipe.train.lr
        return {
            "decoder": (lr, True),
            "encoder": (lr * self.recipe.stage.encoder_lr, phase[0]),
            "analysis": (lr, phase[1] and not phase[2]),
            "prior": (lr, phase[1]),
        }

    def draw(self, phase: tuple[bool, ...], generator: torch.Generator, batch: int) -> dict[str, Tensor]:
        """Draw the noise that stands for rounding, unless rounding is real."""
        if phase[2]:
            return {}
        side, device = self.recipe.train.patch_px, self.model.rate_slope.device
        shapes = self.model.noise_shapes(side, side)
        return {k: torch.rand(batch, *v, generator=generator, device=device) - 0.5 for k, v in shapes.items()}

    def options(self, phase: tuple[bool, ...], drawn: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `Model.forward` beside pixels and dial."""
        return {
            "decode": tuple(self.model.streams) if self.seen else self.trained,
            "estimate": self.trained if any(phase[:2]) else (),
            "noise": drawn or None,
        }

    def loss(
        self, output: ModelOutput, rgb: Tensor, dial: Tensor, phase: tuple[bool, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is descended and the log's figures."""
        x, x_hat = planes_of(self.model, rgb, output, self.trained)
        seen = {}
        if self.seen:
            decoded = self.model.join({key: s.x_hat.float() for key, s in output.streams.items()})
            original = self.model.join(self.model.planes(rgb))  # a luma model's is grey
            seen = {name: DISTORTIONS[name](original, decoded) for name in self.seen}
        pixels = rgb.shape[-1] * rgb.shape[-2]
        bpp = {key: output.streams[key].estimated_bits / pixels for key in self.trained}
        terms = rate_distortion_loss(x, x_hat, bpp, self.model.lmbda(dial), self.recipe.loss, seen)
        row = log_row(terms, x, x_hat) | {name: value.mean() for name, value in seen.items()}
        return terms.total, row | {f"estimated_bpp_{key}": value.mean() for key, value in bpp.items()}


OBJECTIVES: dict[str, type[BinaryObjective] | type[ScalarObjective]]
OBJECTIVES = {"binary": BinaryObjective, "scalar": ScalarObjective}
