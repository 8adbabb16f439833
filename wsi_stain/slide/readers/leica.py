"""Leica SCN: the scanned areas of one magnification, each where the file's XML places it on the glass.

    glass  +--------------------------+      bounds: the smallest box around all areas
           |   +---area---+           |      level 0: every area at the nearest whole pixel
           |   |          |  +-area-+ |      level n: its pixels, moved by the exact fraction that is left
           |   +----------+  +------+ |

OpenSlide places the areas of a level at whole pixels of that level, up to a level pixel beside level 0; therefore it is
not used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from tifffile import COMPRESSION, TiffFile

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import number
from wsi_stain.slide.pixel_size import exact_downsample
from wsi_stain.slide.readers.base import SlideMetadata
from wsi_stain.slide.readers.select import choose_plane
from wsi_stain.slide.readers.tiff import Parsed, TiffBackend, TiffLevel, level_of
from wsi_stain.slide.resample import Axis, resampled

WHITE = 255


@dataclass(frozen=True, slots=True)
class Scan:
    """One `image` of the XML: the macro image, or a scanned area. Lengths in nm."""

    number: int
    """Its index among tifffile's series."""
    at: tuple[int, int]
    """(y, x) of its first pixel on the glass."""
    size_nm: tuple[int, int]
    """(h, w) on the glass."""
    size: Size
    """TiffLevel 0 in px."""
    objective: float | None

    @property
    def nm_per_px(self) -> Fraction:
        """Along x, as OpenSlide computes it."""
        return Fraction(self.size_nm[1], self.size.w)

    @property
    def origin(self) -> tuple[int, int]:
        """(y, x) of its first pixel on the glass, in whole level-0 px."""
        y, x = (round(Fraction(nm * n, side)) for nm, n, side in zip(self.at, self.size, self.size_nm, strict=True))
        return y, x


@dataclass(frozen=True, slots=True)
class Area:
    """A scanned area within the bounds."""

    box: Box
    """In level-0 px; its first pixel is relative to the bounds."""
    downsamples: tuple[Fraction, ...]
    sizes: tuple[Size, ...]
    first: int
    """Index of its level 0 among the levels of the file."""


class LeicaBackend:
    """The areas of one magnification as one slide; where nothing was scanned it is white."""

    name = "leica"

    def __init__(self, path: Path, image: int | None = None, z: int | None = None) -> None:
        self._image, self._z = image, z
        self._areas: list[Area] = []
        self._tiles = TiffBackend(path, self._parse)
        self._tiles.bases = tuple(area.first for area in self._areas)
        self.metadata = self._tiles.metadata
        bounds = self.metadata.bounds or Box(0, 0, 1, 1)
        largest = max(self._areas, key=lambda area: area.box.area)
        self._downsamples = largest.downsamples
        self.sizes = tuple(Size(*(ceil(n / step) for n in bounds.size)) for step in self._downsamples)

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        out = np.full((*box.size, 3), WHITE, np.uint8)
        step = self._downsamples[level]
        for area in self._areas:
            part = _covered(area.box, step) & box
            if part.area:
                out[part.shift(-box.y0, -box.x0).slices()] = self._read_area(area, level, step, part)
        return out

    def _read_area(self, area: Area, level: int, step: Fraction, box: Box) -> np.ndarray:
        """Pixels of the level's grid, from one area, by the exact offset between both."""
        axes = _axes(area, level, step)
        if level and not all(axis.is_plain for axis in axes):  # interpolation would blur: average a finer level
            level -= 1
            axes = _axes(area, level, step)
        return resampled(partial(self._tiles.read, area.first + level), axes, box)

    def renew(self) -> None:
        """Give the calling thread a fresh handle."""
        self._tiles.renew()

    def close(self) -> None:
        """Close the handles of all threads."""
        self._tiles.close()

    def _parse(self, tiff: TiffFile) -> Parsed:
        groups = _groups(tiff)
        scans, notes = _choose(tiff.filename, groups, self._image)
        series = [tiff.series[scan.number] for scan in scans]
        depth = min(len(one.levels) for one in series)
        plane = choose_plane(tiff.filename, series[0].axes, series[0].shape, self._z)
        y0, x0 = (min(scan.origin[axis] for scan in scans) for axis in (0, 1))
        levels: list[TiffLevel] = []
        for scan, one in zip(scans, series, strict=True):
            own = [level_of(level, plane.index) for level in one.levels[:depth]]
            sizes = tuple(level.size for level in own)
            box = Box.at(scan.origin[0] - y0, scan.origin[1] - x0, own[0].size)
            steps = tuple(exact_downsample(own[0].size, size) for size in sizes)
            self._areas.append(Area(box, steps, sizes, len(levels)))
            levels += own
        whole = self._areas[0].box
        for area in self._areas:
            whole |= area.box
        keyframe = series[0].keyframe
        um = float(scans[0].nm_per_px) / 1000
        return tuple(levels), SlideMetadata(
            vendor="leica",
            format="SCN",
            mpp=(um, um),
            mpp_from="the sizes of the views",
            magnification=scans[0].objective,
            codec=COMPRESSION(keyframe.compression).name,
            bounds=whole,
            icc=keyframe.iccprofile,
            offset=(x0, y0),
            image=groups.index(scans) if len(groups) > 1 else None,
            plane=plane.number,
            notes=notes + plane.notes,
        )


def _axes(area: Area, level: int, step: Fraction) -> tuple[Axis, Axis]:
    """From a grid with `step` level-0 px per px to the pixels of a level of the area."""
    own, size = area.downsamples[level], area.sizes[level]
    return Axis(step / own, -area.box.y0 / own, 0, size.h), Axis(step / own, -area.box.x0 / own, 0, size.w)


def _covered(area: Box, step: Fraction) -> Box:
    """The level's pixels whose centre is in the area."""
    half = Fraction(1, 2)
    return Box(*(ceil(edge / step - half) for edge in area))


def _groups(tiff: TiffFile) -> list[list[Scan]]:
    """The scanned areas by their magnification, in the file's order; the macro image is left out."""
    root = ElementTree.fromstring(tiff.pages[0].description)  # type: ignore[union-attr]
    groups: dict[tuple[float | None, int], list[Scan]] = {}
    for scan in _scans(root):
        groups.setdefault((scan.objective, round(scan.nm_per_px)), []).append(scan)
    if not groups:
        raise SlideError(f"{tiff.filename} holds only a macro image; pass a scanned slide")
    return list(groups.values())


def _scans(root: ElementTree.Element) -> Iterator[Scan]:
    """Every scanned area; an image that shows the whole glass is the macro."""
    counter = 0
    for collection in root.iterfind("{*}collection"):
        background = (int(collection.get("sizeY", 0)), int(collection.get("sizeX", 0)))
        for image in collection.iterfind("{*}image"):
            view, pixels = image.find("{*}view"), image.find("{*}pixels")
            if view is None or pixels is None or pixels.find("{*}dimension") is None:
                continue
            at = (int(view.get("offsetY", 0)), int(view.get("offsetX", 0)))
            size_nm = (int(view.get("sizeY", 0)), int(view.get("sizeX", 0)))
            first = min(pixels.iterfind("{*}dimension"), key=lambda d: int(d.get("r", 0)))
            size = Size(int(first.get("sizeY", 0)), int(first.get("sizeX", 0)))
            scan = Scan(counter, at, size_nm, size, number(image.findtext(".//{*}objective")))
            counter += 1
            if min(*size, *size_nm) > 0 and (at, size_nm) != ((0, 0), background):
                yield scan


def _choose(name: str, groups: list[list[Scan]], image: int | None) -> tuple[list[Scan], tuple[str, ...]]:
    """The areas to read: those of the image asked for, or of the largest scanned surface in px."""
    if image is not None and not 0 <= image < len(groups):
        raise SlideError(f"{name} has no image {image}; pass --image between 0 and {len(groups) - 1}")
    best = max(groups, key=lambda scans: sum(s.size.h * s.size.w for s in scans)) if image is None else groups[image]
    if len(groups) == 1:
        return best, ()
    listed = ", ".join(
        f"{n} (areas: {len(scans)}, {scans[0].objective or 0:g}×, {float(scans[0].nm_per_px) / 1000:g} µm/px)"
        for n, scans in enumerate(groups)
    )
    number_ = groups.index(best)
    return best, (f"{name} holds {len(groups)} images: {listed}; reading image {number_}, see --image",)
