"""What is left after the whole transform: for windows all over the tissue, by how much the other slide is still off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

from wsi_stain.registration.images import Picture
from wsi_stain.registration.matching import points_in, surfaces
from wsi_stain.registration.structure import places, structure
from wsi_stain.registration.transform import Transform

UM, HALF_PX, RADIUS_PX, STEP_PX = 8.0, 28, 16, 24
"""Windows of about 450 µm at 8 µm per px, searched over 128 µm."""
HOLDS_PX = 4.0
"""A window holds if it is off by at most this: by chance, one in 20 does."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """The shifts of all windows after the transform."""

    points: np.ndarray
    """float64 (n, 2): centres in µm of the H&E."""
    off_um: np.ndarray
    """float64 (n,): length of the best shift, at most about 180; the field has been fitted to the same windows, so it
    is what the search can see, not a bound of the error."""
    um: float
    """µm per px of the search."""

    @property
    def holds(self) -> np.ndarray:
        """bool (n,): whether a window is where the transform puts it."""
        return self.off_um <= HOLDS_PX * self.um

    def near(self, point: np.ndarray, within_um: float) -> tuple[float, float]:
        """Around a point: the median shift of the windows that hold, in µm, and the share that holds, 0–1.

        The shift is NaN if none holds; both are NaN without a window.
        """
        near = self._tree.query_ball_point(point, within_um) if len(self.points) else []
        if not near:
            return np.nan, np.nan
        holding = self.off_um[near][self.holds[near]]
        return (float(np.median(holding)) if len(holding) else np.nan), len(holding) / len(near)

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.points)


def residuals(he: Picture, ihc: Picture, transform: Transform) -> Residuals:
    """The shifts that block matching still finds after a transform."""
    first = structure(he.at(UM))
    second = structure(ihc.at(first.um))
    points = places(first.tissue.shape, first.um, first.origin)
    for row in range(0, len(points), 256):
        points[row : row + 256] = transform(points[row : row + 256])
    warped = second.warped(points, first)
    pixels = points_in(first.tissue & warped.tissue, step=STEP_PX, half=HALF_PX)
    windows = surfaces(first, warped, pixels, half=HALF_PX, radius=RADIUS_PX)
    shifts = windows.peaks()
    return Residuals(windows.points, np.linalg.norm(shifts, axis=1), windows.um)
