"""Settings of a model: `bundle.yaml` and the architecture of its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from wsi_stain.config.channels import Channel, check_background, check_channels
from wsi_stain.config.network import NetworkConfig, NetworkFacts
from wsi_stain.config.ranges import Byte, Count, Mpp, NonNegative, NonNegativeInt, Range, check_ranges
from wsi_stain.errors import ConfigError

TOKEN_PX = 4
"""Side of a token of `ceff`: trunk and attention work at quarter resolution."""
WINDOW_TOKENS = 32
"""Default side of a query window of windowed attention, in tokens."""
HAAR_LEVELS = 3
"""Halvings of the wavelet transform at full resolution: shifts by fewer than 2³ px change the result."""
UNET_LEVELS = 4
"""Halvings of `unet`: its deepest features are about the pitch of cells apart, at 1 µm/px."""


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network of a bundle; `kind` selects the class, the other fields its architecture."""

    kind: Literal["ceff", "unet", "identity", "imported"] = "ceff"
    """`ceff` stains; `unet`, a direct regressor, only predicts positive area (`channels` is its width); the section
    `network` of a bundle describes an `imported` network, and the other fields here have no meaning for it."""
    channels: Count = 64
    """Width of the first scale; the paper's is 64."""
    blocks: Annotated[int, Range(4)] = 6
    """Residual blocks of the trunk: the fused scales enter blocks 2, 3 and 4."""
    head: Literal["rgb", "stain"] = "rgb"
    """Output: colours (the paper's), or `stain`: densities of DAB and hematoxylin, mixed by Beer–Lambert."""
    attention: Literal["global", "windowed"] = "windowed"
    """Scope of CoA: the whole crop (the paper's) or windows anchored to the slide."""
    window: Annotated[int, Range(16)] = WINDOW_TOKENS * TOKEN_PX
    """Side of an attention window in px; its keys reach half as far beyond it. Tiles and overlaps are multiples."""
    wavelet: bool = True
    """WTConv in the stem and the residual blocks of VMFE; `false` uses a plain depthwise convolution (ablation)."""
    coa: bool = True
    """Cross attention to the H&E encoder; `false` omits it (ablation)."""
    alpha: NonNegative = 0.2
    """Strength of the attention's residual, α (paper: 0.2)."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """Decoder: transposed convolutions (the paper's), or nearest-neighbour upsampling and a convolution, which avoids
    checkerboards (Odena et al., 2016)."""
    norm: Literal["batch", "instance"] = "batch"
    """Source of normalization statistics: frozen after training, or (`instance`) from each tile, which causes seams
    that blending cannot hide (Buglakova et al., ICCV 2025); `convert` measures the latter once per slide."""

    @property
    def multiple(self) -> int:
        """Number of px that must divide the sides of its input and the origins of tiles.

        It is the coarsest grid of the network: attention windows, Haar levels, or the strides of its convolutions.
        """
        if self.kind == "identity":
            return 1
        if self.kind == "unet":
            return 2**UNET_LEVELS
        if self.coa and self.attention == "windowed":
            return self.window
        return 2**HAAR_LEVELS if self.wavelet else TOKEN_PX

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.window % 2**HAAR_LEVELS:
            raise ConfigError(f"generator.window is {self.window}: it must be a multiple of {2**HAAR_LEVELS} px")


@dataclass(frozen=True, slots=True)
class BundleInput:
    """The input that the generator was trained on."""

    stain: str
    mpp: Mpp | None
    """µm per px; `None` means level 0 of the slide."""
    tile: Count = 512
    """Side of its tiles, px."""
    overlap: NonNegativeInt = 128
    """Pixels that neighbouring tiles share."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class BundleOutput:
    """The output of the generator."""

    stain: str
    background: tuple[Byte, ...] = (243, 243, 243)
    """Background colour (R, G, B) of this stain, or its value in each channel."""
    channels: tuple[Channel, ...] = ()
    """Fluorescence channels; empty for colours."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_channels(self.channels)
        check_background(self.background, self.channels, "output.background")

    @property
    def background_colour(self) -> tuple[int, int, int]:
        """Colour (R, G, B) of the background; only of a stain in colours.

        Raises:
            ConfigError: it has fluorescence channels.
        """
        if self.channels:
            raise ConfigError(f"{self.stain} has fluorescence channels, but only colours can be measured or judged")
        red, green, blue = self.background
        return red, green, blue


@dataclass(frozen=True, slots=True)
class BundleWeights:
    """The weight file and its hash."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TileTolerance:
    """Largest difference between a field stained in tiles and in one pass of the network, in grey levels."""

    mean: NonNegative
    """Mean difference of all channels."""
    p99: NonNegative
    """99th percentile of the differences."""
    max: NonNegative
    """Largest difference; only this value detects a seam one pixel wide."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if max(self.mean, self.p99) > self.max:
            raise ConfigError(
                f"tile_tolerance is mean {self.mean}, p99 {self.p99}, max {self.max}: none may exceed max"
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
    tile_tolerance: TileTolerance | None = None
    """The tolerance that `models check` verifies; `None` states none (identity needs none)."""
    network: NetworkConfig | None = None
    """Only of an imported network."""
    measured: NetworkFacts | None = None
    """What the import of a network measured."""

    def __post_init__(self) -> None:
        if (self.generator.kind == "imported") != (self.network is not None):
            raise ConfigError("an imported network needs generator.kind imported and the section network, both")
        named = len(self.output.channels)
        expected = self.network.outputs if self.network is not None and self.network.fluorescence else 0
        if named != expected:
            raise ConfigError(f"output.channels names {named} channels, but the network has {expected} of them")
