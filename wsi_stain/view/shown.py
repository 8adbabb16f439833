"""What there is to see of an unfinished virtual slide: painted blocks over a pale H&E; it stains nothing.

Fluorescence channels are shown as one picture in colours.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.measure.composite import composite
from wsi_stain.output.canvas import gather
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.output.pyramid import halve
from wsi_stain.slide.readers.base import DecodedTileCache
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tiling.grid import Block
from wsi_stain.view.painting import Painting

PALE = 235
"""Grey towards which the H&E is drawn where nothing is stained yet; also stands for what cannot be read."""
COARSE_BYTES = 32 << 20
"""Memory for blocks at coarse levels."""


class Shown:
    """Reads a painting at any level, in the output's frame; thread-safe.

    Args:
        painting: its canvas.
        slide: the H&E, open.
    """

    def __init__(self, painting: Painting, slide: Slide) -> None:
        self._painting, self._slide = painting, slide
        self._pyramid, self._store = painting.canvas.store.pyramid, painting.canvas.store
        self._coarse = DecodedTileCache(COARSE_BYTES)
        self._channels = painting.job.canvas.channels

    def read(self, level: int, box: Box) -> np.ndarray:
        """A box of painted blocks, uint8 (h, w, 3); every block that touches it must be painted."""
        if level <= self._pyramid.depth:
            canvas, values = self._painting.canvas, len(self._store.background)
            return self._in_colours(gather(box, lambda row, column: canvas.tile(level, row, column), values))
        out = np.empty((*box.size, 3), np.uint8)
        for block in self._painting.touching(box.scaled(1 << level)):
            self._put(out, box, level, block)
        return out

    def _in_colours(self, pixels: np.ndarray) -> np.ndarray:
        return composite(pixels, self._channels) if self._channels else pixels

    def over_pale(self, level: int, box: Box) -> np.ndarray:
        """A box of a level, uint8 (h, w, 3): what is painted, else tiles that were stained ahead, else pale H&E."""
        blocks = self._painting.touching(box.scaled(1 << level))
        unpainted = [block for block in blocks if block.index not in self._painting.painted]
        if not unpainted:
            return self.read(level, box)
        out = self.pale(level, box)
        if level <= self._pyramid.depth:
            self._put_ahead(out, box, level, unpainted)
        return self._with_painted(out, box, level, blocks)

    def over_background(self, level: int, box: Box) -> np.ndarray:
        """A box of a level, uint8 (h, w, 3): what is painted, else background of the stain."""
        out = np.empty((*box.size, 3), np.uint8)
        out[:] = self._store.background
        return self._with_painted(out, box, level, self._painting.touching(box.scaled(1 << level)))

    def _with_painted(self, out: np.ndarray, box: Box, level: int, blocks: list[Block]) -> np.ndarray:
        for block in blocks:
            if block.index in self._painting.painted:
                self._put(out, box, level, block)
        return out

    def pale(self, level: int, box: Box) -> np.ndarray:
        """A box of a level of the H&E, drawn towards grey: uint8 (h, w, 3)."""
        survey, grid = self._painting.survey, self._painting.job.grid
        scale = survey.scale * (1 << level)
        size = Size(*(-(-n // (1 << level)) for n in grid.size))
        at = box.shift(grid.region.y0 >> level, grid.region.x0 >> level)
        pixels, lost = View(self._slide, size, None, Fraction(scale)).read_and_damage(at)
        if lost.any():
            pixels[lost] = PALE
        return ((pixels.astype(np.uint16) + 2 * PALE) // 3).astype(np.uint8)

    def _put(self, out: np.ndarray, box: Box, level: int, block: Block) -> None:
        """Copy a painted block's part of the box."""
        place = self._place(block, level)
        part = place & box
        if not part.area:
            return
        if level <= self._pyramid.depth:
            pixels = self.read(level, part)
        else:
            whole = self._coarse.get((block.index, level), lambda: self._reduced(block, level))
            pixels = whole[part.shift(-place.y0, -place.x0).slices()]
        out[part.shift(-box.y0, -box.x0).slices()] = pixels

    def _reduced(self, block: Block, level: int) -> np.ndarray:
        """A painted block at a level above `pyramid.depth`."""
        pixels = self._store.remains(block.index)
        for _ in range(level - self._pyramid.depth - 1):
            pixels = halve(pixels)
        return self._in_colours(pixels)

    def _place(self, block: Block, level: int) -> Box:
        """The pixels of a block at a level; of a block narrower than a pixel, the one pixel that holds it."""
        inside = self._painting.job.grid.in_output(block.write)
        y1, x1 = (-(-n // (1 << level)) for n in (inside.y1, inside.x1))
        return Box(inside.y0 >> level, inside.x0 >> level, y1, x1)

    def _put_ahead(self, out: np.ndarray, box: Box, level: int, blocks: list[Block]) -> None:
        """Copy the tiles that were stained before their blocks; where they overlap, each keeps its middle."""
        grid, fine = self._painting.job.grid, box.scaled(1 << level)
        margin = grid.overlap // 2
        tiles = sorted({tile for block in blocks for tile in self._painting.tiles_of(block)})
        for tile in tiles:
            middle = Box(tile.y0 + margin, tile.x0 + margin, tile.y1 - margin, tile.x1 - margin)
            part = grid.in_output(middle) & fine & Box.of(grid.region.size)
            if not part.area or (pixels := self._painting.ahead(tile)) is None:
                continue
            cut = pixels[part.shift(grid.region.y0 - tile.y0, grid.region.x0 - tile.x0).slices()]
            for _ in range(level):
                cut = halve(cut)
            cut = self._in_colours(cut)
            place = Box.at(part.y0 - fine.y0 >> level, part.x0 - fine.x0 >> level, Size(*cut.shape[:2]))
            place &= Box.of(box.size)
            out[place.slices()] = cut[: place.size.h, : place.size.w]


def tile_box(level_size: Size, row: int, column: int) -> Box:
    """The pixels of a pyramid tile, clipped to its level; empty if it is outside."""
    return Box.at(row * TILE_PX, column * TILE_PX, Size(TILE_PX, TILE_PX)) & Box.of(level_size)
