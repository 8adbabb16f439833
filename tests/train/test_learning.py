"""The whole recipe learns: four pairs by heart, and a rule that holds on tissue it never saw."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders.pairs import blobs, config, write_pairs
from PIL import Image
from skimage.color import hed_from_rgb, rgb_from_hed

from wsi_stain.evaluate.contenders import stain
from wsi_stain.measure.metrics import psnr
from wsi_stain.model.training_run import TrainingRun
from wsi_stain.train.stages import train


@pytest.mark.slow
def test_four_pairs_are_learned_by_heart(tmp_path: Path) -> None:
    # No rule leads from H&E to stain here: each tile is paired with another one's pattern.
    folder = write_pairs(tmp_path / "pairs", list(pairwise(blobs(5, 128))), held_out=0)
    run = tmp_path / "run"
    changes = ("loss.l1_levels=1", "loss.gan=0.05", "turns=false", "schedule.images=600", "schedule.save_images=600")
    train(config(folder, run, *changes, "schedule.batch=4", "schedule.lr=0.003", "schedule.ema=0.9"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[0]["l1"] > 0.2
    assert log[-1]["l1"] < 0.12, "measured: 0.084"


def toy_stain(he: np.ndarray) -> np.ndarray:
    """Hematoxylin stays blue, eosin turns into DAB, both at 0.7 of their density; uint8 (h, w, 3)."""
    density = -np.log10(np.maximum(he, 1) / 255) @ hed_from_rgb
    turned = 0.7 * np.stack([density[..., 0], np.zeros_like(density[..., 0]), density[..., 1]], axis=-1)
    return np.rint(255 * 10 ** -(turned.clip(0) @ rgb_from_hed)).clip(0, 255).astype(np.uint8)


def real_tiles(data: Path, split: str, n: int) -> list[np.ndarray]:
    """H&E tiles of the split that are mostly tissue."""
    folder = data / "pairs" / "cam52"
    rows = list(csv.DictReader((folder / "pairs.csv").read_text().splitlines()))
    chosen = [row for row in rows if row["split"] == split and float(row["tissue_fraction"]) > 0.6][:n]
    assert len(chosen) == n
    return [np.asarray(Image.open(folder / row["he"])) for row in chosen]


@pytest.mark.slow
def test_a_toy_stain_is_learned_for_unseen_tissue(tmp_path: Path, data: Path) -> None:
    unseen = real_tiles(data, "val", 4)
    tiles = [*real_tiles(data, "train", 24), *unseen]
    pairs = write_pairs(tmp_path / "pairs", [(he, toy_stain(he)) for he in tiles], held_out=4)
    run = tmp_path / "run"
    network = ("generator.channels=16", "generator.upsample=resize", "generator.coa=false")
    loss = ("loss.adaptive=false", "loss.gan=0", "loss.l1=1", "loss.l1_levels=1")
    # Small crops: steps are what it lacks. Without attention any multiple of 8 px will do.
    time = ("crop=64", "schedule.images=2400", "schedule.batch=4", "schedule.lr=0.003", "schedule.ema=0.95")
    train(config(pairs, run, *network, *loss, *time, "schedule.save_images=2400", "threads=1"))
    generator = TrainingRun.open(run).as_bundle().generator("cpu")
    learned = np.mean([psnr(stain(generator, he), toy_stain(he)) for he in unseen])
    flat = np.mean(
        [psnr(np.broadcast_to(toy_stain(he).mean((0, 1)), he.shape).astype(np.uint8), toy_stain(he)) for he in unseen]
    )
    assert flat < 20
    assert learned > 23.5
