"""The U-Net generator of pix2pix, with the names of its published weight files.

Each scale halves with a 4×4 convolution, down to one pixel for the tile in its name, and passes its input around the
inner scales.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017, section 6.1.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from wsi_stain.config.network import NetworkConfig
from wsi_stain.nn.resnet import has_bias, norm_of


class SkipUNet(nn.Module):
    """The generator; weights are named `model.model.1.model.…`, one level per scale. It has no dropout.

    Args:
        config: its kind names the tile that the innermost scale sees as one pixel.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w, scales = config.width, int(math.log2(int(config.kind.rpartition("-")[2])))
        widths = [w, 2 * w, 4 * w, 8 * w, *[8 * w] * (scales - 4)]
        scale: nn.Module | None = None
        for outer, inner in reversed(list(pairwise(widths))):
            scale = UNetScale(config, outer, inner, scale)
        self.model = Outermost(config, w, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), H and W multiples of the innermost scale → (N, outputs, H, W) in [-1, 1]."""
        return self.model(x)


class Outermost(nn.Module):
    """Halves the image, and makes the output.

    Args:
        config: of the network.
        width: channels inside.
        inside: the next scale.
    """

    def __init__(self, config: NetworkConfig, width: int, inside: nn.Module | None) -> None:
        super().__init__()
        assert inside is not None, "a U-Net has several scales"
        down = nn.Conv2d(3, width, 4, stride=2, padding=1, bias=has_bias(config))
        up = nn.ConvTranspose2d(2 * width, config.outputs, 4, stride=2, padding=1)
        self.model = nn.Sequential(down, inside, nn.ReLU(), up, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, outputs, H, W)."""
        return self.model(x)


class UNetScale(nn.Module):
    """Halves its input, applies the inner scales, doubles, and appends the result to its input.

    Args:
        config: of the network.
        outer: channels of its input.
        inner: channels inside.
        inside: the next scale; `None` for the innermost, which has no norm after halving.
    """

    def __init__(self, config: NetworkConfig, outer: int, inner: int, inside: nn.Module | None) -> None:
        super().__init__()
        bias = has_bias(config)
        down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, stride=2, padding=1, bias=bias)]
        middle = [] if inside is None else [norm_of(config, inner), inside]
        inputs = inner if inside is None else 2 * inner
        up = nn.ConvTranspose2d(inputs, outer, 4, stride=2, padding=1, bias=bias)
        self.model = nn.Sequential(*down, *middle, nn.ReLU(), up, norm_of(config, outer))

    def forward(self, x: Tensor) -> Tensor:
        """(N, outer, H, W) → (N, 2 · outer, H, W)."""
        return torch.cat([x, self.model(x)], dim=1)
