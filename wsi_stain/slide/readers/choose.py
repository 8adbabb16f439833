"""Chooses the reader of a slide by the file's content; used by `wsi_stain.slide.slide` only.

`tiff` (tiffslide) reads Aperio and generic TIFF four times as fast as OpenSlide; `openslide` reads all other scanner
formats; `image` reads PNG and JPEG.
"""

from __future__ import annotations

from pathlib import Path

import openslide

from wsi_stain.errors import SlideError
from wsi_stain.slide.dicom import only_series
from wsi_stain.slide.readers.base import Backend, Facts, Undecodable, Unsuited
from wsi_stain.slide.readers.image import ImageBackend
from wsi_stain.slide.readers.openslide import OpenSlideBackend

__all__ = ["Backend", "Facts", "Undecodable", "open_backend"]

READS = "Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, Zeiss, DICOM, tiled TIFF, OME-TIFF, PNG and JPEG"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def open_backend(path: Path) -> Backend:
    """The best reader for a file, chosen by its content; a folder is read as a DICOM series.

    Raises:
        SlideError: the file is missing, not a slide, damaged, or not 8-bit RGB.
    """
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
    vendor = openslide.OpenSlide.detect_format(path)
    if magic.startswith(TIFF_MAGIC) and vendor in (None, "aperio", "generic-tiff"):
        return _open_tiff(path, vendor)
    if vendor:
        return _open_vendor(path)
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


def _open_vendor(path: Path) -> Backend:
    try:
        return OpenSlideBackend(path)
    except Unsuited as err:
        hint = "the file may be truncated or damaged; copy it again"
        if "YBR_FULL" in str(err):
            hint = "OpenSlide cannot read DICOM with YBR_FULL JPEG; convert it, for example to OME-TIFF with bfconvert"
        raise SlideError(f"{path.name} cannot be opened ({err}); {hint}") from err


def _open_dicom_folder(path: Path) -> Backend:
    """The one series in a folder, by the largest instance that opens: OpenSlide finds the other levels beside it."""
    errors = []
    for instance in only_series(path).levels:
        try:
            return _open_vendor(instance)
        except SlideError as err:
            errors.append(err)
    raise errors[0]
