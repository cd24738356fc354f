"""The entropy coder's context models, in float for training; `bits` runs them as integers.

A bit's log-odds depend on the bits before it at its own position (a triangle of weights), on a
hidden state that gathers the neighbourhood, and on states of the streams that were coded before.
The state's linear part starts as "what the bits so far say about the coefficients".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mcml.base.errors import DataError
from mcml.codec.order import SCALE_BITS, TAPS, probability_table


class ContextModel(nn.Module):
    """Log-odds of a stream's bits, group by group and lattice by lattice."""

    def __init__(self, groups: Tensor, hidden: int, inherited: Sequence[int] = ()) -> None:
        """Start with every bit's odds even.

        Args:
            groups: (n,) each channel's group from 1, non-decreasing.
            hidden: H, size of the state.
            inherited: sizes of the states of the streams that were coded before.
        """
        super().__init__()
        n, count = len(groups), int(groups.max())
        self.groups = tuple(torch.bincount(groups.cpu(), minlength=count + 1)[1:].tolist())
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(TAPS), n, hidden, generator=generator)
        self.gather = nn.Parameter(0.3 * noise / (len(TAPS) * n) ** 0.5)
        self.level_gather = nn.Parameter(torch.zeros(len(TAPS), hidden))
        self.state_bias = nn.Parameter(torch.zeros(hidden))
        self.group_bias = nn.Parameter(0.5 * torch.randn(count, hidden, generator=generator))
        self.readout = nn.Parameter(torch.zeros(n, 2 * hidden))
        self.before = nn.Parameter(torch.zeros(n, n))
        self.bias = nn.Parameter(torch.zeros(n))
        self.inherit = nn.ParameterList(
            [nn.Parameter(0.3 * torch.randn(s, hidden, generator=generator) / s**0.5) for s in inherited]
        )
        self.register_buffer("triangle", torch.ones(n, n).tril(-1), persistent=False)

    def forward(
        self, code: Tensor, level: Tensor | None = None, states: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return log-odds of a one (B, h, w, n) and the state after the last bit (B, h, w, H).

        Args:
            code: (B, h, w, n) masked bits in {-1, 0, +1}.
            level: (B, h, w) 2 Q - (L - 1) where the map is adaptive, 0 where it is uniform.
            states: (B, h, w, H') of the streams that were coded before.
        """
        height, width = code.shape[1:3]
        padded = nn.functional.pad(code, (0, 0, 1, 1, 1, 1))
        state = self.state_bias.expand(*code.shape[:3], -1)
        if level is not None:
            around = nn.functional.pad(level, (1, 1, 1, 1))
            near = [around[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in TAPS]
            state = state + torch.stack(near, dim=-1) @ self.level_gather
        for weight, other in zip(self.inherit, states, strict=True):
            state = state + torch.relu(other) @ weight
        rows = torch.arange(height, device=code.device) % 2
        columns = torch.arange(width, device=code.device) % 2
        lattice = rows[:, None] * 2 + columns[None, :]  # 0, 2 (0, 1 columns), 3, 1
        sees_cross = (rows[:, None] != columns[None, :]).to(code.dtype)[None, :, :, None]
        sees_diagonal = ((lattice == 3) | (lattice == 2)).to(code.dtype)[None, :, :, None]
        direct = code @ (self.before * self.triangle).T + self.bias
        logits, begin = [], 0
        for g, size in enumerate(self.groups):
            end = begin + size
            bits = padded[..., begin:end]
            shifted = [bits[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in TAPS]
            weight = self.gather[:, begin:end]
            cross = torch.cat(shifted[1:5], dim=-1) @ weight[1:5].flatten(0, 1)
            diagonal = torch.cat(shifted[5:], dim=-1) @ weight[5:].flatten(0, 1)
            seen = state + sees_cross * cross + sees_diagonal * diagonal
            features = torch.cat([seen, torch.relu(seen + self.group_bias[g])], dim=-1)
            logits.append(direct[..., begin:end] + features @ self.readout[begin:end].T)
            state = state + shifted[0] @ weight[0] + cross + diagonal
            begin = end
        return torch.cat(logits, dim=-1), state

    @torch.no_grad()
    def take(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take over integers of `export`, which then gives them again; `DataError` if sizes differ."""
        for name, weight in self.named_parameters():
            value = torch.from_numpy(tensors[name.replace("inherit.", "inherit_")].astype(np.float64))
            if value.shape != weight.shape:
                raise DataError(f"{name} is {tuple(value.shape)}, expected {tuple(weight.shape)}")
            weight.copy_(value / 2.0 ** (SCALE_BITS * (1 + (name == "bias"))))

    @torch.no_grad()
    def export(self) -> dict[str, np.ndarray]:
        """Return the weights as integers, by the names that `bits.BitCoder` expects."""

        def whole(value: Tensor, kind: type, bits: int = SCALE_BITS) -> np.ndarray:
            limits = np.iinfo(kind)
            rounded = (value.detach().double() * 2**bits).round().clamp(limits.min, limits.max)
            return rounded.cpu().numpy().astype(kind)

        tensors = {
            "group_sizes": np.array(self.groups, np.int32),
            "gather": whole(self.gather, np.int16),
            "level_gather": whole(self.level_gather, np.int16),
            "state_bias": whole(self.state_bias, np.int32),
            "group_bias": whole(self.group_bias, np.int32),
            "readout": whole(self.readout, np.int16),
            "before": whole(self.before * self.triangle, np.int16),
            "bias": whole(self.bias, np.int32, 2 * SCALE_BITS),
            "table": probability_table(),
        }
        for i, weight in enumerate(self.inherit):
            tensors[f"inherit_{i}"] = whole(weight, np.int16)
        return tensors
