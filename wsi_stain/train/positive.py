"""The DAB-positive share of a stain as a training target: ground truth and loss."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor

from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab
from wsi_stain.nn.pixels import to_pixels

BLOCKS_PX = (4, 16)
"""Sides of the blocks whose positive share is learned; serial sections do not match pixel by pixel."""


def positive(ihc: Tensor, background: Background) -> Tensor:
    """Where a stain is DAB-positive, by the same map that evaluation uses.

    Args:
        ihc: (N, 3, H, W) in [-1, 1].
        background: background colour (R, G, B).

    Returns:
        float32 (N, 1, H, W), 0 or 1, on the device of `ihc`.
    """
    maps = np.stack([dab(image, background) > POSITIVE_OD for image in to_pixels(ihc)])
    return torch.from_numpy(maps[:, None]).to(ihc.device, torch.float32)


def share_loss(probability: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Binary cross entropy between predicted and true positive share of blocks, averaged over `BLOCKS_PX`.

    Cross entropy instead of L1: its optimal prediction is the expected value, that of L1 is the median, which is 0
    where positive pixels are rare.

    Args:
        probability: (N, 1, H, W) in [0, 1]; only whole blocks count; sides larger than H or W are skipped.
        target: the same shape, 0 or 1.

    Returns:
        The loss, and the mean absolute error of the share per block: `error_4`, …
    """
    losses, errors = [], {}
    for side in (side for side in BLOCKS_PX if side <= min(target.shape[2:])):
        share, truth = F.avg_pool2d(probability, side), F.avg_pool2d(target, side)
        losses.append(F.binary_cross_entropy(share, truth))
        errors[f"error_{side}"] = (share.detach() - truth).abs().mean().item()
    return torch.stack(losses).mean(), errors
