"""Plausibility checks of a slide's scale: its µm/px, and the downsample of its levels."""

from __future__ import annotations

from fractions import Fraction

from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Size
from wsi_stain.slide.readers.base import SlideMetadata

MAX_OBLONG = 0.005
"""Largest difference of a pixel's sides that counts as square: scanners calibrate both axes to about 0.2 %."""


def slide_mpp(metadata: SlideMetadata, name: str) -> float:
    """µm per px of level 0, as stored in the file `name`; of oblong pixels the shorter side.

    Raises:
        SlideError: the file has no pixel size, or an implausible one.
    """
    if metadata.mpp is None:
        reason = f"missing: {metadata.mpp_from}" if metadata.mpp_from else "the image format stores none"
        raise SlideError(f"{name} has no pixel size ({reason}); pass --mpp, for example --mpp 0.25")
    for value in metadata.mpp:
        if not MIN_MPP <= value <= MAX_MPP:
            raise SlideError(
                f"{name} has {value:.6g} µm/px in {metadata.mpp_from}; it must be between {MIN_MPP} and {MAX_MPP:g}; "
                "pass the correct value, for example --mpp 0.25"
            )
    x, y = metadata.mpp
    if max(square_pixels(metadata)) > 1:
        return _seven(min(x, y))
    return _seven((x + y) / 2)


def square_pixels(metadata: SlideMetadata) -> tuple[Fraction, Fraction]:
    """Square px per stored px along (y, x): 1 along the axis with the shorter sides, more along the other."""
    if metadata.mpp is None or not all(MIN_MPP <= value <= MAX_MPP for value in metadata.mpp):
        return Fraction(1), Fraction(1)
    x, y = metadata.mpp
    if abs(x / y - 1) <= MAX_OBLONG:
        return Fraction(1), Fraction(1)
    x, y = Fraction(str(_seven(x))), Fraction(str(_seven(y)))
    return y / min(x, y), x / min(x, y)


def _seven(mpp: float) -> float:
    """Seven digits: readers differ beyond."""
    return float(f"{mpp:.7g}")


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
    low, high = _range(base, size)
    guess = max(Fraction(b, n) for b, n in zip(base, size, strict=True) if n == max(size))
    if low < high and not low < guess < high:  # a level of a few pixels is too coarse an estimate
        guess = (low + high) / 2
    for limit in (1, 2, 4, 8, 16):
        simple = guess.limit_denominator(limit)
        if low < simple < high or simple == guess:
            return simple
    return guess


def can_be_level(base: Size, size: Size) -> bool:
    """Whether an image of this size can be a level of the other: smaller by one factor on both axes."""
    low, high = _range(base, size)
    return size != base and low < high and high > 1


def _range(base: Size, size: Size) -> tuple[Fraction, Fraction]:
    """The downsamples between which both axes fit; the first is not below the second if they do not."""
    low = max(Fraction(b, n + 1) for b, n in zip(base, size, strict=True))
    high = min(Fraction(b, n - 1) if n > 1 else Fraction(b + 1) for b, n in zip(base, size, strict=True))
    return low, high
