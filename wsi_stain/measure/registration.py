"""How well two stains of one field agree in structure, and by how much they are displaced.

Serial sections share lobules, ducts and vessels, but no cells. So hematoxylin is compared in a band of sizes between
nucleus and tile, at a working resolution at which the shorter side is 128 px: nuclei are averaged out, and what fills
the tile (staining gradients) is removed. The displacement is the peak of the normalised cross-correlation (Lewis,
"Fast normalized cross-correlation", 1995), which needs no window and does not favour small shifts. Plain phase
correlation weights all frequencies equally, those of cells too, and aligns serial sections much less often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.measure.deconvolution import stain_densities
from wsi_stain.measure.peak import vertex

WORK_PX = 128
"""Shorter side of the fields that are compared; smaller tiles are not enlarged."""
FINE, COARSE = 1.5 / WORK_PX, 12 / WORK_PX
"""Standard deviations of the two Gaussians that bound the band, in shorter sides: 6 and 48 µm in a tile of 512 µm."""
REACH = 1 / 8
"""Largest displacement that is searched, in shorter sides."""
SMALLEST_PX = 32
"""Tiles with a shorter side contain too little structure."""
BLANK = 0.005
"""Standard deviation of a field, in square roots of optical density, below which nothing is stained: scanner noise and
JPEG leave 0.001 to 0.002 on background; the palest of 252 real tiles had 0.013."""
WHITE = (255, 255, 255)
"""Assumed background, as that of a single tile is unknown. A constant offset hardly changes the band."""


@dataclass(frozen=True, slots=True)
class TileStructure:
    """The structure that two stains of a field share."""

    field: np.ndarray
    """float32 (H, W): band-passed square root of hematoxylin density."""
    px: float
    """Side of a pixel of the field, in pixels of the tile."""


@dataclass(frozen=True, slots=True)
class Match:
    """The best alignment of two structures; all NaN where one of them is blank or too small."""

    agreement: float
    """Pearson's r of the two fields at the best displacement, -1 to 1."""
    dy: float
    dx: float
    """The point (y, x) of the first tile corresponds to (y + dy, x + dx) of the second, px of the tile; NaN where the
    peak is at the end of the reach."""
    sharpness: float
    """Height of the peak over the mean of the other displacements, in their standard deviations."""

    @property
    def displacement_px(self) -> float:
        """Length of the displacement, px of the tile."""
        return math.hypot(self.dy, self.dx)


NO_MATCH = Match(math.nan, math.nan, math.nan, math.nan)


def structure(image: np.ndarray) -> TileStructure:
    """The structure of a tile, uint8 (H, W, 3), in either stain."""
    h, w = image.shape[:2]
    px = max(1.0, min(h, w) / WORK_PX)
    size = (round(w / px), round(h / px))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    # The square root keeps a few dark nuclei or brown cells from outweighing the rest.
    density = np.sqrt(stain_densities(small, WHITE)[..., 0])
    return TileStructure(_blurred(density, FINE * min(size)) - _blurred(density, COARSE * min(size)), px)


def match(first: TileStructure, second: TileStructure) -> Match:
    """Find the displacement of the second structure against the first, up to `REACH`.

    Fields of different sizes are compared in their common centre.
    """
    shape = np.minimum(first.field.shape, second.field.shape)
    reach = int(shape.min() * REACH)
    if shape.min() < SMALLEST_PX:
        return NO_MATCH
    where = _centre(second.field, shape)
    what = np.ascontiguousarray(_centre(first.field, shape - 2 * reach))
    if min(what.std(), where.std()) < BLANK:
        return NO_MATCH
    surface = _correlation(where, what)
    y, x = np.unravel_index(surface.argmax(), surface.shape)
    dy, dx = (_position(line, i) - reach for line, i in ((surface[:, x], int(y)), (surface[y], int(x))))
    return Match(float(surface[y, x]), dy * first.px, dx * first.px, _sharpness(surface, int(y), int(x)))


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)


def _centre(field: np.ndarray, shape: np.ndarray) -> np.ndarray:
    (top, left), (h, w) = (np.array(field.shape) - shape) // 2, shape
    return field[top : top + h, left : left + w]


def _correlation(where: np.ndarray, what: np.ndarray) -> np.ndarray:
    """Pearson's r of `what` with every window of `where`; 0 where the window is blank, as OpenCV gives noise there."""
    surface = cv2.matchTemplate(where, what, cv2.TM_CCOEFF_NORMED)
    h, w = what.shape
    sums, squares = cv2.integral2(where, sdepth=cv2.CV_64F, sqdepth=cv2.CV_64F)
    mean, mean_square = (
        (t[h:, w:] - t[:-h, w:] - t[h:, :-w] + t[:-h, :-w]) / (h * w) for t in (np.asarray(sums), np.asarray(squares))
    )
    surface[mean_square - mean**2 < BLANK**2] = 0
    return surface


def _position(line: np.ndarray, i: int) -> float:
    """Position of the peak at index i to a fraction of a sample; NaN at either end."""
    return i + float(vertex(line[i - 1 : i + 2].astype(np.float64))) if 0 < i < len(line) - 1 else math.nan


def _sharpness(surface: np.ndarray, y: int, x: int) -> float:
    rows, columns = np.ogrid[: surface.shape[0], : surface.shape[1]]
    rest = surface[np.hypot(rows - y, columns - x) > 4 * FINE * WORK_PX]
    spread = float(rest.std()) if rest.size else 0.0
    return float((surface[y, x] - rest.mean()) / spread) if spread else math.nan
