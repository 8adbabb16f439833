"""The non-rigid part: a smooth field of displacements, found by block matching on a regular grid.

At each scale all windows choose their shifts together: the cost of a shift is what its correlation lacks, plus a
growing penalty for departing from the smoothed choice of its neighbours (the coupled convex scheme of Heinrich et al.,
"Non-parametric discrete registration with convex optimisation", 2014). A field that folds is smoothed until it does
not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture
from wsi_stain.registration.matching import Surfaces, points_in, surfaces
from wsi_stain.registration.structure import Structure, blurred, places, structure

COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Penalties in correlation per px² of departure, in this order."""
SMOOTH_STEPS = 1.5
"""Standard deviation of the smoothing in steps of the grid."""
LEAST_JACOBIAN = 0.2
"""The smallest local change of area: 0 would be a fold."""


@dataclass(frozen=True, eq=False)
class Deformation:
    """Displacements on a regular grid of the fixed slide.

    The point p corresponds to `affine(p + displacement(p))` of the other slide. Beyond the grid, the displacement of
    the nearest node counts.
    """

    values: np.ndarray
    """float32 (h, w, 2): displacements in µm, (y, x)."""
    um: float
    """µm between the nodes."""
    origin: tuple[float, float] = (0.0, 0.0)
    """In µm, (y, x); node i is at origin + (i + 0.5) · um."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The displacements at points, float (…, 2), interpolated: float32 (…, 2)."""
        # Not cv2.remap: it rounds places to 1/32 of a node, several µm, and the inverse would not converge.
        y, x = np.moveaxis((points - self.origin) / self.um - 0.5, -1, 0)
        both = [
            map_coordinates(self.values[..., i], (y, x), order=1, mode="nearest", output=np.float32) for i in (0, 1)
        ]
        return np.stack(both, axis=-1)

    @property
    def jacobian(self) -> np.ndarray:
        """Local change of area between the nodes, float32 (h - 1, w - 1); positive where nothing folds."""
        dy = np.diff(self.values, axis=0)[:, :-1] / self.um
        dx = np.diff(self.values, axis=1)[:-1] / self.um
        return (1 + dy[..., 0]) * (1 + dx[..., 1]) - dy[..., 1] * dx[..., 0]

    @classmethod
    def still(cls) -> Deformation:
        """A field without displacement."""
        return cls(np.zeros((2, 2, 2), np.float32), 1.0)


@dataclass(frozen=True, slots=True)
class FieldStage:
    """One scale of the search."""

    um: float
    half: int
    """Half the side of a window in px."""
    radius: int
    """Largest shift in px."""
    step: int
    """Px between the windows."""


STAGES = (FieldStage(32, 12, 8, 6), FieldStage(16, 12, 8, 8), FieldStage(8, 14, 6, 8), FieldStage(4, 14, 5, 12))


def nonrigid(fixed: Picture, moving: Picture, affine: Affine) -> Deformation:
    """The displacements that remain after an affine map, from about 32 µm per px to the scale of the pictures."""
    field = Deformation.still()
    for factor, stage in stages(fixed.um).items():
        reduced = fixed.at(factor * fixed.um)
        field = _improved(reduced, moving.at(reduced.um), affine, field, stage)
    return field


def stages(um: float) -> dict[int, FieldStage]:
    """The stages for pictures of `um` µm per px, by the whole factor to which each reduces them; the last is 1.

    Slides may have any scale: without the last stage, the field of one at 9 µm per px would end at 18.
    """
    factors: dict[int, FieldStage] = {}
    for stage in STAGES:
        if factor := round(stage.um / um):
            factors.setdefault(factor, stage)
    return factors


def _improved(fixed: Picture, moving: Picture, affine: Affine, before: Deformation, stage: FieldStage) -> Deformation:
    first = structure(fixed)
    warped = laid_over(structure(moving), first, affine, before)
    pixels = points_in(first.tissue, step=stage.step, half=stage.half)
    if not len(pixels):
        return before
    scores = surfaces(first, warped, pixels, half=stage.half, radius=stage.radius)
    shape = tuple(max(2, -(-n // stage.step)) for n in first.tissue.shape)
    update = Deformation(_coupled(scores, pixels // stage.step, shape), stage.step * first.um, first.origin)
    nodes = places(shape, update.um, update.origin)
    moved = nodes + update(nodes)
    return unfolded(Deformation(moved + before(moved) - nodes, update.um, update.origin))


def laid_over(moving: Structure, fixed: Structure, affine: Affine, field: Deformation) -> Structure:
    """The moving structure in the frame of the fixed one, through a field and an affine map."""
    points = places(fixed.tissue.shape, fixed.um, fixed.origin)
    for row in range(0, len(points), 256):  # in rows, since points in float64 take twice the memory
        part = points[row : row + 256]
        points[row : row + 256] = affine(part + field(part))
    return moving.warped(points, fixed)


def _coupled(scores: Surfaces, nodes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The shifts of all windows, chosen together: float32 (*shape, 2) in µm."""
    side = 2 * scores.radius + 1
    offsets = np.argwhere(np.ones((side, side), bool)).astype(np.float32) - scores.radius
    cost = 1 - scores.scores.reshape(len(nodes), -1)
    trust = np.maximum(1 - cost.min(1), 0) ** 2
    smooth = np.zeros((len(nodes), 2), np.float32)
    rows, columns = nodes.T
    grid = np.zeros((*shape, 2), np.float32)
    squares = (offsets**2).sum(1)
    for coupling in COUPLINGS:
        apart = squares - 2 * smooth @ offsets.T + (smooth**2).sum(1)[:, None]
        choice = offsets[(cost + coupling * apart).argmin(1)]
        grid = _spread(choice, trust, rows, columns, shape)
        smooth = grid[rows, columns]
    return grid * scores.um


def _spread(
    shifts: np.ndarray, trust: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Shifts of some nodes, smoothed, and spread to the nodes without tissue."""
    weight = np.zeros(shape, np.float32)
    weight[rows, columns] = trust + 1e-3
    total = np.zeros((*shape, 2), np.float32)
    total[rows, columns] = shifts * weight[rows, columns, None]
    out, known = np.zeros_like(total), np.zeros(shape, bool)
    sigma = SMOOTH_STEPS
    while not known.all():  # wider and wider, until every node has a neighbour with tissue
        near = blurred(weight, sigma)
        reached = (near > 1e-5) & ~known
        out[reached] = (blurred(total, sigma) / np.maximum(near, 1e-12)[..., None])[reached]
        known |= reached
        sigma *= 2
        if sigma > 4 * max(shape):
            break
    return out


def unfolded(field: Deformation) -> Deformation:
    """The field, smoothed as little as necessary for no part of it to fold or shrink below `LEAST_JACOBIAN`."""
    sigma = 1.0
    values = field.values
    while replace(field, values=values).jacobian.min() < LEAST_JACOBIAN:
        values = cv2.GaussianBlur(field.values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        sigma *= 1.5
    return replace(field, values=values)
