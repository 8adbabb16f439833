"""The tissue mask of a slide: cells in level-0 pixels, from detection or from hand-drawn annotations."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import MaskError
from wsi_stain.geometry import Box, Size
from wsi_stain.tissue import geojson
from wsi_stain.tissue.outline import Polygons

LONGEST = 4096
"""Maximum number of cells along a slide's longer side."""


@dataclass(frozen=True, eq=False)
class Outline:
    """The exact outline of tissue, drawn by hand."""

    tissue: Polygons
    ignored: Polygons
    """Areas that are not tissue, also where they overlap it."""

    def inside(self, box: Box, cell: Fraction) -> np.ndarray:
        """Which cells of a box have their centre in the tissue: bool (h, w); see `Polygons.inside`."""
        inside = self.tissue.inside(box, cell)
        return inside & ~self.ignored.inside(box, cell) if len(self.ignored) else inside

    def digest(self) -> bytes:
        """Hash of the outline."""
        return self.tissue.digest() + self.ignored.digest()


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Cells of a slide that contain tissue.

    Invariants: the grid starts at the slide's first pixel and covers the whole slide. Small enough to send to workers.

        mask = find_tissue(slide)
        mask.touches(tile, view.scale)
    """

    array: np.ndarray
    """bool (h, w), true where there may be tissue."""
    scale: Fraction
    """Side of a cell in level-0 px."""
    size: Size | None = None
    """The slide's size, if known: outlines are clipped to it."""
    outline: Outline | None = None
    """The exact outline of a mask drawn by hand; without it, whole tiles are tissue or not."""

    def inside(self, box: Box, scale: Fraction) -> np.ndarray | None:
        """Which pixels of a view have their centre within the outline: bool (h, w); `None` without an outline.

        Args:
            box: in the pixels of a view.
            scale: level-0 px per pixel of that view.
        """
        return None if self.outline is None else self.outline.inside(box, scale)

    def touches(self, box: Box, scale: Fraction) -> bool:
        """Whether any cell that overlaps `box` contains tissue; exact, in constant time.

        Args:
            box: in the pixels of a view.
            scale: level-0 px per pixel of that view.
        """
        ratio = Fraction(scale) / self.scale
        n, d = ratio.numerator, ratio.denominator
        h, w = self.array.shape
        y0, x0 = min(max(box.y0 * n // d, 0), h), min(max(box.x0 * n // d, 0), w)
        y1, x1 = min(max(-(-box.y1 * n // d), y0), h), min(max(-(-box.x1 * n // d), x0), w)
        if box.area == 0:
            return False
        total = self._total
        return bool(total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0] > 0)

    @property
    def fraction(self) -> float:
        """Share of the cells that contain tissue, 0–1."""
        return float(self.array.mean())

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the mask's cells, scale and outline."""
        head = f"{self.array.shape} {self.scale}".encode()
        tail = b"" if self.outline is None else self.outline.digest()
        return hashlib.sha256(head + np.packbits(self.array).tobytes() + tail).hexdigest()

    @functools.cached_property
    def _total(self) -> np.ndarray:
        """Number of tissue cells above and to the left of each corner: int64 (h + 1, w + 1)."""
        return np.pad(self.array.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TissueMask) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (np.packbits(self.array).tobytes(), self.array.shape, self.scale, self.size, self.outline)


def everything(size: Size) -> TissueMask:
    """The mask of `--mask none`: the whole slide."""
    return TissueMask(np.ones((1, 1), bool), Fraction(max(*size, 1)), size)


def from_geojson(path: Path, size: Size) -> TissueMask:
    """A hand-drawn mask: the areas of a QuPath export in level-0 px; every cell that they touch is included,
    and `inside` tells the pixels.

    Raises:
        MaskError: the file cannot be read, is not GeoJSON, has no polygon, or is outside the slide.
    """
    areas = geojson.read(path)
    finest = Fraction(max(1, -(-max(size) // LONGEST)))
    cell = areas.cell
    scale = cell if cell is not None and max(size) <= cell * (LONGEST + 1) else finest
    grid = Box.of(covering_grid(size, scale))
    array = areas.tissue.inside(grid, scale) | areas.tissue.border(grid, scale)
    if not array.any():
        raise MaskError(
            f"the mask {path} is outside the slide of {size.w} × {size.h} px; "
            "its coordinates must be level-0 pixels of this slide, as QuPath exports them"
        )
    if len(areas.ignored):
        array &= ~areas.ignored.inside(grid, scale) | areas.ignored.border(grid, scale)
    return TissueMask(array, scale, size, Outline(areas.tissue, areas.ignored))


def to_geojson(mask: TissueMask, path: Path) -> None:
    """Write the mask's outline; QuPath opens it as an annotation of class Tissue, `from_geojson` restores the mask."""
    if mask.outline is not None:
        geojson.write_polygons(path, mask.outline.tissue, mask.outline.ignored)
    else:
        geojson.write(path, mask.array, mask.scale, mask.size)


def covering_grid(size: Size, cell: Fraction) -> Size:
    """Rows and columns of cells, `cell` level-0 px wide, that cover a slide."""
    return Size(*(-(-n * cell.denominator // cell.numerator) for n in size))


def _unpack(
    packed: bytes, shape: tuple[int, int], scale: Fraction, size: Size | None, outline: Outline | None
) -> TissueMask:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1])
    return TissueMask(bits.reshape(shape).astype(bool), scale, size, outline)
