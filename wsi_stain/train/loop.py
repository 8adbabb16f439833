"""The training loop: batches in, checkpoints, log and samples out; the same command resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor, nn

from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.files.lock import locked
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.train import checkpoint
from wsi_stain.train.crops import Crops, Images, numbers, stream
from wsi_stain.train.log import RunLog
from wsi_stain.train.parallel import Ranks

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.yaml"
CALIBRATION_BATCHES = 32
"""Batches that normalisation statistics are measured on before they are frozen or used …"""
CALIBRATION_IMAGES = 256
"""… and the most crops in them."""
EXPLODED = 1e4
"""No loss of a healthy training comes near it: L1 of tanh images, weighted by 100, stays below 200."""

Both = tuple[Tensor, Tensor]


class Recipe(Protocol):
    """What a loop trains: networks, optimizers, losses."""

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch, float (N, 3, H, W) in [-1, 1] each, after `images` were seen; returns losses by name."""
        ...

    def freeze(self, batches: Iterable[Both]) -> None:
        """Fix normalisation statistics at those of `batches`; called once, at `Stage.freeze_at`."""
        ...

    def results(self, images: int, batches: Iterable[Both]) -> dict[str, nn.Module]:
        """File name → network for inference, in evaluation mode; `batches` to measure statistics on."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """How one stage runs, whatever its recipe.

    Args:
        folder: for checkpoint, log and results.
        settings: the whole configuration, kept beside the results.
        fixed: those settings that a resumed run must share.
        total: images in all.
        batch: images per step, over all processes.
        save_images: images between two checkpoints.
        freeze_from: share of the images after which statistics are frozen.
        workers: processes that decode.
    """

    folder: Path
    settings: dict[str, Any]
    fixed: dict[str, Any]
    total: int
    batch: int
    save_images: int
    freeze_from: float
    workers: int


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a training, after each step."""

    images: int
    total: int
    images_per_s: float
    waiting: float
    """Share of the time so far that the device waited for crops."""
    losses: dict[str, float]


def run(
    stage: Stage,
    recipe: Recipe,
    crops: Crops,
    ranks: Ranks,
    *,
    progress: Callable[[Step], None],
    draw: Callable[[Mapping[str, nn.Module]], Any] | None = None,
) -> None:
    """Train to the end of the stage; resume from the checkpoint in its folder, if one exists.

    Args:
        stage: how long, and where.
        recipe: what is trained.
        crops: where images come from.
        ranks: this process among its fellows.
        progress: called after every step, in the first process.
        draw: makes a sample picture, uint8 (h, w, 3), of the results at every checkpoint.

    Raises:
        ConfigError: the folder holds a run of other settings.
        OutputError: another process trains in the folder.
        TrainingError: a loss that is no number, or beyond all bounds.
    """
    if ranks.is_first:
        stage.folder.mkdir(parents=True, exist_ok=True)
    with locked(stage.folder / "lock") if ranks.is_first else nullcontext():
        images = _open(stage, recipe, ranks)
        if images < stage.total:
            _go_on(stage, recipe, crops, ranks, images, progress=progress, draw=draw)


def _go_on(
    stage: Stage,
    recipe: Recipe,
    crops: Crops,
    ranks: Ranks,
    images: int,
    *,
    progress: Callable[[Step], None],
    draw: Callable[[Mapping[str, nn.Module]], Any] | None,
) -> None:
    """Train from image number `images` on."""
    batches = numbers(images, stage.total, stage.batch, rank=ranks.rank, world=ranks.world)
    clock = _Clock(images)
    with RunLog(stage.folder, images, is_on=ranks.is_first) as log:
        for he, ihc in clock.waits(stream(crops, batches, stage.workers)):
            if images / stage.total >= stage.freeze_from > (images - stage.batch) / stage.total:
                recipe.freeze(_calibration(stage, crops, ranks))
            losses = recipe.step(to_tensor(he, ranks.device), to_tensor(ihc, ranks.device), images)
            images += stage.batch
            losses = ranks.average(losses)
            _stop_if_lost(losses, images, stage.folder)
            rate, waiting = clock.rate(images), clock.waiting
            if ranks.is_first:
                progress(Step(images, stage.total, rate, waiting, losses))
            is_saving = (
                images >= stage.total or images // stage.save_images > (images - stage.batch) // stage.save_images
            )
            log.add(images, rate, waiting, losses, is_last_of_window=is_saving)
            if is_saving:
                results = recipe.results(images, _calibration(stage, crops, ranks))
                _save(stage, recipe, results, images, ranks)
                if draw is not None and ranks.is_first:
                    log.picture(images, draw(results))


class _Clock:
    """Speed since the start of this process, and the share of it spent waiting for crops."""

    def __init__(self, images: int) -> None:
        self._first, self._started, self._waited = images, time.monotonic(), 0.0

    def waits(self, batches: Iterator[Images]) -> Iterator[Images]:
        while True:
            before = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.monotonic() - before
            yield batch

    def rate(self, images: int) -> float:
        return (images - self._first) / (time.monotonic() - self._started)

    @property
    def waiting(self) -> float:
        return self._waited / (time.monotonic() - self._started)


def _open(stage: Stage, recipe: Recipe, ranks: Ranks) -> int:
    """Prepare the folder, or take up what is in it; returns the images seen so far."""
    path = stage.folder / CHECKPOINT
    if not path.exists():
        ranks.wait()  # nobody may look for a checkpoint when the first one already writes
        if ranks.is_first:
            (stage.folder / CONFIG).write_text(yaml.safe_dump(stage.settings, sort_keys=False), encoding="utf-8")
        ranks.wait()
        return 0
    tensors, facts = checkpoint.load(path)
    keys = sorted(set(stage.fixed) | set(facts["settings"]))
    changed = [k for k in keys if stage.fixed.get(k) != facts["settings"].get(k)]
    if changed:
        raise ConfigError(f"{stage.folder} holds a run with another {', '.join(changed)}: choose another run folder")
    recipe.load_state(tensors)
    ranks.wait()
    return facts["images"]


def _stop_if_lost(losses: dict[str, float], images: int, folder: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value) or abs(value) > EXPLODED:
            raise _lost(f"the loss {name!r} became {value:g}", images, folder)


def _lost(what: str, images: int, folder: Path) -> TrainingError:
    good = folder / CHECKPOINT
    kept = f"the last good state is {good}" if good.exists() else "there was no checkpoint yet"
    return TrainingError(
        f"{what} after {images} images; {kept}: lower the learning rate (schedule.lr) and start in a new run folder"
    )


def _calibration(stage: Stage, crops: Crops, ranks: Ranks) -> Iterator[Both]:
    """Batches to measure normalisation statistics on: always the same crops of the training set."""
    images = min(CALIBRATION_IMAGES, CALIBRATION_BATCHES * stage.batch)
    for he, ihc in stream(crops, numbers(0, images, stage.batch), workers=0):
        yield to_tensor(he, ranks.device), to_tensor(ihc, ranks.device)


def _save(stage: Stage, recipe: Recipe, results: Mapping[str, nn.Module], images: int, ranks: Ranks) -> None:
    """Write results, then the checkpoint: what is in the folder is never older than the checkpoint says."""
    state = recipe.state()
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise _lost(f"{broken[0]} is no longer finite", images, stage.folder)
    if ranks.is_first:
        for file, module in results.items():
            checkpoint.save(stage.folder / file, module.state_dict(), {"images": images})
        checkpoint.save(stage.folder / CHECKPOINT, state, {"images": images, "settings": stage.fixed})
    ranks.wait()
