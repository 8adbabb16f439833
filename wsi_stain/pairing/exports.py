"""The transform for other software: an affine for QuPath's Interactive Image Alignment, and points in GeoJSON."""

from __future__ import annotations

import json

import numpy as np

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.residuals import Residuals
from wsi_stain.registration.transform import Transform

SPACING_UM = 1500.0
"""Distance between the exported points."""


def qupath_affine(affine: Affine, he_mpp: float, ihc_mpp: float) -> str:
    """The map from level-0 px of the H&E to those of the other slide, as QuPath's alignment dialog takes it.

    Two rows with the factors of x and y, and the shift. QuPath counts from the upper left corner of the first pixel, as
    the transform does.
    """
    rows = affine.matrix[::-1][:, [1, 0, 2]] / ihc_mpp
    rows[:, :2] *= he_mpp
    return "\n".join(",\t".join(f"{value:.8g}" for value in row) for row in rows) + "\n"


def landmarks(transform: Transform, off: Residuals, he_mpp: float, ihc_mpp: float) -> dict[str, str]:
    """GeoJSON of corresponding points of the H&E and of the other slide, in level-0 px, for windows that hold.

    The points of one number correspond.
    """
    points = off.points[off.holds]
    cells = np.floor(points / SPACING_UM).astype(int)
    _, first = np.unique(cells, axis=0, return_index=True)
    points = points[np.sort(first)]
    return {"he": _geojson(points / he_mpp), "ihc": _geojson(transform(points) / ihc_mpp)}


def _geojson(points: np.ndarray) -> str:
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(float(x), 2), round(float(y), 2)]},
            "properties": {"objectType": "annotation", "name": str(number)},
        }
        for number, (y, x) in enumerate(points, start=1)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n"
