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

    A skip is the mean of its two ends: sums would scale the signal by 2 a group (2^6 over all).
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
    """Plane to features and code: an 8 x 8 convolution of stride 8, the 16 blocks, a 1 x 1 to the code."""

    def __init__(
        self, channels: int, width: int, code_channels: int, groups: int = 5, blocks: int = 3,
        *, quantizer: str = "binary",
    ) -> None:  # fmt: skip
        super().__init__()
        self.binary = quantizer == "binary"
        self.stem = nn.Conv2d(channels, width, STRIDE, stride=STRIDE)
        self.trunk = Trunk(width, groups, blocks)
        self.code = nn.Conv2d(width, code_channels, 1)

    def forward(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) in [-0.5, 0.5] to features (B, width, h, w) and code (B, n, h, w), float32.

        The code is e in (0, 1) for the binarizer, or latents of any value.
        """
        features = self.trunk(self.stem(plane))
        code = self.code(features).float()
        return features, torch.sigmoid(code) if self.binary else code


class ImportanceHead(nn.Module):
    """The importance map's logit from the encoder's features (Li et al.), 0 everywhere at the start."""

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


def entry(code_channels: int, width: int, quantizer: str) -> nn.Module:
    """Return what leads a code to a trunk: `Entry` for bits, a 3 x 3 convolution for scalar latents."""
    return (
        Entry(code_channels, width)
        if quantizer == "binary"
        else nn.Conv2d(code_channels, width, 3, padding=1)
    )


class Decoder(nn.Module):
    """A code to a plane: entry, the 16 blocks that mirror the encoder's, a sub-pixel convolution."""

    def __init__(
        self, channels: int, width: int, code_channels: int, groups: int = 5, blocks: int = 3, tail: int = 1,
        *, quantizer: str = "binary",
    ) -> None:  # fmt: skip
        super().__init__()
        self.entry = entry(code_channels, width, quantizer)
        self.trunk = Trunk(width, groups, blocks, tail)
        self.exit = nn.Conv2d(width, channels * STRIDE**2, 1)
        self.shuffle = nn.PixelShuffle(STRIDE)  # depth to space

    def forward(self, code: Tensor, luma: Tensor | None = None) -> Tensor:
        """Map a code (B, n, h, w) to (B, C, 8 h, 8 w), about [-0.5, 0.5]; luma's is not looked at."""
        return self.synthesis(self.entry(code))

    def synthesis(self, x: Tensor) -> Tensor:
        """Map features (B, width, h, w) to (B, C, 8 h, 8 w)."""
        return self.shuffle(self.exit(self.trunk(x)).float())


class FusionDecoder(Decoder):
    """The poster's fusion network: a colour plane from its own code (masked bits or latents) and luma's.

    binarizer -> concatenation -> 15 blocks with 5 skips -> Cb (Cr). The first convolution after the
    concatenation is stored in two parts, whose outputs are summed: the same thing.
    """

    def __init__(
        self, channels: int, width: int, code_channels: int, groups: int = 5, blocks: int = 3, *, luma: int,
        quantizer: str = "binary",
    ) -> None:  # fmt: skip
        super().__init__(channels, width, code_channels, groups, blocks, tail=0, quantizer=quantizer)
        self.luma = entry(luma, width, quantizer)

    def forward(self, code: Tensor, luma: Tensor) -> Tensor:
        """Map a colour's code (B, n, h, w) and luma's (B, luma, h, w) to (B, C, 8 h, 8 w)."""
        return self.synthesis(self.entry(code) + self.luma(luma))
