"""Wavelet convolution (WTConv) and the Haar transform that it uses.

    x ──┬── depthwise k×k, scale ─────────────────────────────┐
        └── Haar ── 4C bands ── depthwise k×k, scale ── Haar⁻¹ ┴─ + ──
               └── LL, unprocessed, feeds the next level

Source: Finder et al., "Wavelet Convolutions for Large Receptive Fields", ECCV 2024.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # pytorch-wavelets 1.3 imports pkg_resources, which setuptools < 81 still has but warns about.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from pytorch_wavelets import DWTForward, DWTInverse  # type: ignore[import-untyped]


class Haar(Protocol):
    """One level of the orthonormal Haar transform and its inverse."""

    def split(self, x: Tensor) -> Tensor:
        """(N, C, H, W) with even H, W → (N, C, 4, H/2, W/2): LL, then the three detail bands."""
        ...

    def merge(self, bands: Tensor) -> Tensor:
        """The inverse of `split`."""
        ...


class LibraryHaar(nn.Module):
    """The Haar transform of `pytorch_wavelets`, used for training."""

    def __init__(self) -> None:
        super().__init__()
        # Zero padding has no effect: even sides need none. The filters are constants, so they are not weights.
        self.forward_transform = DWTForward(J=1, wave="haar", mode="zero")
        self.inverse_transform = DWTInverse(wave="haar", mode="zero")
        for transform in (self.forward_transform, self.inverse_transform):
            for name, filters in list(transform.named_buffers(recurse=False)):
                transform.register_buffer(name, filters, persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """See `Haar.split`."""
        low, (details,) = self.forward_transform(x)
        return torch.cat([low.unsqueeze(2), details], dim=2)

    def merge(self, bands: Tensor) -> Tensor:
        """See `Haar.merge`."""
        return self.inverse_transform((bands[:, :, 0], [bands[:, :, 1:]]))


class StridedHaar(nn.Module):
    """The same transform by strided sums: equal to the library's within rounding, many times faster on a CPU."""

    def split(self, x: Tensor) -> Tensor:
        """See `Haar.split`."""
        n, c, h, w = x.shape
        a, b, c_, d = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).flatten(2, 3).mul(0.5).unbind(2)
        top, bottom, top_d, bottom_d = a + b, c_ + d, a - b, c_ - d
        return torch.stack([top + bottom, top - bottom, top_d + bottom_d, top_d - bottom_d], dim=2)

    def merge(self, bands: Tensor) -> Tensor:
        """See `Haar.merge`."""
        n, c, _, h, w = bands.shape
        low, row, column, diagonal = bands.mul(0.5).unbind(2)
        top, bottom, top_d, bottom_d = low + row, low - row, column + diagonal, column - diagonal
        pixels = torch.stack([top + top_d, top - top_d, bottom + bottom_d, bottom - bottom_d], dim=2)
        return pixels.view(n, c, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, 2 * h, 2 * w)


class Scale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, channels, 1, 1), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        return x * self.weight


class WTConv(nn.Module):
    """Depthwise convolution at full resolution plus depthwise convolutions of the Haar bands.

    Args:
        channels: C, in and out.
        kernel: side k of every depthwise kernel.
        levels: L, how often LL is split again; H and W must be multiples of 2^L.
        wavelet: `False` leaves only the depthwise convolution (ablation).
    """

    def __init__(self, channels: int, kernel: int, levels: int, *, wavelet: bool = True) -> None:
        super().__init__()
        self.base = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels)
        self.base_scale = Scale(channels, 1.0)
        bands = 4 * channels
        self.convs = nn.ModuleList(
            nn.Conv2d(bands, bands, kernel, padding="same", groups=bands, bias=False) for _ in range(levels * wavelet)
        )
        self.scales = nn.ModuleList(Scale(bands, 0.1) for _ in range(levels * wavelet))
        self.haar: Haar = LibraryHaar()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        y = self.base_scale(self.base(x))
        return y + self._wavelet_branch(x) if self.convs else y

    def _wavelet_branch(self, low: Tensor) -> Tensor:
        processed = []
        for conv, scale in zip(self.convs, self.scales, strict=True):
            bands = self.haar.split(low)
            low = bands[:, :, 0]  # unprocessed: the levels see the input's own spectrum
            processed.append(scale(conv(bands.flatten(1, 2))).unflatten(1, (-1, 4)))
        coarser = torch.zeros_like(low)
        for bands in reversed(processed):
            coarser = self.haar.merge(torch.cat([(bands[:, :, 0] + coarser).unsqueeze(2), bands[:, :, 1:]], dim=2))
        return coarser


def use_strided_haar(module: nn.Module) -> None:
    """Replace the library's transform by the equal, faster one in every WTConv of `module`."""
    for part in module.modules():
        if isinstance(part, WTConv):
            part.haar = StridedHaar()
