"""What the user asks of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_stain.config.convert import ConvertConfig, Norm, PrecisionChoice
from wsi_stain.model.bundle import DEFAULT


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What the user asks for; the fields are the flags of `wsi-stain convert`."""

    slide: Path
    output: Path | None = None
    """`x.ome.tiff` or `x.ome.zarr`; `<slide>.<stain>.ome.tiff` in the working directory by default."""
    model: str | Path = DEFAULT
    mpp: float | None = None
    """µm per px of the slide's level 0, where the slide says nothing or something absurd."""
    device: str = "auto"
    mask: Literal["auto", "none"] | Path = "auto"
    """Where tissue is: found on a thumbnail, everywhere, or a GeoJSON file."""
    region: tuple[int, int, int, int] | None = None
    """(x, y, w, h) in level-0 px: only this part is converted."""
    workers: int | None = None
    """Threads; 0 is the calling thread, None one per processor."""
    scheduler: str | None = None
    """Address of a Dask scheduler."""
    config: ConvertConfig = field(default_factory=ConvertConfig)
    restart: bool = False
    """Throw away what an earlier run left, and replace an existing output."""
    allow_upsampling: bool = False
    precision: PrecisionChoice = "auto"
    """Numeric precision; `auto` picks the fastest that the device supports."""
    norm: Norm | None = None
    """Only for a network with statistics per tile: `slide` measures them once (the default), `tile` leaves them so."""
