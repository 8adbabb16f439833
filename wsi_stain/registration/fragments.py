"""Fragments: parts of a section that lie apart, and so may have moved by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from wsi_stain.registration.images import Picture
from wsi_stain.registration.structure import blurred

LABEL_UM = 32.0
"""µm per px of the map of fragments."""
LEAST_SHARE, LEAST_UM2 = 0.03, 0.5e6
"""The smallest fragment: share of the slide's tissue, and area: with fewer windows nothing can be judged."""
MOST = 12
MARGIN_UM = 60.0
"""What is taken off the tissue before its parts are told apart: detection closes gaps."""
STAINED = 0.5
"""And pixels with less than this share of the median density: detection fills holes, and joins what is near."""
NECK = 0.85
"""Parts that touch are two if what joins them is narrower than this share of the narrower one."""


@dataclass(frozen=True, eq=False)
class Fragments:
    """Which fragment of the fixed slide a place belongs to; places without tissue belong to the nearest."""

    labels: np.ndarray
    """uint8 (h, w): number of the fragment, from 0, the largest first."""
    um: float
    """µm per px of the map."""

    @property
    def count(self) -> int:
        """Number of fragments."""
        return int(self.labels.max()) + 1

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """The fragment of each point, float (…, 2) in µm → intp (…)."""
        index = np.floor(points / self.um).astype(np.intp)
        h, w = self.labels.shape
        return self.labels[np.clip(index[..., 0], 0, h - 1), np.clip(index[..., 1], 0, w - 1)].astype(np.intp)

    def on_slide(self, points: np.ndarray) -> np.ndarray:
        """Whether points, float (…, 2) in µm, lie on the slide: bool (…)."""
        return np.asarray(((points >= 0) & (points < np.array(self.labels.shape) * self.um)).all(-1))

    def mask(self, number: int, like: Picture) -> np.ndarray:
        """Where a fragment is, in the pixels of a picture of the whole slide: bool (h, w)."""
        h, w = like.density.shape
        y, x = ((np.arange(n) + 0.5) * like.um // self.um for n in (h, w))
        rows, columns = (np.minimum(i.astype(np.intp), n - 1) for i, n in zip((y, x), self.labels.shape, strict=True))
        return self.labels[np.ix_(rows, columns)] == number


def fragments(picture: Picture) -> Fragments:
    """The fragments of a slide: its tissue, cut at narrow necks; small ones belong to the nearest large one."""
    small = picture.at(LABEL_UM)
    if not small.tissue.any():
        return Fragments(np.zeros((1, 1), np.uint8), max(picture.extent_um, 1.0))
    stained = blurred(small.density, 1.0) > STAINED * float(np.median(small.density[small.tissue]))
    parts = _parts(small.tissue & stained, MARGIN_UM / small.um)
    counts = np.bincount(parts.ravel())
    counts[0] = 0
    least = max(LEAST_SHARE * counts.sum(), LEAST_UM2 / small.um**2)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] >= least][:MOST]
    if not order:
        return Fragments(np.zeros((1, 1), np.uint8), max(picture.extent_um, 1.0))
    # The Voronoi cells of the fragments, so that every place has one.
    outside = (~np.isin(parts, order)).astype(np.uint8)
    _, cells = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    cells, inside = np.asarray(cells, np.intp), outside == 0
    number_of = np.zeros(int(cells.max()) + 1, np.uint8)
    rank = np.zeros(len(counts), np.uint8)
    rank[order] = np.arange(len(order))
    number_of[cells[inside]] = rank[parts[inside]]
    return Fragments(number_of[cells], small.um)


def _parts(tissue: np.ndarray, margin_px: float) -> np.ndarray:
    """Number of the part that each pixel belongs to, from 1, and 0 outside: int (h, w); a watershed of the width."""
    width = cv2.distanceTransform(np.pad(tissue, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] - margin_px
    inside = width > 0
    height = np.where(inside, np.log(np.maximum(width, 0.5)), -1.0)
    _, peaks = cv2.connectedComponents(h_maxima(height, -np.log(NECK)).astype(np.uint8), connectivity=8)
    return np.asarray(watershed(-height, peaks, mask=inside))


def merged(parts: Fragments, groups: list[int]) -> Fragments:
    """The same map with other numbers: part i gets the number `groups[i]`."""
    return Fragments(np.array(groups, np.uint8)[parts.labels], parts.um)
