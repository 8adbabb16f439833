"""Block matching: for points of one structure, how well each small shift of the other fits.

The score is the normalised correlation of a square window (OpenCV's `TM_CCORR_NORMED`; both structures have local mean
0 already). Outside the tissue a structure is 0, so a window at the edge counts only its tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.measure.peak import vertex
from wsi_stain.registration.structure import Structure

LEAST_TISSUE = 0.5
"""A window is used if this share of it is tissue in both."""
LEAST_ENERGY = 0.05
"""A shifted window with less than this share of the typical energy is empty: its score is 0."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Scores of shifts at n points."""

    points: np.ndarray
    """float64 (n, 2): centres of the windows in µm."""
    scores: np.ndarray
    """float32 (n, 2 r + 1, 2 r + 1): normalised correlation of each shift (y, x), -1 to 1."""
    um: float
    """µm per px of the shifts."""

    @property
    def radius(self) -> int:
        """Largest shift in px."""
        return self.scores.shape[1] // 2

    def peaks(self) -> np.ndarray:
        """The best shift of each point in µm, float64 (n, 2), to a fraction of a pixel, except at the largest shift."""
        n, side, _ = self.scores.shape
        best = self.scores.reshape(n, side * side).argmax(1)
        y, x = (i[:, None] for i in (best // side, best % side))
        rows, three = np.arange(n)[:, None], np.array([-1, 0, 1])
        lines = self.scores[rows, (y + three).clip(0, side - 1), x], self.scores[rows, y, (x + three).clip(0, side - 1)]
        offsets = [
            np.where((i > 0) & (i < side - 1), vertex(a)[:, None], 0) for i, a in zip((y, x), lines, strict=True)
        ]
        return (np.hstack([y, x]) + np.hstack(offsets) - self.radius) * self.um


def points_in(tissue: np.ndarray, *, step: int, half: int) -> np.ndarray:
    """Pixels on a regular grid whose window, `2 half + 1` px wide, has enough tissue: int (n, 2)."""
    share = cv2.blur(tissue.astype(np.float32), (2 * half + 1, 2 * half + 1), borderType=cv2.BORDER_CONSTANT)
    centres = np.argwhere(share[step // 2 :: step, step // 2 :: step] >= LEAST_TISSUE)
    return centres * step + step // 2


def surfaces(fixed: Structure, moving: Structure, pixels: np.ndarray, *, half: int, radius: int) -> Surfaces:
    """The scores of all shifts up to `radius` px at some pixels of the fixed structure.

    Args:
        fixed: the structure whose windows are searched for.
        moving: the other structure, already in the frame and at the scale of the first.
        pixels: int (n, 2), centres of the windows.
        half: half the side of a window in px.
        radius: the largest shift in px. The point p of the first corresponds to p + shift of the second.
    """
    pad = half + radius
    ours = cv2.copyMakeBorder(fixed.field, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    theirs = cv2.copyMakeBorder(moving.field, pad, pad, pad, pad, cv2.BORDER_CONSTANT)
    side = 2 * half + 1
    energy = cv2.blur(theirs**2, (side, side), borderType=cv2.BORDER_CONSTANT)
    least = LEAST_ENERGY * (float(np.median(energy[energy > 0])) if (energy > 0).any() else 1.0)
    scores = np.zeros((len(pixels), 2 * radius + 1, 2 * radius + 1), np.float32)
    for score, (y, x) in zip(scores, pixels + pad, strict=True):
        window = ours[y - half : y + half + 1, x - half : x + half + 1]
        around = theirs[y - pad : y + pad + 1, x - pad : x + pad + 1]
        score[:] = cv2.matchTemplate(around, window, cv2.TM_CCORR_NORMED)
        score[energy[y - radius : y + radius + 1, x - radius : x + radius + 1] < least] = 0
    return Surfaces((pixels + 0.5) * fixed.um + fixed.origin, scores, fixed.um)
