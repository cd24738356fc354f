"""The compression module: binarizer, importance quantiser and nested mask (Li et al. 2018).

All three are step functions: each has its value in the forward pass and a surrogate gradient in the
backward pass, stated in its docstring and held by a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcml.base.errors import UsageError


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, e: Tensor) -> Tensor:
        ctx.save_for_backward(e)
        return (e > 0.5).to(e.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (e,) = ctx.saved_tensors
        return grad * ((e >= 0) & (e <= 1))


def binarize(e: Tensor) -> Tensor:
    """Return 1 where e > 0.5, else 0, in e's shape and dtype; the gradient is that of the clipped identity.

    Li et al. 2018, section 3.2: dB/de = 1 for 0 <= e <= 1, else 0.
    """
    return _Binarize.apply(e)


def importance_levels(p: Tensor, levels: int) -> Tensor:
    """Quantise an importance map in [0, 1]: Q = floor(L p), of 1 itself L - 1, int64; no gradient passes."""
    return (p.detach().float() * levels).floor().clamp(0, levels - 1).long()


def channel_groups(sizes: Sequence[int]) -> Tensor:
    """Return each code channel's group, counted from 1: sizes (2, 3) give 1 1 2 2 2."""
    if not sizes or min(sizes) < 1:
        raise UsageError(f"group sizes {list(sizes)}: expected whole numbers from 1")
    return torch.tensor([group for group, size in enumerate(sizes, 1) for _ in range(size)])


class _NestedMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, steps: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(p, steps)
        ctx.levels = levels
        return (importance_levels(p, levels) >= steps).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        p, steps = ctx.saved_tensors
        near = (p.float() * ctx.levels - steps).abs() <= 1.5
        return ctx.levels * (grad * near).sum(dim=1, keepdim=True), None, None


def nested_mask(p: Tensor, groups: Tensor, levels: int) -> Tensor:
    """Open the first Q = floor(L p) groups of the code at each position.

    From p (B, 1, H, W) in [0, 1] and the groups (n,) of `channel_groups`, L - 1 of them, to a mask
    (B, n, H, W) of p's dtype in {0, 1}, non-increasing along the groups.

    Unlike Li et al. 2018 as printed, n = G (L - 1), so the last group can open and a smooth position
    may send nothing (their released model opens Q + 1 groups: at least one).

    Gradient: theirs is dm_k/dp = L where L p - 1 <= ceil(k L / n) < L p + 2, else 0: a window of three
    levels near the step of m_k. Sign, height L and width are kept; it is centred on the step of this
    form: dm_k/dp = L where |L p - s_k| <= 1.5, with s_k the group of channel k.
    """
    return _NestedMask.apply(p, groups.to(p.device).view(1, -1, 1, 1), levels)


def masked_bits(bits: Tensor, mask: Tensor) -> Tensor:
    """Return -1 or +1 where the mask is open and 0 where it is not, for the decoder, of {0, 1} each.

    An affine change of the 0 / 1 of Li et al., so that a masked bit and a zero differ.
    """
    return (2 * bits - 1) * mask
