"""Estimated code lengths: what an ideal coder spends on importance levels and unmasked bits.

A linear context model with nothing hidden: it is trained on the codec's frozen bits beside
it, never moves the codec, and uses only what a decoder has at that moment. Estimates are
named `estimated_bpp` everywhere, never `bpp`: that word is for bytes of files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BITS_PER_NAT = 1 / math.log(2)


class BitModel(nn.Module):
    """Log-odds of each bit, linear in the bits before it.

    Order: bit by bit of the nested code, each in two checkerboard passes. Context of bit k
    at a position: bits before k there, the eight neighbours' bits of earlier groups, in
    the second pass the four neighbours' own bit k and the rest of its group, the
    importance level, and for a colour stream the bits of the streams before it.
    """

    def __init__(self, groups: Tensor, levels: int, context_channels: int = 0) -> None:
        """Prepare the causal masks.

        Args:
            groups: (n,) each channel's group from 1, non-decreasing.
            levels: L of the importance map.
            context_channels: channels of masked bits of other streams.
        """
        super().__init__()
        n = len(groups)
        self.causal = nn.Conv2d(n, n, 3, padding=1)
        self.beside = nn.Parameter(torch.zeros(n, n, 4))  # up, left, right, down; second pass only
        self.level = nn.Embedding(levels, n)
        self.other = nn.Conv2d(context_channels, n, 1, bias=False) if context_channels else None
        for tensor in self.parameters():
            nn.init.zeros_(tensor)
        self.register_buffer("causal_mask", torch.zeros(n, n, 3, 3), persistent=False)
        self.register_buffer("same_group", torch.zeros(n, n, 1), persistent=False)
        self.set_groups(groups)

    def set_groups(self, groups: Tensor) -> None:
        """Rebuild the causal masks for other groups of the same number of channels."""
        groups = groups.to(self.causal_mask.device)
        order = torch.arange(len(groups), device=groups.device)
        self.causal_mask[:] = (groups[None, :] < groups[:, None]).float()[:, :, None, None]
        self.causal_mask[:, :, 1, 1] = (order[None, :] < order[:, None]).float()
        self.same_group[:] = (groups[None, :] == groups[:, None]).float()[:, :, None]

    def forward(self, code: Tensor, level: Tensor, other: Tensor | None = None) -> Tensor:
        """Return log-odds of a one, (B, n, h, w).

        Args:
            code: (B, n, h, w) masked bits in {-1, 0, +1}.
            level: (B, h, w) int64 importance levels.
            other: (B, context_channels, h, w) masked bits of streams decoded before.
        """
        logits = functional.conv2d(code, self.causal.weight * self.causal_mask, self.causal.bias, padding=1)
        taps = code.new_zeros(*self.same_group.shape[:2], 9)
        taps = taps.index_copy(
            2, torch.tensor([1, 3, 5, 7], device=code.device), (self.beside * self.same_group).to(code.dtype)
        )
        beside = functional.conv2d(code, taps.view(*taps.shape[:2], 3, 3), padding=1)
        logits = logits + beside * checkerboard(*code.shape[-2:], code.device)
        logits = logits + self.level(level).permute(0, 3, 1, 2)
        return logits if self.other is None else logits + self.other(other)


class LevelModel(nn.Module):
    """Odds of each importance level given the mean of its left and upper neighbours.

    Both neighbours are known along anti-diagonals, so a coder needs h + w passes.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        table = torch.zeros(levels + 1, levels)  # the last row: no neighbour
        step = torch.arange(levels)
        table[:levels] = -0.7 * (step[:, None] - step[None, :]).abs()
        self.table = nn.Parameter(table)

    def forward(self, level: Tensor) -> Tensor:
        """Return nats a position, (B, h, w), of int64 levels (B, h, w)."""
        outside = functional.pad(level, (1, 0, 1, 0), value=-1)
        left, above = outside[:, 1:, :-1], outside[:, :-1, 1:]
        left, above = torch.where(left < 0, above, left), torch.where(above < 0, left, above)
        context = torch.where(left < 0, self.levels, (left + above + 1) // 2)
        odds = functional.log_softmax(self.table.float(), dim=1)
        return -odds[context, level]


def checkerboard(height: int, width: int, device: torch.device) -> Tensor:
    """Return 1 at the second pass's positions and 0 at the first's: (height, width)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return ((rows[:, None] + columns[None, :]) % 2).float()


def bits_of(logits: Tensor, bits: Tensor, mask: Tensor) -> Tensor:
    """Return the ideal length in bits of the unmasked bits, (B,), from (B, n, h, w) each."""
    nats = functional.binary_cross_entropy_with_logits(logits.float(), bits.float(), reduction="none")
    return (nats * mask).sum(dim=(1, 2, 3)) * BITS_PER_NAT
