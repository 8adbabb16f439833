"""The palette of a training: stain vectors and counterstain of its training split, for the stain head."""

from __future__ import annotations

from wsi_stain.config.train import TrainConfig
from wsi_stain.measure.palette import Palette, estimate
from wsi_stain.pairs.pair import evenly_spread, find_pairs, read_pair

MOST_PAIRS = 60
"""Pairs that are measured, evenly spread over the split: more do not change a median."""


def palette_of(config: TrainConfig) -> Palette:
    """The palette of the training split, with `output.background` as its background.

    Equal pairs give equal palettes, so that a resumed run and each of several processes use the same.
    """
    pairs = evenly_spread(find_pairs(config.pairs, "train"), MOST_PAIRS)
    return estimate(map(read_pair, pairs), config.output.background_colour, config.input.mpp or 1.0)
