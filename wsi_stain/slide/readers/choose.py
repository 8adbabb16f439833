"""Chooses the reader of a slide by the file's content; used by `wsi_stain.slide.slide` only.

`tiff` reads Aperio and generic TIFF four times as fast as OpenSlide; `openslide` reads all other scanner formats;
`dicom` (wsidicom) reads the DICOM series that OpenSlide refuses or would show in false colours; `image` reads PNG and
JPEG.
"""

from __future__ import annotations

import logging
from pathlib import Path

import openslide

from wsi_stain.errors import SlideError, WsiStainError
from wsi_stain.slide.readers.base import Backend, Facts, Undecodable, Unsuited
from wsi_stain.slide.readers.cover import opened_path
from wsi_stain.slide.readers.image import ImageBackend
from wsi_stain.slide.readers.openslide import OpenSlideBackend
from wsi_stain.slide.readers.refusal import refusal

__all__ = ["Backend", "Facts", "Undecodable", "open_backend"]

READS = "Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, Zeiss, DICOM, tiled TIFF, OME-TIFF, PNG and JPEG"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

log = logging.getLogger(__name__)


def open_backend(path: Path) -> Backend:
    """The best reader for a file, chosen by its content; a folder is read as a DICOM series.

    Raises:
        SlideError: the file is missing, not a slide, damaged, or not 8-bit RGB.
    """
    try:
        return _open(path)
    except (WsiStainError, Unsuited):
        raise
    except (
        Exception
    ) as err:  # a damaged file leads parsers and codecs to errors of any kind: `from` keeps it for --debug
        reason = str(err).replace(str(path), path.name) or type(err).__name__
        raise SlideError(
            f"{path.name} cannot be opened ({reason}); the file may be damaged or of a kind that is not supported; "
            "copy it again, or convert it, for example to OME-TIFF with bfconvert"
        ) from err


def _open(path: Path) -> Backend:
    if not path.exists():
        raise SlideError(f"no such file: {path}; check the path")
    if path.is_dir():
        return _open_dicom_folder(path)
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
        return _open_tiff(path, vendor)
    if vendor == "dicom":
        return _open_dicom(path)
    if vendor:
        return _open_vendor(path, vendor)
    if magic.startswith(IMAGE_MAGIC):
        return ImageBackend(path)
    raise SlideError(f"{path.name} has an unsupported format; convert it to one of: {READS}")


def _open_tiff(path: Path, vendor: str | None) -> Backend:
    from wsi_stain.slide.readers.tiff import (
        TiffBackend,  # imports zarr and fsspec (0.5 s), needed for TIFF only
    )

    try:
        tiff = TiffBackend(path)
    except Unsuited as why:
        if vendor is None:
            raise SlideError(f"{path.name} {why}") from why
        try:
            return OpenSlideBackend(path)
        except Unsuited as err:
            raise SlideError(f"{path.name} {why} (OpenSlide: {err})") from why
    other = _better_openslide(path, tiff) if vendor else None
    if other is None:
        return tiff
    tiff.close()
    return other


def _better_openslide(path: Path, tiff: Backend) -> Backend | None:
    """OpenSlide's reader if it finds a different image, more levels, or missing tiles that it can fill; else `None`."""
    try:
        other = OpenSlideBackend(path)
    except Unsuited:
        return None
    if other.sizes[0] != tiff.sizes[0] or len(other.sizes) > len(tiff.sizes) or tiff.facts.has_gaps:
        return other
    other.close()
    return None


def _open_vendor(path: Path, vendor: str) -> Backend:
    try:
        return OpenSlideBackend(path)
    except Unsuited as err:
        raise SlideError(refusal(path.name, vendor, str(err))) from err


def _open_dicom(path: Path) -> Backend:
    """One series: OpenSlide, unless it refuses the series or would show false colours."""
    from wsi_stain.slide.readers.dicom import DicomBackend, false_colours  # imports pydicom

    reason = false_colours(path)
    if reason is None:
        try:
            return OpenSlideBackend(path)
        except Unsuited as err:
            reason = f"OpenSlide cannot read it: {err}"
    log.info("%s: %s; it is read with wsidicom", path.name, reason)
    try:
        return DicomBackend(path)
    except Unsuited as err:
        raise SlideError(f"{path.name} {err} ({reason})") from err


def _open_dicom_folder(path: Path) -> Backend:
    """The series of the largest instance that opens: the other levels are found in the folder."""
    instances = sorted(path.glob("*.dcm"), key=lambda p: (-p.stat().st_size, p.name))
    if not instances:
        raise SlideError(f"{path} is a folder without DICOM instances (*.dcm); pass the slide file")
    errors = []
    for instance in instances:
        try:
            return _open_dicom(instance)
        except SlideError as err:
            errors.append(err)
    raise errors[0]
