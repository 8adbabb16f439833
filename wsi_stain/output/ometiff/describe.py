"""Describes a file: its contents and its provenance."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from wsi_stain.errors import SlideError
from wsi_stain.files.notice import NOTICE
from wsi_stain.output.ometiff import tiff as t
from wsi_stain.output.ometiff import xml, xmp
from wsi_stain.output.ometiff.jpeg import read_header
from wsi_stain.output.ometiff.rules_pages import DEFLATE, JPEG, JPEG_2000, LZW, PLAIN, RGB, UNREADABLE, YCBCR
from wsi_stain.output.ometiff.subject import Subject
from wsi_stain.output.ometiff.tiff import BrokenTiff, Page, Tiff

_COMPRESSION = {
    **{JPEG: "JPEG", LZW: "LZW", PLAIN: "none"},
    **dict.fromkeys(DEFLATE, "Deflate"),
    **dict.fromkeys(JPEG_2000, "JPEG-2000"),
    **UNREADABLE,
}
_PHOTOMETRIC = {0: "white is zero", 1: "black is zero", RGB: "RGB", 3: "palette", YCBCR: "YCbCr"}
_CHROMA = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (4, 1): "4:1:1"}


def describe(path: Path) -> dict[str, Any]:
    """The contents of a file, ready for JSON; works on any OME-TIFF, and partially on other TIFFs.

    Raises:
        SlideError: the file is not a TIFF, is truncated, or cannot be read.
    """
    try:
        with Tiff.open(path) as tiff:
            subject = Subject.of(tiff, path.name)
            made_by = {"xmp": xmp.read(subject.first.raw(xmp.TAG))}
            facts = {"file": path.name, "bytes": tiff.bytes, **_pages(subject), **_ome_facts(subject), **made_by}
            return {**facts, "channels": list(subject.channels)} if subject.channels else facts
    except BrokenTiff as err:
        raise SlideError(f"{path} {err}; it cannot be described; choose a complete OME-TIFF") from err
    except OSError as err:
        raise SlideError(f"cannot read {path}: {err.strerror or err}; check the path") from err


def _pages(subject: Subject) -> dict[str, Any]:
    """The facts in the tags."""
    page = subject.first
    compression = page.number(t.COMPRESSION, PLAIN)
    photometric = page.number(t.PHOTOMETRIC, -1)
    return {
        "bigtiff": subject.tiff.is_big,
        "width": page.size.w,
        "height": page.size.h,
        "levels": [{"width": level.size.w, "height": level.size.h} for level in subject.levels],
        "tile": page.tile and {"width": page.tile.w, "height": page.tile.h},
        "compression": _COMPRESSION.get(compression, f"method {compression}"),
        "photometric": _PHOTOMETRIC.get(photometric, f"method {photometric}"),
        "subsampling": _subsampling(page) if (compression, photometric) == (JPEG, YCBCR) else None,
        "openslide_pyramid": len(subject.levels) == 1 or page.next == subject.levels[1].offset,
    }


def _subsampling(page: Page) -> str | None:
    """Chroma subsampling of the first tile, from the stream itself."""
    try:
        across, down = read_header(page.stored(0)).chroma
    except ValueError:
        return None
    return _CHROMA.get((across, down), f"{across}×{down}")


def _ome_facts(subject: Subject) -> dict[str, Any]:
    """The facts in the OME-XML; None or empty if there is none."""
    ome, image, pixels = subject.ome, subject.image, subject.pixels
    root = ET.Element("OME") if ome is None else ome
    annotations = xml.map_annotations(root)
    return {
        "ome": ome is not None,
        "name": None if image is None else image.get("Name"),
        "mpp": None if pixels is None else xml.physical_size(pixels, "X"),
        "magnification": xml.magnification(root),
        "creator": root.get("Creator"),
        "uuid": root.get("UUID"),
        "virtual": NOTICE in annotations.values(),
        "stain": annotations.get("stain"),
        "rois": len(root.findall("ROI")),
        "annotations": annotations,
    }
