"""The areas of a GeoJSON file, each under its own name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import MaskError
from wsi_stain.readout.work import RegionOfInterest
from wsi_stain.tissue.outline import Polygons


def read_regions(path: Path) -> tuple[RegionOfInterest, ...]:
    """The areas of a QuPath export, in the order of the file.

    An area without a name is named after its class, or `area`; equal names get numbers.

    Raises:
        MaskError: the file cannot be read, is not GeoJSON, or has no area.
    """
    try:
        features = list(_features(json.loads(path.read_text(encoding="utf-8-sig"))))
        areas = [(_name(feature), list(_polygons(feature["geometry"]))) for feature in features]
    except OSError as err:
        raise MaskError(f"cannot read the regions {path}: {err.strerror}; check the path") from err
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as err:
        raise MaskError(f"the regions {path} are not GeoJSON ({err}); export them from QuPath as GeoJSON") from err
    regions: dict[str, RegionOfInterest] = {}
    for name, polygons in areas:
        if polygons:
            unique, number = name, 1
            while unique in regions:
                number += 1
                unique = f"{name} ({number})"
            regions[unique] = RegionOfInterest(unique, Polygons.of(polygons))
    if not regions:
        raise MaskError(f"{path} has no area; draw one in QuPath and export it again")
    return tuple(regions.values())


def _features(data: Any) -> Iterator[dict[str, Any]]:
    if isinstance(data, list):
        for item in data:
            yield from _features(item)
    elif data["type"] == "FeatureCollection":
        yield from _features(data["features"])
    elif data["type"] == "Feature":
        if data["geometry"] is not None:
            yield data
    else:
        yield {"geometry": data, "properties": {}}


def _name(feature: dict[str, Any]) -> str:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    return str(properties.get("name") or classification.get("name") or "area")


def _polygons(geometry: dict[str, Any]) -> Iterator[list[np.ndarray]]:
    match geometry["type"]:
        case "Polygon":
            yield _rings(geometry["coordinates"])
        case "MultiPolygon":
            for polygon in geometry["coordinates"]:
                yield _rings(polygon)
        case "GeometryCollection":
            for part in geometry["geometries"]:
                yield from _polygons(part)
        case _:  # points and lines have no area
            return


def _rings(polygon: list[Any]) -> list[np.ndarray]:
    rings = [np.array([point[:2] for point in ring], float) for ring in polygon]
    if not rings or any(ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
        raise ValueError("a polygon must be a list of rings of at least three points with finite coordinates")
    return rings
