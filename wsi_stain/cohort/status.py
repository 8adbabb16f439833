"""How far a cohort is: read from its files alone, on any machine that sees them."""

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
    """What became of all slides."""

    slides: tuple[tuple[Row, SlideState], ...]
    seconds_left: float | None
    """None where nothing is known, or nothing is running."""

    @property
    def counts(self) -> dict[State, int]:
        """Slides by state."""
        return dict(Counter(state.state for _, state in self.slides))

    def of(self, state: State) -> Iterator[tuple[Row, SlideState]]:
        """The slides of a state."""
        return (slide for slide in self.slides if slide[1].state == state)


def overview(folder: Path) -> Overview:
    """What became of all slides of the cohort in a folder.

    Raises:
        OutputError: there is no cohort.
    """
    files = Folder(folder)
    rows = files.rows()
    if not rows:
        raise OutputError(f"{folder} holds no cohort (no cohort.json): name the folder that was -o of `cohort run`")
    slides = tuple((row, files.state(row)) for row in rows)
    return Overview(slides, _seconds_left(files, slides))


def _seconds_left(files: Folder, slides: tuple[tuple[Row, SlideState], ...]) -> float | None:
    """From what finished slides took for their pixels, shared out over those that run now."""
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
        (row.pixels or usual) * (1 - state.share) for row, state in slides if state.state not in ("done", "failed")
    )
    return taken / pixels * left / running
