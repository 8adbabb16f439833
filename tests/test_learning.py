"""The whole recipe learns: eight pairs by heart."""

import json
from itertools import pairwise
from pathlib import Path

from pairs_made import blobs, config, write_pairs

from wsi_stain.train.stages import train


def test_eight_pairs_are_learned_by_heart(tmp_path: Path) -> None:
    # No rule leads from H&E to stain here: each tile is paired with another one's pattern.
    folder = write_pairs(tmp_path / "pairs", list(pairwise(blobs(9, 128))), held_out=0)
    run = tmp_path / "run"
    changes = ("loss.l1_levels=1", "loss.gan=0.05", "turns=false", "schedule.images=1200", "schedule.save_images=1200")
    train(config(folder, run, *changes, "schedule.batch=8", "schedule.lr=0.003", "schedule.ema=0.9"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[0]["l1"] > 0.2
    assert log[-1]["l1"] < 0.12, "measured: 0.092"
