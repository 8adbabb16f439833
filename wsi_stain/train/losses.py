"""Losses of the staining stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor


def pyramid_l1(generated: Tensor, real: Tensor, levels: int) -> Tensor:
    """Mean over `levels` scales of the mean absolute difference, each scale half of the one before.

    Serial sections correspond in structures, not in cells; the coarse scales say what the fine one cannot
    (PyramidPix2Pix, Liu et al., CVPR workshops 2022).

    Args:
        generated: (N, 3, H, W) in [-1, 1].
        real: the same shape and range.
        levels: number of scales; 1 is plain L1.
    """
    total = generated.new_zeros(())
    for level in range(levels):
        if level:
            generated, real = F.avg_pool2d(generated, 2), F.avg_pool2d(real, 2)
        total = total + F.l1_loss(generated, real)
    return total / levels


def adversarial(logits: Tensor, *, is_real: bool) -> Tensor:
    """Binary cross entropy of patch logits against one label (paper: BCE with logits)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))
