"""Layers that several of the networks share."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two reflect-padded 3×3 convolutions around an identity; no activation after the sum (reference: Johnson 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        return x + self.body(x)


def reflect_conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution with bias behind a reflected border of one pixel."""
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3, stride=stride))


def downsample(inputs: int, outputs: int) -> list[nn.Module]:
    """A stride-2 3×3 convolution without bias, batch norm, ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
