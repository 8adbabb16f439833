"""Whether two slides correspond inside: do windows find shifts like those of their neighbours?

No threshold on a correlation tells true pairs from false ones: serial sections of some tissue correlate by 0.1, and
unrelated ones do too. But where the sections correspond, neighbouring windows find nearly the same shift, and where
they do not, the best shifts are spread evenly over the range of the search. A window is compared only with windows
that share none of its pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture
from wsi_stain.registration.matching import Surfaces
from wsi_stain.registration.refine import HALF_PX, matched, scaled

SCALES_UM = (16.0, 24.0)
RADIUS_PX, STEP_PX = 24, 14
NEAR_PX = 4.0
"""Shifts are alike if they differ by at most this."""
CHANCE = 0.03
"""Share of the windows of unrelated slides that are alike. By area it would be 0.02; 0.01 to 0.05 were measured on
wrong overlays of real pairs with more than 100 windows."""
NEIGHBOURS = 8
WINDOW_PX = 2 * HALF_PX + 1
OVERLAP = (WINDOW_PX / STEP_PX) ** 2
"""Windows that share a pixel: so many count as one independent window."""
FEWEST = 12
"""Fewest windows that can be judged."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far the windows agree at one scale."""

    windows: Surfaces
    shifts_um: np.ndarray
    """float64 (n, 2): the best shift of each window."""
    agrees: np.ndarray
    """bool (n,): whether it is like the median of its neighbours'."""

    @property
    def share(self) -> float:
        """Share of the windows that agree; 0 with too few windows."""
        return float(self.agrees.mean()) if len(self.agrees) >= FEWEST else 0.0

    @property
    def deviations(self) -> float:
        """How many standard deviations of chance the share is above chance."""
        n = len(self.agrees) / OVERLAP
        return (self.share - CHANCE) / math.sqrt(CHANCE * (1 - CHANCE) / n) if len(self.agrees) >= FEWEST else 0.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """How far the windows agree, at each of `SCALES_UM`."""

    scales: tuple[Agreement, ...]

    @property
    def windows(self) -> int:
        """Windows at the scale that has most."""
        return max(len(scale.agrees) for scale in self.scales)

    @property
    def share(self) -> float:
        """Share of the windows that agree, the mean of the scales."""
        return float(np.mean([scale.share for scale in self.scales]))

    @property
    def deviations(self) -> float:
        """Standard deviations above chance, of all scales together."""
        return sum(scale.deviations for scale in self.scales) / math.sqrt(len(self.scales))


def evidence(fixed: Picture, moving: Picture, affine: Affine) -> Evidence:
    """What the windows of the fixed picture's tissue show of an affine map."""
    scales = scaled(SCALES_UM, fixed)
    return Evidence(tuple(judged(matched(fixed, moving, affine, um, radius=RADIUS_PX, step=STEP_PX)) for um in scales))


def judged(windows: Surfaces) -> Agreement:
    """Which windows agree with their neighbours."""
    shifts = windows.peaks()
    if len(shifts) < FEWEST:
        return Agreement(windows, shifts, np.zeros(len(shifts), bool))
    apart = np.linalg.norm(windows.points[:, None] - windows.points[None], axis=-1)
    apart[apart < 0.95 * WINDOW_PX * windows.um] = np.inf
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :NEIGHBOURS]
    is_apart = np.isfinite(np.take_along_axis(apart, nearest, axis=1))
    alone = ~is_apart.any(axis=1)
    is_apart[alone] = True  # a window without a neighbour: its median means nothing, and it does not agree
    off = np.linalg.norm(shifts - np.nanmedian(np.where(is_apart[..., None], shifts[nearest], np.nan), axis=1), axis=1)
    return Agreement(windows, shifts, (off <= NEAR_PX * windows.um) & ~alone)
