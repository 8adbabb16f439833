"""What a run of a cohort reports: its events, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal["begin", "done", "failed", "retry", "in use", "warning", "end"]


@dataclass(frozen=True, slots=True)
class Event:
    """Progress event of a run."""

    kind: EventKind
    slide_id: str = ""
    text: str = ""
    done: int = 0
    """Finished slides, including those of earlier runs."""
    failed: int = 0
    total: int = 0
    seconds: float = 0.0
    """Conversion time of the slide."""


@dataclass(slots=True)
class CohortResult:
    """Outcome of a run."""

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons by slide_id, including failures of earlier runs that were not retried."""
    in_use: dict[str, str] = field(default_factory=dict)
    """Reasons by slide_id for slides that another run is converting."""

    @property
    def is_complete(self) -> bool:
        """Whether every slide of this run is done."""
        return self.done == self.total
