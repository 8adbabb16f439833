"""Requirements of a training, computed before it starts: parameters and memory."""

from __future__ import annotations

from collections import abc
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsi_stain.config.train import TrainConfig
from wsi_stain.nn.discriminator import Discriminator
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.unet import UNet
from wsi_stain.nn.wavelet import use_strided_haar
from wsi_stain.train.encoders import Encoders

WORD = 4
"""Bytes of a float32."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Networks of one stage and the memory of a step.

    Args:
        trained: parameters by network.
        frozen: parameters that are not trained, by network.
        memory_bytes: weights, gradients, optimizer and the tensors that one step keeps for its backward pass; buffers
            of the libraries are not included.
    """

    trained: dict[str, int]
    frozen: dict[str, int]
    memory_bytes: int


def staining_needs(config: TrainConfig) -> Needs:
    """Stage 2: generator (or direct regressor) and discriminator."""
    loss, batch, side = config.loss, config.schedule.batch, config.crop
    trained: dict[str, nn.Module]
    inputs: dict[str, tuple[Tensor, ...]]
    with torch.device("meta"):
        image = torch.empty(batch, 3, side, side)
        if config.generator.kind == "unet":
            trained, inputs = {"regressor": UNet(config.generator)}, {"regressor": (image,)}
        else:
            trained, inputs = {"generator": Generator(config.generator)}, {"generator": (image,)}
            use_strided_haar(trained["generator"])
            if loss.gan:
                trained["discriminator"] = Discriminator(loss.discriminator_filters, conditional=loss.conditional)
                # The generator's step uses one fake batch; the discriminator's own step a real and a fake one.
                inputs["discriminator"] = (torch.empty(2 * batch, 3, side, side),) * 2
        has_frozen = config.generator.kind == "ceff" and config.encoders.source != "joint"
        frozen: dict[str, nn.Module] = {"encoders": Encoders(config.generator.channels)} if has_frozen else {}
        encoder = getattr(trained.get("generator"), "encoder", None)
        if has_frozen and encoder is not None and config.encoders.source != "tuned":
            encoder.requires_grad_(False)  # a copy, already counted with the encoders
        saved = sum(_saved_numbers(part, inputs[name]) for name, part in trained.items())
    return _needs(trained, frozen, saved, copies=5)


def contrast_needs(config: TrainConfig) -> Needs:
    """Stage 1: both encoders; with chunks, memory holds the pass of one chunk at a time."""
    stage = config.pretrain
    crops = min(stage.chunk or stage.schedule.batch, stage.schedule.batch)
    with torch.device("meta"):
        encoders = Encoders(config.generator.channels)
        saved = 2 * _saved_numbers(encoders.he, (torch.empty(crops, 3, stage.crop, stage.crop),))
    return _needs({"encoders": encoders}, {}, saved, copies=4)


def _needs(trained: dict[str, nn.Module], frozen: dict[str, nn.Module], saved: int, copies: int) -> Needs:
    """`copies`: weights, gradients, Adam's two moments and, in stage 2, the averaged weights."""
    learned = {k: sum(p.numel() for p in part.parameters() if p.requires_grad) for k, part in trained.items()}
    fixed = {k: sum(p.numel() for p in part.parameters()) for k, part in frozen.items()}
    return Needs(learned, fixed, WORD * (saved + copies * sum(learned.values()) + sum(fixed.values())))


def _saved_numbers(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Numbers that autograd saves in one forward pass, counted on tensors without data."""
    with _saved(module) as sizes:
        module.train()(*inputs)
    return sum(sizes.values())


@contextmanager
def _saved(module: nn.Module) -> abc.Generator[dict[int, int]]:
    sizes: dict[int, int] = {}
    weights = {id(p) for p in module.parameters()}
    alive = []  # ids are unique only among live objects

    def note(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights:
            alive.append(base)
            sizes[id(base)] = base.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
