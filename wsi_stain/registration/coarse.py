"""Coarse hypotheses: every rotation, mirrored or not, and every shift, scored by correlation of what overlaps.

Outlines alone fit in several ways, and structure alone can be too weak to be found at this scale. So each rotation is
scored twice, by structure and by density with its outline. The best of both are kept, and judged at a finer scale.
The correlation is that of masked images (Padfield, "Masked object registration in the Fourier domain", 2012).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from scipy import fft

from wsi_stain.registration.affine import Affine
from wsi_stain.registration.images import Picture
from wsi_stain.registration.structure import Structure, blurred, places, structure, through

LONGEST_PX = 160
"""Longer side of the fixed picture."""
STEP_DEGREES = 4.0
LEAST_OVERLAP = 0.3
"""Share of the smaller tissue that must overlap."""
NEAR_DEGREES, NEAR_PX = 10.0, 8.0
"""Hypotheses that differ by less are one."""


By = Literal["structure", "outline"]


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One way in which two slides may correspond."""

    affine: Affine
    degrees: float
    is_mirrored: bool
    score: float
    by: By
    um: float
    """µm per px at which it was searched."""

    def is_near(self, other: Hypothesis, centre: np.ndarray) -> bool:
        """Whether both put the tissue's centre, float (2,), at one place in nearly one rotation."""
        turn = abs((self.degrees - other.degrees + 180) % 360 - 180)
        apart = np.linalg.norm(self.affine(centre) - other.affine(centre))
        return self.is_mirrored == other.is_mirrored and turn < NEAR_DEGREES and bool(apart < NEAR_PX * self.um)


def hypotheses(
    fixed: Picture,
    moving: Picture,
    *,
    most: int = 4,
    degrees: Sequence[float] | None = None,
    mirrored: tuple[bool, ...] = (False, True),
) -> list[Hypothesis]:
    """The best ways to lay the moving picture over the fixed one, `most` by structure and `most` by outline."""
    um = max(fixed.extent_um, moving.extent_um / 1.5) / LONGEST_PX
    fixed, moving = fixed.at(um), moving.at(um)
    moving = _scaled(moving, fixed.um)
    turns = np.arange(0, 360, STEP_DEGREES) if degrees is None else degrees
    candidates = [h for m in mirrored for h in _searched(fixed, moving, turns, is_mirrored=m)]
    return [h for by in get_args(By) for h in _distinct([h for h in candidates if h.by == by], fixed.centre, most)]


def _scaled(picture: Picture, um: float) -> Picture:
    """The picture at exactly `um` µm per px."""
    shape = tuple(max(1, round(n * picture.um / um)) for n in picture.density.shape)
    maps = places(shape, um) / np.float32(picture.um) - np.float32(0.5)
    density, tissue = (
        cv2.remap(values, maps[..., 1], maps[..., 0], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for values in (picture.density, picture.tissue.astype(np.float32))
    )
    return Picture(density, tissue > 0.5, um, picture.origin)


def _searched(
    fixed: Picture, moving: Picture, turns: Sequence[float] | np.ndarray, *, is_mirrored: bool
) -> Iterator[Hypothesis]:
    side = int(np.ceil(np.hypot(*moving.density.shape)))
    shape = tuple(int(fft.next_fast_len(n + side, real=True) or 0) for n in fixed.density.shape)
    ours: list[tuple[By, _Masked]] = [(by, _Masked.of(layer, shape)) for by, layer in _layers(fixed)]
    theirs = _layers(moving)
    for degrees in turns:
        middle = np.full(2, side / 2 * fixed.um)
        into = Affine.turned(float(degrees), mirrored=is_mirrored, about=middle, to=_middle(moving))
        maps = through(into, places((side, side), fixed.um))
        frame = Structure(np.empty(0), np.empty(0), fixed.um)
        for (by, one), (_, other) in zip(ours, theirs, strict=True):
            score, dy, dx = one.best(other.warped(maps, frame))
            shift = Affine(np.column_stack([np.eye(2), -np.array([dy, dx]) * fixed.um - fixed.origin]))
            yield Hypothesis(into @ shift, float(degrees), is_mirrored, score, by, fixed.um)


def _middle(picture: Picture) -> np.ndarray:
    return np.array(picture.density.shape) / 2 * picture.um + picture.origin


def _layers(picture: Picture) -> list[tuple[By, Structure]]:
    """The two layers that are correlated; the outline covers the whole picture, so that background counts."""
    inside = picture.tissue.astype(np.float32)
    outline = blurred((0.3 + picture.density / max(float(picture.density[picture.tissue].mean()), 1e-3)) * inside, 1.5)
    return [
        ("structure", structure(picture, 1.5, 10.0)),
        ("outline", Structure(outline - outline.mean(), np.ones_like(picture.tissue), picture.um, picture.origin)),
    ]


class _Masked:
    """One structure, prepared for the masked correlation with many others."""

    def __init__(self, field: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> None:
        self._shape, self._size, self._area = shape, mask.shape, float(mask.sum())
        self._field, self._square, self._mask = (np.asarray(fft.rfft2(a, shape)) for a in (field, field**2, mask))

    @classmethod
    def of(cls, layer: Structure, shape: tuple[int, ...]) -> _Masked:
        mask = layer.tissue.astype(np.float32)
        return cls(layer.field * mask, mask, shape)

    def best(self, other: Structure) -> tuple[float, int, int]:
        """The best score, and the shift (dy, dx) at which pixel p of the other lies on p + shift of this one."""
        theirs = _Masked.of(other, self._shape)
        overlap = self._with(self._mask, theirs._mask)
        energy = self._with(self._square, theirs._mask) * self._with(self._mask, theirs._square)
        product = self._with(self._field, theirs._field)
        enough = overlap > LEAST_OVERLAP * min(self._area, theirs._area)
        # r times the root of the area: the chance of a high r is larger in a small overlap.
        score = np.where(enough, product / np.sqrt(np.maximum(energy, 1e-6)) * np.sqrt(np.maximum(overlap, 0)), -np.inf)
        y, x = np.unravel_index(score.argmax(), score.shape)
        dy, dx = (int(i) if i < n else int(i) - m for i, n, m in zip((y, x), self._size, self._shape, strict=True))
        return float(score[y, x]), dy, dx

    def _with(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.asarray(fft.irfft2(ours * np.conj(theirs), self._shape))


def _distinct(found: list[Hypothesis], centre: np.ndarray, most: int) -> list[Hypothesis]:
    kept: list[Hypothesis] = []
    for hypothesis in sorted(found, key=lambda h: -h.score):
        if len(kept) < most and not any(hypothesis.is_near(other, centre) for other in kept):
            kept.append(hypothesis)
    return kept
