"""A result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    """What was checked."""
    level: Level
    """`WARN`: slower than it could be, or something optional is missing; `FAIL`: conversions fail or are wrong."""
    detail: str
    """What was found."""
    fix: str = ""
    """What to do; empty if nothing is wrong."""
