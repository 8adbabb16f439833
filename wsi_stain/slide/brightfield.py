"""Whether a slide was taken in transmitted light: the models know nothing else.

In brightfield, empty glass is the brightest part of a slide and tissue absorbs light. In dark field and fluorescence
the background is black and the tissue shines; saved as RGB, such a slide looks like any other to the readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.slide import Slide

BLACK, DARK, DIM, BRIGHT = 40, 70, 110, 140
"""Grey levels of the brightest channel. Tissue in transmitted light is brighter than `DARK`, except ink and pigment,
and somewhere it is as bright as `BRIGHT`."""
PALE, COLOURED, BACKGROUND_SHARE = 150, 60, 0.10
"""Glass: the darkest channel is at least `PALE`, and the channels differ by at most `COLOURED` (old lamps are yellow).
Where much is dark, glass is at least this share of the rest: then the dark surrounds the scan."""
SOME_DARK, MUCH_DARK, MOSTLY_DARK = 0.05, 0.25, 0.5
"""Shares of dark pixels."""
DIM_SHARE = 0.12
"""Largest share of dim pixels among those that are not black, for a scan with a black surrounding: its edges are sharp,
whereas what shines fades into the dark around it."""
PURE = 0.35
"""Darkest by brightest channel. Tissue in transmitted light has no pure colours: its median is 0.5 or more."""
LEAST = 10_000
"""Pixels below which there is nothing to judge."""
THUMBNAIL_PX, LARGEST_PX = 1024, 1 << 22
SAMPLES, SAMPLE_PX = 8, 64
"""Of a slide without a small level, this number of boxes along each side is looked at, each of this side in px."""


def check_brightfield(slide: Slide) -> None:
    """Refuse a slide that was not taken in transmitted light.

    Raises:
        SlideError: most of the slide is dark, and there is no bright background.
    """
    pixels = np.concatenate([part.reshape(-1, 3) for part in _looks(slide)] or [np.empty((0, 3), np.uint8)])
    if not is_brightfield(pixels):
        raise SlideError(
            f"{slide.path.name} has no bright background: it looks like fluorescence or dark field, and the models "
            "know only brightfield; if it is brightfield and its background was painted black, add --force-brightfield"
        )


def is_brightfield(pixels: np.ndarray) -> bool:
    """Whether pixels, uint8 (n, 3) sRGB, can come from transmitted light; true for fewer than `LEAST`."""
    if len(pixels) < LEAST:
        return True
    brightest, darkest = pixels.max(1), pixels.min(1)
    if np.percentile(brightest, 95) < BRIGHT:
        return False
    is_dark = brightest < DARK
    dark_share = is_dark.mean()
    if dark_share < SOME_DARK:
        return True
    is_background = (darkest >= PALE) & (brightest - darkest <= COLOURED)
    if is_background[~is_dark].mean() < BACKGROUND_SHARE:
        return bool(dark_share < MUCH_DARK and np.median(darkest[~is_dark] / brightest[~is_dark]) >= PURE)
    is_dim = (brightest >= BLACK) & (brightest < DIM)
    return bool(dark_share < MOSTLY_DARK or is_dim.sum() <= DIM_SHARE * (brightest >= BLACK).sum())


def _looks(slide: Slide) -> Iterator[np.ndarray]:
    """The whole slide, reduced; or samples of level 0 where that would take long. Damaged parts are left out."""
    coarsest = slide.levels[-1].size
    if coarsest.h * coarsest.w <= LARGEST_PX:
        try:
            yield slide.thumbnail(THUMBNAIL_PX)
            return
        except UnreadableRegion:
            pass
    view = slide.at(None)
    side = Size(*(min(SAMPLE_PX, n) for n in view.size))
    places = [
        [round(n * (i + 0.5) / SAMPLES - s / 2) for i in range(SAMPLES)] for n, s in zip(view.size, side, strict=True)
    ]
    for y, x in product(*places):
        box = Box.at(min(max(0, y), view.size.h - side.h), min(max(0, x), view.size.w - side.w), side)
        try:
            yield view.read(box)
        except UnreadableRegion:
            continue
