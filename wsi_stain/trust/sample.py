"""Tiles of tissue from which a slide is judged: spread over the slide, the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.slide import View
from wsi_stain.tissue.mask import TissueMask
from wsi_stain.trust.portrait import STAINED_OD

TILE_PX, TILES, MOST_READS = 256, 16, 48
"""Side of a tile in view px, tiles that are judged, and tiles that are read to find those."""
MOST_PLACES = 20_000
"""Places among which the tiles are chosen; on larger slides only every second, third … row and column is one."""
ENOUGH_TISSUE = 0.1
"""Share of a tile that must be stained: needle biopsies fill no tile."""
SEED = 0


def places(view: View, mask: TissueMask | None, region: Box | None = None, side: int = TILE_PX) -> list[Box]:
    """Squares of tissue in view px, in an order in which any first part is spread over the slide.

    Args:
        view: the slide at the model's scale.
        mask: tissue; None is everything.
        region: in view px; None is the whole view.
        side: of a square, px.
    """
    inside = Box.of(view.size) if region is None else region & Box.of(view.size)
    size = Size(*(min(side, n) for n in inside.size))
    if not size.h * size.w:
        return []
    step = max(1, round((inside.area / (size.h * size.w) / MOST_PLACES) ** 0.5))
    boxes = [
        Box.at(y, x, size)
        for y in range(inside.y0, inside.y1 - size.h + 1, step * size.h)
        for x in range(inside.x0, inside.x1 - size.w + 1, step * size.w)
    ]
    chosen = [box for box in boxes if mask is None or mask.touches(box, view.scale)]
    return [chosen[i] for i in np.random.default_rng(SEED).permutation(len(chosen))]


def tissue_tiles(
    view: View, mask: TissueMask | None, background: tuple[float, float, float], region: Box | None = None
) -> Iterator[tuple[Box, np.ndarray]]:
    """At most `TILES` tiles with enough stained tissue: box in view px, and uint8 (h, w, 3)."""
    found = 0
    for box in islice(places(view, mask, region), MOST_READS):
        try:
            tile = view.read(box)
        except UnreadableRegion:
            continue
        if is_stained(tile, background):
            yield box, tile
            found += 1
        if found == TILES:
            return


def is_stained(tile: np.ndarray, background: tuple[float, float, float]) -> bool:
    """Whether enough of a tile, uint8 (h, w, 3), is darker than the background by `STAINED_OD`."""
    darkest = np.mean(background) * 10**-STAINED_OD
    return bool((tile.mean(-1) < darkest).mean() >= ENOUGH_TISSUE)
