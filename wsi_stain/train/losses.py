"""Losses of both stages: InfoNCE for the encoders; adaptive L1 and the adversarial loss for the generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor


def info_nce(he: Tensor, ihc: Tensor, temperature: float, *, symmetric: bool, excluded: Tensor | None = None) -> Tensor:
    """Cross entropy of identifying each H&E's own stain among all of the batch, by cosine similarity.

    Source: van den Oord et al., 2018, equation 4, as CEFF uses it; symmetric as in CLIP (Radford et al., 2021).

    Args:
        he: embeddings (N, D).
        ihc: embeddings (N, D); row i belongs to row i of `he`.
        temperature: τ.
        symmetric: also identify each stain's own H&E, and average both losses.
        excluded: bool (N, N), False on the diagonal: True for negatives to ignore.
    """
    logits = F.normalize(he, dim=1) @ F.normalize(ihc, dim=1).T / temperature
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, target)
    return (loss + F.cross_entropy(logits.T, target)) / 2 if symmetric else loss


def patches(images: Tensor, grid: int) -> Tensor:
    """(N, C, H, W) → (N · grid², C, H / grid, W / grid), row by row of each image."""
    n, c, h, w = images.shape
    cut = images.view(n, c, grid, h // grid, grid, w // grid)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n * grid * grid, c, h // grid, w // grid)


def adaptive_weights(similarity: Tensor, alpha: float, beta: float) -> Tensor:
    """w = α + β·cos (CEFF): patches whose embedding is similar to that of their counterpart weigh more."""
    return alpha + beta * similarity


def weighted_l1(generated: Tensor, real: Tensor, weights: Tensor, levels: int, first: int = 0) -> Tensor:
    """Mean over patches and scales of weight · |generated - real|, each scale half as large as the one before.

    One level is CEFF's adaptive L1. Serial sections match in structures, not in cells; coarse scales capture what the
    fine scale cannot (PyramidPix2Pix, Liu et al., CVPR workshops 2022).

    Args:
        generated: (N, C, H, W).
        real: the same shape and range.
        weights: (N, grid, grid), one per patch of each image; (N, 1, 1) for whole images.
        levels: number of scales.
        first: halvings before the first scale.
    """
    total = generated.new_zeros(())
    if first:
        generated, real = F.avg_pool2d(generated, 2**first), F.avg_pool2d(real, 2**first)
    for level in range(levels):
        if level:
            generated, real = F.avg_pool2d(generated, 2), F.avg_pool2d(real, 2)
        difference = (generated - real).abs().mean(dim=1, keepdim=True)
        total = (
            total
            + (weights * F.adaptive_avg_pool2d(difference, (weights.shape[1], weights.shape[2])).squeeze(1)).mean()
        )
    return total / levels


def adversarial(logits: Tensor, *, is_real: bool) -> Tensor:
    """Binary cross entropy of patch logits against one label (paper: BCE with logits)."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))
