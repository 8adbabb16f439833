"""Slides and views of them: any format, one scale, exact coordinates, uint8 sRGB.

    file ── backend ── Slide (levels, µm/px, ICC) ── at(µm/px) ── View.read(box)

Coordinates are (y, x) with the end excluded. A slide with scan bounds (`openslide.bounds-*`) is
cropped to them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ImageCms

from wsi_stain.errors import SlideError, UnreadableRegion
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.icc import apply_colour, srgb_transform
from wsi_stain.slide.pixel_size import check_mpp, exact_downsample, slide_mpp
from wsi_stain.slide.readers import Backend, Undecodable, open_backend
from wsi_stain.slide.resample import Axis, halve, shrink

MAX_GROWTH = Fraction(11, 10)
"""Finest view relative to level 0: upsampling by 10 % does not change model output, more would invent detail."""
PIECE_PX = 1 << 22
"""Source pixels resampled at once: bounds memory (about 100 MB per thread) for any box."""

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
        self._is_closed = False
        self._mpp = mpp
        whole = Box.of(backend.sizes[0])
        bounds = (backend.facts.bounds or whole) & whole
        self._crop = bounds if bounds.area else whole
        self.levels = tuple(
            Level(_cropped(size, downsample, self._crop, whole), downsample)
            for size, downsample in ((size, exact_downsample(backend.sizes[0], size)) for size in backend.sizes)
        )

    @classmethod
    def open(cls, path: Path | str, *, mpp: float | None = None) -> Slide:
        """Open a slide.

        Args:
            path: the slide's file; for DICOM one instance, or the folder of the series.
            mpp: µm per px of level 0, if the file has none or a wrong one.

        Raises:
            SlideError: the file is not a supported slide, or `mpp` is implausible.
        """
        path = Path(path)
        if mpp is not None:
            mpp = float(mpp)
            check_mpp(mpp, "--mpp")
        return cls(path, open_backend(path), mpp=mpp)

    @property
    def backend(self) -> str:
        """Name of the reader: openslide, tiffslide or image."""
        return self._backend.name

    @property
    def size(self) -> Size:
        """Level 0 in px."""
        return self.levels[0].size

    @cached_property
    def mpp(self) -> float:
        """µm per px of level 0.

        Raises:
            SlideError: the slide has no pixel size, or an implausible one.
        """
        return self._mpp if self._mpp is not None else slide_mpp(self._backend.facts, self.path.name)

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
        power = self._backend.facts.magnification
        return power if power is not None and 0.5 <= power <= 200 else None

    @property
    def icc(self) -> str | None:
        """Description of the ICC profile that is applied to get sRGB; `None` if none is applied."""
        return self._colour[1] if self._colour else None

    @cached_property
    def _colour(self) -> tuple[ImageCms.ImageCmsTransform, str] | None:
        profile = self._backend.facts.icc
        return srgb_transform(profile, self.path.name) if profile else None

    @property
    def properties(self) -> dict[str, str]:
        """Technical facts for display; never a label, a date, a name or free text."""
        facts = self._backend.facts
        values: dict[str, Any] = {
            "backend": self.backend,
            "vendor": facts.vendor,
            "format": facts.format,
            "codec": facts.codec,
            "levels": len(self.levels),
            "mpp": self.mpp_or_none,
            "magnification": self.magnification,
            "icc": self.icc,
        }
        if facts.bounds is not None:
            values["bounds"] = f"x {self._crop.x0}, y {self._crop.y0}, {self.size.w} × {self.size.h}"
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
        """The whole slide, its longer side at most `longest` px and never upsampled: uint8 (h, w, 3) sRGB."""
        scale = max(Fraction(max(self.size), longest), Fraction(1))
        view = View(self, _scaled(self.size, scale), None, scale)
        return view.read(Box.of(view.size))

    def close(self) -> None:
        """Close the file; later reads raise `SlideError`."""
        self._is_closed = True
        self._backend.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._mpp)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.backend}, {self.size.w}×{self.size.h})"

    def _best_level(self, scale: Fraction) -> int:
        fitting = [i for i, level in enumerate(self.levels) if level.downsample <= scale]
        return max(fitting, key=lambda i: self.levels[i].downsample, default=0)

    def _axes(self, level: int, scale: Fraction) -> tuple[Axis, Axis]:
        """Maps a view of this scale to a level of the file; levels of the file are not cropped."""
        downsample, size = self.levels[level].downsample, self._backend.sizes[level]
        return _axis(scale, downsample, self._crop.y0, self._crop.y1, size.h), _axis(
            scale, downsample, self._crop.x0, self._crop.x1, size.w
        )

    def _read(self, level: int, box: Box) -> np.ndarray:
        """Pixels of the file; a failed read is retried once on a fresh handle."""
        self._check_open()
        try:
            return self._backend.read(level, box)
        except Undecodable as err:
            log.info("%s: cannot decode %s of level %d (%s); retrying once", self.path.name, box, level, err)
        self._check_open()  # closed by another thread: the file is not damaged
        self._backend.renew()
        try:
            return self._backend.read(level, box)
        except Undecodable as err:
            self._check_open()
            raise UnreadableRegion(
                f"{self.path.name}: x {box.x0}–{box.x1}, y {box.y0}–{box.y1} of level {level} cannot be decoded "
                f"({err}); this part of the file is damaged, the rest can be read",
                box,
                level,
            ) from err

    def _check_open(self) -> None:
        if self._is_closed:
            raise SlideError(f"{self.path.name} is closed; open it again")


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
        pixels = self._resample(inside, level, self.slide._axes(level, self.scale))
        if self.slide._colour:
            pixels = apply_colour(pixels, self.slide._colour[0])
        if inside == box:
            return pixels
        top, left = min(max(0, -box.y0), box.size.h - 1), min(max(0, -box.x0), box.size.w - 1)
        bottom, right = box.size.h - inside.size.h - top, box.size.w - inside.size.w - left
        return cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def _resample(self, box: Box, level: int, axes: tuple[Axis, Axis]) -> np.ndarray:
        """The pixels of a box inside the view; a large source is resampled in pieces."""
        (y0, y1), (x0, x1) = axes[0].source(box.y0, box.y1), axes[1].source(box.x0, box.x1)
        source = Box(y0, x0, y1, x1)
        if source.size == box.size and all(axis.is_plain for axis in axes):  # a level may be smaller than the view
            return self.slide._read(level, source)
        h, w = box.size
        if source.area > PIECE_PX and max(h, w) > 1:
            axis = 0 if h > 1 else 1
            parts = [box._replace(y1=box.y0 + h // 2), box._replace(y0=box.y0 + h // 2)]
            if axis:
                parts = [box._replace(x1=box.x0 + w // 2), box._replace(x0=box.x0 + w // 2)]
            return np.concatenate([self._resample(part, level, axes) for part in parts], axis=axis)
        pixels = self.slide._read(level, source)
        if source.size == Size(2 * h, 2 * w) and all(a.step == 2 and a.offset.denominator == 1 for a in axes):
            return halve(pixels)
        return shrink(pixels, axes[0].weights(box.y0, box.y1), axes[1].weights(box.x0, box.x1))


def _reopen(path: Path, mpp: float | None) -> Slide:
    return Slide.open(path, mpp=mpp)


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
