"""The request for a read-out, and the settings of its figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from wsi_stain.config.ranges import Range, check_ranges
from wsi_stain.errors import ConfigError
from wsi_stain.measure.deconvolution import POSITIVE_OD

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """DAB densities above which a pixel counts as weak, moderate and strong; positive means weak or more."""

    weak: Annotated[float, Range(above=0)] = POSITIVE_OD
    """As in `evaluate`, so that the held-out error of a model applies."""
    moderate: Annotated[float, Range(above=0)] = 0.4
    """As in QuPath's positive cell detection, like `strong`."""
    strong: Annotated[float, Range(above=0)] = 0.6

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.weak < self.moderate < self.strong:
            raise ConfigError(
                f"the thresholds are {self.weak:g}, {self.moderate:g}, {self.strong:g}: each must be above the one "
                "before; pass --thresholds WEAK,MODERATE,STRONG"
            )


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """A request for a read-out; the fields are the flags of `wsi-stain measure`."""

    slide: Path
    output: Path | None = None
    """Folder of the results; `<slide>.measure` in the working directory by default."""
    roi: Path | None = None
    """GeoJSON file: each of its areas is measured, under its name."""
    he: Path | None = None
    """The H&E slide in the same frame, on which tissue is detected."""
    mpp: float | None = None
    """µm per px of level 0, if the file has none or a wrong one."""
    image: int | None = None
    """Number of the image, if the file holds several; the largest by default."""
    z: int | None = None
    """Number of the focal plane, if there are several; the middle one by default."""
    at: float | None = None
    """µm per px at which densities are measured; level 0 by default."""
    mask: Literal["auto", "none"] | Path = "auto"
    """Tissue: `auto` detects it, `none` measures every pixel, a path is a GeoJSON file."""
    model: str | Path | None = None
    """Bundle of a virtual stain, if it is not shipped; its held-out errors give the interval."""
    stains: Literal["auto", "estimate", "model", "ruifrok"] | tuple[Vector, Vector] = "auto"
    """Vectors of hematoxylin and DAB; `auto` is `model` for a virtual stain and `estimate` for any other slide."""
    background: Vector | None = None
    """Colour of the empty slide; estimated by default, or the model's."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    workers: int | None = None
    """Number of threads; 0 uses the calling thread, None one per processor."""
