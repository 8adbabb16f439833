"""Aperio and generic TIFF: tifffile parses the metadata, and tiles are decoded one by one into the region.

Reading through tifffile's Zarr view takes four times as long. Files that need more than placing tiles next to each
other (overlaps, separate colour planes, vendor formats) raise `Unsuited` and are read by OpenSlide.
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
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffFileError

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import number
from wsi_stain.slide.readers.base import Facts, PerThread, TileCache, Undecodable, Unsuited, over_white
from wsi_stain.slide.readers.tiff_images import Choice, choose
from wsi_stain.slide.readers.tiff_scale import tiff_magnification, tiff_mpp

# Our errors include tifffile's messages on damaged files; without a handler Python would also print them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

DAMAGED = (TiffFileError, OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AssertionError)
"""Exceptions that tifffile and the codecs raise on broken input."""
MAX_SEGMENT_PX = 1 << 26
STITCHED = ("philips", "ndpi", "scn", "bif")
RGB_CODECS = (COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.WEBP)
"""Codecs that decode to RGB for any photometric interpretation in the file."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level as a grid of segments: tiles, or strips as wide as the image."""

    size: Size
    segment: Size
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Any
    jpegtables: bytes | None

    def touching(self, box: Box) -> list[tuple[int, int, int]]:
        """(index, y0, x0) of every segment that touches the box."""
        across = self.size.ceil_div(self.segment.w).w
        h, w = self.segment
        return [
            (row * across + column, row * h, column * w)
            for row in range(box.y0 // h, -(-box.y1 // h))
            for column in range(box.x0 // w, -(-box.x1 // w))
        ]


Parsed = tuple[tuple[Level, ...], Facts]
"""What is known of a file before its tiles are decoded."""


class TiffBackend:
    """One TIFF: its index is read once, with one file handle per thread and a cache of decoded tiles."""

    name = "tifffile"

    def __init__(self, path: Path, parse: Callable[[TiffFile], Parsed] | None = None) -> None:
        try:
            with TiffFile(path) as tiff:
                if not len(tiff.pages):
                    raise IndexError("its index of pages is missing")
                self._levels, self.facts = (parse or parse_tiff)(tiff)
        except DAMAGED as err:
            reason = str(err).replace(str(path), path.name) or type(err).__name__
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
            if not source.counts[index]:
                out[target] = 255
                continue
            tile = self._cache.get((level, index), lambda index=index: self._decode(source, index))
            out[target] = tile[part.shift(-y, -x).slices()]
        return out

    def _decode(self, source: Level, index: int) -> np.ndarray:
        try:
            data = self._files.get().read(source.offsets[index], source.counts[index])
            tile = source.decode(data, index, jpegtables=source.jpegtables)[0][0]
        except DAMAGED as err:
            raise Undecodable(f"tile {index}: {err or type(err).__name__}") from err
        return over_white(tile) if tile.shape[2] == 4 else tile

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


def parse_tiff(tiff: TiffFile, image: int | None = None, z: int | None = None) -> Parsed:
    """The levels and the facts of one image of a file, in one plane."""
    stitched = next((kind for kind in STITCHED if getattr(tiff, f"is_{kind}")), None)
    if stitched:
        raise Unsuited(
            f"is a {stitched.upper()} file that OpenSlide does not recognise; the file may be damaged; copy it again"
        )
    choice = choose(tiff, image, z)
    series = choice.image.series
    levels = tuple(level_of(level, choice.plane.index) for level in series.levels)
    return levels, _facts(tiff, choice, has_gaps=any(0 in level.counts for level in levels))


def scale_of_tiff(path: Path, facts: Facts) -> dict[str, Any]:
    """The µm/px that OME-XML or ImageJ gives, for a TIFF that OpenSlide reads without knowing them; else nothing.

    Raises:
        SlideError: OpenSlide would read another image or plane than the one to be read.
    """
    try:
        with TiffFile(path) as tiff:
            choice = choose(tiff, None, None)
            if choice.notes:
                raise SlideError(f"{choice.notes[0]}; convert that one to interleaved RGB first")
            mpp, mpp_from = tiff_mpp(choice.image, choice.image.series.keyframe)
    except DAMAGED:
        return {}
    return {"mpp": mpp, "mpp_from": mpp_from} if mpp and (mpp_from[:3] == "OME" or facts.mpp is None) else {}


def _facts(tiff: TiffFile, choice: Choice, *, has_gaps: bool) -> Facts:
    page = choice.image.series.keyframe
    mpp, mpp_from = tiff_mpp(choice.image, page)
    return Facts(
        vendor="aperio" if tiff.is_svs else "generic",
        format="OME-TIFF" if tiff.is_ome else "SVS" if tiff.is_svs else "TIFF",
        mpp=mpp,
        mpp_from=mpp_from,
        magnification=tiff_magnification(choice.image, _objectives(tiff), page),
        codec=COMPRESSION(page.compression).name,
        icc=page.iccprofile,
        has_gaps=has_gaps,
        image=choice.image.what.number if choice.is_one_of_many else None,
        plane=choice.plane.number,
        notes=choice.notes,
    )


def level_of(series: Any, plane: int = 0) -> Level:
    """One level of an image: the tiles of the page that holds a plane of it."""
    page = series.keyframe
    _check_pixels(series)
    size = Size(page.imagelength, page.imagewidth)
    segment = Size(page.tilelength, page.tilewidth) if page.is_tiled else Size(min(page.rowsperstrip, size.h), size.w)
    if segment.h * segment.w > MAX_SEGMENT_PX:
        raise Unsuited(
            f"is not tiled ({size.w} × {size.h} px in one piece); convert it to a tiled TIFF, for example with vips"
        )
    data = series[plane] if plane < len(series) else None
    if data is None or data.parent is not series.parent:
        raise SlideError(f"{series.parent.filename} keeps these pixels in another file; pass the file that holds them")
    expected = size.ceil_div(segment.h).h * size.ceil_div(segment.w).w
    if len(data.dataoffsets) != expected or len(data.databytecounts) != expected:
        raise Unsuited(f"lists {len(data.dataoffsets)} of {expected} tiles; the file may be damaged; copy it again")
    return Level(size, segment, tuple(data.dataoffsets), tuple(data.databytecounts), page.decode, page.jpegtables)


def _check_pixels(series: Any) -> None:
    """Raise `SlideError` if the file is not a brightfield slide, `Unsuited` if only this reader cannot read it."""
    page = series.keyframe
    colours = page.samplesperpixel if page.photometric != PHOTOMETRIC.MINISBLACK else 1
    planes = dict(zip(series.axes, series.shape, strict=True))
    if colours not in (3, 4) or planes.get("C", 1) != 1:
        shape = "×".join(str(n) for n in series.shape)
        raise SlideError(
            f"{series.parent.filename} has {shape} ({series.axes}) values, not RGB pixels; "
            "fluorescence and single-channel images are not supported, pass a brightfield slide"
        )
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise SlideError(
            f"{series.parent.filename} has {page.bitspersample} bits per sample ({page.dtype}); "
            "it must be 8-bit RGB; convert it first"
        )
    if not series.axes.endswith("YXS") or page.planarconfig != PLANARCONFIG.CONTIG:
        raise Unsuited(f"stores its colours in separate planes ({series.axes}); convert it to interleaved RGB first")
    if page.photometric != PHOTOMETRIC.RGB and page.compression not in RGB_CODECS:
        name, codec = PHOTOMETRIC(page.photometric).name, COMPRESSION(page.compression).name
        raise Unsuited(f"stores {name} as {codec}, which has no conversion to RGB; convert it to RGB or JPEG first")


def _objectives(tiff: TiffFile) -> dict[str, float]:
    """Nominal magnifications in OME-XML by the objective's ID."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return {}
    try:
        found = ElementTree.fromstring(tiff.ome_metadata).findall(".//{*}Objective")
    except ElementTree.ParseError:
        return {}
    powers = {o.get("ID", ""): number(o.get("NominalMagnification")) for o in found}
    return {key: power for key, power in powers.items() if power is not None}
