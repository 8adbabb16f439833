"""Examines a virtual slide of any tool for steps at a tile grid, beside the H&E from which it was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from wsi_stain.conversion.grid_search import LUMA, PIECE, GridSteps, Lines, at_grid, search
from wsi_stain.conversion.seams import REACH
from wsi_stain.errors import ConfigError, SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.output.origin import provenance
from wsi_stain.slide.slide import Slide, View

BLOCK = 1024
"""Side of the boxes that are read, in px."""
MOST_BLOCKS = 256
"""Boxes that are read of a large slide, spread at random, the same ones in every run."""
DARKER = 12
"""Tissue is darker than the glass of the H&E by so many grey levels of luma, in the mean of a piece."""
FEWEST_PIECES = 2000
"""Pieces of lines with tissue below which there is nothing to judge: about a quarter of a million pixels."""
DEVIATION = 0.01
"""Largest relative difference of the shapes of the two slides."""
AXES = ("columns", "rows")


@dataclass(frozen=True, slots=True)
class AxisReport:
    """The steps along one axis, of the virtual slide and, at the same lines, of the H&E."""

    axis: str
    """`columns`: lines between columns."""
    virtual: GridSteps
    he: GridSteps

    @property
    def is_seam(self) -> bool:
        """Whether the virtual slide has steps that the H&E has not."""
        return self.virtual.is_seam and not self.he.is_seam

    @property
    def sentence(self) -> str:
        """What was found, with the figures."""
        v = self.virtual
        if not v.lines:
            return f"{self.axis}: too few lines with tissue to judge"
        beside = f"beside {v.texture:.2f} in the tissue itself (score {v.score:.1f}, chance gives up to {v.limit:.1f})"
        grid = f"every {v.period} px from {v.offset} ({v.lines} lines)"
        if self.is_seam:
            return f"{self.axis}: SEAMS {grid}: a step of {v.step:.2f} grey levels {beside}"
        if v.is_seam:
            return f"{self.axis}: steps {grid}, but the H&E has them, too: they come from the scan"
        return f"{self.axis}: no seams; the most conspicuous grid is {grid}, {beside}"


@dataclass(frozen=True, slots=True)
class Examination:
    """The result for a slide."""

    axes: tuple[AxisReport, ...]
    profiles: tuple[np.ndarray, ...]
    """Of each axis: how much each line stands out, in standard deviations, float (length,)."""
    field: np.ndarray
    """A box of the virtual slide, uint8 (h, w, 3), with as many of the lines as fit."""
    box: Box
    """Its place, in level-0 px of the virtual slide."""

    @property
    def has_seams(self) -> bool:
        """Whether seams were found along any axis."""
        return any(axis.is_seam for axis in self.axes)


def examine(virtual: Path, he: Path, *, tile: int | None = None, overlap: int = 0) -> Examination:
    """Look for seams.

    Args:
        virtual: the virtual slide.
        he: the H&E from which it was made, in the same frame.
        tile: side of the tiles in px of the virtual slide; None finds the period.
        overlap: pixels that neighbouring tiles share.

    Raises:
        ConfigError: the grid is impossible.
        SlideError: the slides do not fit on one another, or there is too little tissue.
    """
    if tile is not None and not 0 <= overlap < tile:
        raise ConfigError(f"--overlap is {overlap}: it must be at least 0 and smaller than --tile ({tile})")
    if tile is None and overlap:
        raise ConfigError("--overlap needs --tile; pass both, or neither to find the period")
    with Slide.open(virtual) as stain, Slide.open(he) as source:
        pictures = _aligned(stain, source, virtual)
        size = pictures[0].size
        lines = [[Lines(size.w), Lines(size.h)] for _ in pictures]
        white = float(np.percentile(source.thumbnail(1024) @ LUMA, 95))
        blocks = list(_blocks(size))
        for block in blocks:
            _count(block, pictures, lines, white)
        if sum(line.count.sum() for line in lines[0]) < FEWEST_PIECES:
            raise SlideError(f"{he.name} has too little tissue to judge seams; pass slides with more of it")
        axes = tuple(_report(*along, tile, overlap) for along in zip(AXES, lines[0], lines[1], strict=True))
        if tile is not None and not any(axis.virtual.lines for axis in axes):
            raise SlideError(f"no line of a grid with --tile {tile} lies in the tissue of {virtual.name}; check --tile")
        box = _shown(axes, blocks, size)
        return Examination(axes, tuple(line.deviations() for line in lines[0]), pictures[0].read(box), box)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A slide in the frame of the virtual one."""

    view: View
    origin: tuple[int, int]
    """The first pixel (y, x) of the frame."""
    size: Size

    def read(self, box: Box) -> np.ndarray:
        """uint8 (h, w, 3)."""
        return self.view.read(box.shift(*self.origin))

    def luma(self, box: Box) -> np.ndarray:
        """float64 (h, w)."""
        return self.read(box) @ LUMA


def _aligned(stain: Slide, he: Slide, path: Path) -> tuple[_Picture, _Picture]:
    """Both slides in px of level 0 of the virtual one: by its region if it states one, else as wide as the H&E."""
    region = provenance(path).get("region")
    x, y, w, h = map(int, region.split(",")) if region else (0, 0, he.size.w, he.size.h)
    if x + w > he.size.w or y + h > he.size.h:
        raise SlideError(
            f"{path.name} was made from a region that lies outside of {he.path.name}; pass the H&E slide from which it "
            "was made"
        )
    scale = Fraction(w, stain.size.w)
    if abs(h / (stain.size.h * float(scale)) - 1) > DEVIATION and abs(h - stain.size.h * float(scale)) > 2 * scale:
        raise SlideError(
            f"{path.name} ({stain.size.w} × {stain.size.h} px) has another shape than {he.path.name} ({w} × {h} px); "
            "pass the H&E slide from which it was made"
        )
    source = View(he, Size(-(-he.size.h // scale), -(-he.size.w // scale)), None, scale)
    ours = View(stain, stain.size, stain.mpp_or_none, Fraction(1))
    return _Picture(ours, (0, 0), stain.size), _Picture(source, (round(y / scale), round(x / scale)), stain.size)


def _blocks(size: Size) -> Iterator[Box]:
    """The boxes to read, in a fixed order."""
    boxes = [
        Box.at(y, x, Size(BLOCK, BLOCK)) & Box.of(size)
        for y in range(0, size.h, BLOCK)
        for x in range(0, size.w, BLOCK)
    ]
    order = np.random.default_rng(0).permutation(len(boxes))[:MOST_BLOCKS]
    yield from (boxes[i] for i in sorted(order))


def _count(block: Box, pictures: tuple[_Picture, _Picture], lines: list[list[Lines]], white: float) -> None:
    """Add a box and its surroundings to the steps of both slides, along both axes."""
    whole = Box.of(pictures[0].size)
    outer = Box(block.y0 - REACH, block.x0 - REACH, block.y1 + REACH, block.x1 + REACH) & whole
    lumas = [picture.luma(outer) for picture in pictures]
    if lumas[1].mean() > white - 1:
        return
    for axis in (0, 1):
        turned = [luma if axis == 0 else luma.T for luma in lumas]
        low, high, start = (block.y0, block.y1, outer.y0) if axis == 0 else (block.x0, block.x1, outer.x0)
        inner, across = [luma[low - start : high - start] for luma in turned], turned[0].shape[1]
        if across <= 2 * REACH or len(inner[0]) < PIECE:  # at the edge of the slide
            continue
        tissue = _pieces(inner[1])[:, REACH : across - REACH] < white - DARKER
        first = (outer.x0 if axis == 0 else outer.y0) + REACH
        for luma, line in zip(inner, lines, strict=True):
            line[axis].add(luma, first, tissue)


def _pieces(luma: np.ndarray) -> np.ndarray:
    """Mean of every piece of a column, float (h // PIECE, w)."""
    n = len(luma) // PIECE
    return luma[: n * PIECE].reshape(n, PIECE, -1).mean(1)


def _report(axis: str, virtual: Lines, he: Lines, tile: int | None, overlap: int) -> AxisReport:
    if tile is None:
        found = search(virtual)
    else:
        stride, offsets = tile - overlap, sorted({0, overlap})
        kinds = [at_grid(virtual, stride, stride + o, len(offsets)) for o in offsets]
        anywhere = search(virtual, stride)  # of a part of a slide, the tiles may begin at any pixel
        kinds += [anywhere] if anywhere.period else []
        found = max(kinds, key=lambda kind: kind.score - kind.limit)
    same = at_grid(he, found.period, found.offset, 2) if found.period else found
    return AxisReport(axis, found, same)


def _shown(axes: tuple[AxisReport, ...], blocks: list[Box], size: Size) -> Box:
    """A box of at most 512 px around a crossing of lines, near the middle of what was examined."""
    middle = blocks[len(blocks) // 2]
    at: list[int] = []
    for report, centre in zip(axes, ((middle.x0 + middle.x1) // 2, (middle.y0 + middle.y1) // 2), strict=True):
        period, offset = report.virtual.period or 1, report.virtual.offset
        at.append(offset + round((centre - offset) / period) * period)
    x, y = (max(0, min(place - 256, limit - 512)) for place, limit in zip(at, (size.w, size.h), strict=True))
    return Box(y, x, y + 512, x + 512) & Box.of(size)
