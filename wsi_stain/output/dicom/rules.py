"""Checks a DICOM whole-slide series against the rules for series that open correctly; a broken one gives problems."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from wsi_stain.files.notice import NOTICE
from wsi_stain.geometry import Size
from wsi_stain.output.dicom.frames import Frames, broken_frame, frames_of
from wsi_stain.output.dicom.header import MANUFACTURER, NO_DATE, PRIVATE_GROUP
from wsi_stain.output.dicom.read import provenance, read_header, series_at, spacing_um
from wsi_stain.output.ometiff.privacy import Hint, short
from wsi_stain.output.ometiff.subject import Problem, error, warning
from wsi_stain.output.ometiff.xml import REQUIRED
from wsi_stain.slide.dicom import Series, is_dicom, series_in
from wsi_stain.slide.files import is_zarr
from wsi_stain.slide.readers.dicom import false_colours

SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ContainerIdentifier", "PatientID")
"""Equal in all instances of a slide (rule 32)."""
PERSONAL = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyID")
WATCHED = (
    *("Patient", "Physician", "Operator", "Institution", "Accession", "StudyID", "StationName", "SerialNumber"),
    *(
        "Container",
        "Specimen",
        "Label",
        "Barcode",
        "Comment",
        "Description",
        "Address",
        "Telephone",
        "Person",
        "Issuer",
    ),
)
"""Parts of the names of attributes that may tell about a person, a place or a device."""
WRITTEN = frozenset(
    (
        *("ContainerIdentifier", "SpecimenIdentifier", "SpecimenShortDescription", "SeriesDescription"),
        *("DerivationDescription", "ContributionDescription", "OpticalPathDescription", "DeviceSerialNumber"),
    )
)
"""Those of them that a virtual stain of ours has."""
BINARY = frozenset(("SQ", "UI", "CS", "OB", "OD", "OF", "OL", "OV", "OW", "UN"))
DATES = frozenset(("AS", "DA", "DT", "TM"))


def is_series(path: Path) -> bool:
    """Whether a path is to be checked as DICOM: a DICOM file, or a folder that is no Zarr."""
    return (path.is_dir() and not is_zarr(path)) or is_dicom(path)


def problems(path: Path) -> list[Problem]:
    """The problems of a series, in the order of the rules; empty if there are none.

    Args:
        path: a file of the series, or the folder that holds it.
    """
    series = series_at(path)
    if series is None or not series.levels:
        return [error(31, f"{path.name} holds no DICOM whole-slide series, or several: pass a file of one series")]
    headers = {level: read_header(level) for level in series.levels}
    unreadable = [error(31, f"{file.name} has a damaged header: copy it again") for file, x in headers.items() if not x]
    levels = [(file, header) for file, header in headers.items() if header]
    unreadable += [error(31, f"{file.name} has a damaged header: copy it again") for file in _strays(path, series)]
    found = [*unreadable, *_shared(levels), *_pyramid(levels), *_origin(levels)]
    for file, header in levels:
        found += [*_frames(file, header), *_scale(file, header), *_profile(file, header), *_image(file, header)]
    if (reason := false_colours(series.levels[0])) is not None:
        found.append(error(36, f"{reason}: readers that trust the header show false colours"))
    return sorted(found, key=lambda problem: problem.rule)


def _strays(path: Path, series: Series) -> list[Path]:
    """DICOM files in the folder of a series that belong to none."""
    if not path.is_dir():
        return []
    known = {file for one in series_in(path) for file in one.files}
    beside = sorted({file.parent for file in series.files})
    return [x for folder in beside for x in sorted(folder.iterdir()) if x.is_file() and is_dicom(x) and x not in known]


def _frames(file: Path, header: Dataset) -> Iterator[Problem]:
    """Rule 31: every instance is complete; its frames are as many and as large as the header states."""
    count = int(header.get("NumberOfFrames") or 1)
    grid = _size(header, "TotalPixelMatrix").ceil_div(max(1, int(header.get("Rows") or 1)))
    stored = frames_of(file)
    if stored is None:
        if header.file_meta.TransferSyntaxUID.is_compressed:
            yield error(31, f"{file.name} holds no frames: it is cut off; copy it again")
        return
    if not stored.is_complete or len(stored.extents) != count:
        yield error(31, f"{file.name} holds {len(stored.extents)} of {count} frames: it is cut off; copy it again")
    elif header.get("DimensionOrganizationType") == "TILED_FULL" and header.get("NumberOfOpticalPaths", 1) == 1:
        planes = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
        if count != grid.h * grid.w * planes:
            yield error(31, f"{file.name} has {count} frames, but a grid of {grid.h} × {grid.w} tiles: write it again")
    yield from _streams(file, header, stored)


def _streams(file: Path, header: Dataset, stored: Frames) -> Iterator[Problem]:
    """Rule 31, for JPEG: every frame is a whole stream of the tile's size."""
    if not str(header.file_meta.TransferSyntaxUID).endswith(".4.50"):
        return
    broken = broken_frame(file, stored, Size(int(header.Rows), int(header.Columns)))
    if broken is not None:
        number, reason = broken
        yield error(31, f"frame {number} of {file.name} {reason}: copy or write it again")


def _shared(levels: list[tuple[Path, Dataset]]) -> Iterator[Problem]:
    """Rule 32: the levels are instances of one series of one study in one frame of reference, each with its own UID."""
    for name in SHARED:
        if len({str(header.get(name)) for _, header in levels}) > 1:
            yield error(32, f"the levels have different values of {name}: readers take them for several slides")
    uids = [str(header.get("SOPInstanceUID")) for _, header in levels]
    if len(set(uids)) < len(uids):
        yield error(32, "two levels have the same SOPInstanceUID: an archive keeps one of them; write them again")


def _pyramid(levels: list[tuple[Path, Dataset]]) -> Iterator[Problem]:
    """Rule 33: the pixel size of a level fits its number of pixels."""
    known = [(file, header) for file, header in levels if spacing_um(header) is not None]
    ordered = sorted(known, key=lambda level: -_size(level[1], "TotalPixelMatrix").w)
    for (_, finer), (file, coarser) in pairwise(ordered):
        w, v = (_size(header, "TotalPixelMatrix").w for header in (finer, coarser))
        a, b = spacing_um(finer) or 0, spacing_um(coarser) or 0
        if v and a and abs(b / a * v - w) > b / a:
            yield error(33, f"{file.name} has {b:g} µm/px, but {w / v * a:g} by its number of pixels: write it again")


def _scale(file: Path, header: Dataset) -> Iterator[Problem]:
    """Rule 34: every level has a pixel size."""
    if spacing_um(header) is None:
        yield error(34, f"{file.name} has no PixelSpacing: measurements are impossible; write it again")


def _profile(file: Path, header: Dataset) -> Iterator[Problem]:
    """Rule 35: the optical path has a colour profile."""
    paths = header.get("OpticalPathSequence") or []
    if not paths or not paths[0].get("ICCProfile"):
        yield warning(35, f"{file.name} has no ICC profile: viewers guess its colours")


def _image(file: Path, header: Dataset) -> Iterator[Problem]:
    """Rule 37: nothing is burned in, and what identifies a person is known to be there."""
    if header.get("BurnedInAnnotation") != "NO":
        yield warning(37, f"{file.name} does not state that no text is burned into the image: look at it")
    given = [name for name in PERSONAL if header.get(name)]
    if given:
        yield warning(37, f"{file.name} names {', '.join(given)}: remove them before the file leaves the hospital")


def _origin(levels: list[tuple[Path, Dataset]]) -> Iterator[Problem]:
    """Rule 38: a virtual stain of ours is derived, is marked as one, and states which model made it."""
    for file, header in levels:
        if not str(header.get("Manufacturer", "")).startswith(MANUFACTURER):
            continue
        facts = provenance(header)
        missing = [key for key in REQUIRED if key not in facts]
        if missing:
            yield error(38, f"the provenance of {file.name} lacks {', '.join(missing)}: convert the slide again")
        marked = NOTICE in str(header.get("DerivationDescription", "")) and "DERIVED" in (header.get("ImageType") or ())
        if not marked:
            yield error(
                38, f"{file.name} is not marked as a derived image and a virtual stain: convert the slide again"
            )


def hints(path: Path) -> list[Hint]:
    """What a series may tell about a person: names, dates, identifiers, free texts; pixels are not read."""
    series = series_at(path)
    found = []
    for file in series.files if series else ():
        header = read_header(file) or Dataset()
        for element in header.iterall():
            text = _personal(element)
            if text and not (provenance(header) and _is_written(element)):
                found.append(Hint(file.name, element.keyword or str(element.tag), short(text)))
    return list(dict.fromkeys(found))


def _personal(element: DataElement) -> str:
    """The text of an element that may tell about a person; empty for any other."""
    if element.VR in BINARY or not element.value:
        return ""
    text = str(element.value)
    if element.VR in DATES:
        return "" if text.startswith(NO_DATE) or not text.strip("0.") else text
    is_watched = element.VR == "PN" or element.tag.is_private or any(word in element.keyword for word in WATCHED)
    return text if is_watched else ""


def _is_written(element: DataElement) -> bool:
    """Whether an element is one that every series of ours has, made from its provenance."""
    return element.keyword in WRITTEN or element.tag.group == PRIVATE_GROUP


def _size(header: Dataset, name: str) -> Size:
    return Size(int(header.get(f"{name}Rows") or 0), int(header.get(f"{name}Columns") or 0))
