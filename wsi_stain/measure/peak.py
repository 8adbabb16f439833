"""Where between three samples a peak lies."""

from __future__ import annotations

import numpy as np


def vertex(three: np.ndarray) -> np.ndarray:
    """Offset of the vertex of the parabola through three samples in a row from the middle one.

    Args:
        three: float (…, 3); the middle one is the largest.

    Returns:
        float (…), -0.5 to 0.5; 0 where all three are equal.
    """
    before, peak, after = np.moveaxis(three, -1, 0)
    bend = before - 2 * peak + after
    return np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
