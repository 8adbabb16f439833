"""Blends overlapping tiles into one block, by a weighted mean with a raised-cosine window.

The weights are separable, and a block receives every tile that touches it: the sum of all weights at a pixel is the
product of a sum along y and a sum along x, so only those two vectors are kept. Areas covered by one tile are copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from wsi_stain.geometry import Box


def window(tile: int, overlap: int) -> np.ndarray:
    """Weights along one axis of a tile: a raised cosine over `overlap` px at both ends, 1 in between.

    The weights of two neighbours sum to 1 where they overlap: sin² + cos². They are multiples of 1/256, so that 255
    times the product of two weights, and sums of such products, are exact in float32: the order in which tiles are
    added, which depends on threads and caches, cannot change a pixel.

    Returns:
        float32 (tile,), in (0, 1].
    """
    weights = np.full(tile, 256.0, np.float32)
    rise = np.sin(np.pi * (np.arange(overlap // 2) + 0.5) / (2 * overlap)) ** 2 if overlap else np.empty(0)
    low = np.maximum(np.rint(256 * rise), 1)
    ramp = np.concatenate([low, [128] * (overlap % 2), 256 - low[::-1]])
    weights[:overlap] = ramp
    weights[tile - overlap :] = ramp[::-1]
    return weights / np.float32(256)


class Blender:
    """Collects the tiles of one block; each pixel becomes the weighted mean of the tiles that cover it.

    Divides by the sum of the weights, so that a constant is preserved up to the image's edge and the identity generator
    returns its input bit for bit. `result()` requires every tile that touches the block: a full grid of rows and
    columns, each once, in any order.

    Args:
        write: the block's own pixels.
        weights: float32 (tile,), from `window()`; ramps of neighbours overlap, plateaus do not.
        channels: values of a pixel.

    >>> blender = Blender(Box(0, 0, 4, 4), window(4, 0))
    >>> blender.add(Box(0, 0, 4, 4), np.full((4, 4, 3), 7, np.uint8))
    >>> int(blender.result()[0, 0, 0])
    7
    """

    def __init__(self, write: Box, weights: np.ndarray, channels: int = 3) -> None:
        self._write, self._weights, self._channels = write, weights, channels
        self._ramp = int(np.count_nonzero(weights < 1)) // 2
        h, w = write.size
        self._out = np.empty((h, channels * w), np.uint8)  # rows of R, G, B, R, …: numpy is slow on an inner axis of 3
        self._sum = np.zeros((h, channels * w), np.float32)
        self._y = _Axis(write.y0, h, weights)
        self._x = _Axis(write.x0, w, weights)
        self._added = 0

    def add(self, tile: Box, pixels: np.ndarray) -> None:
        """Add a tile, uint8 (tile, tile, C); pixels outside the block are ignored."""
        self._y.meet(tile.y0)
        self._x.meet(tile.x0)
        self._added += 1
        inside = tile & self._write
        ramp = self._ramp
        alone = Box(tile.y0 + ramp, tile.x0 + ramp, tile.y1 - ramp, tile.x1 - ramp) & inside
        self._copy(tile, alone, pixels)
        middle = inside._replace(y0=alone.y0, y1=alone.y1)
        for part in (
            inside._replace(y1=alone.y0),
            inside._replace(y0=alone.y1),
            middle._replace(x1=alone.x0),
            middle._replace(x0=alone.x1),
        ):
            if (part & inside).area:
                self._accumulate(tile, part & inside, pixels)

    def result(self) -> np.ndarray:
        """The block's pixels, uint8 (h, w, C)."""
        assert self._added == self._y.count * self._x.count, "a block needs every tile that touches it, exactly once"
        for rows, row_alone in self._y.runs():
            columns = [c for c, alone in self._x.runs() if not alone] if row_alone else [slice(0, self._x.length)]
            for column in columns:
                self._divide(rows, column)
        return self._out.reshape(self._write.size.h, -1, self._channels)

    def _copy(self, tile: Box, part: Box, pixels: np.ndarray) -> None:
        if part.area:
            target, source = self._slices(tile, part)
            self._out[target] = _rows(pixels)[source]
            self._y.alone[part.y0 - self._write.y0 : part.y1 - self._write.y0] = True
            self._x.alone[part.x0 - self._write.x0 : part.x1 - self._write.x0] = True

    def _accumulate(self, tile: Box, part: Box, pixels: np.ndarray) -> None:
        target, source = self._slices(tile, part)
        along_y = self._weights[part.y0 - tile.y0 : part.y1 - tile.y0]
        along_x = np.repeat(self._weights[part.x0 - tile.x0 : part.x1 - tile.x0], self._channels)
        weighted = along_y[:, None] * along_x
        weighted *= _rows(pixels)[source]
        self._sum[target] += weighted

    def _divide(self, rows: slice, columns: slice) -> None:
        wide = slice(self._channels * columns.start, self._channels * columns.stop)
        mean = self._sum[rows, wide]
        mean /= self._y.total[rows, None]
        mean /= np.repeat(self._x.total[columns], self._channels)
        np.rint(mean, out=mean)
        self._out[rows, wide] = mean

    def _slices(self, tile: Box, part: Box) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Slices of `part` in the block and in the tile, both as rows of R, G, B, R, …."""
        own, its = part.shift(-self._write.y0, -self._write.x0), part.shift(-tile.y0, -tile.x0)
        return _wide(own, self._channels), _wide(its, self._channels)


class _Axis:
    """One axis of the block: the sum of the weights, and the positions covered by a single tile."""

    def __init__(self, start: int, length: int, weights: np.ndarray) -> None:
        self._start, self.length, self._weights = start, length, weights
        self._origins: set[int] = set()
        self.total = np.zeros(length, np.float32)
        self.alone = np.zeros(length, bool)

    @property
    def count(self) -> int:
        return len(self._origins)

    def meet(self, origin: int) -> None:
        """Add the weights of the tiles that start at `origin`, once."""
        if origin in self._origins:
            return
        self._origins.add(origin)
        first, last = max(origin, self._start), min(origin + len(self._weights), self._start + self.length)
        self.total[first - self._start : last - self._start] += self._weights[first - origin : last - origin]

    def runs(self) -> Iterator[tuple[slice, bool]]:
        """The axis split into runs covered by a single tile (true) or by several (false)."""
        edges = [0, *(np.flatnonzero(np.diff(self.alone)) + 1).tolist(), self.length]
        for start, end in pairwise(edges):
            yield slice(start, end), bool(self.alone[start])


def _rows(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(pixels.shape[0], -1)


def _wide(box: Box, channels: int) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(channels * box.x0, channels * box.x1)
