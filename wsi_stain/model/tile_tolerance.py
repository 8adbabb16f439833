"""Measures the difference between blended tiles of a bundle and one pass of its network over the same field.

The field is procedural histology, so that measurements are comparable; tiles are cut and blended as in the engine.
"""

from __future__ import annotations

import math

import numpy as np

from wsi_stain import phantom
from wsi_stain.config.model import TileTolerance
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle, TileGenerator
from wsi_stain.phantom.section import PATCH
from wsi_stain.tiling.blend import Blender, window
from wsi_stain.tiling.grid import TileGrid

MARGIN = 2.0
"""Ratio of tolerance to measurement: other machines round differently, and other tissue differs from this field."""
SEED = 2
"""Seed of the section that is stained: it contains nests, stroma, glands, vessels and background."""
ANY_MPP = 0.5
"""µm per px of the field for a bundle without a fixed scale."""


def measure(bundle: Bundle, generator: TileGenerator) -> TileTolerance:
    """The difference between tiles and one pass over one period of the grid; its mean is that of a whole slide.

    Args:
        bundle: its tile, overlap and scale; they must fit the network.
        generator: the bundle's.
    """
    tile, overlap = bundle.tile, bundle.overlap
    stride = tile - overlap
    # Two tiles along each axis; no third tile touches the window of one stride around the middle of their seam.
    pixels = field(bundle, tile + stride)
    inner = Box.at(tile // 2, tile // 2, Size(stride, stride))
    blender = Blender(inner, window(tile, overlap), len(bundle.background))
    for box in TileGrid(Size(*pixels.shape[:2]), tile, overlap, generator.multiple).tiles(inner):
        blender.add(box, generator(pixels[box.slices()][None])[0])
    whole = generator(pixels[None])[0][inner.slices()]
    difference = np.abs(blender.result().astype(np.int16) - whole)
    return TileTolerance(
        float(difference.mean()), float(np.percentile(difference, 99, method="higher")), float(difference.max())
    )


def tolerance(measured: TileTolerance) -> TileTolerance:
    """The tolerance for a measurement: `MARGIN` times its values, rounded up; at least 0.01 and one grey level."""
    mean = max(1, math.ceil(100 * MARGIN * measured.mean)) / 100
    p99, most = (float(max(1, math.ceil(MARGIN * value))) for value in (measured.p99, measured.max))
    return TileTolerance(mean, p99, most)


def in_words(figures: TileTolerance) -> str:
    """The figures in the wording that a card must contain."""
    return f"mean {round(figures.mean, 4):g}, 99 % {figures.p99:g}, largest {figures.max:g} grey levels"


def field(bundle: Bundle, side: int) -> np.ndarray:
    """Procedural histology at the bundle's scale, identical on every call: uint8 (side, side, 3)."""
    low, high = phantom.MPP_RANGE
    mpp = min(max(bundle.mpp or ANY_MPP, low), high)
    around = 2 * PATCH + 2 * bundle.tile
    return phantom.render(Box.at(PATCH, PATCH, Size(side, side)), size=Size(around, around), mpp=mpp, seed=SEED)
