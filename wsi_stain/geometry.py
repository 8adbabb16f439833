"""Sizes and boxes in whole pixels, (y, x), half-open.

A box belongs to one frame, which its name or its docstring states:

    slide    level-0 pixels of the slide, within its scan bounds: `--region`, masks, annotations
    view     pixels of the slide at the model's scale: tiles, blocks, the converted region
    output   pixels of the view, counted from the first pixel of the region: canvas, pyramid tiles, ROIs
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Height and width in pixels."""

    h: int
    w: int

    def halved(self) -> Size:
        """The size of the next pyramid level: ceil(n / 2) (the rule of every writer in this package)."""
        return Size(-(-self.h // 2), -(-self.w // 2))

    def ceil_div(self, n: int) -> Size:
        """Number of squares of side `n` that cover this size, along each axis."""
        return Size(-(-self.h // n), -(-self.w // n))


class Box(NamedTuple):
    """A rectangle [y0, y1) × [x0, x1) of pixels; it may extend beyond the image.

    Examples:
        >>> Box(0, 0, 4, 6) & Box(2, 2, 9, 9)
        Box(y0=2, x0=2, y1=4, x1=6)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    @classmethod
    def of(cls, size: Size) -> Box:
        """The box of a whole image."""
        return cls(0, 0, size.h, size.w)

    @classmethod
    def at(cls, y0: int, x0: int, size: Size) -> Box:
        """The box of `size` whose first pixel is (y0, x0)."""
        return cls(y0, x0, y0 + size.h, x0 + size.w)

    @property
    def size(self) -> Size:
        """Height and width; zero if the box is empty."""
        return Size(max(0, self.y1 - self.y0), max(0, self.x1 - self.x0))

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.size.h * self.size.w

    def __and__(self, other: Box) -> Box:
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def __or__(self, other: Box) -> Box:
        """The smallest box that contains both."""
        return Box(min(self.y0, other.y0), min(self.x0, other.x0), max(self.y1, other.y1), max(self.x1, other.x1))

    def contains(self, other: Box) -> bool:
        """Whether this box contains every pixel of `other`."""
        return self & other == other

    def shift(self, dy: int, dx: int) -> Box:
        """The same box moved by (dy, dx)."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def scaled(self, factor: int) -> Box:
        """The box in an image `factor` times as large."""
        return Box(self.y0 * factor, self.x0 * factor, self.y1 * factor, self.x1 * factor)

    def slices(self) -> tuple[slice, slice]:
        """Slices of the box: `array[box.slices()]` is its part of an array, which must contain the box."""
        assert min(self.y0, self.x0) >= 0, f"{self} extends beyond the array: shift it into the array first"
        return slice(self.y0, self.y1), slice(self.x0, self.x1)
