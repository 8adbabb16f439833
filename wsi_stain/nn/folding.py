"""The fast form of a trained generator: the same function of its input, in fewer and cheaper operations.

    conv → BN                one convolution
    WTConv → BN              the factors go into its depthwise kernels; Haar on channels-last slices
    query, key, value, out   1/√d into the query, `out`, BN and α into the value; the key's bias cancels in the softmax
    GRU gates                update and reset read the same input: one convolution
    upsample → conv3, convT  one 2×2 convolution for the four parities of the output
    conv7 → RGB              four neighbouring pixels at once: vector units work on 16 channels, and RGB has 3
    pixels / 127.5 - 1       into the first convolutions, which then read whole numbers (exact in bfloat16)

All steps are exact, computed in float64; only rounding differs. All layers expect channels-last.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from wsi_stain.nn.coa import CoA
from wsi_stain.nn.fast_attention import FastCoA
from wsi_stain.nn.fast_layers import (
    EnlargingConv,
    FastGRU,
    FastWTConv,
    PhasedConv,
    WideConv,
    affine,
    fixed,
    rescale,
)
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.msfpm import ConvGRU
from wsi_stain.nn.pixels import CENTRE, HALF
from wsi_stain.nn.wavelet import WTConv


def folded(generator: Generator, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The fast form, with weights of `dtype`; the generator stays as it is.

    It maps (N, 3, H, W) of `dtype`, channels-last, as `pixels.to_levels` returns them, to (N, 3, H, W) in [-1, 1], of
    float32 at least.
    """
    fast = copy.deepcopy(generator).eval().requires_grad_(False).double()
    _fold_children(fast)
    stem = _conv(fast.vmfe.scale1[1])
    _read_pixels(stem)
    if fast.encoder is not None:
        _read_pixels(_conv(fast.encoder.body[1]))
    fast.decoder = nn.Sequential(*(PhasedConv(x) if isinstance(x, nn.Conv2d) else x for x in fast.decoder))
    precise = torch.promote_types(dtype, torch.float32)
    wide, head, fast.head = WideConv(stem).to(precise), fast.head, None
    fast.to(dtype)
    fast.vmfe.scale1[1] = wide
    if head is not None:
        head.read_levels()
        fast.head = head.to(precise)
    return fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _conv(layer: nn.Module) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d), f"expected a convolution, not {type(layer).__name__}"
    return layer


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        is_frozen = isinstance(getattr(child, "norm", None), nn.BatchNorm2d)  # `norm.py` may have replaced it
        if isinstance(child, CoA) and is_frozen:
            setattr(module, name, FastCoA(child))
        elif isinstance(child, ConvGRU):
            setattr(module, name, FastGRU(child))
        else:
            if isinstance(child, nn.Sequential):
                setattr(module, name, child := fold_sequence(child))
            _fold_children(child)


def fold_sequence(layers: nn.Sequential) -> nn.Sequential:
    """Fold the layers into fewer; the remaining ones are modified in place."""
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


def _absorb(layer: nn.Module, norm: nn.BatchNorm2d) -> None:
    factor, shift = affine(norm)
    if isinstance(layer, FastWTConv | EnlargingConv):
        layer.scale(factor, shift)
    else:
        rescale(_conv(layer), factor, shift)


def _read_pixels(conv: nn.Conv2d) -> None:
    """Make `conv` take pixels minus `CENTRE` instead of values in [-1, 1]; its border is reflected, never zero."""
    shift = conv.weight.sum((1, 2, 3)) * (CENTRE / HALF - 1)
    conv.bias = fixed((0.0 if conv.bias is None else conv.bias) + shift)
    conv.weight = fixed(conv.weight / HALF)
