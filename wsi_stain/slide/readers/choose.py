"""Chooses the reader of a slide by the file's content; used by `wsi_stain.slide.slide` only.

`tiff` (tifffile) reads Aperio and generic TIFF four times as fast as OpenSlide; `leica` places the areas of an SCN
exactly; `zarr` reads OME-Zarr; `openslide` reads all other scanner formats; `dicom` (wsidicom) reads the DICOM series
that OpenSlide refuses or would show in false colours; `czi` (pylibCZIrw) the CZI files that it refuses; `image` reads
PNG and JPEG.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import openslide

from wsi_stain.errors import SlideError, WsiStainError
from wsi_stain.geometry import Box
from wsi_stain.slide.dicom import only_series
from wsi_stain.slide.files import is_zarr
from wsi_stain.slide.readers.absent import check_absent
from wsi_stain.slide.readers.base import Backend, UnsupportedFormat
from wsi_stain.slide.readers.cover import opened_path
from wsi_stain.slide.readers.image import ImageBackend
from wsi_stain.slide.readers.openslide import OpenSlideBackend
from wsi_stain.slide.readers.refusal import CONVERT, is_damage, refusal
from wsi_stain.slide.readers.turned import turned

if TYPE_CHECKING:
    from wsi_stain.slide.readers.tiff import TiffBackend

__all__ = ["open_backend"]

READS = "Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, Zeiss, DICOM, tiled TIFF, OME-TIFF, OME-Zarr, PNG and JPEG"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
OPTIONS = {"image": "image", "z": "focal plane"}
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

log = logging.getLogger(__name__)


def open_backend(path: Path, image: int | None = None, z: int | None = None) -> Backend:
    """The best reader for a file, chosen by its content; a folder is read as OME-Zarr or as a DICOM series.

    Args:
        path: the slide's file or folder.
        image: number of the image, in a file that holds several; `None` reads the largest.
        z: number of the focal plane, in a file that holds several; `None` reads the middle one.

    Raises:
        SlideError: the file is missing, not a slide, damaged, or not 8-bit RGB, or has no such image or plane.
    """
    try:
        backend = _open(path, image, z)
    except (WsiStainError, UnsupportedFormat, ImportError):  # a library that is missing is not damage
        raise
    except Exception as err:  # a damaged file leads parsers and codecs to errors of any kind
        reason = str(err).replace(str(path), path.name) or type(err).__name__
        raise SlideError(
            f"{path.name} cannot be opened ({reason}); the file may be damaged or of a kind that is not supported; "
            "copy it again, or convert it, for example to OME-TIFF with bfconvert"
        ) from err
    if not all(size.h > 0 and size.w > 0 for size in backend.sizes):
        backend.close()
        raise SlideError(f"{path.name} has a level without pixels; the file is damaged; copy it again")
    for option, chosen, number in (("image", backend.metadata.image, image), ("z", backend.metadata.plane, z)):
        if number and chosen != number:
            backend.close()
            raise SlideError(f"{path.name} has one {OPTIONS[option]} that can be read; omit --{option}")
    return backend


def _open(path: Path, image: int | None, z: int | None) -> Backend:
    if not path.exists():
        raise SlideError(f"no such file: {path}; check the path")
    if path.is_dir():
        return _open_zarr(path, image, z) if is_zarr(path) else _open_dicom_folder(path, z)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as err:
        raise SlideError(f"cannot read {path}: {err.strerror}; check its permissions") from err
    if not magic:
        raise SlideError(f"{path.name} is empty (0 bytes); copy it again")
    path = opened_path(path)
    vendor = openslide.OpenSlide.detect_format(path)
    if magic.startswith(TIFF_MAGIC) and vendor in (None, "aperio", "generic-tiff"):
        return _open_tiff(path, vendor, image, z)
    if vendor == "leica":
        return _open_leica(path, image, z)
    if vendor == "dicom":
        return _open_dicom(path, z)
    if vendor == "zeiss":
        return _open_czi(path, z)
    if vendor:
        return _open_vendor(path, vendor)
    if magic.startswith(IMAGE_MAGIC):
        return ImageBackend(path)
    raise SlideError(f"{path.name} has an unsupported format; convert it to one of: {READS}")


def _open_zarr(path: Path, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.zarr import ZarrBackend

    try:
        return ZarrBackend(path, image, z)
    except UnsupportedFormat as why:
        raise SlideError(f"{path.name} {why}") from why


def _open_leica(path: Path, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.leica import LeicaBackend

    try:
        return LeicaBackend(path, image, z)
    except UnsupportedFormat as why:
        raise SlideError(f"{path.name} {why}") from why


def _open_tiff(path: Path, vendor: str | None, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.tiff import TiffBackend, missed_by_openslide, parse_tiff

    backend: Backend
    try:
        backend = TiffBackend(path, partial(parse_tiff, image=image, z=z))
        if vendor and not backend.metadata.notes:  # OpenSlide reads the first image and plane
            backend = _better(path, backend)
    except UnsupportedFormat as why:
        if vendor is None:
            raise SlideError(f"{path.name} {why}") from why
        try:
            backend = OpenSlideBackend(path)
        except UnsupportedFormat as err:
            raise SlideError(f"{path.name} {why} (OpenSlide: {err})") from why
        backend.metadata = replace(backend.metadata, **missed_by_openslide(path, backend.metadata))
    check_absent(backend.metadata.absent, path.name)
    return turned(backend, backend.metadata.orientation, path.name)


def _better(path: Path, tiff: TiffBackend) -> Backend:
    """OpenSlide's reader if it finds a larger image or more levels.

    OpenSlide does not know what OME-XML states: of an OME-TIFF it can take the macro for the slide.
    """
    try:
        other = OpenSlideBackend(path)
    except UnsupportedFormat:
        return tiff
    ours, theirs = tiff.metadata, other.metadata
    theirs = replace(theirs, orientation=ours.orientation, absent=ours.absent)
    if ours.mpp_from.startswith("OME") or theirs.mpp is None:
        theirs = replace(theirs, mpp=ours.mpp, mpp_from=ours.mpp_from)
    else:
        tiff.metadata = replace(ours, mpp=theirs.mpp)
    other.metadata = theirs
    here, there = (Box.of(backend.sizes[0]).area for backend in (tiff, other))
    if other.sizes[0] == tiff.sizes[0]:
        better = len(other.sizes) > len(tiff.sizes)
    else:
        better = there > here and ours.format != "OME-TIFF"
    (tiff if better else other).close()
    return other if better else tiff


def _open_vendor(path: Path, vendor: str) -> Backend:
    try:
        return OpenSlideBackend(path)
    except UnsupportedFormat as err:
        raise SlideError(refusal(path.name, vendor, str(err))) from err


def _open_czi(path: Path, z: int | None) -> Backend:
    """OpenSlide, unless it refuses the file."""
    from wsi_stain.slide.readers.czi import CziBackend

    try:
        return OpenSlideBackend(path)
    except UnsupportedFormat as err:
        reason = str(err)
    if is_damage(reason):
        raise SlideError(refusal(path.name, "zeiss", reason))
    log.info("%s: OpenSlide cannot read it: %s; it is read with pylibCZIrw", path.name, reason)
    try:
        return CziBackend(path, z)
    except UnsupportedFormat as err:
        raise SlideError(f"{path.name} {err} (OpenSlide cannot read it: {reason}); or {CONVERT}") from err


def _open_dicom(path: Path, z: int | None) -> Backend:
    """One series: OpenSlide, unless it refuses the series or would show false colours."""
    from wsi_stain.slide.readers.dicom import DicomBackend, false_colours

    reason = false_colours(path)
    if reason is None:
        try:
            return OpenSlideBackend(path)
        except UnsupportedFormat as err:
            reason = f"OpenSlide cannot read it: {err}"
    log.info("%s: %s; it is read with wsidicom", path.name, reason)
    try:
        return DicomBackend(path, z)
    except UnsupportedFormat as err:
        raise SlideError(f"{path.name} {err} ({reason})") from err


def _open_dicom_folder(path: Path, z: int | None) -> Backend:
    """The one series in a folder, by the largest instance that opens: the reader finds the other levels beside it."""
    errors = []
    for instance in only_series(path).levels:
        try:
            return _open_dicom(instance, z)
        except SlideError as err:
            errors.append(err)
    raise errors[0]
