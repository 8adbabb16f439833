"""Writes docs/formats.md: builds every format, reads it, and states what came out.

PYTHONPATH=tests python -m builders.formats.table > docs/formats.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from builders.formats.all import FORMATS
from builders.formats.picture import Built, displacement, reduced
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide

HEAD = """# Formats

This table is written by `PYTHONPATH=tests python -m builders.formats.table > docs/formats.md`. The command builds a
small slide of every format with known pixels ([builders](../tests/builders/formats)), reads it at level 0 and at a
half, a quarter, and a sixteenth of its scale, and compares it with the truth. `pytest -m formats` asserts the same.

- *error*: the largest mean error of the four scales, in grey levels; it includes that of the codec.
- *displacement*: the largest distance of any part of a level from its place at level 0, in level-0 px; 0.5 is allowed.
- *µm/px*, *bounds*, *planes*: right if the reader gives what was written.

| format | codec | reader | error | displacement | µm/px | bounds | planes |
|---|---|---|---|---|---|---|---|"""

REAL = """
Real slides that the tests read, where they are available: Aperio SVS (JPEG), tiled pyramidal TIFF (JPEG, JPEG 2000,
WebP), OME-TIFF of bfconvert, DICOM. All other formats in the table were tested with built slides only.
"""


def row(built: Built) -> str:
    """One line of the table."""
    with Slide.open(built.path) as slide:
        errors, shifts = [], []
        for factor in (1, 2, 4, 16):
            view = slide.at((built.mpp or 1) * factor)
            pixels, truth = view.read(Box.of(view.size)), reduced(built.truth, factor)
            h, w = truth.shape[:2]
            errors.append(np.abs(pixels[:h, :w].astype(int) - truth).mean())
            shifts.append(displacement(pixels, built.truth, factor))
        scale = "right" if abs(slide.mpp / (built.mpp or 1) - 1) < 1e-6 else f"{slide.mpp:g}, not {built.mpp:g}"
        bounds = "none" if built.bounds is None else "right"
        if slide.bounds != built.bounds:
            bounds = f"{slide.bounds}, not {built.bounds}"
        planes = "1" if built.planes == 1 else f"{built.planes}, the middle one is read"
        cells = [
            built.format,
            built.codec,
            slide.backend,
            f"{max(errors):.2f}",
            f"{max(shifts):.2f}",
            scale,
            bounds,
            planes,
        ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the page."""
    rows: list[str] = []
    for build in FORMATS.values():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(build(Path(folder))))
    print(HEAD, *rows, REAL, sep="\n", end="")


if __name__ == "__main__":
    main()
