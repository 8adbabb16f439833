"""Cuts the tiles of a registered case: which are kept, and why the others are not.

A row of tiles is one task. Its tiles appear whole, and then its account: a run that was stopped continues with the rows
that have none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import imagecodecs
import numpy as np

from wsi_stain.cluster.workers import Workers
from wsi_stain.errors import UnreadableRegion
from wsi_stain.files.atomic import atomic_write
from wsi_stain.geometry import Box, Size
from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab, optical_density, tissue
from wsi_stain.pairing.request import PairsRequest
from wsi_stain.pairing.resample import Warped, he_tile
from wsi_stain.registration.residuals import Residuals
from wsi_stain.slide.slide import View

BLANK_OD, BLANK_UM = 0.012, 8.0
"""The other slide is blank where its optical density, smoothed by a Gaussian of this σ, is below this: six times what
scanner noise and JPEG leave of glass, and a third of the palest real section."""
MOST_BLANK = 0.2
"""Share of the H&E's tissue for which the other slide may be blank, or end."""
NEAR_UM = 384.0
"""Least distance within which the windows around a tile are asked: twice that between them, so a dozen answer."""
WORK = "tiles.part"
"""Folder of the accounts of the rows."""


@dataclass(frozen=True, slots=True)
class PairTile:
    """One pair that is kept."""

    row: int
    column: int
    misalignment_um: float
    confidence: float
    dab_fraction: float
    tissue_fraction: float

    @property
    def name(self) -> str:
        """Name of both files."""
        return f"{self.row:04d}_{self.column:04d}.png"


@dataclass(frozen=True, eq=False)
class CutJob:
    """What all rows of one case share."""

    request: PairsRequest
    view: View
    """The H&E at the scale of the tiles."""
    warped: Warped
    residuals: Residuals
    backgrounds: tuple[Background, Background]

    @property
    def grid(self) -> Size:
        """Rows and columns of whole tiles."""
        return Size(self.view.size.h // self.request.tile, self.view.size.w // self.request.tile)


@dataclass(frozen=True, slots=True)
class TileRow:
    """The account of one row of tiles."""

    tiles: tuple[PairTile, ...]
    left_out: dict[str, int]
    """Reason → number of tiles."""


def cut(job: CutJob, progress: Callable[[int, int], None]) -> tuple[list[PairTile], Counter[str]]:
    """Cut all rows that are missing; returns all tiles that were kept, in reading order, and why others were not."""
    for name in ("he", "ihc", WORK):
        (job.request.output / name).mkdir(parents=True, exist_ok=True)
    rows = range(job.grid.h)
    missing = [row for row in rows if _account(job, row) is None]
    done = len(rows) - len(missing)

    def count(_: object) -> None:
        nonlocal done
        done += 1
        progress(done, len(rows))

    with Workers(job.request.workers) as workers:
        work = partial(_row, job)
        work.__name__ = "cut"  # type: ignore[attr-defined]  # Dask names its tasks by it
        workers.run(work, missing, count)
    accounts = [account for row in rows if (account := _account(job, row))]
    left_out = sum((Counter(account.left_out) for account in accounts), Counter[str]())
    return [tile for account in accounts for tile in account.tiles], left_out


def _path(job: CutJob, row: int) -> Path:
    return job.request.output / WORK / f"row_{row}.json"


def _account(job: CutJob, row: int) -> TileRow | None:
    try:
        content = json.loads(_path(job, row).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return TileRow(tuple(PairTile(**tile) for tile in content["tiles"]), content["left_out"])


def _row(job: CutJob, row: int) -> None:
    cv2.setNumThreads(1)  # rows run in parallel
    tiles, left_out = [], Counter[str]()
    for column in range(job.grid.w):
        try:
            result = _tile(job, row, column)
        except UnreadableRegion:
            result = "cannot be decoded"
        if isinstance(result, PairTile):
            tiles.append(result)
        else:
            left_out[result] += 1
    content = {"tiles": [asdict(tile) for tile in tiles], "left_out": left_out}
    atomic_write(_path(job, row), json.dumps(content))


def _tile(job: CutJob, row: int, column: int) -> PairTile | str:
    """Cut one tile, or say why not."""
    request, side, mpp = job.request, job.request.tile, job.request.mpp
    box = Box.at(row * side, column * side, Size(side, side))
    centre = (np.array([row, column]) + 0.5) * side * mpp
    off_um, confidence = job.residuals.near(centre, max(0.75 * side * mpp, NEAR_UM))
    if np.isnan(confidence):
        return "no tissue in both slides"
    if confidence < request.least_confidence or np.isnan(off_um):
        return "too few windows hold"
    if off_um > request.most_misaligned_um:
        return "misaligned"
    he = he_tile(job.view, box)
    is_tissue = tissue(he, mpp, job.backgrounds[0])
    if is_tissue.mean() < request.least_tissue:
        return "too little tissue"
    ihc, inside = job.warped.read(box)
    if (blank(ihc, mpp, job.backgrounds[1]) | ~inside)[is_tissue].mean() > MOST_BLANK:
        return "no IHC"
    tile = PairTile(
        row, column, round(off_um, 3), round(confidence, 3),
        round(float((dab(ihc, job.backgrounds[1]) > POSITIVE_OD).mean()), 4), round(float(is_tissue.mean()), 4),
    )  # fmt: skip
    for name, pixels in (("he", he), ("ihc", ihc)):
        atomic_write(request.output / name / tile.name, bytes(imagecodecs.png_encode(pixels, level=4)))
    return tile


def blank(ihc: np.ndarray, mpp: float, background: Background) -> np.ndarray:
    """Where a stained slide, uint8 (h, w, 3), shows only glass: bool (h, w)."""
    density = optical_density(ihc, background).mean(-1)
    return cv2.GaussianBlur(density, (0, 0), BLANK_UM / mpp, borderType=cv2.BORDER_REFLECT) < BLANK_OD
