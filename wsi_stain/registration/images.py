"""Slides at the working scales of a registration: hematoxylin, and where there is tissue.

Points are in µm, (y, x), from the upper left corner of the slide: the centre of pixel i of an image of `um` µm per px
is at (i + 0.5) · um. So a point means the same at every scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

import cv2
import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import HE_BACKGROUND, Background, stain_densities
from wsi_stain.measure.stains import background_of
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tissue.detect import find_tissue

FINEST_UM = 4.0
"""Finest working scale: a nucleus still has two pixels."""
MOST_PX = 8_000_000
"""Most pixels of a working image, which bounds the memory: a picture and its structures take about 50 bytes each."""
FINER = 4
"""Pictures are read from levels that are finer by this, and reduced. Levels of an odd size are resized by some software
and padded by other, which no file states: taken for the other, a level is off by up to one of its pixels at its end."""
STRIP_PX = 256
"""Rows of a picture that are read at a time."""
MARGIN_UM = 400.0
"""Border of the picture of a fragment."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A slide, or a part of it, at one working scale."""

    density: np.ndarray
    """float32 (h, w): square root of the hematoxylin density, so that dark nuclei and brown cells do not outweigh."""
    tissue: np.ndarray
    """bool (h, w)."""
    um: float
    """µm per px."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Upper left corner in µm, (y, x); that of a part of a slide is not 0."""

    @property
    def extent_um(self) -> float:
        """Longer side in µm."""
        return max(self.density.shape) * self.um

    @property
    def tissue_um2(self) -> float:
        """Area of the tissue."""
        return float(self.tissue.sum()) * self.um**2

    @cached_property
    def centre(self) -> np.ndarray:
        """Centre of mass of the tissue in µm, float64 (2,); there must be tissue."""
        return (np.argwhere(self.tissue).mean(0) + 0.5) * self.um + self.origin

    def at(self, um: float) -> Picture:
        """The picture at about `um` µm per px, averaged; itself if that is finer than it is.

        Both sides keep one scale exactly: the last rows and columns may extend beyond the slide.
        """
        factor = round(um / self.um)
        if factor <= 1:
            return self
        h, w = (-(-n // factor) for n in self.density.shape)
        bottom, right = h * factor - self.density.shape[0], w * factor - self.density.shape[1]

        def reduced(values: np.ndarray) -> np.ndarray:
            padded = cv2.copyMakeBorder(values, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            return cv2.resize(padded, (w, h), interpolation=cv2.INTER_AREA)

        tissue = reduced(self.tissue.astype(np.float32)) >= 0.5
        return Picture(reduced(self.density), tissue, self.um * factor, self.origin)

    def only(self, tissue: np.ndarray) -> Picture:
        """The part with this tissue, bool (h, w), and no other: its bounding box, `MARGIN_UM` wider on all sides."""
        margin = round(MARGIN_UM / self.um)
        rows, columns = (np.flatnonzero((self.tissue & tissue).any(axis)) for axis in (1, 0))
        y0, x0 = max(0, rows[0] - margin), max(0, columns[0] - margin)
        part = np.s_[y0 : rows[-1] + 1 + margin, x0 : columns[-1] + 1 + margin]
        origin = (self.origin[0] + float(y0) * self.um, self.origin[1] + float(x0) * self.um)
        return Picture(self.density[part], (self.tissue & tissue)[part], self.um, origin)


def working_um(*slides: Slide) -> float:
    """The finest scale in µm per px at which all slides have at most `MOST_PX` pixels: 4 times a power of two."""
    um = FINEST_UM
    while any(slide.size.h * slide.size.w * (slide.mpp / um) ** 2 > MOST_PX for slide in slides):
        um *= 2
    return max(um, *(slide.mpp for slide in slides))


def background_in(thumbnail: np.ndarray) -> Background:
    """The colour of empty slide in a thumbnail, uint8 (h, w, 3); an ordinary scanner's if none is seen."""
    red, green, blue = background_of(thumbnail) or HE_BACKGROUND
    return round(red), round(green), round(blue)


def picture(slide: Slide, um: float) -> Picture:
    """A slide at `um` µm per px.

    Raises:
        SlideError: the slide has no pixel size.
    """
    thumbnail, damage = _overview(slide, max(1, round(max(slide.size) * slide.mpp / um)))
    background = background_in(thumbnail)
    mask = find_tissue(slide).array.astype(np.uint8)
    h, w = thumbnail.shape[:2]
    tissue = cv2.resize(mask, (w, h), interpolation=cv2.INTER_NEAREST).astype(bool) & ~damage
    density = np.empty((h, w), np.float32)
    for y in range(0, h, 512):  # optical densities of three channels take 12 times the bytes of the pixels
        rows = thumbnail[y : y + 512]
        density[y : y + 512] = np.sqrt(stain_densities(rows, background)[..., 0])
    return Picture(density, tissue, max(slide.size) * slide.mpp / max(h, w))


def _overview(slide: Slide, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole slide, its longer side `longest` px, uint8 (h, w, 3); and where it cannot be decoded, bool (h, w)."""
    exact = max(Fraction(max(slide.size), longest), Fraction(1))
    h, w = (ceil(n / exact) for n in slide.size)
    factor = min(FINER, int(exact))
    scale = exact / factor
    view = View(slide, Size(*(ceil(n / scale) for n in slide.size)), None, scale)
    pixels, lost = np.empty((h, w, 3), np.uint8), np.empty((h, w), bool)
    for y in range(0, h, STRIP_PX):
        rows = min(STRIP_PX, h - y)
        strip, damage = view.read_and_damage(Box.at(y * factor, 0, Size(rows * factor, w * factor)))
        pixels[y : y + rows] = cv2.resize(strip, (w, rows), interpolation=cv2.INTER_AREA)
        lost[y : y + rows] = cv2.resize(damage.astype(np.float32), (w, rows), interpolation=cv2.INTER_AREA) > 0
    return pixels, lost
