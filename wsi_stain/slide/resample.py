"""Resampling between pixel grids, with weights computed from absolute integer coordinates.

    source    |  0  |  1  |  2  |  3  |  4  |      pixel j covers [j, j + 1)
    target    |   0    |   1    |   2    |         pixel i covers [i·step + offset, (i + 1)·step + offset)

A pixel's weights depend on its index alone, not on the start of a box: its value is the same in every box, without
drift over large distances. Downsampling takes the mean over the area of a pixel; upsampling is bilinear.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import cv2
import numpy as np
from scipy.sparse import csr_array


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


def halve(pixels: np.ndarray) -> np.ndarray:
    """Means over 2×2 pixels, rounded half up: equals `shrink` with step 2, five times as fast."""
    h, w, _ = pixels.shape
    return cv2.resize(pixels, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
