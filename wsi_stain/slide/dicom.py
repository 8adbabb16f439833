"""DICOM whole-slide series: which files of a folder belong together, told by their content, not by their names.

A series is one slide: its instances are the levels of the pyramid, the label and the overview.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_stain.errors import SlideError

SERIES, IMAGE_TYPE = 0x0020000E, 0x00080008
NO_LEVEL = frozenset(("LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"))
"""Values of ImageType that mark instances other than the levels of a slide (DICOM PS3.3, section C.8.12.4.1.1)."""
NO_FOLDER = (".zarr", ".spool", ".part")
"""Endings of folders with many files of other formats."""
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One DICOM series."""

    uid: str
    files: tuple[Path, ...]
    """All its instances, sorted by path."""
    levels: tuple[Path, ...]
    """The instances that hold levels of the slide, the largest file first; empty if it has only labels or overviews."""


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM: `DICM` behind 128 bytes (PS3.10, section 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_in(folder: Path) -> list[Series]:
    """Every DICOM series in a folder and its subfolders, sorted by path; file names and endings do not matter."""
    return grouped(path for path in _files(folder) if is_dicom(path))


def series_of(instance: Path) -> Series | None:
    """The series of one instance, as far as it is in the same folder; `None` if the file has no series."""
    uid, _ = _header(instance)
    beside = [path for path in sorted(instance.parent.iterdir()) if path.is_file() and is_dicom(path)]
    return next((series for series in grouped(beside) if series.uid == uid), None) if uid else None


def only_series(folder: Path) -> Series:
    """The series of a folder that holds one slide.

    Raises:
        SlideError: the folder holds no slide, or several.
    """
    slides = [series for series in series_in(folder) if series.levels]
    if not slides:
        raise SlideError(f"{folder} is a folder without DICOM instances of a slide; pass the slide file")
    if len(slides) > 1:
        first = ", ".join(str(series.levels[0].relative_to(folder)) for series in slides[:MOST_NAMED])
        more = ", …" if len(slides) > MOST_NAMED else ""
        raise SlideError(
            f"{folder} holds {len(slides)} DICOM series, and each is a slide; pass a file of one of them "
            f"({first}{more}), or convert all with wsi-stain cohort run"
        )
    return slides[0]


def _files(folder: Path) -> Iterator[Path]:
    """Visible files in a folder and its subfolders, without those of Zarr images and of unfinished outputs."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(NO_FOLDER))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def grouped(paths: Iterable[Path]) -> list[Series]:
    """The series to which DICOM files belong; files without a series are left out."""
    files: dict[str, list[Path]] = {}
    levels: dict[str, list[Path]] = {}
    for path in paths:
        uid, kinds = _header(path)
        if uid:
            files.setdefault(uid, []).append(path)
            levels.setdefault(uid, []).extend([] if kinds & NO_LEVEL else [path])
    return [
        Series(uid, tuple(parts), tuple(sorted(levels[uid], key=lambda path: (-path.stat().st_size, path))))
        for uid, parts in files.items()
    ]


def _header(path: Path) -> tuple[str, frozenset[str]]:
    """SeriesInstanceUID and the values of ImageType; empty if the file is not DICOM or its header is damaged."""
    from pydicom.filereader import read_partial

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break the standard are not ours to judge
            tags = [IMAGE_TYPE, SERIES]
            data = read_partial(file, lambda tag, vr, length: int(tag) > SERIES, specific_tags=tags)
            kinds = data.get("ImageType") or ()
            kinds = (kinds,) if isinstance(kinds, str) else kinds
            return str(data.get("SeriesInstanceUID") or ""), frozenset(str(kind).upper() for kind in kinds)
    except Exception:  # the parser raises whatever a damaged file leads to
        return "", frozenset()
