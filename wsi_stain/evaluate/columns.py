"""The columns of an evaluation's table: each metric as sums over fields, so that any group of fields has its figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wsi_stain.evaluate.figures import BINS, BLOCKS_UM, CLEAR_UM, FIELD, MOST_OD, Figures
from wsi_stain.measure.deconvolution import POSITIVE_OD
from wsi_stain.measure.metrics import (
    IntervalEstimate,
    bootstrap,
    dice,
    divergence,
    jaccard,
    mean,
    mean_absolute_error,
    pair_sums,
    pearson,
    relative_entropy,
    true_negative_rate,
    true_positive_rate,
)
from wsi_stain.measure.streaks import streaks

SCALES = (*(f"{um} µm" for um in BLOCKS_UM), FIELD)
MIXED = (0.1, 0.9)
"""Real positive share of a mixed block, from and to."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of the table."""

    name: str
    meaning: str
    """One sentence for the report."""
    sums: Callable[[Figures], np.ndarray]
    """Contribution of one field, (k,)."""
    finish: Callable[[np.ndarray], np.ndarray]
    """Sums over fields (…, k) → the figure (…)."""


def summary(figures: Sequence[Figures], groups: Sequence[str]) -> dict[str, IntervalEstimate]:
    """Figures of one row's fields → every metric with its interval."""
    return {m.name: bootstrap(np.stack([m.sums(f) for f in figures]), m.finish, groups) for m in METRICS}


def _metrics() -> list[Metric]:
    metrics = []
    for scale in SCALES:
        where = "whole fields" if scale == FIELD else f"blocks of {scale}"

        def sums(f: Figures, scale: str = scale) -> np.ndarray:
            return pair_sums(f.generated.shares[scale], f.real.shares[scale])

        positive = f"share of DAB-positive pixels (DAB density above {POSITIVE_OD} OD) in {where}"
        metrics += [
            Metric(f"DAB+ r, {scale}", f"Pearson's r of the {positive}", sums, pearson),
            Metric(f"DAB+ error, {scale}", f"mean absolute error of the {positive}", sums, mean_absolute_error),
        ]
    return [*metrics, *_mixed(), *_overlaps(), *_amounts(), *_texture(), *_pixels()]


def _mixed() -> list[Metric]:
    """Over all blocks, r is the contrast between two tissues; blocks that hold both brown and other tissue are hard."""
    scale, (low, high) = SCALES[0], MIXED

    def sums(f: Figures) -> np.ndarray:
        real = f.real.shares[scale]
        is_mixed = (real >= low) & (real <= high)
        return pair_sums(f.generated.shares[scale][is_mixed], real[is_mixed])

    where = f"share of DAB-positive pixels in blocks of {scale} that are {low:.0%} to {high:.0%} positive in truth"
    return [
        Metric(f"DAB+ r, mixed {scale}", f"Pearson's r of the {where}", sums, pearson),
        Metric(f"DAB+ error, mixed {scale}", f"mean absolute error of the {where}", sums, mean_absolute_error),
    ]


def _overlaps() -> list[Metric]:
    """Pixel by pixel, so that on serial sections the row of the shifted real stain is the best that can be reached."""
    kinds = {
        "Dice": ("Dice's coefficient", dice),
        "IoU": ("intersection over union", jaccard),
        "TPR": ("true positive rate (sensitivity)", true_positive_rate),
        "TNR": ("true negative rate (specificity)", true_negative_rate),
    }
    where = f"of the DAB-positive pixels (density above {POSITIVE_OD} OD), over all pixels of all fields"
    return [Metric(f"DAB+ {name}", f"{what} {where}", lambda f: f.overlap, by) for name, (what, by) in kinds.items()]


def _texture() -> list[Metric]:
    return [
        Metric(
            "streaks",
            "highest over median power of a ring of the texture's spectrum, mean over rings: 1 without direction, more "
            "with streaks, hatching or checkerboards; compare it with the row of the shifted real stain",
            lambda f: f.spectrum,
            streaks,
        ),
        Metric(
            "outline",
            "difference of the background's mean from the constant background of unstained tiles, in grey levels, "
            f"at least {CLEAR_UM:.0f} µm from tissue",
            lambda f: f.outline,
            mean,
        ),
    ]


def _amounts() -> list[Metric]:
    return [
        Metric(
            "DAB p90 r",
            "Pearson's r over fields of the 90th percentile of DAB density",
            lambda f: pair_sums(np.array(f.generated.p90), np.array(f.real.p90)),
            pearson,
        ),
        Metric(
            "DAB integrated r",
            "Pearson's r over fields of the integrated optical density of DAB (OD·µm²)",
            lambda f: pair_sums(np.array(f.generated.integrated), np.array(f.real.integrated)),
            pearson,
        ),
        Metric(
            "DAB top 10 % r",
            "Pearson's r over fields of the mean DAB density of their densest tenth of pixels",
            lambda f: pair_sums(np.array(f.generated.top_tenth), np.array(f.real.top_tenth)),
            pearson,
        ),
        Metric(
            "DAB histogram KL",
            f"Kullback–Leibler divergence, in nats, of the generated from the real DAB densities of all tissue pixels, "
            f"{BINS} bins from 0 to {MOST_OD} OD with one pixel added to each",
            lambda f: np.concatenate([f.generated.histogram, f.real.histogram]).astype(np.float64),
            relative_entropy,
        ),
        Metric(
            "DAB histogram divergence",
            f"Jensen–Shannon divergence, in bits, of the DAB densities of all tissue pixels, {BINS} bins from 0 to "
            f"{MOST_OD} OD (0 = equal, 1 = disjoint)",
            lambda f: np.concatenate([f.generated.histogram, f.real.histogram]).astype(np.float64),
            divergence,
        ),
    ]


def _pixels() -> list[Metric]:
    return [
        Metric(
            "H r to H&E",
            "Pearson's r of hematoxylin, generated stain against its H&E input, per pixel after smoothing; "
            "mean over fields where both vary",
            lambda f: np.nan_to_num([f.hematoxylin_r, not np.isnan(f.hematoxylin_r)]),
            mean,
        ),
        Metric(
            "PSNR, dB",
            "peak signal-to-noise ratio against the real stain, mean over fields",
            lambda f: np.array([f.psnr, 1.0]),
            mean,
        ),
        Metric(
            "SSIM",
            "structural similarity to the real stain (7 × 7 windows, mean over channels), mean over fields",
            lambda f: np.array([f.ssim, 1.0]),
            mean,
        ),
    ]


METRICS = tuple(_metrics())
"""All metrics except FID and KID, which are not sums over fields."""
