"""The stains of an H-DAB slide: its background and vectors, estimated or given, and the densities of its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from skimage.color import rgb_from_hed

from wsi_stain.measure.deconvolution import optical_density
from wsi_stain.measure.palette import (
    BLUE_OD,
    BROWN_OD,
    COLOURED,
    ENOUGH,
    RUIFROK_DAB,
    RUIFROK_HEMATOXYLIN,
    Vector,
    direction,
)

RUIFROK: tuple[Vector, Vector, Vector] = tuple(tuple(float(x) for x in row) for row in rgb_from_hed)  # type: ignore
"""Hematoxylin, eosin and DAB as scikit-image has them, of length 0.998 to 1.003."""
MOST_OD, BINS_PER_OD = 3.0, 500
"""Histograms of density: bins of 0.002 OD from 0 to `MOST_OD`; higher densities count in the last bin."""
BINS = int(MOST_OD * BINS_PER_OD)
GREY, BRIGHT, WHITE, LEAST_SHARE = 25, 180, 252, 0.002
"""Background: channels differ by less than this, the darkest is at least this, below this it is not a filled area, and
at least this share of a thumbnail shows it."""


@dataclass(frozen=True)
class Stains:
    """Background and stain vectors of one slide (Ruifrok & Johnston 2001); the third vector takes up what is neither.

    Example:
        >>> hematoxylin, dab = Stains().densities(np.full((1, 1, 3), 255, np.uint8))
        >>> float(dab[0, 0])
        0.0
    """

    background: Vector = (255.0, 255.0, 255.0)
    """Colour (R, G, B) of the empty slide, 0–255: the I0 of the optical density."""
    hematoxylin: Vector = RUIFROK[0]
    dab: Vector = RUIFROK[2]
    third: Vector | None = RUIFROK[1]
    """Vector of the residual; `None` is the direction that is perpendicular to the two others."""

    @cached_property
    def unmixing(self) -> np.ndarray:
        """float64 (3, 2): optical density of R, G, B → densities of hematoxylin and DAB."""
        third = np.cross(self.hematoxylin, self.dab) if self.third is None else np.asarray(self.third)
        return np.linalg.inv(np.stack([self.hematoxylin, third, self.dab]))[:, [0, 2]]

    def densities(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w, 3) → two float32 (h, w): densities of hematoxylin and of DAB, in OD, never below 0."""
        both = np.maximum(cv2.transform(cv2.LUT(image, self._table), self.unmixing.T.astype(np.float32)), 0)
        return both[..., 0], both[..., 1]

    def mean_density(self, image: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) → float32 (h, w): mean optical density of the channels."""
        return cv2.transform(cv2.LUT(image, self._table), np.full((1, 3), 1 / 3, np.float32))

    @cached_property
    def _table(self) -> np.ndarray:
        """float32 (256, 1, 3): the optical density of every grey level; a logarithm per pixel would take most time."""
        levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
        return np.maximum(-np.log10(np.maximum(levels, 1) / np.asarray(self.background)), 0).astype(np.float32)


def estimate(pixels: np.ndarray, background: Vector) -> tuple[Stains, dict[str, str]]:
    """The stains of a slide from a sample of its tissue.

    The vector of a stain is the median direction of the optical density of the pixels that show it alone; with fewer
    than `ENOUGH` of them it is Ruifrok's.

    Args:
        pixels: uint8 (n, 3).
        background: colour of the empty slide.

    Returns:
        The stains, and for each of the two whether its vector was `estimated` or is `Ruifrok's`.
    """
    red, green, blue = (max(1, round(c)) for c in background)
    od = optical_density(pixels[None], (red, green, blue))[0]
    length, blueness = np.linalg.norm(od, axis=1), od[:, 0] - od[:, 2]
    is_brown = (length > BROWN_OD) & (-blueness > COLOURED * length)
    is_blue = (length > BLUE_OD) & (blueness > COLOURED * length)
    stains = Stains(
        background,
        direction(od[is_blue], RUIFROK_HEMATOXYLIN),
        direction(od[is_brown], RUIFROK_DAB),
        third=None,
    )
    source = {
        name: "estimated" if mask.sum() >= ENOUGH else "Ruifrok's: too few pixels of this stain"
        for name, mask in (("hematoxylin", is_blue), ("dab", is_brown))
    }
    return stains, source


def bins_of(density: np.ndarray) -> np.ndarray:
    """Densities → int64, the number of each one's bin."""
    return np.minimum(density * np.float32(BINS_PER_OD), np.float32(BINS - 1)).astype(np.int64)


def percentile(histogram: np.ndarray, q: float) -> np.ndarray:
    """Percentiles of histograms (…, BINS) → float64 (…), exact to half a bin (0.001 OD); NaN where one is empty."""
    total = histogram.sum(-1)
    reached = np.cumsum(histogram, axis=-1) >= (q / 100 * total)[..., None]
    return np.where(total > 0, (reached.argmax(-1) + 0.5) / BINS_PER_OD, np.nan)


def background_of(thumbnail: np.ndarray) -> Vector | None:
    """The colour of the empty slide: the most frequent bright grey of a thumbnail, uint8 (h, w, 3); None without one.

    Stitchers fill what was not scanned with white, so white counts only where there is no other bright grey.
    """
    pixels = thumbnail.reshape(-1, 3)
    darkest, brightest = pixels.min(1), pixels.max(1)
    is_grey = (brightest.astype(int) - darkest < GREY) & (darkest >= BRIGHT)
    for among in (is_grey & (darkest < WHITE), is_grey):
        if among.sum() > LEAST_SHARE * len(pixels):
            counts = np.bincount(darkest[among], minlength=256)
            near = among & (np.abs(darkest.astype(int) - int(counts.argmax())) <= 2)
            red, green, blue = (float(c) for c in np.median(pixels[near], axis=0))
            return red, green, blue
    return None
