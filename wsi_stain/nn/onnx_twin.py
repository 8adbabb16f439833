"""The folded form of a generator of ours as an ONNX graph, for software without torch."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from wsi_stain.nn.fast_layers import DenseHaar, FastWTConv
from wsi_stain.nn.folding import folded
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.pixels import CENTRE, HALF

OPSET = 18


class UnitForm(nn.Module):
    """The folded form with RGB in [-1, 1] at both ends.

    Args:
        generator: trained; it is copied.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.form = folded(generator, torch.float32)
        for part in self.form.modules():
            if isinstance(part, FastWTConv):  # sums of slices are written in place, which the exporter does not see
                part.haar = DenseHaar(part.channels).float()

    def forward(self, he: Tensor) -> Tensor:
        """(N, 3, H, W) → the same shape."""
        return self.form((he + 1) * HALF - CENTRE)


@torch.no_grad()
def twin(generator: Generator, tile: int) -> bytes:
    """The graph of one tile: float32 (1, 3, tile, tile) `he` → `stain`, both RGB in [-1, 1].

    Args:
        generator: trained.
        tile: side in px, a multiple of the generator's; the windows of attention fix it.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter: sizes become constants, and that is meant
        torch.onnx.export(
            UnitForm(generator).eval(),
            (torch.zeros(1, 3, tile, tile),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["he"],
            output_names=["stain"],
        )
    return file.getvalue()
