"""Conversion of pixels to tensors and back: the only place that defines the networks' range."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HALF = 127.5
"""Half of the range of pixels: p / 127.5 - 1 lies in [-1, 1]."""
CENTRE = 128
"""What `to_levels` subtracts: -128 … 127 are exact in bfloat16 and float16, which multiples of 1/127.5 are not."""


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (N, H, W, 3) → float32 (N, 3, H, W) in [-1, 1], contiguous."""
    # Contiguous on purpose: on channels-last input of few channels, oneDNN (in torch 2.13, AVX-512) crashes in the
    # backward pass of a strided 1×1 convolution. Inference, which has no backward pass, chooses channels-last itself.
    own = np.require(images, requirements=["C_CONTIGUOUS", "WRITEABLE"])  # torch warns about read-only arrays
    tensor = torch.from_numpy(own).to(device).permute(0, 3, 1, 2)
    return tensor.float().contiguous().div_(HALF).sub_(1)


def to_levels(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (N, H, W, 3) → `dtype` (N, 3, H, W) in -128 … 127, channels-last, for the fast form."""
    return pixels.permute(0, 3, 1, 2).to(dtype).sub_(CENTRE)


def to_values(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (N, H, W, 3) → `dtype` (N, 3, H, W) in [-1, 1], channels-last, for imported networks."""
    return pixels.permute(0, 3, 1, 2).float().div_(HALF).sub_(1).to(dtype)


def to_bytes(tensor: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] → uint8 (N, H, W, C) on the same device, rounded to the nearest."""
    pixels = tensor.float().add(1).mul_(HALF).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def to_pixels(tensor: Tensor) -> np.ndarray:
    """Float (N, C, H, W) in [-1, 1] → uint8 (N, H, W, C), rounded to the nearest."""
    return to_bytes(tensor).cpu().numpy()
