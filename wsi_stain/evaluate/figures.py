"""Measurements on one field: the generated stain against the real one, and against its H&E input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

from wsi_stain.measure.deconvolution import (
    HE_BACKGROUND,
    POSITIVE_OD,
    Background,
    dab,
    hematoxylin,
    optical_density,
    tissue,
)
from wsi_stain.measure.metrics import block_means, pair_sums, pearson, psnr, ssim
from wsi_stain.measure.streaks import SIZE, spectrum_sums

BLOCKS_UM = (128, 64)
"""Sides of the blocks in which positive area is compared, µm: serial sections match at this scale, not in pixels."""
FIELD = "field"
"""The scale at which a whole field is one number."""
BINS, MOST_OD = 30, 1.5
"""Histograms of DAB density: equal bins from 0 to this; higher densities count in the last bin."""
HALF = 0.5
"""Positivity from which a pixel of a map counts as positive."""
CLEAR_UM = 20.0
"""Background counts for the outline from this distance to tissue on: nearer, tissue and JPEG blocks reach into it."""
SMOOTH_UM = 2.0
"""σ in µm of the Gaussian before hematoxylin is compared: it keeps nuclei and removes grain and chromatin."""


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """Parameters of the measurement."""

    mpp: float = 1.0
    """µm per px of the fields."""
    background: Background = (243, 243, 243)
    """Background colour of the stain, I0 of its optical density. The H&E has its own, `HE_BACKGROUND`."""


@dataclass(frozen=True, slots=True)
class FieldPixels:
    """One field: name, H&E and real stain, both uint8 (h, w, 3)."""

    name: str
    he: np.ndarray
    real: np.ndarray
    kept: np.ndarray | None = None
    """Which pixels count, bool (h, w): whole blocks of the largest scale; None counts all. PSNR and SSIM need all."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amount of DAB in an image of one field; NaN and empty where only a map of positive pixels is known."""

    shares: Mapping[str, np.ndarray]
    """Scale (`128 µm`, `64 µm`, `field`) → share of positive pixels of each block, float64 (n,)."""
    p90: float = float("nan")
    """90th percentile of the DAB density over the field's pixels, in OD."""
    integrated: float = float("nan")
    """Integrated optical density: the sum of DAB density over the field's area, in OD·µm²."""
    top_tenth: float = float("nan")
    """Mean DAB density of the field's densest tenth of pixels, in OD."""
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """Pixels of tissue by DAB density, int64 (BINS,)."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One contender's answer for one field; NaN where the answer is only a map of positive pixels."""

    generated: Amounts
    real: Amounts
    overlap: np.ndarray = field(default_factory=lambda: np.zeros(4))
    """Pixels positive in both, in the generated alone, in the real alone, and in neither: float64 (4,)."""
    psnr: float = float("nan")
    ssim: float = float("nan")
    hematoxylin_r: float = float("nan")
    """Pearson's r of smoothed hematoxylin: generated against the H&E, which are exactly aligned."""
    spectrum: np.ndarray = field(default_factory=lambda: np.zeros(SIZE))
    """Power spectra of windows of tissue, float64 (SIZE,), as in `measure.streaks`."""
    outline: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """Difference of the background's mean from the stain's background colour, grey levels times pixels, and pixels."""


class Target:
    """One field, its real stain measured once for all contenders.

    Args:
        view: the field.
        ruler: parameters of the measurement.
    """

    def __init__(self, view: FieldPixels, ruler: MeasureSettings) -> None:
        self._view, self._ruler = view, ruler
        self._kept = np.ones(view.real.shape[:2], bool) if view.kept is None else view.kept
        self._tissue = tissue(view.he, ruler.mpp) & self._kept
        self._empty = (np.asarray(distance_transform_edt(~self._tissue)) > CLEAR_UM / ruler.mpp) & self._kept
        self._hematoxylin = hematoxylin(view.he, HE_BACKGROUND, sigma_px=SMOOTH_UM / ruler.mpp)
        self._amounts = self._measure(view.real)
        self._positive = dab(view.real, ruler.background) > POSITIVE_OD

    def compare(self, answer: np.ndarray) -> Figures:
        """Measure an answer.

        Args:
            answer: uint8 (h, w, 3), an image; or float (h, w), the positivity of each pixel, 0–1.
        """
        assert answer.shape[:2] == self._view.real.shape[:2], f"{answer.shape} for a field {self._view.real.shape}"
        if answer.ndim == 2:
            return Figures(Amounts(self._shares(answer)), self._amounts, self._overlap(answer > HALF))
        sigma = SMOOTH_UM / self._ruler.mpp
        blue = hematoxylin(answer, self._ruler.background, sigma_px=sigma)
        return Figures(
            self._measure(answer),
            self._amounts,
            self._overlap(dab(answer, self._ruler.background) > POSITIVE_OD),
            psnr(answer, self._view.real) if self._view.kept is None else float("nan"),
            ssim(answer, self._view.real) if self._view.kept is None else float("nan"),
            float(pearson(pair_sums(blue[self._kept], self._hematoxylin[self._kept]))),
            spectrum_sums(optical_density(answer, self._ruler.background).mean(-1), self._tissue),
            self._outline(answer),
        )

    def _overlap(self, positive: np.ndarray) -> np.ndarray:
        return overlap(positive[self._kept], self._positive[self._kept])

    def _outline(self, image: np.ndarray) -> np.ndarray:
        if not (pixels := int(self._empty.sum())):
            return np.zeros(2)
        difference = np.abs(image[self._empty].mean(0, dtype=np.float64) - self._ruler.background).mean()
        return np.array([difference * pixels, pixels])

    def _measure(self, image: np.ndarray) -> Amounts:
        density = dab(image, self._ruler.background)
        return Amounts(
            self._shares(density > POSITIVE_OD),
            float(np.percentile(density[self._kept], 90)),
            float(density[self._kept].sum(dtype=np.float64)) * self._ruler.mpp**2,
            _mean_of_top_tenth(density[self._kept]),
            histogram(density[self._tissue]),
        )

    def _shares(self, positive: np.ndarray) -> dict[str, np.ndarray]:
        sides = {f"{um} µm": round(um / self._ruler.mpp) for um in BLOCKS_UM}
        blocks = {
            scale: block_means(positive, side)[block_means(self._kept, side) > 0.5] for scale, side in sides.items()
        }
        return blocks | {FIELD: np.array([positive[self._kept].mean(dtype=np.float64)])}


def _mean_of_top_tenth(density: np.ndarray) -> float:
    n = max(1, density.size // 10)
    return float(np.partition(density, density.size - n, axis=None)[-n:].mean(dtype=np.float64))


def overlap(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Positive pixels, bool (h, w) each → float64 (4,): in both, in the first or second alone, in neither."""
    counts = [generated & real, generated & ~real, ~generated & real, ~generated & ~real]
    return np.array([np.count_nonzero(c) for c in counts], np.float64)


def histogram(density: np.ndarray) -> np.ndarray:
    """Densities → int64 (BINS,), the count in each bin from 0 to `MOST_OD`."""
    bins = np.minimum((density * (BINS / MOST_OD)).astype(np.int64), BINS - 1)
    return np.bincount(bins.ravel(), minlength=BINS)
