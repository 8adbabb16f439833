"""The sheet: the list of slides of a cohort, from a CSV, a folder, a glob, or a single slide.

slide,slide_id,mpp,model,mask,image,z      only `slide` is required; paths are relative to the sheet; others are kept

Several models, separated by `|`, make as many rows of a row, which differ in model and slide_id.
a.svs,case-1,0.25,he2her2,roi.geojson,,
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsi_stain.cohort import listing
from wsi_stain.cohort.listing import SLIDE_ENDINGS
from wsi_stain.cohort.request import CohortRequest, Row
from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.errors import ConfigError
from wsi_stain.files.table import BadTable, Line, read_table

COLUMNS = ("slide", "slide_id", "mpp", "model", "mask", "image", "z")
BETWEEN = "|"
"""Separates the models of a row."""
NUMBERS = ("image", "z")
"""Columns whose values are whole numbers from 0."""
LONGEST_ID = 150
"""Characters of a slide_id: output names add up to 50, and file systems allow 255 bytes."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Problem of a row."""

    line: int
    slide: str
    message: str
    stops_all: bool = False
    """Whether it concerns finished outputs, so that no slide may be started."""


def read(request: CohortRequest) -> tuple[list[Row], list[RowProblem]]:
    """All rows of the sheet, and the problems visible without opening a slide.

    Raises:
        ConfigError: the sheet is missing, empty, or not a table of slides.
    """
    source = Path(request.sheet)
    if source.is_dir():
        slides = listing.in_folder(source, with_virtual=request.allow_virtual)
    elif source.suffix.lower()[1:] in SLIDE_ENDINGS and source.exists():
        slides = [(source.stem, source)]
    elif source.is_file():
        rows, problems = _from_csv(source, request)
        return _with_ids(rows, problems)
    elif glob.has_magic(request.sheet):
        paths = sorted(Path(path) for path in glob.glob(request.sheet, recursive=True))
        slides = listing.among(paths, with_virtual=request.allow_virtual)
    else:
        raise ConfigError(
            f"no such file: {request.sheet}; pass a CSV with a column 'slide', a folder, or a quoted glob"
        )
    if not slides:
        raise ConfigError(
            f"{request.sheet} contains no slides; the supported endings are {' '.join(sorted(SLIDE_ENDINGS))}, and "
            "DICOM of any name"
        )
    rows = [Row(n, name, path, request.mpp, request.model, request.mask) for n, (name, path) in enumerate(slides, 1)]
    return _with_ids(rows, [])


def _with_ids(rows: list[Row], problems: list[RowProblem]) -> tuple[list[Row], list[RowProblem]]:
    """The rows, each with an id that can name files: a row whose own id cannot is faulty, and gets one by its line."""
    wrong = list(_double_ids(rows))
    lines = {problem.line for problem in wrong}
    rows = [replace(row, slide_id=f"unnamed-line-{row.line}") if row.line in lines else row for row in rows]
    return [each for row in rows for each in _each_model(row)], [*problems, *wrong]


def _each_model(row: Row) -> list[Row]:
    """The row once for each of its models; their names are added to its id, if there are several."""
    models = list(dict.fromkeys(part.strip() for part in row.model.split(BETWEEN)))
    if len(models) == 1:
        return [row]
    return [replace(row, model=model, slide_id=f"{row.slide_id}~{Path(model).name}") for model in models]


def table(problems: Sequence[RowProblem], sheet: str, consequence: str = "") -> str:
    """All problems in one table with line numbers."""
    widths = [
        max(len(str(value)) for value in column) for column in zip(*((p.line, p.slide) for p in problems), strict=True)
    ]
    lines = [f"  line {p.line:>{widths[0]}}  {p.slide:{widths[1]}}  {p.message}" for p in problems]
    rows = len({p.line for p in problems})
    what = f"{rows} row{'s' if rows > 1 else ''} of {sheet} cannot be used{consequence}:"
    return "\n".join([what, *lines, "correct these rows, or delete them from the sheet"])


def _from_csv(sheet: Path, request: CohortRequest) -> tuple[list[Row], list[RowProblem]]:
    try:
        table = read_table(sheet, COLUMNS)
    except BadTable as err:
        raise ConfigError(f"{sheet} {err}; pass a CSV in UTF-8 with a column 'slide'") from err
    _check_columns(sheet, table.columns)
    if not table.lines:
        raise ConfigError(f"{sheet} has no rows; add one line for each slide")
    problems: list[RowProblem] = []
    rows = [_row(line, sheet, request, problems) for line in table.lines]
    return rows, problems


def _check_columns(sheet: Path, columns: tuple[str, ...]) -> None:
    """Refuse a sheet without slides, and misspelt columns: their values would be ignored."""
    for name in columns:
        near = difflib.get_close_matches(name.casefold(), COLUMNS, n=1, cutoff=0.8)
        near = near or [known for known in ("mpp",) if known in re.split(r"[^a-z]+", name.casefold())]
        if near and name not in COLUMNS:
            raise ConfigError(f"{sheet} has the unknown column {name!r}; did you mean {near[0]!r}? Rename the column")
    if "slide" not in columns:
        names = ", ".join(map(repr, columns))
        raise ConfigError(
            f"{sheet} has no column 'slide' in its first line ({names}); the columns are slide and, optionally, "
            f"{', '.join(COLUMNS[1:])}, and any others"
        )


def _row(line: Line, sheet: Path, request: CohortRequest, problems: list[RowProblem]) -> Row:
    values = {name: line.values.get(name, "") for name in COLUMNS}
    if line.is_too_long:
        problems.append(RowProblem(line.number, values["slide"], "has more values than the header has columns"))
    slide = sheet.parent / values["slide"] if values["slide"] else Path()
    if not values["slide"]:
        problems.append(RowProblem(line.number, "", "the column 'slide' is empty"))
    mask = values["mask"] or request.mask
    if values["mask"] and mask not in ("auto", "none"):
        mask = str((sheet.parent / mask).absolute())
    mpp = request.mpp
    if values["mpp"]:
        mpp = _mpp(values["mpp"])
        if mpp is None:
            rule = f"it must be a number between {MIN_MPP} and {MAX_MPP:g}, for example 0.25"
            problems.append(RowProblem(line.number, values["slide"], f"mpp is {values['mpp']!r}: {rule}"))
    model = values["model"] or request.model
    if values["model"]:
        parts = (part.strip() for part in model.split(BETWEEN))
        model = BETWEEN.join(str((sheet.parent / p).absolute()) if (sheet.parent / p).is_dir() else p for p in parts)
    numbers = {name: int(values[name]) if values[name].isdecimal() else None for name in NUMBERS}
    for name in NUMBERS:
        if values[name] and numbers[name] is None:
            message = f"{name} is {values[name]!r}: it must be a whole number from 0"
            problems.append(RowProblem(line.number, values["slide"], message))
    extra = tuple((name, value) for name, value in line.values.items() if name not in COLUMNS)
    return Row(
        line.number,
        values["slide_id"] or slide.stem,
        slide,
        mpp,
        model,
        mask,
        numbers["image"],
        numbers["z"],
        extra=extra,
    )


def _mpp(text: str) -> float | None:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if MIN_MPP <= value <= MAX_MPP else None


def _double_ids(rows: list[Row]) -> Iterator[RowProblem]:
    """Problems of ids that are invalid in file names or duplicate; some file systems ignore case."""
    first: dict[str, Row] = {}
    for row in rows:
        name = str(row.slide)
        if not re.fullmatch(r"[\w\-+=@,()#~][\w\-+=@,()#~. ]*", row.slide_id) or len(row.slide_id) > LONGEST_ID:
            rule = f"at most {LONGEST_ID} letters, digits, - _ . + = @ , ( ) # ~ or spaces"
            yield RowProblem(row.line, name, f"slide_id is {row.slide_id!r}: it names files and may contain {rule}")
        earlier = first.setdefault(row.slide_id.casefold(), row)
        if earlier is not row:
            yield RowProblem(
                row.line, name, f"slide_id {row.slide_id!r} is also used in line {earlier.line}; ids must differ"
            )
