"""Settings of a conversion, and the choices of its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from wsi_stain.config.ranges import Count, NonNegativeInt, Range, Share, check_ranges
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

    tile: Count | None = None
    """Side of the generator's input in px; by default that of the bundle."""
    overlap: NonNegativeInt | None = None
    """Overlap of neighbouring tiles in px; by default that of the bundle."""
    block: Annotated[int, Range(512)] = 2048
    """Side of the block of one task in px: 512 × a power of two, so that no pyramid tile belongs to two blocks."""

    def __post_init__(self) -> None:
        check_ranges(self)
        factor, rest = divmod(self.block, 512)
        if rest or factor & (factor - 1):
            raise ConfigError(f"grid.block is {self.block}: it must be 512 times a power of two, for example 2048")


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """How the output is encoded."""

    compression: Compression = "jpeg"
    """`jpeg`, or `deflate` (lossless)."""
    quality: Annotated[int, Range(1, 100)] = 90
    """JPEG quality; 90 is the highest that slide scanners use, and has no visible loss on stains."""
    subsampling: Subsampling = "420"
    """Chroma of JPEG: `420`, `422`, or `rgb` (archival). YCbCr 4:4:4 opens pink in QuPath and is not supported."""
    compat_openslide: bool = False
    """Also link the first reduced level as a page, so that OpenSlide reads the pyramid (`--compat openslide`)."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Settings of `wsi-stain convert` that have no flag of their own."""

    grid: GridConfig = field(default_factory=GridConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    batch: Count | None = None
    """Tiles per call of the generator; by default suited to its device, and halved if the device memory is too small.
    The pixels of a tile do not depend on it."""
    cache_mib: NonNegativeInt = 256
    """Memory in MiB for generated tiles that the next block reuses."""
    max_unreadable: Share = 0.01
    """Share of the tissue tiles that may be unreadable before the conversion fails."""
    check_input: bool = True
    """Look at a few tiles before staining: whether the slide is H&E, and like the slides of the model's training."""
    certificate: bool = True
    """Examine the output for seams: one tile in a hundred is stained twice."""

    def __post_init__(self) -> None:
        check_ranges(self)
