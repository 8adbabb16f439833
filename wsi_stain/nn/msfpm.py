"""MSFPM: the three scales of VMFE, brought to one size and fused from coarse to fine by a ConvGRU (CEFF)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi_stain.nn.blocks import reflect_conv


class ConvGRU(nn.Module):
    """Gated recurrent unit with 3×3 convolutions: h' = (1 - z) h + z q."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.update = reflect_conv(2 * channels, channels)
        self.reset = reflect_conv(2 * channels, channels)
        self.candidate = reflect_conv(2 * channels, channels)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Two (N, C, H, W) → the next state, of the same shape."""
        both = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.update(both))
        r = torch.sigmoid(self.reset(both))
        q = torch.tanh(self.candidate(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class MSFPM(nn.Module):
    """Features at three scales → three states at quarter resolution.

    Args:
        channels: width c of the first scale.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.project3 = reflect_conv(4 * c, 4 * c)
        self.project2 = nn.Sequential(reflect_conv(2 * c, 3 * c, 2), nn.LeakyReLU(0.2), reflect_conv(3 * c, 4 * c))
        self.project1 = nn.Sequential(reflect_conv(c, 2 * c, 2), nn.LeakyReLU(0.2), reflect_conv(2 * c, 4 * c, 2))
        self.gru = ConvGRU(4 * c)

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of `VMFE` → h3, h2, h1 (coarse to fine), each (N, 4c, H/4, W/4)."""
        h3 = torch.tanh(self.project3(x3))
        h2 = self.gru(h3, torch.tanh(self.project2(x2)))
        h1 = self.gru(h2, torch.tanh(self.project1(x1)))
        return h3, h2, h1
