"""Resampling: equal to a naive twin in Fractions, the same in every box, without drift."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.slide.resample import Axis, halve_even, shrink

steps = st.fractions(min_value=Fraction(9, 10), max_value=Fraction(6), max_denominator=400)
offsets = st.fractions(min_value=0, max_value=5, max_denominator=16)


def naive_weights(axis: Axis, i: int) -> dict[int, Fraction]:
    """What target pixel i takes from each source pixel, in exact numbers."""
    weights: dict[int, Fraction] = {}
    if axis.step >= 1:
        left, right = i * axis.step + axis.offset, (i + 1) * axis.step + axis.offset
        parts = {j: (min(right, j + 1) - max(left, j)) / axis.step for j in range(floor(left), ceil(right))}
    else:
        centre = (i + Fraction(1, 2)) * axis.step + axis.offset - Fraction(1, 2)
        j = floor(centre)
        parts = {j: 1 - (centre - j), j + 1: centre - j}
    for j, weight in parts.items():
        nearest = min(max(j, axis.first), axis.stop - 1)
        weights[nearest] = weights.get(nearest, Fraction(0)) + weight
    return weights


def naive(pixels: np.ndarray, y: Axis, x: Axis, i: int, j: int) -> Fraction:
    return sum(
        (
            wy * wx * int(pixels[row, column])
            for row, wy in naive_weights(y, i).items()
            for column, wx in naive_weights(x, j).items()
        ),
        Fraction(0),
    )


def resample(pixels: np.ndarray, y: Axis, x: Axis, box: tuple[int, int, int, int]) -> np.ndarray:
    y0, x0, y1, x1 = box
    (top, bottom), (left, right) = y.source(y0, y1), x.source(x0, x1)
    return shrink(pixels[top:bottom, left:right], y.weights(y0, y1), x.weights(x0, x1))


@settings(max_examples=80, deadline=None)
@given(steps, steps, offsets, st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_a_pixel_is_the_mean_over_what_it_covers(step_y, step_x, offset, first, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (30, 27, 3), dtype=np.uint8)
    y, x = Axis(step_y, offset, first, 30), Axis(step_x, offset / 2, 0, 27 - first)
    h, w = int((30 - offset) / step_y) + 1, int((27 - offset) / step_x) + 1
    result = resample(pixels, y, x, (0, 0, h, w))
    for i, j, c in rng.integers(0, (h, w, 3), (12, 3)):
        exact = naive(pixels[..., c], y, x, int(i), int(j))
        rounded = floor(exact + Fraction(1, 2))
        is_tie = abs(exact - floor(exact) - Fraction(1, 2)) < Fraction(1, 5000)
        assert abs(int(result[i, j, c]) - rounded) <= is_tie, (i, j, float(exact))


@settings(max_examples=80, deadline=None)
@given(steps, steps, offsets, st.data())
def test_a_pixel_does_not_depend_on_the_box_it_is_read_in(step_y, step_x, offset, data):
    pixels = np.random.default_rng(3).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    y, x = Axis(step_y, offset, 0, 60), Axis(step_x, offset, 0, 60)
    h, w = int(60 / step_y), int(60 / step_x)
    y0, x0 = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, h)), data.draw(st.integers(x0 + 1, w))
    whole = resample(pixels, y, x, (0, 0, h, w))
    np.testing.assert_array_equal(resample(pixels, y, x, (y0, x0, y1, x1)), whole[y0:y1, x0:x1])


@pytest.mark.parametrize("step", [2, 3, 4, 6, 10, 16])
def test_whole_steps_are_exact_and_round_half_up(step):
    pixels = np.random.default_rng(step).integers(0, 256, (step * 20, step * 30, 3), dtype=np.uint8)
    sums = pixels.reshape(20, step, 30, step, 3).sum(axis=(1, 3), dtype=np.int64)
    axis = Axis(Fraction(step), Fraction(0), 0, 10**6)
    expected = (2 * sums + step**2) // (2 * step**2)
    np.testing.assert_array_equal(resample(pixels, axis, axis, (0, 0, 20, 30)), expected)


def test_halving_equals_the_general_way():
    pixels = np.random.default_rng(0).integers(0, 256, (514, 1026, 3), dtype=np.uint8)
    axis = Axis(Fraction(2), Fraction(0), 0, 10**6)
    np.testing.assert_array_equal(halve_even(pixels), resample(pixels, axis, axis, (0, 0, 257, 513)))


def test_constant_stays_constant_for_awkward_steps():
    for value in (0, 1, 100, 243, 255):
        pixels = np.full((64, 64, 3), value, np.uint8)
        for step in (
            Fraction("0.500001") / Fraction("0.2528"),
            Fraction(500, 499),
            Fraction("0.93"),
            Fraction(1000003, 500009),
        ):
            axis = Axis(step, Fraction(1, 3), 0, 64)
            assert (resample(pixels, axis, axis, (0, 0, 25, 25)) == value).all()


def test_a_step_of_many_digits_counts_beyond_64_bits():
    step = Fraction("1.2345678901234567") / Fraction("0.2528000000000001")
    axis = Axis(step, Fraction(0), 0, 10**7)
    start = 20_000
    weights, total = axis.weights(start, start + 3)
    lo, _ = axis.source(start, start + 3)
    for row in range(3):
        for column, weight in naive_weights(axis, start + row).items():
            assert weights.toarray()[row, column - lo] / total == pytest.approx(float(weight), abs=1e-6)


def test_the_edges_of_a_far_pixel_do_not_drift():
    axis = Axis(Fraction("0.5") / Fraction("0.1264"), Fraction(0), 0, 10**6)
    unit = axis.step.denominator  # the weights count in parts of a source pixel
    for start in (1, 24_001, 250_003):
        weights, total = axis.weights(start, start + 1)
        lo, hi = axis.source(start, start + 1)
        row = weights.toarray()[0]
        assert lo + 1 - Fraction(int(row[0]), unit) == start * axis.step
        assert hi - 1 + Fraction(int(row[-1]), unit) == (start + 1) * axis.step
        assert row.sum() == total == axis.step * unit
