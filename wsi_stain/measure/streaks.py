"""A figure of streaks and hatching: how much the texture of an image prefers single frequencies and directions.

Tissue has no direction over a whole slide, so its power spectrum, averaged over many windows, is alike in all
directions at a given frequency. What a network adds of its own (streaks, hatching, checkerboards) lies in the same
direction everywhere and stands out of the ring of its frequency.
"""

from __future__ import annotations

import numpy as np

WINDOW_PX = 64
"""Side of a window; its spectrum has 64 × 33 frequencies."""
RINGS = range(3, WINDOW_PX // 2)
"""Frequencies that are compared, in periods per window: slower ones have too few directions, faster ones do not fit."""
COVERED = 0.5
"""Only windows with at least this share of tissue are used."""
_FREQUENCY = np.hypot(
    np.fft.fftfreq(WINDOW_PX, 1 / WINDOW_PX)[:, None], np.fft.rfftfreq(WINDOW_PX, 1 / WINDOW_PX)[None]
).ravel()
SIZE = _FREQUENCY.size + 1


def spectrum_sums(density: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Power spectra of an image's windows, each divided by its total: additive over images, for `streaks`.

    Args:
        density: float (h, w), mean optical density.
        tissue: bool (h, w).

    Returns:
        float64 (SIZE,): the sum of the spectra, and the number of windows.
    """
    taper = np.hanning(WINDOW_PX)[:, None] * np.hanning(WINDOW_PX)
    sums = np.zeros(SIZE)
    for y in range(0, density.shape[0] - WINDOW_PX + 1, WINDOW_PX):
        for x in range(0, density.shape[1] - WINDOW_PX + 1, WINDOW_PX):
            window = (slice(y, y + WINDOW_PX), slice(x, x + WINDOW_PX))
            if tissue[window].mean() < COVERED:
                continue
            values = density[window].astype(np.float64)
            power = np.abs(np.fft.rfft2((values - values.mean()) * taper)).ravel() ** 2
            if power.sum() > 0:  # a constant has no texture
                sums += np.append(power / power.sum(), 1)
    return sums


def streaks(sums: np.ndarray) -> np.ndarray:
    """`spectrum_sums` (…, SIZE) → the highest power of a ring over its median, mean over `RINGS` (…).

    1 for a texture without any direction; NaN without a window. Chance alone raises it where windows are few: compare
    it with the figure of the real stain in the same fields.
    """
    spectra = np.asarray(sums, np.float64)[..., :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = [ring.max(-1) / np.median(ring, axis=-1) for ring in (spectra[..., _ring(r)] for r in RINGS)]
    return np.mean(ratios, axis=0)


def _ring(frequency: int) -> np.ndarray:
    return np.abs(_FREQUENCY - frequency) < 0.5
