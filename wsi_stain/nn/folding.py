"""The fast form of a trained generator: the same function of its input, in fewer and cheaper operations.

    conv → BN                one convolution
    WTConv → BN              the factors go into its depthwise kernels; Haar on channels-last slices
    query, key, value, out   1/√d into the query, `out`, BN and α into the value; the key's bias cancels in the softmax
    GRU gates                update and reset read the same input: one convolution
    upsample → conv3, convT  one 2×2 convolution for the four parities of the output
    conv7 → RGB              four neighbouring pixels at once: vector units work on 16 channels, and RGB has 3
    pixels / 127.5 - 1       into the first convolutions, which then read whole numbers (exact in bfloat16)

All of it is exact arithmetic, folded in float64; only the rounding differs. Everything expects channels-last.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

from wsi_stain.nn.coa import MARGIN, WINDOW, CoA, windowed_attention
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.msfpm import ConvGRU
from wsi_stain.nn.pixels import CENTRE, HALF
from wsi_stain.nn.wavelet import WTConv

NARROW = 32
"""Fewer channels than this are shorter than a vector register: there Haar is faster as a convolution."""
SCORES = 1 << 19
"""Attention scores made at a time on a CPU, for 32 queries at least: they stay in its second-level cache (1 MiB)."""
PHASES = 4
"""Neighbouring output pixels that the last convolution makes as channels: 4 × RGB fill 12 of 16 lanes."""


def folded(generator: Generator, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The fast form, with weights of `dtype`; the generator stays as it is.

    It maps (N, 3, H, W) of `dtype`, channels-last, as `pixels.to_levels` makes them, to (N, 3, H, W) in [-1, 1], of
    float32 at least.
    """
    fast = copy.deepcopy(generator).eval().requires_grad_(False).double()
    _fold_children(fast)
    stem = _conv(fast.vmfe.scale1[1])
    _read_pixels(stem)
    if fast.encoder is not None:
        _read_pixels(_conv(fast.encoder.body[1]))
    *body, last, tanh = fast.decoder
    fast.decoder = nn.Sequential(*body, PhasedConv(_conv(last)), tanh)
    wide = WideConv(stem).to(torch.promote_types(dtype, torch.float32))
    fast.to(dtype)
    fast.vmfe.scale1[1] = wide
    return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d), f"a convolution was expected, not {type(layer).__name__}"
    return layer


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, CoA) and isinstance(child.norm, nn.BatchNorm2d):  # else by statistics of the tile
            setattr(module, name, FastCoA(child))
        elif isinstance(child, ConvGRU):
            setattr(module, name, FastGRU(child))
        else:
            if isinstance(child, nn.Sequential):
                setattr(module, name, child := fold_sequence(child))
            _fold_children(child)


def fold_sequence(layers: nn.Sequential) -> nn.Sequential:
    """The same layers in fewer; those that are kept are changed."""
    done: list[nn.Module] = []
    for layer in layers:
        match layer:
            case nn.BatchNorm2d():
                _absorb(done[-1], layer)
            case nn.ReLU() | nn.LeakyReLU():
                layer.inplace = True  # its input is always a convolution's own output
                done.append(layer)
            case nn.Conv2d() if done and isinstance(done[-1], nn.Upsample):
                done[-1] = EnlargingConv.of_resized(layer)
            case nn.ConvTranspose2d():
                done.append(EnlargingConv.of_transposed(layer))
            case WTConv():
                done.append(FastWTConv(layer))
            case _:
                done.append(layer)
    return nn.Sequential(*done)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Frozen batch norm as y = factor · x + shift; both (C,)."""
    assert norm.running_var is not None, "the norm has no statistics"
    assert norm.running_mean is not None, "the norm has no statistics"
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return factor, norm.bias - factor * norm.running_mean


def _absorb(layer: nn.Module, norm: nn.BatchNorm2d) -> None:
    factor, shift = _affine(norm)
    if isinstance(layer, FastWTConv | EnlargingConv):
        layer.scale(factor, shift)
    else:
        _scale(_conv(layer), factor, shift)


def _scale(conv: nn.Conv2d, factor: Tensor, shift: Tensor) -> None:
    """Make `conv` return factor · conv(x) + shift."""
    old = 0.0 if conv.bias is None else conv.bias
    conv.weight = _fixed(conv.weight * factor.view(-1, 1, 1, 1))
    conv.bias = _fixed(factor * old + shift)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)


def _read_pixels(conv: nn.Conv2d) -> None:
    """Make `conv` take pixels minus `CENTRE` for what it took in [-1, 1]; its border is reflected, never zero."""
    moved = conv.weight.sum((1, 2, 3)) * (CENTRE / HALF - 1)
    conv.bias = _fixed((0.0 if conv.bias is None else conv.bias) + moved)
    conv.weight = _fixed(conv.weight / HALF)


class WideConv(nn.Module):
    """A convolution whose weights are wider than its input and output: float32 under bfloat16.

    For the stem, which takes half a percent of the time. Its kernels, rounded to bfloat16, move whole areas of even
    colour: the worst of 27 real fields was 44 dB from float32 with them, and is 52 without.

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
    """`WTConv` with all its factors in the kernels; bands lie one after the other: LL of all channels, then the next.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: WTConv) -> None:
        super().__init__()
        self.channels = source.base.out_channels
        self.base = source.base
        _scale(self.base, source.base_scale.weight.flatten(), torch.zeros_like(source.base.weight[:, 0, 0, 0]))
        self.convs = source.convs
        for conv, scale in zip(self.convs, source.scales, strict=True):
            assert isinstance(conv, nn.Conv2d), "a depthwise convolution"
            scaled = conv.weight * scale.weight.view(-1, 1, 1, 1)  # type: ignore[operator]
            conv.weight = _fixed(scaled.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1).contiguous())
        self.haar = DenseHaar(self.channels) if self.channels < NARROW else SlicedHaar()

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Make it return factor · y + shift."""
        _scale(self.base, factor, shift)
        for conv in self.convs:
            conv.weight = _fixed(conv.weight * factor.repeat(4).view(-1, 1, 1, 1))  # type: ignore[operator]

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
        x = x.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C); no copy but of a slice
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

    The gates are σ(x) = (1 + tanh(x / 2)) / 2, since torch 2.13 rounds σ otherwise in the last few numbers of each
    thread's share than in the rest, and its lerp may: with other threads, a resumed run would end in other bytes.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: ConvGRU) -> None:
        super().__init__()
        self.candidate = source.candidate
        self.gates = copy.deepcopy(source.update)
        pairs = [(part[1].weight, part[1].bias) for part in (source.update, source.reset)]
        weights, biases = zip(*pairs, strict=True)
        self.gates[1].weight, self.gates[1].bias = _fixed(torch.cat(weights) / 2), _fixed(torch.cat(biases) / 2)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Two (N, C, H, W) → the next state, of the same shape."""
        z, r = self.gates(torch.cat([h, x], dim=1)).tanh_().add_(1).mul_(0.5).chunk(2, dim=1)
        q = self.candidate(torch.cat([r * h, x], dim=1)).tanh_()
        return q.sub_(h).mul_(z).add_(h)


class FastCoA(nn.Module):
    """`CoA` as query, key and value alone.

    Args:
        source: the trained layer.
    """

    def __init__(self, source: CoA) -> None:
        super().__init__()
        d = source.query.out_channels
        self.windowed = source.attend is windowed_attention
        self.query, self.key = source.query, source.key
        _scale(self.query, torch.full_like(source.query.bias, d**-0.5), torch.zeros_like(source.query.bias))  # type: ignore
        self.key.bias = None  # the same addend to all of a query's scores
        factor, shift = _affine(source.norm)
        _scale(source.out, source.alpha * factor, source.alpha * shift)
        # Weights of the softmax sum to one, so `out` may come before it, biases included.
        out, value = source.out.weight.flatten(1), source.value.weight.flatten(1)
        bias = out @ source.value.bias + source.out.bias  # type: ignore[operator]
        self.value = source.value
        self.value.weight, self.value.bias = _fixed((out @ value).view_as(source.value.weight)), _fixed(bias)

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        """Two (N, d, H, W) → (N, d, H, W)."""
        q, k, v = (
            conv(x).permute(0, 2, 3, 1)
            for conv, x in ((self.query, features), (self.key, context), (self.value, context))
        )
        attended = in_windows(q, k, v, WINDOW if self.windowed else max(q.shape[1:3]))
        return features + attended.permute(0, 3, 1, 2)


def in_windows(q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
    """Windows of side² queries, each with the keys up to `MARGIN` around it; all (N, H, W, d).

    Keys beyond the image are left out, so there is no mask.
    """
    attended = torch.empty_like(q)
    for y in range(0, q.shape[1], side):
        for x in range(0, q.shape[2], side):
            rows, columns = (slice(max(0, at - MARGIN), at + side + MARGIN) for at in (y, x))
            window, around = (slice(None), slice(y, y + side), slice(x, x + side)), (slice(None), rows, columns)
            tokens = attend(*(t.flatten(1, 2) for t in (q[window], k[around], v[around])))
            attended[window] = tokens.view_as(attended[window])
    return attended


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(QKᵀ) V, the scale being in Q; (N, queries, d), (N, keys, d), (N, keys, d) → (N, queries, d)."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0).squeeze(1)
    # torch's own attention on CPUs multiplies bfloat16 at the speed of float32; oneDNN's matrix product is twice that.
    keys, parts = k.transpose(1, 2).contiguous(), q.split(32 * max(1, SCORES // (32 * k.shape[1])), dim=1)
    return torch.cat([torch.softmax(part @ keys, dim=-1) @ v for part in parts], dim=1)


class EnlargingConv(nn.Module):
    """A step of the decoder, either kind: one 2×2 convolution for the four parities of the output, then interleaved.

    Output rows 2i see input rows i - 1 and i, rows 2i + 1 see i and i + 1; columns likewise. A matrix per parity and
    place (row 0 or 1 of the window) says which of the three kernel rows meet there.

    oneDNN's own transposed convolutions, and 2×2 ones that it pads itself, round otherwise for other numbers of
    threads (3.12): a run resumed with fewer would not end in the same bytes. This one does not.

    Args:
        kernel: of a 3×3 convolution, (outputs, inputs, 3, 3).
        places: the matrices, (2 parities, 2 places, 3).
    """

    def __init__(self, kernel: Tensor, places: list[list[list[int]]]) -> None:
        super().__init__()
        self.outputs, inputs = kernel.shape[:2]
        meet = kernel.new_tensor(places)
        self.conv = nn.Conv2d(inputs, 4 * self.outputs, 2)
        self.conv.weight = _fixed(torch.einsum("yak,xbl,oikl->yxoiab", meet, meet, kernel).flatten(0, 2).contiguous())
        self.conv.bias = _fixed(kernel.new_zeros(4 * self.outputs))

    @classmethod
    def of_transposed(cls, source: nn.ConvTranspose2d) -> EnlargingConv:
        """3×3, stride 2, padding 1, output padding 1."""
        return cls(source.weight.transpose(0, 1), [[[0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]])

    @classmethod
    def of_resized(cls, source: nn.Conv2d) -> EnlargingConv:
        """Nearest-neighbour enlargement by two, then 3×3 with padding 1: two kernel rows fall on one input row."""
        return cls(source.weight, [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Make it return factor · y + shift."""
        _scale(self.conv, factor.repeat(4), shift.repeat(4))

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
    """A convolution to few channels that makes `PHASES` neighbouring pixels of a row at a time, and float32.

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
        self.conv.weight, self.conv.bias = _fixed(torch.cat(kernels)), _fixed(source.bias.repeat(PHASES))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, outputs, H', W')."""
        phases = self.conv(x).permute(0, 2, 3, 1)  # (N, H', W' / 4, 4 · outputs): in memory, rows of RGB pixels
        n, h, w, _ = phases.shape
        y = phases.reshape(n, h, w * PHASES, self.outputs).permute(0, 3, 1, 2)
        return y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
