"""How much of a stain is in a pixel: optical density and colour deconvolution.

Source: Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", 2001; the vectors are
theirs (as in scikit-image's `hed_from_rgb`).
"""

from __future__ import annotations

import numpy as np
from skimage.color import hed_from_rgb

POSITIVE_OD = 0.15
"""DAB density from which a pixel counts as positive, in units of optical density (base 10)."""


def optical_density(image: np.ndarray, glass: tuple[int, int, int]) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w, 3): -log10(I / I0) with I0 the colour of empty glass; never below 0."""
    transmitted = np.maximum(image, 1).astype(np.float32) / np.asarray(glass, np.float32)
    return np.maximum(-np.log10(transmitted), 0)


def stain_densities(image: np.ndarray, glass: tuple[int, int, int]) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w, 3): densities of hematoxylin, eosin and DAB, in units of optical density."""
    unmixed = optical_density(image, glass) @ hed_from_rgb.astype(np.float32)
    return np.maximum(unmixed, 0)


def dab(image: np.ndarray, glass: tuple[int, int, int]) -> np.ndarray:
    """uint8 (h, w, 3) → float32 (h, w): DAB density."""
    return stain_densities(image, glass)[..., 2]
