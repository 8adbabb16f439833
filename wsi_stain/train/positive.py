"""How much of a stain is DAB-positive, as something to learn: the truth, a generator's answer, and their difference."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from skimage.color import hed_from_rgb
from torch import Tensor

from wsi_stain.eval.stain import POSITIVE_OD, Glass, dab
from wsi_stain.nn.pixels import to_pixels

BLOCKS_PX = (4, 16)
"""Sides of the blocks whose positive share is learned: serial sections do not correspond pixel by pixel."""
SOFTNESS_OD = 0.03
"""DAB density beyond `POSITIVE_OD` at which the odds of being positive are e to 1."""


def positive(ihc: Tensor, glass: Glass) -> Tensor:
    """Where a stain is DAB-positive, by the very map that evaluation uses.

    Args:
        ihc: (N, 3, H, W) in [-1, 1].
        glass: colour (R, G, B) of empty slide.

    Returns:
        float32 (N, 1, H, W), 0 or 1, on the device of `ihc`.
    """
    maps = np.stack([dab(image, glass) > POSITIVE_OD for image in to_pixels(ihc)])
    return torch.from_numpy(maps[:, None]).to(ihc.device, torch.float32)


def positivity(generated: Tensor, glass: Glass) -> Tensor:
    """How positive each generated pixel is: the threshold of `positive` made a slope that gradients can follow.

    Densities below 0, which a measurement cuts off, stay: a blue pixel is further from positive than a white one.

    Args:
        generated: float (N, 3, H, W) in [-1, 1].
        glass: colour (R, G, B) of empty slide.

    Returns:
        (N, 1, H, W) in (0, 1), 0.5 at a DAB density of `POSITIVE_OD`.
    """
    pixels = generated.add(1).mul(127.5).clamp_min(1)
    density = -torch.log10(pixels / pixels.new_tensor(glass).view(3, 1, 1))
    unmixed = (density * density.new_tensor(hed_from_rgb[:, 2]).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.sigmoid((unmixed - POSITIVE_OD) / SOFTNESS_OD)


def share_loss(probability: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Binary cross entropy between predicted and true positive share of blocks, the mean over sides of `BLOCKS_PX`.

    Cross entropy and not L1: its best answer is the mean of what is likely, L1's the median, which is 0 where brown is
    rare.

    Args:
        probability: (N, 1, H, W) in [0, 1]; only whole blocks count, and sides beyond H or W not at all.
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
