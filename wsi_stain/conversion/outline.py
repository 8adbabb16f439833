"""Whether the outlines of stained tiles are visible: glass inside of them beside the constant background of the others.

A network paints glass in a colour of its own; tiles without tissue are not stained and get the bundle's background.
Neighbours are blended, so a difference makes no step, but a soft outline around the tissue that everybody sees at high
contrast. Patches without tissue are compared, as read from the painted canvas: the encoding changes both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.tiling.grid import TileGrid

PATCH = 64
"""Side of a patch in px, and its least distance to tissue."""
MOST_PATCHES, FEWEST_PATCHES = 32, 4
"""Patches on either side; with fewer the question is not asked."""
MOST_TILES, TRIES, MOST_IN_TILE = 512, 16, 4
"""Tiles in which patches are looked for, places tried in each, and patches taken from each."""
ALLOWED = 0.3
"""Grey levels. A difference of half a level is visible as an outline at ten-fold contrast."""


class OutlinePatches(NamedTuple):
    """Patches without tissue, in the view's frame."""

    stained: tuple[Box, ...] = ()
    unstained: tuple[Box, ...] = ()


def choose(grid: TileGrid, tissue: Sequence[Box], touches: Callable[[Box], bool], seed: int) -> OutlinePatches:
    """Choose patches; none if either kind is too rare.

    Args:
        grid: the tile grid, with the converted region.
        tissue: all stained tiles, in the view's frame and a reproducible order.
        touches: whether there may be tissue in a box.
        seed: equal seeds give equal patches.
    """
    stained = frozenset(tissue)
    others = [tile for tile in grid.tiles(grid.region) if tile not in stained]
    kinds = [tuple(islice(_patches(grid, tiles, touches, seed), MOST_PATCHES)) for tiles in (tissue, others)]
    return OutlinePatches(*kinds) if min(map(len, kinds)) >= FEWEST_PATCHES else OutlinePatches()


def _patches(grid: TileGrid, tiles: Sequence[Box], touches: Callable[[Box], bool], seed: int) -> Iterator[Box]:
    """Patches in the part of tiles that no other tile overlaps."""
    rng, side = np.random.default_rng(seed), grid.tile - 2 * grid.overlap - PATCH
    inside = grid.region & Box.of(grid.size)
    if side < 0:
        return
    for i in rng.permutation(len(tiles))[:MOST_TILES]:
        starts = rng.integers(0, side + 1, (TRIES, 2)) + grid.overlap
        places = (Box.at(tiles[i].y0 + int(y), tiles[i].x0 + int(x), Size(PATCH, PATCH)) for y, x in starts)
        yield from islice((box for box in places if inside.contains(box) and not touches(_around(box))), MOST_IN_TILE)


def _around(patch: Box) -> Box:
    return Box(patch.y0 - PATCH, patch.x0 - PATCH, patch.y1 + PATCH, patch.x1 + PATCH)


def difference(stained: Sequence[np.ndarray], unstained: Sequence[np.ndarray]) -> float:
    """Median over stained patches of the difference of their mean from the unstained background, in grey levels.

    The median, because dust on the glass is no outline.

    Args:
        stained: uint8 (h, w, C), patches in stained tiles.
        unstained: the same in tiles that were not stained.
    """
    constant = np.median([patch.mean((0, 1), dtype=np.float64) for patch in unstained], axis=0)
    return float(np.median([np.abs(patch.mean((0, 1), dtype=np.float64) - constant).mean() for patch in stained]))
