"""The transform of a registration: from points of the H&E to points of the other slide, and back; saved in one file.

registration.npz    meta (JSON: format, both slides, affines), labels, and a field for each piece; no pickle
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.registration.affine import Affine
from wsi_stain.registration.field import Deformation
from wsi_stain.registration.fragments import Fragments

FORMAT = "wsi-stain registration 1"
ROUNDS = 100
"""Fixed-point steps of the inverse: a field with slopes up to 0.9 ends within 0.00003 of its size."""


@dataclass(frozen=True, eq=False)
class Piece:
    """The map of one fragment: the point p corresponds to `affine(p + field(p))`."""

    affine: Affine
    field: Deformation

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points of the H&E, float (…, 2) in µm → points of the other slide, float64 (…, 2)."""
        return self.affine(points + self.field(points))

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Points of the other slide → points of the H&E, by fixed-point iteration."""
        goal = self.affine.inverse(points)
        result = goal
        for _ in range(ROUNDS):
            result = goal - self.field(result)
        return result


@dataclass(frozen=True, eq=False)
class Transform:
    """From the H&E's frame to the other slide's, both in µm, (y, x), from the slide's upper left corner.

    transform = Transform.load(Path("pairs/CASE/registration.npz"))
    ihc_um = transform((np.array([[y, x]]) + 0.5) * he_mpp)
    """

    pieces: tuple[Piece, ...]
    fragments: Fragments
    """Which piece a point of the H&E belongs to."""
    slides: Mapping[str, Mapping[str, Any]]
    """`he` and `ihc`: name, sha256, mpp, width, height."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points of the H&E, float (…, 2) → points of the other slide, float64 (…, 2)."""
        if len(self.pieces) == 1:
            return self.pieces[0](points)
        owner, out = self.owner(points), np.empty(points.shape)
        for number in np.unique(owner):
            mine = owner == number
            out[mine] = self.pieces[number](points[mine])
        return out

    def owner(self, points: np.ndarray) -> np.ndarray:
        """The number of the piece of each point of the H&E, float (…, 2) → intp (…)."""
        return self.fragments(points) if len(self.pieces) > 1 else np.zeros(points.shape[:-1], np.intp)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Points of the other slide → points of the H&E, float64 (…, 2); NaN where no piece comes from."""
        if len(self.pieces) == 1:
            return self.pieces[0].inverse(points)
        out = np.full(points.shape, np.nan)
        for number, piece in enumerate(self.pieces):
            result = piece.inverse(points)
            mine = np.isnan(out[..., 0]) & self.fragments.on_slide(result) & (self.fragments(result) == number)
            out[mine] = result[mine]
        return out

    def save(self, path: Path) -> None:
        """Write the transform; equal transforms give equal bytes."""
        meta = {
            "format": FORMAT,
            "frame": "µm, (y, x), from the upper left corner of each slide; H&E point p maps to affine(p + field(p))",
            "slides": {name: dict(facts) for name, facts in self.slides.items()},
            "labels_um": self.fragments.um,
            "pieces": [
                {"affine": piece.affine.matrix.tolist(), "field_um": piece.field.um, "field_origin": piece.field.origin}
                for piece in self.pieces
            ],
        }
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"field{i}": piece.field.values for i, piece in enumerate(self.pieces)}
        np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), labels=self.fragments.labels, **arrays)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Transform:
        """Read a transform.

        Raises:
            OutputError: the file is missing, damaged, or not a transform.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                if meta["format"] != FORMAT:
                    raise ValueError(f"its format is {meta['format']!r}")
                pieces = tuple(
                    Piece(
                        Affine(np.array(piece["affine"])),
                        Deformation(file[f"field{i}"], piece["field_um"], tuple(piece["field_origin"])),
                    )
                    for i, piece in enumerate(meta["pieces"])
                )
                return cls(pieces, Fragments(file["labels"], meta["labels_um"]), meta["slides"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as err:
            raise OutputError(
                f"{path} cannot be read as a registration ({err}); register the two slides again with "
                "wsi-stain pairs make"
            ) from err
