"""The verdict on a registration: register, poor, or refuse, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wsi_stain.errors import counted
from wsi_stain.registration.evidence import Evidence

Word = Literal["register", "poor", "refuse"]
SURE = 5.0
"""Standard deviations above chance from which a map of the slide holds; the best of several hypotheses must have it."""
PART_SURE = 3.0
"""The same for one part of a slide whose map holds: nothing is chosen among many there."""
FEWEST_OF_A_SLIDE = 30
"""Fewest windows for a verdict on a slide: with 14, one of 25 unrelated pairs seemed to correspond."""
WHOLE, PART = 0.8, 0.25
"""Share of the tissue in registered fragments: `register` from the first, `refuse` below the second."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two slides correspond."""

    word: Word
    reasons: tuple[str, ...]
    """Sentences for the user."""
    tissue: float
    """Share of the tissue that lies in registered fragments."""


def judge(best: Evidence, areas: Sequence[float], evidences: Sequence[Evidence]) -> Verdict:
    """The verdict from the evidence of the slide's best map, and the area and the evidence of each of its parts."""
    if best.windows < FEWEST_OF_A_SLIDE:
        reason = (
            f"too little tissue to judge: {counted(best.windows, 'window')}, of which {FEWEST_OF_A_SLIDE} are needed"
        )
        return Verdict("refuse", (reason,), 0.0)
    total, is_sure = sum(areas), best.deviations >= SURE
    holding = [is_sure and e.deviations >= PART_SURE for e in evidences]
    sure = sum(a for a, holds in zip(areas, holding, strict=True) if holds) / total if total else 0.0
    if not is_sure:
        reason = (
            "inside the tissue, the two slides agree hardly more than by chance "
            f"({best.deviations:.1f} standard deviations at the best rotation; {SURE:g} are needed)"
        )
        return Verdict("refuse", (reason,), 0.0)
    reason = f"{sure:.0%} of the tissue corresponds ({sum(holding)} of {counted(len(evidences), 'part')})"
    if sure < PART:
        return Verdict("refuse", (reason,), sure)
    return Verdict("register" if sure >= WHOLE else "poor", (reason,), sure)
