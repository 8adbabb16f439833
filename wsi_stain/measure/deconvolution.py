"""Stain density per pixel: optical density and colour deconvolution.

Source: Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001; the vectors are
theirs (as in scikit-image's `hed_from_rgb`).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.color import hed_from_rgb

Background = tuple[int, int, int]
"""Background colour (R, G, B)."""
HE_BACKGROUND: Background = (243, 243, 243)
"""Background of an H&E if its own is unknown; an error shifts all densities equally, not correlations."""
POSITIVE_OD = 0.15
"""DAB density above which a pixel counts as positive, in units of optical density (base 10)."""
TISSUE_OD, TISSUE_UM = 0.05, 5.0
"""An H&E is tissue where its mean optical density, smoothed by a Gaussian of this σ, exceeds this."""


def optical_density(image: np.ndarray, background: Background) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w, 3): -log10(I / I0) with I0 the background colour; never below 0."""
    transmitted = np.maximum(image, 1).astype(np.float32) / np.asarray(background, np.float32)
    return np.maximum(-np.log10(transmitted), 0)


def stain_densities(image: np.ndarray, background: Background) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w, 3): densities of hematoxylin, eosin and DAB, in units of optical density."""
    unmixed = optical_density(image, background) @ hed_from_rgb.astype(np.float32)
    return np.maximum(unmixed, 0)


def dab(image: np.ndarray, background: Background) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w): DAB density."""
    return stain_densities(image, background)[..., 2]


def hematoxylin(image: np.ndarray, background: Background, *, sigma_px: float) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w): hematoxylin density, smoothed by a Gaussian."""
    return gaussian_filter(stain_densities(image, background)[..., 0], sigma_px)


def tissue(he: np.ndarray, mpp: float, background: Background = HE_BACKGROUND) -> np.ndarray:
    """uint8 (h, w, 3) H&E → bool (h, w): True on tissue."""
    return gaussian_filter(optical_density(he, background).mean(-1), TISSUE_UM / mpp) > TISSUE_OD
