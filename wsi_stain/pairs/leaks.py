"""Leaks between splits: the same tile, a known slide, or adjacent tiles of one slide.

A network tested on a neighbour of a training tile scores better than it should. Public sets often do not state the
slide of a tile. But a tile continues in its neighbour: the last column of one and the first column of the other are one
pixel apart and correlate, and others do not. Tiles that overlap or have a gap are not detected this way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import KDTree

from wsi_stain.errors import counted
from wsi_stain.pairs.pair import Pair

EDGE_PX = 512
"""Most samples of an edge."""
DETAIL_PX = 8
"""Standard deviation, in samples, of the blurred edge that is subtracted: brightness alone carries no information."""
PLAIN = 3.0
"""Grey levels of detail (root mean square) below which an edge is background."""
LEAST_R, LEAST_SD = 0.5, 7
"""Two edges match if they correlate this much, and by this many standard deviations of all comparisons.
Measured on a slide cut into 236 tiles of 512 px: 319 true neighbours have r = 0.66 in the median, and the best of
111,000 others has 4.6 standard deviations (5.7 among 1.8 million when the tiles have 256 px)."""
MEDIAN_TO_SD = 1.4826
"""Of a normal sample: the standard deviation from the median of the magnitudes, which true neighbours hardly move."""
OPPOSITE = (1, 0, 3, 2)
ROWS = 256
"""Tiles that are compared with all others at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class PlacedTile:
    """Properties of an H&E tile for leak detection."""

    pair: Pair
    extent: int
    """Longer side of the image, px."""
    digest: bytes
    """Hash of the pixels."""
    edges: np.ndarray
    """float32 (4, `EDGE_PX`), of `edges`."""

    @classmethod
    def of(cls, pair: Pair, he: np.ndarray) -> PlacedTile:
        """The tile of a pair whose H&E is uint8 (H, W, 3)."""
        return cls(pair, max(he.shape), hashlib.blake2b(he.tobytes(), digest_size=16).digest(), edges(he))


def edges(image: np.ndarray) -> np.ndarray:
    """The detail along the left, right, upper and lower edge of a tile, uint8 (H, W, 3).

    Returns:
        float32 (4, `EDGE_PX`), of mean 0 and length 1 each; all 0 where an edge is plain; short edges end in 0.
    """
    lines = (image[:, 0], image[:, -1], image[0], image[-1])
    return np.stack([_detail(line.mean(axis=1, dtype=np.float32)) for line in lines])


def same_images(tiles: Sequence[PlacedTile]) -> list[str]:
    """One sentence for each H&E that occurs in two splits, whatever its name."""
    first_with: dict[bytes, Pair] = {}
    twins = [(first_with.setdefault(t.digest, t.pair), t.pair) for t in tiles]
    return [
        f"{a.he} ({a.split}) and {b.he} ({b.split}) are the same image: keep it in one split"
        for a, b in twins
        if a.split != b.split
    ]


def shared_slides(tiles: Sequence[PlacedTile]) -> list[str]:
    """One sentence for each known slide that is in two splits without a gap between their tiles.

    A slide in two splits is not a leak if all its tiles have coordinates and no tile touches one of another split.
    """
    slides: dict[str, list[PlacedTile]] = {}
    for tile in tiles:
        if tile.pair.slide_id:
            slides.setdefault(tile.pair.slide_id, []).append(tile)
    return [sentence for slide, its in sorted(slides.items()) for sentence in _shared(slide, its)]


def adjacent_splits(tiles: Sequence[PlacedTile]) -> list[str]:
    """One sentence for each two splits with adjacent tiles, detected from the images alone.

    Slides that `shared_slides` covers are skipped.
    """
    splits = sorted({t.pair.split for t in tiles})
    return [sentence for one, other in combinations(splits, 2) for sentence in _adjacent(tiles, one, other)]


def _detail(line: np.ndarray) -> np.ndarray:
    if len(line) > EDGE_PX:
        line = cv2.resize(line[None], (EDGE_PX, 1), interpolation=cv2.INTER_AREA)[0]
    fine = line - gaussian_filter1d(line, DETAIL_PX)
    fine -= fine.mean()
    length = np.linalg.norm(fine)
    detail = np.zeros(EDGE_PX, np.float32)
    if length > PLAIN * len(line) ** 0.5:
        detail[: len(line)] = fine / length
    return detail


def _shared(slide: str, tiles: Sequence[PlacedTile]) -> Iterator[str]:
    splits = sorted({t.pair.split for t in tiles})
    if len(splits) > 1 and not all(_is_placed(t) for t in tiles):
        yield (
            f"the slide {slide!r} is in the splits {', '.join(splits)} and has tiles without coordinates: keep a slide "
            "in one split, or add the columns x and y to show that its splits are separated"
        )
        return
    for one, other in combinations(splits, 2):
        extent = _extent(tiles)
        if touching := _touching(*_parted(tiles, one, other), extent):
            (a, b), n = touching[0], len(touching)
            meet = "touches or overlaps" if n == 1 else "touch or overlap"
            yield (
                f"the slide {slide!r}: {counted(n, 'tile')} of the split {one} {meet} tiles of {other} at a side of "
                f"{extent} px of level 0, first {a.he.name} and {b.he.name}: remove the tiles between the splits, or "
                "state their side in the column side"
            )


def _is_placed(tile: PlacedTile) -> bool:
    return tile.pair.x is not None and tile.pair.y is not None


def _parted(tiles: Sequence[PlacedTile], one: str, other: str) -> tuple[list[PlacedTile], list[PlacedTile]]:
    return [t for t in tiles if t.pair.split == one], [t for t in tiles if t.pair.split == other]


def _extent(tiles: Sequence[PlacedTile]) -> int:
    """Side of a slide's tiles in level-0 px: the value in the table, or else the larger of image and grid.

    Without a value in the table the scale is unknown. Tiles that were scaled down are further apart than their pixels.
    The pitch of the grid shows that: the distance to the nearest tile, if at least four tiles and half of them have it.
    """
    sides = [t.pair.side for t in tiles if t.pair.side]
    if len(sides) == len(tiles):
        return max(sides)
    places = [(t.pair.x, t.pair.y) for t in tiles]
    nearest = KDTree(places).query(places, k=2, p=np.inf)[0][:, 1]
    ((pitch, n),) = Counter(nearest.tolist()).most_common(1)
    return max(int(pitch) if n >= max(4, len(tiles) / 2) else 0, *(t.extent for t in tiles))


def _touching(first: Sequence[PlacedTile], second: Sequence[PlacedTile], extent: int) -> list[tuple[Pair, Pair]]:
    """The tiles of the first split that touch or overlap one of the second, each with its nearest."""
    tree = KDTree([(t.pair.x, t.pair.y) for t in second])
    distance, nearest = tree.query([(t.pair.x, t.pair.y) for t in first], p=np.inf)
    near = zip(first, np.atleast_1d(distance), np.atleast_1d(nearest), strict=True)
    return [(t.pair, second[int(j)].pair) for t, d, j in near if d <= extent]


def _adjacent(tiles: Sequence[PlacedTile], one: str, other: str) -> Iterator[str]:
    first, second = _parted(tiles, one, other)
    pairs = [(first[i].pair, second[j].pair) for i, j in _continued(first, second)]
    adjacent = [(a, b) for a, b in pairs if not a.slide_id or a.slide_id != b.slide_id]
    if adjacent:
        (a, b), n = adjacent[0], len({a for a, _ in adjacent})
        yield (
            f"{counted(n, 'tile')} of the split {one} {'continues' if n == 1 else 'continue'} in tiles of {other}, "
            f"first {a.he.name} in {b.he.name}: adjacent tiles of one slide are in two splits; split by slide, or "
            "leave a gap"
        )


def _continued(first: Sequence[PlacedTile], second: Sequence[PlacedTile]) -> list[tuple[int, int]]:
    """Indices of tiles that continue each other."""
    theirs = np.stack([t.edges for t in second])
    candidates: list[tuple[int, int, float]] = []
    typical: list[float] = []
    for start in range(0, len(first), ROWS):
        ours = np.stack([t.edges for t in first[start : start + ROWS]])
        for edge, opposite in enumerate(OPPOSITE):
            r = ours[:, edge] @ theirs[:, opposite].T
            typical += [float(np.median(np.abs(r[r != 0])))] if r.any() else []
            candidates += [(start + int(i), int(j), float(r[i, j])) for i, j in np.argwhere(r > LEAST_R)]
    least = LEAST_SD * MEDIAN_TO_SD * float(np.median(typical)) if typical else 0.0
    return sorted({(i, j) for i, j, r in candidates if r > least})
