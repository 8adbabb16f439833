"""The encoder of one stain: trained contrastively, then frozen; its H&E half feeds CoA (CEFF)."""

from __future__ import annotations

from torch import Tensor, nn

from wsi_stain.nn.blocks import ResidualBlock, downsample


class EncoderTrunk(nn.Module):
    """The part that CoA needs: RGB → features at quarter resolution, the output of the last residual block.

    Args:
        channels: width c; the features have 4c channels.
        blocks: number of residual blocks.
    """

    def __init__(self, channels: int, blocks: int = 6) -> None:
        super().__init__()
        c = channels
        self.body = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, c, 7, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            *downsample(c, 2 * c),
            *downsample(2 * c, 4 * c),
            *(ResidualBlock(4 * c) for _ in range(blocks)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, 4c, H/4, W/4)."""
        return self.body(x)


class Encoder(nn.Module):
    """A whole encoder: RGB crops → embeddings of 16c numbers.

    Args:
        channels: width c.
        blocks: number of residual blocks.
    """

    def __init__(self, channels: int, blocks: int = 6) -> None:
        super().__init__()
        c = channels
        self.trunk = EncoderTrunk(c, blocks)
        self.head = nn.Sequential(
            *downsample(4 * c, 4 * c),
            *downsample(4 * c, 4 * c),
            *downsample(4 * c, 8 * c),
            *downsample(8 * c, 16 * c),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * c, 16 * c),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] → (N, 16c); not normalised."""
        return self.head(self.trunk(x))
