"""The work on one task of a read-out: read, unmix, sum by block, by region and over the slide."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.measure.deconvolution import TISSUE_OD
from wsi_stain.measure.stains import BINS, Stains, bins_of, percentile
from wsi_stain.readout.blocks import CELL_UM, SCALES_UM, BlockGrid, numbers
from wsi_stain.readout.request import Thresholds
from wsi_stain.slide.slide import View
from wsi_stain.tissue.mask import TissueMask
from wsi_stain.tissue.outline import Polygons

ROW = np.dtype(
    [("y0", np.int64), ("x0", np.int64), ("y1", np.int64), ("x1", np.int64), ("tissue_px", np.int64)]
    + [(name, np.int64) for name in ("weak_px", "moderate_px", "strong_px")]
    + [(f"{stain}_{what}", np.float64) for stain in ("dab", "hematoxylin") for what in ("sum", "p90")]
)
"""One block: its box in view px, its pixels of tissue, those in each class of DAB, sums and percentiles of density."""


@dataclass(frozen=True, slots=True)
class RegionOfInterest:
    """An area that is measured."""

    name: str
    area: Polygons
    """In level-0 px."""


@dataclass(frozen=True, eq=False)
class MeasureJob:
    """Everything that the tasks of one read-out share."""

    view: View
    grid: BlockGrid
    stains: Stains
    thresholds: Thresholds
    mask: TissueMask | None
    """None measures every pixel."""
    is_detected: bool
    """Whether the mask was detected: then its empty cells are left out."""
    regions: tuple[RegionOfInterest, ...] = ()


@dataclass(frozen=True, eq=False)
class Sums:
    """Additive figures of an area."""

    area_px: int = 0
    tissue_px: int = 0
    classes: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    """Pixels of tissue that are negative, weak, moderate, strong: int64 (4,)."""
    dab_sum: float = 0.0
    hematoxylin_sum: float = 0.0
    dab: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """Histogram of density, int64 (BINS,)."""
    hematoxylin: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.area_px + other.area_px,
            self.tissue_px + other.tissue_px,
            self.classes + other.classes,
            self.dab_sum + other.dab_sum,
            self.hematoxylin_sum + other.hematoxylin_sum,
            self.dab + other.dab,
            self.hematoxylin + other.hematoxylin,
        )


@dataclass(frozen=True, eq=False)
class TaskReport:
    """What a task found."""

    rows: Mapping[int, np.ndarray]
    """Side of the blocks in µm → `ROW` (n,), only blocks with tissue."""
    slide: Sums
    regions: Mapping[int, Sums]
    """Number of the region → its part in this task."""
    unreadable: tuple[Box, ...]
    """In view px."""


def measure_task(job: MeasureJob, box: Box) -> TaskReport:
    """Measure one box of the view; the function of a task."""
    cv2.setNumThreads(1)  # tasks run in parallel: a pool of threads in every call would only make them wait
    in_mask = _in_mask(job, box)
    here = [i for i, region in enumerate(job.regions) if _is_near(region, job, box)]
    if not (in_mask.any() or here):
        return TaskReport({}, Sums(area_px=box.area), {}, ())
    pixels, readable, unreadable = _read(job, box)
    tissue = in_mask & readable
    if job.is_detected:
        tissue &= _not_empty(job, box, pixels)
    hematoxylin, dab = job.stains.densities(pixels)
    regions = {}
    for i in here:
        inside = job.regions[i].area.inside(box, job.view.scale)
        part = _blocks(job.thresholds, dab, hematoxylin, inside & tissue, None)
        regions[i] = part.sums(int(inside.sum()))
    fine = job.grid.within(box, SCALES_UM[0])
    blocks = _blocks(job.thresholds, dab, hematoxylin, tissue, fine)
    return TaskReport(dict(_rows(job, box, blocks)), blocks.sums(box.area), regions, unreadable)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Counts and sums of the tissue pixels of each block, all with the blocks along the first two axes."""

    classes: np.ndarray
    """int64 (rows, columns, 4)."""
    density: np.ndarray
    """Sums of DAB and of hematoxylin, float64 (rows, columns, 2)."""
    dab: np.ndarray
    """Histograms, int32 (rows, columns, BINS)."""
    hematoxylin: np.ndarray

    def sums(self, area_px: int) -> Sums:
        """The figures of all blocks together."""
        classes, density = self.classes.sum((0, 1)), self.density.sum((0, 1))
        histograms = (h.sum((0, 1), dtype=np.int64) for h in (self.dab, self.hematoxylin))
        return Sums(area_px, int(classes.sum()), classes, float(density[0]), float(density[1]), *histograms)

    def merged(self, each: int) -> _Blocks:
        """Blocks of `each` × `each` of these."""
        return _Blocks(*(_merged(v, each) for v in (self.classes, self.density, self.dab, self.hematoxylin)))


def _blocks(
    thresholds: Thresholds,
    dab: np.ndarray,
    hematoxylin: np.ndarray,
    tissue: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray] | None,
) -> _Blocks:
    """Sum the tissue pixels of a box by block.

    Args:
        thresholds: of the classes of DAB.
        dab: density, float32 (h, w).
        hematoxylin: likewise.
        tissue: bool (h, w).
        edges: of the blocks along y and x; None is one block.
    """
    n = (1, 1) if edges is None else (len(edges[0]) - 1, len(edges[1]) - 1)
    count, chosen = n[0] * n[1], slice(None) if tissue.all() else tissue.ravel()
    dab, hematoxylin = dab.ravel()[chosen], hematoxylin.ravel()[chosen]
    number = np.zeros(dab.size, np.int64) if edges is None else numbers(edges).ravel()[chosen]
    classes = number * 4
    for limit in (thresholds.weak, thresholds.moderate, thresholds.strong):
        classes += dab > limit
    base = number * BINS
    return _Blocks(
        np.bincount(classes, minlength=4 * count).reshape(*n, 4),
        np.stack([np.bincount(number, weights=v, minlength=count).reshape(n) for v in (dab, hematoxylin)], axis=-1),
        *(
            np.bincount(base + bins_of(v), minlength=BINS * count).astype(np.int32).reshape(*n, BINS)
            for v in (dab, hematoxylin)
        ),
    )


def _rows(job: MeasureJob, box: Box, blocks: _Blocks) -> Iterator[tuple[int, np.ndarray]]:
    """The blocks of every scale: sums of the smallest, added up for the larger ones."""
    for side in SCALES_UM:
        if side != SCALES_UM[0]:
            blocks = blocks.merged(2)
        rows = np.zeros(blocks.classes.shape[:2], ROW)
        y, x = job.grid.within(box, side)
        rows["y0"], rows["y1"] = y[:-1, None] + box.y0, y[1:, None] + box.y0
        rows["x0"], rows["x1"] = x[None, :-1] + box.x0, x[None, 1:] + box.x0
        rows["tissue_px"] = blocks.classes.sum(-1)
        for i, name in enumerate(("weak_px", "moderate_px", "strong_px"), start=1):
            rows[name] = blocks.classes[..., i]
        for i, (name, histogram) in enumerate((("dab", blocks.dab), ("hematoxylin", blocks.hematoxylin))):
            rows[f"{name}_sum"] = blocks.density[..., i]
            rows[f"{name}_p90"] = percentile(histogram, 90)
        yield side, rows[rows["tissue_px"] > 0]


def _merged(values: np.ndarray, each: int) -> np.ndarray:
    """Sums of `each` × `each` neighbours along the first two axes; the last ones may be fewer."""
    h, w = values.shape[:2]
    padded = np.pad(values, ((0, -h % each), (0, -w % each), (0, 0)))
    return padded.reshape(-(-h // each), each, -(-w // each), each, -1).sum((1, 3), dtype=values.dtype)


def _in_mask(job: MeasureJob, box: Box) -> np.ndarray:
    """bool (h, w): the pixels of a box inside the outline of the mask, or, without one, in its cells with tissue."""
    if job.mask is None:
        return np.ones(box.size, bool)
    inside = job.mask.inside(box, job.view.scale)
    if inside is not None:
        return inside
    ratio = job.view.scale / job.mask.scale
    h, w = job.mask.array.shape
    y, x = ((np.arange(a, b) * ratio.numerator) // ratio.denominator for a, b in ((box.y0, box.y1), (box.x0, box.x1)))
    return job.mask.array[np.minimum(y, h - 1)][:, np.minimum(x, w - 1)]


def _not_empty(job: MeasureJob, box: Box, pixels: np.ndarray) -> np.ndarray:
    """bool (h, w): the pixels in cells whose mean optical density shows tissue."""
    edges = job.grid.within(box, CELL_UM)
    density = job.stains.mean_density(pixels)
    total = np.add.reduceat(np.add.reduceat(density, edges[0][:-1], axis=0), edges[1][:-1], axis=1)
    heights, widths = np.diff(edges[0]), np.diff(edges[1])
    has_tissue = total > TISSUE_OD * np.outer(heights, widths)
    return np.repeat(np.repeat(has_tissue, heights, axis=0), widths, axis=1)


def _read(job: MeasureJob, box: Box) -> tuple[np.ndarray, np.ndarray, tuple[Box, ...]]:
    """The pixels, where they can be read, and the blocks of 256 µm that cannot."""
    try:
        return job.view.read(box), np.ones(box.size, bool), ()
    except UnreadableRegion:
        pass
    pixels, readable, lost = np.full((*box.size, 3), 255, np.uint8), np.ones(box.size, bool), []
    y, x = job.grid.within(box, SCALES_UM[-1])
    for y0, y1 in itertools.pairwise(y):
        for x0, x1 in itertools.pairwise(x):
            part = Box(int(y0), int(x0), int(y1), int(x1))
            try:
                pixels[part.slices()] = job.view.read(part.shift(box.y0, box.x0))
            except UnreadableRegion:
                readable[part.slices()] = False
                lost.append(part.shift(box.y0, box.x0))
    return pixels, readable, tuple(lost)


def _is_near(region: RegionOfInterest, job: MeasureJob, box: Box) -> bool:
    (left, top), (right, bottom) = _extent(region)
    scale = float(job.view.scale)
    return left < box.x1 * scale and right > box.x0 * scale and top < box.y1 * scale and bottom > box.y0 * scale


@functools.lru_cache(maxsize=4096)
def _extent(region: RegionOfInterest) -> tuple[list[float], list[float]]:
    return region.area.points.min(0).tolist(), region.area.points.max(0).tolist()
