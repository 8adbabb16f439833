"""Reader based on OpenSlide: vendor formats (Hamamatsu, MIRAX, Leica, Philips, Ventana, DICOM …)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import openslide
from PIL import ImageCms

from wsi_stain.geometry import Box, Size
from wsi_stain.slide.lengths import number
from wsi_stain.slide.readers.base import (
    CACHE_BYTES,
    DecodedTileCache,
    DecodeError,
    PerThread,
    SlideMetadata,
    UnsupportedFormat,
    over_white,
)

CHUNK = 2048
WHOLE = ("aperio", "generic-tiff")
"""Formats whose bounds are merely those of the tiles with data: absent tiles are background, not outside."""
DAMAGED_PROFILE = b"damaged"
"""Stands for an ICC profile that cannot be read; its use is refused with a warning like that of any broken profile."""


class OpenSlideBackend:
    """One file through OpenSlide: one handle per thread (a handle stays broken after an error), one shared cache.

    OpenSlide takes locations in level-0 pixels. If a level's downsample is not an integer (100001 px to 25000 px),
    a level's pixel has no integer location and OpenSlide interpolates: the same pixel would differ between boxes. Such
    levels are read in chunks with fixed origins, so that a pixel keeps its value; its position is off by at most half
    a level-0 pixel.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache = openslide.OpenSlideCache(CACHE_BYTES)
        self._chunks = DecodedTileCache()
        self._handles = PerThread(self._open)
        try:
            handle = self._handles.get()
            self.sizes = tuple(Size(h, w) for w, h in handle.level_dimensions)
            self._downsamples = handle.level_downsamples
            self.metadata = _metadata(handle)
        except (openslide.OpenSlideError, OSError) as err:
            self.close()
            raise UnsupportedFormat(str(err).replace(str(path), path.name)) from err

    def _open(self) -> openslide.OpenSlide:
        handle = openslide.OpenSlide(self._path)
        handle.set_cache(self._cache)
        return handle

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        downsample = self._downsamples[level]
        if downsample == int(downsample):
            return self._read(level, box)
        out = np.empty((*box.size, 3), np.uint8)
        whole = Box.of(self.sizes[level])
        for y in range(box.y0 // CHUNK * CHUNK, box.y1, CHUNK):
            for x in range(box.x0 // CHUNK * CHUNK, box.x1, CHUNK):
                chunk = Box(y, x, y + CHUNK, x + CHUNK) & whole
                pixels = self._chunks.get((level, y, x), lambda chunk=chunk: self._read(level, chunk))
                part = chunk & box
                out[part.shift(-box.y0, -box.x0).slices()] = pixels[part.shift(-y, -x).slices()]
        return out

    def _read(self, level: int, box: Box) -> np.ndarray:
        downsample = self._downsamples[level]
        location = (round(box.x0 * downsample), round(box.y0 * downsample))
        try:
            rgba = np.asarray(self._handles.get().read_region(location, level, (box.size.w, box.size.h)))
        except (openslide.OpenSlideError, OSError) as err:
            raise DecodeError(str(err).replace(str(self._path), self._path.name)) from err
        if rgba[..., 3].min(initial=255) == 255:
            return cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
        return over_white(rgba)

    def renew(self) -> None:
        """Give the calling thread a fresh handle."""
        self._handles.renew()

    def close(self) -> None:
        """Close the handles of all threads."""
        self._handles.close()
        self._chunks.clear()


def _metadata(handle: openslide.OpenSlide) -> SlideMetadata:
    properties = handle.properties
    x, y = number(properties.get("openslide.mpp-x")), number(properties.get("openslide.mpp-y"))
    vendor = properties.get("openslide.vendor", "unknown")
    return SlideMetadata(
        vendor=vendor,
        format=vendor,
        mpp=None if x is None or y is None else (x, y),
        mpp_from="openslide.mpp-x and openslide.mpp-y",
        magnification=number(properties.get("openslide.objective-power")),
        bounds=None if vendor in WHOLE else _bounds(properties),
        icc=_profile(handle),
    )


def _profile(handle: openslide.OpenSlide) -> bytes | None:
    try:
        profile = handle.color_profile
    except (ImageCms.PyCMSError, openslide.OpenSlideError, OSError, ValueError):
        return DAMAGED_PROFILE
    return profile.tobytes() if profile else None


def _bounds(properties: Mapping[str, str]) -> Box | None:
    values = [number(properties.get(f"openslide.bounds-{key}")) for key in ("y", "x", "height", "width")]
    if any(v is None for v in values):
        return None
    y, x, h, w = (int(v) for v in values if v is not None)
    return Box.at(y, x, Size(h, w)) if h > 0 and w > 0 else None
