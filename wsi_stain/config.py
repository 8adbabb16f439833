"""Settings as frozen dataclasses, one for every kind of YAML; the defaults live here, `loading` reads the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_stain.errors import ConfigError

Compression = Literal["jpeg", "deflate"]
Subsampling = Literal["420", "422", "rgb"]


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
    batch: int = 4
    """Tiles per call of the generator."""
    cache_mb: int = 256
    """Memory for generated tiles that the next block needs again, in MiB."""
    max_unreadable: float = 0.01
    """Share of the tissue tiles that may be unreadable before the conversion fails."""


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network of a bundle; `kind` chooses the class, the rest its shape."""

    kind: Literal["ceff", "identity"] = "ceff"
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


@dataclass(frozen=True, slots=True)
class LossConfig:
    """What the generator is trained for."""

    l1: float = 75.0
    """Weight of L1; the paper's adaptive weight lies between 50 and 100."""
    l1_levels: int = 1
    """Scales of L1, each half as large (PyramidPix2Pix, Liu et al. 2022); serial sections profit from several."""
    gan: float = 1.0
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    discriminator_filters: int = 64
    """Channels of the discriminator's first layer (paper: 64)."""
    conditional: bool = True
    """Whether the discriminator sees the H&E too."""


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How long and how fast; progress is counted in images seen."""

    images: int = 400_000
    """Crops to train on in all."""
    batch: int = 8
    """Crops per step; batch normalisation needs at least 8 for honest statistics."""
    lr: float = 2e-4
    """Adam's learning rate of the generator (paper: 2e-4, β = 0.5, 0.999)."""
    lr_discriminator: float = 2e-4
    decay_from: float = 0.6
    """Share of the images after which the rates fall linearly to 0 (paper: 60 of 100 epochs)."""
    freeze_from: float = 0.85
    """Share of the images after which normalisation statistics are frozen, as they are at inference."""
    ema: float = 0.999
    """Decay per step of the averaged weights that are kept as the result; 0 keeps the last weights."""
    save_images: int = 2_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.images < 1 or self.save_images < 1:
            raise ConfigError("schedule.images, schedule.batch and schedule.save_images must be at least 1")
        for name in ("decay_from", "freeze_from", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}: it must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of `wsi-stain train`."""

    pairs: Path
    """Folder (or CSV) of paired tiles."""
    run: Path
    """Folder for checkpoints, log and samples; the same command goes on there."""
    input: BundleInput
    output: BundleOutput
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    crop: int = 512
    """Side of the training crops, px."""
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the forward pass."""
    threads: int | None = None
    """CPU threads of torch; all cores by default."""

    def __post_init__(self) -> None:
        multiple = 128 if self.generator.coa and self.generator.attention == "windowed" else 8
        if self.crop < multiple or self.crop % multiple:
            raise ConfigError(f"crop is {self.crop}: this generator needs a multiple of {multiple} px")
