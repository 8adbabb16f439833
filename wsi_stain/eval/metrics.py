"""Figures that compare a generated stain with the real one, and their bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


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


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two samples; NaN where one of them is constant."""
    if a.size < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def mean_absolute_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of |a - b|."""
    return float(np.abs(a - b).mean())


def bootstrap(
    statistic: Callable[[Sequence[int]], float], groups: Sequence[str], *, rounds: int = 1000, seed: int = 0
) -> Estimate:
    """A statistic over images with its 95 % percentile interval, resampling whole groups with replacement.

    Args:
        statistic: of a list of image indices (an index may repeat).
        groups: one label per image: the slide, or a spatial block; images of one group are not independent.
        rounds: number of resamples.
        seed: of the resampling.
    """
    members = [np.flatnonzero(np.asarray(groups) == label) for label in sorted(set(groups))]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]).tolist())
        for _ in range(rounds)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice", category=RuntimeWarning)  # an undefined statistic
        low, high = np.nanpercentile(draws, [2.5, 97.5], method="inverted_cdf")  # a draw itself: PSNR may be infinite
    return Estimate(statistic(range(len(groups))), float(low), float(high))
