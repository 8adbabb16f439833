"""Plausibility checks of a slide's scale: its µm/px, and the downsample of its levels."""

from __future__ import annotations

from fractions import Fraction

from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Size
from wsi_stain.slide.readers.base import Facts


def slide_mpp(facts: Facts, name: str) -> float:
    """µm per px of level 0, as stored in the file `name`.

    Raises:
        SlideError: the file has no pixel size, or an implausible one.
    """
    if facts.mpp is None:
        reason = f"missing: {facts.mpp_from}" if facts.mpp_from else "the image format stores none"
        raise SlideError(f"{name} has no pixel size ({reason}); pass --mpp, for example --mpp 0.25")
    for value in facts.mpp:
        if not MIN_MPP <= value <= MAX_MPP:
            raise SlideError(
                f"{name} has {value:.6g} µm/px in {facts.mpp_from}; it must be between {MIN_MPP} and {MAX_MPP:g}; "
                "pass the correct value, for example --mpp 0.25"
            )
    x, y = facts.mpp
    if abs(x / y - 1) > 0.02:
        raise SlideError(
            f"{name} has {x:.6g} × {y:.6g} µm/px in {facts.mpp_from}; pixels must be square; "
            "pass one value, for example --mpp 0.25"
        )
    return float(f"{(x + y) / 2:.7g}")  # backends differ beyond the seventh digit


def check_mpp(mpp: float, name: str) -> None:
    """Reject an implausible pixel size.

    Raises:
        SlideError: `mpp` is outside 0.05–10 µm per px.
    """
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise SlideError(
            f"{name} is {mpp:g} µm/px; it must be between {MIN_MPP} and {MAX_MPP:g}, for example --mpp 0.25"
        )


def exact_downsample(base: Size, size: Size) -> Fraction:
    """Level-0 px per px of a level, corrected for the rounding of its size: 100001 px to 25000 px is 4, not 4.00004.

    A level of n px satisfies n − 1 < base / downsample < n + 1; returns the simplest fraction that fits both axes.
    """
    low = max(Fraction(b, n + 1) for b, n in zip(base, size, strict=True))
    high = min(Fraction(b, n - 1) if n > 1 else Fraction(b + 1) for b, n in zip(base, size, strict=True))
    guess = max(Fraction(b, n) for b, n in zip(base, size, strict=True) if n == max(size))
    if low < high and not low < guess < high:  # a level of a few pixels is too coarse an estimate
        guess = (low + high) / 2
    for limit in (1, 2, 4, 8, 16):
        simple = guess.limit_denominator(limit)
        if low < simple < high or simple == guess:
            return simple
    return guess
