"""Settings of a training, with both stages in one YAML: `wsi-stain pretrain` and `wsi-stain train` read the same file.

The defaults are the paper's values (CEFF, arXiv 2502.20156) unless a field states otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsi_stain.config.model import BundleInput, BundleOutput, GeneratorConfig
from wsi_stain.errors import ConfigError

Exclusion = Literal["none", "neighbours", "slide"]
EncoderSource = Literal["pretrained", "tuned", "random", "joint"]


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Changes of the training crops that make a generator robust; 0 disables each."""

    hue: float = 0.0
    """Largest rotation of the H&E's colours around grey in optical density, in degrees."""
    saturation: float = 0.0
    """Largest relative change of the H&E's colourfulness in optical density."""
    intensity: float = 0.0
    """Largest relative change of the H&E's optical density, from pale (1 / (1 + x)) to overstained (1 + x)."""
    scale: float = 0.0
    """Largest relative change of size, of both stains."""
    blur: float = 0.0
    """Largest σ in px of a Gaussian blur of the H&E; half of the crops are blurred."""
    jpeg: int = 0
    """Lowest quality of a JPEG compression of the H&E; half of the crops are compressed."""

    def __post_init__(self) -> None:
        for name, most in (("hue", 180.0), ("saturation", 1.0), ("intensity", 4.0), ("scale", 0.5), ("blur", 10.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: it must be between 0 and {most:g}")
        if not 0 <= self.jpeg <= 95:
            raise ConfigError(f"augment.jpeg is {self.jpeg}: it must be between 0 and 95")


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Loss of the generator."""

    adaptive: bool = True
    """Weight the L1 of every patch by its similarity under the frozen IHC encoder, α + β·cos; `false` uses `l1`."""
    alpha: float = 50.0
    """α of the adaptive weight."""
    beta: float = 50.0
    """β of the adaptive weight."""
    patches: int = 2
    """Patches along a side of the crop: 2 is the paper's 2×2; 1 weights whole crops of a batch against each other."""
    rescaled: bool = False
    """Scale the adaptive weights so that their mean over the run is `l1`: adaptivity without a lower overall weight."""
    l1: float = 75.0
    """Weight of a fixed L1, and the mean of a rescaled one."""
    l1_levels: int = 1
    """Scales of L1, each half as large (PyramidPix2Pix, Liu et al. 2022); serial sections benefit from several."""
    l1_first: int = 0
    """Finest scale of L1: 0 is the image itself, 2 has pixels of 4 px. Serial sections correspond no finer than
    that, and L1 on finer scales teaches blur."""
    gan: float = 1.0
    """Weight of the adversarial loss; 0 trains without a discriminator."""
    gan_from: int = 0
    """Images after which the discriminator begins: by then the generator's output is not trivial to tell."""
    discriminator_filters: int = 64
    """Channels of the discriminator's first layer."""
    conditional: bool = True
    """Whether the discriminator also receives the H&E. Use `false` for serial sections, whose cells do not
    correspond: otherwise a nucleus that lies where the H&E has one marks a fake."""

    def __post_init__(self) -> None:
        if self.patches < 1 or self.l1_levels < 1:
            raise ConfigError("loss.patches and loss.l1_levels must be at least 1")
        if self.l1_first < 0 or self.gan_from < 0:
            raise ConfigError("loss.l1_first and loss.gan_from must be at least 0")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Length and learning rates of the training; progress is counted in images (crops)."""

    images: int = 400_000
    """Total number of crops."""
    epochs: float | None = None
    """The same in rounds over the training split; overrides `images`."""
    batch: int = 8
    """Crops per step; batch normalization needs at least 8 for reliable statistics (the paper has 1)."""
    lr: float = 2e-4
    """Adam's learning rate (β = 0.5, 0.999)."""
    lr_discriminator: float = 2e-4
    decay_from: float = 0.6
    """Share of the images after which the rates fall linearly to 0 (60 of 100 epochs)."""
    freeze_from: float = 0.85
    """Share of the images after which normalization statistics are frozen, as at inference; 1 means never (paper)."""
    frozen_rate: float = 0.1
    """Factor of the rates after statistics are frozen: batch statistics no longer stabilize the scale of every layer,
    so steps of the former size make a deep network diverge."""
    ema: float = 0.999
    """Decay per step of the averaged weights that are kept as the result; 0 keeps the last weights (paper)."""
    save_images: int = 2_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        _check_schedule("schedule", self)


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

    images: int = 400_000
    """Total number of pairs of crops."""
    epochs: float | None = None
    """The same in rounds over the training split; overrides `images` (the paper has 300)."""
    batch: int = 64
    """Pairs per step; each is contrasted with the others of its batch."""
    lr: float = 2e-4
    """Adam's learning rate (β = 0.5, 0.999)."""
    decay_from: float = 2 / 3
    """Share of the images after which the rate falls linearly to 0 (200 of 300 epochs)."""
    save_images: int = 16_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        _check_schedule("pretrain.schedule", self)
        if self.batch < 2:
            raise ConfigError(
                f"pretrain.schedule.batch is {self.batch}: it must be at least 2; pairs are contrasted with each other"
            )


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Stage 1: contrastive training of the encoders of both stains."""

    crop: int = 256
    """Side of the crops, px; patches of stage 2 should have about this size."""
    schedule: PretrainScheduleConfig = field(default_factory=PretrainScheduleConfig)
    temperature: float = 0.07
    """τ of InfoNCE."""
    symmetric: bool = False
    """Also predict the H&E from the IHC (CLIP); the paper only predicts the IHC from the H&E."""
    exclude: Exclusion = "none"
    """Negatives to exclude as probably false: crops of the same and touching tiles, or of the same slide."""
    chunk: int | None = None
    """Crops per forward pass, to save memory; gradients are those of the whole batch (gradient caching)."""
    weight_decay: float = 1e-4
    heldout: str = "val"
    """Split on which the encoders are evaluated."""

    def __post_init__(self) -> None:
        if self.chunk is not None and (self.chunk < 2 or self.schedule.batch % self.chunk):
            raise ConfigError(
                f"pretrain.chunk is {self.chunk}: it must divide the batch of {self.schedule.batch} and be at least 2, "
                "because every chunk has its own normalization statistics"
            )


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
    counterstain: float = 1.0
    """Darkness of the nuclei that `generator.head: stain` draws, relative to those of the training stain."""
    crop: int = 512
    """Side of the training crops, px."""
    turns: bool = True
    """Also rotate crops by right angles; the paper only flips them."""
    stain_jitter: float = 0.0
    """Stain augmentation of the H&E: largest relative change of each stain's density; 0 disables it."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the forward pass."""
    threads: int | None = None
    """CPU threads of torch; all cores by default."""
    workers: int = 0
    """Processes that decode and cut crops; 0 uses the training process, which suffices if all tiles fit in memory."""

    def __post_init__(self) -> None:
        multiple = self.generator.window if self.generator.coa and self.generator.attention == "windowed" else 8
        if self.crop < multiple or self.crop % multiple:
            raise ConfigError(f"crop is {self.crop}: it must be a multiple of {multiple} px for this generator")
        if self.loss.adaptive and self.crop % self.loss.patches:
            raise ConfigError(
                f"crop is {self.crop}: it cannot be cut into {self.loss.patches}×{self.loss.patches} patches"
            )
        if self.start is not None and (self.generator.kind != "ceff" or self.encoders.source not in ("joint", "tuned")):
            raise ConfigError(
                "start includes the H&E encoder of its generator: set encoders.source=tuned (or joint, without "
                "adaptive L1); a direct regressor does not support start"
            )
        if self.loss.adaptive and self.generator.kind == "ceff" and self.encoders.source == "joint":
            raise ConfigError(
                "loss.adaptive needs frozen encoders: set encoders.source=pretrained or loss.adaptive=false"
            )


def _check_schedule(section: str, schedule: ScheduleConfig | PretrainScheduleConfig) -> None:
    if schedule.batch < 1 or schedule.images < 1 or schedule.save_images < 1:
        raise ConfigError(f"{section}.images, {section}.batch and {section}.save_images must be at least 1")
    if schedule.epochs is not None and schedule.epochs <= 0:
        raise ConfigError(f"{section}.epochs is {schedule.epochs}: it must be above 0")
    for name in ("decay_from", "freeze_from", "frozen_rate", "ema"):
        if not 0 <= getattr(schedule, name, 0) <= 1:
            raise ConfigError(f"{section}.{name} is {getattr(schedule, name)}: it must be between 0 and 1")
