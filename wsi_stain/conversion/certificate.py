"""The seam certificate: its limits, and the verdict whether tile boundaries are visible in an output.

Four checks: a step at tile lines (a), pixels (b) and DAB-positive area (c) that depend on tiles, as `conversion.seams`
measures them, and a visible outline of the stained tiles (d), see `conversion.outline`. The limits follow from the data
and from the tolerance of the bundle, see `judge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsi_stain.config.model import TileTolerance
from wsi_stain.conversion.outline import ALLOWED
from wsi_stain.measure.metrics import bootstrap, mean

FEWEST_LINES = 8
"""Fewest lines of which check (a) is judged."""
ROUNDING = 0.5
"""Grey levels by which rounding to uint8 can change a pixel. If two tilings differ by more in the mean over places on
seams, the difference comes from the tiles, not from rounding."""
HALF_A_POINT = 0.5
"""Percentage points of positive area: shares are read in whole percent, which smaller changes do not affect."""

Verdict = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result; all steps and differences are in grey levels of 0–255."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why the verdict is not a pass, or why no measurement was needed."""
    lines: int = 0
    step: float | None = None
    """Mean step at the shifted lines: the texture of the image."""
    excess: float | None = None
    """Step at tile lines minus the step at shifted lines."""
    excess_low: float | None = None
    excess_high: float | None = None
    """99 % interval of the excess, by bootstrap over lines."""
    excess_shifted: float | None = None
    """Largest excess of one shifted line over the others: the level without a seam."""
    places: int = 0
    """Number of tiles stained a second time, half a stride off the grid."""
    difference_mean: float | None = None
    difference_p99: int | None = None
    difference_allowed: float | None = None
    """Largest mean that passes; see `judge`."""
    dab_change: float | None = None
    """Mean change of the DAB-positive share over the places, in percentage points."""
    outline: float | None = None
    """Difference of glass in stained tiles from the constant background of the others; None if either is too rare."""


POINTWISE = Certificate("pass", ("each output pixel depends only on its own input pixel",))
"""Certificate of a generator whose pixels cannot depend on the tile."""


def judge(
    measured: Sequence[Sequence[float]],
    compared: Sequence[Mapping[str, Sequence[int]]],
    *,
    tolerance: TileTolerance | None,
    stride: int,
    channels: int = 3,
    outline: float | None = None,
) -> Certificate:
    """The certificate of an output.

    (a) fails if even the lower bound of the excess is above the largest excess among the shifted lines. Without a seam
    the line is equivalent to a shifted line, and this happens by chance in less than 1 of 200 outputs.
    (b) The bundle's tolerance is for a whole period of the grid: its mean and 99th percentile. If all of that were in
    the places, which are on seams, it would be larger there by the ratio of the areas. That much is allowed, but at
    most the effect of rounding (`ROUNDING`), which is also the limit for a bundle without one.
    (c) fails if the share of positive area changes by more than half a percentage point; only for colours.
    (d) fails if the outline differs by more than `outline.ALLOWED` grey levels.

    Args:
        measured: the result of `steps` for each line.
        compared: the result of `compare` for each place.
        tolerance: the tile tolerance of the bundle.
        stride: distance from tile to tile in px.
        channels: values of a pixel.
        outline: the result of `outline.difference`, if it was asked.
    """
    figures: dict[str, Any] = {"lines": len(measured), "places": len(compared)}
    if outline is not None:
        figures["outline"] = round(outline, 4)
    reasons: list[str] = []
    if len(measured) >= FEWEST_LINES:
        figures |= _excess(np.asarray(measured))
        if figures["excess_low"] > max(0.0, figures["excess_shifted"]):
            reasons.append("the image has a step at tile boundaries")
    if compared:
        periods = _periods(compared, stride, channels)
        figures |= _difference(compared, tolerance, periods, channels)
        if figures["difference_mean"] > figures["difference_allowed"]:
            reasons.append("a shifted tile grid gives different pixels")
        elif _breaks_percentile(compared, tolerance, periods):
            reasons.append("a shifted tile grid changes more pixels than the bundle's tile tolerance allows")
        if (figures["dab_change"] or 0.0) > HALF_A_POINT:
            reasons.append("a shifted tile grid gives a different positive area")
    if (outline or 0.0) > ALLOWED:
        reasons.append("stained tiles have a visible outline on the background")
    if len(measured) < FEWEST_LINES and not compared and outline is None:
        return Certificate("not applicable", ("no two tissue tiles are adjacent",), **figures)
    return Certificate("fail" if reasons else "pass", tuple(reasons), **figures)


def _excess(measured: np.ndarray) -> dict[str, float]:
    """From steps (lines, 1 + shifts): the excess at the lines, its interval, and the largest of the shifted lines."""
    line, shifted = measured[:, 0], measured[:, 1:]
    over = line - shifted.mean(1)
    sums, each = np.stack([over, np.ones_like(over)], 1), [str(i) for i in range(len(over))]
    estimate = bootstrap(sums, mean, each, level=99)
    others = (shifted.sum(1, keepdims=True) - shifted) / (shifted.shape[1] - 1)
    return {
        "step": round(float(shifted.mean()), 4),
        "excess": round(estimate.value, 4),
        "excess_low": round(estimate.low, 4),
        "excess_high": round(estimate.high, 4),
        "excess_shifted": round(float((shifted - others).mean(0).max()), 4),
    }


def _difference(
    compared: Sequence[Mapping[str, Sequence[int]]], tolerance: TileTolerance | None, periods: float, channels: int
) -> dict[str, float | None]:
    counts, values = _counts(compared), np.arange(256)
    total = int(counts.sum())
    changes = [
        abs(place["positive"][0] - place["positive"][1]) / (sum(place["differences"]) / channels)
        for place in compared
        if place["positive"]
    ]
    allowed = ROUNDING if tolerance is None else min(ROUNDING, tolerance.mean * periods)
    return {
        "difference_mean": round(float(counts @ values) / total, 4),
        "difference_p99": int(np.searchsorted(counts.cumsum(), 0.99 * total)),
        "difference_allowed": round(allowed, 4),
        "dab_change": round(100 * float(np.mean(changes)), 4) if changes else None,
    }


def _breaks_percentile(
    compared: Sequence[Mapping[str, Sequence[int]]], tolerance: TileTolerance | None, periods: float
) -> bool:
    """Whether too many pixels differ by more than the 99th percentile allowed."""
    if tolerance is None:
        return False
    counts = _counts(compared)
    return float(counts[int(tolerance.p99) + 1 :].sum() / counts.sum()) > 0.01 * periods


def _counts(compared: Iterable[Mapping[str, Sequence[int]]]) -> np.ndarray:
    """Number of pixel channels that differ by 0, 1, … grey levels, over all places: int64 (256,)."""
    total = np.zeros(256, np.int64)
    for place in compared:
        total[: len(place["differences"])] += np.asarray(place["differences"], np.int64)
    return total


def _periods(compared: Sequence[Mapping[str, Sequence[int]]], stride: int, channels: int) -> float:
    """Area of a grid period divided by the mean compared area of a place; at least 1."""
    return max(1.0, len(compared) * stride * stride / (_counts(compared).sum() / channels))


def in_words(certificate: Mapping[str, Any]) -> dict[str, str]:
    """The record of a certificate as texts, for the metadata of an output."""
    texts = {"seams": "; ".join([certificate["verdict"], *certificate["reasons"]])}
    if certificate["excess"] is not None:
        texts["seams_step"] = (
            f"{certificate['excess']:+.3f} grey levels [{certificate['excess_low']:+.3f}, "
            f"{certificate['excess_high']:+.3f}] (99 %) at {certificate['lines']} tile lines relative to the "
            f"same lines shifted ({certificate['step']:.3f}); the largest excess of a shifted line over the others is "
            f"{certificate['excess_shifted']:.3f}"
        )
    if certificate["difference_mean"] is not None:
        texts["seams_difference"] = (
            f"mean {certificate['difference_mean']:.3f} (allowed {certificate['difference_allowed']:.3f}), 99 % "
            f"{certificate['difference_p99']} grey levels between the output and {certificate['places']} tiles stained "
            "a second time off the grid"
        )
    if certificate["dab_change"] is not None:
        texts["seams_dab"] = (
            f"{certificate['dab_change']:.3f} percentage points of DAB-positive area, at the same places"
        )
    if certificate.get("outline") is not None:
        texts["seams_outline"] = (
            f"{certificate['outline']:.3f} grey levels (allowed {ALLOWED:.3f}) between glass in stained tiles and the "
            "background of the others"
        )
    return texts
