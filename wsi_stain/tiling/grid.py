"""Positions of tiles, and the blocks that compute them.

Tiles are anchored at the slide's origin, for any converted region, so that a pixel always comes from the same tiles.
Blocks are anchored at the output's origin, like pyramid tiles.

    tile 0  |=========|              stride = tile - overlap
    tile 1         |=========|
    block 0 |-------------|          computes tiles 0 and 1, writes its own pixels only
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import reduce
from operator import or_

from wsi_stain.errors import ConfigError
from wsi_stain.geometry import Box, Size


@dataclass(frozen=True, slots=True)
class Block:
    """The unit of work: the only writer of `write`; computes every tile that touches it."""

    index: tuple[int, int]
    """Row and column among the output's blocks."""
    write: Box
    """The pixels it owns, in the view's frame."""
    tiles: tuple[Box, ...]
    """Whole tiles, row by row; they may reach outside the image."""

    @property
    def read(self) -> Box:
        """The smallest box that contains all its tiles."""
        return reduce(or_, self.tiles)


@dataclass(frozen=True, init=False)
class TileGrid:
    """The tiles that cover an image of `size`, and the blocks that partition `region`; it decides whose tile is whose.

    Origins of tiles are k * (tile - overlap), and the last tile may reach outside the image. All boxes are in the frame
    of the image, which is the view, except those that a docstring calls boxes of the output.

    Args:
        size: of the image (the view) in its pixels.
        tile: side of a tile.
        overlap: pixels shared by neighbouring tiles, at most half a tile so that no more than two meet on an axis.
        multiple: of the generator; tile and stride must be multiples of it, or its inner grid shifts between tiles.
        region: the part of the image that is converted, and the output's frame; by default the whole image.
        block: side of a block; by default, one block covers the region.

    Raises:
        ConfigError: tile, overlap and multiple are not compatible.

    >>> list(TileGrid(Size(1, 10), tile=6, overlap=2, multiple=2).tiles(Box(0, 0, 1, 10)))
    [Box(y0=0, x0=0, y1=6, x1=6), Box(y0=0, x0=4, y1=6, x1=10)]
    """

    size: Size
    tile: int
    overlap: int
    multiple: int
    region: Box
    block: int

    def __init__(
        self,
        size: Size,
        tile: int,
        overlap: int,
        multiple: int = 1,
        *,
        region: Box | None = None,
        block: int | None = None,
    ) -> None:
        if not 0 <= 2 * overlap <= tile:
            raise ConfigError(
                f"grid.overlap is {overlap}; it must be between 0 and {tile // 2}, half of grid.tile ({tile})"
            )
        if tile < 1 or tile % multiple or overlap % multiple:
            raise ConfigError(
                f"grid.tile is {tile} and grid.overlap {overlap}; this model requires both as multiples of {multiple}"
            )
        region = Box.of(size) if region is None else region
        values = (size, tile, overlap, multiple, region, max(*region.size, 1) if block is None else block)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def stride(self) -> int:
        """Distance between the origins of neighbouring tiles, px."""
        return self.tile - self.overlap

    def tiles(self, over: Box) -> Iterator[Box]:
        """All tiles that touch the box `over`, row by row; none if it is empty."""
        columns = self._spans(over.x0, over.x1, self.size.w)
        for y0, y1 in self._spans(over.y0, over.y1, self.size.h):
            yield from (Box(y0, x0, y1, x1) for x0, x1 in columns)

    def count(self, over: Box) -> int:
        """Number of tiles that touch the box `over`."""
        return len(self._spans(over.y0, over.y1, self.size.h)) * len(self._spans(over.x0, over.x1, self.size.w))

    def blocks(self) -> list[Block]:
        """The blocks that partition the region, row by row."""
        rows, columns = self.region.size.ceil_div(self.block)
        blocks = []
        for row in range(rows):
            for column in range(columns):
                y0, x0 = self.region.y0 + row * self.block, self.region.x0 + column * self.block
                write = Box(y0, x0, y0 + self.block, x0 + self.block) & self.region
                blocks.append(Block((row, column), write, tuple(self.tiles(write))))
        return blocks

    def owner(self, tile: Box) -> tuple[int, int]:
        """Row and column of the block that owns the tile: the one with its first pixel inside the region.

        Several blocks may compute a tile, but it is counted for its owner only. The tile must touch the region.
        """
        first = self.in_output(tile & self.region)
        return first.y0 // self.block, first.x0 // self.block

    def owned(self, block: Block) -> list[Box]:
        """The tiles that the block owns; over all blocks, every tile that touches the region once."""
        return [tile for tile in block.tiles if self.owner(tile) == block.index]

    def users(self, tile: Box) -> list[tuple[int, int]]:
        """Row and column of every block that computes the tile or takes it from a cache, its owner first."""
        inside, side = self.in_output(tile & self.region), self.block
        rows = range(inside.y0 // side, (inside.y1 - 1) // side + 1)
        columns = range(inside.x0 // side, (inside.x1 - 1) // side + 1)
        return [(row, column) for row in rows for column in columns]

    def in_output(self, box: Box) -> Box:
        """The same box in the frame of the output, whose first pixel is that of the region."""
        return box.shift(-self.region.y0, -self.region.x0)

    def _spans(self, start: int, end: int, length: int) -> list[tuple[int, int]]:
        """The tiles along one axis that touch [start, end)."""
        start, end = max(start, 0), min(end, length)
        if start >= end:
            return []
        last = max(0, math.ceil((length - self.overlap) / self.stride) - 1)
        first = max(0, (start - self.tile) // self.stride + 1)
        final = min(last, (end - 1) // self.stride)
        return [(k * self.stride, k * self.stride + self.tile) for k in range(first, final + 1)]


def painting_order(blocks: Iterable[Block]) -> list[Block]:
    """The blocks ordered along the shorter side of the area that they cover.

    A worker caches the tiles between its last blocks and their neighbours: those along one row, or one column. A glass
    slide is 25 mm wide, which at 0.5 µm/px, tiles of 512 px and an overlap of 128 px takes 103 MiB; a row of the long
    side may take three times as much, and tiles that do not fit into the cache are computed twice.
    """
    blocks = list(blocks)
    rows, columns = (len({block.index[axis] for block in blocks}) for axis in (0, 1))
    return sorted(blocks, key=lambda block: block.index[:: -1 if rows < columns else 1])
