"""What an image of ours states about its origin: OME-TIFF annotations, OME-Zarr attributes, a DICOM header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from wsi_stain.output import dicom
from wsi_stain.output.ometiff.tiff import DESCRIPTION, BrokenTiff, Tiff
from wsi_stain.output.ometiff.xml import NOTICE, map_annotations, parse


def provenance(path: Path) -> Mapping[str, str]:
    """The provenance of a virtual stain made by wsi-stain; empty for any other file, also a broken one."""
    try:
        if (header := dicom.header_of(path)) is not None:
            texts = dicom.provenance(header)
        else:
            texts = _of_zarr(path) if path.is_dir() else _of_tiff(path)
    except (BrokenTiff, OSError, ValueError):
        return {}
    return texts if texts.get("notice") == NOTICE else {}


def _of_tiff(path: Path) -> Mapping[str, str]:
    with Tiff.open(path) as tiff:
        root = parse(tiff.pages[0].text(DESCRIPTION))
    return {} if root is None else map_annotations(root)


def _of_zarr(folder: Path) -> Mapping[str, str]:
    attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8")).get("attributes", {})
    ours = attributes.get("wsi_stain", {})
    return {str(key): str(value) for key, value in ours.items()} if isinstance(ours, dict) else {}
