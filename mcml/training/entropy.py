"""Train the entropy coder's context models on a codec's frozen bits.

The codec is finished: its encoders' bits are taken from photographs once. What is learned is how
likely each bit is a one, given the bits that a decoder has by then, and the loss is that ideal code
length itself. Luma's model learns first; colour's use its state as it then is, Cr's also Cb's, unless
`condition` leaves that out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcml.base import STRIDE
from mcml.base.errors import DataError, UsageError, choose
from mcml.codec.context_model import ContextModel
from mcml.codec.order import LEVEL_PASSES, ONE, SPREADS, level_context, level_passes
from mcml.codec.transforms import analysis_transform
from mcml.model.model import Model, Stream
from mcml.model.quantization import importance_levels, masked_bits
from mcml.model.rate import bits_of
from mcml.model.settings import DIAL_RANGES
from mcml.training.run import Report, Run

HIDDEN = {"Y": 96, "RGB": 96, "Cb": 48, "Cr": 48}
LUMA_SHARE = 0.6  # of the budget; the rest is for colour
BF16_UNTIL = 0.75  # share of a part's budget; the rest in float32, as integers will round
WARMUP_STEPS = 50
CONDITIONS = {"luma": 0, "color": 1, "none": 2}  # how many of the streams before do not tell colour's models


class FrozenBits:
    """What a codec's encoders make of photographs: packed bits and importance logits by stream."""

    def __init__(self, model: Model, images: Sequence[np.ndarray], tile_px: int = 1024) -> None:
        """Encode all images, in tiles that bound the memory; edges of less than a square are cut off."""
        self.config = model.config
        self.tiles: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
        for image in images:
            height, width = (side // STRIDE * STRIDE for side in image.shape[:2])
            for y, x in product(range(0, height, tile_px), range(0, width, tile_px)):
                streams = analysis_transform(model, image[:height, :width][y : y + tile_px, x : x + tile_px])
                packed = {k: (np.packbits(b, axis=-1), z.astype(np.float16)) for k, (b, z) in streams.items()}
                self.tiles.append(packed)

    def sample(self, count: int, side: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
        """Return bits (count, side, side, n) in {0, 1} and logits (count, side, side) by stream."""
        sizes = np.array([t[self.config.streams[0]][1].shape for t in self.tiles]).reshape(-1, 2)
        fit = np.flatnonzero((sizes >= side).all(axis=1))
        if not len(fit):
            raise DataError(f"no photograph has {side * STRIDE} x {side * STRIDE} pixels: give larger ones")
        areas = torch.from_numpy(sizes[fit].prod(axis=1)).double()
        windows: dict[str, list] = {key: [] for key in self.config.streams}
        for i in fit[torch.multinomial(areas, count, replacement=True, generator=generator).numpy()]:
            y, x = (int(torch.randint(int(s) - side + 1, (), generator=generator)) for s in sizes[i])
            for key, (bits, logit) in self.tiles[i].items():
                n = self.config.stream(key).code_channels
                window = np.unpackbits(bits[y : y + side, x : x + side], axis=-1, count=n)
                windows[key].append((window, logit[y : y + side, x : x + side].astype(np.float32)))
        stacked = {key: map(np.stack, zip(*pairs, strict=True)) for key, pairs in windows.items()}
        return {key: tuple(map(torch.from_numpy, arrays)) for key, arrays in stacked.items()}


class EntropyTrainer(Run):
    """Context models of all streams of a model: call `fit`, then `export` from `contexts`."""

    def __init__(
        self, model: Model, bits: FrozenBits, *, steps: int = 0, minutes: float = 0.0, joint: bool = False,
        batch: int = 8, side: int = 24, lr: float = 2e-3, bf16: bool = False,
        hidden: Mapping[str, int] = HIDDEN, seed: int = 0, condition: str = "luma",
        kept: Mapping[str, np.ndarray] = {}, run_dir: Path | None = None,
        sources: Mapping[str, str] = {}, report: Report | None = None,
    ) -> None:  # fmt: skip
        """Prepare the context models, or resume what the folder holds.

        Args:
            model: any variant; it stays as it is. `bits` are of its encoders.
            steps, minutes, run_dir, report: see `Run`; luma takes `LUMA_SHARE` of the budget.
            joint: all streams learn at once instead.
            batch: crops a step, `side` positions wide and high; `seed` is theirs and the dials'.
            lr: Adam's, after a warm-up; a cosine takes it to a hundredth, in each part.
            bf16: autocast in the first three quarters of a part.
            hidden: size of the state by stream.
            condition: what tells colour's models: "luma" (its state and, Cr's, Cb's), "color" (Cb's alone) or
                "none". What does not has inherited weights of 0, so files stay of version 1.
            kept: integers by "stream.name", as `export` gives them, of streams that do not learn.
            sources: "NAME@SHA256" of "--model", "--data" and "--like".

        Raises:
            UsageError: for a condition of a model without colour, or if no stream is left to learn.
        """
        left_out = CONDITIONS[choose("condition", condition, CONDITIONS)]
        settings = {"--steps": steps, "--minutes": minutes, "batch": batch, "side": side, "--lr": lr,
                    "--bf16": bf16, "joint": joint, "hidden": dict(hidden), "seed": seed,
                    "--condition": condition}  # fmt: skip
        super().__init__(run_dir, {**settings, **sources}, steps, minutes, report=report)
        self.model, self.bits, self.device = model, bits, model.rate_slope.device
        self.batch, self.side, self.lr, self.bf16 = batch, side, lr, bf16
        self.draws = {"crops": torch.Generator().manual_seed(seed)}
        self.learner = self.contexts = nn.ModuleDict()
        self.kept, own = dict(kept), {key: {} for key in model.streams}
        for name, value in kept.items():
            key, _, rest = name.partition(".")
            own[key][rest] = value
        for key, stream in model.streams.items():
            context = ContextModel(stream.groups.cpu(), hidden[key], [hidden[k] for k in self.contexts])
            warm_start(context, stream)
            for weight in list(context.inherit)[:left_out]:
                nn.init.zeros_(weight.requires_grad_(False))
            if own[key]:
                context.take(own[key])
            self.contexts[key] = context.to(self.device)
        self.averaged = copy.deepcopy(self.contexts).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.contexts.parameters(), betas=(0.9, 0.99))
        keys = [key for key in own if not own[key]]
        if (left_out and len(own) == 1) or not keys:
            raise UsageError("there is no colour to tell of luma or not" if keys else "no stream is to learn")
        # begin and end of parts, as shares of the budget, and what learns then
        self.parts = [(0.0, LUMA_SHARE, keys[:1]), (LUMA_SHARE, 1.0, keys[1:])]
        if joint or len(keys) == 1 or kept:
            self.parts = [(0.0, 1.0, keys)]
        self.columns = ["loss", "gradient_norm", *(f"bits_{key}" for key in keys)]
        self.resume()

    def draw(self, count: int, side: int, whole: bool = True) -> dict[str, tuple[Tensor, ...]]:
        """Return bits, mask and code (B, h, w, n) and the level field (B, h, w) by stream.

        Half of the samples are wholly open, a quarter is uniform at some level, dithered, and a quarter
        adaptive. Wholly open ones train every uniform level of the first stream at once, since groups
        see only earlier ones. Without them (`whole` false) three quarters are uniform: colour meets
        luma as far open as in a file of the same dial.
        """
        draws, batch, (low, high) = self.draws["crops"], {}, DIAL_RANGES["binary"]
        kinds = torch.tensor([0, 0, 1, 2] if whole else [1, 1, 1, 2])
        kind = kinds[torch.randint(4, (count, 1, 1), generator=draws)]
        dial = low + (high - low) * torch.rand(count, 1, 1, generator=draws)
        dither = torch.rand(count, side, side, generator=draws)
        for key, (bits, logit) in self.bits.sample(count, side, draws).items():
            stream = self.model.streams[key]
            levels = stream.config.levels
            uniform = torch.sigmoid(dial) + (dither - 0.5) / levels
            p = torch.where(kind == 0, 1.0, torch.where(kind == 1, uniform, torch.sigmoid(logit + dial)))
            level, mask = stream.mask(p.clamp(0, 1)[:, None].to(self.device))
            bits, mask = bits.to(self.device).float(), mask.permute(0, 2, 3, 1)
            field = torch.where(kind.to(self.device) == 2, 2 * level - (levels - 1), 0) / 8
            batch[key] = (bits, mask, masked_bits(bits, mask), field)
        return batch

    def losses(self, batch: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Tensor]:
        """Return bits a position of streams; those before them give their states, untrained."""
        states, spent = [], {}
        for key, context in self.contexts.items():
            bits, mask, code, field = batch[key]
            with torch.set_grad_enabled(key in keys):
                logits, state = context(code, field, states)
            states.append(state.detach())
            if key in keys:
                spent[key] = bits_of(logits, bits, mask).sum() / mask[..., 0].numel()
            if key == keys[-1]:
                break
        return spent

    def train_step(self) -> dict[str, Tensor]:
        """Descend the code length of the part at work; return bits a position by stream."""
        begin, end, keys = next(part for part in self.parts if self.progress() < part[1])
        spent, whole = (self.progress() - begin) / (end - begin), keys[0] == next(iter(self.contexts))
        params = [p for key in keys for p in self.contexts[key].parameters()]
        done = 1 + int(self.optimizer.state.get(params[0], {}).get("step", 0))  # steps of this part
        if done == 1 and not whole:
            self.finish()
            self.best = math.inf  # another loss
        rate = self.lr * min(1.0, done / WARMUP_STEPS) * (0.505 + 0.495 * math.cos(math.pi * spent))
        self.optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and spent < BF16_UNTIL):
            losses = self.losses(self.draw(self.batch, self.side, whole), keys)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)  # weights without a gradient stay as they are
        total.backward()
        norm = nn.utils.clip_grad_norm_(params, 5.0)
        self.optimizer.step()
        averaged = [p for key in keys for p in self.averaged[key].parameters()]
        torch._foreach_lerp_(averaged, [p.detach() for p in params], 1 - min(0.995, done / (done + 10)))
        return {"loss": total, "gradient_norm": norm} | {f"bits_{key}": v for key, v in losses.items()}

    def finish(self) -> None:
        """Let the weights be their average: colour builds on it, and it is what is exported."""
        self.contexts.load_state_dict(self.averaged.state_dict())

    def export(self, level_tiles: int = 64) -> dict[str, np.ndarray]:
        """Return all integer tensors, by "stream.name"."""
        tensors = {}
        for key, context in self.contexts.items():
            tensors |= {f"{key}.{name}": value for name, value in context.export().items()}
            if self.model.streams[key].importance is not None:
                tensors[f"{key}.levels"] = self.level_tables(key, level_tiles)
        return tensors | self.kept

    def level_tables(self, key: str, tiles: int) -> np.ndarray:
        """Count levels by pass, spread and predicted level: (P, S, L, L) uint16 that sum to 65536."""
        levels = self.model.config.stream(key).levels
        counts = np.zeros((LEVEL_PASSES, len(SPREADS) + 1, levels, levels))
        draws, (low, high) = self.draws["crops"], DIAL_RANGES["binary"]
        for i in torch.randint(len(self.bits.tiles), (tiles,), generator=draws):
            logit = torch.from_numpy(self.bits.tiles[i][key][1]).float()
            for dial in low + (high - low) * torch.rand(4, generator=draws):
                level = importance_levels(torch.sigmoid(logit + dial), levels).numpy()
                middle = int(np.median(level))
                for number, rows, columns, near in level_passes(*level.shape):
                    context = level_context(level, middle, rows, near)
                    np.add.at(counts[number], (*context, level[rows, columns]), 1)
        return normalised(counts)


def normalised(counts: np.ndarray) -> np.ndarray:
    """Smooth counts along their last axis and scale them to whole numbers from 1 that sum to 65536."""
    levels = counts.shape[-1]
    step = np.abs(np.arange(levels)[:, None] - np.arange(levels)[None, :])
    prior = 0.5 ** (step / 1.5)  # around the predicted level
    share = counts + 4 * prior / prior.sum(axis=-1, keepdims=True) + 0.02
    whole = np.floor(share / share.sum(axis=-1, keepdims=True) * (ONE - levels)).astype(np.int64) + 1
    rest = ONE - whole.sum(axis=-1, keepdims=True)  # goes to the likeliest
    np.put_along_axis(whole, whole.argmax(-1)[..., None], whole.max(-1, keepdims=True) + rest, -1)
    return whole.astype(np.uint16)


@torch.no_grad()
def warm_start(context: ContextModel, stream: Stream) -> None:
    """Begin with the codec's own odds at a position, and a state that sums nearby coefficients.

    Half of its units sum magnitudes. Threshold codes alone tell which coefficient a bit asks about;
    other codes' last convolution, read the same way, gives a start that is no worse than noise.
    """
    context.before.copy_(stream.bit_model.causal.weight[:, :, 1, 1].cpu() * context.triangle)
    context.bias.copy_(stream.bit_model.causal.bias)
    weight = stream.encoder.code.weight[:, :, 0, 0].cpu()
    size, coefficient = weight.abs().max(dim=1)
    threshold = -stream.encoder.code.bias.cpu() / size.clamp(min=1e-6)
    n, hidden = context.gather.shape[1:]
    value = torch.zeros(n)
    for j in coefficient.unique():
        rows = torch.nonzero(coefficient == j)[:, 0]
        order = rows[threshold[rows].argsort()]
        t = threshold[order].clamp(-4, 4)
        ends = torch.cat([t[:1] - 0.5, (t[1:] + t[:-1]) / 2, t[-1:] + 0.5])
        value[order] = ends.diff().clamp(min=0.02)
    generator, count = torch.Generator().manual_seed(1), weight.shape[1]
    mix = torch.randn(hidden, count, generator=generator)
    mix *= torch.rand(hidden, count, generator=generator) < 0.15
    mix[torch.arange(hidden), torch.arange(hidden) % count] = 1.5
    signs = torch.ones(hidden, n)
    signs[hidden // 2 :] = torch.sign(threshold)  # magnitudes: a bit over a negative threshold counts down
    mix[hidden // 2 :] = mix[hidden // 2 :].abs() * 0.6
    near = torch.tensor([1.0] + [0.6] * 4 + [0.35] * 4)
    place = near[:, None] * (0.6 + 0.8 * torch.rand(9, hidden, generator=generator))
    context.gather.copy_(0.3 * place[:, None, :] * (mix[:, coefficient] * value * signs).T[None])
