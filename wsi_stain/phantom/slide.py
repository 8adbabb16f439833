"""Procedural H&E slides of any size, for the demo, the tests and the benchmarks.

Every pixel is a function of its coordinates and of (size, mpp, seed) alone, so a region can be rendered without the
rest, and a slide of ten gigapixels is written in the memory of one row of tiles. It contains no patient data.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile

from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import replacing
from wsi_stain.files.full_disk import reporting_full_disk
from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile
from wsi_stain.phantom import histology
from wsi_stain.phantom.section import PATCH, Section

MPP_RANGE = (0.1, 8.0)
"""µm per px that the structures support."""
LEVEL_STEP = 4
"""Downsample from one level to the next, as Aperio's scanners write them."""
BIG_PX = 2**31
"""Slides with more pixels become BigTIFF: at up to two bytes per JPEG pixel they could exceed 4 GB."""


def render(box: Box, *, size: Size, mpp: float = 0.5, seed: int = 0) -> np.ndarray:
    """Render any part of a phantom slide; pixels do not depend on the box.

    Args:
        box: the part, in level-0 px; outside the slide there is background.
        size: of the whole slide; the section of tissue fills most of it.
        mpp: µm per px; structures keep their physical size.
        seed: selects the section.

    Returns:
        uint8 (h, w, 3), sRGB
    """
    return _compose(box, _paint, Section(size, float(mpp), seed), np.empty((*box.size, 3), np.uint8))


def tissue(box: Box, *, size: Size, mpp: float = 0.5, seed: int = 0) -> np.ndarray:
    """Ground truth of `render`: bool (h, w), true within the section's outline (fat and lumens included)."""
    return _compose(box, histology.tissue_patch, Section(size, float(mpp), seed), np.empty(box.size, bool))


def write_slide(
    path: Path,
    *,
    size: Size,
    mpp: float = 0.5,
    seed: int = 0,
    quality: int = 85,
    overwrite: bool = False,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Write a phantom as a tiled pyramidal TIFF that readers take for an Aperio SVS; equal arguments give equal bytes.

    Memory bound: one row of patches, encoded, for any size (reduced levels are buffered in a temporary file).

    Args:
        path: the file to write; it appears when it is complete.
        size: of level 0 in px.
        mpp: µm per px.
        seed: which section.
        quality: of the JPEG tiles, 1–100.
        overwrite: replace a file that exists.
        progress: called with the share done, 0–1.

    Raises:
        OutputError: the file exists, the scale is out of range, or its folder is not writable.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists: choose another name or allow overwriting")
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise OutputError(f"a phantom cannot be drawn at {mpp} µm/px: choose {MPP_RANGE[0]} to {MPP_RANGE[1]}")
    section, encoding = Section(size, float(mpp), seed), Encoding("jpeg", quality, "420")
    try:
        with (
            reporting_full_disk(path),
            replacing(path, sole=True) as part,
            tempfile.TemporaryFile(dir=path.parent) as spool,
        ):
            _write_pages(part, section, encoding, spool, progress or (lambda share: None))
    except OSError as err:
        raise OutputError(f"cannot write {path}: {err.strerror or err}; check that its folder is writable") from err


@functools.lru_cache(maxsize=16)
def _paint(section: Section, y0: int, x0: int) -> np.ndarray:
    """A cached patch for `render`: neighbouring boxes share it."""
    patch = histology.paint_patch(section, y0, x0)
    patch.flags.writeable = False
    return patch


def _compose(
    box: Box, make: Callable[[Section, int, int], np.ndarray], section: Section, out: np.ndarray
) -> np.ndarray:
    for y0 in range(box.y0 // PATCH * PATCH, box.y1, PATCH):
        for x0 in range(box.x0 // PATCH * PATCH, box.x1, PATCH):
            part = box & Box.at(y0, x0, Size(PATCH, PATCH))
            out[part.shift(-box.y0, -box.x0).slices()] = make(section, y0, x0)[part.shift(-y0, -x0).slices()]
    return out


def level_sizes(size: Size) -> list[Size]:
    """Sizes of the pyramid's levels: a quarter each time, until one tile holds the level."""
    sizes = [size]
    while max(sizes[-1]) > TILE_PX:
        sizes.append(sizes[-1].ceil_div(LEVEL_STEP))
    return sizes


def description(section: Section, level: int) -> str:
    """The ImageDescription of a level, in the format of Aperio's library, which OpenSlide expects."""
    sizes = level_sizes(section.size)
    base = f"{section.size.w}x{section.size.h} [0,0 {section.size.w}x{section.size.h}] ({TILE_PX}x{TILE_PX})"
    scaled = f" -> {sizes[level].w}x{sizes[level].h}" if level else ""
    keys = {
        "AppMag": f"{10 / section.mpp:g}",
        "MPP": f"{section.mpp:.10g}",
        "Filename": "wsi-stain phantom",
        "Title": "SYNTHETIC PHANTOM - NOT TISSUE",
        "Phantom seed": str(section.seed),
    }
    words = [f"{key} = {value}" for key, value in keys.items()]
    return "|".join([f"Aperio Image Library (wsi-stain phantom)\r\n{base}{scaled} JPEG/YCC", *words])


@dataclass(slots=True)
class _Level:
    """A reduced level under construction: a band of pixels one tile high, and the spans of its tiles in the spool."""

    size: Size
    band: np.ndarray
    spans: list[tuple[int, int]] = field(default_factory=list)


def _write_pages(
    part: Path, section: Section, encoding: Encoding, spool: IO[bytes], progress: Callable[[float], None]
) -> None:
    sizes = level_sizes(section.size)
    levels = [_Level(s, np.zeros((TILE_PX, s.w, 3), np.uint8)) for s in sizes[1:]]
    tiled = {"tile": (TILE_PX, TILE_PX), **encoding.tifffile_options()}
    with tifffile.TiffWriter(part, bigtiff=section.size.h * section.size.w > BIG_PX) as tiff:

        def page(pixels: Any, index: int, size: Size, text: str, layout: dict[str, Any]) -> None:
            scale = {"resolution": (10_000 / section.mpp / LEVEL_STEP**index,) * 2, "resolutionunit": "CENTIMETER"}
            shape = {"shape": (*size, 3), "dtype": np.uint8, "description": text, "metadata": None, "software": False}
            tiff.write(pixels, **shape, **scale, **layout)

        page(_level0(section, encoding, levels, spool, progress), 0, sizes[0], description(section, 0), tiled)
        # Readers of SVS expect a thumbnail, in strips, between level 0 and the reduced levels.
        thumbnail = levels[-1].band[: sizes[-1].h] if levels else render(Box.of(section.size), **asdict(section))
        strips = {"photometric": "rgb", "compression": "adobe_deflate", "rowsperstrip": 16}
        page(thumbnail, len(levels), sizes[-1], description(section, len(levels)), strips)
        for index, level in enumerate(levels, start=1):
            page(_spooled(level, spool), index, level.size, description(section, index), tiled)
    progress(1.0)


def _level0(
    section: Section, encoding: Encoding, levels: list[_Level], spool: IO[bytes], progress: Callable[[float], None]
) -> Iterator[bytes]:
    """The tiles of level 0, row by row; also fill the bands of the reduced levels and spool their tiles."""
    size = section.size
    per_patch = PATCH // TILE_PX
    for y0 in range(0, size.h, PATCH):
        rows: list[list[bytes]] = [[] for _ in range(min(per_patch, -(-(size.h - y0) // TILE_PX)))]
        for x0 in range(0, size.w, PATCH):
            inside = Box.at(y0, x0, Size(PATCH, PATCH)) & Box.of(size)
            patch = histology.paint_patch(section, y0, x0)[: inside.size.h, : inside.size.w]
            for i, row in enumerate(rows):
                strip = patch[i * TILE_PX : (i + 1) * TILE_PX]
                row += (encoding.encode(pad_tile(strip[:, x : x + TILE_PX])) for x in range(0, inside.size.w, TILE_PX))
            _reduce(patch, y0, x0, levels)
        _flush(y0 + PATCH, size.h, levels, encoding, spool)
        progress(min(1.0, (y0 + PATCH) / size.h))
        for row in rows:
            yield from row


def _reduce(patch: np.ndarray, y0: int, x0: int, levels: list[_Level]) -> None:
    """Put a patch, reduced, into the band of each level where its position is a whole pixel."""
    for index, level in enumerate(levels, start=1):
        factor = LEVEL_STEP**index
        patch = _quarter(patch)
        y, x = y0 // factor % TILE_PX, x0 // factor
        level.band[y : y + patch.shape[0], x : x + patch.shape[1]] = patch[: level.size.h, : level.size.w - x]


def _quarter(pixels: np.ndarray) -> np.ndarray:
    """Reduced by four along each axis by the mean of 4 × 4; ragged ends replicated."""
    h, w = pixels.shape[:2]
    ragged = -h % LEVEL_STEP, -w % LEVEL_STEP
    if any(ragged):
        pixels = cv2.copyMakeBorder(pixels, 0, ragged[0], 0, ragged[1], cv2.BORDER_REPLICATE)
    whole = (pixels.shape[1] // LEVEL_STEP, pixels.shape[0] // LEVEL_STEP)
    return cv2.resize(pixels, whole, interpolation=cv2.INTER_AREA)


def _flush(done: int, height: int, levels: list[_Level], encoding: Encoding, spool: IO[bytes]) -> None:
    """Encode each band that is full, or the last; `done` rows of level 0 are painted."""
    for index, level in enumerate(levels, start=1):
        full = TILE_PX * LEVEL_STEP**index
        if done % full and done < height:
            continue
        rows = level.size.h % TILE_PX or TILE_PX if done >= height else TILE_PX
        for x in range(0, level.size.w, TILE_PX):
            encoded = encoding.encode(pad_tile(level.band[:rows, x : x + TILE_PX]))
            level.spans.append((spool.tell(), len(encoded)))
            spool.write(encoded)


def _spooled(level: _Level, spool: IO[bytes]) -> Iterator[bytes]:
    for start, length in level.spans:
        spool.seek(start)
        yield spool.read(length)
