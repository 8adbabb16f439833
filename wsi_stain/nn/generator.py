"""The generator (CEFF, arXiv 2502.20156): it maps an H&E image to the virtual stain of the same tissue.

H&E ── VMFE ──┬── MSFPM ── h3, h2, h1 ───────┐ (added before blocks 2, 3, 4)
  │           └── CoA ── residual blocks ◄───┘── decoder ── stain
  └── encoder ──┘
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wsi_stain.config.model import TOKEN_PX, GeneratorConfig
from wsi_stain.nn.blocks import ResidualBlock
from wsi_stain.nn.coa import CoA
from wsi_stain.nn.encoder import EncoderTrunk
from wsi_stain.nn.msfpm import MSFPM
from wsi_stain.nn.norm import use_tile_statistics
from wsi_stain.nn.stain_head import CHANNELS, PRIOR, StainHead
from wsi_stain.nn.vmfe import VMFE


class Generator(nn.Module):
    """The whole generator, with the part of the H&E encoder that CoA needs.

    Its result depends on the position of the image in the slide only modulo `multiple` px.

    Args:
        config: width, depth and switches.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        c = config.channels
        self.multiple = config.multiple
        self.vmfe = VMFE(c, wavelet=config.wavelet)
        self.msfpm = MSFPM(c)
        self.encoder = EncoderTrunk(c) if config.coa else None
        self.coa = CoA(4 * c, config.attention, config.alpha, config.window // TOKEN_PX) if config.coa else None
        self.trunk = nn.ModuleList(ResidualBlock(4 * c) for _ in range(config.blocks))
        self.decoder = nn.Sequential(
            *_upsample(4 * c, 2 * c, config.upsample),
            *_upsample(2 * c, c, config.upsample),
            nn.ReflectionPad2d(3),
            *_last(c, config.head),
        )
        self.head = StainHead() if config.head == "stain" else None
        if config.norm == "instance":
            use_tile_statistics(self)

    def forward(self, he: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [-1, 1], H and W multiples of `multiple` → the same shape and range."""
        x1, x2, x3 = self.vmfe(he)
        fused = self.msfpm(x1, x2, x3)
        x = x3
        if self.coa is not None and self.encoder is not None:
            x = self.coa(x3, self.encoder(he))
        for i, block in enumerate(self.trunk):
            x = block(x + fused[i - 1]) if 1 <= i <= len(fused) else block(x)
        y = self.decoder(x)
        return y if self.head is None else self.head(y, he)


def _last(inputs: int, head: Literal["rgb", "stain"]) -> list[nn.Module]:
    if head == "rgb":
        return [nn.Conv2d(inputs, 3, 7), nn.Tanh()]
    conv = nn.Conv2d(inputs, CHANNELS, 7)
    with torch.no_grad():
        assert conv.bias is not None, "it has a bias"
        conv.bias[0] = PRIOR
    return [conv]


def _upsample(inputs: int, outputs: int, kind: Literal["transposed", "resize"]) -> list[nn.Module]:
    if kind == "transposed":
        enlarge: list[nn.Module] = [
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        ]
    else:
        enlarge = [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    return [*enlarge, nn.BatchNorm2d(outputs), nn.ReLU()]
