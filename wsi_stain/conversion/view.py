"""The slide at the model's scale, and which of its tiles are stained; the same for the coordinator and its workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide, View
from wsi_stain.tissue.mask import Outline, TissueMask
from wsi_stain.tissue.outline import Polygons

AREAS, PARTS = ("tissue", "ignored"), ("points", "rings", "polygons")
"""Names of the arrays of a mask's outline in the file for the workers."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """Everything that is needed to open the view of a conversion.

    view = spec.open()
    with view.slide:
        pixels = view.read(box)
    """

    slide: Path
    mpp: float | None = None
    """`--mpp`: µm per px of level 0 of the slide, if the file has none or a wrong one."""
    model_mpp: float | None = None
    """µm per px at which the model works; None means level 0."""
    allow_upsampling: bool = False
    image: int | None = None
    """Number of the image in the slide's file; None means the largest."""
    z: int | None = None
    """Number of the focal plane; None means the middle one."""

    def open(self) -> View:
        """Open the slide at the model's scale; the caller closes `view.slide`.

        Raises:
            SlideError: the file is not a usable slide, or its µm/px does not suit the model.
        """
        slide = Slide.open(self.slide, mpp=self.mpp, image=self.image, z=self.z)
        try:
            return slide.at(self.model_mpp, allow_upsampling=self.allow_upsampling)
        except BaseException:
            slide.close()
            raise


def stained(tiles: Iterable[Box], mask: TissueMask, view: View) -> list[Box]:
    """The tiles, in the view's frame, that are read and stained: their part inside the view touches tissue."""
    image = Box.of(view.size)
    return [tile for tile in tiles if mask.touches(tile & image, view.scale)]


def save_mask(mask: TissueMask, file: Any) -> None:
    """Write a mask for the workers to `file`, a binary file open for writing."""
    scale = np.array([mask.scale.numerator, mask.scale.denominator])
    arrays = {
        f"{area}_{part}": getattr(getattr(mask.outline, area), part)
        for area in (AREAS if mask.outline is not None else ())
        for part in PARTS
    }
    np.savez_compressed(file, array=mask.array, scale=scale, **arrays)


def load_mask(path: Path) -> TissueMask:
    """Read a mask written by `save_mask`."""
    with np.load(path) as content:
        outline = None
        if "tissue_points" in content:
            outline = Outline(*(Polygons(*(content[f"{area}_{part}"] for part in PARTS)) for area in AREAS))
        return TissueMask(content["array"], Fraction(*content["scale"].tolist()), outline=outline)
