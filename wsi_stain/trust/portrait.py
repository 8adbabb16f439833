"""The portrait of a slide: a few figures of its tissue that tell H&E from other stains, and one slide from another.

All are measured on tiles at the model's scale, relative to the background of the slide, and each is the median over the
tiles, so that ink or a fold in one of them does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_laplace, laplace

STAINED_OD = 0.1
"""Mean optical density above which a pixel is stained."""
TILT = 0.03
"""Difference of two channels in the direction of a pixel's optical density above which one of them is stronger."""
GREY_SPREAD, GREY_OD = 0.12, 0.3
"""A pixel is grey if the channels of its direction differ by less, and its density is above this."""
ENDS = 5
"""Percentiles of colour that stand for the bluest and the pinkest pixels."""
LEAST_PX = 500
"""Stained pixels that a tile must have."""
SIGMAS_UM = tuple(1.0 * 2 ** (i / 2) for i in range(8))
"""Scales at which nuclei are sought: σ of a blob of radius r is r / √2."""


def portrait(tiles: Sequence[np.ndarray], background: Sequence[float], mpp: float) -> Mapping[str, float]:
    """The figures of tiles, uint8 (h, w, 3) each: the median over those with tissue; empty without any.

    Args:
        tiles: at the model's scale.
        background: colour (R, G, B) of the empty slide.
        mpp: µm per px of the tiles.
    """
    each = [figures for tile in tiles if (figures := tile_figures(tile, background, mpp))]
    return {name: float(np.median([figures[name] for figures in each])) for name in (each[0] if each else ())}


def tile_figures(tile: np.ndarray, background: Sequence[float], mpp: float) -> Mapping[str, float]:
    """The figures of one tile; empty if it has too little tissue, or one colour."""
    od = np.maximum(-np.log10(np.maximum(tile, 1) / np.asarray(background, np.float32)), 0)
    mean = od.mean(-1)
    stained = mean > STAINED_OD
    if stained.sum() < LEAST_PX or not mean[stained].std():
        return {}
    direction = od[stained] / np.linalg.norm(od[stained], axis=-1, keepdims=True)
    red, green, blue = direction.T
    dark = mean[stained] > GREY_OD
    hue = red - blue
    low, high = np.percentile(hue, [ENDS, 100 - ENDS])
    ends = [_unit(np.median(direction[chosen], axis=0)) for chosen in (hue >= high, hue <= low)]
    return {
        "density": float(np.median(mean[stained])),
        "darkest": float(np.percentile(mean[stained], 95)),
        "brown": float(((blue > green + TILT) & (blue > red)).mean()),
        "cyan": float((red > green + TILT).mean()),
        "grey": float(((np.ptp(direction, axis=-1) < GREY_SPREAD) & dark).mean()),
        "bluest": float(ends[0][0] - ends[0][2]),
        "pinkest": float(ends[1][0] - ends[1][2]),
        "green_of_pinkest": float(ends[1][1]),
        "angle": float(np.degrees(np.arccos(np.clip(ends[0] @ ends[1], -1, 1)))),
        "sharpness": _sharpness(mean, stained),
        "nucleus_um": _nucleus_um(od, stained, mpp),
    }


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _sharpness(mean: np.ndarray, stained: np.ndarray) -> float:
    """Power of the finest detail relative to that of detail twice as coarse."""
    fine = laplace(gaussian_filter(mean, 0.7))
    coarse = laplace(gaussian_filter(mean, 1.4))
    return float(np.std(fine[stained]) / np.std(coarse[stained]))


def _nucleus_um(od: np.ndarray, stained: np.ndarray, mpp: float) -> float:
    """Radius of the blobs of hematoxylin that stand out most, in µm: the σ of the strongest normalised Laplacian, · √2.

    Source: Lindeberg, "Feature detection with automatic scale selection", 1998, section 5.
    """
    blue = np.maximum(od[..., 0] - 0.5 * od[..., 2], 0)
    responses = [np.percentile(-((s / mpp) ** 2) * gaussian_laplace(blue, s / mpp)[stained], 98) for s in SIGMAS_UM]
    best = int(np.argmax(responses))
    step = 0.0
    if 0 < best < len(responses) - 1:
        a, b, c = responses[best - 1 : best + 2]
        step = 0.5 * (a - c) / (a - 2 * b + c)
    return float(SIGMAS_UM[0] * 2 ** ((best + step) / 2) * np.sqrt(2))
