"""The levels of an output: their sizes, the tiles that a block owns, and the computation of the coarsest levels.

A block of side 512 × 2^k owns whole pyramid tiles at the levels 0 to k. At level k + 1 it has 256 px left, a quarter of
a tile: its *remains*. The levels from k + 1 on are computed from all remains, in bands of one row of tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from wsi_stain.geometry import Size
from wsi_stain.output.encoding import TILE_PX


class TileAt(NamedTuple):
    """One pyramid tile: its position in tiles, and its pixels, uint8 (h, w, C), clipped to the image."""

    level: int
    row: int
    column: int
    pixels: np.ndarray


def halve(pixels: np.ndarray) -> np.ndarray:
    """The next pyramid level: the mean of 2×2 pixels, rounded half up; an odd edge is replicated.

    Args:
        pixels: uint8 (h, w, C).
    """
    if pixels.shape[2] != 3:  # cv2 takes at most four channels, and drops a single one
        return np.dstack([_halve(pixels[..., channel]) for channel in range(pixels.shape[2])])
    return _halve(pixels)


def _halve(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[:2]
    if h % 2 or w % 2:
        pixels = cv2.copyMakeBorder(pixels, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
    # INTER_AREA at exactly one half is (a + b + c + d + 2) >> 2, and 20 times as fast as numpy; a test checks this.
    return cv2.resize(pixels, (-(-w // 2), -(-h // 2)), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=64)
def level_sizes(size: Size) -> tuple[Size, ...]:
    """Sizes of all levels, halved until the longer side is at most one tile."""
    sizes = [size]
    while max(sizes[-1]) > TILE_PX:
        sizes.append(sizes[-1].halved())
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of an image of `size` that is painted in blocks of side `block`."""

    size: Size
    block: int

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes of all levels, largest first."""
        return level_sizes(self.size)

    @property
    def blocks(self) -> Size:
        """Rows and columns of blocks."""
        return self.size.ceil_div(self.block)

    @property
    def depth(self) -> int:
        """The last level at which blocks own whole tiles."""
        return min((self.block // TILE_PX).bit_length(), len(self.sizes)) - 1

    @property
    def is_deep(self) -> bool:
        """Whether levels beyond `depth` exist, so that blocks leave remains."""
        return len(self.sizes) > self.depth + 1

    def spans(self, level: int, block: int, length: int) -> range:
        """Along one axis of `length` tiles: the tiles of `level` that block number `block` owns."""
        each = self.block // TILE_PX >> level
        return range(block * each, min((block + 1) * each, length))

    def cut(self, index: tuple[int, int], pixels: np.ndarray) -> Iterator[TileAt]:
        """A block's tiles at all its levels, row by row, then its remains (the only tile of level `depth` + 1)."""
        for level in range(self.depth + 1):
            each = self.block // TILE_PX >> level
            for row in range(-(-pixels.shape[0] // TILE_PX)):
                for column in range(-(-pixels.shape[1] // TILE_PX)):
                    y, x = row * TILE_PX, column * TILE_PX
                    tile = pixels[y : y + TILE_PX, x : x + TILE_PX]
                    yield TileAt(level, index[0] * each + row, index[1] * each + column, tile)
            if level < self.depth or self.is_deep:
                pixels = halve(pixels)
        if self.is_deep:
            yield TileAt(self.depth + 1, *index, pixels)

    def coarse(self, strips: Iterable[np.ndarray]) -> Iterator[TileAt]:
        """The tiles of all levels beyond `depth`, each level in raster order, the levels interleaved.

        Memory bound: two rows of tiles of level `depth` + 1.

        Args:
            strips: the rows of level `depth` + 1 from top to bottom, uint8 (≤ 256, w, C) each.
        """
        waiting: dict[int, list[np.ndarray]] = {level: [] for level in range(len(self.sizes))}
        seen = dict.fromkeys(waiting, 0)

        def push(level: int, rows: np.ndarray) -> Iterator[TileAt]:
            waiting[level].append(rows)
            seen[level] += len(rows)
            if seen[level] % TILE_PX and seen[level] < self.sizes[level].h:
                return
            band = np.concatenate(waiting[level]) if len(waiting[level]) > 1 else rows
            waiting[level].clear()
            for column in range(-(-band.shape[1] // TILE_PX)):
                yield TileAt(
                    level, (seen[level] - 1) // TILE_PX, column, band[:, column * TILE_PX : (column + 1) * TILE_PX]
                )
            if level + 1 < len(self.sizes):
                yield from push(level + 1, halve(band))

        for strip in strips:
            yield from push(self.depth + 1, strip)
