"""The staining stage: generator against discriminator, plus L1 to the real stain (CEFF, arXiv 2502.20156, stage 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from wsi_stain.config import TrainConfig
from wsi_stain.nn.discriminator import Discriminator
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.wavelet import use_strided_haar
from wsi_stain.train.checkpoint import flatten_optimizer, restore_optimizer
from wsi_stain.train.losses import adversarial, pyramid_l1


class StainingRecipe:
    """Networks, optimizers, and one training step.

    Args:
        config: the whole training.
        device: where to train.

    Example:
        >>> losses = StainingRecipe(config, device).step(he, ihc, images=0)  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.generator = Generator(config.generator).to(device)
        use_strided_haar(self.generator)
        self.discriminator = Discriminator(config.loss.discriminator_filters, conditional=config.loss.conditional).to(
            device
        )
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        betas = (0.5, 0.999)
        self.opt_g = torch.optim.Adam(self.generator.parameters(), config.schedule.lr, betas)
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), config.schedule.lr_discriminator, betas)

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch.

        Args:
            he: float (N, 3, H, W) in [-1, 1].
            ihc: the real stain, likewise.
            images: how many images were seen before; sets learning rates and the freezing of statistics.

        Returns:
            The losses by name.
        """
        loss, schedule = self.config.loss, self.config.schedule
        done = images / schedule.images
        self._set_rates(done)
        set_training(self.generator, frozen_statistics=done >= schedule.freeze_from)
        with self._autocast():
            generated = self.generator(he)
        generated = generated.float()
        l1 = pyramid_l1(generated, ihc, loss.l1_levels)
        losses = {"l1": l1.item()}
        total = loss.l1 * l1
        if loss.gan:
            losses["d"] = self._step_discriminator(he, ihc, generated.detach())
            self.discriminator.requires_grad_(False)
            with self._autocast():
                logits = self.discriminator(he, generated)
            self.discriminator.requires_grad_(True)
            gan = adversarial(logits.float(), is_real=True)
            losses["gan"] = gan.item()
            total = total + loss.gan * gan
        self.opt_g.zero_grad(set_to_none=True)
        total.backward()
        self.opt_g.step()
        self._update_average(images // schedule.batch)
        return losses

    def freeze(self, batches: Iterable[Tensor]) -> None:
        """Fix the normalisation statistics at those of `batches`, for generator and average alike.

        The running statistics of the last few steps will not do: frozen as they are, they can lie two standard
        deviations off, and the network paints white.
        """
        calibrate(self.generator, batches)
        for kept, fixed in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(fixed)

    def result(self, images: int, batches: Iterable[Tensor]) -> Generator:
        """A copy of the averaged generator for inference, in evaluation mode.

        Until the statistics are frozen they are measured on `batches`, as averaged weights have seen none themselves.
        """
        result = copy.deepcopy(self.average)
        if images / self.config.schedule.images <= self.config.schedule.freeze_from:
            calibrate(result, batches)
        return result.eval()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as flat named tensors."""
        parts = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        tensors = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.state_dict().items()}
        return tensors | flatten_optimizer("opt_g", self.opt_g) | flatten_optimizer("opt_d", self.opt_d)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        parts = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        for name, part in parts.items():
            prefix = name + "."
            part.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        restore_optimizer("opt_g", self.opt_g, tensors)
        restore_optimizer("opt_d", self.opt_d, tensors)

    def _step_discriminator(self, he: Tensor, ihc: Tensor, generated: Tensor) -> float:
        with self._autocast():
            real, fake = self.discriminator(he, ihc), self.discriminator(he, generated)
        loss = 0.5 * (adversarial(real.float(), is_real=True) + adversarial(fake.float(), is_real=False))
        self.opt_d.zero_grad(set_to_none=True)
        loss.backward()
        self.opt_d.step()
        return loss.item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _set_rates(self, done: float) -> None:
        schedule = self.config.schedule
        rest = 1.0 if done < schedule.decay_from else (1 - done) / (1 - schedule.decay_from)
        for optimizer, rate in ((self.opt_g, schedule.lr), (self.opt_d, schedule.lr_discriminator)):
            for group in optimizer.param_groups:
                group["lr"] = rate * rest

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # Early on the average would remember the random start: let its memory grow with the run.
        decay = min(self.config.schedule.ema, (1 + step) / (10 + step))
        for kept, new in zip(self.average.state_dict().values(), self.generator.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def set_training(module: nn.Module, *, frozen_statistics: bool) -> None:
    """Training mode; with `frozen_statistics` batch norms use, and keep, the statistics that inference will use."""
    module.train()
    if frozen_statistics:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of every batch norm to their mean over `batches`; leaves the module in training mode.

    Source: Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (precise statistics).
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    module.train()
    for batch in batches:
        module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
