"""The two encoders as a pair: stored in one file and frozen in stage 2."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import TrainingError
from wsi_stain.nn.encoder import Encoder
from wsi_stain.train.losses import patches

FILE = "encoders.safetensors"
FOLDER = "encoders"
"""Folder of the pretraining within the run folder."""


class Encoders(nn.Module):
    """Two networks of the same architecture with separate weights.

    Args:
        channels: width c; embeddings have 16c numbers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.he = Encoder(channels)
        self.ihc = Encoder(channels)

    @torch.no_grad()
    def similarity(self, generated: Tensor, real: Tensor, grid: int) -> Tensor:
        """Cosine similarity of the IHC encoder's embeddings of two stains, per patch; no gradient flows.

        Args:
            generated: (N, 3, H, W) in [-1, 1].
            real: the same shape and range.
            grid: patches per side.

        Returns:
            (N, grid, grid) in [-1, 1].
        """
        embedded = self.ihc(patches(torch.cat([generated, real]), grid)).float()
        return F.cosine_similarity(*embedded.chunk(2), dim=1).view(-1, grid, grid)


def file_of(config: TrainConfig) -> Path:
    """Where the encoders of a training are expected."""
    return config.encoders.file or config.run / FOLDER / FILE


def frozen_encoders(config: TrainConfig) -> Encoders | None:
    """The encoders of stage 2, in evaluation mode and without gradients; `None` if they are trained with the generator.

    Raises:
        TrainingError: the file does not exist, or its encoders have another width.
    """
    if config.encoders.source == "joint":
        return None
    channels = config.generator.channels
    random = config.encoders.source == "random"
    encoders = Encoders(channels) if random else load_encoders(file_of(config), channels)
    return encoders.eval().requires_grad_(False)


def load_encoders(path: Path, channels: int) -> Encoders:
    """The encoders of `wsi-stain pretrain`.

    Raises:
        TrainingError: the file does not exist, or its encoders have another width.
    """
    if not path.is_file():
        raise TrainingError(
            f"no pretrained encoders at {path}: run wsi-stain pretrain with the same configuration first, "
            "or set encoders.file to their file"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as err:
        raise TrainingError(f"{path} is not an encoders file ({err}); re-run wsi-stain pretrain") from err
    weights = tensors.get("he.trunk.body.1.weight")
    if weights is None:
        raise TrainingError(f"{path} contains no encoders; set encoders.file to the {FILE} of wsi-stain pretrain")
    if len(weights) != channels:
        raise TrainingError(
            f"the encoders in {path} have width {len(weights)}, the generator has {channels}: "
            "pretrain with the same generator.channels"
        )
    encoders = Encoders(channels)
    encoders.load_state_dict(tensors)
    return encoders
