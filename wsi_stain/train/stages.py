"""The two stages of a training, from configuration to result: `pretrain` and `train`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsi_stain.cluster.threads import processors
from wsi_stain.config.loader import dump
from wsi_stain.config.train import PretrainScheduleConfig, ScheduleConfig, TrainConfig
from wsi_stain.errors import TrainingError
from wsi_stain.model.bundle import WEIGHTS
from wsi_stain.model.training_run import CHECKPOINT
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.pairs.check import problems
from wsi_stain.pairs.pair import Pair, check_scale, find_pairs, load_pair
from wsi_stain.train.contrast import ContrastiveRecipe
from wsi_stain.train.crops import Crops
from wsi_stain.train.discrimination import discriminate, negatives, save
from wsi_stain.train.encoders import FILE, FOLDER, load_encoders
from wsi_stain.train.loop import Recipe, Stage, Step, run
from wsi_stain.train.parallel import DistributedContext, join_processes
from wsi_stain.train.recipe import StainingRecipe
from wsi_stain.train.regressor import RegressorRecipe

CHANGEABLE = {"run", "pairs", "device", "threads", "workers"}
"""Settings that a resumed run may change: they do not affect the result."""
STAGE_1 = {"input", "output", "encoders", "loss", "schedule", "crop", "counterstain"}
"""Settings that pretraining does not use; of `generator` it uses only the width."""
SAMPLES = 3


def quiet(step: Step) -> None:
    """No progress."""


def pretrain(config: TrainConfig, progress: Callable[[Step], None] = quiet) -> Path | None:
    """Train both encoders contrastively, then evaluate them on held-out pairs; resume if a checkpoint exists.

    Returns:
        The file of the encoders' weights, next to discrimination.json and similarity.png; `None` in all processes but
        the first.

    Raises:
        TrainingError: no pairs, unusable pairs, or a loss that is not finite.
        ConfigError: the folder holds a run with other settings.
    """
    stage_config = config.pretrain
    folder = config.run / FOLDER
    with _prepared(config, stage_config.schedule.batch) as context:
        pairs = checked_pairs(config, stage_config.crop, folder)
        heldout = find_pairs(config.pairs, stage_config.heldout)
        negatives(heldout)  # fail before the training, not after it
        crops = Crops(tuple(pairs), stage_config.crop, config.seed, config.turns, config.stain_jitter, config.augment)
        total = total_images(stage_config.schedule, len(pairs))
        fixed = _fixed(config, STAGE_1) | {"generator": {"channels": config.generator.channels}}
        schedule = stage_config.schedule
        stage = Stage(
            folder, dump(config), fixed, FILE, total, schedule.batch, schedule.save_images, 1.0, config.workers
        )
        recipe = ContrastiveRecipe(config, total, crops, context)
        run(stage, recipe, crops, context, progress=progress)
        if context.is_first:
            encoders = load_encoders(folder / FILE, config.generator.channels).to(context.device).eval()
            save(discriminate(encoders, heldout, stage_config.crop, context.device), folder, stage_config.heldout)
        return folder / FILE if context.is_first else None


def train(config: TrainConfig, progress: Callable[[Step], None] = quiet) -> Path | None:
    """Train a generator until the end of its schedule; resume if the run folder holds a checkpoint.

    Returns:
        The file of the averaged generator's weights; `None` in all processes but the first.

    Raises:
        TrainingError: no pairs, unusable pairs, no encoders, or a loss that is not finite.
        ConfigError: the folder holds a run with other settings.
    """
    schedule = config.schedule
    with _prepared(config, schedule.batch) as context:
        pairs = checked_pairs(config, config.crop, config.run)
        crops = Crops(tuple(pairs), config.crop, config.seed, config.turns, config.stain_jitter, config.augment)
        total = total_images(schedule, len(pairs))
        stage = Stage(
            config.run,
            dump(config),
            _fixed(config, {"pretrain"}),
            WEIGHTS,
            total,
            schedule.batch,
            schedule.save_images,
            schedule.freeze_from,
            config.workers,
        )
        recipe = _recipe(config, total, context)
        draw = None if config.generator.kind == "unet" else _painter(config, pairs, context)
        run(stage, recipe, crops, context, progress=progress, draw=draw)
        return config.run / WEIGHTS if context.is_first else None


def total_images(schedule: ScheduleConfig | PretrainScheduleConfig, pairs: int) -> int:
    """Images of a whole stage: the configured number, or `epochs` times the training split."""
    return schedule.images if schedule.epochs is None else max(1, round(schedule.epochs * pairs))


def _recipe(config: TrainConfig, total: int, context: DistributedContext) -> Recipe:
    kind = RegressorRecipe if config.generator.kind == "unet" else StainingRecipe
    return kind(config, total, context)


@contextmanager
def _prepared(config: TrainConfig, batch: int) -> Generator[DistributedContext]:
    # torch knows OMP_NUM_THREADS, but not the limits of a container.
    torch.set_num_threads(config.threads or min(torch.get_num_threads(), processors()))
    with join_processes(config.device, batch) as context:
        yield context


def checked_pairs(config: TrainConfig, side: int, folder: Path) -> list[Pair]:
    """The training pairs; before a new run starts, all splits are checked for problems.

    Args:
        config: of the training.
        side: of the crops of the stage, px.
        folder: of the stage; one with a checkpoint was checked when it started.

    Raises:
        TrainingError: no pairs, unusable pairs, or pairs of another pixel size than `input.mpp`.
    """
    pairs = find_pairs(config.pairs, "train")
    check_scale(pairs, config.input.mpp, "input.mpp")
    if not (folder / CHECKPOINT).exists():
        messages = problems(find_pairs(config.pairs), side)
        if messages:
            more = (
                f" (and {len(messages) - 1} more: run wsi-stain pairs check {config.pairs})"
                if len(messages) > 1
                else ""
            )
            raise TrainingError(messages[0] + more)
    return pairs


def _fixed(config: TrainConfig, unused: set[str]) -> dict[str, Any]:
    return {key: value for key, value in dump(config).items() if key not in CHANGEABLE | unused}


def _painter(
    config: TrainConfig, pairs: list[Pair], context: DistributedContext
) -> Callable[[Mapping[str, nn.Module]], np.ndarray]:
    """A function that draws H&E, generated and real stain of a few training fields, for visual inspection."""
    sample_pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, SAMPLES).astype(int)]

    @torch.no_grad()
    def draw(results: Mapping[str, nn.Module]) -> np.ndarray:
        rows = []
        for pair in sample_pairs:
            he, ihc = (x[: config.crop, : config.crop] for x in load_pair(pair))
            generated = to_pixels(results[WEIGHTS](to_tensor(he[None], context.device)))[0]
            rows.append(np.concatenate([he, generated, ihc], axis=1))
        return np.concatenate(rows)

    return draw
