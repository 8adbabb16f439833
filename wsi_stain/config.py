"""Settings as frozen dataclasses, one for every kind of YAML; the defaults live here, `loading` reads the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wsi_stain.errors import ConfigError

Compression = Literal["jpeg", "deflate"]
Subsampling = Literal["420", "422", "rgb"]
Precision = Literal["fp32", "bf16", "fp16"]
"""Of a generator's arithmetic: float32, bfloat16, float16."""
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
"""`auto` is the fastest that the device has units for."""
Norm = Literal["tile", "slide"]


@dataclass(frozen=True, slots=True)
class GridConfig:
    """How a slide is cut."""

    tile: int | None = None
    """Side of the generator's input in px; the bundle's own by default."""
    overlap: int | None = None
    """Pixels shared by neighbouring tiles; the bundle's own by default."""
    block: int = 2048
    """Side of what one task owns, in px: 512 × a power of two, so that a block's pyramid tiles are its own."""

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
    """JPEG quality, 1–100; 90 is what slide scanners use at most, and invisible on stains."""
    subsampling: Subsampling = "420"
    """Chroma of JPEG: `420`, `422`, or `rgb` (archival). YCbCr 4:4:4 opens pink in QuPath and is not offered."""
    compat_openslide: bool = False
    """Link the first reduced level as a page too, so that OpenSlide sees the pyramid (`--compat openslide`)."""

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"output.quality is {self.quality}: it must lie between 1 and 100")


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """Settings of `wsi-stain convert` that have no flag of their own."""

    grid: GridConfig = field(default_factory=GridConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    batch: int | None = None
    """Tiles per call of the generator; what suits its device by default, and halved where the device's memory is full.
    A tile's pixels do not depend on it."""
    cache_mb: int = 256
    """Memory for generated tiles that the next block needs again, in MiB."""
    max_unreadable: float = 0.01
    """Share of the tissue tiles that may be unreadable before the conversion fails."""
    certificate: bool = True
    """Examine the output for seams: one tile in a hundred is stained twice."""


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network of a bundle; `kind` chooses the class, the rest its shape."""

    kind: Literal["ceff", "unet", "identity"] = "ceff"
    """`ceff` stains; `unet`, a direct regressor, only predicts what is positive (`channels` is its width)."""
    channels: int = 64
    """Width of the first scale; the paper's is 64."""
    blocks: int = 6
    """Residual blocks of the trunk, at least 4: the fused scales enter blocks 2, 3 and 4."""
    attention: Literal["global", "windowed"] = "windowed"
    """Scope of CoA: the whole crop (the paper's) or windows anchored to the slide."""
    wavelet: bool = True
    """WTConv in the stem and the residual blocks of VMFE; `false` leaves its plain depthwise convolution (ablation)."""
    coa: bool = True
    """Cross attention to the H&E encoder; `false` leaves it out (ablation)."""
    alpha: float = 0.2
    """Strength of the attention's residual, α (paper: 0.2)."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """Decoder: transposed convolutions (the paper's), or nearest-neighbour enlargement and a convolution, which leaves
    no checkerboard (Odena et al., 2016)."""
    norm: Literal["batch", "instance"] = "batch"
    """Where normalisation statistics come from: frozen after training, or (`instance`) from the very tile, which draws
    seams that no blending hides (Buglakova et al., ICCV 2025); `convert` measures those once per slide."""

    @property
    def multiple(self) -> int:
        """Px of which tile origins and sides must be multiples: the attention's windows, or three Haar levels."""
        if self.kind == "identity":
            return 1
        return 128 if self.kind == "ceff" and self.coa and self.attention == "windowed" else 8

    def __post_init__(self) -> None:
        if self.blocks < 4:
            raise ConfigError(
                f"generator.blocks is {self.blocks}: the fused scales enter blocks 2, 3 and 4, so at least 4"
            )
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(f"generator.channels is {self.channels}: it must be a positive multiple of 4")


@dataclass(frozen=True, slots=True)
class BundleInput:
    """What the generator was trained on."""

    stain: str
    mpp: float | None
    """µm per px; `None` works at the slide's level 0."""
    tile: int = 512
    overlap: int = 128


@dataclass(frozen=True, slots=True)
class BundleOutput:
    """What the generator makes."""

    stain: str
    glass: tuple[int, int, int] = (243, 243, 243)
    """Colour (R, G, B) of empty slide in this stain."""


@dataclass(frozen=True, slots=True)
class BundleWeights:
    """The weight file and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class BundlePromise:
    """How far a field painted in tiles may be from one pass of the network over it, in grey levels."""

    mean: float
    """Mean difference of all channels."""
    p99: float
    """99th percentile of the differences."""
    max: float
    """The largest difference: a seam one pixel wide shows only here."""

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= self.max or not 0 <= self.p99 <= self.max:
            raise ConfigError(
                f"invariance is mean {self.mean}, p99 {self.p99}, max {self.max}: none may be negative or above max"
            )


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """`bundle.yaml`: what a trained model is."""

    name: str
    version: str
    generator: GeneratorConfig
    input: BundleInput
    output: BundleOutput
    weights: BundleWeights | None = None
    """`None` only for kinds without weights (identity)."""
    card: str = "card.md"
    licence: str = ""
    """SPDX expression for the weights."""
    invariance: BundlePromise | None = None
    """What `models check` holds the bundle to; `None` promises nothing (identity needs to promise nothing)."""
