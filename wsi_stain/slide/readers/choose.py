"""Chooses the reader of a slide by the file's content; used by `wsi_stain.slide.slide` only.

`tiff` (tifffile) reads Aperio and generic TIFF four times as fast as OpenSlide; `leica` places the areas of an SCN
exactly; `zarr` reads OME-Zarr; `openslide` reads all other scanner formats; `image` reads PNG and JPEG.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import openslide

from wsi_stain.errors import SlideError
from wsi_stain.slide.readers.base import Backend, Facts, Undecodable, Unsuited
from wsi_stain.slide.readers.image import ImageBackend
from wsi_stain.slide.readers.openslide import OpenSlideBackend

if TYPE_CHECKING:
    from wsi_stain.slide.readers.tiff import TiffBackend

__all__ = ["Backend", "Facts", "Undecodable", "open_backend"]

READS = "Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, Zeiss, DICOM, tiled TIFF, OME-TIFF, OME-Zarr, PNG and JPEG"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ZARR_MARKERS = ("zarr.json", ".zattrs", ".zgroup")
OPTIONS = {"image": "image", "z": "focal plane"}
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def open_backend(path: Path, image: int | None = None, z: int | None = None) -> Backend:
    """The best reader for a file, chosen by its content; a folder is read as OME-Zarr or as a DICOM series.

    Args:
        path: the slide's file or folder.
        image: number of the image, in a file that holds several; `None` reads the largest.
        z: number of the focal plane, in a file that holds several; `None` reads the middle one.

    Raises:
        SlideError: the file is missing, not a slide, damaged, or not 8-bit RGB, or has no such image or plane.
    """
    backend = _open(path, image, z)
    for option, chosen, number in (("image", backend.facts.image, image), ("z", backend.facts.plane, z)):
        if number and chosen != number:
            backend.close()
            raise SlideError(f"{path.name} has one {OPTIONS[option]} that can be read; omit --{option}")
    return backend


def _open(path: Path, image: int | None, z: int | None) -> Backend:
    if not path.exists():
        raise SlideError(f"no such file: {path}; check the path")
    if path.is_dir():
        return _open_zarr(path, image, z) if is_zarr(path) else _open_dicom_folder(path)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as err:
        raise SlideError(f"cannot read {path}: {err.strerror}; check its permissions") from err
    if not magic:
        raise SlideError(f"{path.name} is empty (0 bytes); copy it again")
    vendor = openslide.OpenSlide.detect_format(path)
    if magic.startswith(TIFF_MAGIC) and vendor in (None, "aperio", "generic-tiff"):
        return _open_tiff(path, vendor, image, z)
    if vendor == "leica":
        return _open_leica(path, image, z)
    if vendor:
        return _open_vendor(path)
    if magic.startswith(IMAGE_MAGIC):
        return ImageBackend(path)
    raise SlideError(f"{path.name} has an unsupported format; convert it to one of: {READS}")


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / marker).is_file() for marker in ZARR_MARKERS)


def _open_zarr(path: Path, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.zarr import ZarrBackend

    try:
        return ZarrBackend(path, image, z)
    except Unsuited as why:
        raise SlideError(f"{path.name} {why}") from why


def _open_leica(path: Path, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.leica import LeicaBackend

    try:
        return LeicaBackend(path, image, z)
    except Unsuited as why:
        raise SlideError(f"{path.name} {why}") from why


def _open_tiff(path: Path, vendor: str | None, image: int | None, z: int | None) -> Backend:
    from wsi_stain.slide.readers.tiff import TiffBackend, parse_tiff, scale_of_tiff

    try:
        tiff = TiffBackend(path, partial(parse_tiff, image=image, z=z))
    except Unsuited as why:
        if vendor is None:
            raise SlideError(f"{path.name} {why}") from why
        try:
            other = OpenSlideBackend(path)
        except Unsuited as err:
            raise SlideError(f"{path.name} {why} (OpenSlide: {err})") from why
        other.facts = replace(other.facts, **scale_of_tiff(path, other.facts))
        return other
    if vendor is None or tiff.facts.notes:  # OpenSlide reads the first image and plane
        return tiff
    return _better(path, tiff)


def _better(path: Path, tiff: TiffBackend) -> Backend:
    """OpenSlide's reader if it finds a larger image, more levels, or missing tiles that it can fill.

    OpenSlide does not know what OME-XML states: of an OME-TIFF it can take the macro for the slide.
    """
    try:
        other = OpenSlideBackend(path)
    except Unsuited:
        return tiff
    ours, theirs = tiff.facts, other.facts
    if ours.mpp_from.startswith("OME") or theirs.mpp is None:
        other.facts = replace(theirs, mpp=ours.mpp, mpp_from=ours.mpp_from)
    else:
        tiff.facts = replace(ours, mpp=theirs.mpp)
    if other.sizes[0] == tiff.sizes[0]:
        better = len(other.sizes) > len(tiff.sizes) or ours.has_gaps
    else:
        better = ours.format != "OME-TIFF" and min(other.sizes[0]) > min(tiff.sizes[0])
    (tiff if better else other).close()
    return other if better else tiff


def _open_vendor(path: Path) -> Backend:
    try:
        return OpenSlideBackend(path)
    except Unsuited as err:
        hint = "the file may be truncated or damaged; copy it again"
        if "YBR_FULL" in str(err):
            hint = "OpenSlide cannot read DICOM with YBR_FULL JPEG; convert it, for example to OME-TIFF with bfconvert"
        raise SlideError(f"{path.name} cannot be opened ({err}); {hint}") from err


def _open_dicom_folder(path: Path) -> Backend:
    """The series of the largest instance that opens: OpenSlide finds the other levels in the folder."""
    instances = sorted(path.glob("*.dcm"), key=lambda p: (-p.stat().st_size, p.name))
    if not instances:
        raise SlideError(f"{path} is a folder without DICOM instances (*.dcm); pass the slide file")
    errors = []
    for instance in instances:
        try:
            return _open_vendor(instance)
        except SlideError as err:
            errors.append(err)
    raise errors[0]
