"""Tables as spreadsheets write them: comma, semicolon or tab, capitals, blanks, byte order marks, empty columns."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

DELIMITERS = ",;\t|"


class BadTable(ValueError):  # noqa: N818 - named after the state of the file
    """The file is not a table; `str()` is a predicate whose subject is the file."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table."""

    number: int
    """Line in the file; the header is usually line 1."""
    values: dict[str, str]
    """Text by column, without blanks around it; columns that the row does not reach are missing."""
    is_too_long: bool = False
    """Whether it has values to the right of the last column."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns and rows of a table; empty rows and empty columns are left out."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]


def read_table(path: Path, known: Collection[str]) -> Table:
    """Read a table with a header.

    Args:
        path: of the file, in UTF-8, or UTF-16 with a byte order mark.
        known: names that are recognised in any spelling (`Slide ID` is `slide_id`); other names stay as they are.

    Raises:
        BadTable: the text cannot be decoded, or a column appears twice.
        OSError: the file cannot be read.
    """
    text = _decoded(path.read_bytes())
    first, _, rest = text.partition("\n")
    separator = re.fullmatch(r"\s*sep=(.)\s*", first)  # Excel's own first line
    reader = csv.reader(
        io.StringIO(rest if separator else text, newline=""), delimiter=separator[1] if separator else _delimiter(text)
    )
    before = 1 if separator else 0
    try:
        lines = [(reader.line_num + before, [value.strip() for value in line]) for line in reader]
    except csv.Error as err:
        raise BadTable(f"is not a table ({err})") from err
    lines = [(number, values) for number, values in lines if any(values)]
    if not lines:
        raise BadTable("is empty")
    spellings = {_plain(name): name for name in known}
    names = [spellings.get(_plain(name), name) for name in lines[0][1]]
    double = next((name for name in names if name and names.count(name) > 1), None)
    if double:
        raise BadTable(f"has the column {double!r} twice")
    return Table(tuple(name for name in names if name), tuple(_lines(names, lines[1:])))


def _lines(names: list[str], lines: list[tuple[int, list[str]]]) -> Iterator[Line]:
    for number, values in lines:
        cells = list(zip(names, values, strict=False))
        beyond = [*values[len(names) :], *(value for name, value in cells if not name)]
        yield Line(number, {name: value for name, value in cells if name}, any(beyond))


def _decoded(data: bytes) -> str:
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_wide else "utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as err:
        raise BadTable(f"is not UTF-8 ({err}); save it as CSV UTF-8") from err
    if "\0" in text:
        raise BadTable("is not text (it contains zero bytes); save it as CSV UTF-8")
    return text


def _delimiter(text: str) -> str:
    """The most frequent delimiter in the first line with text, outside quotes; a comma if there is none."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    counts = {delimiter: re.sub(r'"[^"]*"', "", header).count(delimiter) for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: counts[delimiter])


def _plain(name: str) -> str:
    """A name without capitals, blanks and separators."""
    return re.sub(r"[\s_\-]+", "", name).casefold()
