"""Converts cell masks to GeoJSON polygons (exact outlines) and back (conservative rasters).

Coordinates are level-0 pixels, (x, y) as in GeoJSON and QuPath; grids are (row, column) of square cells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsi_stain.errors import MaskError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.geometry import Size

TOLERANCE_PX = 1e-3
"""Minimum depth of a polygon in a cell to touch it: written coordinates are rounded to a tenth of this."""
CELL_KEY = "wsi-stain cell px"
"""Member of our own files that holds the cell side, so that masks survive a round trip; other software ignores it."""

Ring = np.ndarray
"""float64 (n, 2) of (x, y), closed or open."""


def read(path: Path) -> tuple[list[list[Ring]], Fraction | None]:
    """The polygons of a file, each as a list of rings, and the cell side stored in the file, if any.

    Raises:
        MaskError: the file is missing, not JSON, not GeoJSON, or has no polygon.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise MaskError(f"cannot read the mask {path}: {err.strerror}; check the path") from err
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise MaskError(f"the mask {path} is not JSON ({err}); export it from QuPath as GeoJSON") from err
    try:
        polygons = [rings for geometry in _geometries(data) for rings in _polygons(geometry)]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as err:
        raise MaskError(f"the mask {path} is JSON but not GeoJSON ({err}); export it from QuPath as GeoJSON") from err
    if not polygons:
        raise MaskError(f"the mask {path} has no polygon; draw an area around the tissue in QuPath and export it again")
    return polygons, _cell(data)


def write(path: Path, array: np.ndarray, cell: Fraction, size: Size | None) -> None:
    """Write a mask, bool (h, w) of square cells of `cell` level-0 px, as one QuPath annotation of class Tissue."""
    polygons = [[_closed(ring, cell, size) for ring in rings] for rings in outlines(array)]
    one = len(polygons) == 1
    geometry = {"type": "Polygon" if one else "MultiPolygon", "coordinates": polygons[0] if one else polygons}
    properties = {"objectType": "annotation", "classification": {"name": "Tissue", "color": [200, 60, 120]}}
    feature = {"type": "Feature", "geometry": geometry, "properties": properties}
    collection = {
        "type": "FeatureCollection",
        CELL_KEY: f"{cell.numerator}/{cell.denominator}",
        "features": [feature] if polygons else [],
    }
    atomic_write(path, json.dumps(collection))


def outlines(array: np.ndarray) -> list[list[np.ndarray]]:
    """The exact outlines of a mask's cells: for each 4-connected part its outer ring and its holes.

    Returns:
        int (n, 2) corners (column, row) of every ring, not closed.
    """
    n, parts = cv2.connectedComponents(array.astype(np.uint8), connectivity=4)
    parts = parts.astype(np.intp) - 1
    outer: list[np.ndarray] = [np.zeros((0, 2), int)] * (n - 1)
    holes: list[list[np.ndarray]] = [[] for _ in range(n - 1)]
    for ring in _rings(np.pad(array, 1)):
        x, y = ring[0]  # the first corner in reading order: the part or the hole is below and to its right
        if array[y, x]:
            outer[parts[y, x]] = ring
        else:
            holes[parts[y - 1, x]].append(ring[::-1])  # opposite orientation (RFC 7946, section 3.1.6)
    return [[ring, *inner] for ring, inner in zip(outer, holes, strict=True)]


def rasterise(rings: list[Ring], grid: Size, cell: Fraction) -> np.ndarray:
    """The cells that a polygon touches, bool (h, w): those on its border, and those inside by the even-odd rule."""
    starts = [np.asarray(ring, float) / float(cell) for ring in rings]
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in starts])
    a, b = np.concatenate(starts), ends
    low_first = (a[:, 1] <= b[:, 1])[:, None]
    low, high = np.where(low_first, a, b), np.where(low_first, b, a)
    return _border(low, high, grid, TOLERANCE_PX / float(cell)) | _inside(low, high, grid)


def _border(low: np.ndarray, high: np.ndarray, grid: Size, tolerance: float) -> np.ndarray:
    """Cells that the edges pass through; `low` and `high` are the edges' ends in cells, `low` with the smaller y."""
    first = np.clip(np.floor(low[:, 1] + tolerance), 0, grid.h).astype(int)
    last = np.clip(np.ceil(high[:, 1] - tolerance), 0, grid.h).astype(int)
    edge, row = _spread(first, last)
    at_top, at_bottom = (_x_at(low[edge], high[edge], y) for y in (row, row + 1))
    left = np.floor(np.minimum(at_top, at_bottom) + tolerance)
    right = np.ceil(np.maximum(at_top, at_bottom) - tolerance)
    left, right = (np.clip(v, 0, grid.w).astype(int) for v in (left, np.maximum(left, right)))
    marks = np.zeros((grid.h, grid.w + 1), np.int32)
    np.add.at(marks, (row, left), 1)
    np.add.at(marks, (row, right), -1)
    return marks.cumsum(axis=1)[:, :-1] > 0


def _inside(low: np.ndarray, high: np.ndarray, grid: Size) -> np.ndarray:
    """Cells with their centre inside, by counting the edges to its left."""
    first, last = (np.clip(np.ceil(end[:, 1] - 0.5), 0, grid.h).astype(int) for end in (low, high))
    edge, row = _spread(first, last)
    crossing = np.clip(np.ceil(_x_at(low[edge], high[edge], row + 0.5) - 0.5), 0, grid.w).astype(int)
    count = np.zeros((grid.h, grid.w + 1), np.int32)
    np.add.at(count, (row, crossing), 1)
    return count.cumsum(axis=1)[:, :-1] % 2 == 1


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair (edge, row) with first <= row < last of that edge."""
    n = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(n)), n)
    return edge, np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + first[edge]


def _x_at(low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The x of each edge at height y, clamped to its ends; horizontal edges give either end."""
    rise = high[:, 1] - low[:, 1]
    level = rise == 0
    share = np.clip((y - low[:, 1]) / np.where(level, 1, rise), 0, 1)
    share = np.where(level, y > low[:, 1], share)
    return low[:, 0] + share * (high[:, 0] - low[:, 0])


def _rings(padded: np.ndarray) -> Iterator[np.ndarray]:
    """Closed rings of corners (column, row) of a mask with a border of False, each from its first in reading order.

    Corners of a rectilinear outline pair up along every row and along every column; following the pairs
    alternately traverses a ring. A corner where two cells meet only diagonally counts twice, once for each.
    """
    m = padded.astype(np.int8)
    a, b, c, d = m[:-1, :-1], m[:-1, 1:], m[1:, :-1], m[1:, 1:]
    single, double = (a + b + c + d) % 2 == 1, (a == d) & (b == c) & (a != b)
    y, x = np.nonzero(single | double)
    twice = double[y, x]
    y, x, crossed = (np.repeat(v, 1 + twice) for v in (y, x, (b == 1)[y, x] & twice))
    second = np.zeros(len(y), bool)
    second[1:] = (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    across = np.arange(len(y)) ^ 1  # in reading order, neighbours in a row are already paired
    order = np.lexsort((second ^ crossed, y, x))
    along = np.empty(len(y), int)
    along[order[0::2]], along[order[1::2]] = order[1::2], order[0::2]
    seen = np.zeros(len(y), bool)
    across_of, along_of = across.tolist(), along.tolist()
    for start in range(len(y)):
        if seen[start]:
            continue
        ring, at = [], start
        while not ring or at != start:
            ring += (at, across_of[at])
            at = along_of[across_of[at]]
        seen[ring] = True
        yield np.stack([x[ring], y[ring]], 1)


def _closed(ring: np.ndarray, cell: Fraction, size: Size | None) -> list[list[Any]]:
    """A ring of cell corners in level-0 px, clipped to the slide, its first point repeated at the end."""
    corners = ring * float(cell)
    if size is not None:
        corners = np.minimum(corners, (size.w, size.h))
    rounded = [[int(v) if v == int(v) else round(v, 4) for v in corner] for corner in corners.tolist()]
    return [*rounded, rounded[0]]


def _cell(data: Any) -> Fraction | None:
    try:
        cell = Fraction(data[CELL_KEY])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return cell if cell > 0 else None


def _geometries(data: Any) -> Iterator[dict[str, Any]]:
    """Every geometry in a FeatureCollection, a Feature, a list of them, a GeometryCollection or a bare geometry."""
    if isinstance(data, list):
        for item in data:
            yield from _geometries(item)
        return
    match data["type"]:
        case "FeatureCollection":
            yield from _geometries(data["features"])
        case "GeometryCollection":
            yield from _geometries(data["geometries"])
        case "Feature":
            if data["geometry"] is not None:
                yield from _geometries(data["geometry"])
        case "Polygon" | "MultiPolygon" | "Point" | "MultiPoint" | "LineString" | "MultiLineString":
            yield data
        case other:
            raise ValueError(f"unknown type {other!r}")


def _polygons(geometry: dict[str, Any]) -> Iterator[list[Ring]]:
    coordinates = geometry["coordinates"]
    match geometry["type"]:
        case "Polygon":
            yield _checked(coordinates)
        case "MultiPolygon":
            yield from (_checked(polygon) for polygon in coordinates)
        case _:  # points and lines have no area
            return


def _checked(polygon: list[Any]) -> list[Ring]:
    rings = [np.array([point[:2] for point in ring], float) for ring in polygon]
    if not rings or any(ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 for ring in rings):
        raise ValueError("a polygon must be a list of rings of at least three points")
    if not all(np.isfinite(ring).all() for ring in rings):
        raise ValueError("a coordinate is not a finite number")
    return rings
