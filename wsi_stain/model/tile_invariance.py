"""How far what a bundle paints in tiles is from one pass of its network over the same field.

The field is procedural histology, so that everybody measures the same; tiles are cut and blended as the engine does it.
"""

from __future__ import annotations

import math

import numpy as np

from wsi_stain import phantom
from wsi_stain.config.model import BundlePromise
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import Bundle, Generator
from wsi_stain.phantom.section import PATCH
from wsi_stain.tiling.blend import Blender, window
from wsi_stain.tiling.grid import TileGrid

MARGIN = 2.0
"""What is promised over what was measured: other machines round otherwise, and other tissue is not this field."""
SEED = 2
"""The section whose field is stained: nests, stroma, glands, vessels and glass lie in it."""
ANY_MPP = 0.5
"""µm per px of the field for a bundle that works at any scale."""


def measure(bundle: Bundle, generator: Generator) -> BundlePromise:
    """How far tiles are from one pass, over one period of the grid, so that the mean is that of a whole slide.

    Args:
        bundle: its tile, overlap and scale; they must fit the network.
        generator: the bundle's.
    """
    tile, overlap = bundle.tile, bundle.overlap
    stride = tile - overlap
    # Two tiles along each axis; the window of one stride around the middle of their seam is touched by no third one.
    pixels = field(bundle, tile + stride)
    inner = Box.at(tile // 2, tile // 2, Size(stride, stride))
    blender = Blender(inner, window(tile, overlap))
    for box in TileGrid(Size(*pixels.shape[:2]), tile, overlap, generator.multiple).tiles(inner):
        blender.add(box, generator(pixels[box.slices()][None])[0])
    whole = generator(pixels[None])[0][inner.slices()]
    apart = np.abs(blender.result().astype(np.int16) - whole)
    return BundlePromise(float(apart.mean()), float(np.percentile(apart, 99, method="higher")), float(apart.max()))


def promise(measured: BundlePromise) -> BundlePromise:
    """What can be promised after a measurement: `MARGIN` times it, rounded up; at least 0.01 and one grey level."""
    mean = max(1, math.ceil(100 * MARGIN * measured.mean)) / 100
    p99, most = (float(max(1, math.ceil(MARGIN * value))) for value in (measured.p99, measured.max))
    return BundlePromise(mean, p99, most)


def in_words(figures: BundlePromise) -> str:
    """The figures as a card must state them."""
    return f"mean {round(figures.mean, 4):g}, 99 % {figures.p99:g}, largest {figures.max:g} grey levels"


def field(bundle: Bundle, side: int) -> np.ndarray:
    """Procedural histology at the bundle's scale, always the same: uint8 (side, side, 3)."""
    low, high = phantom.MPP_RANGE
    mpp = min(max(bundle.mpp or ANY_MPP, low), high)
    around = 2 * PATCH + 2 * bundle.tile
    return phantom.render(Box.at(PATCH, PATCH, Size(side, side)), size=Size(around, around), mpp=mpp, seed=SEED)
