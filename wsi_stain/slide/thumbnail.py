"""Pictures of damaged slides: what one level has lost is taken from a finer one, and is white if all have lost it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box, Size

PARTS = 32
"""Damage is narrowed down to this fraction of the longer side: every failed read costs a fresh handle."""


def read_around_damage(read: Callable[[int, Box], np.ndarray], level: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """A picture of which parts cannot be decoded.

    Args:
        read: uint8 (h, w, 3) of a box of the picture from a level of the slide; raises `UnreadableRegion`.
        level: the level to read from; finer ones stand in.
        size: of the picture.

    Returns:
        The picture, uint8 (h, w, 3), white where no level can be decoded; and where that is, bool (h, w).
    """
    out, lost = np.full((*size, 3), 255, np.uint8), np.zeros(size, bool)
    smallest = max(8, max(size) // PARTS)
    for box in _unreadable(out, read, level, Box.of(size), smallest):
        lost[box.slices()] = True
    return out, lost


def _unreadable(
    out: np.ndarray, read: Callable[[int, Box], np.ndarray], level: int, box: Box, smallest: int
) -> Iterator[Box]:
    """Fill a box of the picture, and yield the parts that stay white."""
    try:
        out[box.slices()] = read(level, box)
    except UnreadableRegion:
        if max(box.size) > smallest:
            for part in _halves(box):
                yield from _unreadable(out, read, level, part, smallest)
        elif level:
            yield from _unreadable(out, read, level - 1, box, smallest)
        else:
            yield box


def _halves(box: Box) -> tuple[Box, Box]:
    h, w = box.size
    if h >= w:
        return box._replace(y1=box.y0 + h // 2), box._replace(y0=box.y0 + h // 2)
    return box._replace(x1=box.x0 + w // 2), box._replace(x0=box.x0 + w // 2)
