"""Settings of a conversion, and the choices of its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wsi_stain.errors import ConfigError

Compression = Literal["jpeg", "deflate"]
Subsampling = Literal["420", "422", "rgb"]
Precision = Literal["fp32", "bf16", "fp16"]
"""Numeric precision of a generator: float32, bfloat16, float16."""
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
"""`auto` picks the fastest that the device supports."""
Norm = Literal["tile", "slide"]


@dataclass(frozen=True, slots=True)
class GridConfig:
    """How a slide is divided into tiles and blocks."""

    tile: int | None = None
    """Side of the generator's input in px; by default that of the bundle."""
    overlap: int | None = None
    """Overlap of neighbouring tiles in px; by default that of the bundle."""
    block: int = 2048
    """Side of the block of one task in px: 512 × a power of two, so that no pyramid tile belongs to two blocks."""

    def __post_init__(self) -> None:
        factor, rest = divmod(self.block, 512)
        if rest or factor < 1 or factor & (factor - 1):
            raise ConfigError(f"grid.block is {self.block}: it must be 512 times a power of two, for example 2048")
        if self.tile is not None and self.tile < 1:
            raise ConfigError(f"grid.tile is {self.tile}: it must be at least 1")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"grid.overlap is {self.overlap}: it must not be negative")


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """How the output is encoded."""

    compression: Compression = "jpeg"
    """`jpeg`, or `deflate` (lossless)."""
    quality: int = 90
    """JPEG quality, 1–100; 90 is the highest that slide scanners use, and has no visible loss on stains."""
    subsampling: Subsampling = "420"
    """Chroma of JPEG: `420`, `422`, or `rgb` (archival). YCbCr 4:4:4 opens pink in QuPath and is not supported."""
    compat_openslide: bool = False
    """Also link the first reduced level as a page, so that OpenSlide reads the pyramid (`--compat openslide`)."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"output.quality is {self.quality}: it must be between 1 and 100")


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Settings of `wsi-stain convert` that have no flag of their own."""

    grid: GridConfig = field(default_factory=GridConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    batch: int | None = None
    """Tiles per call of the generator; by default suited to its device, and halved if the device memory is too small.
    The pixels of a tile do not depend on it."""
    cache_mb: int = 256
    """Memory in MiB for generated tiles that the next block reuses."""
    max_unreadable: float = 0.01
    """Share of the tissue tiles that may be unreadable before the conversion fails."""
    certificate: bool = True
    """Examine the output for seams: one tile in a hundred is stained twice."""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch is {self.batch}: it must be at least 1")
        if self.cache_mb < 0:
            raise ConfigError(f"cache_mb is {self.cache_mb}: it must not be negative")
        if not 0 <= self.max_unreadable <= 1:
            raise ConfigError(f"max_unreadable is {self.max_unreadable}: it must be a share between 0 and 1")
