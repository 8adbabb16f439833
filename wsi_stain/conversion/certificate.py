"""Where an output is examined for seams, which tiles give the statistics of a slide, and the seam certificate.

All three depend only on the positions of tiles and tissue, not on blocks, encoding or interruptions.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from random import Random

from wsi_stain.config.model import BundlePromise
from wsi_stain.conversion import seams
from wsi_stain.conversion.job import Job
from wsi_stain.geometry import Box
from wsi_stain.output.canvas import Canvas

CALIBRATION = 16
"""Number of tissue tiles on which the statistics of a slide are measured: 4 million px per channel."""

Tissue = dict[tuple[int, int], list[Box]]
"""Tissue tiles by the index of the block that owns them."""


def places(job: Job, tissue: Tissue) -> seams.Places:
    """Where the output is examined; empty without tissue."""
    return seams.choose(job.grid, _sorted(tissue), _seed(job))


def calibration(job: Job, tissue: Tissue) -> tuple[Box, ...]:
    """The tiles on which the statistics of the slide are measured."""
    tiles = _sorted(tissue)
    return tuple(Random(_seed(job)).sample(tiles, min(CALIBRATION, len(tiles))))


def certify(
    canvas: Canvas, job: Job, lines: tuple[seams.Line, ...], promise: BundlePromise | None
) -> seams.Certificate:
    """The seam certificate of a painted canvas, from the steps in it and the comparisons that its blocks recorded."""
    at = seams.shifts(job.grid)
    steps = [seams.steps(canvas.read(job.grid.in_output(line.box)), line, at) for line in lines]
    comparisons = [place for notes in canvas.store.notes() for place in notes["again"]]
    return seams.judge(steps, comparisons, promise=promise, stride=job.grid.stride)


def _sorted(tissue: Tissue) -> list[Box]:
    return sorted(chain(*tissue.values()))


def _seed(job: Job) -> int:
    text = f"{job.grid.region} {job.grid.tile} {job.grid.overlap} {job.canvas.provenance}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
