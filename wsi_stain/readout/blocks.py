"""Where the blocks of a read-out lie: squares of 64 µm, four of them per block of 128 µm, sixteen per 256 µm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wsi_stain.errors import ConfigError
from wsi_stain.geometry import Box, Size

BLOCK_UM = 64
SCALES_UM = (64, 128, 256)
"""Sides of the blocks; a task has whole blocks of all of them."""
CELL_UM = 8
"""Within detected tissue, squares of this side count as tissue if they are not empty."""
TASK_PX, MOST_TASK_UM = 1024, 2048
"""Side of a task: about this number of px (larger arrays are mapped anew each time, which takes twice as long), but not
more µm, because of the histograms of its blocks."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """The blocks of a view; those at the right and bottom end with the view.

        grid = BlockGrid(view.size, view.mpp)
        for box in grid.tasks(): ...

    Raises:
        ConfigError: a pixel is larger than a cell.
    """

    size: Size
    """Of the view in px."""
    mpp: float

    def __post_init__(self) -> None:
        if self.mpp > CELL_UM / 2:
            raise ConfigError(
                f"{self.mpp:g} µm/px is too coarse to measure a stain: it must be at most {CELL_UM / 2:g} µm/px"
            )

    def edges(self, length: int, side_um: float) -> np.ndarray:
        """int64 (n + 1,): px where the squares of a side begin along an axis, and its end."""
        n = max(1, int(np.ceil(length * self.mpp / side_um)))
        edges = np.minimum(np.rint(np.arange(n + 1) * side_um / self.mpp), length).astype(np.int64)
        edges[-1] = length
        return edges[np.concatenate([[True], np.diff(edges) > 0])]

    @property
    def task_um(self) -> int:
        """Side of a task in µm."""
        largest = SCALES_UM[-1]
        return min(MOST_TASK_UM, max(1, round(TASK_PX * self.mpp / largest)) * largest)

    def tasks(self) -> Iterator[Box]:
        """The boxes of the tasks in view px, row by row; whole blocks of every scale."""
        rows, columns = (self.edges(length, self.task_um) for length in self.size)
        for y0, y1 in itertools.pairwise(rows):
            for x0, x1 in itertools.pairwise(columns):
                yield Box(int(y0), int(x0), int(y1), int(x1))

    def within(self, box: Box, side_um: float) -> tuple[np.ndarray, np.ndarray]:
        """The edges of the squares of a side in a task's box, along y and x, from the box's corner."""
        return self._part(self.size.h, box.y0, box.y1, side_um), self._part(self.size.w, box.x0, box.x1, side_um)

    def _part(self, length: int, start: int, stop: int, side_um: float) -> np.ndarray:
        edges = self.edges(length, side_um)
        return edges[(edges >= start) & (edges <= stop)] - start


def numbers(edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Edges along y and x → int64 (h, w): the number of the square that each pixel lies in, row by row."""
    row, column = (np.repeat(np.arange(len(axis) - 1, dtype=np.int64), np.diff(axis)) for axis in edges)
    return row[:, None] * (len(edges[1]) - 1) + column[None]
