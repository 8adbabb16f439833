"""Affine maps between the frames of two slides, in µm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Affine:
    """A map of points in µm, (y, x): `matrix[:, :2] @ point + matrix[:, 2]`.

    to_ihc = Affine.turned(157.6, mirrored=False, about=he.centre, to=ihc.centre)
    points = to_ihc(np.array([[100.0, 250.0]]))
    """

    matrix: np.ndarray
    """float64 (2, 3)."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points float (…, 2) → float64 (…, 2)."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def __matmul__(self, other: Affine) -> Affine:
        """The map that applies `other` first."""
        return Affine((self.square @ other.square)[:2])

    @property
    def square(self) -> np.ndarray:
        """float64 (3, 3): the same map for homogeneous points."""
        return np.vstack([self.matrix, [0.0, 0.0, 1.0]])

    @property
    def inverse(self) -> Affine:
        """The map back."""
        return Affine(np.linalg.inv(self.square)[:2])

    @property
    def is_mirrored(self) -> bool:
        """Whether the map turns the slide over."""
        return float(np.linalg.det(self.matrix[:, :2])) < 0

    @property
    def angle(self) -> float:
        """Rotation in degrees, clockwise on the screen, -180 to 180; of a mirrored map, after x was mirrored."""
        u, _, vt = np.linalg.svd(self.matrix[:, :2])
        turn = u @ vt @ (np.diag([1.0, -1.0]) if self.is_mirrored else np.eye(2))
        return float(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))

    @property
    def scales(self) -> tuple[float, float]:
        """The largest and the smallest stretch."""
        largest, smallest = np.linalg.svd(self.matrix[:, :2], compute_uv=False)
        return float(largest), float(smallest)

    @classmethod
    def identity(cls) -> Affine:
        """The map that moves nothing."""
        return cls(np.eye(2, 3))

    @classmethod
    def turned(cls, degrees: float, *, mirrored: bool, about: np.ndarray, to: np.ndarray) -> Affine:
        """A rotation, clockwise on the screen, that brings the point `about` to `to`.

        A mirrored slide is first mirrored left to right.
        """
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        linear = np.array([[cos, sin], [-sin, cos]]) @ np.diag([1.0, -1.0 if mirrored else 1.0])
        return cls(np.column_stack([linear, to - linear @ about]))

    @classmethod
    def fitted(cls, points: np.ndarray, targets: np.ndarray) -> Affine:
        """The least-squares map of at least three points, float (n, 2), to their targets."""
        known = np.column_stack([points, np.ones(len(points))])
        return cls(np.linalg.lstsq(known, targets, rcond=None)[0].T)
