"""The 70×70 PatchGAN discriminator.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Classifies patches: real or generated stain, given the H&E.

    Args:
        filters: channels of the first layer (paper: 64).
        conditional: whether the H&E is an input too.
    """

    def __init__(self, filters: int = 64, *, conditional: bool = True) -> None:
        super().__init__()
        f = filters
        self.conditional = conditional
        self.body = nn.Sequential(
            nn.Conv2d(6 if conditional else 3, f, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *_layer(f, 2 * f, stride=2),
            *_layer(2 * f, 4 * f, stride=2),
            *_layer(4 * f, 8 * f, stride=1),
            nn.Conv2d(8 * f, 1, 4, padding=1),
        )

    def forward(self, he: Tensor, ihc: Tensor) -> Tensor:
        """Two (N, 3, H, W) in [-1, 1] → logits (N, 1, H/8 - 2, W/8 - 2), one per 70×70 patch."""
        return self.body(torch.cat([he, ihc], dim=1) if self.conditional else ihc)


def _layer(inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2),
    ]
