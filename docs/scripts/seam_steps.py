"""Draws docs/seam-steps.png, a field with steps between tiles, and prints the certificates.

    PYTHONPATH=. python docs/scripts/seam_steps.py

The field is drawn, not scanned. No network takes part: the steps are added, so that their size is known.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import cv2
import numpy as np

from wsi_stain import phantom
from wsi_stain.conversion import seams
from wsi_stain.conversion.certificate import Certificate, judge
from wsi_stain.geometry import Box, Size
from wsi_stain.output.encoding import Encoding
from wsi_stain.tiling.grid import TileGrid

SIDE, TILE, JPEG_TILE = 1024, 256, 512
STEPS = (0, 3, 12)
"""Grey levels by which every other tile is brighter."""
SHOWN = Box(400, 400, 624, 624)
"""The part that the picture shows, around the corner of four tiles."""
AMPLIFIED = 6
"""Factor of the differences in the lower row."""


def encoded(image: np.ndarray) -> np.ndarray:
    """As an output holds it: JPEG tiles of quality 90."""
    out, encoding = np.empty_like(image), Encoding()
    for y, x in product(range(0, SIDE, JPEG_TILE), repeat=2):
        part = image[y : y + JPEG_TILE, x : x + JPEG_TILE]
        out[y : y + JPEG_TILE, x : x + JPEG_TILE] = encoding.decode(encoding.encode(part))
    return out


def with_steps(image: np.ndarray, step: int) -> np.ndarray:
    """Every other tile of the grid is `step` grey levels brighter."""
    y, x = np.mgrid[:SIDE, :SIDE] // TILE
    return np.clip(image.astype(int) + step * ((y + x) % 2)[..., None], 0, 255).astype(np.uint8)


def certificate(image: np.ndarray) -> Certificate:
    """The examination of the steps at tile lines alone (question a)."""
    grid = TileGrid(Size(SIDE, SIDE), TILE, 0)
    lines = seams.choose(grid, list(grid.tiles(Box.of(grid.size))), 0).lines
    steps = [seams.steps(image[line.box.slices()], line, seams.shifts(grid)) for line in lines]
    return judge(steps, [], tolerance=None, stride=grid.stride)


def amplified(image: np.ndarray, without: np.ndarray) -> np.ndarray:
    """The difference from the field without steps, with more contrast, around grey."""
    return np.clip((image.astype(int) - without) * AMPLIFIED + 128, 0, 255).astype(np.uint8)


def main() -> None:
    """Write the picture and print what each certificate says."""
    field = phantom.render(Box.at(1024, 1024, Size(SIDE, SIDE)), size=Size(3072, 3072), mpp=1.0, seed=2)
    columns = []
    for step in STEPS:
        image = encoded(with_steps(field, step))
        result = certificate(image)
        interval = f"{result.excess_low:+.2f} to {result.excess_high:+.2f}"
        print(f"| {step} | {result.excess:+.2f} | {interval} | {result.excess_shifted:+.2f} | {result.verdict} |")
        columns.append(np.vstack([image[SHOWN.slices()], amplified(image, encoded(field))[SHOWN.slices()]]))
    gap = np.full((columns[0].shape[0], 8, 3), 255, np.uint8)
    picture = np.hstack([columns[0], gap, columns[1], gap, columns[2]])
    cv2.imwrite(str(Path(__file__).parents[1] / "seam-steps.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
