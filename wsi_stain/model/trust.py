"""`trust.yaml` of a bundle: writing it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from wsi_stain.config.loader import dump
from wsi_stain.config.trust import TrustConfig
from wsi_stain.errors import BundleError
from wsi_stain.files.atomic import atomic_write
from wsi_stain.model.bundle import TRUST
from wsi_stain.trust.training import training_figures

HEAD = "# Written by `wsi-stain models calibrate`: the training tiles, and the errors on held-out tissue.\n"


def of_training(images: Iterable[np.ndarray], mpp: float) -> TrustConfig:
    """What the training tiles look like.

    Args:
        images: H&E of the training split, uint8 (h, w, 3).
        mpp: µm per px.

    Raises:
        BundleError: none of them has enough tissue.
    """
    tiles, figures = training_figures(images, mpp)
    if not tiles:
        raise BundleError("the training split has no tile with enough stained tissue; check the pairs")
    return TrustConfig(tiles, figures)


def write_trust(folder: Path, trust: TrustConfig) -> None:
    """Write the file into the folder of a bundle; an existing one is replaced."""
    text = yaml.safe_dump(dump(trust), sort_keys=False, allow_unicode=True)
    atomic_write(folder / TRUST, HEAD + text)
