"""Fixtures of the tests of training."""

from pathlib import Path

import pytest
from builders.pairs import config, placed_pairs

from wsi_stain.model.training_run import TrainingRun
from wsi_stain.train import loop
from wsi_stain.train.stages import train


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """One finished training of 12 images, with three checkpoints; tests must not change its folder."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CALIBRATION_IMAGES", 16)
        train(config(placed_pairs(folder / "pairs"), Path(folder / "run")))
    return TrainingRun.open(folder / "run")
