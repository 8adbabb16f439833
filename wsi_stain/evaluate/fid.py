"""Fréchet and kernel Inception distance with torchmetrics; requires Inception weights from the user.

Nothing is downloaded, and no third-party pickle is opened: the weights are a safetensors file with the tensor names of
torch-fidelity's `weights-inception-2015-12-05`. Images are resized to 299 px as torchmetrics does by default, by
bilinear interpolation with antialiasing; other resizing gives slightly different values.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from wsi_stain.errors import ConfigError

Features = Callable[[np.ndarray], np.ndarray]
"""uint8 (h, w, 3) → float32 (d,): image features of a network."""
SUBSET, SUBSETS = 1000, 100
"""KID of more images than this is the mean over as many random subsets (Bińkowski et al. 2018)."""


def inception(weights: Path, device: str = "cpu") -> Features:
    """The features of InceptionV3 that FID and KID are defined by: those of its last pooling, 2048 of them.

    Args:
        weights: safetensors file with torch-fidelity's names.
        device: device to run on.

    Raises:
        ConfigError: torchmetrics or torch-fidelity cannot be imported, or the weights do not match.
    """
    tensors = _tensors(weights)
    try:
        importlib.import_module("torch_fidelity")  # torchmetrics reports its absence later, less clearly
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, RuntimeError) as err:  # an incompatible torchvision raises RuntimeError
        raise ConfigError(
            f"FID and KID need torchmetrics, torch-fidelity and a torchvision compatible with torch ({err}): "
            "run pip install 'wsi-stain[fid]', or omit --inception"
        ) from err
    # torch-fidelity reads a pickle, so one is written here from the tensors.
    pickled = io.BytesIO()
    torch.save(tensors, pickled)
    pickled.seek(0)
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], pickled).to(device)  # type: ignore[arg-type]
    except RuntimeError as err:
        raise ConfigError(f"{weights} does not match torch-fidelity's InceptionV3: {err}") from err

    @torch.inference_mode()
    def features(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device)
        return network(batch)[0].float().cpu().numpy()

    return features


def _tensors(weights: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as err:
        raise ConfigError(
            f"--inception {weights}: not a safetensors file ({err}); save the tensors of torch-fidelity's "
            "weights-inception-2015-12-05 with safetensors.torch.save_file"
        ) from err


def distances(generated: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """FID and KID of two sets of features, float (n, d) and (m, d); NaN below two images.

    FID has a large bias unless there are many more images than features; KID has none. Neither gets a bootstrap
    interval: resampled duplicates look like a generator that repeats itself, and increase both.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    few = min(len(generated), len(real))
    if few < 2:
        return float("nan"), float("nan")
    features = _Precomputed(generated.shape[1])
    frechet = FrechetInceptionDistance(features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        kernel = KernelInceptionDistance(
            features, subsets=1 if few <= SUBSET else SUBSETS, subset_size=min(few, SUBSET)
        )
    for metric in (frechet, kernel):
        for sample, is_real in ((real, True), (generated, False)):
            metric.update(torch.from_numpy(sample).double(), real=is_real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # KID draws its subsets from the global generator
        return float(frechet.compute()), float(kernel.compute()[0])


class _Precomputed(torch.nn.Module):
    """Passes precomputed features to torchmetrics as a network, so that real images are processed once for all rows."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
