"""Both slides in the frame of the H&E, resampled alike.

A discriminator that sees which of two images was interpolated learns that instead of the stain. So both are read at the
scale of the tiles, and both are then interpolated once: the warped slide at the places of the transform, and the H&E at
places that drift by half a pixel to either side, which on average blurs it as much.
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
"""The H&E's places drift once from half a pixel before to half a pixel after, and back, within twice this distance."""
FURTHEST_PX = 4 * PART_PX
"""A square whose places lie further apart belongs to two fragments, and is read in quarters."""


@dataclass(frozen=True, eq=False)
class Warped:
    """The other slide in the frame of a view of the H&E."""

    view: View
    """The other slide, at the scale of the H&E's view."""
    transform: Transform
    mpp: float
    """µm per px of both views."""

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w, 3) of a box in the H&E's view, and what of it lies on the other slide, bool (h, w)."""
        pixels, inside = np.empty((*box.size, 3), np.uint8), np.empty(box.size, bool)
        for part in _parts(box, PART_PX):
            here = part.shift(-box.y0, -box.x0).slices()
            pixels[here], inside[here] = self._part(part)
        return pixels, inside

    def _part(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1]
        places = self.transform((np.stack([y, x], -1) + 0.5) * self.mpp) / self.mpp - 0.5
        size = np.array(self.view.size)
        inside = np.asarray(((places > -0.5) & (places < size - 0.5)).all(-1))
        span = np.ptp(places.reshape(-1, 2), axis=0).max()
        if span > FURTHEST_PX and max(box.size) > 1:
            pixels = np.empty((*box.size, 3), np.uint8)
            for part in _parts(box, -(-max(box.size) // 2)):
                pixels[part.shift(-box.y0, -box.x0).slices()] = self._part(part)[0]
            return pixels, inside
        return _interpolated(self.view, np.clip(places, -1, size)), inside


def he_tile(view: View, box: Box) -> np.ndarray:
    """A box of the H&E's view, interpolated like the other slide: uint8 (h, w, 3)."""
    y, x = (np.arange(a, b) + _drift(np.arange(a, b)) for a, b in ((box.y0, box.y1), (box.x0, box.x1)))
    return _interpolated(view, np.stack(np.meshgrid(y, x, indexing="ij"), -1))


def _drift(index: np.ndarray) -> np.ndarray:
    """A triangle wave between -0.5 and 0.5."""
    return np.abs(index % (2 * DRIFT_PX) - DRIFT_PX) / DRIFT_PX - 0.5


def _interpolated(view: View, places: np.ndarray) -> np.ndarray:
    """The view at places (h, w, 2) in its pixels: uint8 (h, w, 3)."""
    low, high = np.floor(places.min((0, 1))).astype(int), np.ceil(places.max((0, 1))).astype(int)
    box = Box(int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1)
    maps = (places - low).astype(np.float32)
    return cv2.remap(view.read(box), maps[..., 1], maps[..., 0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _parts(box: Box, side: int) -> list[Box]:
    return [
        Box(y, x, min(y + side, box.y1), min(x + side, box.x1))
        for y in range(box.y0, box.y1, side)
        for x in range(box.x0, box.x1, side)
    ]
