"""Small cohorts for tests: slides, sheets and requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from wsi_stain.cohort.request import CohortConfig, CohortRequest
from wsi_stain.config.loader import load


def write_tiff(path: Path, seed: int = 0, side: int = 300, mpp: float | None = 0.5) -> Path:
    """A tiled TIFF of noise, with or without a resolution."""
    pixels = np.random.default_rng(seed).integers(100, 200, (side, side + 20, 3), dtype=np.uint8)
    scale: dict[str, Any] = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", **scale)
    return path


def write_slides(folder: Path, count: int = 3) -> Path:
    """A folder of small slides s0.tif, s1.tif …"""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        write_tiff(folder / f"s{n}.tif", seed=n)
    return folder


def write_large(path: Path, rows: int = 10, columns: int = 10) -> Path:
    """A slide of rows × columns blocks of 512 px, made in no time: one tile, repeated."""
    source, options = path.with_suffix(".one.tif"), {"tile": (512, 512), "photometric": "ycbcr", "compression": "jpeg"}
    pixels = np.random.default_rng(0).integers(60, 200, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(source, pixels, subsampling=(2, 2), **options)
    with tifffile.TiffFile(source) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    tile = source.read_bytes()[start : start + length]
    source.unlink()
    scale = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    shape = (512 * rows, 512 * columns, 3)
    with tifffile.TiffWriter(path) as writer:
        tiles = (tile for _ in range(rows * columns))
        writer.write(tiles, shape=shape, dtype="uint8", subsampling=(2, 2), **options, **scale)
    return path


def request_of(sheet: Path | str, folder: Path, *settings: str, **options: Any) -> CohortRequest:
    """A request for the identity model, on small blocks, with short pauses."""
    quick = ("convert.grid.block=512", "retry_wait_s=0.1", "stop_s=2")
    config = load(CohortConfig, None, [*quick, *settings])
    return CohortRequest(str(sheet), folder, **{"model": "identity", "mask": "none", "config": config} | options)


def names(folder: Path) -> list[str]:
    """Of the files in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
