"""Aperio and generic TIFF: tiffslide parses the metadata, and tiles are decoded one by one into the region.

Reading through tiffslide and zarr takes four times as long. Files that need more than placing tiles next to each other
(overlaps, planes, vendor formats) raise `Unsuited` and are read by OpenSlide.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tiffslide
from tifffile import COMPRESSION, TiffFile, TiffFileError

from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import Facts, PerThread, TileCache, Undecodable, Unsuited, number
from wsi_stain.slide.readers.tiff_samples import Plane, planes, to_rgb

# Our errors include tifffile's messages on damaged files; without a handler Python would also print them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

DAMAGED = (TiffFileError, OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AssertionError)
"""Exceptions that tifffile, tiffslide and the codecs raise on broken input."""
MAX_SEGMENT_PX = 1 << 26
STITCHED = ("philips", "ndpi", "scn", "bif")
UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Level:
    """One level as a grid of segments: tiles, or strips as wide as the image."""

    size: Size
    segment: Size
    planes: tuple[Plane, ...]
    """One of interleaved colours, or one of each colour."""
    to_rgb: Callable[[np.ndarray], np.ndarray]

    def is_absent(self, index: int) -> bool:
        """Whether the file deliberately holds no data for a segment."""
        return not any(plane.counts[index] for plane in self.planes)

    def touching(self, box: Box) -> list[tuple[int, int, int]]:
        """(index, y0, x0) of every segment that touches the box."""
        across = self.size.ceil_div(self.segment.w).w
        h, w = self.segment
        return [
            (row * across + column, row * h, column * w)
            for row in range(box.y0 // h, -(-box.y1 // h))
            for column in range(box.x0 // w, -(-box.x1 // w))
        ]


class TiffBackend:
    """One TIFF: its index is read once, with one file handle per thread and a cache of decoded tiles."""

    name = "tiffslide"

    def __init__(self, path: Path) -> None:
        try:
            with tiffslide.TiffSlide(path) as slide:
                self._levels, self.facts = _describe(slide)
        except DAMAGED as err:
            reason = str(err).replace(str(path), path.name) or type(err).__name__
            if isinstance(err, IndexError):  # tiffslide requests page 0 of a file with a truncated index
                reason = "its index of pages is missing"
            raise Unsuited(f"cannot be opened ({reason}); the file may be truncated or damaged; copy it again") from err
        self.sizes = tuple(level.size for level in self._levels)
        self._files = PerThread(lambda: RawFile(path))
        self._cache = TileCache()

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `Undecodable`."""
        source = self._levels[level]
        out = np.empty((*box.size, 3), np.uint8)
        whole = Box.of(source.size)
        for index, y, x in source.touching(box):
            part = Box.at(y, x, source.segment) & box & whole
            target = part.shift(-box.y0, -box.x0).slices()
            if source.is_absent(index):
                out[target] = 255
                continue
            tile = self._cache.get((level, index), lambda index=index: self._decode(source, index))
            pixels = tile[part.shift(-y, -x).slices()]
            if pixels.shape != out[target].shape:
                raise Undecodable(f"tile {index} holds {tile.shape[1]} × {tile.shape[0]} px, fewer than it must")
            out[target] = pixels
        return out

    def _decode(self, source: Level, index: int) -> np.ndarray:
        try:
            file = self._files.get()
            parts = [p.decode(file.read(p.offsets[index], p.counts[index]), index) for p in source.planes]
            return source.to_rgb(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2))
        except DAMAGED as err:
            raise Undecodable(f"tile {index}: {err or type(err).__name__}") from err

    def renew(self) -> None:
        """Give the calling thread a fresh handle."""
        self._files.renew()

    def close(self) -> None:
        """Close the handles of all threads."""
        self._files.close()
        self._cache.clear()


class RawFile:
    """Bytes of a file by offset."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes; raises `OSError` if the file ends earlier."""
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(count)
        if data is None or len(data) != count:
            raise OSError(f"the file ends {count - len(data or b'')} bytes too early")
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()  # freed with its thread: an open file would cause a ResourceWarning


def _describe(slide: tiffslide.TiffSlide) -> tuple[tuple[Level, ...], Facts]:
    tiff = slide.ts_tifffile
    stitched = next((kind for kind in STITCHED if getattr(tiff, f"is_{kind}")), None)
    if stitched:
        raise Unsuited(
            f"is a {stitched.upper()} file that OpenSlide does not recognise; the file may be damaged; copy it again"
        )
    properties = slide.properties
    series = tiff.series[properties["tiffslide.series-index"]]
    levels = tuple(_level(level) for level in series.levels)
    mpp, mpp_from = _mpp(tiff, properties)
    page = series.keyframe
    return levels, Facts(
        vendor=str(properties.get("tiffslide.vendor") or "generic"),
        format="OME-TIFF" if tiff.is_ome else "SVS" if tiff.is_svs else "TIFF",
        mpp=mpp,
        mpp_from=mpp_from,
        magnification=number(properties.get("tiffslide.objective-power")) or _ome_magnification(tiff),
        codec=COMPRESSION(page.compression).name,
        icc=page.iccprofile,
        has_gaps=any(0 in plane.counts for level in levels for plane in level.planes),
    )


def _level(series: Any) -> Level:
    page = series.keyframe
    convert = to_rgb(series)
    size = Size(page.imagelength, page.imagewidth)
    segment = Size(page.tilelength, page.tilewidth) if page.is_tiled else Size(min(page.rowsperstrip, size.h), size.w)
    if segment.h * segment.w > MAX_SEGMENT_PX:
        raise Unsuited(
            f"is not tiled ({size.w} × {size.h} px in one piece); convert it to a tiled TIFF, for example with vips"
        )
    parts = planes(series)
    expected = size.ceil_div(segment.h).h * size.ceil_div(segment.w).w
    for part in parts:
        if len(part.offsets) != expected or len(part.counts) != expected:
            raise Unsuited(f"lists {len(part.offsets)} of {expected} tiles; the file may be damaged; copy it again")
    return Level(size, segment, parts, convert)


def _mpp(tiff: TiffFile, properties: Any) -> tuple[tuple[float, float] | None, str]:
    """µm per px along (x, y) and the properties that hold it; OME-XML takes precedence over resolution tags."""
    ome = _ome_pixels(tiff)
    if ome is not None and "PhysicalSizeX" in ome.attrib and "PhysicalSizeY" in ome.attrib:
        values = [_um(ome, axis) for axis in "XY"]
        if None not in values:
            return (values[0], values[1]), "OME PhysicalSizeX and PhysicalSizeY"  # type: ignore[return-value]
    x, y = (number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
    source = "aperio.MPP" if "aperio.MPP" in properties else "tiff.XResolution and tiff.YResolution"
    if tiff.is_svs and x is None:
        source = "aperio.MPP, tiff.XResolution and tiff.YResolution"
    return (None if x is None or y is None else (x, y)), source


def _ome_pixels(tiff: TiffFile) -> ElementTree.Element | None:
    return _ome_find(tiff, ".//{*}Pixels")


def _ome_find(tiff: TiffFile, what: str) -> ElementTree.Element | None:
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    try:
        return ElementTree.fromstring(tiff.ome_metadata).find(what)
    except ElementTree.ParseError:
        return None


def _um(pixels: ElementTree.Element, axis: str) -> float | None:
    value = number(pixels.get(f"PhysicalSize{axis}"))
    factor = UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return None if value is None or factor is None else value * factor


def _ome_magnification(tiff: TiffFile) -> float | None:
    objective = _ome_find(tiff, ".//{*}Objective")
    return None if objective is None else number(objective.get("NominalMagnification"))
