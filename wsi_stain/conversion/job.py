"""What travels between the coordinator and its workers: the job, its tissue mask, and what became of a block."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_stain.config.convert import Precision
from wsi_stain.conversion.seams import Place
from wsi_stain.conversion.timing import Where
from wsi_stain.geometry import Box
from wsi_stain.output.canvas import Canvas, CanvasSpec
from wsi_stain.output.tiff_canvas import TileSpool
from wsi_stain.output.zarr_canvas import ZarrCanvas
from wsi_stain.tiling.grid import Block
from wsi_stain.tissue.mask import TissueMask

Kind = Literal["tiff", "zarr"]

CANVASES: dict[Kind, type[TileSpool] | type[ZarrCanvas]] = {"tiff": TileSpool, "zarr": ZarrCanvas}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a worker needs to paint blocks of one conversion; small, hashable, picklable."""

    slide: Path
    slide_mpp: float | None
    """µm per px of the slide's level 0, where the user says so."""
    view_mpp: float | None
    """µm per px at which the generator works; None is level 0."""
    allow_upsampling: bool
    model: str
    """Name or folder of the bundle."""
    device: str
    precision: Precision
    tile: int
    overlap: int
    region: Box
    """What is converted, in the view's px; the canvas's origin is its first pixel."""
    batch: int | None
    """Tiles per call of the generator; None is what suits its device."""
    cache_mb: int
    canvas: CanvasSpec
    kind: Kind
    mask: Path | None
    """File of `save_mask`; None takes every tile for tissue."""
    again: tuple[Place, ...] = ()
    """Tiles that are stained again off the grid, for the seam certificate."""
    calibration: tuple[Box, ...] = ()
    """Tiles on which the statistics of a slide are measured; empty where the network has its own."""

    @property
    def statistics(self) -> Path | None:
        """Where the statistics of the slide lie, for all workers and for a resumed run alike."""
        return self.canvas.spool / "norm.safetensors" if self.calibration else None

    def open_canvas(self) -> Canvas:
        """The canvas of this job."""
        return CANVASES[self.kind](self.canvas)

    def owns(self, block: Block, tile: Box) -> bool:
        """Whether the tile counts as this block's: each tile is counted once, where its first pixel lies."""
        y, x = max(tile.y0, self.region.y0), max(tile.x0, self.region.x0)
        return block.write.y0 <= y < block.write.y1 and block.write.x0 <= x < block.write.x1

    def blocks_of(self, tile: Box) -> list[tuple[int, int]]:
        """Row and column of every block that needs the tile."""
        inside, side = (tile & self.region).shift(-self.region.y0, -self.region.x0), self.canvas.block
        rows = range(inside.y0 // side, (inside.y1 - 1) // side + 1)
        columns = range(inside.x0 // side, (inside.x1 - 1) // side + 1)
        return [(row, column) for row in rows for column in columns]


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What became of a block; tiles are counted once over all blocks."""

    index: tuple[int, int]
    tiles: int
    tissue: int
    generated: int
    """Tiles that the generator made for this block, repeats included."""
    unreadable: tuple[Box, ...]
    """Tiles that could not be read and became glass; a tile of two blocks is told by both."""
    again: int
    """Tiles stained again for the seam certificate."""
    seconds: dict[str, float] = field(hash=False)
    """Time in the stages read, wait (for the device), generate, blend, certify and write."""
    where: Where = field(default_factory=Where.here)
    """The thread that painted it."""


def save_mask(mask: TissueMask, file: Any) -> None:
    """Write a mask for the workers to `file` (open for writing)."""
    np.savez_compressed(file, array=mask.array, scale=np.array([mask.scale.numerator, mask.scale.denominator]))


def load_mask(path: Path) -> TissueMask:
    """Read what `save_mask` wrote."""
    with np.load(path) as content:
        return TissueMask(content["array"], Fraction(*content["scale"].tolist()))
