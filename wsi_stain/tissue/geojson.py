"""Reads areas from GeoJSON, and writes them and the outlines of cell masks.

Coordinates are level-0 pixels, (x, y) as in GeoJSON and QuPath; grids are (row, column) of square cells.
"""

from __future__ import annotations

import codecs
import gc
import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsi_stain.errors import MaskError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.geometry import Size
from wsi_stain.tissue.outline import Polygons, Ring

CELL_KEY = "wsi-stain cell px"
"""Member of our own files that holds the cell side, so that masks survive a round trip; other software ignores it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Areas:
    """The areas of a file."""

    tissue: Polygons
    ignored: Polygons
    """Areas of the classes `Ignore*`, which are not tissue, also where they overlap it."""
    cell: Fraction | None
    """The cell side that our own files hold."""


def read(path: Path) -> Areas:
    """The areas of a file, plain or gzipped; polygons without an area are skipped, and counted in a warning.

    Raises:
        MaskError: the file is missing, not JSON, not GeoJSON, or has no polygon that is tissue.
    """
    data, polygons, empty = _content(path)
    areas: dict[bool, list[list[Ring]]] = {False: [], True: []}
    for classes, rings in polygons:
        areas[_is_ignored(classes)].append(rings)
    if not areas[False]:
        what = " that is tissue" if areas[True] or empty else ""
        raise MaskError(
            f"the mask {path} has no polygon{what}; draw an area around the tissue in QuPath and export it again"
        )
    return Areas(Polygons.of(areas[False]), Polygons.of(areas[True]), _cell(data))


def read_classes(path: Path) -> dict[str, Polygons]:
    """The areas of each class of a file, in its order; areas without a class, and those to be ignored, are left out.

    Raises:
        MaskError: the file is missing, not JSON, not GeoJSON, or has no area with a class.
    """
    areas: dict[str, list[list[Ring]]] = {}
    for classes, rings in _content(path)[1]:
        if classes and not _is_ignored(classes):
            areas.setdefault(": ".join(classes), []).append(rings)
    if not areas:
        raise MaskError(f"{path} has no area with a class; set the class of its annotations in QuPath, and export them")
    return {name: Polygons.of(polygons) for name, polygons in areas.items()}


def _content(path: Path) -> tuple[Any, list[tuple[tuple[str, ...], list[Ring]]], int]:
    """The parsed file, the classes and the rings of each of its polygons, and how many have no area."""
    try:
        data = _parsed(_text(path.read_bytes()))
    except OSError as err:
        raise MaskError(f"cannot read the mask {path}: {err.strerror or err}; check the path") from err
    except (EOFError, zlib.error) as err:
        raise MaskError(f"the mask {path} is a damaged gzip file ({err}); export it again") from err
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise MaskError(f"the mask {path} is not JSON ({err}); export it from QuPath as GeoJSON") from err
    try:
        polygons = [
            (classes, _checked(polygon)) for geometry, classes in _geometries(data) for polygon in _polygons(geometry)
        ]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as err:
        raise MaskError(f"the mask {path} is JSON but not GeoJSON ({err}); export it from QuPath as GeoJSON") from err
    whole = [(classes, rings) for classes, rings in polygons if rings]
    empty = len(polygons) - len(whole)
    if empty:
        log.warning("%s: skipped %d empty polygons", path, empty)
    return data, whole, empty


def _parsed(text: str) -> Any:
    """JSON, parsed without the garbage collector, which would take 80 % of the time over millions of new lists."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if is_on:
            gc.enable()


def _text(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 with a byte order mark; gzipped or not."""
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_wide else "utf-8-sig")


def write_polygons(path: Path, tissue: Polygons, ignored: Polygons) -> None:
    """Write areas with their exact outlines, as QuPath annotations of the classes Tissue and Ignore*."""
    looks = ((tissue, "Tissue", [200, 60, 120]), (ignored, "Ignore*", [180, 180, 180]))
    features = [
        _feature(
            {"type": "MultiPolygon", "coordinates": [list(map(_ring, rings)) for rings in area.lists()]}, name, colour
        )
        for area, name, colour in looks
        if len(area)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def _ring(ring: Ring) -> list[list[float]]:
    points = ring.tolist()
    return points if points[0] == points[-1] else [*points, points[0]]


def _feature(geometry: dict[str, Any], name: str, colour: list[int]) -> dict[str, Any]:
    properties = {"objectType": "annotation", "classification": {"name": name, "color": colour}}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write(path: Path, array: np.ndarray, cell: Fraction, size: Size | None) -> None:
    """Write a mask, bool (h, w) of square cells of `cell` level-0 px, as one QuPath annotation of class Tissue."""
    polygons = [[_closed(ring, cell, size) for ring in rings] for rings in outlines(array)]
    one = len(polygons) == 1
    geometry = {"type": "Polygon" if one else "MultiPolygon", "coordinates": polygons[0] if one else polygons}
    feature = _feature(geometry, "Tissue", [200, 60, 120])
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


def _geometries(data: Any, classes: tuple[str, ...] = ()) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Every geometry in a FeatureCollection, a Feature, a list of them, a GeometryCollection or a bare geometry.

    With each, its classes.
    """
    if isinstance(data, list):
        for item in data:
            yield from _geometries(item, classes)
        return
    match data["type"]:
        case "FeatureCollection":
            yield from _geometries(data["features"], classes)
        case "GeometryCollection":
            yield from _geometries(data["geometries"], classes)
        case "Feature":
            if data["geometry"] is not None:
                yield from _geometries(data["geometry"], _classes(data.get("properties")))
        case "Polygon" | "MultiPolygon" | "Point" | "MultiPoint" | "LineString" | "MultiLineString":
            yield data, classes
        case other:
            raise ValueError(f"unknown type {other!r}")


def _classes(properties: Any) -> tuple[str, ...]:
    """The class names of a feature; QuPath writes a name, a list of names, or an object with either."""
    what = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(what, dict):
        what = what.get("name") or what.get("names")
    names = what if isinstance(what, list) else [what]
    return tuple(name.strip() for name in names if isinstance(name, str) and name.strip())


def _is_ignored(classes: Iterable[str]) -> bool:
    return any(name.casefold().startswith("ignore") for name in classes)


def _polygons(geometry: dict[str, Any]) -> list[Any]:
    """The coordinates of every polygon of a geometry; points and lines have no area."""
    match geometry["type"]:
        case "Polygon":
            return [geometry["coordinates"]]
        case "MultiPolygon":
            return geometry["coordinates"] or [[]]
        case _:
            return []


def _checked(polygon: list[Any] | None) -> list[Ring]:
    """The rings of a polygon; none if its outer ring has fewer than three points, so that it has no area."""
    rings = [_points(ring) for ring in polygon or ()]
    return [ring for ring in rings if len(ring) >= 3] if rings and len(rings[0]) >= 3 else []


def _points(ring: list[Any]) -> Ring:
    try:
        points = np.array(ring, float)
    except ValueError:  # some points have a third coordinate
        points = np.array([point[:2] for point in ring], float)
    if not points.size:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError("a ring must be a list of points")
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not a finite number")
    return points[:, :2]
