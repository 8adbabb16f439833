"""Fields to look at in a report: the best, the median and the worst."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wsi_stain.evaluate.evaluate import EvaluationResult, error

THUMBNAIL_PX = 384
"""Longer side of a picture in the report."""
BEST, MEDIAN, WORST = 3, 3, 4
"""Number of fields shown."""
SHOWN_ROWS = 3
"""Most contenders shown side by side."""
SHOWN_SHARE = 0.02
"""Only fields with this share of positive pixels, real or generated, are ranked for pictures, to avoid blank ones."""


@dataclass(frozen=True, slots=True)
class Example:
    """One field to look at."""

    name: str
    why: str
    """`best`, `median` or `worst`."""
    error: float
    """As `evaluate.error`."""
    pictures: Mapping[str, bytes]
    """Caption → JPEG: H&E, contenders, real."""


def examples(result: EvaluationResult) -> list[Example]:
    """Pictures of the best, median and worst fields of the first contender; each is read and stained again."""
    painters = [c for c in result.contenders if c.kind in ("model", "images")][:SHOWN_ROWS]
    if not painters:
        return []
    selection = []
    for why, i in choose(result, painters[0].name):
        view = result.fields[i].view()
        images = {"H&E": view.he, **{c.name: c.answer(view) for c in painters}, "real stain": view.real}
        pictures = {caption: _jpeg(image) for caption, image in images.items()}
        selection.append(Example(view.name, why, error(result.figures[painters[0].name][i]), pictures))
    return selection


def choose(result: EvaluationResult, row: str) -> list[tuple[str, int]]:
    """Fields to show, by the error of a row's positive share: (`best`, `median` or `worst`, index)."""
    figures = result.figures[row]
    positive = [max(f.real.shares["field"][0], f.generated.shares["field"][0]) for f in figures]
    enough = max(sum(share >= SHOWN_SHARE for share in positive), BEST + MEDIAN + WORST)
    most_positive = sorted(range(len(figures)), key=lambda i: -positive[i])[:enough]
    order = sorted(most_positive, key=lambda i: error(figures[i]))
    worst = order[len(order) - WORST :][::-1] if len(order) > WORST else order[::-1]
    best = order[: max(0, min(BEST, len(order) - len(worst)))]
    rest = order[len(best) : len(order) - len(worst)]
    start = max(0, (len(rest) - MEDIAN) // 2)
    median = rest[start : start + MEDIAN]
    return [(why, i) for why, indices in (("best", best), ("median", median), ("worst", worst)) for i in indices]


def _jpeg(image: np.ndarray) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=88)
    return target.getvalue()
