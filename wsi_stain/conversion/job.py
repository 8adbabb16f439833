"""Data exchanged between the coordinator and its workers: the job, its tissue mask, and the report of a block."""

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
from wsi_stain.tissue.mask import Outline, TissueMask
from wsi_stain.tissue.outline import Polygons

Kind = Literal["tiff", "zarr"]
AREAS, PARTS = ("tissue", "ignored"), ("points", "rings", "polygons")
"""Names of the arrays of a mask's outline in the file for the workers."""

CANVASES: dict[Kind, type[TileSpool] | type[ZarrCanvas]] = {"tiff": TileSpool, "zarr": ZarrCanvas}


@dataclass(frozen=True, slots=True)
class Job:
    """All data that a worker needs to paint blocks of one conversion; small, hashable, picklable."""

    slide: Path
    slide_mpp: float | None
    """µm per px of level 0 of the slide, if the user passed it."""
    view_mpp: float | None
    """µm per px at which the generator works; None means level 0."""
    allow_upsampling: bool
    model: str
    """Name or folder of the bundle."""
    device: str
    precision: Precision
    tile: int
    overlap: int
    region: Box
    """The converted region in the view's px; its first pixel is the origin of the canvas."""
    batch: int | None
    """Tiles per call of the generator; None uses the default of its device."""
    cache_mb: int
    canvas: CanvasSpec
    kind: Kind
    mask: Path | None
    """File of `save_mask`; None treats every tile as tissue."""
    again: tuple[Place, ...] = ()
    """Tiles off the grid that are stained a second time for the seam certificate."""
    calibration: tuple[Box, ...] = ()
    """Tiles on which the statistics of the slide are measured; empty if the network has frozen statistics."""

    @property
    def statistics(self) -> Path | None:
        """File with the statistics of the slide, used by all workers and by a resumed run."""
        return self.canvas.spool / "norm.safetensors" if self.calibration else None

    def open_canvas(self) -> Canvas:
        """The canvas of this job."""
        return CANVASES[self.kind](self.canvas)

    def owns(self, block: Block, tile: Box) -> bool:
        """Whether the block owns the tile: each tile belongs to the block that contains its first pixel."""
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
    """Report of a painted block; each tile is counted once over all blocks."""

    index: tuple[int, int]
    tiles: int
    tissue: int
    generated: int
    """Tiles that the generator stained for this block, including repeats."""
    unreadable: tuple[Box, ...]
    """Tiles that could not be read and were filled with background; both blocks of a shared tile report it."""
    again: int
    """Tiles stained a second time for the seam certificate."""
    seconds: dict[str, float] = field(hash=False)
    """Time in the stages read, wait (for the device), generate, blend, certify and write."""
    where: Where = field(default_factory=Where.here)
    """The thread that painted it."""


def save_mask(mask: TissueMask, file: Any) -> None:
    """Write a mask for the workers to `file`, a binary file open for writing."""
    scale = np.array([mask.scale.numerator, mask.scale.denominator])
    arrays = {
        f"{area}_{part}": getattr(getattr(mask.outline, area), part)
        for area in (AREAS if mask.outline is not None else ())
        for part in PARTS
    }
    np.savez_compressed(file, array=mask.array, scale=scale, **arrays)


def load_mask(path: Path) -> TissueMask:
    """Read a mask written by `save_mask`."""
    with np.load(path) as content:
        outline = None
        if "tissue_points" in content:
            outline = Outline(*(Polygons(*(content[f"{area}_{part}"] for part in PARTS)) for area in AREAS))
        return TissueMask(content["array"], Fraction(*content["scale"].tolist()), outline=outline)
