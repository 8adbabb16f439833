"""Slides and views of them: any format, one scale, exact coordinates, uint8 sRGB.

    file ── backend ── Slide (levels, µm/px, ICC) ── at(µm/px) ── View.read(box)

Coordinates are (y, x) with the end excluded. A slide with scan bounds (`openslide.bounds-*`) is
cropped to them. A slide whose pixels are not square is read as if they were: its level 0 is
resampled along one axis, to the finer of both pixel sizes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from math import ceil, floor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ImageCms

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.icc import apply_colour, srgb_transform
from wsi_stain.slide.level_reader import LevelReader
from wsi_stain.slide.pixel_size import check_mpp, exact_downsample, slide_mpp, square_pixels
from wsi_stain.slide.readers import Backend, open_backend
from wsi_stain.slide.resample import Axis, resampled
from wsi_stain.slide.thumbnail import read_around_damage

MAX_GROWTH = Fraction(11, 10)
"""Finest view relative to level 0: upsampling by 10 % does not change model output, more would invent detail."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a slide's pyramid."""

    size: Size
    downsample: Fraction
    """Level-0 px per px."""


class Slide:
    """A slide, read through the backend that suits the file; thread-safe, pickled by path.

    Memory bound: 64 MiB of decoded tiles, plus the region being read.

        with Slide.open("slide.svs") as slide:
            view = slide.at(0.5)
            pixels = view.read(Box(0, 0, 512, 512))
    """

    def __init__(self, path: Path, backend: Backend, *, mpp: float | None = None) -> None:
        self.path = path
        self._backend = backend
        self._levels_of_file = LevelReader(backend, path.name)
        self._mpp = mpp
        self._choice: tuple[int | None, int | None] = (None, None)
        whole = Box.of(backend.sizes[0])
        bounds = (backend.metadata.bounds or whole) & whole
        self._crop = bounds if bounds.area else whole
        self._downsamples = tuple(exact_downsample(backend.sizes[0], size) for size in backend.sizes)
        self.stretch = (Fraction(1), Fraction(1)) if mpp is not None else square_pixels(backend.metadata)
        """Level-0 px per stored px along (y, x); 1 for square pixels, more along the axis with the longer pixels."""
        self.levels = tuple(
            Level(_cropped(size, downsample, self._crop, whole), downsample * max(self.stretch))
            for size, downsample in zip(backend.sizes, self._downsamples, strict=True)
        )

    @classmethod
    def open(
        cls, path: Path | str, *, mpp: float | None = None, image: int | None = None, z: int | None = None
    ) -> Slide:
        """Open a slide.

        Args:
            path: the slide's file; for DICOM one instance, or the folder of the series.
            mpp: µm per px of level 0, if the file has none or a wrong one.
            image: number of the image, if the file holds several; the largest by default.
            z: number of the focal plane, if the file holds several; the middle one by default.

        Raises:
            SlideError: the file is not a supported slide, has no such image or plane, or `mpp` is implausible.
        """
        path = Path(path)
        if mpp is not None:
            mpp = float(mpp)
            check_mpp(mpp, "--mpp")
        slide = cls(path, open_backend(path, image, z), mpp=mpp)
        slide._choice = (image, z)
        return slide

    @property
    def backend(self) -> str:
        """Name of the reader: openslide, tifffile, leica, zarr, wsidicom, pylibCZIrw or image."""
        return self._backend.name

    @property
    def size(self) -> Size:
        """Level 0 in px; square ones."""
        y, x = self.stretch
        return Size(ceil(self._crop.size.h * y), ceil(self._crop.size.w * x))

    @property
    def stored_size(self) -> Size:
        """Level 0 as the file stores it; differs from `size` if the pixels are not square."""
        return self._crop.size

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """The scanned part, (x, y, w, h) in the file's own level-0 px; `None` if that is all of it."""
        metadata = self._backend.metadata
        if metadata.bounds is None and metadata.offset is None:
            return None
        x, y = metadata.offset or (0, 0)
        return x + self._crop.x0, y + self._crop.y0, self._crop.size.w, self._crop.size.h

    @property
    def image(self) -> int | None:
        """Number of the image that is read, if the file holds several."""
        return self._backend.metadata.image

    @property
    def plane(self) -> int | None:
        """Number of the focal plane that is read, if the file holds several."""
        return self._backend.metadata.plane

    @property
    def notes(self) -> tuple[str, ...]:
        """What was chosen among several images, planes or pixel sizes, in sentences for the user."""
        notes = self._backend.metadata.notes
        if self.stretch != (1, 1) and self._backend.metadata.mpp:
            x, y = self._backend.metadata.mpp
            stored = f"{self.path.name} has pixels of {x:.6g} × {y:.6g} µm"
            notes += (f"{stored}; it is read with square ones of {self.mpp:.6g} µm",)
        return notes

    @cached_property
    def mpp(self) -> float:
        """µm per px of level 0.

        Raises:
            SlideError: the slide has no pixel size, or an implausible one.
        """
        return self._mpp if self._mpp is not None else slide_mpp(self._backend.metadata, self.path.name)

    @property
    def mpp_or_none(self) -> float | None:
        """µm per px of level 0; `None` if it is missing or implausible."""
        try:
            return self.mpp
        except SlideError:
            return None

    @property
    def magnification(self) -> float | None:
        """The objective's nominal power, if the slide has a plausible one (0.5–200)."""
        power = self._backend.metadata.magnification
        return power if power is not None and 0.5 <= power <= 200 else None

    @property
    def icc(self) -> str | None:
        """Description of the ICC profile that is applied to get sRGB; `None` if none is applied."""
        return self._colour[1] if self._colour else None

    @cached_property
    def _colour(self) -> tuple[ImageCms.ImageCmsTransform, str] | None:
        profile = self._backend.metadata.icc
        return srgb_transform(profile, self.path.name) if profile else None

    @property
    def properties(self) -> dict[str, str]:
        """Technical facts for display; never a label, a date, a name or free text."""
        metadata = self._backend.metadata
        values: dict[str, Any] = {
            "backend": self.backend,
            "vendor": metadata.vendor,
            "format": metadata.format,
            "codec": metadata.codec,
            "levels": len(self.levels),
            "mpp": self.mpp_or_none,
            "magnification": self.magnification,
            "icc": self.icc,
        }
        if self.bounds is not None:
            x, y, w, h = self.bounds
            values["bounds"] = f"x {x}, y {y}, {w} × {h}"
        values |= {"image": self.image, "plane": self.plane}
        if self.stretch != (1, 1) and metadata.mpp:
            values["stored pixels"] = f"{metadata.mpp[0]:.6g} × {metadata.mpp[1]:.6g} µm"
        for index, level in enumerate(self.levels):
            values[f"level {index}"] = f"{level.size.w} × {level.size.h}, downsample {float(level.downsample):g}"
        return {key: str(value) for key, value in values.items() if value not in (None, "")}

    def at(self, mpp: float | None, *, allow_upsampling: bool = False) -> View:
        """The slide at one scale; `None` is level 0 unscaled.

        Raises:
            SlideError: the slide's µm/px is unknown, or more than 10 % coarser than requested.
        """
        if mpp is None:
            return View(self, self.size, self.mpp_or_none, Fraction(1))
        mpp = float(mpp)
        check_mpp(mpp, "the requested pixel size")
        scale = Fraction(str(mpp)) / Fraction(str(self.mpp))
        if scale * MAX_GROWTH < 1 and not allow_upsampling:
            raise SlideError(
                f"{self.path.name} has {self.mpp:g} µm/px, more than 10 % coarser than the requested {mpp:g} µm/px; "
                "pass --allow-upsampling to upsample"
            )
        return View(self, _scaled(self.size, scale), mpp, scale)

    def thumbnail(self, longest: int) -> np.ndarray:
        """The whole slide, its longer side at most `longest` px and never upsampled: uint8 (h, w, 3) sRGB.

        What cannot be decoded at any level is white, with a warning.
        """
        return self.thumbnail_and_damage(longest)[0]

    def thumbnail_and_damage(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The thumbnail, and where it is white because nothing can be decoded: bool (h, w)."""
        scale = max(Fraction(max(self.size), longest), Fraction(1))
        view = View(self, _scaled(self.size, scale), None, scale)
        pixels, lost = view.read_and_damage(Box.of(view.size))
        if lost.any():
            share, name = 100 * lost.mean(), self.path.name
            shown = f"{share:.2g}" if share < 99 else f"{share:.0f}"
            log.warning("%s: %s %% of the slide cannot be decoded; the overview shows it white", name, shown)
        return pixels, lost

    def close(self) -> None:
        """Close the file; later reads raise `SlideError`."""
        self._levels_of_file.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._mpp, *self._choice)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.backend}, {self.size.w}×{self.size.h})"

    def _best_level(self, scale: Fraction) -> int:
        fitting = [i for i, level in enumerate(self.levels) if level.downsample <= scale]
        return max(fitting, key=lambda i: self.levels[i].downsample, default=0)

    def _axes(self, level: int, scale: Fraction) -> tuple[Axis, Axis]:
        """Maps a view of this scale to a level of the file; levels of the file are not cropped."""
        downsample, size, (y, x) = self._downsamples[level], self._backend.sizes[level], self.stretch
        return _axis(scale / y, downsample, self._crop.y0, self._crop.y1, size.h), _axis(
            scale / x, downsample, self._crop.x0, self._crop.x1, size.w
        )


@dataclass(frozen=True, slots=True)
class View:
    """A slide at one scale.

    Invariant: a pixel has the same value in every box that contains it.
    """

    slide: Slide
    size: Size
    mpp: float | None
    """µm per px; `None` if the slide has no pixel size."""
    scale: Fraction
    """Level-0 px per view px, exact."""

    def read(self, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) sRGB of a box; outside the slide, border pixels are replicated.

        Raises:
            UnreadableRegion: part of the box cannot be decoded.
        """
        if not box.area:
            return np.empty((*box.size, 3), np.uint8)
        inside = _nearest(box, self.size)
        level = self.slide._best_level(self.scale)
        pixels = self._read_level(level, inside)
        if inside == box:
            return pixels
        top, left = min(max(0, -box.y0), box.size.h - 1), min(max(0, -box.x0), box.size.w - 1)
        bottom, right = box.size.h - inside.size.h - top, box.size.w - inside.size.w - left
        return cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def read_and_damage(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """A box for display: finer levels stand in for what cannot be decoded.

        Returns:
            uint8 (h, w, 3) sRGB, white where no level can be decoded; and where that is, bool (h, w).
        """
        try:
            return self.read(box), np.zeros(box.size, bool)
        except UnreadableRegion:
            inside, level = box & Box.of(self.size), self.slide._best_level(self.scale)
            pixels, lost = np.full((*box.size, 3), 255, np.uint8), np.zeros(box.size, bool)
            at = inside.shift(-box.y0, -box.x0).slices()
            pixels[at], lost[at] = read_around_damage(
                lambda n, part: self._read_level(n, part.shift(inside.y0, inside.x0)), level, inside.size
            )
            return pixels, lost

    def _read_level(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) sRGB of a box inside the view, from one level of the file."""
        pixels = resampled(partial(self.slide._levels_of_file.read, level), self.slide._axes(level, self.scale), box)
        return apply_colour(pixels, self.slide._colour[0]) if self.slide._colour else pixels


def _reopen(path: Path, mpp: float | None, image: int | None, z: int | None) -> Slide:
    return Slide.open(path, mpp=mpp, image=image, z=z)


def _cropped(size: Size, downsample: Fraction, crop: Box, whole: Box) -> Size:
    """A level's size within the scan bounds."""
    return size if crop == whole else _scaled(crop.size, downsample)


def _scaled(size: Size, scale: Fraction) -> Size:
    return Size(ceil(size.h / scale), ceil(size.w / scale))


def _axis(scale: Fraction, downsample: Fraction, start: int, stop: int, length: int) -> Axis:
    first = min(floor(start / downsample), length - 1)
    last = max(min(ceil(stop / downsample), length), first + 1)
    return Axis(scale / downsample, start / downsample, first, last)


def _nearest(box: Box, size: Size) -> Box:
    """The box of view pixels needed for `box`, if pixels outside the view replicate the nearest one inside."""
    y0, x0 = min(max(box.y0, 0), size.h - 1), min(max(box.x0, 0), size.w - 1)
    return Box(y0, x0, max(min(box.y1, size.h), y0 + 1), max(min(box.x1, size.w), x0 + 1))
