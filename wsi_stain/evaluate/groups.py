"""The unit of the bootstrap: slides, or blocks of neighbouring fields if there is only one slide."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

NEIGHBOURS = 2
"""Fields along the side of a block: with usual tiles a block is about a millimetre wide."""


@dataclass(frozen=True, slots=True)
class FieldOrigin:
    """Origin of a field."""

    name: str
    slide: str
    """"" = unknown."""
    x: int | None = None
    y: int | None = None
    """Upper left corner in level-0 px of the slide; None = unknown."""
    patient: str = ""
    """"" = unknown."""


def group(places: Sequence[FieldOrigin], side: int) -> tuple[list[str], str]:
    """One label per field, and a description of the labels.

    Fields of several patients are grouped by patient, of several slides by slide, those of one slide by neighbourhood;
    if neither slides nor positions are known, each field is its own group (and the interval is too narrow, as
    neighbours are similar).

    Args:
        places: origins of the fields.
        side: of a field in px; the least pitch of a block's fields.
    """
    if len({p.patient for p in places} - {""}) > 1 and all(p.patient for p in places):
        return [p.patient for p in places], "patient"
    if len({p.slide for p in places}) > 1:
        return [p.slide for p in places], "slide"
    known = [(p.x, p.y) for p in places if p.x is not None and p.y is not None]
    if len(known) < len(places):
        return [f"{i} {p.name}" for i, p in enumerate(places)], "field"
    xs, ys = ([corner[axis] for corner in known] for axis in (0, 1))
    block = NEIGHBOURS * max(side, min([*_gaps(xs), *_gaps(ys)], default=0))  # on a grid, the least gap is its pitch
    labels = [f"{(x - min(xs)) // block}, {(y - min(ys)) // block}" for x, y in known]
    return labels, f"block of {NEIGHBOURS} × {NEIGHBOURS} neighbouring fields"


def _gaps(values: Sequence[int]) -> list[int]:
    ordered = sorted(set(values))
    return [b - a for a, b in itertools.pairwise(ordered)]
