"""The layers of a generator's fast form; `folding` builds them from the trained ones and explains why they are equal.

All expect channels-last.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.nn.msfpm import ConvGRU
from wsi_stain.nn.wavelet import WTConv

NARROW = 32
"""Fewer channels than this are shorter than a vector register: Haar is then faster as a convolution."""
PHASES = 4
"""Neighbouring output pixels that the last convolution computes as channels: 4 × RGB fill 12 of 16 lanes."""
TRANSPOSED = {
    3: [[[0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]],
    4: [[[0, 0, 0, 1], [0, 1, 0, 0]], [[0, 0, 1, 0], [1, 0, 0, 0]]],
}
"""Of a transposed convolution, by its side: the kernel row at (parity of the output row, place in the window)."""


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A frozen batch norm as y = factor · x + shift; both (C,)."""
    assert norm.running_var is not None, "the norm has no statistics"
    assert norm.running_mean is not None, "the norm has no statistics"
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - factor * norm.running_mean


def rescale(conv: nn.Conv2d, factor: Tensor, shift: Tensor) -> None:
    """Make `conv` return factor · conv(x) + shift."""
    old = 0.0 if conv.bias is None else conv.bias
    conv.weight = fixed(conv.weight * factor.view(-1, 1, 1, 1))
    conv.bias = fixed(factor * old + shift)


def fixed(values: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(values.detach(), requires_grad=False)


class WideConv(nn.Module):
    """A convolution whose weights are more precise than its input and output: float32 with bfloat16.

    For the stem, which takes half a percent of the time. Its kernels, rounded to bfloat16, shift whole areas of even
    colour: against float32, the worst of 27 real fields had 44 dB with rounded kernels, and has 52 dB without.

    Args:
        source: the convolution.
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.conv = copy.deepcopy(source)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, outputs, H', W') of the same type."""
        return self.conv(x.to(self.conv.weight.dtype)).to(x.dtype)


class FastWTConv(nn.Module):
    """`WTConv` with all its factors in the kernels; bands in sequence: LL of all channels, then the next.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: WTConv) -> None:
        super().__init__()
        self.channels = source.base.out_channels
        self.base = source.base
        rescale(self.base, source.base_scale.weight.flatten(), torch.zeros_like(source.base.weight[:, 0, 0, 0]))
        self.convs = source.convs
        for conv, scale in zip(self.convs, source.scales, strict=True):
            assert isinstance(conv, nn.Conv2d), "a depthwise convolution"
            scaled = conv.weight * scale.weight.view(-1, 1, 1, 1)  # type: ignore[operator]
            conv.weight = fixed(scaled.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1).contiguous())
        self.haar = DenseHaar(self.channels) if self.channels < NARROW else SlicedHaar()

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Make it return factor · y + shift."""
        rescale(self.base, factor, shift)
        for conv in self.convs:
            conv.weight = fixed(conv.weight * factor.repeat(4).view(-1, 1, 1, 1))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        y = self.base(x)
        processed: list[Tensor] = []
        for conv in self.convs:
            bands = self.haar.split(x)
            x = bands[:, : self.channels]
            processed.append(conv(bands))
        while len(processed) > 1:
            coarser = self.haar.merge(processed.pop())
            processed[-1][:, : self.channels] += coarser
        return y.add_(self.haar.merge(processed.pop())) if processed else y


class SlicedHaar(nn.Module):
    """One level of the orthonormal Haar transform by sums of slices: first of whole rows, then of columns."""

    def split(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 4C, H/2, W/2), band after band, in the library's order."""
        x = x.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C); copies only a slice
        n, h, w, c = x.shape
        even, odd = x.view(n, h // 2, 2, w * c).unbind(2)
        bands = x.new_empty(n, h // 2, w // 2, 4, c)
        for rows, first in ((even + odd, 0), (even - odd, 1)):
            left, right = rows.mul_(0.5).view(n, h // 2, w // 2, 2, c).unbind(3)
            torch.add(left, right, out=bands[..., first, :])
            torch.sub(left, right, out=bands[..., first + 2, :])
        return bands.flatten(3).permute(0, 3, 1, 2)

    def merge(self, bands: Tensor) -> Tensor:
        """The inverse of `split`."""
        bands = bands.permute(0, 2, 3, 1)
        n, h, w, _ = bands.shape
        low, row, column, diagonal = bands.unflatten(3, (4, -1)).unbind(3)
        c = low.shape[3]
        sums, differences = (low.new_empty(n, h, w, 2, c) for _ in range(2))
        for rows, a, b in ((sums, low, column), (differences, row, diagonal)):
            torch.add(a, b, out=rows[:, :, :, 0])
            torch.sub(a, b, out=rows[:, :, :, 1])
            rows.mul_(0.5)
        x = low.new_empty(n, h, 2, 2 * w * c)
        torch.add(sums.flatten(2), differences.flatten(2), out=x[:, :, 0])
        torch.sub(sums.flatten(2), differences.flatten(2), out=x[:, :, 1])
        return x.view(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class DenseHaar(nn.Module):
    """The same transform as one 2×2 convolution with stride 2, for few channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
        haar = 0.5 * torch.tensor(signs, dtype=torch.float64).view(4, 1, 1, 2, 2)
        each = torch.eye(channels, dtype=torch.float64).view(1, channels, channels, 1, 1)
        self.register_buffer("kernel", (haar * each).flatten(0, 1))

    def split(self, x: Tensor) -> Tensor:
        """See `SlicedHaar.split`."""
        return F.conv2d(x.contiguous(memory_format=torch.channels_last), self.kernel, stride=2)  # type: ignore

    def merge(self, bands: Tensor) -> Tensor:
        """See `SlicedHaar.merge`."""
        return F.conv_transpose2d(bands, self.kernel, stride=2)  # type: ignore[arg-type]


class FastGRU(nn.Module):
    """`ConvGRU` with both gates in one convolution.

    The gates are σ(x) = (1 + tanh(x / 2)) / 2, because torch 2.13 rounds σ differently in the last few numbers of each
    thread's share, and its lerp may too: a run resumed with other threads would produce other bytes.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: ConvGRU) -> None:
        super().__init__()
        self.candidate = source.candidate
        self.gates = copy.deepcopy(source.update)
        pairs = [(part[1].weight, part[1].bias) for part in (source.update, source.reset)]
        weights, biases = zip(*pairs, strict=True)
        self.gates[1].weight, self.gates[1].bias = fixed(torch.cat(weights) / 2), fixed(torch.cat(biases) / 2)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Two (N, C, H, W) → the next state, of the same shape."""
        z, r = self.gates(torch.cat([h, x], dim=1)).tanh_().add_(1).mul_(0.5).chunk(2, dim=1)
        q = self.candidate(torch.cat([r * h, x], dim=1)).tanh_()
        return q.sub_(h).mul_(z).add_(h)


class EnlargingConv(nn.Module):
    """A step of the decoder, either kind: one 2×2 convolution for the four parities of the output, then interleaved.

    Output rows 2i see input rows i - 1 and i, rows 2i + 1 see i and i + 1; columns likewise. A matrix per parity and
    place (row 0 or 1 of the window) selects the kernel rows that meet there.

    oneDNN's own transposed convolutions, and 2×2 ones that it pads itself, round differently for other numbers of
    threads (3.12): a run resumed with fewer would produce other bytes. This layer rounds the same for any number.

    Args:
        kernel: of a 3×3 or 4×4 convolution, (outputs, inputs, side, side).
        places: the matrices, (2 parities, 2 places, side).
    """

    def __init__(self, kernel: Tensor, places: list[list[list[int]]]) -> None:
        super().__init__()
        self.outputs, inputs = kernel.shape[:2]
        meet = kernel.new_tensor(places)
        self.conv = nn.Conv2d(inputs, 4 * self.outputs, 2)
        self.conv.weight = fixed(torch.einsum("yak,xbl,oikl->yxoiab", meet, meet, kernel).flatten(0, 2).contiguous())
        self.conv.bias = fixed(kernel.new_zeros(4 * self.outputs))

    @classmethod
    def of_transposed(cls, source: nn.ConvTranspose2d) -> EnlargingConv:
        """3×3, stride 2, padding 1, output padding 1; or 4×4, stride 2, padding 1."""
        conv = cls(source.weight.transpose(0, 1), TRANSPOSED[source.kernel_size[0]])
        if source.bias is not None:
            conv.scale(torch.ones_like(source.bias), source.bias)
        return conv

    @classmethod
    def of_resized(cls, source: nn.Conv2d) -> EnlargingConv:
        """Nearest-neighbour enlargement by two, then 3×3 with padding 1: two kernel rows fall on one input row."""
        return cls(source.weight, [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Make it return factor · y + shift."""
        rescale(self.conv, factor.repeat(4), shift.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, outputs, 2H, 2W)."""
        n, _, h, w = x.shape
        parities = self.conv(F.pad(x, [1] * 4)).permute(0, 2, 3, 1).unflatten(3, (2, 2, self.outputs))
        y = parities.new_empty(n, h, 2, w, 2, self.outputs)
        for i in (0, 1):
            for j in (0, 1):
                y[:, :, i, :, j] = parities[:, i : i + h, j : j + w, i, j]
        return y.view(n, 2 * h, 2 * w, self.outputs).permute(0, 3, 1, 2)


class PhasedConv(nn.Module):
    """A convolution to few channels that makes `PHASES` neighbouring pixels of a row at a time, in float32.

    Float32, because bfloat16 steps by half a grey level where the stain is bright.

    Args:
        source: the convolution; stride 1, no padding, the output's width a multiple of `PHASES`.
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.outputs, side = source.out_channels, source.kernel_size[0]
        self.conv = nn.Conv2d(source.in_channels, PHASES * self.outputs, (side, side + PHASES - 1), stride=(1, PHASES))
        kernels = [F.pad(source.weight, (i, PHASES - 1 - i)) for i in range(PHASES)]
        assert source.bias is not None, "the last convolution has a bias"
        self.conv.weight, self.conv.bias = fixed(torch.cat(kernels)), fixed(source.bias.repeat(PHASES))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, outputs, H', W')."""
        phases = self.conv(x).permute(0, 2, 3, 1)  # (N, H', W' / 4, 4 · outputs): in memory, rows of RGB pixels
        n, h, w, _ = phases.shape
        y = phases.reshape(n, h, w * PHASES, self.outputs).permute(0, 3, 1, 2)
        return y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
