"""The poster's networks: residual trunks at 1/8 resolution, encoder, decoder and fusion decoder.

Arrangement of the 16 blocks and 5 skips after Mentzer et al. 2018: five groups of three
residual blocks with a skip over each, one more block, and a long skip over all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcml.base import STRIDE


class ResidualBlock(nn.Module):
    """x + conv3x3(relu(conv3x3(x))), no normalisation: (B, width, H, W) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same."""
        return x + self.second(torch.relu(self.first(x)))


class Trunk(nn.Module):
    """Groups of residual blocks with a skip over each, `tail` more blocks, and a long skip.

    A skip here is the mean of its two ends, not their sum: with residual blocks inside,
    sums would scale the signal by 2 a group (2^6 over all). Blocks whose second
    convolution is zero then leave the input as it is (`zero_`).
    """

    def __init__(self, width: int, groups: int = 5, blocks: int = 3, tail: int = 1) -> None:
        super().__init__()
        self.groups = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks))) for _ in range(groups)
        )
        self.tail = nn.Sequential(*(ResidualBlock(width) for _ in range(tail)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same."""
        y = x
        for group in self.groups:
            y = (y + group(y)) / 2
        return (x + self.tail(y)) / 2

    def zero_(self) -> None:
        """Make the trunk the identity, with gradients that move it away from that."""
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.second.weight)
                nn.init.zeros_(module.second.bias)


class Encoder(nn.Module):
    """Plane to features, code and importance logit, all on the stride-8 grid.

    Stem: `patch`, one 8 x 8 convolution of stride 8, or `strided`, Li et al.'s 8 x 8 of
    stride 4 and 4 x 4 of stride 2. With `trunk_stride` 4 the trunk runs at 1/4
    resolution and a 2 x 2 convolution of stride 2 follows it.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        code_channels: int,
        *,
        groups: int = 5,
        blocks: int = 3,
        stem: str = "patch",
        trunk_stride: int = STRIDE,
    ) -> None:
        super().__init__()
        if stem == "patch":
            self.stem: nn.Module = nn.Conv2d(channels, width, trunk_stride, stride=trunk_stride)
        else:
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 8, stride=4, padding=2)]
            if trunk_stride == STRIDE:
                layers += [nn.ReLU(), nn.Conv2d(width, width, 4, stride=2, padding=1)]
            self.stem = nn.Sequential(*layers)
        self.trunk = Trunk(width, groups, blocks)
        self.down = nn.Conv2d(width, width, 2, stride=2) if trunk_stride < STRIDE else nn.Identity()
        self.code = nn.Conv2d(width, code_channels, 1)

    def features(self, plane: Tensor) -> Tensor:
        """Return F: (B, C, H, W) in [-0.5, 0.5] to (B, width, H/8, W/8)."""
        return self.down(self.trunk(self.stem(plane)))

    def forward(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features F and the code's values e = sigmoid(conv(F)) in (0, 1)."""
        features = self.features(plane)
        return features, torch.sigmoid(self.code(features).float())


class ImportanceHead(nn.Module):
    """The importance map's logit from the encoder's features: 3 x 3, ReLU, 1 x 1 (Li et al.).

    The last layer starts at zero, so the map starts flat and the dial alone sets it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, 1, h, w), any real number."""
        return self.last(torch.relu(self.hidden(features))).float()


class Entry(nn.Module):
    """Masked bits to features: 1 x 1 to twice as many, ReLU, 3 x 3 to the trunk's width.

    What a bit is worth depends on the bits before it: a threshold inside a cell that was
    already left says nothing. The ReLU layer can tell, so it comes first.
    """

    def __init__(self, code_channels: int, width: int) -> None:
        super().__init__()
        self.cells = nn.Conv2d(code_channels, 2 * code_channels, 1)
        self.mix = nn.Conv2d(2 * code_channels, width, 3, padding=1)

    def forward(self, code: Tensor) -> Tensor:
        """Map (B, n, h, w) in {-1, 0, +1} to (B, width, h, w)."""
        return self.mix(torch.relu(self.cells(code)))


class Decoder(nn.Module):
    """Masked bits, and for colour what luma knows, to a plane.

    Then comes the trunk, and a sub-pixel convolution (1 x 1 to 64 values a position, depth
    to space). With `tail` 1 this is the 16-block decoder that mirrors the encoder. With
    `tail` 0 and `luma_channels` it is the 15-block fusion network: luma's masked bits (or
    its decoder's features) are concatenated to the colour's, the first convolution being
    stored in two parts.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        code_channels: int,
        *,
        luma_channels: int = 0,
        luma_is_code: bool = True,
        groups: int = 5,
        blocks: int = 3,
        tail: int = 1,
        trunk_stride: int = STRIDE,
    ) -> None:
        super().__init__()
        self.entry = Entry(code_channels, width)
        self.luma: nn.Module | None = None
        if luma_channels:
            self.luma = (
                Entry(luma_channels, width) if luma_is_code else nn.Conv2d(luma_channels, width, 3, padding=1)
            )
        up = STRIDE // trunk_stride
        self.up = nn.Sequential(nn.Conv2d(width, width * up**2, 1), nn.PixelShuffle(up)) if up > 1 else None
        self.trunk = Trunk(width, groups, blocks, tail)
        self.exit = nn.Conv2d(width, channels * trunk_stride**2, 1)
        self.shuffle = nn.PixelShuffle(trunk_stride)

    def features(self, code: Tensor, luma: Tensor | None = None) -> Tensor:
        """Return the trunk's output, (B, width, h, w), or twice that size with a 1/4 trunk."""
        x = self.entry(code)
        if self.luma is not None:
            x = x + self.luma(luma)
        return self.trunk(x if self.up is None else self.up(x))

    def forward(self, code: Tensor, luma: Tensor | None = None) -> Tensor:
        """Decode to (B, C, 8 h, 8 w), about [-0.5, 0.5], unclipped.

        Args:
            code: (B, n, h, w) in {-1, 0, +1}, from `quantization.masked_bits`.
            luma: (B, luma_channels, h, w), in a fusion decoder: luma's masked bits or features.
        """
        return self.shuffle(self.exit(self.features(code, luma)).float())
