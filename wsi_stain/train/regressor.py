"""The direct regressor: a U-Net that predicts DAB-positive pixels without drawing an image, as a reference.

A virtual stain must predict positive areas better than the regressor to add information about them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import TrainingError
from wsi_stain.model.bundle import WEIGHTS
from wsi_stain.model.training_run import TrainingRun
from wsi_stain.nn.inference import pick_device
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.nn.unet import UNet
from wsi_stain.train.checkpoint import flatten_modules, flatten_optimizer, restore_modules, restore_optimizer
from wsi_stain.train.optimize import calibrate, set_rate, set_training, slowed, update_average
from wsi_stain.train.parallel import DistributedContext
from wsi_stain.train.positive import positive, share_loss


class RegressorRecipe:
    """The U-Net, its optimizer, and one training step; see `Recipe`.

    Args:
        config: the whole training; its loss settings are not used.
        total: images of the whole training.
        context: rank of this process and exchange with the others.

    Example:
        >>> losses = RegressorRecipe(config, total, context).step(he, ihc, images=0)  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, total: int, context: DistributedContext) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.total = total
        self.context = context
        # Channels-last is a third faster on a CPU; no convolution of this network crashes with it (see nn.pixels).
        self.network = UNet(config.generator).to(context.device, memory_format=torch.channels_last)  # type: ignore
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.schedule.lr)

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch; see `Recipe.step`.

        Returns:
            The mean cross entropy, and per side of block the mean absolute error of the positive share.
        """
        schedule, progress = self.config.schedule, images / self.total
        set_rate(self.optimizer, slowed(schedule.lr, progress, schedule), progress, schedule.decay_from)
        set_training(self.network, frozen_statistics=progress >= schedule.freeze_from)
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.network(he.contiguous(memory_format=torch.channels_last))
        loss, errors = share_loss(logits.float().sigmoid(), positive(ihc, self.config.output.background_colour))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.context.share_gradients(self.network.parameters())
        self.optimizer.step()
        update_average(self.average, self.network, schedule.ema, images // schedule.batch)
        return {"cross_entropy": loss.item()} | errors

    def freeze(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fix the normalisation statistics at those of `batches`, for both network and average."""
        calibrate(self.network, (he for he, _ in batches))
        for average_buffer, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            average_buffer.copy_(buffer)

    def results(self, images: int, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, nn.Module]:
        """A copy of the averaged network in evaluation mode; statistics measured on `batches` until they are frozen."""
        result = copy.deepcopy(self.average)
        if images / self.total <= self.config.schedule.freeze_from:
            calibrate(result, (he for he, _ in batches))
        return {WEIGHTS: result.eval()}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as flat named tensors."""
        return flatten_modules(self._parts()) | flatten_optimizer("optimizer", self.optimizer)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        restore_modules(self._parts(), tensors)
        restore_optimizer("optimizer", self.optimizer, tensors)

    def _parts(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}


def load_regressor(run: Path, device: str = "auto") -> Callable[[np.ndarray], np.ndarray]:
    """Load the direct regressor of a training run.

    Args:
        run: folder of `wsi-stain train` with generator.kind unet.
        device: as in `pick_device`.

    Returns:
        A function: uint8 (h, w, 3) H&E of any size → float32 (h, w), the probability of being positive, in [0, 1].

    Raises:
        TrainingError: the run has no result yet, is damaged, or trained a network of another kind.
        DeviceError: the device does not exist.
    """
    training = TrainingRun.open(run, "unet")
    network = UNet(training.config.generator)
    try:
        network.load_state_dict(load_file(training.weights))
    except (SafetensorError, OSError, RuntimeError) as err:
        raise TrainingError(
            f"{training.weights} does not match the U-Net in config.yaml: {err}; re-run the training"
        ) from err
    return _predictor(network, training.config.generator.multiple, torch.device(pick_device(device)))


def _predictor(network: UNet, multiple: int, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def predict(he: np.ndarray) -> np.ndarray:
        h, w = he.shape[:2]
        padded = np.pad(he, ((0, -h % multiple), (0, -w % multiple), (0, 0)), "reflect")
        return network(to_tensor(padded[None], device)).float().sigmoid()[0, 0, :h, :w].cpu().numpy()

    return predict
