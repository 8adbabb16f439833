"""Resampling between pixel grids, with weights computed from absolute integer coordinates.

    source    |  0  |  1  |  2  |  3  |  4  |      pixel j covers [j, j + 1)
    target    |   0    |   1    |   2    |         pixel i covers [i·step + offset, (i + 1)·step + offset)

A pixel's weights depend on its index alone, not on the start of a box: its value is the same in every box, without
drift over large distances. Downsampling takes the mean over the area of a pixel; upsampling is bilinear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wsi_stain.geometry import Box, Size

if TYPE_CHECKING:
    from scipy.sparse import csr_array

PIECE_PX = 1 << 22
"""Source pixels resampled at once: bounds memory (about 100 MB per thread) for any box."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps the pixels of a target to its source, along one axis.

    Attributes:
        step: source pixels per target pixel.
        offset: start of target pixel 0, in source pixels.
        first: the first valid source pixel.
        stop: the end of the valid source pixels (excluded); outside, the nearest valid one is replicated.
    """

    step: Fraction
    offset: Fraction
    first: int
    stop: int

    @property
    def is_plain(self) -> bool:
        """Whether target pixels coincide with source pixels."""
        return self.step == 1 and self.offset.denominator == 1

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The source pixels [lo, hi) that target pixels [start, stop) need."""
        spread = Fraction(1, 2) if self.step < 1 else 0  # bilinear needs half a pixel more
        lo = (start * self.step + self.offset - spread).__floor__()
        hi = (stop * self.step + self.offset + spread).__ceil__()
        return min(max(lo, self.first), self.stop - 1), max(min(hi, self.stop), self.first + 1)

    def weights(self, start: int, stop: int) -> tuple[csr_array, float]:
        """The matrix (target, source) of integer weights over `source(start, stop)`, and the sum of each row."""
        from scipy.sparse import csr_array  # importing it takes longer than opening a slide, which needs none

        q = lcm(self.step.denominator, self.offset.denominator)
        p, u = int(self.step * q), int(self.offset * q)
        # int64 suffices for any µm/px of a few digits; longer fractions use Python integers.
        kind = np.int64 if max(abs(start), abs(stop)) * p + abs(u) + q < 1 << 60 else object
        i = np.arange(start, stop).astype(kind)[:, None]
        if p >= q:
            left = i * p + u
            j = left // q + np.arange(-(-p // q) + 1).astype(kind)
            weights, total = np.maximum(np.minimum(left + p, (j + 1) * q) - np.maximum(left, j * q), 0), p
        else:
            centre = (2 * i + 1) * p + 2 * u - q
            j = centre // (2 * q) + np.arange(2).astype(kind)
            second = centre % (2 * q)
            weights, total = np.concatenate([2 * q - second, second], axis=1), 2 * q
        lo, hi = self.source(start, stop)
        columns = np.clip(np.clip(j, self.first, self.stop - 1) - lo, 0, hi - lo - 1).astype(np.int32)
        rows = np.arange(len(i) + 1, dtype=np.int32) * columns.shape[1]
        data = weights.astype(np.float32).ravel()
        return csr_array((data, columns.ravel(), rows), shape=(len(i), hi - lo)), float(total)


def resampled(read: Callable[[Box], np.ndarray], axes: tuple[Axis, Axis], box: Box) -> np.ndarray:
    """The pixels of a target box from a source that `read` reads; a large source is resampled in pieces.

    Args:
        read: uint8 (h, w, 3) of a box of the source.
        axes: the mapping along (y, x).
        box: in target pixels.

    Returns:
        uint8 (h, w, 3) of the box.
    """
    (y0, y1), (x0, x1) = axes[0].source(box.y0, box.y1), axes[1].source(box.x0, box.x1)
    source = Box(y0, x0, y1, x1)
    if source.size == box.size and all(axis.is_plain for axis in axes):  # a source may be smaller than the target
        return read(source)
    h, w = box.size
    if source.area > PIECE_PX and max(h, w) > 1:
        axis = 0 if h > 1 else 1
        parts = [box._replace(y1=box.y0 + h // 2), box._replace(y0=box.y0 + h // 2)]
        if axis:
            parts = [box._replace(x1=box.x0 + w // 2), box._replace(x0=box.x0 + w // 2)]
        return np.concatenate([resampled(read, axes, part) for part in parts], axis=axis)
    pixels = read(source)
    if source.size == Size(2 * h, 2 * w) and all(a.step == 2 and a.offset.denominator == 1 for a in axes):
        return halve_even(pixels)
    return shrink(pixels, axes[0].weights(box.y0, box.y1), axes[1].weights(box.x0, box.x1))


def shrink(pixels: np.ndarray, y: tuple[csr_array, float], x: tuple[csr_array, float]) -> np.ndarray:
    """Weight rows, then columns, and round half up: uint8 (h, w, 3) to uint8 (h', w', 3).

    The weights are integers, and every sum adds the same terms in the same order for any box.
    """
    h, w, _ = pixels.shape
    rows = y[0] @ pixels.astype(np.float32).reshape(h, w * 3)
    turned = cv2.transpose(rows.reshape(-1, w, 3))
    columns = x[0] @ turned.reshape(w, -1)
    columns /= np.float32(y[1] * x[1])
    columns += np.float32(0.5)
    return cv2.transpose(columns.astype(np.uint8).reshape(columns.shape[0], -1, 3))


def halve_even(pixels: np.ndarray) -> np.ndarray:
    """Means over 2×2 pixels, rounded half up: equals `shrink` with step 2, five times as fast."""
    h, w, _ = pixels.shape
    return cv2.resize(pixels, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
