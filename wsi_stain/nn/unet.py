"""A plain U-Net (Ronneberger et al., MICCAI 2015): it maps H&E to the logit of being positive in the other stain.

It produces no image: it is the direct regressor, a reference for virtual stains.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.config.model import UNET_LEVELS, GeneratorConfig

PRIOR_LOGIT = -3.0
"""Output before training: one pixel in twenty is positive, as positive tissue is rare.

Starting at one half costs a thousand crops of training to correct (Lin et al., "Focal loss", 2017, section 4.1).
"""


class UNet(nn.Module):
    """Encoder and decoder with skip connections at each scale; batch norm, zero padding, bilinear upsampling.

    Args:
        config: only the width `channels` is used; the deepest scale has 16 times as many.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(UNET_LEVELS + 1)]
        self.stem = _convs(3, widths[0])
        self.down = nn.ModuleList(_convs(a, b) for a, b in pairwise(widths))
        self.bottom = _convs(widths[-1], widths[-1], n=1)  # cheapest weights, largest receptive field
        self.up = nn.ModuleList(_convs(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.head.bias = nn.Parameter(torch.tensor([PRIOR_LOGIT]))

    def forward(self, he: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1], H and W multiples of 2^`UNET_LEVELS` → logits (N, 1, H, W)."""
        x = self.stem(he)
        skips = []
        for convs in self.down:
            skips.append(x)
            x = convs(F.max_pool2d(x, 2))
        x = self.bottom(x)
        for convs in self.up:
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = convs(torch.cat([skips.pop(), larger], dim=1))
        return self.head(x)


def _convs(inputs: int, outputs: int, n: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n):
        layers += [nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
