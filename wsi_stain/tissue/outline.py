"""Areas with exact outlines: many polygons as flat arrays, and which cells of a grid lie in them.

The work grows with the length of the outlines, not with the number of polygons times the size of the grid: every edge
is cut at the rows that it crosses, and the crossings of each polygon and row are paired to spans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from wsi_stain.geometry import Box

TOLERANCE_PX = 1e-3
"""Minimum depth of a polygon in a cell to touch it: written coordinates are rounded to a tenth of this."""
AT_ONCE = 1 << 20
"""Crossings of edges and rows in memory at a time, about 100 MB."""

Ring = np.ndarray
"""float64 (n, 2) of (x, y) in level-0 px, closed or open."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons with holes; what lies in one of them, by the even-odd rule of its rings, lies in the area."""

    points: np.ndarray
    """float64 (n, 2): (x, y) in level-0 px, ring after ring."""
    rings: np.ndarray
    """int64 (r + 1,): index of the first point of every ring, and n."""
    polygons: np.ndarray
    """int64 (p + 1,): index of the first ring of every polygon, and r."""

    @classmethod
    def of(cls, polygons: Sequence[Sequence[Ring]]) -> Polygons:
        """The polygons of a list, each a list of rings."""
        rings = [ring for polygon in polygons for ring in polygon]
        points = np.concatenate(rings) if rings else np.empty((0, 2))
        return cls(
            np.asarray(points, np.float64), _starts([len(r) for r in rings]), _starts([len(p) for p in polygons])
        )

    def __len__(self) -> int:
        return len(self.polygons) - 1

    def lists(self) -> Iterator[list[Ring]]:
        """The rings of every polygon."""
        for first, last in zip(self.polygons[:-1], self.polygons[1:], strict=True):
            yield [self.points[self.rings[i] : self.rings[i + 1]] for i in range(first, last)]

    def digest(self) -> bytes:
        """Hash of the outlines."""
        total = hashlib.sha256()
        for array in (self.points, self.rings, self.polygons):
            total.update(np.ascontiguousarray(array).tobytes())
        return total.digest()

    def inside(self, box: Box, cell: Fraction) -> np.ndarray:
        """Which cells of a box have their centre in the area: bool (h, w).

        A cell has the same answer in every box that contains it.

        Args:
            box: in cells.
            cell: side of a cell in level-0 px.
        """
        h, w = box.size
        marks = np.zeros(h * (w + 1), np.int32)
        for edges in self._chunks(box, cell):
            first, last = (np.ceil(end[:, 1] - 0.5).astype(np.int64).clip(box.y0, box.y1) for end in edges.ends)
            edge, row = _spread(first, last)
            x = _x_at(edges.low[edge], edges.high[edge], row + 0.5)
            column = np.ceil(x - 0.5).clip(box.x0, box.x1).astype(np.int64) - box.x0
            # Sorted by polygon, row and column, an even number of crossings for each polygon and row: pairs are spans.
            keys = np.sort((edges.polygon[edge] * h + (row - box.y0)) * (w + 1) + column)
            at = keys % (h * (w + 1))
            np.add.at(marks, at[0::2], 1)
            np.add.at(marks, at[1::2], -1)
        return _filled(marks, h, w)

    def border(self, box: Box, cell: Fraction) -> np.ndarray:
        """Which cells of a box an outline passes through: bool (h, w); arguments as for `inside`."""
        h, w = box.size
        tolerance = TOLERANCE_PX / float(cell)
        marks = np.zeros(h * (w + 1), np.int32)
        for edges in self._chunks(box, cell):
            low, high = edges.ends
            first = np.floor(low[:, 1] + tolerance).clip(box.y0, box.y1).astype(np.int64)
            last = np.ceil(high[:, 1] - tolerance).clip(box.y0, box.y1).astype(np.int64)
            edge, row = _spread(first, last)
            at_top, at_bottom = (_x_at(low[edge], high[edge], y) for y in (row, row + 1))
            left = np.floor(np.minimum(at_top, at_bottom) + tolerance)
            right = np.maximum(left, np.ceil(np.maximum(at_top, at_bottom) - tolerance))
            start = (row - box.y0) * (w + 1)
            np.add.at(marks, start + (left.clip(box.x0, box.x1).astype(np.int64) - box.x0), 1)
            np.add.at(marks, start + (right.clip(box.x0, box.x1).astype(np.int64) - box.x0), -1)
        return _filled(marks, h, w)

    @cached_property
    def _firsts(self) -> np.ndarray:
        """int64 (p + 1,): index of the first point of every polygon, and n."""
        return self.rings[self.polygons]

    @cached_property
    def _next(self) -> np.ndarray:
        """int64 (n,): index of the point at the other end of the edge that begins at a point."""
        following = np.arange(1, len(self.points) + 1)
        following[self.rings[1:] - 1] = self.rings[:-1]
        return following

    @cached_property
    def _extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest (x, y) of every polygon, each float64 (p, 2)."""
        firsts = self._firsts[:-1]
        return np.minimum.reduceat(self.points, firsts), np.maximum.reduceat(self.points, firsts)

    def _chunks(self, box: Box, cell: Fraction) -> Iterator[_Edges]:
        """The edges of the polygons near a box, in cells: whole polygons, a bounded number of crossings at once."""
        if not len(self):
            return
        side = float(cell)
        low, high = self._extent
        near = (low / side <= (box.x1 + 1, box.y1 + 1)).all(1) & (high / side >= (box.x0 - 1, box.y0 - 1)).all(1)
        chosen = np.flatnonzero(near)
        rows = (high[chosen, 1] - low[chosen, 1]) / side
        work = np.cumsum(np.diff(self._firsts)[chosen] + 2 * np.minimum(rows, box.size.h))
        for part in np.split(chosen, np.flatnonzero(np.diff(work // AT_ONCE)) + 1):
            if len(part):
                local, start = _spread(self._firsts[part], self._firsts[part + 1])
                a, b = self.points[start] / side, self.points[self._next[start]] / side
                is_rising = (a[:, 1] <= b[:, 1])[:, None]
                yield _Edges(np.where(is_rising, a, b), np.where(is_rising, b, a), local)


@dataclass(frozen=True, eq=False)
class _Edges:
    low: np.ndarray
    """float64 (n, 2): the end with the smaller y, in cells."""
    high: np.ndarray
    polygon: np.ndarray
    """int64 (n,): number of the polygon."""

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        return self.low, self.high


def _starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def _filled(marks: np.ndarray, h: int, w: int) -> np.ndarray:
    """Cells between the marks where spans begin (+1) and end (−1) in every row."""
    return marks.reshape(h, w + 1).cumsum(axis=1, dtype=np.int32)[:, :-1] > 0


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair (i, n) with first[i] <= n < last[i]."""
    count = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(count)), count)
    return i, np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[i]


def _x_at(low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The x of each edge at height y, clamped to its ends; horizontal edges give either end."""
    rise = high[:, 1] - low[:, 1]
    level = rise == 0
    share = np.clip((y - low[:, 1]) / np.where(level, 1, rise), 0, 1)
    share = np.where(level, y > low[:, 1], share)
    return low[:, 0] + share * (high[:, 0] - low[:, 0])
