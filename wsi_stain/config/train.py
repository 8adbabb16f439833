"""Settings of a training, with both stages in one YAML: `wsi-stain pretrain` and `wsi-stain train` read the same file.

The defaults are the paper's values (CEFF, arXiv 2502.20156) unless a field states otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from wsi_stain.config.model import TOKEN_PX, BundleInput, BundleOutput, GeneratorConfig
from wsi_stain.config.ranges import Count, NonNegative, NonNegativeInt, Positive, Range, Share, check_ranges
from wsi_stain.errors import ConfigError

Exclusion = Literal["none", "neighbours", "slide"]
EncoderSource = Literal["pretrained", "tuned", "random", "joint"]

LEAST_TOKENS = 2
"""Smallest side of the trunk's features: its convolutions reflect a border of one token."""
LEAST_ENCODED_PX = TOKEN_PX + 1
"""Smallest image that an encoder accepts: its features have two tokens along a side."""
LEAST_JUDGED_PX = 24
"""Smallest image that the discriminator accepts: it returns H/8 - 2 judgements along a side."""


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Changes of the training crops that make a generator robust; the defaults disable each."""

    hue: Annotated[float, Range(0, 180)] = 0.0
    """Largest rotation of the H&E's colours around grey in optical density, in degrees."""
    saturation: Share = 0.0
    """Largest relative change of the H&E's colourfulness in optical density."""
    intensity: Annotated[float, Range(0, 4)] = 0.0
    """Largest relative change of the H&E's optical density, from pale (1 / (1 + x)) to overstained (1 + x)."""
    scale: Annotated[float, Range(0, 0.5)] = 0.0
    """Largest relative change of size, of both stains."""
    blur: Annotated[float, Range(0, 10)] = 0.0
    """Largest σ in px of a Gaussian blur of the H&E; half of the crops are blurred."""
    jpeg: Annotated[int, Range(0, 95)] = 0
    """Lowest quality of a JPEG compression of the H&E; half of the crops are compressed."""
    coarser: Annotated[float, Range(1, 4)] = 1.0
    """Largest factor by which the H&E is reduced and enlarged again, in half of the crops; 1 disables it."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Loss of the generator."""

    adaptive: bool = True
    """Weight the L1 of every patch by its similarity under the frozen IHC encoder, α + β·cos; `false` uses `l1`."""
    alpha: NonNegative = 50.0
    """α of the adaptive weight."""
    beta: NonNegative = 50.0
    """β of the adaptive weight."""
    patches: Count = 2
    """Patches along a side of the crop: 2 is the paper's 2×2; 1 weights whole crops of a batch against each other."""
    rescaled: bool = False
    """Scale the adaptive weights so that their mean over the run is `l1`: adaptivity without a lower overall weight."""
    l1: NonNegative = 75.0
    """Weight of a fixed L1, and the mean of a rescaled one."""
    l1_levels: Annotated[int, Range(1, 16)] = 1
    """Scales of L1, each half as large (PyramidPix2Pix, Liu et al. 2022); serial sections benefit from several."""
    l1_first: Annotated[int, Range(0, 8)] = 0
    """Finest scale of L1: 0 is the image itself, 2 has pixels of 4 px. Serial sections correspond no finer than
    that, and L1 on finer scales teaches blur."""
    gan: NonNegative = 1.0
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    gan_from: NonNegativeInt = 0
    """Images after which the discriminator begins: by then the generator's output is not trivial to tell."""
    discriminator_filters: Count = 64
    """Channels of the discriminator's first layer."""
    conditional: bool = True
    """Whether the discriminator also receives the H&E. Use `false` for serial sections, whose cells do not
    correspond: otherwise a nucleus that lies where the H&E has one marks a fake."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.adaptive and self.rescaled and self.alpha + self.beta == 0:
            raise ConfigError("loss.alpha and loss.beta are 0: weights that are always 0 cannot be rescaled")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Length and learning rates of the training; progress is counted in images (crops)."""

    images: Count = 400_000
    """Total number of crops."""
    epochs: Positive | None = None
    """The same in rounds over the training split; overrides `images`."""
    batch: Count = 8
    """Crops per step; batch normalization needs at least 8 for reliable statistics (the paper has 1)."""
    lr: NonNegative = 2e-4
    """Adam's learning rate (β = 0.5, 0.999)."""
    lr_discriminator: NonNegative = 2e-4
    decay_from: Share = 0.6
    """Share of the images after which the rates fall linearly to 0 (60 of 100 epochs)."""
    freeze_from: Share = 0.85
    """Share of the images after which normalization statistics are frozen, as at inference; 1 means never (paper)."""
    frozen_rate: Share = 0.1
    """Factor of the rates after statistics are frozen: batch statistics no longer stabilize the scale of every layer,
    so steps of the former size make a deep network diverge."""
    ema: Share = 0.999
    """Decay per step of the averaged weights that are kept as the result; 0 keeps the last weights (paper)."""
    save_images: Count = 2_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class EncodersConfig:
    """Source of the two encoders of stage 2."""

    source: EncoderSource = "pretrained"
    """`pretrained`: frozen, from `file` (paper). `tuned`: from `file`; the copy of the H&E encoder in the generator
    is trained further, the IHC encoder stays frozen. `random`: frozen at their initial weights (the control that the
    paper's code ran by accident). `joint`: the H&E encoder starts from random weights and is trained with the
    generator; this excludes adaptive L1."""
    file: Path | None = None
    """encoders.safetensors of `wsi-stain pretrain`; by default that in the run folder."""


@dataclass(frozen=True, slots=True)
class PretrainScheduleConfig:
    """Length and learning rate of the encoder training."""

    images: Count = 400_000
    """Total number of pairs of crops."""
    epochs: Positive | None = None
    """The same in rounds over the training split; overrides `images` (the paper has 300)."""
    batch: Annotated[int, Range(2)] = 64
    """Pairs per step; each is contrasted with the others of its batch."""
    lr: NonNegative = 2e-4
    """Adam's learning rate (β = 0.5, 0.999)."""
    decay_from: Share = 2 / 3
    """Share of the images after which the rate falls linearly to 0 (200 of 300 epochs)."""
    save_images: Count = 16_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Stage 1: contrastive training of the encoders of both stains."""

    crop: Annotated[int, Range(LEAST_ENCODED_PX)] = 256
    """Side of the crops, px; patches of stage 2 should have about this size."""
    schedule: PretrainScheduleConfig = field(default_factory=PretrainScheduleConfig)
    temperature: Positive = 0.07
    """τ of InfoNCE."""
    symmetric: bool = False
    """Also predict the H&E from the IHC (CLIP); the paper only predicts the IHC from the H&E."""
    exclude: Exclusion = "none"
    """Negatives to exclude as probably false: crops of the same and touching tiles, or of the same slide."""
    chunk: Annotated[int, Range(2)] | None = None
    """Crops per forward pass, to save memory; gradients are those of the whole batch (gradient caching). At least 2, as
    every chunk has its own normalization statistics."""
    weight_decay: NonNegative = 1e-4
    heldout: str = "val"
    """Split on which the encoders are evaluated."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.chunk is not None and self.schedule.batch % self.chunk:
            raise ConfigError(f"pretrain.chunk is {self.chunk}: it must divide the batch of {self.schedule.batch}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of `wsi-stain pretrain` and `wsi-stain train`."""

    pairs: Path
    """Folder (or CSV) of paired tiles."""
    run: Path
    """Folder for checkpoints, log and samples; the same command resumes from it."""
    input: BundleInput
    output: BundleOutput
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    start: Path | None = None
    """A bundle, a run folder or a generator.safetensors to start from instead of random weights; it includes
    its H&E encoder, so `encoders.source` must be `joint` or `tuned`. The discriminator starts from random weights."""
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    counterstain: Positive = 1.0
    """Darkness of the nuclei that `generator.head: stain` draws, relative to those of the training stain."""
    crop: Count = 512
    """Side of the training crops, px."""
    turns: bool = True
    """Also rotate crops by right angles; the paper only flips them."""
    stain_jitter: Share = 0.0
    """Stain augmentation of the H&E: largest relative change of each stain's density; 0 disables it."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the forward pass."""
    threads: Count | None = None
    """CPU threads of torch; all cores by default."""
    workers: NonNegativeInt = 0
    """Processes that decode and cut crops; 0 uses the training process, which suffices if all tiles fit in memory."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.generator.kind in ("identity", "imported"):
            raise ConfigError(f"generator.kind is {self.generator.kind}, which cannot be trained: choose ceff or unet")
        multiple = self.generator.multiple
        if self.crop % multiple:
            raise ConfigError(f"crop is {self.crop}: it must be a multiple of {multiple} px for this generator")
        if self.crop < (least := self._least_crop()):
            raise ConfigError(f"crop is {self.crop}: with these settings it must be at least {least} px")
        if self.generator.kind == "ceff":
            self._check_staining()
        elif self.start is not None:
            raise ConfigError("start is set, but generator.kind is unet: a direct regressor cannot start from weights")

    def _least_crop(self) -> int:
        """The smallest crop of which every part of the training gets a pixel."""
        if self.generator.kind == "unet":  # batch normalization needs two values per channel
            return self.generator.multiple * (1 if self.schedule.batch > 1 else 2)
        least = max(LEAST_TOKENS * TOKEN_PX, 2 ** (self.loss.l1_first + self.loss.l1_levels - 1))
        return max(least, LEAST_JUDGED_PX) if self.loss.gan else least

    def _check_staining(self) -> None:
        """Rules that hold for networks that stain."""
        loss, source = self.loss, self.encoders.source
        if loss.adaptive and (self.crop % loss.patches or self.crop // loss.patches < LEAST_ENCODED_PX):
            raise ConfigError(
                f"crop is {self.crop}: it cannot be cut into {loss.patches}×{loss.patches} patches of at least "
                f"{LEAST_ENCODED_PX} px; change loss.patches"
            )
        if self.start is not None and source not in ("joint", "tuned"):
            raise ConfigError(
                "start includes the H&E encoder of its generator: set encoders.source=tuned (or joint, without "
                "adaptive L1)"
            )
        if loss.adaptive and source == "joint":
            raise ConfigError(
                "loss.adaptive needs frozen encoders: set encoders.source=pretrained or loss.adaptive=false"
            )
        if self.generator.norm == "instance" and self.generator.coa and source != "joint":
            raise ConfigError(
                "generator.norm is instance, but pretrained encoders have batch statistics: set encoders.source=joint "
                "and loss.adaptive=false, or generator.coa=false"
            )
