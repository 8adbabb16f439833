"""The training loop: reads batches; writes checkpoints, log and samples; the same command resumes a run."""

from __future__ import annotations

import logging
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

from wsi_stain.config.loader import dump, renamed
from wsi_stain.config.train import AugmentConfig
from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.files import record
from wsi_stain.files.atomic import atomic_write
from wsi_stain.files.full_disk import reporting_full_disk
from wsi_stain.files.lock import locked
from wsi_stain.model.training_run import CHECKPOINT, CONFIG
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.train import checkpoint
from wsi_stain.train.crops import Crops, Images, numbers, stream
from wsi_stain.train.log import RunLog
from wsi_stain.train.parallel import DistributedContext

logger = logging.getLogger(__name__)

CALIBRATION_BATCHES = 32
"""Most batches for measuring normalisation statistics before they are frozen or used."""
CALIBRATION_IMAGES = 256
"""Most crops for the same measurement."""
EXPLODED = 1e4
"""A larger loss stops the training; L1 of tanh images, weighted by 100, stays below 200."""

Both = tuple[Tensor, Tensor]


class Recipe(Protocol):
    """The object of the training loop: networks, optimizers, losses."""

    def step(self, he: Tensor, ihc: Tensor, images: int) -> dict[str, float]:
        """Train on one batch, float (N, 3, H, W) in [-1, 1] each, after `images` images; returns losses by name."""
        ...

    def freeze(self, batches: Iterable[Both]) -> None:
        """Fix normalisation statistics at those of `batches`; called once, at `Stage.freeze_from`."""
        ...

    def results(self, images: int, batches: Iterable[Both]) -> dict[str, nn.Module]:
        """File name → network for inference, in evaluation mode; `batches` serve to measure statistics."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """Settings of one stage, independent of its recipe.

    Args:
        folder: for checkpoint, log and results.
        settings: the whole configuration, stored next to the results.
        fixed: the settings that must not change when a run is resumed.
        result: file name of the result of its recipe.
        total: images of the whole stage.
        batch: images per step, over all processes.
        save_images: images between two checkpoints.
        freeze_from: share of the images after which statistics are frozen.
        workers: processes that decode.
    """

    folder: Path
    settings: dict[str, Any]
    fixed: dict[str, Any]
    result: str
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
    """Share of the elapsed time that the device waited for crops."""
    losses: dict[str, float]


def run(
    stage: Stage,
    recipe: Recipe,
    crops: Crops,
    context: DistributedContext,
    *,
    progress: Callable[[Step], None],
    draw: Callable[[Mapping[str, nn.Module]], Any] | None = None,
) -> None:
    """Train to the end of the stage; resume from the checkpoint in its folder, if one exists.

    Args:
        stage: settings of the stage.
        recipe: the networks to train and their training step.
        crops: source of the images.
        context: rank of this process and exchange with the others.
        progress: called after every step, in the first process.
        draw: draws a sample picture, uint8 (h, w, 3), of the results at every checkpoint.

    Raises:
        ConfigError: the folder holds a run with other settings.
        OutputError: another process is training in the folder.
        InsufficientResources: the disk is full.
        TrainingError: a loss is not finite or exceeds `EXPLODED`.
    """
    if context.is_first:
        stage.folder.mkdir(parents=True, exist_ok=True)
    with (
        reporting_full_disk(stage.folder),
        locked(stage.folder / "lock") if context.is_first else nullcontext(),
    ):
        images = _open(stage, recipe, context)
        if images < stage.total:
            _train(stage, recipe, crops, context, images, progress=progress, draw=draw)
        elif context.is_first and not (stage.folder / stage.result).is_file():
            _save_results(stage, recipe.results(images, _calibration(stage, crops, context)), images)


def _train(
    stage: Stage,
    recipe: Recipe,
    crops: Crops,
    context: DistributedContext,
    images: int,
    *,
    progress: Callable[[Step], None],
    draw: Callable[[Mapping[str, nn.Module]], Any] | None,
) -> None:
    """Train, starting at image number `images`."""
    batches = numbers(images, stage.total, stage.batch, rank=context.rank, world=context.world)
    clock = _Clock(images)
    with RunLog(stage.folder, images, is_on=context.is_first) as log:
        for he, ihc in clock.waits(stream(crops, batches, stage.workers)):
            if images / stage.total >= stage.freeze_from > (images - stage.batch) / stage.total:
                recipe.freeze(_calibration(stage, crops, context))
            losses = recipe.step(to_tensor(he, context.device), to_tensor(ihc, context.device), images)
            images += stage.batch
            losses = context.average(losses)
            _stop_if_diverged(losses, images, stage.folder)
            rate, waiting = clock.rate(images), clock.waiting
            if context.is_first:
                progress(Step(images, stage.total, rate, waiting, losses))
            is_saving = (
                images >= stage.total or images // stage.save_images > (images - stage.batch) // stage.save_images
            )
            log.add(images, rate, waiting, losses, is_last_of_window=is_saving)
            if is_saving:
                results = recipe.results(images, _calibration(stage, crops, context))
                _save(stage, recipe, results, images, context)
                if draw is not None and context.is_first:
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


def _open(stage: Stage, recipe: Recipe, context: DistributedContext) -> int:
    """Prepare the folder, or load its checkpoint; returns the number of images seen so far."""
    path, config = stage.folder / CHECKPOINT, stage.folder / CONFIG
    is_new = not path.exists()
    context.wait()  # every process must look for a checkpoint before the first one writes
    images = 0 if is_new else _resume(stage, recipe, context, path)
    if context.is_first and (is_new or not config.exists()):
        atomic_write(config, yaml.safe_dump(stage.settings, sort_keys=False))
    context.wait()
    return images


def _resume(stage: Stage, recipe: Recipe, context: DistributedContext, path: Path) -> int:
    """Load a checkpoint; returns the number of images seen."""
    tensors, facts = checkpoint.load(path)
    if not isinstance(facts.get("images"), int) or not isinstance(facts.get("settings"), dict):
        raise TrainingError(f"{path} is not a checkpoint of wsi-stain train: remove it to start again")
    settings = renamed(facts["settings"], f"{path}: ")
    if "augment" in stage.fixed:  # runs of earlier versions lack what they did not know
        settings["augment"] = dump(AugmentConfig()) | settings.get("augment", {})
    changed = [key for key in sorted({*stage.fixed, *settings}) if stage.fixed.get(key) != settings.get(key)]
    if changed:
        raise ConfigError(
            f"{stage.folder} holds a run with different settings ({', '.join(changed)}): choose another run folder"
        )
    if context.is_first and (changed := record.changes(facts.get("versions", record.versions()), record.versions())):
        logger.warning(
            "%s was begun with other versions (%s); it continues with these", stage.folder, ", ".join(changed)
        )
    try:
        recipe.load_state(tensors)
    except (RuntimeError, KeyError, ValueError) as err:
        cause = " ".join(str(err).split())[:200]
        raise TrainingError(f"{path} lacks a part of the training ({cause}): remove it to start again") from err
    return facts["images"]


def _stop_if_diverged(losses: dict[str, float], images: int, folder: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value) or abs(value) > EXPLODED:
            raise _diverged(f"the loss {name!r} became {value:g}", images, folder)


def _diverged(cause: str, images: int, folder: Path) -> TrainingError:
    file = folder / CHECKPOINT
    state = f"the last valid checkpoint is {file}" if file.exists() else "no checkpoint exists yet"
    return TrainingError(
        f"{cause} after {images} images; {state}: lower the learning rate (schedule.lr) and start in a new run folder"
    )


def _calibration(stage: Stage, crops: Crops, context: DistributedContext) -> Iterator[Both]:
    """Batches to measure normalisation statistics on: always the same crops of the training set."""
    images = min(CALIBRATION_IMAGES, CALIBRATION_BATCHES * stage.batch)
    for he, ihc in stream(crops, numbers(0, images, stage.batch), workers=0):
        yield to_tensor(he, context.device), to_tensor(ihc, context.device)


def _save(
    stage: Stage, recipe: Recipe, results: Mapping[str, nn.Module], images: int, context: DistributedContext
) -> None:
    """Write results, then the checkpoint, so that results are never older than the checkpoint."""
    state = recipe.state()
    bad = [key for key, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise _diverged(f"{bad[0]} is no longer finite", images, stage.folder)
    if context.is_first:
        _save_results(stage, results, images)
        checkpoint.save(
            stage.folder / CHECKPOINT, state, {"images": images, "settings": stage.fixed, "versions": record.versions()}
        )
    context.wait()


def _save_results(stage: Stage, results: Mapping[str, nn.Module], images: int) -> None:
    for file, module in results.items():
        checkpoint.save(stage.folder / file, module.state_dict(), {"images": images})
