"""A reader whose picture is turned as its orientation tag says (TIFF 6.0, tag 274; the same numbers in EXIF)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import Backend

TAG = 274
TURNS = {
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored along its diagonal",
    6: "turned by 90° clockwise",
    7: "mirrored along its other diagonal",
    8: "turned by 90° anticlockwise",
}
"""What is done to the stored picture."""


def turned(backend: Backend, orientation: object, name: str) -> Backend:
    """The reader, or one that turns its picture; numbers that the standard does not know leave it as it is."""
    return Turned(backend, orientation, name) if isinstance(orientation, int) and orientation in TURNS else backend


def notes(orientation: object, name: str) -> tuple[str, ...]:
    """What the user is told of a picture that was turned; empty if it was not."""
    if not isinstance(orientation, int) or orientation not in TURNS:
        return ()
    return (f"{name} is {TURNS[orientation]}, as its orientation tag demands; all coordinates are those of the result",)


class Turned:
    """Another reader's pixels, mirrored and transposed; boxes and sizes are those of the turned picture."""

    def __init__(self, backend: Backend, orientation: int, name: str) -> None:
        self._backend = backend
        self._is_transposed = orientation >= 5
        self._flips = (orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))
        self.name = backend.name
        self.sizes = tuple(Size(*size[::-1]) if self._is_transposed else size for size in backend.sizes)
        metadata = backend.metadata
        mpp = metadata.mpp[::-1] if metadata.mpp and self._is_transposed else metadata.mpp
        self.metadata = replace(metadata, mpp=mpp, bounds=None, notes=(*metadata.notes, *notes(orientation, name)))

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the turned level; raises `DecodeError`."""
        size = self.sizes[level]
        y0, y1 = (size.h - box.y1, size.h - box.y0) if self._flips[0] else (box.y0, box.y1)
        x0, x1 = (size.w - box.x1, size.w - box.x0) if self._flips[1] else (box.x0, box.x1)
        stored = Box(x0, y0, x1, y1) if self._is_transposed else Box(y0, x0, y1, x1)
        pixels = self._backend.read(level, stored)
        if self._is_transposed:
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels[:: -1 if self._flips[0] else 1, :: -1 if self._flips[1] else 1])

    def renew(self) -> None:
        """Give the calling thread a fresh handle."""
        self._backend.renew()

    def close(self) -> None:
        """Close the handles of all threads."""
        self._backend.close()
