"""What a cohort will take, before it starts: per slide and in all, from a two-second sample of each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from wsi_stain.cohort.check import checked
from wsi_stain.cohort.request import CohortRequest, Row, to_convert
from wsi_stain.conversion import estimate
from wsi_stain.conversion.estimate import Sample
from wsi_stain.conversion.plan import plan as plan_slide
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.resources import disk_free, gib
from wsi_stain.errors import NoRoom
from wsi_stain.files import record
from wsi_stain.geometry import Size
from wsi_stain.output.canvas import beside


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What one slide will take."""

    row: Row
    size: Size
    """Of the output, px."""
    tissue_tiles: int
    """Still to be stained."""
    seconds: float
    memory_bytes: int
    """Peak of the process."""
    disk_bytes: int
    """Until it is finished: its blocks, and the file that is made of them."""
    kept_bytes: int
    """Of that, what stays."""


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """What a cohort will take on this machine."""

    slides: tuple[SlidePlan, ...]
    """Those that are not done."""
    done: int
    free_disk_bytes: int
    free_memory_bytes: int
    samples: tuple[tuple[str, Sample], ...]
    """Of every model."""

    @property
    def seconds(self) -> float:
        """One slide after the other."""
        return sum(slide.seconds for slide in self.slides)

    @property
    def memory_bytes(self) -> int:
        """Of the largest."""
        return max((slide.memory_bytes for slide in self.slides), default=0)

    @property
    def disk_bytes(self) -> int:
        """What stays of all, and the blocks of the largest while it is assembled."""
        kept = sum(slide.kept_bytes for slide in self.slides)
        return kept + max((slide.disk_bytes - slide.kept_bytes for slide in self.slides), default=0)

    def problems(self) -> list[str]:
        """What cannot fit, with both numbers."""
        found = []
        if self.disk_bytes > self.free_disk_bytes:
            found.append(
                f"the cohort needs about {gib(self.disk_bytes)} of disk and {gib(self.free_disk_bytes)} are free: make "
                "room, write elsewhere with -o, or do a part of it (--rows 1-20)"
            )
        if self.memory_bytes > self.free_memory_bytes:
            largest = max(self.slides, key=lambda slide: slide.memory_bytes)
            found.append(
                f"{largest.row.slide_id} needs about {gib(self.memory_bytes)} of memory and "
                f"{gib(self.free_memory_bytes)} are free: use smaller blocks (--set convert.grid.block=1024)"
            )
        return found


def plan(request: CohortRequest, tell: Callable[[int, int], None] = lambda done, total: None) -> CohortPlan:
    """Work out what `run(request)` will take; writes nothing.

    Args:
        request: what the user asks for.
        tell: called with the slides looked at, and how many there are.

    Raises:
        ConfigError: a table of everything that is wrong with the sheet.
    """
    rows = [row for index, row in enumerate(checked(request)) if request.is_chosen(index)]
    samples: dict[str, Sample] = {}
    slides: list[SlidePlan] = []
    parent = next(path for path in (request.folder.absolute(), *request.folder.absolute().parents) if path.is_dir())
    for n, row in enumerate(rows):
        output = request.folder / row.output
        if not (output.exists() and record.path_of(output).exists()):
            slides.append(_slide(request, row, parent, samples))
        tell(n + 1, len(rows))
    free = disk_free(parent / "output"), psutil.virtual_memory().available
    return CohortPlan(tuple(slides), len(rows) - len(slides), *free, tuple(samples.items()))


def check_room(made: CohortPlan) -> None:
    """Raise NoRoom where the plan cannot fit."""
    if problems := made.problems():
        raise NoRoom("; ".join(problems))


def _slide(request: CohortRequest, row: Row, parent: Path, samples: dict[str, Sample]) -> SlidePlan:
    asked = to_convert(request, row)
    if not request.folder.is_dir():  # planned as if it were there
        asked = _elsewhere(asked, parent)
    made = plan_slide(asked, source=_source(asked))
    if row.model not in samples and (found := estimate.sample(made)) is not None:
        samples[row.model] = found
    of = samples.get(row.model)
    return SlidePlan(
        row,
        made.job.region.size,
        made.tissue_tiles_todo,
        estimate.seconds(made, of),
        estimate.memory_bytes(made, of),
        made.disk_bytes,
        made.disk_bytes // 2,
    )


def _elsewhere(asked: ConvertRequest, parent: Path) -> ConvertRequest:
    assert asked.output, "a cohort names its outputs"
    return replace(asked, output=parent / asked.output.name)


def _source(asked: ConvertRequest) -> tuple[str, int]:
    """The slide's hash, as the blocks that are painted already know it, and its bytes: hashing a cohort takes hours."""
    assert asked.output, "a cohort names its outputs"
    known = record.read(beside(asked.output, ".spool") / "run.json")
    size = asked.slide.stat().st_size if asked.slide.is_file() else sum(f.stat().st_size for f in asked.slide.iterdir())
    return (known["source_sha256"], size) if known.get("source_bytes") == size else ("", size)
