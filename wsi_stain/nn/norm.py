"""Normalisation by the statistics of a tile, and its replacement by statistics of a slide.

A network with instance norm normalises each tile by that tile alone: neighbours differ, and blending cannot hide it
(Buglakova et al., ICCV 2025). Statistics measured once, on tiles from all over the slide, avoid this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from wsi_stain.nn.pixels import to_tensor

TOGETHER = 4
"""Tiles that are normalised together while measuring, so that a batch varies as the slide does."""
KINDS = ("running_mean", "running_var")


def use_tile_statistics(module: nn.Module) -> None:
    """Replace every batch norm by an instance norm with weights of the same names and no own statistics."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(module, name, nn.InstanceNorm2d(part.num_features, affine=True))
        else:
            use_tile_statistics(part)


@torch.no_grad()
def measure(module: nn.Module, tiles: Sequence[np.ndarray], device: str) -> bytes:
    """The statistics of a slide for a network with instance norm, as the content of a safetensors file.

    Source: Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (precise statistics).

    Args:
        module: the network; it is changed.
        tiles: uint8 (h, w, 3) each, from all over the slide; equal tiles in equal order give equal statistics.
        device: where torch computes.
    """
    norms = _to_batch_norm(module)
    module.to(device).train()
    for start in range(0, len(tiles), TOGETHER):
        module(to_tensor(np.stack(tiles[start : start + TOGETHER]), device))
    return save({f"{name}.{kind}": getattr(norm, kind).cpu() for name, norm in norms.items() for kind in KINDS})


def freeze(module: nn.Module, statistics: Path) -> None:
    """Replace every instance norm by a batch norm with the statistics from a file with the result of `measure`."""
    values = load_file(statistics)
    for name, norm in _to_batch_norm(module).items():
        for kind in KINDS:
            getattr(norm, kind).copy_(values[f"{name}.{kind}"])
    module.eval()


def _to_batch_norm(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Replace every instance norm by a batch norm with plain means and the same weights; returns them by name."""
    norms: dict[str, nn.BatchNorm2d] = {}
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.InstanceNorm2d):
            norm = nn.BatchNorm2d(part.num_features, eps=part.eps, momentum=None)
            if part.affine:
                norm.weight, norm.bias = part.weight, part.bias
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, norm)
            norms[name] = norm
    return norms
