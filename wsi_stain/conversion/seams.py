"""The seam certificate: can it be seen in an output where its tiles lie?

Three questions, asked of every output at a few places that follow from the slide, the model and the settings alone:

(a) Is there a step at tile lines? How much steeper the picture is between two neighbouring rows or columns than on
    either side of them (tissue has soft edges, a seam has none), averaged along 64 px as an eye does it (a seam runs
    on, texture does not), where a tile begins or ends, against the same lines shifted. Read from the painted canvas,
    so it is the step that a viewer shows.
(b) Would other tiles have given other pixels? Some are stained again half a stride away, and compared with the output.
(c) Would they have given another DAB-positive area? At the same places.

What is tolerated follows from the data and from the bundle's promise, see `judge`. Figures of (b) and (c) are made on
the workers, by the device that painted the block; another device rounds otherwise, and may move their last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from wsi_stain.config.model import BundlePromise
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, Glass, dab
from wsi_stain.measure.metrics import bootstrap, mean
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.tiling.grid import TileGrid

SHIFTS = (-48, -32, -16, 16, 32, 48)
"""Where the shifted lines lie, in px. Multiples of 16: a JPEG's squares, and the network's inner grid of 8 px and less,
have the same phase at all of them; none of 128: a step at the attention's windows would be seen as one, too."""
REACH = max(SHIFTS) + 2
PIECE = 64
"""Pixels along a line over which its step is averaged."""
FEWEST_LINES, FEW_LINES, MOST_LINES = 8, 32, 128
"""Lines below which (a) is not judged; and bounds of their number, a quarter of the tissue tiles: one or two tiles of
JPEG are decoded for each, so it takes half a second at most."""
MOST_PLACES, TILES_PER_PLACE = 64, 100
"""Bounds of the number of tiles stained again: 1 % of the tissue tiles, but one at least."""
ROUNDING = 0.5
"""Grey levels that rounding to uint8 may move a pixel: two tilings that are further apart in the mean, over places that
lie on seams, do not depend on rounding but on the tile."""
HALF_A_POINT = 0.5
"""Percent points of positive area: shares are read in whole percents, which less than this does not change."""

Verdict = Literal["pass", "fail", "not applicable"]


class Line(NamedTuple):
    """A piece of a line on which a tile begins or ends, in the view's px."""

    axis: Literal[0, 1]
    """0: between two rows; 1: between two columns."""
    at: int
    """First row or column behind the line."""
    start: int
    end: int
    """Along the line, end excluded."""

    @property
    def box(self) -> Box:
        """The line and all its shifted ones."""
        low, high = self.at - REACH, self.at + REACH
        return Box(low, self.start, high, self.end) if self.axis == 0 else Box(self.start, low, self.end, high)


class Place(NamedTuple):
    """A tile to be stained again, off the grid, and where it is compared, in the view's px."""

    tile: Box
    compare: Box


@dataclass(frozen=True, slots=True)
class Places:
    """Where an output is examined; empty where it has no two tiles of tissue beside each other."""

    lines: tuple[Line, ...] = ()
    again: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was found; all lengths of steps and differences in grey levels of 0–255."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why it is not a pass; or why nothing had to be measured."""
    lines: int = 0
    step: float | None = None
    """Mean step at the shifted lines: the picture's own texture."""
    excess: float | None = None
    """By how much the step at tile lines is larger."""
    excess_low: float | None = None
    excess_high: float | None = None
    """99 % interval of the excess, by bootstrap over lines."""
    excess_shifted: float | None = None
    """The largest excess that any of the shifted lines has over the others: what no seam at all looks like."""
    places: int = 0
    """Tiles stained again, half a stride off the grid."""
    difference_mean: float | None = None
    difference_p99: int | None = None
    difference_allowed: float | None = None
    """What the mean may be; see `judge`."""
    dab_change: float | None = None
    """Mean over the places of the change of the DAB-positive share, in percentage points."""


POINTWISE = Certificate("pass", ("each pixel is made from itself alone",))
"""Of a generator that cannot know its tile."""


def choose(grid: TileGrid, region: Box, tissue: Sequence[Box], seed: int) -> Places:
    """Where to examine an output.

    Args:
        grid: its tiles; with the generator's multiple.
        region: the part of the image that is converted.
        tissue: all tiles that are stained, in an order of their own.
        seed: equal seeds, equal places.
    """
    order = [tissue[i] for i in np.random.default_rng(seed).permutation(len(tissue))]
    stained, inside = frozenset(tissue), region & Box.of(grid.size)

    def fits(box: Box) -> bool:
        return inside.contains(box) and all(tile in stained for tile in grid.tiles(box))

    lines = (line for line in _lines(grid, order) if fits(line.box))
    again = (place for place in _places(grid, region, order) if fits(place.compare))
    count = min(MOST_LINES, max(FEW_LINES, len(tissue) // 4))
    return Places(
        tuple(islice(lines, count if len(shifts(grid)) > 1 else 0)),
        tuple(islice(again, min(MOST_PLACES, max(1, len(tissue) // TILES_PER_PLACE)))),
    )


def shifts(grid: TileGrid) -> tuple[int, ...]:
    """Those of `SHIFTS` at which no tile begins or ends, whichever of both the line does."""
    ends = {0, grid.overlap % grid.stride}
    return tuple(s for s in SHIFTS if not any((end + s) % grid.stride in ends for end in ends))


def _lines(grid: TileGrid, tiles: Sequence[Box]) -> Iterator[Line]:
    """Lines at the upper and left sides of tiles: one of each tile, then the next of each."""
    kinds = [(axis, offset) for axis in (0, 1) for offset in sorted({0, grid.overlap})]
    length = 3 * grid.tile // 4
    for turn in range(len(kinds)):
        for i, tile in enumerate(tiles):
            axis, offset = kinds[(i + turn) % len(kinds)]
            start = tile[1 - axis] + grid.tile // 8
            if tile[axis] and length >= PIECE:  # at the image's first pixel nothing ends
                yield Line(axis, tile[axis] + offset, start, start + length)  # type: ignore[arg-type]


def _places(grid: TileGrid, region: Box, tiles: Sequence[Box]) -> Iterator[Place]:
    """Tiles half a stride away, compared in their middle half, which lies on a corner of four tiles.

    A comparison keeps to one pyramid tile of the output, so that it lies in one block, whatever the blocks' size. Those
    that need not be cut for that come first; where all lines lie on borders of pyramid tiles, all are.
    """
    offset, quarter = grid.stride // 2 // grid.multiple * grid.multiple, grid.tile // 4
    if offset == 0:
        return  # the only tiles that the network allows are those of the grid
    for least in (4 * quarter * quarter, quarter * quarter):
        for tile in tiles:
            again = tile.shift(offset, offset)
            middle = Box(again.y0 + quarter, again.x0 + quarter, again.y0 + 3 * quarter, again.x0 + 3 * quarter)
            compare = middle & _pyramid_tile(region, again.y0 + 2 * quarter, again.x0 + 2 * quarter)
            if compare.area >= least and (compare == middle) == (least > quarter * quarter):
                yield Place(again, compare)


def _pyramid_tile(region: Box, y: int, x: int) -> Box:
    row, column = (y - region.y0) // TILE_PX, (x - region.x0) // TILE_PX
    return Box.at(region.y0 + row * TILE_PX, region.x0 + column * TILE_PX, Size(TILE_PX, TILE_PX))


def steps(pixels: np.ndarray, line: Line, at: Sequence[int]) -> list[float]:
    """The mean step at a line, and at those shifted by `at`.

    Args:
        pixels: uint8 (h, w, 3), of `line.box`.
        line: the line.
        at: shifts in px, of `SHIFTS`.
    """
    along_first = pixels if line.axis == 1 else pixels.swapaxes(0, 1)
    n, across = along_first.shape[0] // PIECE, along_first.shape[1]
    profile = along_first[: n * PIECE].reshape(n, PIECE, across, 3).mean(1, dtype=np.float64)
    slope = np.diff(profile, axis=1)  # slope[:, i] leads to row or column i + 1
    sharp = np.abs(slope[:, 1:-1] - (slope[:, :-2] + slope[:, 2:]) / 2).mean((0, 2))
    return [float(sharp[REACH + s - 2]) for s in (0, *at)]


def compare(painted: np.ndarray, again: np.ndarray, glass: Glass) -> dict[str, list[int]]:
    """What a block notes of a place: counts of differences, and positive pixels; two uint8 (h, w, 3)."""
    counts = np.bincount(np.abs(painted.astype(np.int16) - again).ravel())
    positive = [int((dab(image, glass) >= POSITIVE_OD).sum()) for image in (painted, again)]
    return {"differences": counts.tolist(), "positive": positive}


def judge(
    found: Sequence[Sequence[float]],
    compared: Sequence[Mapping[str, Sequence[int]]],
    *,
    promise: BundlePromise | None,
    stride: int,
) -> Certificate:
    """The certificate of an output.

    (a) fails where even the lower bound of the excess is above what the shifted lines do among themselves: without a
    seam the line is one of them, and by chance comes out so in less than 1 of 200 outputs.
    (b) The bundle promises a mean and a 99th percentile over a whole period of the grid. Were all of that difference in
    the places, which lie on seams, it would be larger there by the ratio of the areas: so much is allowed, but never
    more than rounding does (`ROUNDING`), which is also allowed to a bundle that promises nothing.
    (c) may not change the share of positive area by half a percentage point.

    Args:
        found: what `steps` returned, for each line.
        compared: what `compare` returned, for each place.
        promise: the bundle's.
        stride: from tile to tile, in px.
    """
    figures: dict[str, Any] = {"lines": len(found), "places": len(compared)}
    reasons: list[str] = []
    if len(found) >= FEWEST_LINES:
        figures |= _excess(np.asarray(found))
        if figures["excess_low"] > max(0.0, figures["excess_shifted"]):
            reasons.append("the picture has a step at tile boundaries")
    if compared:
        figures |= _difference(compared, promise, stride)
        if figures["difference_mean"] > figures["difference_allowed"]:
            reasons.append("other tiles give other pixels")
        elif _breaks_percentile(compared, promise, stride):
            reasons.append("other tiles give other pixels more often than the bundle promises")
        if figures["dab_change"] > HALF_A_POINT:
            reasons.append("other tiles give another positive area")
    if len(found) < FEWEST_LINES and not compared:
        return Certificate("not applicable", ("no two tiles of tissue lie beside each other",), **figures)
    return Certificate("fail" if reasons else "pass", tuple(reasons), **figures)


def _excess(found: np.ndarray) -> dict[str, float]:
    """Steps (lines, 1 + shifts) → the excess at the line, its interval, and the largest among the shifted."""
    line, shifted = found[:, 0], found[:, 1:]
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
    compared: Sequence[Mapping[str, Sequence[int]]], promise: BundlePromise | None, stride: int
) -> dict[str, float]:
    counts, values = _counts(compared), np.arange(256)
    total = int(counts.sum())
    changes = [abs(place["positive"][0] - place["positive"][1]) / (sum(place["differences"]) / 3) for place in compared]
    allowed = ROUNDING if promise is None else min(ROUNDING, promise.mean * _periods(compared, stride))
    return {
        "difference_mean": round(float(counts @ values) / total, 4),
        "difference_p99": int(np.searchsorted(counts.cumsum(), 0.99 * total)),
        "difference_allowed": round(allowed, 4),
        "dab_change": round(100 * float(np.mean(changes)), 4),
    }


def _breaks_percentile(
    compared: Sequence[Mapping[str, Sequence[int]]], promise: BundlePromise | None, stride: int
) -> bool:
    """Whether more pixels than could be differ by more than the promised 99th percentile."""
    if promise is None:
        return False
    counts = _counts(compared)
    return float(counts[int(promise.p99) + 1 :].sum() / counts.sum()) > 0.01 * _periods(compared, stride)


def _counts(compared: Iterable[Mapping[str, Sequence[int]]]) -> np.ndarray:
    """How many channels of pixels differ by 0, 1, … grey levels, over all places: int64 (256,)."""
    total = np.zeros(256, np.int64)
    for place in compared:
        total[: len(place["differences"])] += np.asarray(place["differences"], np.int64)
    return total


def _periods(compared: Sequence[Mapping[str, Sequence[int]]], stride: int) -> float:
    """Area of a period of the grid over the mean area that was compared at a place; at least 1."""
    return max(1.0, len(compared) * stride * stride / (_counts(compared).sum() / 3))


def in_words(certificate: Mapping[str, Any]) -> dict[str, str]:
    """A certificate's record as texts: what an output says about itself."""
    said = {"seams": "; ".join([certificate["verdict"], *certificate["reasons"]])}
    if certificate["excess"] is not None:
        said["seams_step"] = (
            f"{certificate['excess']:+.3f} grey levels [{certificate['excess_low']:+.3f}, "
            f"{certificate['excess_high']:+.3f}] (99 %) at {certificate['lines']} tile lines over the same lines "
            f"shifted ({certificate['step']:.3f}), of which none exceeds the others by more than "
            f"{certificate['excess_shifted']:.3f}"
        )
    if certificate["difference_mean"] is not None:
        said["seams_difference"] = (
            f"mean {certificate['difference_mean']:.3f} (allowed {certificate['difference_allowed']:.3f}), 99 % "
            f"{certificate['difference_p99']} grey levels between the output and {certificate['places']} tiles stained "
            "again off the grid"
        )
        said["seams_dab"] = (
            f"{certificate['dab_change']:.3f} percentage points of DAB-positive area, at the same places"
        )
    return said
