"""What two stains of a section share: hematoxylin, locally normalised, and nothing of the outline.

Staining that changes slowly, and how strong it is, are divided out within the tissue. The tissue's edge leaves no
trace, since neither mean nor spread is computed across it. So shapes that merely fit one another do not correlate.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture

FINE_PX, COARSE_PX = 1.0, 12.0
"""Standard deviations of the Gaussians that smooth the noise and that give the local mean and spread."""
FLOOR = 0.5
"""The local spread counts as at least this share of its median: noise of empty places is not blown up."""


@dataclass(frozen=True, eq=False)
class Structure:
    """The structure of one picture."""

    field: np.ndarray
    """float32 (h, w), 0 outside the tissue; local mean 0, local spread at most 1."""
    tissue: np.ndarray
    """bool (h, w)."""
    um: float
    """µm per px."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Upper left corner in µm."""

    def warped(self, places: np.ndarray, like: Structure | Picture) -> Structure:
        """The structure in the frame of another: for each of its pixels the place here in µm, float32 (h, w, 2)."""
        maps = (places - np.array(self.origin, np.float32)) / np.float32(self.um) - np.float32(0.5)
        field, tissue = (
            cv2.remap(values, maps[..., 1], maps[..., 0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
            for values in (self.field, self.tissue.astype(np.float32))
        )
        return Structure(field, tissue > 0.5, like.um, like.origin)


def structure(picture: Picture, fine_px: float = FINE_PX, coarse_px: float = COARSE_PX) -> Structure:
    """The structure of a picture at its scale."""
    inside = picture.tissue.astype(np.float32)
    smooth = blurred(picture.density * inside, fine_px) / np.maximum(blurred(inside, fine_px), 1e-3)
    weight = np.maximum(blurred(inside, coarse_px), 1e-3)
    detail = (smooth - blurred(smooth * inside, coarse_px) / weight) * inside
    spread = np.sqrt(blurred(detail**2, coarse_px) / weight)
    floor = FLOOR * float(np.median(spread[picture.tissue])) if picture.tissue.any() else 1.0
    return Structure(detail / np.maximum(spread, max(floor, 1e-4)), picture.tissue, picture.um, picture.origin)


def places(shape: tuple[int, ...], um: float, origin: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """The centres of the pixels of an image in µm, float32 (h, w, 2)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return (np.stack([y, x], axis=-1) + np.float32(0.5)) * np.float32(um) + np.array(origin, np.float32)


def through(affine: Affine, points: np.ndarray) -> np.ndarray:
    """Points of an image, float32 (h, w, 2), through an affine map, without a copy in float64."""
    a, t = affine.matrix[:, :2].astype(np.float32), affine.matrix[:, 2].astype(np.float32)
    return np.stack([points @ a[0] + t[0], points @ a[1] + t[1]], axis=-1)


def blurred(values: np.ndarray, sigma_px: float) -> np.ndarray:
    """A Gaussian blur, 0 outside the image."""
    return cv2.GaussianBlur(values, (0, 0), sigma_px, borderType=cv2.BORDER_CONSTANT)
