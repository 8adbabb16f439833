"""The mask of a slide's tissue: cells in level-0 pixels, made by detection or from annotations drawn by hand."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from wsi_stain.errors import MaskError
from wsi_stain.geometry import Box, Size
from wsi_stain.tissue import geojson

LONGEST = 4096
"""Most cells along a slide's longer side."""


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Cells of a slide that hold tissue.

    Invariants: the grid starts at the slide's first pixel and covers all of it. Small enough to travel to workers.

        mask = find_tissue(slide)
        mask.touches(tile, view.scale)
    """

    array: np.ndarray
    """bool (h, w), true where there may be tissue."""
    scale: Fraction
    """Side of a cell in level-0 px."""
    size: Size | None = None
    """The slide's size, where known: outlines are cut off there."""

    def touches(self, box: Box, scale: Fraction) -> bool:
        """Whether any cell that `box` overlaps holds tissue; exact, in constant time.

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
        """Share of the cells that hold tissue, 0–1."""
        return float(self.array.mean())

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the mask's cells and scale."""
        head = f"{self.array.shape} {self.scale}".encode()
        return hashlib.sha256(head + np.packbits(self.array).tobytes()).hexdigest()

    @functools.cached_property
    def _total(self) -> np.ndarray:
        """Number of tissue cells above and to the left of each corner: int64 (h + 1, w + 1)."""
        return np.pad(self.array.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TissueMask) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __reduce__(self) -> tuple:
        return _unpacked, (np.packbits(self.array).tobytes(), self.array.shape, self.scale, self.size)


def everything(size: Size) -> TissueMask:
    """The mask of `--mask none`: all of the slide."""
    return TissueMask(np.ones((1, 1), bool), Fraction(max(*size, 1)), size)


def from_geojson(path: Path, size: Size) -> TissueMask:
    """A mask drawn by hand: the areas of a QuPath export, in level-0 px; every cell they touch counts.

    Raises:
        MaskError: the file cannot be read, is no GeoJSON, holds no area, or lies outside the slide.
    """
    polygons, named = geojson.read(path)
    finest = Fraction(max(1, -(-max(size) // LONGEST)))
    scale = named if named is not None and max(size) <= named * (LONGEST + 1) else finest
    grid = covering_grid(size, scale)
    array = np.zeros(grid, bool)
    for rings in polygons:
        array |= geojson.rasterise(rings, grid, scale)
    if not array.any():
        raise MaskError(
            f"the mask {path} lies outside the slide of {size.w} × {size.h} px: "
            "its coordinates must be level-0 pixels of this slide, as QuPath exports them"
        )
    return TissueMask(array, scale, size)


def to_geojson(mask: TissueMask, path: Path) -> None:
    """Write the mask's outline; QuPath opens it as an annotation of class Tissue, `from_geojson` as the same mask."""
    geojson.write(path, mask.array, mask.scale, mask.size)


def covering_grid(size: Size, cell: Fraction) -> Size:
    """Rows and columns of cells, `cell` level-0 px wide, that cover a slide."""
    return Size(*(-(-n * cell.denominator // cell.numerator) for n in size))


def _unpacked(packed: bytes, shape: tuple[int, int], scale: Fraction, size: Size | None) -> TissueMask:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=shape[0] * shape[1])
    return TissueMask(bits.reshape(shape).astype(bool), scale, size)
