"""Progress of a conversion, as events for a display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["plan", "stain", "assemble", "check", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One event."""

    stage: Stage
    done_blocks: int = 0
    """Painted blocks, including those of earlier runs."""
    blocks: int = 0
    done_tiles: int = 0
    """Tissue tiles of the blocks painted in this run."""
    tiles: int = 0
    """Tissue tiles to stain in this run."""
    seconds: float = 0.0
    """Time since this run started."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """Thread-seconds in the stages read, wait (for the device), generate, blend and write so far."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The same as shares of the threads' time, 0–1."""
    device_busy: float = 0.0
    """Share of the time in which the device worked, 0–1; near 1 the device limits the speed, else the largest stage."""
