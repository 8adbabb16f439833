"""Settings of a model: `bundle.yaml` and the shape of its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsi_stain.errors import ConfigError


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
