"""The training loop: batches in, checkpoints, log and samples out; the same command goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from wsi_stain.config import TrainConfig
from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.loading import dump
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import pick_device
from wsi_stain.nn.pixels import to_pixels, to_tensor
from wsi_stain.train import checkpoint
from wsi_stain.train.data import Crops, Pair, find_pairs, load_pair
from wsi_stain.train.recipe import StainingRecipe

CHECKPOINT = "checkpoint.safetensors"
RESULT = "generator.safetensors"
CONFIG = "config.yaml"
LOG_EVERY = 20
"""Steps that one line of the log averages over."""
CALIBRATION_BATCHES = 32
"""Batches that normalisation statistics are measured on before they are frozen or used."""
CHANGEABLE = {"run", "pairs", "device", "threads"}
"""Settings that a resumed run may change: they do not change what is learned."""


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a training, after each step."""

    images: int
    total: int
    images_per_s: float
    losses: dict[str, float]


def train(config: TrainConfig, progress: Callable[[Step], None] = lambda step: None) -> Path:
    """Train until `schedule.images`; resume if the run folder holds a checkpoint.

    Returns:
        The file of the averaged generator's weights.

    Raises:
        TrainingError: no pairs, a run of other settings in the folder, a loss that is no number.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device(pick_device(config.device))
    crops = Crops(tuple(find_pairs(config.pairs, "train")), config.crop, config.seed)
    recipe = StainingRecipe(config, device)
    images = _open_run(config, recipe)
    batch, total = config.schedule.batch, config.schedule.images
    started, first, window = time.monotonic(), images, []
    while images < total:
        if images / total >= config.schedule.freeze_from > (images - batch) / total:
            recipe.freeze(_calibration(config, crops, device))
        he, ihc = (to_tensor(x, device) for x in crops.batch(images, batch))
        losses = recipe.step(he, ihc, images)
        images += batch
        _stop_if_lost(losses, images, config.run)
        window.append(losses)
        rate = (images - first) / (time.monotonic() - started)
        progress(Step(images, total, rate, losses))
        is_saving = images // config.schedule.save_images > (images - batch) // config.schedule.save_images
        if len(window) == LOG_EVERY or is_saving or images >= total:
            _log(config.run, images, rate, window)
            window = []
        if is_saving or images >= total:
            _save(config, recipe, images, recipe.result(images, _calibration(config, crops, device)))
    return config.run / RESULT


def _open_run(config: TrainConfig, recipe: StainingRecipe) -> int:
    """Prepare the run folder; returns the images seen so far."""
    config.run.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in dump(config).items() if k not in CHANGEABLE}
    path = config.run / CHECKPOINT
    if not path.exists():
        (config.run / CONFIG).write_text(yaml.safe_dump(dump(config), sort_keys=False), encoding="utf-8")
        (config.run / "log.jsonl").unlink(missing_ok=True)
        return 0
    tensors, facts = checkpoint.load(path)
    if facts["settings"] != settings:
        changed = sorted(k for k in settings if settings[k] != facts["settings"].get(k))
        raise ConfigError(f"{config.run} holds a run with another {', '.join(changed)}: choose another run folder")
    recipe.load_state(tensors)
    _cut_log(config.run / "log.jsonl", facts["images"])
    return facts["images"]


def _cut_log(log: Path, images: int) -> None:
    """Drop lines of steps that came after the checkpoint and will now come again."""
    if log.exists():
        lines = [x for x in log.read_text(encoding="utf-8").splitlines(True) if json.loads(x)["images"] <= images]
        log.write_text("".join(lines), encoding="utf-8")


def _stop_if_lost(losses: dict[str, float], images: int, run: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss {name!r} became {value} after {images} images; the last good state is {run / CHECKPOINT}: "
                "lower schedule.lr and run the same command in a new run folder"
            )


def _log(run: Path, images: int, rate: float, window: list[dict[str, float]]) -> None:
    means = {name: round(float(np.mean([x[name] for x in window])), 6) for name in window[0]}
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"images": images, "images_per_s": round(rate, 3), **means}) + "\n")


def _calibration(config: TrainConfig, crops: Crops, device: torch.device) -> Iterator[Tensor]:
    """H&E to measure normalisation statistics on: always the same crops of the training set."""
    batch = config.schedule.batch
    for i in range(CALIBRATION_BATCHES):
        yield to_tensor(crops.batch(i * batch, batch)[0], device)


def _save(config: TrainConfig, recipe: StainingRecipe, images: int, result: Generator) -> None:
    settings = {k: v for k, v in dump(config).items() if k not in CHANGEABLE}
    checkpoint.save(config.run / RESULT, result.state_dict(), {"images": images})
    _save_samples(config, result, recipe.device, images)
    checkpoint.save(config.run / CHECKPOINT, recipe.state(), {"images": images, "settings": settings})


@torch.no_grad()
def _save_samples(config: TrainConfig, result: Generator, device: torch.device, images: int) -> None:
    """A picture of H&E, generated and real stain of three training fields, for the eye only."""
    pairs = find_pairs(config.pairs, "train")
    rows = [_sample_row(pairs[i], config.crop, result, device) for i in np.linspace(0, len(pairs) - 1, 3).astype(int)]
    folder = config.run / "samples"
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(folder / f"{images:09d}.png")


def _sample_row(pair: Pair, side: int, result: Generator, device: torch.device) -> np.ndarray:
    he, ihc = (x[:side, :side] for x in load_pair(pair))
    generated = to_pixels(result(to_tensor(he[None], device)))[0]
    return np.concatenate([he, generated, ihc], axis=1)
