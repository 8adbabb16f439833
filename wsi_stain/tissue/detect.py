"""Detects the tissue of a bright-field slide on a thumbnail.

Recall takes precedence: staining an empty tile costs time, missed tissue is an error. Pale tissue and fat are included;
ink and the black area outside the scan are excluded.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import cv2
import numpy as np
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.morphology import disk, reconstruction

from wsi_stain.geometry import Size
from wsi_stain.tissue.mask import LONGEST, TissueMask, covering_grid

CELL_UM = 10.0
"""Side of a mask cell: an adipose cell wall still darkens it, and the mask of a 10 cm slide fits in memory."""
LONGEST_UNSCALED = 2000
"""Cells along a slide's longer side if its µm per px is unknown."""
DUST_UM = 50.0
"""Diameter of the smallest object that counts as tissue; the thinnest needle biopsies are ten times as wide."""
GAP_UM, HOLE_UM, MARGIN_UM = 60.0, 700.0, 40.0
"""Gaps closed (half a large fat cell), diameter of holes filled, and margin added around the tissue."""
FAINTEST_OD, BOLDEST_OD = 0.025, 0.06
"""Bounds of the threshold on optical density relative to the background."""


class ThumbnailSlide(Protocol):
    """The part of a slide that tissue detection uses."""

    @property
    def size(self) -> Size:
        """Level 0 in px."""
        ...

    @property
    def mpp_or_none(self) -> float | None:
        """µm per level-0 px, if known."""
        ...

    def thumbnail_and_damage(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole slide, uint8 (h, w, 3), its longer side `longest` px; and what cannot be decoded, bool (h, w)."""
        ...


def find_tissue(slide: ThumbnailSlide) -> TissueMask:
    """Find the tissue of a bright-field slide on a thumbnail of about 10 µm per px.

    What cannot be decoded counts as tissue: it is then read, reported and marked as unreadable, not left out silently.
    """
    longest_px = max(slide.size)
    cells = LONGEST_UNSCALED if slide.mpp_or_none is None else round(longest_px * slide.mpp_or_none / CELL_UM)
    longest = min(longest_px, max(128, min(cells, LONGEST)))
    thumbnail, damage = slide.thumbnail_and_damage(longest)
    scale = Fraction(longest_px, max(thumbnail.shape[:2]))
    um = CELL_UM if slide.mpp_or_none is None else float(scale) * slide.mpp_or_none
    tissue = tissue_in(thumbnail, um) | damage
    grid = covering_grid(slide.size, scale)
    missing = [(0, max(0, n - have)) for n, have in zip(grid, tissue.shape, strict=True)]
    return TissueMask(np.pad(tissue, missing, mode="edge")[: grid.h, : grid.w], scale, slide.size)


def tissue_in(rgb: np.ndarray, um: float) -> np.ndarray:
    """Detect tissue on a thumbnail.

    Args:
        rgb: uint8 (h, w, 3), sRGB.
        um: µm per px of the thumbnail.

    Returns:
        bool (h, w)
    """
    outside = _outside(rgb, um)
    density = _density(rgb, outside)
    ink = _ink(density, um)
    signal = _signal(density)
    signal[outside | ink] = 0
    low = _threshold(signal, ~(outside | ink))
    tissue = apply_hysteresis_threshold(signal, low, 1.5 * low)
    # Dust is measured by its dark pixels, not by the local variation around it.
    tissue = _at_least(_closed(tissue, GAP_UM / um), DUST_UM, um, of=_extremes(density)[1] > low)
    tissue = ~_at_least(~tissue, HOLE_UM, um)
    return cv2.dilate(tissue.astype(np.uint8), _disk(max(1, round(MARGIN_UM / um)))).astype(bool)


def _outside(rgb: np.ndarray, um: float) -> np.ndarray:
    """The black area around the scanned part, with its grey rim."""
    darkest, brightest = _extremes(rgb)
    black = _at_least(brightest < 40, 4 * DUST_UM, um)
    # Interpolation between black and the scanned part gives a grey rim that is as dark as tissue.
    rim = cv2.dilate(black.astype(np.uint8), _disk(3)).astype(bool) & (brightest - darkest < 25)
    return black | rim


def _extremes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum over the channels of each pixel; OpenCV is 20 times as fast as numpy over the last axis."""
    a, b, c = cv2.split(image)
    return cv2.min(cv2.min(a, b), c), cv2.max(cv2.max(a, b), c)


def _density(rgb: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Optical density relative to the slide's background: float32 (h, w, 3), not negative."""
    background = _background(rgb, ~outside)
    smooth = cv2.GaussianBlur(rgb, (3, 3), 0).astype(np.float32)
    return np.maximum(np.log(np.float32(background) + 1) - np.log(smooth + 1), 0)


def _background(rgb: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Colour of the background: the most frequent bright grey, float64 (3,); 243 if there is none."""
    darkest, brightest = _extremes(rgb)
    # Viewers and stitchers fill unscanned areas with 252 or more; the background is slightly darker.
    bright = valid & (brightest - darkest < 20) & (darkest >= 200) & (darkest < 252)
    grey = darkest[bright]
    if grey.size <= 0.002 * valid.sum():
        return np.array([243.0, 243.0, 243.0])
    counts = np.convolve(np.bincount(grey, minlength=256), np.ones(3), mode="same")
    # Pale tissue may be more frequent than the background, but is darker: take the brightest of the large peaks.
    mode = np.flatnonzero(counts >= 0.3 * counts.max()).max()
    return np.median(rgb[bright][np.abs(grey.astype(int) - mode) <= 3], axis=0)


def _signal(density: np.ndarray) -> np.ndarray:
    """Tissue score: density of the strongest channel plus its local standard deviation (fat cell walls, fibres)."""
    strongest = _extremes(density)[1]
    mean, square = cv2.blur(strongest, (5, 5)), cv2.blur(strongest * strongest, (5, 5))
    return strongest + 0.7 * np.sqrt(np.maximum(square - mean * mean, 0))


def _threshold(signal: np.ndarray, valid: np.ndarray) -> float:
    """A third of Otsu's threshold, within bounds and above the noise of this slide's background."""
    values = signal[valid]
    if values.size == 0 or values.min() == values.max():
        return BOLDEST_OD
    low = float(np.clip(threshold_otsu(np.minimum(values, 1.0)) / 3, FAINTEST_OD, BOLDEST_OD))
    background = values[values < low]
    noise = (
        0.0
        if background.size == 0
        else float(np.median(background) + 4 * np.median(np.abs(background - np.median(background))))
    )
    return min(max(low, noise), BOLDEST_OD)


def _ink(density: np.ndarray, um: float) -> np.ndarray:
    """Pen marks: strokes in colours that haematoxylin and eosin do not produce.

    Both stains absorb green most. Blue and green ink absorb more red; red ink absorbs blue as much as green and
    hardly any red; black ink absorbs all channels equally.
    """
    r, g, b = cv2.split(density)
    least, strongest = _extremes(density)
    weak = strongest > 0.05
    blue_or_green = (r > 1.12 * g, r > 0.35)
    red = ((b > 0.70 * g) & (r < 0.25 * g), g > 1.4)
    black = (least > 0.84 * strongest, strongest > 1.3)
    ink = np.zeros(r.shape, bool)
    for colour, strong in (blue_or_green, red, black):
        core = cv2.morphologyEx((colour & strong).astype(np.uint8), cv2.MORPH_OPEN, _disk(max(1, round(15 / um))))
        core = _at_least(core.astype(bool), 4 * DUST_UM, um)
        if core.any():
            mask = (colour & weak) | core
            grown = reconstruction(core.astype(np.uint8), mask.astype(np.uint8)).astype(bool)
            if colour is red[0]:
                grown = _amid(grown, strongest < 0.1)  # otherwise it is blood
            ink |= cv2.dilate(grown.astype(np.uint8), _disk(2)).astype(bool)
    return ink


def _amid(mask: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that are mostly surrounded by background."""
    n, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    nearby = cv2.dilate(labels.astype(np.float32), _disk(4)).astype(int)
    nearby[mask] = 0
    around, clear = (np.bincount(nearby[where].ravel(), minlength=n) for where in (nearby >= 0, background))
    keep = clear > 0.6 * around
    keep[0] = False
    return keep[labels.astype(np.intp)]


def _disk(radius: int) -> np.ndarray:
    return np.asarray(disk(radius), np.uint8)


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    r = max(1, round(radius))
    padded = np.pad(mask.astype(np.uint8), r)
    return cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disk(r))[r:-r, r:-r].astype(bool)


def _at_least(mask: np.ndarray, diameter_um: float, um: float, *, of: np.ndarray | None = None) -> np.ndarray:
    """The connected parts of a mask with at least the area of such a disc; counts only `of` pixels if given."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.bincount(labels.astype(np.intp)[mask if of is None else mask & of]) >= np.pi / 4 * (diameter_um / um) ** 2
    keep = np.pad(keep, (0, labels.max() + 1 - len(keep)))
    keep[0] = False
    return keep[labels.astype(np.intp)]
