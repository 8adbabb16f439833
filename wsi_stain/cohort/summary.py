"""`summary.html` and `summary.csv`: one row per slide, in self-contained files.

Both are written row by row, so that memory use does not depend on the number of slides.
"""

from __future__ import annotations

import csv
import os
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from wsi_stain import __version__
from wsi_stain.cohort.files import Folder, SlideState
from wsi_stain.cohort.page import CSS, SORTING
from wsi_stain.cohort.request import Row
from wsi_stain.files import record

HTML, CSV = "summary.html", "summary.csv"
WARNING = "Virtual stains: predictions from H&E, not physical stains. RESEARCH USE ONLY."
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
CSV_COLUMNS = (
    "slide_id", "slide", "state", "reason", "stain", "model", "output", "width_px", "height_px", "mpp",
    "tissue_tiles", "positive_area_fraction", "positive_area_mpp", "seams", "warnings", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Slide:
    """Data of one slide."""

    row: Row
    state: SlideState
    account: Mapping[str, Any]

    @property
    def seams(self) -> Mapping[str, Any]:
        """The seam certificate; empty if the record has none."""
        return self.account.get("seams") or {}


def write_summary(folder: Path) -> Path:
    """Write both files of a cohort atomically.

    Returns:
        Path of the page.
    """
    files = Folder(folder)
    with _appearing(folder / CSV) as table:
        writer = csv.writer(table)
        extra = list(dict.fromkeys(name for row in files.rows() for name, _ in row.extra))
        writer.writerow([*CSV_COLUMNS, *(f"sheet_{name}" if name in CSV_COLUMNS else name for name in extra)])
        writer.writerows([*_values(slide), *_extra(slide.row, extra)] for slide in _slides(files))
    with _appearing(folder / HTML) as page:
        _write_page(files, page.write)
    return folder / HTML


def _slides(files: Folder) -> Iterator[_Slide]:
    for row in files.rows():
        state = files.state(row)
        yield _Slide(row, state, files.account(row) if state.state == "done" else {})


@contextmanager
def _appearing(path: Path) -> Generator[IO[str]]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _values(slide: _Slide) -> list[Any]:
    account = slide.account
    h, w = account.get("size_px") or ("", "")
    return [
        slide.row.slide_id,
        slide.row.slide,
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


def _write_page(files: Folder, write: Callable[[str], Any]) -> None:
    write(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Cohort of virtual stains</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n<body><main>'
        f'<h1>Cohort of virtual stains</h1><p class="warning"><strong>{escape(WARNING)}</strong></p>'
    )
    heads = "".join(
        f'<th scope="col"{" data-sorts" if sorts else ""}>{escape(name)}</th>' for name, sorts in COLUMNS.items()
    )
    counts = Counter(files.state(row).state for row in files.rows())
    totals = ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "no slides"
    when = datetime.now(UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")
    write(
        f'<p class="counts">{totals}. Written {when} UTC by wsi-stain {escape(__version__)}.</p>'
        f'<div class="wide"><table id="slides"><thead><tr>{heads}</tr></thead><tbody>\n'
    )
    for slide in _slides(files):
        write(_row(files, slide) + "\n")
    write(f"</tbody></table></div>{MEANINGS}<script>{SORTING}</script></main></body></html>\n")


def _row(files: Folder, slide: _Slide) -> str:
    account, state = slide.account, slide.state
    cells = [
        _cell(slide.row.slide_id, _slide_cell(slide)),
        *(_picture(slide, key, what) for key, what in PICTURES.items()),
        _cell(account.get("positive"), _percent(account.get("positive"))),
        _cell(slide.seams.get("verdict", ""), _seams(slide)),
        _cell(state.state, _state(slide)),
        _cell(account.get("seconds"), _time(account.get("seconds"))),
        _cell(None, _links(files, slide)),
    ]
    return f'<tr class="{state.state}">{"".join(cells)}</tr>'


PICTURES = {"he": "H&E", "mask": "tissue mask", "stain": "virtual stain"}


def _cell(sorts_by: Any, content: str) -> str:
    value = "" if sorts_by is None else f' data-value="{escape(str(sorts_by))}"'
    return f"<td{value}>{content}</td>"


def _slide_cell(slide: _Slide) -> str:
    account, size = slide.account, slide.account.get("size_px")
    facts = [f"{account['stain']} by {account['model']}"] if account else []
    facts += (
        [f"{size[1]} × {size[0]} px" + (f" at {account['mpp']:g} µm/px" if account.get("mpp") else "")] if size else []
    )
    return f"<strong>{escape(slide.row.slide_id)}</strong>" + "".join(
        f"<small>{escape(text)}</small>" for text in facts
    )


def _picture(slide: _Slide, key: str, what: str) -> str:
    data = slide.account.get("thumbnails", {}).get(key)
    if not data:
        return "<td></td>"
    alt = escape(f"{what} of {slide.row.slide_id}")
    return f'<td class="picture"><img loading="lazy" alt="{alt}" src="data:image/jpeg;base64,{data}"></td>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _seams(slide: _Slide) -> str:
    """The verdict and the figure it is based on."""
    verdict = slide.seams.get("verdict")
    if not verdict:
        return "–"
    mean, allowed = (slide.seams.get(key) for key in ("difference_mean", "difference_allowed"))
    figure = "" if mean is None or allowed is None else f"<small>{mean:.2f} of {allowed:.2f} grey levels</small>"
    kind = verdict if verdict in ("pass", "fail") else ""
    return f'<span class="{kind}">{escape(verdict)}</span>{figure}'


def _state(slide: _Slide) -> str:
    notes = [slide.state.reason] if slide.state.reason else []
    notes += slide.account.get("warnings", ())
    text = f"{slide.state.state} ({slide.state.share:.0%})" if slide.state.state == "running" else slide.state.state
    return f'<span class="{slide.state.state}">{text}</span>' + "".join(
        f"<small>{escape(note)}</small>" for note in notes
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.1f} s"


def _links(files: Folder, slide: _Slide) -> str:
    """Links to files, relative to the page, so that the folder can be moved."""
    links = []
    if slide.state.state == "done":
        output = files.output(slide.row)
        names = {"virtual stain": output.name, "record": record.path_of(output).name}
        names |= {"tissue": slide.account["mask_file"]} if slide.account.get("mask_file") else {}
        links = [(text, quote(name)) for text, name in names.items()]
    elif slide.state.state == "failed":
        links = [("traceback", quote(files.failed_file(slide.row).name))]
    try:
        links.append(("H&E", quote(Path(os.path.relpath(slide.row.slide, files.path)).as_posix())))
    except ValueError:  # on another drive of Windows
        links.append(("H&E", slide.row.slide.absolute().as_uri()))
    return "".join(f'<a href="{escape(href)}">{escape(text)}</a>' for text, href in links)


MEANINGS = (
    "<p>Positive area: share of the tissue whose virtual DAB density is above 0.15, measured on a reduced level (its "
    "µm/px is in summary.csv), so it is an estimate. Seams: the seam certificate of the record, if any. The figures "
    "describe predictions; none of them measures a protein. Click a column heading to sort.</p>"
)
