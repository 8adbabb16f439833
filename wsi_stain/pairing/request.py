"""The request for pairs from two slides, and the settings that decide which tiles are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from wsi_stain.config.ranges import Mpp, Positive, Range, Share, check_ranges

Split = Literal["columns", "train", "val", "test"]


@dataclass(frozen=True, slots=True)
class PairsRequest:
    """A request for the pairs of one case; the fields are the flags of `wsi-stain pairs make`."""

    he: Path
    ihc: Path
    output: Path
    """Folder of the case."""
    he_mpp: Mpp | None = None
    """µm per px of level 0 of the H&E, if the file has none or a wrong one."""
    ihc_mpp: Mpp | None = None
    """The same of the other slide."""
    mpp: Mpp = 1.0
    """µm per px of the tiles: that of the model to be trained."""
    tile: Annotated[int, Range(64, 4096)] = 512
    """Side of the tiles in px."""
    case: str = ""
    """Name of the case; the output folder's by default."""
    patient: str = ""
    """For the column `patient_id`."""
    split: Split = "columns"
    """`columns` divides the slide into train, val and test with buffers between; otherwise the split of all tiles."""
    strata: Path | None = None
    """GeoJSON of annotated areas in level-0 px of the H&E; their classes fill the column `stratum`."""
    one_affine: bool = False
    """One affine map for all fragments."""
    most_misaligned_um: Positive = 16.0
    """Tiles whose estimated misalignment is larger are left out."""
    least_confidence: Share = 0.3
    """Tiles around which a smaller share of the windows holds are left out."""
    least_tissue: Share = 0.3
    """Tiles with a smaller share of tissue in the H&E are left out."""
    workers: int | None = None
    """Number of threads; 0 uses the calling thread, None one per processor."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.case or self.output.resolve().name
