"""Reads what a DICOM series states about its origin: its header, without pixels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from wsi_stain.errors import SlideError
from wsi_stain.files.notice import NOTICE
from wsi_stain.output.dicom.header import PRIVATE_CREATOR, PRIVATE_GROUP, PROVENANCE
from wsi_stain.slide.dicom import Series, is_dicom, only_series, series_of
from wsi_stain.slide.files import is_zarr

PER_FRAME = 0x52009230
"""The tag behind everything that a header states about all frames."""
TEXTS = frozenset(("LO", "LT", "SH", "ST", "UC", "UT", "PN"))
SYNTAXES = {"50": "JPEG", "51": "JPEG", "90": "JPEG 2000, lossless", "91": "JPEG 2000", "80": "JPEG-LS, lossless"}


def series_at(path: Path) -> Series | None:
    """The series of a file, or the only one in a folder; `None` if there is none, or several."""
    try:
        if path.is_dir():
            return None if is_zarr(path) else only_series(path)
        return series_of(path) if is_dicom(path) else None
    except (SlideError, OSError):
        return None


def header_of(path: Path) -> Dataset | None:
    """The header of a series, or of a file without one; `None` for anything else, also damaged."""
    if path.is_dir():
        series = series_at(path)
        path = series.levels[0] if series else path
    return read_header(path) if path.is_file() and is_dicom(path) else None


def read_header(instance: Path) -> Dataset | None:
    """The header of one file, as far as it holds for all frames; `None` if it is damaged."""
    try:
        with instance.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break the standard are not ours to judge
            data = read_partial(file, lambda tag, vr, length: int(tag) >= PER_FRAME)
            sum(1 for _ in data.iterall())  # values are parsed on first use
            return data
    except Exception:  # the parser raises whatever a damaged file leads to
        return None


def provenance(header: Dataset) -> Mapping[str, str]:
    """The provenance of a virtual stain made by wsi-stain; empty for any other series."""
    try:
        facts = json.loads(header.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[PROVENANCE].value)
    except (KeyError, ValueError, TypeError):
        return {}
    return {str(key): str(value) for key, value in facts.items()} if isinstance(facts, dict) else {}


def texts(header: Dataset) -> Iterator[str]:
    """Every text of a header, also in its sequences."""
    for element in header.iterall():
        if element.VR in TEXTS and element.value:
            yield str(element.value)


def describe(path: Path) -> dict[str, Any]:
    """The contents of a series of ours, ready for JSON; empty for any other file."""
    header, series = header_of(path), series_at(path)
    if header is None or series is None or provenance(header).get("notice") != NOTICE:
        return {}
    levels = [level for level in map(read_header, series.levels) if level is not None]
    return {
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in series.files),
        "format": "DICOM VL Whole Slide Microscopy",
        "width": header.get("TotalPixelMatrixColumns"),
        "height": header.get("TotalPixelMatrixRows"),
        "levels": [
            {"width": x.get("TotalPixelMatrixColumns"), "height": x.get("TotalPixelMatrixRows")} for x in levels
        ],
        "compression": SYNTAXES.get(str(header.file_meta.TransferSyntaxUID).rpartition(".")[2]),
        "photometric": header.get("PhotometricInterpretation"),
        "mpp": spacing_um(header),
        "magnification": _magnification(header),
        "study": str(header.get("StudyInstanceUID")),
        "series": series.uid,
        "virtual": True,
        "stain": provenance(header).get("stain"),
        "annotations": dict(provenance(header)),
    }


def spacing_um(header: Dataset) -> float | None:
    """µm per px, from top to bottom; `None` if the header has no PixelSpacing."""
    try:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        return round(float(measures.PixelSpacing[0]) * 1000, 9)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _magnification(header: Dataset) -> float | None:
    power = header.OpticalPathSequence[0].get("ObjectiveLensPower") if header.get("OpticalPathSequence") else None
    return None if power is None else float(power)
