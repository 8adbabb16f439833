"""Account of a finished slide: thumbnails, positive area, warnings; small enough to store for thousands of slides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from wsi_stain.cohort.request import Row
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import MaskError, counted
from wsi_stain.files import record
from wsi_stain.files.page import jpeg
from wsi_stain.files.paths import without_home
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.composite import composite
from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.channel_file import ChannelFile
from wsi_stain.slide.slide import Slide
from wsi_stain.tissue.detect import find_tissue
from wsi_stain.tissue.mask import TissueMask, everything, from_geojson

THUMBNAIL_PX = 192
"""Length of the longer side, px; three thumbnails take about 15 kB."""
JPEG_QUALITY = 80
MEASURED_PX = 4 << 20
"""Largest number of pixels for measuring the positive area: the finest pyramid level within this limit is used."""
TISSUE_COLOUR = (0, 110, 60)


def account_of(row: Row, request: ConvertRequest) -> dict[str, Any]:
    """All summary data of a finished slide.

    Args:
        row: row of the sheet.
        request: conversion of the slide; its output and record must be complete.
    """
    assert request.output, "a cohort names its outputs"
    run = record.read(record.path_of(request.output))
    bundle = Bundle.open(request.model)
    with Slide.open(request.slide, mpp=request.mpp, image=request.image, z=request.z) as slide:
        he, size = slide.thumbnail(THUMBNAIL_PX), slide.size
    mask, mask_file = _mask(request, size)
    level, mpp = _level(request.output, run)
    is_measured = bundle.folder is not None and not bundle.channels
    return {
        "slide_id": row.slide_id,
        "slide": without_home(str(row.slide)),
        "output": request.output.name,
        "mask_file": mask_file,
        "model": bundle.name,
        "stain": bundle.stain,
        "size_px": run.get("size_px"),
        "mpp": run.get("fingerprint", {}).get("mpp"),
        "tissue_tiles": run.get("tiles", {}).get("tissue"),
        "positive": positive_area(level, mask, bundle.background_colour) if is_measured else None,
        "channels": [channel.name for channel in bundle.channels],
        "positive_mpp": mpp,
        "seams": run.get("seams"),
        "warnings": list(_warnings(run)),
        "seconds": run.get("seconds", {}).get("all"),
        "thumbnails": {
            "he": jpeg(he, quality=JPEG_QUALITY),
            "mask": jpeg(outlined(he, mask), quality=JPEG_QUALITY),
            "stain": jpeg(level, quality=JPEG_QUALITY, longest=THUMBNAIL_PX),
        },
    }


def positive_area(stain: np.ndarray, mask: TissueMask, background: Background) -> float | None:
    """Share of the tissue whose DAB density is above `POSITIVE_OD`; None without tissue.

    Args:
        stain: the downsampled virtual stain, uint8 (h, w, 3).
        mask: tissue mask.
        background: background colour of the stain.
    """
    tissue = _tissue(mask, Size(*stain.shape[:2]))
    positive = count = 0
    for y in range(0, len(stain), 256):  # in strips: densities need 16 times the memory of the pixels
        inside = tissue[y : y + 256]
        positive += int((dab(stain[y : y + 256], background)[inside] > POSITIVE_OD).sum())
        count += int(inside.sum())
    return positive / count if count else None


def outlined(he: np.ndarray, mask: TissueMask) -> np.ndarray:
    """The H&E with the background lightened and the tissue outlined: uint8 (h, w, 3)."""
    tissue = _fitted(mask.array, Size(*he.shape[:2])).astype(np.uint8)
    shown = np.where(tissue[..., None] > 0, he, (he.astype(np.uint16) + 2 * 235) // 3).astype(np.uint8)
    contours, _ = cv2.findContours(tissue, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, contours, -1, TISSUE_COLOUR, 1)
    return shown


def _level(output: Path, run: Mapping[str, Any]) -> tuple[np.ndarray, float | None]:
    """The finest level within `MEASURED_PX`, in colours, and its µm/px."""
    mpp = run.get("fingerprint", {}).get("mpp")
    if (file := ChannelFile.open(output)) is not None:
        index = _within([size.h * size.w for size in file.levels])
        pixels = composite(file.read(index, Box.of(file.levels[index])), file.channels)
    else:
        with tifffile.TiffFile(output) as tiff:
            levels = tiff.series[0].levels
            index = _within([level.size // 3 for level in levels])
            pixels = levels[index].asarray()
    return pixels, None if mpp is None else round(mpp * 2**index, 6)


def _within(areas: Sequence[int]) -> int:
    """The finest level of at most `MEASURED_PX`."""
    return next((index for index, area in enumerate(areas) if area <= MEASURED_PX), len(areas) - 1)


def _mask(request: ConvertRequest, size: Size) -> tuple[TissueMask, str | None]:
    """The tissue mask that the conversion used, and the name of its file next to the output."""
    assert request.output, "a cohort names its outputs"
    if request.mask == "none":
        return everything(size), None
    saved = request.output.with_name(request.output.name.removesuffix(".ome.tiff") + ".tissue.geojson")
    if request.mask == "auto" and not saved.exists():  # of a slide whose pixels are not square, none is saved
        with Slide.open(request.slide, mpp=request.mpp, image=request.image, z=request.z) as slide:
            return find_tissue(slide), None
    path = saved if saved.exists() else Path(request.mask)
    try:
        return from_geojson(path, size), saved.name if path == saved else None
    except MaskError:  # a slide without tissue: the GeoJSON has no polygon
        return TissueMask(np.zeros((1, 1), bool), everything(size).scale, size), saved.name


def _tissue(mask: TissueMask, size: Size) -> np.ndarray:
    """The tissue in an image of the whole slide, bool (h, w), with the mask's outline where it has one."""
    if mask.outline is None or mask.size is None:
        return _fitted(mask.array, size)
    return mask.outline.inside(Box.of(size), Fraction(max(mask.size), max(size)))


def _fitted(array: np.ndarray, size: Size) -> np.ndarray:
    """Resample mask cells to bool (h, w) of `size`; the last cells may extend past the slide by less than one cell."""
    return cv2.resize(array.astype(np.uint8), (size.w, size.h), interpolation=cv2.INTER_NEAREST).astype(bool)


def _warnings(run: Mapping[str, Any]) -> Iterator[str]:
    if unreadable := len(run.get("unreadable", ())):
        yield f"{counted(unreadable, 'tile')} of the slide could not be read; background was written instead"
    if not run.get("tiles", {}).get("tissue", 1):
        yield "no tissue was found; the whole output is background"
    for earlier in run.get("earlier_versions", ()):
        changed = ", ".join(record.changes(earlier, run.get("versions", {})))
        yield f"a part was converted with other versions ({changed})"
    yield from (f"input {reason}" for reason in (run.get("input") or {}).get("reasons", ()))
    seams = run.get("seams") or {}
    if seams.get("verdict") == "fail":
        yield f"seams: {'; '.join(seams.get('reasons', ()))}"
