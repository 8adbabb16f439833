"""Progress of a cohort, read from its files only, on any machine that can access them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_stain.cohort.files import Folder, SlideState, State
from wsi_stain.cohort.request import Row
from wsi_stain.errors import OutputError
from wsi_stain.files import record


@dataclass(frozen=True, slots=True)
class Overview:
    """States of all slides."""

    slides: tuple[tuple[Row, SlideState], ...]
    seconds_left: float | None
    """Estimated remaining time; None if no slide is finished or none is running."""

    @property
    def counts(self) -> dict[State, int]:
        """Number of slides by state."""
        return dict(Counter(state.state for _, state in self.slides))

    def of(self, state: State) -> Iterator[tuple[Row, SlideState]]:
        """The slides in a state."""
        return (slide for slide in self.slides if slide[1].state == state)


def overview(folder: Path) -> Overview:
    """States of all slides of the cohort in a folder.

    Raises:
        OutputError: the folder has no cohort.
    """
    files = Folder(folder)
    rows = files.rows()
    if not rows:
        raise OutputError(f"{folder} contains no cohort (cohort.json is missing); pass the -o folder of `cohort run`")
    files.watch(rows)
    slides = tuple((row, files.state(row)) for row in rows)
    return Overview(slides, _seconds_left(files, slides))


def _seconds_left(files: Folder, slides: tuple[tuple[Row, SlideState], ...]) -> float | None:
    """Estimate from the time per pixel of finished slides, divided by the number of running slides."""
    running = sum(state.state == "running" for _, state in slides)
    taken, pixels = 0.0, 0
    for row, state in slides:
        if state.state == "done" and row.pixels:
            seconds = record.read(record.path_of(files.output(row))).get("seconds", {}).get("all")
            taken, pixels = (taken + seconds, pixels + row.pixels) if seconds else (taken, pixels)
    if not running or not pixels:
        return None
    usual = sum(row.pixels for row, _ in slides) / len(slides)
    left = sum(
        (row.pixels or usual) * (1 - state.progress) for row, state in slides if state.state not in ("done", "failed")
    )
    return taken / pixels * left / running
