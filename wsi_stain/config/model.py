"""Settings of a model: `bundle.yaml` and the architecture of its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsi_stain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network of a bundle; `kind` selects the class, the other fields its architecture."""

    kind: Literal["ceff", "unet", "identity"] = "ceff"
    """`ceff` stains; `unet`, a direct regressor, only predicts positive area (`channels` is its width)."""
    channels: int = 64
    """Width of the first scale; the paper's is 64."""
    blocks: int = 6
    """Residual blocks of the trunk, at least 4: the fused scales enter blocks 2, 3 and 4."""
    head: Literal["rgb", "stain"] = "rgb"
    """Output: colours (the paper's), or `stain`: densities of DAB and hematoxylin, mixed by Beer–Lambert."""
    attention: Literal["global", "windowed"] = "windowed"
    """Scope of CoA: the whole crop (the paper's) or windows anchored to the slide."""
    window: int = 128
    """Side of an attention window in px; its keys reach half as far beyond it. Tiles and overlaps are multiples."""
    wavelet: bool = True
    """WTConv in the stem and the residual blocks of VMFE; `false` uses a plain depthwise convolution (ablation)."""
    coa: bool = True
    """Cross attention to the H&E encoder; `false` omits it (ablation)."""
    alpha: float = 0.2
    """Strength of the attention's residual, α (paper: 0.2)."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """Decoder: transposed convolutions (the paper's), or nearest-neighbour upsampling and a convolution, which avoids
    checkerboards (Odena et al., 2016)."""
    norm: Literal["batch", "instance"] = "batch"
    """Source of normalization statistics: frozen after training, or (`instance`) from each tile, which causes seams
    that blending cannot hide (Buglakova et al., ICCV 2025); `convert` measures the latter once per slide."""

    @property
    def multiple(self) -> int:
        """Number of px that must divide tile origins and sides: the attention windows, or three Haar levels."""
        if self.kind == "identity":
            return 1
        return self.window if self.kind == "ceff" and self.coa and self.attention == "windowed" else 8

    def __post_init__(self) -> None:
        if self.blocks < 4:
            raise ConfigError(
                f"generator.blocks is {self.blocks}: it must be at least 4; the fused scales enter blocks 2, 3 and 4"
            )
        if self.channels < 4 or self.channels % 4:
            raise ConfigError(f"generator.channels is {self.channels}: it must be a positive multiple of 4")
        if self.window < 16 or self.window % 8:
            raise ConfigError(f"generator.window is {self.window}: it must be a multiple of 8 px, at least 16")


@dataclass(frozen=True, slots=True)
class BundleInput:
    """The input that the generator was trained on."""

    stain: str
    mpp: float | None
    """µm per px; `None` means level 0 of the slide."""
    tile: int = 512
    overlap: int = 128


@dataclass(frozen=True, slots=True)
class BundleOutput:
    """The output of the generator."""

    stain: str
    glass: tuple[int, int, int] = (243, 243, 243)
    """Background colour (R, G, B) of this stain."""


@dataclass(frozen=True, slots=True)
class BundleWeights:
    """The weight file and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class BundlePromise:
    """Largest difference between a field stained in tiles and in one pass of the network, in grey levels."""

    mean: float
    """Mean difference of all channels."""
    p99: float
    """99th percentile of the differences."""
    max: float
    """Largest difference; only this value detects a seam one pixel wide."""

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= self.max or not 0 <= self.p99 <= self.max:
            raise ConfigError(
                f"invariance is mean {self.mean}, p99 {self.p99}, max {self.max}: none may be negative or above max"
            )


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """`bundle.yaml`: the specification of a trained model."""

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
    """The promise that `models check` verifies; `None` promises nothing (identity needs no promise)."""
