"""Finds steps at the lines of a regular grid in a picture, whoever made it, at a known grid or at an unknown one.

The step at every row and column is compared with the steps 16, 32 and 48 px away, as in the certificate: they have the
same phase in the 8 × 8 blocks of JPEG. It is measured in luma, so that the chroma of JPEG tiles, which is enlarged
within a tile only, makes no step at their borders. Each piece of a line counts relative to its own texture, and one
line counts only so much: scan lines and folds are not periodic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from wsi_stain.conversion.seams import REACH, SHIFTS, sharpness

PIECE = 128
"""Length in px along a line over which a step is averaged: a seam is continuous along a tile, texture is not."""
LUMA = np.array([0.299, 0.587, 0.114])
FLOOR = 0.25
"""Grey levels added to the texture of a piece: what rounding leaves of a step in empty glass."""
MOST_RATIO, MOST_LINE = 3.0, 5.0
"""How much one piece, relative to its texture, and one line, in standard deviations, may count."""
SHORTEST, LONGEST, FEWEST_LINES = 64, 4096, 3
"""Periods in px that are tried, and the number of lines that make a period."""
MARGIN = 1.75
"""Standard deviations above the largest score that chance alone is expected to give."""


@dataclass
class Lines:
    """Steps at every row, or column, of a picture: sums over pieces of lines, `add`ed from boxes of it.

    lines = Lines(width)
    lines.add(luma, start, tissue)
    Lines.search(lines)
    """

    length: int
    count: np.ndarray = field(init=False)
    ratio: np.ndarray = field(init=False)
    """Step at the line relative to the shifted lines, less one, summed over pieces."""
    square: np.ndarray = field(init=False)
    """Of `ratio`."""
    power: np.ndarray = field(init=False)
    """Squared step at the line less that of the shifted lines, in grey levels²."""
    texture: np.ndarray = field(init=False)
    """Step at the shifted lines, in grey levels."""

    def __post_init__(self) -> None:
        self.count, self.ratio, self.square, self.power, self.texture = np.zeros((5, self.length))

    def add(self, luma: np.ndarray, first: int, tissue: np.ndarray) -> None:
        """Count a box.

        Args:
            luma: float (h, w), the lines run along the first axis; `REACH` px on both sides of w are context.
            first: number of the line at column `REACH`.
            tissue: bool (h // PIECE, w - 2 * REACH): the pieces that count.
        """
        steps = sharpness(luma[..., None], PIECE)[..., 0]  # column i is the step to column i + 2
        inner = slice(REACH - 2, REACH - 2 + tissue.shape[1])
        line = steps[:, inner]
        around = np.stack([steps[:, inner.start + s : inner.stop + s] for s in SHIFTS])
        usual = around.mean(0)
        ratio = np.clip((line - usual) / (usual + FLOOR), -MOST_RATIO, MOST_RATIO)
        at = slice(first, first + tissue.shape[1])
        self.count[at] += tissue.sum(0)
        for total, values in (
            (self.ratio, ratio),
            (self.square, ratio**2),
            (self.power, line**2 - (around**2).mean(0)),
            (self.texture, usual),
        ):
            total[at] += (values * tissue).sum(0)

    def deviations(self) -> np.ndarray:
        """The mean ratio of every line in its standard deviations, float (length,); 0 where nothing was counted."""
        total = self.count.sum()
        if total < 2:
            return np.zeros(self.length)
        mean = self.ratio.sum() / total
        sigma = math.sqrt(max(self.square.sum() / total - mean**2, 1e-12))
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (self.ratio - mean * self.count) / (sigma * np.sqrt(self.count))
        return np.clip(np.nan_to_num(z), -MOST_LINE, MOST_LINE)


@dataclass(frozen=True, slots=True)
class GridSteps:
    """The most conspicuous grid of lines along one axis."""

    period: int
    """Distance from line to line in px; 0 if there are too few lines."""
    offset: int
    """First line."""
    score: float
    """Standard deviations by which the steps at the lines exceed those beside them."""
    limit: float
    """Largest score that passes as chance."""
    step: float
    """Size of the step at the lines, grey levels of luma, root mean square; 0 if there is none."""
    texture: float
    """Mean step of the picture beside the lines, in grey levels."""
    lines: int

    @property
    def is_seam(self) -> bool:
        """Whether the lines have steps of their own."""
        return self.score > self.limit


def search(lines: Lines, known: int | None = None) -> GridSteps:
    """The grid with the highest score among all offsets, and all periods unless that is `known`."""
    z, is_known = lines.deviations(), lines.count > 0
    hypotheses, best = 0, (-math.inf, 0, 0)
    for period, scores in _scores(z, is_known, known):
        hypotheses += len(scores)
        offset = int(scores.argmax())
        best = max(best, (float(scores[offset]), period, offset))
    score, period, offset = best
    if not math.isfinite(score):
        return GridSteps(0, 0, 0.0, 0.0, 0.0, 0.0, 0)
    return at_grid(lines, *_refined(lines, period, offset, 0 if known else 2), hypotheses)


def _refined(lines: Lines, period: int, offset: int, reach: int) -> tuple[int, int]:
    """The grid near this one, with a period that differs by at most `reach`, whose lines have the largest steps.

    A strong step also shows one line off, and there, too, a line has the highest score that it may have.
    """
    near = [
        (p, o)
        for p in range(period - reach, period + reach + 1)
        for o in range(max(0, offset - 6), min(p, offset + 7))
        if (lines.count[o::p] > 0).sum() >= (lines.count[offset::period] > 0).sum()
    ]
    return max(near, key=lambda at: lines.power[at[1] :: at[0]].sum() / lines.count[at[1] :: at[0]].sum())


def at_grid(lines: Lines, period: int, offset: int, hypotheses: int = 1) -> GridSteps:
    """The steps at one grid.

    Args:
        lines: the steps of the picture.
        period: distance from line to line in px.
        offset: first line.
        hypotheses: number of grids among which this one was chosen: the more, the larger a score chance gives.
    """
    z, at = lines.deviations(), np.arange(offset, lines.length, period)
    at = at[lines.count[at] > 0]
    count = max(1.0, lines.count[at].sum())
    limit = math.sqrt(2 * math.log(max(2, hypotheses))) + MARGIN
    return GridSteps(
        period,
        offset,
        round(float(z[at].sum() / math.sqrt(max(1, len(at)))), 2),
        round(limit, 2),
        round(math.sqrt(max(0.0, lines.power[at].sum() / count)), 3),
        round(float(lines.texture[at].sum() / count), 3),
        len(at),
    )


def _scores(z: np.ndarray, is_known: np.ndarray, only: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """Every period, or `only` this one, and the score of each of its offsets."""
    places = np.flatnonzero(is_known)
    if len(places) == 0:
        return
    values, extent = z[places], int(places[-1] - places[0])
    for period in (only,) if only else range(SHORTEST, min(LONGEST, extent // (FEWEST_LINES - 1)) + 1):
        fold = places % period
        counts = np.bincount(fold, minlength=period)
        sums = np.bincount(fold, weights=values, minlength=period)
        yield period, np.where(counts >= FEWEST_LINES, sums / np.sqrt(np.maximum(counts, 1)), -math.inf)
