"""The palette of a stain pair: background and stain vectors of an immunostain, estimated once from training images.

    I = background · 10^-(h · hematoxylin + d · dab)

Source: Beer–Lambert in color images, Ruifrok & Johnston 2001. Each vector is the median direction of the optical
density of pixels with one stain only, so that a few folds or pigments do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.color import rgb_from_hed

from wsi_stain.measure.deconvolution import HE_BACKGROUND, Background, optical_density, stain_densities, tissue

Vector = tuple[float, float, float]
"""Optical density of a stain in R, G and B, of length 1."""
BROWN_OD, BLUE_OD = 0.5, 0.2
"""Length of a pixel's optical density (R, G, B) above which it can be taken for DAB, or for hematoxylin."""
COLOURED = 0.15
"""Difference of R and B in its direction from which a pixel is blue or brown: both stains have about 0.3, grey 0."""
COUNTER_BROWN_OD = 0.1
"""The counterstain is measured where the DAB density is below this."""
ENOUGH = 100
"""Pixels of a stain needed for its vector; with fewer, Ruifrok's vector is used."""
EVERY = 2
"""Every second row and column is used: neighbouring pixels are alike."""
NUCLEI = 99.0
"""Percentile of hematoxylin density in tissue that stands for the dark nuclei of either stain."""
SMOOTH_PX = 1.0
"""σ in px of the Gaussian before the percentile: the sections were resampled and compressed differently."""
FLOOR_OD = 0.08
"""Hematoxylin density of an H&E, by Ruifrok's vectors, below which it is eosin's crosstalk and noise."""


def unit_vector(values: np.ndarray) -> Vector:
    """Scaled to length 1."""
    red, green, blue = (float(x) for x in values / np.linalg.norm(values))
    return red, green, blue


RUIFROK_HEMATOXYLIN, RUIFROK_DAB = unit_vector(rgb_from_hed[0]), unit_vector(rgb_from_hed[2])


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one immunostain, and how dark its counterstain is compared with the H&E's hematoxylin."""

    background: Vector = HE_BACKGROUND
    """Colour (R, G, B) of the empty slide, 0–255."""
    hematoxylin: Vector = RUIFROK_HEMATOXYLIN
    """Vector of the counterstain."""
    dab: Vector = RUIFROK_DAB
    """Vector of DAB."""
    strength: float = 1.0
    """Counterstain density per hematoxylin density of the H&E above `FLOOR_OD`."""


def estimate(pairs: Iterable[tuple[np.ndarray, np.ndarray]], background: Background, mpp: float = 1.0) -> Palette:
    """The palette of registered pairs; a property without enough pixels is that of `Palette()`.

    Args:
        pairs: H&E and immunostain, uint8 (h, w, 3) each; one pair is held at a time.
        background: background colour of the immunostain.
        mpp: µm per px, for the tissue mask.
    """
    brown, blue, real, he = [], [], [], []
    for image, stain in pairs:
        density, od = (function(stain, background) for function in (stain_densities, optical_density))
        colours = od[::EVERY, ::EVERY].reshape(-1, 3)
        length, blueness = np.linalg.norm(colours, axis=1), colours[:, 0] - colours[:, 2]
        brown.append(colours[(length > BROWN_OD) & (-blueness > COLOURED * length)])
        blue.append(colours[(length > BLUE_OD) & (blueness > COLOURED * length)])
        counter = tissue(image, mpp) & (density[..., 2] < COUNTER_BROWN_OD)
        excess = np.maximum(stain_densities(image, HE_BACKGROUND)[..., 0] - FLOOR_OD, 0)
        real.append(gaussian_filter(density[..., 0], SMOOTH_PX)[counter][:: EVERY**2])
        he.append(gaussian_filter(excess, SMOOTH_PX)[counter][:: EVERY**2])
    return Palette(
        background,
        direction(np.concatenate(blue), Palette().hematoxylin),
        direction(np.concatenate(brown), Palette().dab),
        _ratio(np.concatenate(real), np.concatenate(he)),
    )


def direction(od: np.ndarray, default: Vector) -> Vector:
    """Optical densities (n, 3) → their median direction."""
    if len(od) < ENOUGH:
        return default
    return unit_vector(np.median(od / np.linalg.norm(od, axis=1, keepdims=True), axis=0))


def _ratio(real: np.ndarray, he: np.ndarray) -> float:
    """How dark the nuclei of the real counterstain are, relative to those of the H&E."""
    if len(he) < ENOUGH or not (dark := float(np.percentile(he, NUCLEI))):
        return Palette().strength
    return float(np.percentile(real, NUCLEI)) / dark or Palette().strength
