"""Train the entropy coder's context models on a codec's frozen bits.

Luma's model comes first; colour's use its state as it then is, Cr's also Cb's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcml.base import STRIDE
from mcml.base.errors import DataError
from mcml.codec.context_model import ContextModel
from mcml.codec.order import LEVEL_PASSES, ONE, SPREADS, level_context, level_passes
from mcml.model.model import Model
from mcml.model.settings import DIAL_RANGE
from mcml.model.validate import to_tensor
from mcml.model.weights import load_into, load_tensors, save_tensors
from mcml.training.processes import caught_signals

HIDDEN = {"Y": 96, "RGB": 96, "Cb": 48, "Cr": 48}
BITS_PER_NAT = 1 / math.log(2)
BF16_UNTIL = 0.75  # share of the budget; the rest in float32, as integers will round


class FrozenBits:
    """What a codec's encoders make of photographs: packed bits and importance logits by stream."""

    def __init__(self, model: Model, images: Sequence[np.ndarray], tile_px: int = 1024) -> None:
        """Encode all images, in tiles that bound the memory; edges of less than a square are cut off."""
        self.config = model.config
        self.tiles: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
        for image in images:
            for y in range(0, image.shape[0] - STRIDE + 1, tile_px):
                for x in range(0, image.shape[1] - STRIDE + 1, tile_px):
                    tile = image[y : y + tile_px, x : x + tile_px]
                    tile = tile[: tile.shape[0] // STRIDE * STRIDE, : tile.shape[1] // STRIDE * STRIDE]
                    if tile.size:
                        self.tiles.append(_encode(model, tile))

    def sample(
        self, count: int, side: int, generator: np.random.Generator
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return bits (count, side, side, n) in {0, 1} and logits (count, side, side) by stream."""
        sizes = np.array([t[self.config.streams[0]][1].shape for t in self.tiles])
        fit = np.flatnonzero((sizes >= side).all(axis=1))
        if not len(fit):
            raise DataError(f"no photograph has {side * STRIDE} x {side * STRIDE} pixels")
        chance = sizes[fit].prod(axis=1) / sizes[fit].prod(axis=1).sum()
        found: dict[str, list] = {key: [] for key in self.config.streams}
        for i in generator.choice(fit, count, p=chance):
            y, x = (int(generator.integers(s - side + 1)) for s in sizes[i])
            for key, (bits, logit) in self.tiles[i].items():
                n = self.config.stream(key).code_channels
                window = np.unpackbits(bits[y : y + side, x : x + side], axis=-1, count=n)
                found[key].append((window, logit[y : y + side, x : x + side].astype(np.float32)))
        return {
            key: tuple(torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
            for key, pairs in found.items()
        }


@torch.no_grad()
def _encode(model: Model, image: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    device = model.rate_slope.device
    found = {}
    for key, plane in model.planes(to_tensor(image).to(device)).items():
        bits, p = model.streams[key].encode(plane, torch.zeros(1, device=device))
        logit = torch.logit(p.double(), eps=1e-9)[0, 0].float()
        packed = np.packbits(bits[0].permute(1, 2, 0).byte().cpu().numpy(), axis=-1)
        found[key] = (packed, logit.cpu().numpy().astype(np.float16))
    return found


class EntropyTrainer:
    """Context models of all streams of a model, and their training."""

    def __init__(
        self, model: Model, bits: FrozenBits, *, hidden: dict[str, int] = HIDDEN, seed: int = 0
    ) -> None:
        self.model, self.bits = model, bits
        self.device = model.rate_slope.device
        self.stopped = False  # by a signal
        self.draws = np.random.default_rng(seed)
        self.contexts: dict[str, ContextModel] = {}
        for key, stream in model.streams.items():
            earlier = [hidden[k] for k in self.contexts]
            context = ContextModel(stream.groups.cpu(), hidden[key], earlier).to(self.device)
            with torch.no_grad():  # what training of the codec has found at a position itself
                context.before.copy_(stream.bit_model.causal.weight[:, :, 1, 1] * context.triangle)
                context.bias.copy_(stream.bit_model.causal.bias)
                warm_start(context, stream)
            self.contexts[key] = context

    def draw(
        self, count: int, side: int, whole: bool = True
    ) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return bits, mask and code (B, h, w, n) and the level field (B, h, w) by stream.

        Half of the samples are wholly open, a quarter is flat at some level, dithered, and a quarter
        adaptive. Wholly open ones train every flat level of the first stream at once, since groups see
        only earlier ones. Without them (`whole` false) three quarters are flat: colour meets luma as
        far open as in a file of the same dial.
        """
        found = {}
        draws = self.draws
        kind = torch.from_numpy(draws.choice([0, 0, 1, 2] if whole else [1, 1, 1, 2], count))
        dial = torch.from_numpy(draws.uniform(*DIAL_RANGE, count)).float()[:, None, None]
        dither = torch.from_numpy(draws.random((count, side, side))).float()
        for key, (bits, logit) in self.bits.sample(count, side, draws).items():
            stream = self.model.streams[key]
            top = stream.config.levels - 1
            flat = (torch.sigmoid(dial) * stream.config.levels - 0.5 + dither).floor().clamp(0, top)
            adaptive = (torch.sigmoid(logit + dial) * stream.config.levels).floor().clamp(0, top)
            k = kind[:, None, None]
            level = torch.where(k == 0, float(top), torch.where(k == 1, flat, adaptive))
            mask = (stream.groups.cpu() <= level[..., None]).float()
            field = torch.where(k == 2, 2 * level - top, 0.0) / 8
            batch = (bits.float(), mask, (2 * bits.float() - 1) * mask, field)
            found[key] = tuple(value.to(self.device) for value in batch)
        return found

    def losses(self, batch: dict[str, Any], keys: Sequence[str]) -> dict[str, Tensor]:
        """Return bits a position of streams; those before them give their states, untrained."""
        states: list[Tensor] = []
        found = {}
        for key, context in self.contexts.items():
            bits, mask, code, field = batch[key]
            with torch.set_grad_enabled(torch.is_grad_enabled() and key in keys):
                logits, state = context(code, field, states)
            if key in keys:
                nats = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits.float(), bits, reduction="none"
                )
                found[key] = (nats * mask).sum() / mask[..., 0].numel() * BITS_PER_NAT
            states.append(state.detach())
            if all(k in found for k in keys):
                break
        return found

    def fit(
        self, keys: Sequence[str], *, seconds: float = 0.0, steps: int = 0, batch: int = 8, side: int = 24,
        lr: float = 2e-3, bf16: bool = False, report: Callable[[dict[str, Any]], None] | None = None,
    ) -> int:  # fmt: skip
        """Train streams' context models until the seconds or steps are spent; return the steps."""
        params = [p for key in keys for p in self.contexts[key].parameters()]
        whole = self.model.config.streams[0] in keys
        optimizer = torch.optim.Adam(params, lr=lr, betas=(0.9, 0.99))
        averaged = [p.detach().clone() for p in params]
        began, step, spent = time.monotonic(), 0, 0.0
        sums: dict[str, float] = {}
        with caught_signals() as stop:
            while spent < 1 and not stop:
                rate = 0.505 + 0.495 * math.cos(math.pi * spent)
                optimizer.param_groups[0]["lr"] = lr * rate * min(1.0, (step + 1) / 50)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16 and spent < BF16_UNTIL):
                    found = self.losses(self.draw(batch, side, whole), keys)
                optimizer.zero_grad(set_to_none=True)
                sum(found.values()).backward()
                torch.nn.utils.clip_grad_norm_(params, 5.0)
                optimizer.step()
                step += 1
                decay = min(0.995, step / (step + 10))
                torch._foreach_lerp_(averaged, [p.detach() for p in params], 1 - decay)
                for key, value in found.items():
                    sums[key] = sums.get(key, 0.0) + float(value.detach())
                passed = time.monotonic() - began
                spent = max(step / steps if steps else 0.0, passed / seconds if seconds else 0.0)
                if report and (step % 50 == 0 or spent >= 1):
                    count = step % 50 or 50
                    report({"step": step, "seconds": round(passed, 1), "spent": spent}
                           | {f"bits_{k}": v / count for k, v in sums.items()})  # fmt: skip
                    sums = {}
        self.stopped = bool(stop)
        with torch.no_grad():
            for p, value in zip(params, averaged, strict=True):
                p.copy_(value)
        return step

    def save(self, folder: Path) -> None:
        """Write the context models, to go on from."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{k}.{n}": v for k, c in self.contexts.items() for n, v in c.state_dict().items()}
        save_tensors(folder, "contexts", tensors)

    def load(self, folder: Path) -> bool:
        """Take over what `save` wrote; return whether there was anything."""
        if not (folder / "contexts-0.safetensors").exists():
            return False
        tensors = load_tensors(folder, "contexts")
        for key, context in self.contexts.items():
            own = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith(f"{key}.")}
            load_into(context, own, str(folder))
        return True

    def export(self, level_tiles: int = 64) -> dict[str, np.ndarray]:
        """Return all integer tensors, by "stream.name"."""
        tensors: dict[str, np.ndarray] = {}
        for key, context in self.contexts.items():
            tensors |= {f"{key}.{name}": value for name, value in context.export().items()}
            if self.model.streams[key].importance is not None:
                tensors[f"{key}.levels"] = self.level_tables(key, level_tiles)
        return tensors

    def level_tables(self, key: str, tiles: int) -> np.ndarray:
        """Count levels by pass, spread and predicted level: (P, S, L, L) uint16 that sum to 65536."""
        levels = self.model.config.stream(key).levels
        counts = np.zeros((LEVEL_PASSES, len(SPREADS) + 1, levels, levels))
        for i in self.draws.choice(len(self.bits.tiles), tiles):
            logit = self.bits.tiles[i][key][1].astype(np.float32)
            for dial in self.draws.uniform(*DIAL_RANGE, 4):
                p = 1 / (1 + np.exp(-(logit + dial)))
                level = np.clip(np.floor(p * levels), 0, levels - 1).astype(np.int64)
                middle = int(np.median(level))
                for number, rows, columns, near in level_passes(*level.shape):
                    if near:
                        predicted, spread = level_context(np.stack([level[pair] for pair in near]), levels)
                    else:
                        predicted, spread = np.full(len(rows), middle), np.zeros(len(rows), np.int64)
                    np.add.at(counts[number], (spread, predicted, level[rows, columns]), 1)
        return normalised(counts)


def normalised(counts: np.ndarray) -> np.ndarray:
    """Smooth counts along their last axis and scale them to whole numbers from 1 that sum to 65536."""
    levels = counts.shape[-1]
    step = np.abs(np.arange(levels)[:, None] - np.arange(levels)[None, :])
    prior = 0.5 ** (step / 1.5)
    prior /= prior.sum(axis=-1, keepdims=True)  # around the predicted level
    blurred = counts + 4 * prior + 0.02
    share = blurred / blurred.sum(axis=-1, keepdims=True)
    whole = np.floor(share * (ONE - levels)).astype(np.int64) + 1
    rest = ONE - whole.sum(axis=-1)
    np.put_along_axis(whole, whole.argmax(-1)[..., None], whole.max(-1, keepdims=True) + rest[..., None], -1)
    return whole.astype(np.uint16)


@torch.no_grad()
def warm_start(context: ContextModel, stream: Any) -> None:
    """Let the state's units begin as sums of nearby coefficients, or of their magnitudes.

    Threshold codes alone tell which coefficient and threshold a bit asks for; the rows of other
    codes' last convolution are read the same way and give a start that is no worse than noise.
    """
    weight = stream.encoder.code.weight[:, :, 0, 0].detach().cpu()
    size, coefficient = weight.abs().max(dim=1)
    threshold = -stream.encoder.code.bias.cpu() / size.clamp(min=1e-6)
    n, hidden = context.gather.shape[1:]
    value = torch.zeros(n)
    for j in coefficient.unique():
        rows = torch.nonzero(coefficient == j)[:, 0]
        order = rows[threshold[rows].argsort()]
        t = threshold[order].clamp(-4, 4)
        ends = torch.cat([t[:1] - 0.5, (t[1:] + t[:-1]) / 2, t[-1:] + 0.5])
        value[order] = (ends[1:] - ends[:-1]).clamp(min=0.02)
    generator = torch.Generator().manual_seed(1)
    count = weight.shape[1]
    mix = torch.randn(hidden, count, generator=generator) * (
        torch.rand(hidden, count, generator=generator) < 0.15
    )
    mix[torch.arange(hidden), torch.arange(hidden) % count] = 1.5
    signs = torch.ones(hidden, n)
    signs[hidden // 2 :] = torch.sign(threshold)  # magnitudes: a bit over a negative threshold counts down
    mix[hidden // 2 :] = mix[hidden // 2 :].abs() * 0.6
    near = torch.tensor([1.0] + [0.6] * 4 + [0.35] * 4)
    place = near[:, None] * (0.6 + 0.8 * torch.rand(9, hidden, generator=generator))
    start = 0.3 * place[:, None, :] * (mix[:, coefficient] * value * signs).T[None]
    context.gather.copy_(start)
