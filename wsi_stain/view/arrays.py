"""Dask arrays of a virtual slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_stain.geometry import Box
from wsi_stain.output.encoding import TILE_PX

if TYPE_CHECKING:
    from dask.array import Array

    from wsi_stain.view.virtual import VirtualSlide


@dataclass(frozen=True, eq=False)
class LevelArray:
    """One level as an object that is sliced like an array: uint8 (h, w, 3)."""

    virtual: VirtualSlide
    level: int
    dtype = np.dtype(np.uint8)
    ndim = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, and 3 channels."""
        h, w = self.virtual.levels[self.level].size
        return h, w, 3

    def __getitem__(self, index: Sequence[Any]) -> np.ndarray:
        rows, columns, channels = (s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
        box = Box(rows[0], columns[0], rows[1], columns[1])
        if not box.area:
            return np.empty((*box.size, 3), np.uint8)[..., slice(*channels)]
        return self.virtual.read(self.level, box)[..., slice(*channels)]


def arrays(virtual: VirtualSlide, block: int) -> list[Array]:
    """Arrays of all levels: a chunk is a block, or at coarse levels the blocks under a pyramid tile."""
    import dask.array as da

    result: list[Array] = []
    for level in range(len(virtual.levels)):
        side = max(block >> level, TILE_PX)
        chunks: Any = (side, side, 3)  # declared as a text
        # Without `meta`, Dask would read, and so stain, a part of the slide.
        meta = np.empty((0, 0, 0), np.uint8)
        level_array = LevelArray(virtual, level)
        result.append(da.from_array(level_array, chunks=chunks, name=False, asarray=False, fancy=False, meta=meta))
    return result
