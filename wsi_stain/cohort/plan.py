"""Estimate time, memory and disk of a cohort, per slide and in total, from a two-second sample of each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from wsi_stain.cohort.check import Examined, checked, examined
from wsi_stain.cohort.request import CohortRequest, Row, to_convert
from wsi_stain.cohort.sheet import RowProblem
from wsi_stain.conversion import estimate
from wsi_stain.conversion.estimate import Estimate, TimingSample
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.resources import disk_free
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import InsufficientResources, WsiStainError
from wsi_stain.files import record
from wsi_stain.files.full_disk import gib
from wsi_stain.geometry import Size
from wsi_stain.output.canvas import beside
from wsi_stain.slide.files import size_of


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """Estimate for one slide."""

    row: Row
    size: Size
    """Size of the output, px."""
    tissue_tiles: int
    """Tissue tiles not yet stained."""
    seconds: float
    memory_bytes: int
    """Peak memory of the process."""
    disk_bytes: int
    """Disk space during the conversion: the blocks, and the file assembled from them."""
    kept_bytes: int
    """Part of `disk_bytes` that remains after the conversion."""


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Estimate for a cohort on this machine."""

    slides: tuple[SlidePlan, ...]
    """Slides that are not done."""
    done: int
    free_disk_bytes: int
    free_memory_bytes: int
    samples: tuple[tuple[str, TimingSample], ...]
    """Model name and timing sample of every model."""
    faulty: tuple[RowProblem, ...] = ()
    """Problems of rows that cannot be converted."""

    @property
    def seconds(self) -> float:
        """Total time with one slide after the other."""
        return sum(slide.seconds for slide in self.slides)

    @property
    def memory_bytes(self) -> int:
        """Memory of the largest slide."""
        return max((slide.memory_bytes for slide in self.slides), default=0)

    @property
    def disk_bytes(self) -> int:
        """Disk space that remains for all slides, plus the blocks of the largest during its assembly."""
        kept = sum(slide.kept_bytes for slide in self.slides)
        return kept + max((slide.disk_bytes - slide.kept_bytes for slide in self.slides), default=0)

    def problems(self) -> list[str]:
        """Messages for what does not fit, with the required and the free amount."""
        messages = []
        if self.disk_bytes > self.free_disk_bytes:
            messages.append(
                f"the cohort needs about {gib(self.disk_bytes)} of disk and {gib(self.free_disk_bytes)} are free; free "
                "some space, choose another folder with -o, or convert a part of it (--rows 1-20)"
            )
        if self.memory_bytes > self.free_memory_bytes:
            largest = max(self.slides, key=lambda slide: slide.memory_bytes)
            messages.append(
                f"{largest.row.slide_id} needs about {gib(self.memory_bytes)} of memory and "
                f"{gib(self.free_memory_bytes)} are free; use smaller blocks (--set convert.grid.block=1024)"
            )
        return messages


def plan(request: CohortRequest, on_progress: Callable[[int, int], None] = lambda done, total: None) -> CohortPlan:
    """Estimate what `run(request)` needs; writes nothing.

    Args:
        request: of the user.
        on_progress: called with the number of slides checked, and their total.

    Raises:
        ConfigError: the message is a table of all problems of the sheet.
    """
    sheet = Examined(checked(request), []) if request.strict else examined(request)
    faulty, reasons = list(sheet.problems), sheet.reasons
    rows = [row for n, row in enumerate(sheet.rows) if request.is_chosen(n) and row.line not in reasons]
    samples: dict[str, TimingSample] = {}
    slides: list[SlidePlan] = []
    done = 0
    parent = next(path for path in (request.folder.absolute(), *request.folder.absolute().parents) if path.is_dir())
    for n, row in enumerate(rows):
        output = request.folder / row.output
        if output.exists() and record.path_of(output).exists():
            done += 1
        else:
            try:
                slides.append(_slide(request, row, parent, samples))
            except WsiStainError as err:
                faulty.append(RowProblem(row.line, str(row.slide), str(err)))
        on_progress(n + 1, len(rows))
    free = disk_free(parent / "output"), psutil.virtual_memory().available
    return CohortPlan(tuple(slides), done, *free, tuple(samples.items()), tuple(faulty))


def check_resources(estimated: CohortPlan) -> None:
    """Raise InsufficientResources if the disk or the memory is too small."""
    if problems := estimated.problems():
        raise InsufficientResources("; ".join(problems))


def _slide(request: CohortRequest, row: Row, parent: Path, samples: dict[str, TimingSample]) -> SlidePlan:
    conversion = to_convert(request, row)
    if not request.folder.is_dir():  # estimate as if the folder existed
        conversion = _elsewhere(conversion, parent)
    survey = Survey.of(conversion, source=_source(conversion))
    job = Job.of(survey)
    if row.model not in samples and (new_sample := estimate.sample(survey, job)) is not None:
        samples[row.model] = new_sample
    left = Estimate.of(survey, job).with_sample(survey, samples.get(row.model))
    return SlidePlan(
        row,
        job.grid.region.size,
        left.tissue_tiles,
        left.seconds,
        left.memory_bytes,
        left.disk_bytes,
        left.disk_bytes // 2,
    )


def _elsewhere(conversion: ConvertRequest, parent: Path) -> ConvertRequest:
    assert conversion.output, "a cohort names its outputs"
    return replace(conversion, output=parent / conversion.output.name)


def _source(conversion: ConvertRequest) -> tuple[str, int]:
    """The slide's hash from the record of an unfinished conversion, and its bytes: hashing all slides takes hours."""
    assert conversion.output, "a cohort names its outputs"
    known = record.read(beside(conversion.output, ".spool") / "run.json")
    size = size_of(conversion.slide)
    return (known["source_sha256"], size) if known.get("source_bytes") == size else ("", size)
