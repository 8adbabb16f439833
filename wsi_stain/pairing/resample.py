"""Both slides in the frame of the H&E, resampled alike.

A discriminator that sees which of two images was interpolated learns that instead of the stain. So both sides of a tile
are read at the scale of the tiles, and both are then interpolated once, at places of the H&E that drift by half a pixel
to either side: the H&E there, and the other slide where the transform puts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.geometry import Box
from wsi_stain.registration.transform import Transform
from wsi_stain.slide.slide import View

PART_PX = 256
"""Side of the squares that are read and interpolated at a time: a rotated one needs twice its area."""
DRIFT_PX = 512
"""The places drift once from half a pixel before to half a pixel after, and back, within twice this distance."""
FURTHEST_PX = 4 * PART_PX
"""Places that lie further apart are read in halves: the field stretches them."""
STEPS = 32
"""OpenCV interpolates at multiples of 1/32 px; places are rounded to them, so that no box changes a pixel."""


@dataclass(frozen=True, eq=False)
class Warped:
    """The other slide in the frame of a view of the H&E.

    Memory bound: a few squares of `PART_PX`, beside the pixels of the box.
    """

    view: View
    """The other slide, at the scale of the H&E's view."""
    transform: Transform
    mpp: float
    """µm per px of both views."""
    drifts: bool = False
    """Whether the places drift like those of `he_tile`; otherwise they are the centres of the H&E's pixels."""

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w, 3) of a box in the H&E's view, and what of it lies on the other slide, bool (h, w)."""
        pixels, inside = np.empty((*box.size, 3), np.uint8), np.empty(box.size, bool)
        for part in parts(box, PART_PX):
            here = part.shift(-box.y0, -box.x0).slices()
            pixels[here], inside[here] = self._part(part)
        return pixels, inside

    def _part(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """One square, piece by piece: what two pieces need may lie at opposite ends of the other slide."""
        points = (_places(box, drifts=self.drifts) + 0.5) * self.mpp
        owner = self.transform.owner(points)
        pixels, inside = np.empty((*box.size, 3), np.uint8), np.empty(box.size, bool)
        size = np.array(self.view.size)
        for number in np.unique(owner):
            here = _bounds(owner == number)
            mine = owner[here] == number
            places = self.transform.pieces[number](points[here]) / self.mpp - 0.5
            pixels[here][mine] = _interpolated(self.view, np.clip(places, -1, size))[mine]
            inside[here][mine] = ((places > -0.5) & (places < size - 0.5)).all(-1)[mine]
        return pixels, inside


def he_tile(view: View, box: Box) -> np.ndarray:
    """A box of the H&E's view, interpolated like the other slide: uint8 (h, w, 3)."""
    return _interpolated(view, _places(box, drifts=True))


def parts(box: Box, side: int) -> list[Box]:
    """The squares of a side that divide a box, row by row; the last ones may be smaller."""
    return [
        Box(y, x, min(y + side, box.y1), min(x + side, box.x1))
        for y in range(box.y0, box.y1, side)
        for x in range(box.x0, box.x1, side)
    ]


def _places(box: Box, *, drifts: bool) -> np.ndarray:
    """The places of a box's pixels in px of the H&E's view, where the centre of pixel i is at i: float64 (h, w, 2)."""
    axes = (np.arange(start, stop, dtype=np.float64) for start, stop in ((box.y0, box.y1), (box.x0, box.x1)))
    y, x = (index + _drift(index) if drifts else index for index in axes)
    return np.stack(np.meshgrid(y, x, indexing="ij"), -1)


def _drift(index: np.ndarray) -> np.ndarray:
    """A triangle wave between -0.5 and 0.5."""
    return np.abs(index % (2 * DRIFT_PX) - DRIFT_PX) / DRIFT_PX - 0.5


def _bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around the pixels of a mask, bool (h, w), that has some."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _interpolated(view: View, places: np.ndarray) -> np.ndarray:
    """The view at places (h, w, 2) in its pixels: uint8 (h, w, 3)."""
    places = np.rint(places * STEPS) / STEPS
    low, high = np.floor(places.min((0, 1))).astype(int), np.ceil(places.max((0, 1))).astype(int)
    if max(high - low) > FURTHEST_PX and max(places.shape[:2]) > 1:
        axis = int(places.shape[1] > places.shape[0])
        halves = np.split(places, [places.shape[axis] // 2], axis)
        return np.concatenate([_interpolated(view, half) for half in halves], axis)
    box = Box(int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1)
    maps = (places - low).astype(np.float32)
    return cv2.remap(view.read(box), maps[..., 1], maps[..., 0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
