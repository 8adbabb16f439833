"""Recognises virtual stains, ours and others', by what their files say: such an image is not a slide to stain again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_stain.output import dicom
from wsi_stain.output.ometiff.tiff import DESCRIPTION, BrokenTiff, Tiff
from wsi_stain.output.ometiff.xml import NOTICE, is_resampled, map_annotations, parse

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WORDS = re.compile(r"\bvirtual(ly)?[\s_-]*(stain|ihc\b|immuno)", re.IGNORECASE)
"""Words by which other software marks its virtual stains."""
ZARR_FILES = ("zarr.json", ".zattrs", "0/zarr.json", "0/.zattrs", "OME/METADATA.ome.xml")
"""Files with attributes: Zarr 3, Zarr 2, and the first image of a bioformats2raw layout."""


def virtual_stain(path: Path) -> str | None:
    """The stain of a virtual stain, "" if the file does not name it; `None` for any other file, also a broken one."""
    try:
        if (header := dicom.header_of(path)) is not None:
            return _of_dicom(header)
        return _of_zarr(path) if path.is_dir() else _of_tiff(path)
    except (BrokenTiff, OSError):
        return None


def _of_tiff(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            return None
    with Tiff.open(path) as tiff:
        text = tiff.pages[0].text(DESCRIPTION)
    root = parse(text)
    if root is not None and root.get("Creator", "").startswith("wsi-stain"):
        annotations = map_annotations(root)
        return None if is_resampled(annotations) else annotations.get("stain", "")
    if WORDS.search(text):
        return "" if root is None else map_annotations(root).get("stain", "")
    return None


def _of_dicom(header: Dataset) -> str | None:
    ours = dicom.provenance(header)
    if ours or str(header.get("Manufacturer", "")).startswith(dicom.MANUFACTURER):
        return ours.get("stain", "")
    return "" if any(NOTICE in text or WORDS.search(text) for text in dicom.texts(header)) else None


def _of_zarr(folder: Path) -> str | None:
    for name in ZARR_FILES:
        file = folder / name
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        ours = _provenance(text)
        if ours:
            return str(ours.get("stain", ""))
        if NOTICE in text or WORDS.search(text):
            return ""
    return None


def _provenance(text: str) -> dict[str, object]:
    """The attributes `wsi_stain` of an OME-Zarr; empty if there are none."""
    try:
        data = json.loads(text)
        attributes = data.get("attributes", data)
        ours = attributes.get("wsi_stain")
    except (ValueError, AttributeError):
        return {}
    return ours if isinstance(ours, dict) else {}
