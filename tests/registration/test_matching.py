"""Shifts of windows, against a shift that is known."""

import numpy as np
import pytest

from wsi_stain.registration.matching import Surfaces, surfaces
from wsi_stain.registration.structure import Structure, blurred


def noise(side: int = 120) -> np.ndarray:
    values = blurred(np.random.default_rng(0).standard_normal((side, side)).astype(np.float32), 2.0)
    return values / values.std()


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_windows_find_a_known_shift(shift: tuple[int, int]) -> None:
    field, tissue = noise(), np.ones((120, 120), bool)
    fixed, moving = (Structure(f, tissue, 8.0) for f in (field, np.roll(field, shift, (0, 1))))
    pixels = np.array([[40, 60], [60, 40], [70, 70]])
    shifts = surfaces(fixed, moving, pixels, half=14, radius=6).peaks()
    np.testing.assert_allclose(shifts, np.tile(np.array(shift) * 8.0, (3, 1)), atol=1.0)


def test_a_peak_lies_between_pixels_but_not_beyond_the_largest_shift() -> None:
    y, x = np.mgrid[-3:4, -3:4]
    scores = np.stack([-((y - 0.3) ** 2) - (x + 1.4) ** 2, -((y - 5.0) ** 2) - (x + 5.0) ** 2]).astype(np.float32)
    shifts = Surfaces(np.zeros((2, 2)), scores, 10.0).peaks()
    np.testing.assert_allclose(shifts, [[3.0, -14.0], [30.0, -30.0]], atol=1e-4)
