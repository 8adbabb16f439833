"""`summary.html` and `summary.csv`: one row per slide, in self-contained files.

Both are written row by row, so that memory use does not depend on the number of slides.
"""

from __future__ import annotations

import csv
import os
import shlex
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from wsi_stain import __version__
from wsi_stain.cohort.files import Folder, SlideState
from wsi_stain.cohort.request import Row
from wsi_stain.files import record
from wsi_stain.files.atomic import replacing
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.files.page import template
from wsi_stain.files.paths import without_home
from wsi_stain.measure.deconvolution import POSITIVE_OD

HTML, CSV = "summary.html", "summary.csv"
WARNING = f"Virtual stains: predictions from H&E, not physical stains. {RESEARCH_USE.upper()}."
COLUMNS = {
    "Slide": True,
    "H&E": False,
    "Tissue": False,
    "Virtual stain": False,
    "Positive area": True,
    "Seams": True,
    "State": True,
    "Time": True,
    "Files": False,
}
"""Column headings of the page, and whether the page can be sorted by them."""
PICTURES = {"he": "H&E", "mask": "tissue mask", "stain": "virtual stain"}
"""Thumbnails of an account, and what they show."""
CSV_COLUMNS = (
    "slide_id", "slide", "state", "reason", "stain", "model", "output", "width_px", "height_px", "mpp",
    "tissue_tiles", "positive_area_fraction", "positive_area_mpp", "seams", "warnings", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Slide:
    """Data of one slide."""

    files: Folder
    row: Row
    state: SlideState
    account: Mapping[str, Any]

    @property
    def seams(self) -> Mapping[str, Any]:
        """The seam certificate; empty if the record has none."""
        return self.account.get("seams") or {}

    def links(self) -> Iterator[tuple[str, str]]:
        """Texts and addresses of files, relative to the page, so that the folder can be moved."""
        if self.state.state == "done":
            output = self.files.output(self.row)
            yield "virtual stain", quote(output.name)
            yield "record", quote(record.path_of(output).name)
            if self.account.get("mask_file"):
                yield "tissue", quote(self.account["mask_file"])
        elif self.state.state == "failed":
            yield "traceback", quote(self.files.failed_file(self.row).name)
        try:
            yield "H&E", quote(Path(os.path.relpath(self.row.slide, self.files.path)).as_posix())
        except ValueError:  # on another drive of Windows
            yield "H&E", self.row.slide.absolute().as_uri()


def write_summary(folder: Path, files: Folder | None = None) -> Path:
    """Write both files of a cohort atomically; pass the same `files` each time, which remember the heartbeats.

    Returns:
        Path of the page.
    """
    files = files or Folder(folder)
    with _appearing(folder / CSV) as table:
        writer = csv.writer(table)
        extra = list(dict.fromkeys(name for row in files.rows() for name, _ in row.extra))
        writer.writerow([*CSV_COLUMNS, *(f"sheet_{name}" if name in CSV_COLUMNS else name for name in extra)])
        writer.writerows([*_values(slide), *_extra(slide.row, extra)] for slide in _slides(files))
    with _appearing(folder / HTML) as page:
        page.writelines(_page(files))
    return folder / HTML


def _page(files: Folder) -> Iterator[str]:
    """The parts of the page."""
    counts = Counter(files.state(row).state for row in files.rows())
    return template("wsi_stain.cohort", "summary.html.jinja").generate(
        warning=WARNING,
        folder=shlex.quote(files.path.resolve().name),
        totals=", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "no slides",
        when=datetime.now(UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00"),
        version=__version__,
        columns=COLUMNS,
        pictures=PICTURES,
        positive_od=POSITIVE_OD,
        slides=_slides(files),
    )


def _slides(files: Folder) -> Iterator[_Slide]:
    for row in files.rows():
        state = files.state(row)
        yield _Slide(files, row, state, files.account(row) if state.state == "done" else {})


@contextmanager
def _appearing(path: Path) -> Generator[IO[str]]:
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def _values(slide: _Slide) -> list[Any]:
    account = slide.account
    h, w = account.get("size_px") or ("", "")
    return [
        slide.row.slide_id,
        without_home(str(slide.row.slide)),
        slide.state.state,
        slide.state.reason if slide.state.state == "failed" else "",
        account.get("stain", ""),
        account.get("model", slide.row.model),
        slide.row.output,
        w,
        h,
        *("" if account.get(key) is None else account[key] for key in ("mpp", "tissue_tiles")),
        "" if account.get("positive") is None else f"{account['positive']:.6f}",
        "" if account.get("positive_mpp") is None else account["positive_mpp"],
        slide.seams.get("verdict", ""),
        "; ".join(account.get("warnings", ())),
        "" if account.get("seconds") is None else f"{account['seconds']:.3f}",
    ]


def _extra(row: Row, names: Sequence[str]) -> list[str]:
    """The values of the sheet's other columns."""
    values = dict(row.extra)
    return [values.get(name, "") for name in names]
