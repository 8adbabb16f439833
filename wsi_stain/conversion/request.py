"""The request for a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_stain.config.convert import ConvertConfig, Norm, PrecisionChoice
from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import DEFAULT


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """A request for a conversion; the fields are the flags of `wsi-stain convert`."""

    slide: Path
    output: Path | None = None
    """`x.ome.tiff`, `x.ome.zarr` or `x.dcm`; `<slide>.<stain>.ome.tiff` in the working directory by default."""
    model: str | Path = DEFAULT
    mpp: float | None = None
    """µm per px of level 0 of the slide, if the file has none or a wrong one."""
    image: int | None = None
    """Number of the image, if the slide's file holds several; the largest by default."""
    z: int | None = None
    """Number of the focal plane, if the slide has several; the middle one by default."""
    device: str = "auto"
    mask: Literal["auto", "none"] | Path = "auto"
    """Tissue: `auto` detects it on a thumbnail, `none` stains the whole slide, a path is a GeoJSON file."""
    region: tuple[int, int, int, int] | None = None
    """(x, y, w, h) in level-0 px as the file stores them; only this region is converted."""
    workers: int | None = None
    """Number of threads; 0 uses the calling thread, None one per processor."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, whose workers paint the blocks."""
    cluster: Path | None = None
    """YAML file of a cluster (`ClusterConfig`) that is started for this conversion and paints the blocks."""
    config: ConvertConfig = field(default_factory=ConvertConfig)
    restart: bool = False
    """Discard an unfinished run and replace an existing output."""
    allow_upsampling: bool = False
    strict: bool = False
    """Refuse a slide whose verdict is bad: no H&E, or out of focus."""
    precision: PrecisionChoice = "auto"
    """Numeric precision; `auto` picks the fastest that the device supports."""
    allow_virtual: bool = False
    """Accept a slide that is a virtual stain already."""
    force_brightfield: bool = False
    """Accept a slide without a bright background."""
    norm: Norm | None = None
    """Only for networks with per-tile statistics: `slide` (default) measures them once, `tile` keeps them per tile."""
    keep_paths: bool = False
    """Write the user's home folder in the record in full, instead of `~`."""

    def __post_init__(self) -> None:
        if self.cluster is not None and self.scheduler is not None:
            raise ConfigError("--cluster and --scheduler exclude each other; pass one of them")

    def reachable(self, path: Path) -> Path:
        """The path as workers see it: cluster workers have another working directory, so they get an absolute path."""
        return path if self.scheduler is None else path.absolute()
