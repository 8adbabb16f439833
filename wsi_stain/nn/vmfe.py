"""VMFE: the generator's stem, three scales of features through wavelet convolutions (CEFF, arXiv 2502.20156)."""

from __future__ import annotations

from torch import Tensor, nn

from wsi_stain.config.model import HAAR_LEVELS
from wsi_stain.nn.wavelet import WTConv


class ResWT(nn.Module):
    """Residual block whose second convolution is a WTConv.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: 1, or 2 to halve the sides.
        wavelet: see `WTConv`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, wavelet: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            WTConv(outputs, kernel=3, levels=1, wavelet=wavelet),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        return self.activation(self.body(x) + self.shortcut(x))


class VMFE(nn.Module):
    """RGB in [-1, 1] → features at full, half and quarter resolution.

    Args:
        channels: width c of the first scale; the scales have c, 2c and 4c channels.
        wavelet: see `WTConv`.
    """

    def __init__(self, channels: int, *, wavelet: bool = True) -> None:
        super().__init__()
        c = channels
        self.scale1 = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, c, 3, bias=False),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            WTConv(c, kernel=7, levels=HAAR_LEVELS, wavelet=wavelet),
            nn.BatchNorm2d(c),
            nn.ReLU(),
        )
        self.scale2 = nn.Sequential(ResWT(c, 2 * c, 2, wavelet=wavelet), ResWT(2 * c, 2 * c, 1, wavelet=wavelet))
        self.scale3 = nn.Sequential(ResWT(2 * c, 4 * c, 2, wavelet=wavelet), ResWT(4 * c, 4 * c, 1, wavelet=wavelet))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) → (N, c, H, W), (N, 2c, H/2, W/2), (N, 4c, H/4, W/4)."""
        x1 = self.scale1(x)
        x2 = self.scale2(x1)
        return x1, x2, self.scale3(x2)
