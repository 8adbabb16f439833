"""The maps of a read-out: GeoJSON that QuPath shows as a heat map, and a low-resolution OME-TIFF."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import tifffile

from wsi_stain.files.atomic import replacing
from wsi_stain.readout.blocks import BlockGrid
from wsi_stain.readout.tables import Columns

LIMITS = (0.01, 0.1, 0.25, 0.5)
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Classes of positive share, and their colours (viridis)."""
MAPPED = ("dab_positive", "dab_mean", "dab_p90", "h_score", "hematoxylin_mean", "tissue_um2")
"""Columns that are channels of the OME-TIFF and measurements of the GeoJSON."""
BOUNDS = ("dab_positive_low", "dab_positive_high")


def write_geojson(path: Path, columns: Columns) -> None:
    """Write the blocks as QuPath detections, with a class and a colour by positive share and all figures.

    Written block by block, since a slide has a hundred thousand of them.
    """
    names = [name for name in (*MAPPED, *BOUNDS) if name in columns]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for i in range(len(columns["x"])):
            file.write(",\n" if i else "\n")
            json.dump(_feature(columns, names, i), file)
        file.write("\n]}\n")


def _feature(columns: Columns, names: list[str], i: int) -> dict[str, object]:
    x, y, w, h = (float(columns[name][i]) for name in ("x", "y", "width", "height"))
    ring = [[round(a, 2), round(b, 2)] for a, b in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "detection",
            "classification": _class(float(columns["dab_positive"][i])),
            "measurements": {name: round(float(columns[name][i]), 5) for name in names},
        },
    }


def _class(share: float) -> dict[str, object]:
    number = int(np.searchsorted(LIMITS, share, side="right"))
    low, high = (0, *LIMITS)[number], (*LIMITS, 1)[number]
    return {"name": f"DAB {100 * low:g}-{100 * high:g} %", "color": list(COLOURS[number])}


def raster(columns: Columns, name: str, grid: BlockGrid, um: int, scale: float) -> np.ndarray:
    """One figure as a picture with a px per block: float32 (h, w), NaN where there is no tissue.

    Args:
        columns: of the blocks.
        name: the column.
        grid: where the blocks lie.
        um: side of the blocks.
        scale: level-0 px per px of the view.
    """
    rows, across = (grid.edges(length, um) for length in grid.size)
    picture = np.full((len(rows) - 1, len(across) - 1), np.nan, np.float32)
    y, x = (np.searchsorted(edges, np.rint(columns[key] / scale)) for edges, key in ((rows, "y"), (across, "x")))
    picture[y, x] = columns[name]
    return picture


def write_tiff(path: Path, columns: Columns, grid: BlockGrid, um: int, scale: float) -> None:
    """Write the figures as an OME-TIFF with a channel for each, float32, `um` µm per px; NaN where there is no tissue.

    Equal figures give equal bytes.
    """
    names = [name for name in (*MAPPED, *BOUNDS) if name in columns]
    pixels = np.stack([raster(columns, name, grid, um, scale) for name in names])
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": names},
        "PhysicalSizeX": float(um),
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": float(um),
        "PhysicalSizeYUnit": "µm",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wsi-stain:map:{pixels.shape}")),
    }
    with replacing(path) as temporary:
        tifffile.imwrite(
            temporary, pixels, ome=True, metadata=metadata, compression="adobe_deflate", photometric="minisblack"
        )
