"""Halving and doubling with a binomial blur, as anti-aliased generators do.

Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019. CUT (Park et al., ECCV 2020) uses it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn


class BlurDown(nn.Module):
    """Halves the sides: the blur (1 2 1)/4 along both axes at every second pixel, the border reflected.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", _binomial([1.0, 2.0, 1.0]).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) with even H, W → (N, C, H/2, W/2)."""
        return F.conv2d(F.pad(x, [1] * 4, "reflect"), self.get_buffer("filt"), stride=2, groups=x.shape[1])


class BlurUp(nn.Module):
    """Doubles the sides: zeros between the pixels, then the blur (1 3 3 1)/4 along both axes, the border repeated.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", 4 * _binomial([1.0, 3.0, 3.0, 1.0]).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 2H, 2W)."""
        padded = F.pad(x, [1] * 4, "replicate")
        return F.conv_transpose2d(padded, self.get_buffer("filt"), stride=2, padding=2, groups=x.shape[1])[
            :, :, 1:-1, 1:-1
        ]


def _binomial(weights: list[float]) -> Tensor:
    row = torch.tensor(weights)
    square = row[:, None] * row
    return (square / square.sum())[None, None]
