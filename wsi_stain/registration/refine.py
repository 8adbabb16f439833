"""Affine refinement of a hypothesis by block matching, coarse to fine, with a robust fit.

Each window of the fixed slide finds its best shift; most are wrong in serial sections at first. RANSAC (Fischler &
Bolles, 1981; OpenCV's) keeps those that agree with one map.
"""

from __future__ import annotations

import cv2
import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture
from wsi_stain.registration.matching import Surfaces, points_in, surfaces
from wsi_stain.registration.structure import places, structure, through

HALF_PX, RADIUS_PX, STEP_PX = 14, 14, 14
INLIER_PX = 3.0
"""A window agrees with a map if it is within this many px."""
FEWEST = 8
"""Fewest windows from which a map is fitted."""
LARGEST_SCALE = 1.15
"""Most that a section may be stretched or shrunk beside the other: beyond, the fit is wrong."""


SMALL_UM2 = 2e6
"""Tissue with less area is searched at scales twice as fine, since it has too few large windows."""


def scaled(scales_um: tuple[float, ...], fixed: Picture) -> tuple[float, ...]:
    """The scales for a picture of this much tissue."""
    return scales_um if fixed.tissue_um2 >= SMALL_UM2 else tuple(um / 2 for um in scales_um)


def matched(
    fixed: Picture, moving: Picture, affine: Affine, um: float, *, radius: int = RADIUS_PX, step: int = STEP_PX
) -> Surfaces:
    """Block matching of two pictures at about `um` µm per px, after the moving one was laid over the fixed one."""
    first = structure(fixed.at(um))
    second = structure(moving.at(first.um))  # the same factor, also if the slides differ a little
    warped = second.warped(through(affine, places(first.field.shape, first.um, first.origin)), first)
    pixels = points_in(first.tissue & warped.tissue, step=step, half=HALF_PX)
    return surfaces(first, warped, pixels, half=HALF_PX, radius=radius)


def refined(fixed: Picture, moving: Picture, affine: Affine, scales_um: tuple[float, ...]) -> Affine:
    """The hypothesis, improved at each scale in turn; unchanged where too few windows agree."""
    for um in scaled(scales_um, fixed):
        for is_rigid in (True, False):
            affine = _improved(fixed, moving, affine, um, is_rigid=is_rigid)
    return affine


def _improved(fixed: Picture, moving: Picture, affine: Affine, um: float, *, is_rigid: bool) -> Affine:
    result = matched(fixed, moving, affine, um)
    if len(result.points) < FEWEST:
        return affine
    shifts = result.peaks()
    fit = cv2.estimateAffinePartial2D if is_rigid else cv2.estimateAffine2D
    matrix, inliers = fit(
        result.points[:, ::-1], (result.points + shifts)[:, ::-1],
        method=cv2.RANSAC, ransacReprojThreshold=INLIER_PX * result.um, maxIters=3000, confidence=0.999,
    )  # fmt: skip
    if matrix is None or int(np.sum(inliers)) < FEWEST:  # pyright: ignore[reportUnnecessaryComparison]
        return affine
    better = affine @ Affine(np.asarray(matrix)[::-1][:, [1, 0, 2]])
    return better if max(better.scales[0], 1 / better.scales[1]) <= LARGEST_SCALE else affine
