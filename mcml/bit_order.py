"""Order a threshold code's bits anew, by the error that each saves per bit that it really costs.

The design of the code guesses costs from two neighbours; trained context models know them. Bits of
one coefficient keep their order, so encoders and decoders stay what they were.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mcml.context_model import ContextModel
from mcml.models import Model, Stream
from mcml.neural import analyse
from mcml.validation import to_tensor

PRICE = 0.01  # bits a position on top of a bit's cost


@torch.no_grad()
def costs_and_savings(
    model: Model, contexts: dict[str, ContextModel], images: Sequence[np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Measure each bit of each stream.

    Returns:
        By stream: (n,) coefficient, (n,) coded bits a position, (n,) square error saved a position
        by telling a cell's two halves apart.
    """
    spent: dict[str, list[np.ndarray]] = {key: [] for key in model.streams}
    values: dict[str, list[Tensor]] = {key: [] for key in model.streams}
    for image in images:
        cut = image[: image.shape[0] // 8 * 8, : image.shape[1] // 8 * 8]
        states: list[Tensor] = []
        device = model.rate_slope.device
        planes = model.planes(to_tensor(cut).to(device))
        for key, (bits, _) in analyse(model, cut).items():
            whole = torch.from_numpy(bits)[None].float().to(device)
            logits, state = contexts[key](2 * whole - 1, None, states)
            states.append(state)
            nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, whole, reduction="none")
            spent[key].append((nats.mean(dim=(0, 1, 2)) / np.log(2)).cpu().numpy())
            values[key].append(model.streams[key].encoder.stem(planes[key])[0].flatten(1).cpu())
    found = {}
    for key, stream in model.streams.items():
        coefficient, threshold = thresholds(stream)
        x = torch.cat(values[key], dim=1).numpy()
        unit = 1 / stream.encoder.stem.weight.flatten(1).norm(dim=1).square().cpu().numpy()
        saved = np.array(_savings(x, coefficient, threshold)) * unit[coefficient]
        found[key] = (coefficient, np.mean(spent[key], axis=0), saved)
    return found


def thresholds(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Return which feature each bit asks about, and above which value it is one: (n,) each."""
    weight = stream.encoder.code.weight[:, :, 0, 0].detach().cpu().numpy()
    coefficient = np.abs(weight).argmax(axis=1)
    slope = weight[np.arange(len(weight)), coefficient]
    return coefficient, -stream.encoder.code.bias.detach().cpu().numpy() / slope


def _savings(x: np.ndarray, coefficient: np.ndarray, threshold: np.ndarray) -> list[float]:
    ordered = np.sort(x, axis=1)
    sums = np.concatenate([np.zeros((len(x), 1)), np.cumsum(ordered, axis=1, dtype=np.float64)], axis=1)
    cuts: dict[int, list[int]] = {}
    found = []
    for j, t in zip(coefficient, threshold, strict=True):
        ends = cuts.setdefault(int(j), [0, x.shape[1]])
        at = int(np.searchsorted(ordered[j], t, side="right"))
        low = max(e for e in ends if e <= at)
        high = min((e for e in ends if e > at), default=x.shape[1])
        below, above = at - low, high - at
        saved = 0.0
        if below and above:
            gap = (sums[j, high] - sums[j, at]) / above - (sums[j, at] - sums[j, low]) / below
            saved = gap**2 * below * above / (below + above) / x.shape[1]
        ends.append(at)
        found.append(float(saved))
    return found


def best_order(coefficient: np.ndarray, cost: np.ndarray, saved: np.ndarray) -> np.ndarray:
    """Return (n,) bits in their new order: at each step the coefficient whose next bits save most.

    A coefficient's worth is the best average of savings over costs of any number of its next bits.
    """
    waiting = {int(j): list(np.flatnonzero(coefficient == j)) for j in np.unique(coefficient)}

    def worth(bits: list[int]) -> float:
        paid = np.cumsum(cost[bits] + PRICE)
        return float((np.cumsum(saved[bits]) / paid).max())

    scores = {j: worth(bits) for j, bits in waiting.items()}
    order = []
    while scores:
        j = max(scores, key=lambda name: scores[name])
        order.append(waiting[j].pop(0))
        if waiting[j]:
            scores[j] = worth(waiting[j])
        else:
            del scores[j]
    return np.array(order)


def equal_groups(cost: np.ndarray, count: int) -> list[int]:
    """Cut bits into `count` groups of about equal cost, each of at least one bit."""
    total, n, cuts = np.cumsum(cost), len(cost), [0]
    for i in range(1, count):
        at = int(np.searchsorted(total, i / count * total[-1])) + 1
        cuts.append(min(max(at, cuts[-1] + 1), n - (count - i)))
    return [b - a for a, b in zip(cuts, [*cuts[1:], n], strict=True)]


@torch.no_grad()
def reorder(model: Model, key: str, order: np.ndarray, sizes: Sequence[int]) -> None:
    """Permute a stream's bits in every weight that knows them, and set its groups."""
    at = torch.from_numpy(order).to(model.rate_slope.device)
    stream = model.streams[key]
    code, cells, bits = stream.encoder.code, stream.decoder.entry.cells, stream.bit_model
    code.weight.copy_(code.weight[at])
    code.bias.copy_(code.bias[at])
    cells.weight.copy_(cells.weight[:, at])
    bits.causal.weight.copy_(bits.causal.weight[at][:, at])
    bits.causal.bias.copy_(bits.causal.bias[at])
    bits.beside.copy_(bits.beside[at])
    bits.level.weight.copy_(bits.level.weight[:, at])
    if bits.other is not None:
        bits.other.weight.copy_(bits.other.weight[at])
    stream.set_groups(sizes)
    if key != "Y":
        return
    for color in ("Cb", "Cr"):
        if color not in model.streams:
            continue
        other, borrowed = model.streams[color].bit_model.other, model.streams[color].decoder.luma
        other.weight.copy_(other.weight[:, at])
        if borrowed is not None and model.config.fuse == "codes":
            borrowed.cells.weight.copy_(borrowed.cells.weight[:, at])


@torch.no_grad()
def reorder_context(context: ContextModel, order: np.ndarray, sizes: Sequence[int]) -> ContextModel:
    """Return a context model for the new order, to be trained on; weights of swapped pairs are lost."""
    at = torch.from_numpy(order)
    groups = torch.repeat_interleave(torch.arange(1, len(sizes) + 1), torch.tensor(list(sizes)))
    found = ContextModel(groups, context.gather.shape[2], [len(w) for w in context.inherit])
    context = copy.deepcopy(context).cpu()
    found.load_state_dict(context.state_dict())
    found.gather.copy_(context.gather[:, at])
    found.readout.copy_(context.readout[at])
    found.before.copy_(context.before[at][:, at] * found.triangle)
    found.bias.copy_(context.bias[at])
    return found
