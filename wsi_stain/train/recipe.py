"""Stage 2: one step of adversarial training of the generator under frozen encoders (CEFF, reference: Isola 2017)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from wsi_stain.config.train import TrainConfig
from wsi_stain.model.bundle import WEIGHTS
from wsi_stain.nn.discriminator import Discriminator
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.wavelet import use_strided_haar
from wsi_stain.train.checkpoint import (
    flatten_modules,
    flatten_optimizer,
    load_start,
    restore_modules,
    restore_optimizer,
)
from wsi_stain.train.encoders import Encoders, frozen_encoders
from wsi_stain.train.losses import adaptive_weights, adversarial, weighted_l1
from wsi_stain.train.optimize import calibrate, memory_format, set_rate, set_training, slowed, update_average
from wsi_stain.train.palette import palette_of
from wsi_stain.train.parallel import DistributedContext


class StainingRecipe:
    """Networks, optimizers, and one training step; see `Recipe`.

    Args:
        config: the whole training.
        total: images of the whole stage.
        context: rank of this process and exchange with the others.

    Raises:
        TrainingError: the pretrained encoders or the starting weights are missing or have another width.

    Example:
        >>> losses = StainingRecipe(config, total, context).step(he, ihc, images=0)  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, total: int, context: DistributedContext) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.total = total
        self.context = context
        device, loss = context.device, config.loss
        self.generator = Generator(config.generator)
        use_strided_haar(self.generator)
        if self.generator.head is not None:
            self.generator.head.use(palette_of(config), config.counterstain)
        self.generator.to(device)
        self.encoders = frozen_encoders(config)
        if self.encoders is not None:
            self.encoders.to(device)
            if self.generator.encoder is not None:
                self.generator.encoder.load_state_dict(self.encoders.he.trunk.state_dict())
                self.generator.encoder.requires_grad_(config.encoders.source == "tuned")
        if config.start is not None:
            load_start(self.generator, config.start)
        self.discriminator = Discriminator(loss.discriminator_filters, conditional=loss.conditional).to(device)
        self._memory_format = memory_format(context.device, config.precision, config.generator.channels)
        for network in (self.generator, self.discriminator):
            convert_conv2d_weight_memory_format(network, self._memory_format)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        trained = [p for p in self.generator.parameters() if p.requires_grad]
        self.opt_g = torch.optim.Adam(trained, config.schedule.lr, (0.5, 0.999))
        self.opt_d = torch.optim.Adam(self.discriminator.parameters(), config.schedule.lr_discriminator, (0.5, 0.999))
        self.weight_seen = torch.zeros(2, dtype=torch.float64)
        """Steps so far, and the mean adaptive weight over them."""

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch; see `Recipe.step`."""
        loss, schedule = self.config.loss, self.config.schedule
        he, ihc = (x.contiguous(memory_format=self._memory_format) for x in (he, ihc))
        progress = images / self.total
        set_rate(self.opt_g, slowed(schedule.lr, progress, schedule), progress, schedule.decay_from)
        set_rate(self.opt_d, slowed(schedule.lr_discriminator, progress, schedule), progress, schedule.decay_from)
        frozen = self._frozen_part(self.generator)
        set_training(self.generator, frozen=frozen, frozen_statistics=progress >= schedule.freeze_from)
        with self._autocast():
            generated = self.generator(he)
        generated = generated.float()
        weights, figures = self._weights(generated.detach(), ihc)
        total = weighted_l1(generated, ihc, weights, loss.l1_levels, loss.l1_first)
        with torch.no_grad():
            figures["l1"] = (generated - ihc).abs().mean().item()
            figures["weighted_l1"] = total.item()
        if loss.gan and images >= loss.gan_from:
            figures["d"] = self._step_discriminator(he, ihc, generated.detach())
            gan = self._fool(he, generated)
            figures["gan"] = gan.item()
            total = total + loss.gan * gan
        self.opt_g.zero_grad(set_to_none=True)
        total.backward()
        self.context.share_gradients(self.generator.parameters())
        self.opt_g.step()
        update_average(self.average, self.generator, schedule.ema, images // schedule.batch)
        return figures

    def freeze(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fix the normalisation statistics at those of `batches`, for both generator and average.

        The running statistics of the last few steps are not accurate enough: they can be two standard deviations off,
        and the network then paints white.
        """
        calibrate(self.generator, (he for he, _ in batches), frozen=self._frozen_part(self.generator))
        for average_buffer, buffer in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            average_buffer.copy_(buffer)

    def results(self, images: int, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, nn.Module]:
        """A copy of the averaged generator for inference, in evaluation mode.

        Until the statistics are frozen, they are measured on `batches`: averaged weights have none of their own.
        """
        result = copy.deepcopy(self.average)
        if images / self.total <= self.config.schedule.freeze_from:
            calibrate(result, (he for he, _ in batches), frozen=self._frozen_part(result))
        return {WEIGHTS: result.eval()}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as flat named tensors; frozen encoders stay in their own file."""
        tensors = flatten_modules(self._parts()) | {"weight_seen": self.weight_seen}
        return tensors | flatten_optimizer("opt_g", self.opt_g) | flatten_optimizer("opt_d", self.opt_d)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        restore_modules(self._parts(), tensors)
        self.weight_seen = tensors["weight_seen"]
        restore_optimizer("opt_g", self.opt_g, tensors)
        restore_optimizer("opt_d", self.opt_d, tensors)

    def _parts(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}

    def _weights(self, generated: Tensor, ihc: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Weights of L1, (N, grid, grid), and the figures to log."""
        loss = self.config.loss
        if not loss.adaptive:
            return generated.new_full((len(generated), 1, 1), loss.l1), {}
        assert isinstance(self.encoders, Encoders), "the configuration forbids adaptive weights with joint encoders"
        with self._autocast():
            similarity = self.encoders.similarity(generated, ihc, loss.patches)
        weights = adaptive_weights(similarity, loss.alpha, loss.beta)
        figures = {"similarity": similarity.mean().item()}
        if loss.rescaled:
            mean = self.context.average({"weight": weights.mean().item()})["weight"]
            self.weight_seen[0] += 1
            self.weight_seen[1] += (mean - self.weight_seen[1]) / self.weight_seen[0]
            weights = weights * (loss.l1 / float(self.weight_seen[1]))
        return weights, figures | {"weight": weights.mean().item()}

    def _fool(self, he: Tensor, generated: Tensor) -> Tensor:
        """The generator's adversarial loss; the discriminator gets no gradient from it."""
        self.discriminator.requires_grad_(False)
        with self._autocast():
            logits = self.discriminator(he, generated)
        self.discriminator.requires_grad_(True)
        return adversarial(logits.float(), is_real=True)

    def _step_discriminator(self, he: Tensor, ihc: Tensor, generated: Tensor) -> float:
        with self._autocast():
            real, fake = self.discriminator(he, ihc), self.discriminator(he, generated)
        loss = 0.5 * (adversarial(real.float(), is_real=True) + adversarial(fake.float(), is_real=False))
        self.opt_d.zero_grad(set_to_none=True)
        loss.backward()
        self.context.share_gradients(self.discriminator.parameters())
        self.opt_d.step()
        return loss.item()

    def _frozen_part(self, generator: Generator) -> nn.Module | None:
        return generator.encoder if self.config.encoders.source in ("pretrained", "random") else None

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
