"""Figures that compare a generated stain with the real one, and their bootstrap intervals.

Every figure of a whole split is a function of *sums over fields* (of squares, of counts), so a resample of the
bootstrap only adds a few numbers, and a split of thousands of fields need not be held in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import rel_entr, xlogy
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

ROUNDS = 1000
"""Resamples of the bootstrap."""


@dataclass(frozen=True, slots=True)
class IntervalEstimate:
    """A figure with its 95 % interval; NaN bounds where there is none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Bland & Altman, "Statistical methods for assessing agreement between two methods", Lancet 1986."""

    bias: float
    """Mean of generated - real."""
    low: float
    """Bias - 1.96 standard deviations of the differences: the lower limit of agreement."""
    high: float
    """Bias + 1.96 standard deviations."""


def psnr(generated: np.ndarray, real: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 (h, w, 3); infinite for equal images."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(real, generated, data_range=255))


def ssim(generated: np.ndarray, real: np.ndarray) -> float:
    """Structural similarity of two uint8 (h, w, 3) as the paper measures it: 7×7 windows, mean over channels."""
    value: Any = structural_similarity(real, generated, channel_axis=-1, data_range=255)
    return float(value)


def block_means(values: np.ndarray, side: int) -> np.ndarray:
    """(h, w) → (h // side, w // side): the mean of every whole block of `side` px."""
    h, w = (n // side * side for n in values.shape)
    return values[:h, :w].reshape(h // side, side, w // side, side).mean(axis=(1, 3), dtype=np.float64)


def pair_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two samples of n values → float64 (7,): sums for `pearson` and `mean_absolute_error`, additive over fields."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return np.array([x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y, np.abs(x - y).sum()])


def pearson(sums: np.ndarray) -> np.ndarray:
    """`pair_sums` (…, 7) → Pearson's r (…); NaN where a sample is constant, or has fewer than two values."""
    n, x, y, xx, yy, xy, _ = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    # A constant leaves rounding errors of about 1e-15 of the terms; less than 1e-12 counts as no spread.
    constant = (spread_x <= 1e-12 * n * xx) | (spread_y <= 1e-12 * n * yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((n * xy - x * y) / np.sqrt(spread_x * spread_y), -1, 1)
    return np.where(constant, np.nan, r)


def mean_absolute_error(sums: np.ndarray) -> np.ndarray:
    """`pair_sums` (…, 7) → mean of |a - b| (…); NaN for an empty sample."""
    return mean(np.stack([sums[..., 6], sums[..., 0]], -1))


def mean(sums: np.ndarray) -> np.ndarray:
    """Sum and count (…, 2) → mean (…); NaN for an empty sample."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def dice(overlap: np.ndarray) -> np.ndarray:
    """Pixels in both, in the first alone, in the second alone, in neither (…, 4) → Dice's coefficient (…), 0–1.

    Source: Dice, "Measures of the amount of ecologic association between species", 1945. NaN where nothing is positive.
    """
    return mean(np.stack([2 * overlap[..., 0], 2 * overlap[..., 0] + overlap[..., 1] + overlap[..., 2]], -1))


def jaccard(overlap: np.ndarray) -> np.ndarray:
    """As `dice` → intersection over union (…)."""
    return mean(np.stack([overlap[..., 0], overlap[..., :3].sum(-1)], -1))


def true_positive_rate(overlap: np.ndarray) -> np.ndarray:
    """As `dice` → share of the real positive pixels that the first has, too (sensitivity)."""
    return mean(np.stack([overlap[..., 0], overlap[..., 0] + overlap[..., 2]], -1))


def true_negative_rate(overlap: np.ndarray) -> np.ndarray:
    """As `dice` → share of the real negative pixels that the first has, too (specificity)."""
    return mean(np.stack([overlap[..., 3], overlap[..., 3] + overlap[..., 1]], -1))


def divergence(counts: np.ndarray) -> np.ndarray:
    """Jensen–Shannon divergence of two histograms in bits: 0 = equal, 1 = disjoint; NaN where one is empty.

    Source: Lin, "Divergence measures based on the Shannon entropy", 1991, eq. 4.1 with equal weights.

    Args:
        counts: (…, 2 × bins), one histogram after the other.
    """
    pair = counts.reshape(*counts.shape[:-1], 2, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = pair / pair.sum(-1, keepdims=True)
    return _entropy(p.mean(-2)) - _entropy(p).mean(-1)


def relative_entropy(counts: np.ndarray) -> np.ndarray:
    """Kullback–Leibler divergence of the first histogram from the second, in nats; NaN where one is empty.

    Σ q log(q / p) with q the second, real one; every bin counts one more, so that no bin is empty.

    Args:
        counts: (…, 2 × bins), one histogram after the other.
    """
    pair = counts.reshape(*counts.shape[:-1], 2, -1)
    more = pair + 1
    p, q = np.moveaxis(more / more.sum(-1, keepdims=True), -2, 0)
    return np.where(pair.sum(-1).min(-1) > 0, rel_entr(q, p).sum(-1), np.nan)


def _entropy(p: np.ndarray) -> np.ndarray:
    return -xlogy(p, p).sum(-1) / np.log(2)


def agreement(generated: np.ndarray, real: np.ndarray) -> BlandAltman:
    """Bias and limits of agreement of two samples; NaN limits below two values."""
    difference = generated - real
    if difference.size < 2:
        return BlandAltman(*([float("nan")] * 3))
    bias, half = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return BlandAltman(bias, bias - half, bias + half)


def bootstrap(
    sums: np.ndarray,
    finish: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str],
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = 95,
) -> IntervalEstimate:
    """A figure with its percentile interval, resampling whole groups of fields with replacement.

    Args:
        sums: (fields, k), the contribution of each field.
        finish: total sums (…, k) → figures (…).
        groups: one label per field: the slide, or a spatial block; fields of one group are not independent.
        rounds: number of resamples.
        seed: seed of the resampling.
        level: level of the interval, in percent.

    Returns:
        The figure of all fields; its bounds are NaN with only one group, which allows no estimate.
    """
    labels, members = np.unique(np.asarray(groups), return_inverse=True)
    by_group = np.zeros((len(labels), sums.shape[1]))
    np.add.at(by_group, members, sums)
    value = float(finish(by_group.sum(0)))
    if len(labels) < 2 or np.isnan(value):
        return IntervalEstimate(value)
    chosen = np.random.default_rng(seed).integers(len(labels), size=(rounds, len(labels)))
    draws = finish(np.stack([by_group[some].sum(0) for some in chosen]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice", category=RuntimeWarning)  # an undefined figure
        tails = [50 - level / 2, 50 + level / 2]
        low, high = np.nanpercentile(draws, tails, method="inverted_cdf")  # no interpolation: PSNR may be infinite
    return IntervalEstimate(value, float(low), float(high))
