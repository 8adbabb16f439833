"""The seam certificate: whether tile boundaries are visible in an output.

Four checks, at a few places that depend only on the slide, the model and the settings:

(a) A step at tile lines: how much steeper the image is between two neighbouring rows or columns than on either side
    (tissue has soft edges, a seam has none), averaged along 64 px (a seam is continuous, texture is not), at lines
    where a tile begins or ends, compared with the same lines shifted. It is read from the painted canvas, so it is
    the step that a viewer shows.
(b) A dependence of pixels on tiles: some tiles are stained a second time, half a stride away, and compared with the
    output.
(c) A dependence of the DAB-positive area on tiles, at the same places.
(d) A visible outline of the stained tiles, see `conversion.outline`.

The tolerances follow from the data and from that of the bundle, see `judge`. The figures of (b) and (c) are measured
on the workers by the device that painted the block; another device rounds differently, which may change the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from wsi_stain.config.model import TileTolerance
from wsi_stain.conversion.outline import ALLOWED
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab
from wsi_stain.measure.metrics import bootstrap, mean
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.tiling.grid import TileGrid

SHIFTS = (-48, -32, -16, 16, 32, 48)
"""Offsets of the shifted lines in px. All are multiples of 16, so that JPEG blocks and the network's inner grid
(at most 8 px) have the same phase; none is a multiple of 128, so that a step at attention windows is detected, too."""
REACH = max(SHIFTS) + 2
PIECE = 64
"""Length in px along a line over which its step is averaged."""
FEWEST_LINES, FEW_LINES, MOST_LINES = 8, 32, 128
"""Minimum number of lines for check (a), and bounds of their number, which is a quarter of the tissue tiles. Each line
decodes one or two JPEG tiles, so the check takes half a second at most."""
MOST_PLACES, TILES_PER_PLACE = 64, 100
"""Bounds of the number of tiles stained a second time: 1 % of the tissue tiles, at least one."""
ROUNDING = 0.5
"""Grey levels by which rounding to uint8 can change a pixel. If two tilings differ by more in the mean over places on
seams, the difference comes from the tiles, not from rounding."""
HALF_A_POINT = 0.5
"""Percentage points of positive area: shares are read in whole percent, which smaller changes do not affect."""

Verdict = Literal["pass", "fail", "not applicable"]


class TileBoundary(NamedTuple):
    """A segment of a line at which a tile begins or ends, in the view's frame."""

    axis: Literal[0, 1]
    """0: between two rows; 1: between two columns."""
    at: int
    """First row or column after the line."""
    start: int
    end: int
    """End along the line, exclusive."""

    @property
    def box(self) -> Box:
        """The box that contains the line and all its shifted lines."""
        low, high = self.at - REACH, self.at + REACH
        return Box(low, self.start, high, self.end) if self.axis == 0 else Box(self.start, low, self.end, high)


class OffsetTile(NamedTuple):
    """A tile off the grid to stain a second time, and the box to compare, in the view's frame."""

    tile: Box
    compare: Box


@dataclass(frozen=True, slots=True)
class SeamSites:
    """Where an output is examined; empty if no two tissue tiles are adjacent."""

    lines: tuple[TileBoundary, ...] = ()
    offset_tiles: tuple[OffsetTile, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result; all steps and differences are in grey levels of 0–255."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why the verdict is not a pass, or why no measurement was needed."""
    lines: int = 0
    step: float | None = None
    """Mean step at the shifted lines: the texture of the image."""
    excess: float | None = None
    """Step at tile lines minus the step at shifted lines."""
    excess_low: float | None = None
    excess_high: float | None = None
    """99 % interval of the excess, by bootstrap over lines."""
    excess_shifted: float | None = None
    """Largest excess of one shifted line over the others: the level without a seam."""
    places: int = 0
    """Number of tiles stained a second time, half a stride off the grid."""
    difference_mean: float | None = None
    difference_p99: int | None = None
    difference_allowed: float | None = None
    """Largest mean that passes; see `judge`."""
    dab_change: float | None = None
    """Mean change of the DAB-positive share over the places, in percentage points."""
    outline: float | None = None
    """Difference of glass in stained tiles from the constant background of the others; None if either is too rare."""


POINTWISE = Certificate("pass", ("each output pixel depends only on its own input pixel",))
"""Certificate of a generator whose pixels cannot depend on the tile."""


def choose(grid: TileGrid, tissue: Sequence[Box], seed: int) -> SeamSites:
    """Choose where to examine an output.

    Args:
        grid: the tile grid, with the generator's multiple and the converted region.
        tissue: all stained tiles, in the view's frame and a reproducible order.
        seed: equal seeds give equal places.
    """
    order = [tissue[i] for i in np.random.default_rng(seed).permutation(len(tissue))]
    stained, inside = frozenset(tissue), grid.region & Box.of(grid.size)

    def fits(box: Box) -> bool:
        return inside.contains(box) and all(tile in stained for tile in grid.tiles(box))

    lines = (line for line in _lines(grid, order) if fits(line.box))
    repeats = (place for place in _places(grid, order) if fits(place.compare))
    count = min(MOST_LINES, max(FEW_LINES, len(tissue) // 4))
    return SeamSites(
        tuple(islice(lines, count if len(shifts(grid)) > 1 else 0)),
        tuple(islice(repeats, min(MOST_PLACES, max(1, len(tissue) // TILES_PER_PLACE)))),
    )


def shifts(grid: TileGrid) -> tuple[int, ...]:
    """The `SHIFTS` at which no tile begins or ends, both for lines at a beginning and at an end."""
    ends = {0, grid.overlap % grid.stride}
    return tuple(s for s in SHIFTS if not any((end + s) % grid.stride in ends for end in ends))


def _lines(grid: TileGrid, tiles: Sequence[Box]) -> Iterator[TileBoundary]:
    """Lines at the upper and left sides of tiles: one line of every tile, then the next of every tile."""
    kinds = [(axis, offset) for axis in (0, 1) for offset in sorted({0, grid.overlap})]
    length = 3 * grid.tile // 4
    for turn in range(len(kinds)):
        for i, tile in enumerate(tiles):
            axis, offset = kinds[(i + turn) % len(kinds)]
            start = tile[1 - axis] + grid.tile // 8
            if tile[axis] and length >= PIECE:  # no tile ends at the first pixel of the image
                yield TileBoundary(axis, tile[axis] + offset, start, start + length)  # type: ignore[arg-type]


def _places(grid: TileGrid, tiles: Sequence[Box]) -> Iterator[OffsetTile]:
    """Tiles half a stride away, compared in their middle half, which covers a corner of four tiles.

    A comparison is clipped to one pyramid tile of the output, so that it is in one block for every block size. Places
    that need no clipping come first; if all lines are on borders of pyramid tiles, all places are clipped.
    """
    offset, quarter = grid.stride // 2 // grid.multiple * grid.multiple, grid.tile // 4
    if offset == 0:
        return  # the network accepts only tiles of the grid
    for least in (4 * quarter * quarter, quarter * quarter):
        for tile in tiles:
            other = tile.shift(offset, offset)
            middle = Box(other.y0 + quarter, other.x0 + quarter, other.y0 + 3 * quarter, other.x0 + 3 * quarter)
            compare = middle & _pyramid_tile(grid.region, other.y0 + 2 * quarter, other.x0 + 2 * quarter)
            if compare.area >= least and (compare == middle) == (least > quarter * quarter):
                yield OffsetTile(other, compare)


def _pyramid_tile(region: Box, y: int, x: int) -> Box:
    row, column = (y - region.y0) // TILE_PX, (x - region.x0) // TILE_PX
    return Box.at(region.y0 + row * TILE_PX, region.x0 + column * TILE_PX, Size(TILE_PX, TILE_PX))


def steps(pixels: np.ndarray, line: TileBoundary, at: Sequence[int]) -> list[float]:
    """The mean step at a line and at the lines shifted by `at`.

    Args:
        pixels: uint8 (h, w, C), of `line.box`.
        line: the line.
        at: shifts in px, a subset of `SHIFTS`.
    """
    along_first = pixels if line.axis == 1 else pixels.swapaxes(0, 1)
    sharp = sharpness(along_first, PIECE).mean((0, 2))
    return [float(sharp[REACH + s - 2]) for s in (0, *at)]


def sharpness(pixels: np.ndarray, piece: int) -> np.ndarray:
    """How much steeper each step between columns is than its neighbours, averaged along pieces of the columns.

    Args:
        pixels: numbers (h, w, C).
        piece: length of a piece in px.

    Returns:
        float64 (h // piece, w - 3, C): index i across is the step to column i + 2.
    """
    n, across = pixels.shape[0] // piece, pixels.shape[1]
    profile = pixels[: n * piece].reshape(n, piece, across, -1).mean(1, dtype=np.float64)
    slope = np.diff(profile, axis=1)  # slope[:, i] is the step to column i + 1
    return np.abs(slope[:, 1:-1] - (slope[:, :-2] + slope[:, 2:]) / 2)


def compare(painted: np.ndarray, repeat: np.ndarray, background: Background | None) -> dict[str, list[int]]:
    """The comparison that a block records: counts of differences and positive pixels of two uint8 (h, w, C) images.

    Without the colour of the background they are no colours, and no pixel is positive for DAB.
    """
    counts = np.bincount(np.abs(painted.astype(np.int16) - repeat).ravel())
    if background is None:
        return {"differences": counts.tolist(), "positive": []}
    positive = [int((dab(image, background) >= POSITIVE_OD).sum()) for image in (painted, repeat)]
    return {"differences": counts.tolist(), "positive": positive}


def judge(
    measured: Sequence[Sequence[float]],
    compared: Sequence[Mapping[str, Sequence[int]]],
    *,
    tolerance: TileTolerance | None,
    stride: int,
    channels: int = 3,
    outline: float | None = None,
) -> Certificate:
    """The certificate of an output.

    (a) fails if even the lower bound of the excess is above the largest excess among the shifted lines. Without a seam
    the line is equivalent to a shifted line, and this happens by chance in less than 1 of 200 outputs.
    (b) The bundle's tolerance is for a whole period of the grid: its mean and 99th percentile. If all of that were in
    the places, which are on seams, it would be larger there by the ratio of the areas. That much is allowed, but at
    most the effect of rounding (`ROUNDING`), which is also the limit for a bundle without one.
    (c) fails if the share of positive area changes by more than half a percentage point; only for colours.
    (d) fails if the outline differs by more than `outline.ALLOWED` grey levels.

    Args:
        measured: the result of `steps` for each line.
        compared: the result of `compare` for each place.
        tolerance: the tile tolerance of the bundle.
        stride: distance from tile to tile in px.
        channels: values of a pixel.
        outline: the result of `outline.difference`, if it was asked.
    """
    figures: dict[str, Any] = {"lines": len(measured), "places": len(compared)}
    if outline is not None:
        figures["outline"] = round(outline, 4)
    reasons: list[str] = []
    if len(measured) >= FEWEST_LINES:
        figures |= _excess(np.asarray(measured))
        if figures["excess_low"] > max(0.0, figures["excess_shifted"]):
            reasons.append("the image has a step at tile boundaries")
    if compared:
        periods = _periods(compared, stride, channels)
        figures |= _difference(compared, tolerance, periods, channels)
        if figures["difference_mean"] > figures["difference_allowed"]:
            reasons.append("a shifted tile grid gives different pixels")
        elif _breaks_percentile(compared, tolerance, periods):
            reasons.append("a shifted tile grid changes more pixels than the bundle's tile tolerance allows")
        if (figures["dab_change"] or 0.0) > HALF_A_POINT:
            reasons.append("a shifted tile grid gives a different positive area")
    if (outline or 0.0) > ALLOWED:
        reasons.append("stained tiles have a visible outline on the background")
    if len(measured) < FEWEST_LINES and not compared and outline is None:
        return Certificate("not applicable", ("no two tissue tiles are adjacent",), **figures)
    return Certificate("fail" if reasons else "pass", tuple(reasons), **figures)


def _excess(measured: np.ndarray) -> dict[str, float]:
    """From steps (lines, 1 + shifts): the excess at the lines, its interval, and the largest of the shifted lines."""
    line, shifted = measured[:, 0], measured[:, 1:]
    over = line - shifted.mean(1)
    sums, each = np.stack([over, np.ones_like(over)], 1), [str(i) for i in range(len(over))]
    estimate = bootstrap(sums, mean, each, level=99)
    others = (shifted.sum(1, keepdims=True) - shifted) / (shifted.shape[1] - 1)
    return {
        "step": round(float(shifted.mean()), 4),
        "excess": round(estimate.value, 4),
        "excess_low": round(estimate.low, 4),
        "excess_high": round(estimate.high, 4),
        "excess_shifted": round(float((shifted - others).mean(0).max()), 4),
    }


def _difference(
    compared: Sequence[Mapping[str, Sequence[int]]], tolerance: TileTolerance | None, periods: float, channels: int
) -> dict[str, float | None]:
    counts, values = _counts(compared), np.arange(256)
    total = int(counts.sum())
    changes = [
        abs(place["positive"][0] - place["positive"][1]) / (sum(place["differences"]) / channels)
        for place in compared
        if place["positive"]
    ]
    allowed = ROUNDING if tolerance is None else min(ROUNDING, tolerance.mean * periods)
    return {
        "difference_mean": round(float(counts @ values) / total, 4),
        "difference_p99": int(np.searchsorted(counts.cumsum(), 0.99 * total)),
        "difference_allowed": round(allowed, 4),
        "dab_change": round(100 * float(np.mean(changes)), 4) if changes else None,
    }


def _breaks_percentile(
    compared: Sequence[Mapping[str, Sequence[int]]], tolerance: TileTolerance | None, periods: float
) -> bool:
    """Whether too many pixels differ by more than the 99th percentile allowed."""
    if tolerance is None:
        return False
    counts = _counts(compared)
    return float(counts[int(tolerance.p99) + 1 :].sum() / counts.sum()) > 0.01 * periods


def _counts(compared: Iterable[Mapping[str, Sequence[int]]]) -> np.ndarray:
    """Number of pixel channels that differ by 0, 1, … grey levels, over all places: int64 (256,)."""
    total = np.zeros(256, np.int64)
    for place in compared:
        total[: len(place["differences"])] += np.asarray(place["differences"], np.int64)
    return total


def _periods(compared: Sequence[Mapping[str, Sequence[int]]], stride: int, channels: int) -> float:
    """Area of a grid period divided by the mean compared area of a place; at least 1."""
    return max(1.0, len(compared) * stride * stride / (_counts(compared).sum() / channels))


def in_words(certificate: Mapping[str, Any]) -> dict[str, str]:
    """The record of a certificate as texts, for the metadata of an output."""
    texts = {"seams": "; ".join([certificate["verdict"], *certificate["reasons"]])}
    if certificate["excess"] is not None:
        texts["seams_step"] = (
            f"{certificate['excess']:+.3f} grey levels [{certificate['excess_low']:+.3f}, "
            f"{certificate['excess_high']:+.3f}] (99 %) at {certificate['lines']} tile lines relative to the "
            f"same lines shifted ({certificate['step']:.3f}); the largest excess of a shifted line over the others is "
            f"{certificate['excess_shifted']:.3f}"
        )
    if certificate["difference_mean"] is not None:
        texts["seams_difference"] = (
            f"mean {certificate['difference_mean']:.3f} (allowed {certificate['difference_allowed']:.3f}), 99 % "
            f"{certificate['difference_p99']} grey levels between the output and {certificate['places']} tiles stained "
            "a second time off the grid"
        )
    if certificate["dab_change"] is not None:
        texts["seams_dab"] = (
            f"{certificate['dab_change']:.3f} percentage points of DAB-positive area, at the same places"
        )
    if certificate.get("outline") is not None:
        texts["seams_outline"] = (
            f"{certificate['outline']:.3f} grey levels (allowed {ALLOWED:.3f}) between glass in stained tiles and the "
            "background of the others"
        )
    return texts
