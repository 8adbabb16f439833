"""Annotated areas of the H&E: the stratum of a tile is the class that covers most of it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from wsi_stain.geometry import Box, Size
from wsi_stain.tissue.geojson import read_classes
from wsi_stain.tissue.outline import Polygons

CELLS = 32
"""Cells along the side of a tile whose centres are looked up."""
LEAST = 0.5
"""Share of a tile that an area must cover."""


def strata_of(path: Path | None) -> Mapping[str, Polygons]:
    """The areas of each class, in level-0 px of the H&E; none without a file.

    Raises:
        MaskError: the file cannot be read, or has no area with a class.
    """
    return read_classes(path) if path else {}


def stratum(areas: Mapping[str, Polygons], row: int, column: int, side: Fraction) -> str:
    """The class of a tile: of those that cover at least half of it, the one that covers most; "" if there is none.

    Args:
        areas: of each class, in level-0 px.
        row: of the tile; tiles lie side by side from the corner of the slide.
        column: likewise.
        side: of a tile in level-0 px.
    """
    box = Box.at(row * CELLS, column * CELLS, Size(CELLS, CELLS))
    shares = {name: float(area.inside(box, side / CELLS).mean()) for name, area in areas.items()}
    name = max(shares, key=shares.__getitem__, default="")
    return name if shares.get(name, 0.0) >= LEAST else ""
