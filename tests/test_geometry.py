"""Boxes against sets of pixels."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box, Size

numbers = st.integers(-6, 12)
boxes = st.builds(lambda y, x, h, w: Box(y, x, y + h, x + w), numbers, numbers, st.integers(0, 8), st.integers(0, 8))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


@given(boxes, boxes)
def test_intersection_area_and_containment_are_those_of_pixel_sets(a: Box, b: Box) -> None:
    assert pixels(a & b) == pixels(a) & pixels(b)
    assert a.area == len(pixels(a))
    if a.area and b.area:
        assert a.contains(b) == (pixels(b) <= pixels(a))


@given(boxes, boxes)
def test_union_is_the_smallest_box_around_both(a: Box, b: Box) -> None:
    assert pixels(a) | pixels(b) <= pixels(a | b)
    assert (a | b).y0 in (a.y0, b.y0)
    assert (a | b).x1 in (a.x1, b.x1)


@given(boxes, numbers, numbers)
def test_shift_moves_every_pixel(box: Box, dy: int, dx: int) -> None:
    assert pixels(box.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels(box)}


@given(boxes, st.integers(1, 4))
def test_a_scaled_box_covers_the_scaled_pixels(box: Box, factor: int) -> None:
    assert box.scaled(factor).area == box.area * factor**2


def test_slices_cut_what_the_box_says_and_never_wrap_around() -> None:
    array = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(array[Box(1, 2, 3, 5).slices()], array[1:3, 2:5])
    with pytest.raises(AssertionError):
        Box(-1, 0, 2, 2).slices()


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_halving_rounds_up_and_ends_at_one(h: int, w: int) -> None:
    size = Size(h, w)
    assert size.halved() == size.ceil_div(2)
    while size != Size(1, 1):
        size = size.halved()


def test_an_unreadable_region_travels_between_workers() -> None:
    error = pickle.loads(pickle.dumps(UnreadableRegion("broken", Box(0, 1, 2, 3), 2)))
    assert (str(error), error.box, error.level) == ("broken", Box(0, 1, 2, 3), 2)
