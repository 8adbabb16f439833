"""Fields of two registered slides, and the map of where a virtual stain differs from the real one.

A field is a square of `EACH` × `EACH` blocks of 128 µm of the H&E; only blocks that can be compared count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from wsi_stain.errors import ConfigError
from wsi_stain.evaluate.columns import SCALES
from wsi_stain.evaluate.evaluate import EvaluationResult, Field
from wsi_stain.evaluate.figures import BLOCKS_UM
from wsi_stain.evaluate.groups import FieldOrigin, group
from wsi_stain.geometry import Box, Size

EACH = 4
"""Blocks along the side of a field."""
BLOCK_UM = BLOCKS_UM[0]
Read = Callable[[Box], np.ndarray]
"""A box in px of the measured scale → uint8 (h, w, 3)."""


@dataclass(frozen=True, eq=False)
class SlidePair:
    """Two slides in the frame of the H&E, at the scale of a model."""

    he: Read
    real: Read
    held: np.ndarray
    """The blocks of 128 µm that can be compared, bool (rows, columns)."""
    mpp: float

    @property
    def block_px(self) -> int:
        """Side of a block, as `evaluate.figures` rounds it."""
        return round(BLOCK_UM / self.mpp)

    def boxes(self) -> dict[str, Box]:
        """Name → box of every field with a block that counts, row by row.

        Raises:
            ConfigError: no block can be compared.
        """
        side = EACH * self.block_px
        places = [
            (row, column)
            for row, column in np.ndindex(*(-(-n // EACH) for n in self.held.shape))
            if self._held_in(row, column).any()
        ]
        if not places:
            raise ConfigError(
                "no block of the two slides has tissue in both and is registered; nothing can be compared"
            )
        return {
            f"{row:04d}_{column:04d}": Box.at(row * side, column * side, Size(side, side)) for row, column in places
        }

    def fields(self) -> tuple[list[Field], str]:
        """The fields with their bootstrap groups, and the name of the group unit."""
        boxes = self.boxes()
        origins = [FieldOrigin(name, "", box.x0, box.y0) for name, box in boxes.items()]
        labels, unit = group(origins, EACH * self.block_px)
        return [
            Field(name, label, partial(self._read, box))
            for (name, box), label in zip(boxes.items(), labels, strict=True)
        ], unit

    def _held_in(self, row: int, column: int) -> np.ndarray:
        return self.held[row * EACH : (row + 1) * EACH, column * EACH : (column + 1) * EACH]

    def _read(self, box: Box) -> tuple[np.ndarray, ...]:
        side = EACH * self.block_px
        held = self._held_in(box.y0 // side, box.x0 // side)
        held = np.pad(held, ((0, EACH - held.shape[0]), (0, EACH - held.shape[1])))
        kept = held.repeat(self.block_px, 0).repeat(self.block_px, 1)
        return self.he(box), self.real(box), kept


def padded(read: Read, size: Size) -> Read:
    """A reader of boxes that may extend beyond an image of `size`, from one that may not: the last pixels repeat."""

    def read_padded(box: Box) -> np.ndarray:
        inside = box & Box.of(size)
        return np.pad(read(inside), ((0, box.y1 - inside.y1), (0, box.x1 - inside.x1), (0, 0)), "edge")

    return read_padded


def maps(pair: SlidePair, result: EvaluationResult, row: str) -> tuple[np.ndarray, np.ndarray]:
    """Positive share of every block, generated and real: two float64 (rows, columns), NaN where nothing is compared."""
    out = np.full((2, *pair.held.shape), np.nan)
    side = EACH * pair.block_px
    for box, figures in zip(pair.boxes().values(), result.figures[row], strict=True):
        y, x = box.y0 // side * EACH, box.x0 // side * EACH
        held = pair.held[y : y + EACH, x : x + EACH]
        for target, amounts in zip(out, (figures.generated, figures.real), strict=True):
            target[y : y + EACH, x : x + EACH][held] = amounts.shares[SCALES[0]]
    return out[0], out[1]
