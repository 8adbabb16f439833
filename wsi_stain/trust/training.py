"""The figures of a training set, which a bundle keeps so that a slide can be compared with it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from wsi_stain.config.trust import Figure
from wsi_stain.measure.deconvolution import HE_BACKGROUND
from wsi_stain.measure.stains import background_of
from wsi_stain.trust.portrait import tile_figures
from wsi_stain.trust.sample import TILE_PX, is_stained

EVERY = 8
"""Every eighth px of every tile is enough for the colour of the background."""
DIGITS = 4


def training_figures(images: Iterable[np.ndarray], mpp: float) -> tuple[int, tuple[Figure, ...]]:
    """The spread of the figures of `portrait` over training tiles.

    Args:
        images: H&E, uint8 (h, w, 3); cut into tiles of `TILE_PX`.
        mpp: µm per px.

    Returns:
        Number of tiles with enough tissue, and the figures; none without tiles.
    """
    tiles, coarse = [], []
    for image in images:
        coarse.append(image[::EVERY, ::EVERY].reshape(-1, 3))
        h, w = image.shape[:2]
        tiles += [
            image[y : y + TILE_PX, x : x + TILE_PX]
            for y in range(0, max(1, h - TILE_PX + 1), TILE_PX)
            for x in range(0, max(1, w - TILE_PX + 1), TILE_PX)
        ]
    background = (background_of(np.concatenate(coarse)[None]) if coarse else None) or HE_BACKGROUND
    each = [f for t in tiles if is_stained(t, background) and (f := tile_figures(t, background, mpp))]
    if not each:
        return 0, ()
    spread = {name: np.percentile([figures[name] for figures in each], [1, 50, 99]) for name in each[0]}
    return len(each), tuple(
        Figure(name, *(round(float(value), DIGITS) for value in values)) for name, values in spread.items()
    )
