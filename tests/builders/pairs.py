"""Paired tiles drawn for tests, and the settings of a training so small that it takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsi_stain.config.loader import load
from wsi_stain.config.train import TrainConfig
from wsi_stain.train.parallel import DistributedContext

ALONE = DistributedContext(0, 1, torch.device("cpu"))


def write_pairs(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]], held_out: int = 1) -> Path:
    """A pairs.csv of PNG files, each from a slide of its own; the last `held_out` are of the split val."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["he,ihc,slide_id,split"]
    for i, (he, ihc) in enumerate(pairs):
        Image.fromarray(he).save(folder / f"he{i}.png")
        Image.fromarray(ihc).save(folder / f"ihc{i}.png")
        rows.append(f"he{i}.png,ihc{i}.png,s{i},{'val' if i >= len(pairs) - held_out else 'train'}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder


def placed_pairs(folder: Path, n: int = 4, side: int = 160) -> Path:
    """Tiles whose pixels say where they are; the stain is the H&E's complement."""
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    tiles = [np.stack([y, x, np.full_like(y, 10 * i)], axis=2) for i in range(n)]
    return write_pairs(folder, [(he, 255 - he) for he in tiles])


def blobs(n: int, side: int, seed: int = 0) -> list[np.ndarray]:
    """Tissue-like tiles: dark, soft spots on pink, each tile with its own pattern; uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(n):
        coarse = rng.random((side // 8, side // 8))
        spots = np.asarray(
            Image.fromarray((coarse * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        )
        amount = (spots > 160)[..., None] * 0.8 + rng.random((side, side, 1)) * 0.2
        tiles.append(
            np.rint(np.array([225, 170, 200]) * (1 - amount) + np.array([80, 60, 140]) * amount).astype(np.uint8)
        )
    return tiles


def settings(pairs: Path, run: Path) -> dict[str, Any]:
    """Of a training of 12 images; encoders are drawn, not trained, unless a test says otherwise."""
    return {
        "pairs": str(pairs),
        "run": str(run),
        "input": {"stain": "H&E", "mpp": 1.0},
        "output": {"stain": "CAM5.2"},
        "generator": {"channels": 4, "blocks": 4},
        "encoders": {"source": "random"},
        "pretrain": {"crop": 64, "schedule": {"images": 16, "batch": 4, "save_images": 8}},
        "loss": {"discriminator_filters": 4, "l1_levels": 3},
        "schedule": {"images": 12, "batch": 2, "save_images": 4},
        "crop": 128,
        "device": "cpu",
        "threads": 1,
    }


def config(pairs: Path, run: Path, *changes: str) -> TrainConfig:
    """Those settings, changed."""
    return load(TrainConfig, settings(pairs, run), changes)
