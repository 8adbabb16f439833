"""The stain head: a generator's last step that mixes stain densities as a stained section does (Beer–Lambert).

    I = background · 10^-(t · (h · g · hematoxylin + d · dab + r))

The network predicts DAB density d ≥ 0, a gain g of hematoxylin, and a small residual r. The hematoxylin h is the H&E's
own at full resolution, so nuclei lie exactly where the H&E has them. t is 0 on background and 1 on tissue: background
has the one colour of the palette, whatever the network predicts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from skimage.color import hed_from_rgb
from torch import Tensor, nn

from wsi_stain.measure.deconvolution import HE_BACKGROUND
from wsi_stain.measure.palette import FLOOR_OD, Palette
from wsi_stain.nn.pixels import CENTRE, HALF

CHANNELS = 5
"""What the network predicts: DAB, gain, and a residual of three colours."""
DAB_SCALE = 0.6
"""DAB density of softplus(x) = 1; dense DAB has about 1 OD."""
GAIN_SPAN = 0.5
"""The gain is 1 ± this: it can never remove the nuclei, which an adversary may ask for (docs/training.md)."""
RESIDUAL_OD = 0.06
"""Largest residual: the faint tint of unstained tissue, too weak to draw a stain."""
PRIOR = -1.5
"""DAB's bias before training: 0.12 OD. Most tissue has less, but further down softplus passes on little gradient."""
BARE_OD, TISSUE_OD = 0.04, 0.08
"""Mean optical density of the H&E at which t begins to rise from 0, and reaches 1."""
AROUND_PX = 5
"""Side of the square over which that density is averaged."""


class StainHead(nn.Module):
    """Densities predicted by the network and the H&E → the image of the stain; computed in float32 at least.

    Only functions that round alike in any number of threads are used: torch's softplus, σ and pow do not.

    Args:
        palette: colours of the stain; they are kept with the weights.
    """

    def __init__(self, palette: Palette | None = None) -> None:
        super().__init__()
        self.register_buffer("background", torch.zeros(3))
        self.register_buffer("hematoxylin", torch.zeros(3))
        self.register_buffer("dab", torch.zeros(3))
        self.register_buffer("strength", torch.zeros(()))
        self.register_buffer("he_background", torch.tensor(HE_BACKGROUND, dtype=torch.float32))
        self.register_buffer("unmixing", torch.from_numpy(hed_from_rgb[:, 0].copy()).float())
        self.scale, self.shift = HALF, HALF
        self.use(palette or Palette())

    def use(self, palette: Palette, counterstain: float = 1.0) -> None:
        """Take the colours of `palette`, with a counterstain that is `counterstain` times as dark."""
        for name in ("background", "hematoxylin", "dab"):
            self.get_buffer(name).copy_(torch.tensor(getattr(palette, name)))
        self.get_buffer("strength").fill_(palette.strength * counterstain)

    def read_levels(self) -> None:
        """Take the H&E as pixels minus `CENTRE` instead of values in [-1, 1]."""
        self.scale, self.shift = 1.0, float(CENTRE)

    def forward(self, raw: Tensor, he: Tensor) -> Tensor:
        """Predictions (N, 5, H, W) and H&E (N, 3, H, W) → the stain in [-1, 1], (N, 3, H, W)."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        own, presence = self._read(he.to(raw.dtype))
        gain = 1 + GAIN_SPAN * torch.tanh(raw[:, 1:2])
        dab = DAB_SCALE * softplus(raw[:, :1])
        density = (own * gain) * self._vector("hematoxylin") + dab * self._vector("dab")
        density = (density + RESIDUAL_OD * torch.tanh(raw[:, 2:])) * presence
        return torch.exp(density * -math.log(10)) * (self._vector("background") / HALF) - 1

    def _read(self, he: Tensor) -> tuple[Tensor, Tensor]:
        """The H&E's hematoxylin above the floor, times `strength`, and where there is tissue; both (N, 1, H, W)."""
        pixels = (he * self.scale + self.shift).clamp(min=1)
        od = (torch.log(pixels / self._vector("he_background")) * (-1 / math.log(10))).clamp(min=0)
        red, green, blue = od.split(1, dim=1)
        weights = self.get_buffer("unmixing")
        own = red * weights[0] + green * weights[1] + blue * weights[2]
        mean = F.avg_pool2d(
            (red + green + blue) / 3, AROUND_PX, stride=1, padding=AROUND_PX // 2, count_include_pad=False
        )
        presence = ((mean - BARE_OD) / (TISSUE_OD - BARE_OD)).clamp(0, 1)
        return self.get_buffer("strength") * (own - FLOOR_OD).clamp(min=0), presence

    def _vector(self, name: str) -> Tensor:
        return self.get_buffer(name).view(1, 3, 1, 1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), from functions that round alike in any number of threads."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))
