"""Training patches from one uint8 store of decoded pixels that lives on the training device.

Needs nothing but torch, numpy and Pillow, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from mcml.base.errors import DataError
from mcml.data.images import check_rgb8

SCALES = (1.0, 1.0, 0.75, 0.5)  # of the photographs, drawn once a step


class PatchStore:
    """Pixels of many photographs of any size in one tensor, and seeded patches from it.

    Attributes:
        pixels: (P, 3) uint8, all photographs one after another, row by row.
        heights, widths: (n,) int64 on the host.
    """

    def __init__(self, images: Sequence[np.ndarray], device: str | torch.device = "cpu") -> None:
        """Concatenate (H, W, 3) uint8 images on `device`."""
        if not images:
            raise DataError("no images to take patches from")
        pixels = np.concatenate([check_rgb8(image).reshape(-1, 3) for image in images])
        self.pixels = torch.from_numpy(pixels).to(device)
        self.heights, self.widths = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).T
        ends = (self.heights * self.widths).cumsum(0)
        self._starts = (ends - self.heights * self.widths).to(device)
        self._tables: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self.heights)

    def _positions(self, size: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Number of valid patch corners, their cumulative count, and corners in a row, by image."""
        if size not in self._tables:
            rows = (self.heights - size + 1).clamp(min=0)
            columns = (self.widths - size + 1).clamp(min=0)
            ends = (rows * columns).cumsum(0)
            if int(ends[-1]) == 0:
                best = int(torch.minimum(self.heights, self.widths).argmax())
                nearest = f"the nearest is {int(self.widths[best])} x {int(self.heights[best])}"
                raise DataError(f"no image is as large as a patch of {size} x {size}: {nearest}")
            device = self.pixels.device
            self._tables[size] = int(ends[-1]), ends.to(device), columns.to(device)
        return self._tables[size]

    def sample(self, batch: int, size: int, generator: torch.Generator) -> torch.Tensor:
        """Draw (B, 3, S, S) uint8, each position of each photograph being equally likely.

        Each is mirrored, turned upside down and transposed at random, independently. Runs wholly on
        the store's device, without a loop and without waiting for it.

        Args:
            batch: number of patches B.
            size: side S in pixels; `DataError` if no photograph is as large.
            generator: on the store's device; its state decides everything.
        """
        device = self.pixels.device
        total, ends, columns = self._positions(size)
        draw = torch.randint(total, (batch,), generator=generator, device=device)
        image = torch.searchsorted(ends, draw, right=True)
        rest = draw - torch.where(image > 0, ends[(image - 1).clamp(min=0)], 0)
        width = (columns + size - 1)[image]  # a chosen photograph has at least one corner a row
        top, left = rest // columns[image], rest % columns[image]

        step = torch.arange(size, device=device)
        down, right = step[None, :, None], step[None, None, :]  # (1, S, 1), (1, 1, S)
        coins = torch.randint(2, (3, batch, 1, 1), generator=generator, device=device, dtype=torch.bool)
        down = torch.where(coins[0], size - 1 - down, down)
        right = torch.where(coins[1], size - 1 - right, right)
        down, right = torch.where(coins[2], right, down), torch.where(coins[2], down, right)
        corner = self._starts[image] + top * width + left
        index = corner[:, None, None] + down * width[:, None, None] + right  # (B, S, S)
        return self.pixels[index].permute(0, 3, 1, 2).contiguous()


def draw_patches(
    store: PatchStore, batch: int, size: int, device: torch.Generator, host: torch.Generator
) -> torch.Tensor:
    """Draw (B, 3, S, S) float32 in [0, 1] on the store's device, without waiting for it: augmented.

    Mirrored, transposed, rescaled by 1, 3/4 or 1/2 (one scale a step), exposed
    by 0.75 to 1.1 and saturated by 0.6 to 1.3.
    """
    scale = SCALES[int(torch.randint(len(SCALES), (), generator=host))]
    larger = 8 * round(size / scale / 8)
    if not bool(((store.heights >= larger) & (store.widths >= larger)).any()):
        larger = size
    x = store.sample(batch, larger, device).float() / 255
    if larger != size:
        x = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    draw = torch.rand(2, batch, 1, 1, 1, generator=device, device=x.device)
    grey = x.mean(1, keepdim=True)
    return ((grey + (0.6 + 0.7 * draw[0]) * (x - grey)) * (0.75 + 0.35 * draw[1])).clamp(0, 1)
