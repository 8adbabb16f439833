"""The sheet: the list of slides of a cohort, from a CSV, a folder, a glob, or a single slide.

slide,slide_id,mpp,model,mask      only `slide` is required; paths are relative to the sheet
a.svs,case-1,0.25,he2her2,roi.geojson
"""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.errors import ConfigError

COLUMNS = ("slide", "slide_id", "mpp", "model", "mask")
SLIDE_ENDINGS = frozenset(
    ("bif", "czi", "dcm", "jpeg", "jpg", "mrxs", "ndpi", "png", "scn", "svs", "svslide", "tif", "tiff", "vms", "vmu")
)
"""File name endings of slides in a folder; a sheet or a glob may contain any file."""
LONGEST_ID = 150
"""Characters of a slide_id: output names add up to 50, and file systems allow 255 bytes."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem of a row."""

    line: int
    slide: str
    message: str


def read(request: CohortRequest) -> tuple[list[Row], list[Problem]]:
    """All rows of the sheet, and the problems visible without opening a slide.

    Raises:
        ConfigError: the sheet is missing, empty, or not a table of slides.
    """
    source = Path(request.sheet)
    if source.is_dir():
        paths = _in_folder(source)
    elif source.suffix.lower()[1:] in SLIDE_ENDINGS and source.exists():
        paths = [source]
    elif source.is_file():
        return _from_csv(source, request)
    elif glob.has_magic(request.sheet):
        paths = sorted(Path(path) for path in glob.glob(request.sheet, recursive=True))
    else:
        raise ConfigError(
            f"no such file: {request.sheet}; pass a CSV with a column 'slide', a folder, or a quoted glob"
        )
    if not paths:
        raise ConfigError(
            f"{request.sheet} contains no slides; the supported endings are {' '.join(sorted(SLIDE_ENDINGS))}"
        )
    rows = [Row(n, path.stem, path, request.mpp, request.model, request.mask) for n, path in enumerate(paths, start=1)]
    return rows, list(_double_ids(rows))


def table(problems: list[Problem], sheet: str) -> str:
    """All problems in one table with line numbers."""
    widths = [
        max(len(str(value)) for value in column) for column in zip(*((p.line, p.slide) for p in problems), strict=True)
    ]
    lines = [f"  line {p.line:>{widths[0]}}  {p.slide:{widths[1]}}  {p.message}" for p in problems]
    rows = len({p.line for p in problems})
    what = f"{rows} row{'s' if rows > 1 else ''} of {sheet} cannot be used; nothing was started:"
    return "\n".join([what, *lines, "correct these rows, or delete them from the sheet"])


def _in_folder(folder: Path) -> list[Path]:
    """Slides in a folder, and its subfolders with DICOM instances."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (path.suffix.lower()[1:] in SLIDE_ENDINGS if path.is_file() else any(path.glob("*.dcm")))
    )


def _from_csv(sheet: Path, request: CohortRequest) -> tuple[list[Row], list[Problem]]:
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, record) for record in reader if any(record.values())]
            names = list(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as err:
        raise ConfigError(
            f"{sheet} is not a sheet of slides ({err}); pass a CSV in UTF-8 with a column 'slide'"
        ) from err
    unknown = [name for name in names if name not in COLUMNS]
    if "slide" not in names or unknown:
        what = f"the unknown column {unknown[0]!r}" if unknown else "no column 'slide'"
        raise ConfigError(f"{sheet} has {what}; the columns are slide and, optionally, {', '.join(COLUMNS[1:])}")
    if not lines:
        raise ConfigError(f"{sheet} has no rows; add one line for each slide")
    problems: list[Problem] = []
    rows = [_row(line, record, sheet, request, problems) for line, record in lines]
    return rows, [*problems, *_double_ids(rows)]


def _row(line: int, record: dict[Any, Any], sheet: Path, request: CohortRequest, problems: list[Problem]) -> Row:
    if None in record:
        problems.append(Problem(line, str(record["slide"]), "has more values than the header has columns"))
    values = {name: (record.get(name) or "").strip() for name in COLUMNS}
    slide = sheet.parent / values["slide"] if values["slide"] else Path()
    if not values["slide"]:
        problems.append(Problem(line, "", "the column 'slide' is empty"))
    mask = values["mask"] or request.mask
    if values["mask"] and mask not in ("auto", "none"):
        mask = str((sheet.parent / mask).absolute())
    mpp = request.mpp
    if values["mpp"]:
        mpp = _mpp(values["mpp"])
        if mpp is None:
            rule = f"it must be a number between {MIN_MPP} and {MAX_MPP:g}, for example 0.25"
            problems.append(Problem(line, values["slide"], f"mpp is {values['mpp']!r}: {rule}"))
    model = values["model"] or request.model
    if values["model"] and (sheet.parent / model).is_dir():
        model = str((sheet.parent / model).absolute())
    return Row(line, values["slide_id"] or slide.stem, slide, mpp, model, mask)


def _mpp(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if MIN_MPP <= value <= MAX_MPP else None


def _double_ids(rows: list[Row]) -> Iterator[Problem]:
    """Problems of ids that are invalid in file names or duplicate; some file systems ignore case."""
    first: dict[str, Row] = {}
    for row in rows:
        name = str(row.slide)
        if not re.fullmatch(r"[\w\-+=@,()#~][\w\-+=@,()#~. ]*", row.slide_id) or len(row.slide_id) > LONGEST_ID:
            rule = f"at most {LONGEST_ID} letters, digits, - _ . + = @ , ( ) # ~ or spaces"
            yield Problem(row.line, name, f"slide_id is {row.slide_id!r}: it names files and may contain {rule}")
        earlier = first.setdefault(row.slide_id.casefold(), row)
        if earlier is not row:
            yield Problem(
                row.line, name, f"slide_id {row.slide_id!r} is also used in line {earlier.line}; ids must differ"
            )
