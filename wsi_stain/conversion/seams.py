"""Where an output may have seams, and what is measured there, for checks (a) to (c) of `conversion.certificate`.

(a) A step at tile lines: how much steeper the image is between two neighbouring rows or columns than on either side
    (tissue has soft edges, a seam has none), averaged along 64 px (a seam is continuous, texture is not), at lines
    where a tile begins or ends, compared with the same lines shifted. It is read from the painted canvas, so it is
    the step that a viewer shows.
(b) A dependence of pixels on tiles: some tiles are stained a second time, half a stride away, and compared with the
    output.
(c) A dependence of the DAB-positive area on tiles, at the same places.

The places depend only on the slide, the model and the settings. The figures of (b) and (c) are measured on the workers
by the device that painted the block; another device rounds differently, which may change the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.tiling.grid import TileGrid

SHIFTS = (-48, -32, -16, 16, 32, 48)
"""Offsets of the shifted lines in px. All are multiples of 16, so that JPEG blocks and the network's inner grid
(at most 8 px) have the same phase; none is a multiple of 128, so that a step at attention windows is detected, too."""
REACH = max(SHIFTS) + 2
PIECE = 64
"""Length in px along a line over which its step is averaged."""
FEW_LINES, MOST_LINES = 32, 128
"""Bounds of the number of lines of check (a), which is a quarter of the tissue tiles. Each line decodes one or two JPEG
tiles, so the check takes half a second at most."""
MOST_PLACES, TILES_PER_PLACE = 64, 100
"""Bounds of the number of tiles stained a second time: 1 % of the tissue tiles, at least one."""


class TileBoundary(NamedTuple):
    """A segment of a line at which a tile begins or ends, in the view's frame."""

    axis: Literal[0, 1]
    """0: between two rows; 1: between two columns."""
    at: int
    """First row or column after the line."""
    start: int
    end: int
    """End along the line, exclusive."""

    @property
    def box(self) -> Box:
        """The box that contains the line and all its shifted lines."""
        low, high = self.at - REACH, self.at + REACH
        return Box(low, self.start, high, self.end) if self.axis == 0 else Box(self.start, low, self.end, high)


class OffsetTile(NamedTuple):
    """A tile off the grid to stain a second time, and the box to compare, in the view's frame."""

    tile: Box
    compare: Box


@dataclass(frozen=True, slots=True)
class SeamSites:
    """Where an output is examined; empty if no two tissue tiles are adjacent."""

    lines: tuple[TileBoundary, ...] = ()
    offset_tiles: tuple[OffsetTile, ...] = ()


def choose(grid: TileGrid, tissue: Sequence[Box], seed: int) -> SeamSites:
    """Choose where to examine an output.

    Args:
        grid: the tile grid, with the generator's multiple and the converted region.
        tissue: all stained tiles, in the view's frame and a reproducible order.
        seed: equal seeds give equal places.
    """
    order = [tissue[i] for i in np.random.default_rng(seed).permutation(len(tissue))]
    stained, inside = frozenset(tissue), grid.region & Box.of(grid.size)

    def fits(box: Box) -> bool:
        return inside.contains(box) and all(tile in stained for tile in grid.tiles(box))

    lines = (line for line in _lines(grid, order) if fits(line.box))
    repeats = (place for place in _places(grid, order) if fits(place.compare))
    count = min(MOST_LINES, max(FEW_LINES, len(tissue) // 4))
    return SeamSites(
        tuple(islice(lines, count if len(shifts(grid)) > 1 else 0)),
        tuple(islice(repeats, min(MOST_PLACES, max(1, len(tissue) // TILES_PER_PLACE)))),
    )


def shifts(grid: TileGrid) -> tuple[int, ...]:
    """The `SHIFTS` at which no tile begins or ends, both for lines at a beginning and at an end."""
    ends = {0, grid.overlap % grid.stride}
    return tuple(s for s in SHIFTS if not any((end + s) % grid.stride in ends for end in ends))


def _lines(grid: TileGrid, tiles: Sequence[Box]) -> Iterator[TileBoundary]:
    """Lines at the upper and left sides of tiles: one line of every tile, then the next of every tile."""
    kinds = [(axis, offset) for axis in (0, 1) for offset in sorted({0, grid.overlap})]
    length = 3 * grid.tile // 4
    for turn in range(len(kinds)):
        for i, tile in enumerate(tiles):
            axis, offset = kinds[(i + turn) % len(kinds)]
            start = tile[1 - axis] + grid.tile // 8
            if tile[axis] and length >= PIECE:  # no tile ends at the first pixel of the image
                yield TileBoundary(axis, tile[axis] + offset, start, start + length)  # type: ignore[arg-type]


def _places(grid: TileGrid, tiles: Sequence[Box]) -> Iterator[OffsetTile]:
    """Tiles half a stride away, compared in their middle half, which covers a corner of four tiles.

    A comparison is clipped to one pyramid tile of the output, so that it is in one block for every block size. Places
    that need no clipping come first; if all lines are on borders of pyramid tiles, all places are clipped.
    """
    offset, quarter = grid.stride // 2 // grid.multiple * grid.multiple, grid.tile // 4
    if offset == 0:
        return  # the network accepts only tiles of the grid
    for least in (4 * quarter * quarter, quarter * quarter):
        for tile in tiles:
            other = tile.shift(offset, offset)
            middle = Box(other.y0 + quarter, other.x0 + quarter, other.y0 + 3 * quarter, other.x0 + 3 * quarter)
            compare = middle & _pyramid_tile(grid.region, other.y0 + 2 * quarter, other.x0 + 2 * quarter)
            if compare.area >= least and (compare == middle) == (least > quarter * quarter):
                yield OffsetTile(other, compare)


def _pyramid_tile(region: Box, y: int, x: int) -> Box:
    row, column = (y - region.y0) // TILE_PX, (x - region.x0) // TILE_PX
    return Box.at(region.y0 + row * TILE_PX, region.x0 + column * TILE_PX, Size(TILE_PX, TILE_PX))


def steps(pixels: np.ndarray, line: TileBoundary, at: Sequence[int]) -> list[float]:
    """The mean step at a line and at the lines shifted by `at`.

    Args:
        pixels: uint8 (h, w, C), of `line.box`.
        line: the line.
        at: shifts in px, a subset of `SHIFTS`.
    """
    along_first = pixels if line.axis == 1 else pixels.swapaxes(0, 1)
    sharp = sharpness(along_first, PIECE).mean((0, 2))
    return [float(sharp[REACH + s - 2]) for s in (0, *at)]


def sharpness(pixels: np.ndarray, piece: int) -> np.ndarray:
    """How much steeper each step between columns is than its neighbours, averaged along pieces of the columns.

    Args:
        pixels: numbers (h, w, C).
        piece: length of a piece in px.

    Returns:
        float64 (h // piece, w - 3, C): index i across is the step to column i + 2.
    """
    n, across = pixels.shape[0] // piece, pixels.shape[1]
    profile = pixels[: n * piece].reshape(n, piece, across, -1).mean(1, dtype=np.float64)
    slope = np.diff(profile, axis=1)  # slope[:, i] is the step to column i + 1
    return np.abs(slope[:, 1:-1] - (slope[:, :-2] + slope[:, 2:]) / 2)


def compare(painted: np.ndarray, repeat: np.ndarray, background: Background | None) -> dict[str, list[int]]:
    """The comparison that a block records: counts of differences and positive pixels of two uint8 (h, w, C) images.

    Without the colour of the background they are no colours, and no pixel is positive for DAB.
    """
    counts = np.bincount(np.abs(painted.astype(np.int16) - repeat).ravel())
    if background is None:
        return {"differences": counts.tolist(), "positive": []}
    positive = [int((dab(image, background) >= POSITIVE_OD).sum()) for image in (painted, repeat)]
    return {"differences": counts.tolist(), "positive": positive}
