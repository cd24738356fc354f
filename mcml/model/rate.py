"""Estimated code lengths: what an ideal coder spends on importance levels and unmasked bits.

A linear context model: trained beside the codec, which it never moves, on what a decoder has at that
moment. Estimates are named `estimated_bpp` everywhere, never `bpp`: that word is for bytes of files.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BITS_PER_NAT = 1 / math.log(2)


class BitModel(nn.Module):
    """Log-odds of each bit, linear in the bits before it.

    Order: bit by bit of the nested code, each in two checkerboard passes. Context of bit k at a position:
    bits before k there, the eight neighbours' bits of earlier groups, in the second pass the four
    neighbours' bit k, the importance level, and for a colour stream luma's bits there.
    """

    def __init__(self, groups: Tensor, levels: int, context_channels: int = 0) -> None:
        """Prepare for groups (n,) from 1, non-decreasing, and so many masked bits of other streams."""
        super().__init__()
        n = len(groups)
        self.causal = nn.Conv2d(n, n, 3, padding=1)
        self.beside = nn.Parameter(torch.zeros(n, 4))  # up, left, right, down; second pass only
        self.level = nn.Embedding(levels, n)
        self.other = nn.Conv2d(context_channels, n, 1, bias=False) if context_channels else None
        for tensor in self.parameters():
            nn.init.zeros_(tensor)
        self.register_buffer("causal_mask", torch.zeros(n, n, 3, 3), persistent=False)
        self.set_groups(groups)

    def set_groups(self, groups: Tensor) -> None:
        """Rebuild the causal masks for other groups of the same number of channels."""
        groups = groups.to(self.causal_mask.device)
        order = torch.arange(len(groups), device=groups.device)
        self.causal_mask[:] = (groups[None, :] < groups[:, None]).float()[:, :, None, None]
        self.causal_mask[:, :, 1, 1] = (order[None, :] < order[:, None]).float()

    def forward(self, code: Tensor, level: Tensor, other: Tensor | None = None) -> Tensor:
        """Return log-odds of a one, (B, n, h, w).

        From masked bits (B, n, h, w) in {-1, 0, +1}, importance levels (B, h, w) int64 and, in `other`,
        the masked bits (B, context_channels, h, w) of streams decoded before.
        """
        logits = functional.conv2d(code, self.causal.weight * self.causal_mask, self.causal.bias, padding=1)
        up, left, right, down = (tap[:, None, None] for tap in self.beside.to(logits.dtype).unbind(1))
        c = functional.pad(code.to(logits.dtype), (1, 1, 1, 1))
        beside = up * c[..., :-2, 1:-1] + left * c[..., 1:-1, :-2]
        beside = beside + right * c[..., 1:-1, 2:] + down * c[..., 2:, 1:-1]
        logits = logits + beside * checkerboard(*code.shape[-2:], code.device)
        logits = logits + self.level(level).permute(0, 3, 1, 2)
        return logits if self.other is None else logits + self.other(other)


class LevelModel(nn.Module):
    """Log-odds of each importance level: a sum of tables over four neighbours known before.

    Left, above, above left and above right are known in waves that move down one row for every two
    columns, so a coder needs w + 2 h passes.
    """

    NEIGHBOURS = ((1, 0), (0, 1), (0, 0), (0, 2))  # rows and columns of the window that ends at a position

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        step = torch.arange(levels)
        near = -(step[:, None] - step[None, :]).abs().float()
        tables = torch.zeros(len(self.NEIGHBOURS), levels + 1, levels)  # the last row: outside the image
        tables[:, :levels] = torch.tensor([0.35, 0.35, 0.0, 0.0])[:, None, None] * near
        self.tables = nn.Parameter(tables)

    def forward(self, level: Tensor) -> Tensor:
        """Return nats a position, (B, h, w), of int64 levels (B, h, w)."""
        height, width = level.shape[-2:]
        outside = functional.pad(level, (1, 1, 1, 0), value=self.levels)
        logits = sum(
            functional.embedding(outside[:, down : down + height, right : right + width], table)
            for table, (down, right) in zip(self.tables.float(), self.NEIGHBOURS, strict=True)
        )
        return -functional.log_softmax(logits, dim=-1).gather(-1, level[..., None])[..., 0]


def checkerboard(height: int, width: int, device: torch.device) -> Tensor:
    """Return 1 at the second pass's positions and 0 at the first's: (height, width)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return ((rows[:, None] + columns[None, :]) % 2).float()


def bits_of(logits: Tensor, bits: Tensor, mask: Tensor) -> Tensor:
    """Return the ideal length in bits of the unmasked bits, (B,), from (B, n, h, w) each."""
    nats = functional.binary_cross_entropy_with_logits(logits.float(), bits.float(), reduction="none")
    return (nats * mask).sum(dim=(1, 2, 3)) * BITS_PER_NAT
