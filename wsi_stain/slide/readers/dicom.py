"""DICOM whole slides: what OpenSlide would show in false colours, and a reader based on wsidicom for those.

Used for series that OpenSlide refuses (YBR_FULL, JPEG-LS, HTJ2K, focal planes) or whose header contradicts their JPEG
frames; other series are read by OpenSlide.
"""

from __future__ import annotations

import logging
import mmap
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.dicom import series_of
from wsi_stain.slide.lengths import number
from wsi_stain.slide.readers.base import DecodedTileCache, DecodeError, SlideMetadata, UnsupportedFormat
from wsi_stain.slide.readers.jpeg import Colours, decode_jpeg, stream_colours
from wsi_stain.slide.readers.jpeg2000_damage import check_jpeg2000
from wsi_stain.slide.readers.select import choose_plane

INSTALL = "pip install 'wsi-stain[dicom]'"
PHOTOMETRIC, OPTICAL_PATHS = 0x00280004, 0x00480105
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
"""Start of encapsulated frames: the tag of PixelData, its type and an undefined length (PS3.5, section A.4)."""
ITEM = b"\xfe\xff\x00\xe0"
JPEG_START = 64 << 10
"""Bytes of a frame that hold its markers."""
MOST_FRAMES = 100
"""Frames looked at for markers: some may be damaged."""
BASELINE = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
RGB = ("RGB", "YBR_RCT", "YBR_ICT")
"""Photometric interpretations whose decoded samples are RGB."""


def false_colours(instance: Path) -> str | None:
    """Why OpenSlide would show a series in false colours: it believes the header, which contradicts a JPEG stream.

    Args:
        instance: one file of the series; the files in its folder are looked at.

    Returns:
        A clause for the user, or `None` if no header contradicts its frames.
    """
    series = series_of(instance)
    for path in series.levels if series else (instance,):
        photometric, inside = str(_value(path, PHOTOMETRIC)), _frames_colours(path)
        if inside == "YCBCR" and photometric == "RGB":
            return f"{path.name} declares RGB, but its JPEG frames are YCbCr"
        if inside == "RGB" and photometric.startswith("YBR"):
            return f"{path.name} declares {photometric}, but its JPEG frames are RGB"
    return None


class DicomBackend:
    """One series through wsidicom, which finds the frames; the frames are decoded here, by what their streams say.

    Args:
        instance: one file of the series.
        z: number of the focal plane, from the lowest; `None` reads the middle one.
    """

    name = "wsidicom"

    def __init__(self, instance: Path, z: int | None = None) -> None:
        wsidicom = _import_wsidicom()
        try:
            series = series_of(instance)
            self._slide = wsidicom.WsiDicom.open(list(series.files) if series else [instance])
        except Exception as err:  # wsidicom and pydicom raise whatever a damaged header leads to
            reason = str(err).replace(f"{instance.parent}/", "") or type(err).__name__
            raise UnsupportedFormat(f"cannot be opened by wsidicom ({reason})") from err
        try:
            pyramid: Any = max(self._slide.pyramids, key=lambda p: p.size.width * p.size.height)
            planes = len(pyramid.base_level.default_instance.image_data.focal_planes)
            plane = choose_plane(instance.name, "Z", (planes,), z)
            self._levels = [_Level(level.default_instance.image_data, plane.index) for level in pyramid.levels]
            self.metadata = replace(_metadata(pyramid.base_level), plane=plane.number, notes=plane.notes)
        except (UnsupportedFormat, SlideError):
            self.close()
            raise
        except Exception as err:
            self.close()
            raise UnsupportedFormat(f"has a DICOM header that cannot be used ({err or type(err).__name__})") from err
        self.sizes = tuple(level.size for level in self._levels)
        self._cache = DecodedTileCache()

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the level; raises `DecodeError`."""
        source = self._levels[level]
        out = np.empty((*box.size, 3), np.uint8)
        h, w = source.tile
        for y in range(box.y0 // h * h, box.y1, h):
            for x in range(box.x0 // w * w, box.x1, w):
                part = Box.at(y, x, source.tile) & box
                tile = self._cache.get((level, y, x), lambda y=y, x=x: source.decode(y, x))
                out[part.shift(-box.y0, -box.x0).slices()] = tile[part.shift(-y, -x).slices()]
        return out

    def renew(self) -> None:
        """Nothing to renew: a failed read leaves the files usable."""

    def close(self) -> None:
        """Close all files of the series."""
        self._slide.close()


class _Level:
    """One level: its grid of frames, in one focal plane."""

    def __init__(self, image: Any, plane: int) -> None:
        from wsidicom.geometry import Point

        if image.samples_per_pixel != 3 or image.bits != 8:
            raise UnsupportedFormat(
                f"has {image.samples_per_pixel} × {image.bits} bits per pixel ({image.photometric_interpretation}), "
                "not 8-bit RGB; fluorescence and single-channel images are not supported, pass a brightfield slide"
            )
        self._image, self._point = image, Point
        # Not image.default_z, which is the highest plane where the offsets lie on both sides of 0.
        self._z = sorted(image.focal_planes)[min(plane, len(image.focal_planes) - 1)]
        self.size = Size(image.image_size.height, image.image_size.width)
        self.tile = Size(image.tile_size.height, image.tile_size.width)
        self._to_rgb = _converter(str(image.transfer_syntax), image.photometric_interpretation, image.decoder.decode)

    def decode(self, y: int, x: int) -> np.ndarray:
        """uint8 (h, w, 3) of the tile whose first pixel is (y, x); white where nothing was scanned."""
        place = self._point(x // self.tile.w, y // self.tile.h)
        where = (place, self._z, self._image.default_path)
        try:
            if self._image.is_sparse(*where):
                return np.full((*self.tile, 3), 255, np.uint8)
            tile = self._to_rgb(self._image.get_encoded_tile(*where))
        except Exception as err:  # the parsers and codecs raise whatever damaged data leads to
            raise DecodeError(f"tile {place.x}, {place.y}: {err or type(err).__name__}") from err
        if tile.shape != (*self.tile, 3):
            raise DecodeError(f"tile {place.x}, {place.y} has the shape {tile.shape}, not {(*self.tile, 3)}")
        return tile


def _converter(syntax: str, photometric: str, decode: Callable[[bytes], np.ndarray]) -> Callable[[bytes], np.ndarray]:
    """Frame to RGB: the stream is believed first, the header where the stream does not tell."""
    if syntax in BASELINE:
        header = "RGB" if photometric == "RGB" else "YCBCR"
        return lambda frame: decode_jpeg(frame, otherwise=header)
    is_ycbcr = photometric == "YBR_FULL" and syntax in JPEG_2000
    if is_ycbcr or photometric in RGB:

        def convert(frame: bytes) -> np.ndarray:
            if syntax in JPEG_2000:
                check_jpeg2000(frame)
            pixels = decode(frame)
            return _from_ycbcr(pixels) if is_ycbcr and not _has_colour_transform(frame) else pixels

        return convert
    raise UnsupportedFormat(f"stores {photometric} pixels, which cannot be converted to RGB; convert it to RGB first")


def _has_colour_transform(frame: bytes) -> bool:
    """Whether a JPEG 2000 codestream is transformed from RGB by its own rules (ISO 15444-1, A.6.1: the COD marker)."""
    at = frame.find(b"\xff\x52")
    return at >= 0 and frame[at + 8 : at + 9] == b"\x01"


def _from_ycbcr(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(pixels[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)


def _import_wsidicom() -> Any:
    try:
        import wsidicom
    except ImportError as err:
        raise UnsupportedFormat(f"needs wsidicom, which is not installed: {INSTALL}") from err
    logging.getLogger("wsidicom").addHandler(logging.NullHandler())
    return wsidicom


def _metadata(base: Any) -> SlideMetadata:
    image = base.default_instance.image_data
    path = next(iter(_value(Path(str(image.files[0])), OPTICAL_PATHS) or ()), None)
    return SlideMetadata(
        vendor="dicom",
        format="DICOM",
        mpp=None if base.pixel_spacing is None else (base.mpp.width, base.mpp.height),
        mpp_from="DICOM PixelSpacing",
        magnification=number(getattr(path, "ObjectiveLensPower", None)),
        codec=str(image.transfer_syntax.name),
        icc=getattr(path, "ICCProfile", None),
    )


def _value(path: Path, tag: int) -> Any:
    """One value of the header; `None` if the file lacks it or is damaged."""
    from pydicom.filereader import read_partial

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break the standard
            return read_partial(file, lambda at, vr, length: int(at) > tag, specific_tags=[tag])[tag].value
    except Exception:  # pydicom raises whatever a damaged file leads to
        return None


def _frames_colours(path: Path) -> Colours | None:
    """What the first JPEG frame that tells it says; `None` if the pixels are not JPEG or no frame tells."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(PIXEL_DATA)
        at = start + len(PIXEL_DATA)
        for _ in range(MOST_FRAMES if start >= 0 else 0):  # the first item is the table of offsets
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            colours = stream_colours(data[at + 8 : at + 8 + min(length, JPEG_START)])
            if colours or data[at : at + 4] != ITEM:
                return colours
            at += 8 + length
    return None
