"""Order-independent randomness: noise, points and cells that are pure functions of coordinates.

No function keeps state. A value at (y, x) is a hash of the integers around it, so a slide can be computed in any order,
in any parts and by many workers, with the same result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_SPLINE_NOISE_STD = 0.277
"""Standard deviation of uniform(-1, 1) lattice values after the cubic B-spline below, in two dimensions."""


def hashed(y: np.ndarray, x: np.ndarray, salt: int) -> np.ndarray:
    """uint64 hash of each integer pair (y, x); `splitmix64`'s finaliser (Steele et al., OOPSLA 2014) over both."""
    with np.errstate(over="ignore"):
        h = _mix(y.astype(np.int64).view(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))
        return _mix(h ^ (x.astype(np.int64).view(np.uint64) * np.uint64(0xD1B54A32D192ED03)))


def uniform(y: np.ndarray, x: np.ndarray, salt: int) -> np.ndarray:
    """float64 in [0, 1) for each integer pair (y, x)."""
    return (hashed(y, x, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def noise(y: np.ndarray, x: np.ndarray, wavelength: float, salt: int) -> np.ndarray:
    """Smooth noise of zero mean and about unit variance over the grid of two axes.

    Args:
        y, x: coordinates along each axis, float64 (h,) and (w,), in the unit of `wavelength`.
        wavelength: distance of the random values that a cubic B-spline interpolates.
        salt: selects the noise.

    Returns:
        float64 (h, w)
    """
    rows, cols = (_lattice(t / wavelength) for t in (y, x))
    values = 2 * uniform(rows[:, None], cols[None, :], salt) - 1
    # Four taps along each axis, not a matrix product: the digits of BLAS depend on the processor.
    values = np.sum([w[:, None] * values[i] for i, w in _taps(y / wavelength, rows[0])], axis=0)
    values = np.sum([w * values[:, i] for i, w in _taps(x / wavelength, cols[0])], axis=0)
    return values / _SPLINE_NOISE_STD


class Points(NamedTuple):
    """A jittered grid of points: one per cell; `row` and `col` identify the cell, `y` and `x` its position."""

    row: np.ndarray
    col: np.ndarray
    y: np.ndarray
    x: np.ndarray
    salt: int

    def draw(self, which: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Random number `which` of each point, uniform in [low, high)."""
        return low + (high - low) * uniform(self.row, self.col, self.salt * 64 + which)

    def where(self, keep: np.ndarray) -> Points:
        """Those points for which `keep` is true."""
        return Points(self.row[keep], self.col[keep], self.y[keep], self.x[keep], self.salt)


def points(
    low: tuple[float, float], high: tuple[float, float], pitch: float, salt: int, *, jitter: float = 0.85
) -> Points:
    """All points of a staggered grid whose cells touch the rectangle from `low` to `high`, both (y, x)."""
    rows = np.arange(np.floor(low[0] / pitch) - 1, np.ceil(high[0] / pitch) + 1).astype(np.int64)
    cols = np.arange(np.floor(low[1] / pitch) - 1, np.ceil(high[1] / pitch) + 1).astype(np.int64)
    row, col = (a.ravel() for a in np.meshgrid(rows, cols, indexing="ij"))
    y = (row + 0.5 + jitter * (uniform(row, col, salt * 64 + 62) - 0.5)) * pitch
    x = (col + 0.5 + (row % 2 - 0.5) / 2 + jitter * (uniform(row, col, salt * 64 + 63) - 0.5)) * pitch
    return Points(row, col, y, x, salt)


def wall_distance(y: np.ndarray, x: np.ndarray, pitch: float, salt: int, *, jitter: float = 0.85) -> np.ndarray:
    """Approximate distance to the nearest wall between the Voronoi cells of `points`, float32 (h, w); 0 on a wall.

    Worley's F2 - F1, halved; the axes y and x are in the unit of `pitch`.
    """
    seeds = points((y[0] - pitch, x[0] - pitch), (y[-1] + pitch, x[-1] + pitch), pitch, salt, jitter=jitter)
    columns = seeds.row.tolist().count(seeds.row[0])
    seed_y, seed_x = (v.astype(np.float32).reshape(-1, columns) for v in (seeds.y - y[0], seeds.x - x[0]))
    row, col = (np.floor(v / pitch).astype(np.int64) - first for v, first in ((y, seeds.row[0]), (x, seeds.col[0])))
    y, x = ((v - v[0]).astype(np.float32) for v in (y, x))
    first, second = np.full((2, len(y), len(x)), np.float32(1e9))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = np.ix_(row + dy, col + dx)
            squared = np.square(seed_y[at] - y[:, None]) + np.square(seed_x[at] - x)
            np.minimum(second, np.maximum(first, squared), out=second)
            np.minimum(first, squared, out=first)
    return (np.sqrt(second) - np.sqrt(first)) / 2


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _lattice(t: np.ndarray) -> np.ndarray:
    """The integers under the cubic B-splines around the coordinates `t`, which must increase."""
    return np.arange(int(np.floor(t[0])) - 1, int(np.floor(t[-1])) + 3)


def _taps(t: np.ndarray, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The four lattice points under the cubic B-spline at each `t`, counted from `first`, and their weights."""
    base = np.floor(t).astype(np.int64)
    f = t - base
    weights = ((1 - f) ** 3 / 6, 2 / 3 - f**2 * (1 - f / 2), 2 / 3 - (1 - f) ** 2 * (1 + f) / 2, f**3 / 6)
    return [(base - first - 1 + k, weight) for k, weight in enumerate(weights)]
