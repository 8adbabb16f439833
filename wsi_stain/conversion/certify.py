"""Where an output is examined for seams, which tiles give the statistics of a slide, and the seam certificate.

All three depend only on the positions of tiles and tissue, not on blocks, encoding or interruptions.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from wsi_stain.conversion import outline, seams
from wsi_stain.conversion.certificate import POINTWISE, Certificate, judge
from wsi_stain.geometry import Box
from wsi_stain.output.canvas import Canvas
from wsi_stain.tiling.grid import TileGrid

if TYPE_CHECKING:  # workers need no survey, which imports scikit-image
    from wsi_stain.conversion.survey import Survey

CALIBRATION = 16
"""Number of tissue tiles on which the statistics of a slide are measured: 4 million px per channel."""


def sites(survey: Survey, seed: int) -> seams.SeamSites:
    """Where the output is examined; empty without tissue, or if there is nothing to measure."""
    is_measured = survey.request.config.certificate and not survey.bundle.is_pointwise
    return seams.choose(survey.grid, _tissue(survey) if is_measured else (), seed)


def calibration(survey: Survey, seed: int) -> tuple[Box, ...]:
    """The tiles, in the view's frame, on which the statistics of the slide are measured."""
    tiles = _tissue(survey)
    return tuple(Random(seed).sample(tiles, min(CALIBRATION, len(tiles))))


def certify(canvas: Canvas, survey: Survey, seed: int) -> Certificate | None:
    """The seam certificate of a painted canvas, from the steps in it and the comparisons that its blocks recorded.

    None if the settings disable it.
    """
    if not survey.request.config.certificate:
        return None
    if survey.bundle.is_pointwise:
        return POINTWISE
    grid = survey.grid
    at = seams.shifts(grid)
    steps = [seams.steps(canvas.read(grid.in_output(line.box)), line, at) for line in boundaries(survey, seed)]
    comparisons = [place for notes in canvas.store.notes() for place in notes["comparisons"]]
    bundle = survey.bundle
    return judge(
        steps,
        comparisons,
        tolerance=bundle.tolerance,
        stride=grid.stride,
        channels=len(bundle.background),
        outline=_outline(canvas, survey, seed),
    )


def _outline(canvas: Canvas, survey: Survey, seed: int) -> float | None:
    """How much the glass of stained tiles differs from the background of the others; None if either is too rare."""
    grid, mask = survey.grid, survey.mask
    patches = outline.choose(grid, _tissue(survey), lambda box: mask.touches(box, survey.scale), seed)
    if not patches.stained:
        return None
    return outline.difference(*([canvas.read(grid.in_output(box)) for box in kind] for kind in patches))


def seed(grid: TileGrid, provenance: tuple[tuple[str, str], ...]) -> int:
    """A seed that depends on the tiles, the region and the provenance of an output, but not on its blocks."""
    text = f"{grid.region} {grid.tile} {grid.overlap} {provenance}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def boundaries(survey: Survey, seed: int) -> list[seams.TileBoundary]:
    """The tile boundaries where the output is examined: within the mask's outline, which makes steps of its own."""
    drawn, image = survey.mask.outline, Box.of(survey.grid.size)
    return [
        line
        for line in sites(survey, seed).lines
        if drawn is None or drawn.inside(line.box & image, survey.scale).all()
    ]


def _tissue(survey: Survey) -> list[Box]:
    """All tissue tiles, in an order that does not depend on the blocks."""
    return sorted(chain(*survey.tissue.values()))
