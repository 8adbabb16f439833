"""Aperio and generic TIFF: tifffile parses the metadata, and tiles are decoded one by one into the region.

Reading through tifffile's Zarr view takes four times as long. Files that need more than placing tiles next to each
other (overlaps, separate colour planes, vendor formats) raise `UnsupportedFormat` and are read by OpenSlide.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from tifffile import COMPRESSION, TiffFile, TiffFileError

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import number
from wsi_stain.slide.pixel_size import exact_downsample
from wsi_stain.slide.readers.base import DecodedTileCache, DecodeError, PerThread, SlideMetadata, UnsupportedFormat
from wsi_stain.slide.readers.tiff_images import Choice, choose
from wsi_stain.slide.readers.tiff_samples import SamplePlane, planes, to_rgb
from wsi_stain.slide.readers.tiff_scale import tiff_magnification, tiff_mpp
from wsi_stain.slide.readers.turned import TAG
from wsi_stain.slide.resample import Axis, resampled

# Our errors include tifffile's messages on damaged files; without a handler Python would also print them.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

DAMAGED = (TiffFileError, OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AssertionError)
"""Exceptions that tifffile and the codecs raise on broken input."""
MAX_SEGMENT_PX = 1 << 26
MOST_LOST = 0.5
"""Largest share of level 0 that may lie beyond the end of the file; of less, each tile counts as unreadable."""
STITCHED = ("philips", "ndpi", "scn", "bif")


@dataclass(frozen=True, slots=True)
class TiffLevel:
    """One level as a grid of segments: tiles, or strips as wide as the image."""

    size: Size
    segment: Size
    planes: tuple[SamplePlane, ...]
    """One of interleaved colours, or one of each colour."""
    to_rgb: Callable[[np.ndarray], np.ndarray]

    def is_absent(self, index: int) -> bool:
        """Whether the file deliberately holds no data for a segment."""
        return not any(plane.counts[index] for plane in self.planes)

    @property
    def absent(self) -> float:
        """Share of the segments without data."""
        n = len(self.planes[0].counts)
        return sum(map(self.is_absent, range(n))) / n

    def beyond(self, file_bytes: int) -> float:
        """Share of the tiles whose data lie beyond the end of a file of so many bytes, 0–1."""
        ends = [end for p in self.planes for end in map(sum, zip(p.offsets, p.counts, strict=False))]
        return sum(end > file_bytes for end in ends) / max(1, len(ends))

    def touching(self, box: Box) -> list[tuple[int, int, int]]:
        """(index, y0, x0) of every segment that touches the box."""
        across = self.size.ceil_div(self.segment.w).w
        h, w = self.segment
        return [
            (row * across + column, row * h, column * w)
            for row in range(box.y0 // h, -(-box.y1 // h))
            for column in range(box.x0 // w, -(-box.x1 // w))
        ]


Parsed = tuple[tuple[TiffLevel, ...], SlideMetadata]
"""What is known of a file before its tiles are decoded."""


class TiffBackend:
    """One TIFF: its index is read once, with one file handle per thread and a cache of decoded tiles."""

    name = "tifffile"

    def __init__(self, path: Path, parse: Callable[[TiffFile], Parsed] | None = None) -> None:
        try:
            with TiffFile(path) as tiff:
                if not len(tiff.pages):
                    raise IndexError("its index of pages is missing")
                self._levels, self.metadata = (parse or parse_tiff)(tiff)
        except DAMAGED as err:
            reason = str(err).replace(str(path), path.name) or type(err).__name__
            raise UnsupportedFormat(
                f"cannot be opened ({reason}); the file may be truncated or damaged; copy it again"
            ) from err
        lost = self._levels[0].beyond(path.stat().st_size)
        if lost > MOST_LOST:
            # Not UnsupportedFormat: OpenSlide would read such a file, and show what is lost as background.
            raise SlideError(
                f"{path.name} is cut off: {lost:.0%} of level 0 is beyond the end of the file; copy it again"
            )
        self.sizes = tuple(level.size for level in self._levels)
        self.bases: tuple[int, ...] = (0,)
        """Indices of the levels that begin a pyramid, ascending: they have no finer level."""
        self._files = PerThread(lambda: RawFile(path))
        self._cache = DecodedTileCache()
        self._failed: dict[tuple[int, int], list[bytes]] = {}
        """The last tile that could not be decoded, and its bytes; the same bytes read again are damage."""
        self._damaged: dict[tuple[int, int], str] = {}
        """Tiles that are not decoded again, and why: a large one would be, for every part of a picture."""

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        source = self._levels[level]
        out = np.empty((*box.size, 3), np.uint8)
        whole = Box.of(source.size)
        for index, y, x in source.touching(box):
            part = Box.at(y, x, source.segment) & box & whole
            target = part.shift(-box.y0, -box.x0).slices()
            if source.is_absent(index) and level in self.bases:
                out[target] = 255
                continue
            make = partial(self._decode, source, level, index)
            if source.is_absent(index):
                make = partial(self._from_finer, level, Box.at(y, x, source.segment) & whole)
            tile = self._cache.get((level, index), make)
            pixels = tile[part.shift(-y, -x).slices()]
            if pixels.shape != out[target].shape:
                raise DecodeError(f"tile {index} holds {tile.shape[1]} × {tile.shape[0]} px, fewer than it must")
            out[target] = pixels
        return out

    def _decode(self, source: TiffLevel, level: int, index: int) -> np.ndarray:
        if (level, index) in self._damaged:
            raise DecodeError(self._damaged[level, index])
        try:
            file = self._files.get()
            data = [file.read(p.offsets[index], p.counts[index]) for p in source.planes]
        except DAMAGED as err:  # may pass, unlike damage
            raise DecodeError(f"tile {index}: {err or type(err).__name__}") from err
        try:
            parts = [p.decode(stored, index) for p, stored in zip(source.planes, data, strict=True)]
            return source.to_rgb(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2))
        except DAMAGED as err:
            reason = f"tile {index}: {err or type(err).__name__}"
            if self._failed.get((level, index)) == data:
                self._damaged[level, index] = reason
            self._failed = {(level, index): data}
            raise DecodeError(reason) from err

    def _from_finer(self, level: int, box: Box) -> np.ndarray:
        """A box of a level from the next finer one: a hole above level 0 must not hide what was scanned."""
        base = max(n for n in self.bases if n <= level)
        fine, coarse = (exact_downsample(self.sizes[base], self.sizes[n]) for n in (level - 1, level))
        y, x = (Axis(coarse / fine, Fraction(0), 0, length) for length in self.sizes[level - 1])
        return resampled(partial(self.read, level - 1), (y, x), box)

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
        raise UnsupportedFormat(
            f"is a {stitched.upper()} file that OpenSlide does not recognise; the file may be damaged; copy it again"
        )
    choice = choose(tiff, image, z)
    series = choice.image.series
    levels = tuple(level_of(level, choice.plane.index) for level in series.levels)
    return levels, _metadata(tiff, choice, absent=levels[0].absent)


def missed_by_openslide(path: Path, metadata: SlideMetadata) -> dict[str, Any]:
    """What OpenSlide does not read of a TIFF: its orientation, and the µm/px that OME-XML or ImageJ gives.

    Raises:
        SlideError: OpenSlide would read another image or plane than the one to be read.
    """
    try:
        with TiffFile(path) as tiff:
            choice = choose(tiff, None, None)
            if choice.notes:
                raise SlideError(f"{choice.notes[0]}; convert that one to interleaved RGB first")
            page = choice.image.series.keyframe
            mpp, mpp_from = tiff_mpp(choice.image, page)
            missed = {"orientation": page.tags.valueof(TAG, default=1)}
    except DAMAGED:
        return {}
    is_known = mpp is None or (mpp_from[:3] != "OME" and metadata.mpp is not None)
    return missed if is_known else {**missed, "mpp": mpp, "mpp_from": mpp_from}


def _metadata(tiff: TiffFile, choice: Choice, *, absent: float) -> SlideMetadata:
    page = choice.image.series.keyframe
    mpp, mpp_from = tiff_mpp(choice.image, page)
    return SlideMetadata(
        vendor="aperio" if tiff.is_svs else "generic",
        format="OME-TIFF" if tiff.is_ome else "SVS" if tiff.is_svs else "TIFF",
        mpp=mpp,
        mpp_from=mpp_from,
        magnification=tiff_magnification(choice.image, _objectives(tiff), page),
        codec=COMPRESSION(page.compression).name,
        icc=page.iccprofile,
        absent=absent,
        orientation=page.tags.valueof(TAG, default=1),
        image=choice.image.what.number if choice.is_one_of_many else None,
        plane=choice.plane.number,
        notes=choice.notes,
    )


def level_of(series: Any, plane: int = 0) -> TiffLevel:
    """One level of an image: the tiles of the page that holds a plane of it."""
    page = series.keyframe
    convert = to_rgb(series)
    size = Size(page.imagelength, page.imagewidth)
    segment = Size(page.tilelength, page.tilewidth) if page.is_tiled else Size(min(page.rowsperstrip, size.h), size.w)
    if segment.h * segment.w > MAX_SEGMENT_PX:
        raise UnsupportedFormat(
            f"is not tiled ({size.w} × {size.h} px in one piece); convert it to a tiled TIFF, for example with vips"
        )
    parts = planes(series, plane)
    expected = size.ceil_div(segment.h).h * size.ceil_div(segment.w).w
    for part in parts:
        if len(part.offsets) != expected or len(part.counts) != expected:
            raise UnsupportedFormat(
                f"lists {len(part.offsets)} of {expected} tiles; the file may be damaged; copy it again"
            )
    return TiffLevel(size, segment, parts, convert)


def _objectives(tiff: TiffFile) -> dict[str, float]:
    """Nominal magnifications in OME-XML by the objective's ID."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return {}
    try:
        objectives = ElementTree.fromstring(tiff.ome_metadata).findall(".//{*}Objective")
    except ElementTree.ParseError:
        return {}
    powers = {o.get("ID", ""): number(o.get("NominalMagnification")) for o in objectives}
    return {key: power for key, power in powers.items() if power is not None}
