"""`trust.yaml` of a bundle: what its training slides look like, and how far it was off on held-out tissue."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_stain.config.ranges import Count, Share


@dataclass(frozen=True, slots=True)
class ErrorBin:
    """The held-out blocks whose predicted share of positive pixels lies between the bin before and `most`."""

    most: Share
    """Largest predicted share."""
    blocks: Count
    low: float
    """Quantile (1 - level) / 2 of real minus predicted share."""
    high: float
    """Quantile (1 + level) / 2."""


@dataclass(frozen=True, slots=True)
class ErrorScale:
    """Errors of blocks of one size."""

    um: Count
    """Side of the blocks in µm."""
    bins: tuple[ErrorBin, ...]
    """In order of `most`; the last is 1."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Errors of the positive share on tissue that the model was not trained on."""

    split: str
    fields: Count
    slides: Count
    patients: Count | None
    """None if the table of pairs does not state patients and has several slides."""
    threshold: float
    """DAB density above which a pixel is positive, with Ruifrok's vectors and the background of the bundle."""
    level: float
    """Share of the held-out blocks within the bounds."""
    scales: tuple[ErrorScale, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """The spread of one figure over the training tiles."""

    name: str
    low: float
    """1st percentile."""
    middle: float
    """Median."""
    high: float
    """99th percentile."""


@dataclass(frozen=True, slots=True)
class TrustConfig:
    """What is known of the tissue that a model was trained and judged on."""

    tiles: Count
    """Training tiles with tissue that were measured."""
    figures: tuple[Figure, ...]
    held_out: HeldOut | None = None
