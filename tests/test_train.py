"""Training: which crops, which losses, and that killing it changes nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from wsi_stain.config import TrainConfig
from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.loading import load
from wsi_stain.train import checkpoint
from wsi_stain.train.data import Crops, find_pairs, load_pair
from wsi_stain.train.loop import CHECKPOINT, RESULT, train
from wsi_stain.train.losses import adversarial, pyramid_l1
from wsi_stain.train.recipe import StainingRecipe, calibrate


def make_pairs(folder: Path, n: int = 4, side: int = 160) -> Path:
    """Tiles whose pixels say where they are; the stain is the H&E's complement."""
    rows = ["he,ihc,slide_id,split"]
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    for i in range(n):
        he = np.stack([y, x, np.full_like(y, 10 * i)], axis=2)
        Image.fromarray(he).save(folder / f"he{i}.png")
        Image.fromarray(255 - he).save(folder / f"ihc{i}.png")
        rows.append(f"he{i}.png,ihc{i}.png,s{i},{'test' if i == n - 1 else 'train'}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder


def settings(pairs: Path, run: Path) -> dict:
    return {
        "pairs": str(pairs),
        "run": str(run),
        "input": {"stain": "H&E", "mpp": 1.0},
        "output": {"stain": "CAM5.2"},
        "generator": {"channels": 4, "blocks": 4},
        "loss": {"discriminator_filters": 4, "l1_levels": 3},
        "schedule": {"images": 12, "batch": 2, "save_images": 4},
        "crop": 128,
        "device": "cpu",
        "threads": 1,
    }


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    return make_pairs(folder)


def test_both_stains_get_the_same_window_flip_and_turn(pairs: Path) -> None:
    crops = Crops(tuple(find_pairs(pairs, "train")), side=96, seed=1)
    he, ihc = crops.batch(0, 24)
    np.testing.assert_array_equal(ihc, 255 - he)
    corners = {tuple(image[0, 0, :2]) for image in he}
    assert len(corners) > 12, "crops must differ in place and orientation"


def test_every_epoch_sees_every_pair_once_and_in_another_order(pairs: Path) -> None:
    crops = Crops(tuple(find_pairs(pairs, "train")), side=160, seed=0)
    seen = [int(crops.crop(i)[0][0, 0, 2]) // 10 for i in range(30)]
    epochs = [seen[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_crop_depends_on_its_number_alone(pairs: Path) -> None:
    crops = Crops(tuple(find_pairs(pairs, "train")), side=96, seed=0)
    np.testing.assert_array_equal(crops.batch(0, 8)[0][5], crops.batch(5, 1)[0][0])


def test_splits_never_mix(pairs: Path) -> None:
    assert [p.he.stem for p in find_pairs(pairs, "test")] == ["he3"]
    assert [p.he.stem for p in find_pairs(pairs, "train")] == ["he0", "he1", "he2"]


@pytest.mark.parametrize(("he", "ihc"), [("HE/train", "IHC/train"), ("trainA", "trainB")])
def test_layouts_of_public_sets_are_read(tmp_path: Path, he: str, ihc: str) -> None:
    for folder, value in ((he, 10), (ihc, 20)):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / folder / "a_1.png")
    (pair,) = find_pairs(tmp_path, "train")
    assert [int(x[0, 0, 0]) for x in load_pair(pair)] == [10, 20]


def test_bad_pairs_are_named(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(TrainingError, match="no pairs in"):
        find_pairs(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="splits there are test, train"):
        find_pairs(pairs, "val")
    (pairs / "ihc2.png").unlink()
    with pytest.raises(TrainingError, match=r"pairs.csv, line 4: no such file: .*ihc2.png"):
        find_pairs(pairs)
    Image.new("RGB", (8, 9)).save(pairs / "ihc2.png")
    with pytest.raises(TrainingError, match="pairs must have one size"):
        load_pair(find_pairs(pairs)[2])


def test_pyramid_l1_forgives_displacement_at_coarse_scales() -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[..., 4:8, 4:8] = 1
    shifted, removed = torch.roll(real, 4, dims=3), torch.zeros_like(real)
    assert pyramid_l1(shifted, real, 1).item() == pytest.approx((shifted - real).abs().mean().item())
    # At a scale of 16 px both squares fall into one pixel: only there the shifted one is no error at all.
    assert pyramid_l1(shifted, real, 1) == 2 * pyramid_l1(removed, real, 1)
    assert pyramid_l1(shifted, real, 5).item() == pytest.approx(4 / 5 * 2 * pyramid_l1(removed, real, 5).item())


def test_adversarial_loss_is_cross_entropy() -> None:
    logits = torch.tensor([0.0, 2.0])
    expected = -np.log([0.5, 1 / (1 + np.exp(-2.0))]).mean()
    assert adversarial(logits, is_real=True).item() == pytest.approx(expected, rel=1e-6)


def test_training_lowers_the_loss(tmp_path: Path, pairs: Path) -> None:
    config = load(TrainConfig, settings(pairs, tmp_path / "run"), ["schedule.images=60", "schedule.lr=0.003"])
    train(config)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["images"] == 60
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]


def test_frozen_statistics_stay_and_unfrozen_ones_move(tmp_path: Path, pairs: Path) -> None:
    config = load(TrainConfig, settings(pairs, tmp_path), ["schedule.freeze_from=0.5"])
    recipe = StainingRecipe(config, torch.device("cpu"))
    he = torch.rand(2, 3, 128, 128)

    def statistics() -> torch.Tensor:
        return torch.cat([m.running_mean.clone() for m in recipe.generator.modules() if isinstance(m, nn.BatchNorm2d)])

    start = statistics()
    recipe.step(he, -he, images=0)
    moved = statistics()
    recipe.step(he, -he, images=6)
    assert not torch.equal(start, moved)
    assert torch.equal(moved, statistics())


def test_killed_and_resumed_training_ends_in_the_same_weights_and_log(tmp_path: Path, pairs: Path) -> None:
    whole = load(TrainConfig, settings(pairs, tmp_path / "whole"))
    train(whole)
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(settings(pairs, tmp_path / "killed")))
    command = [sys.executable, "-m", "wsi_stain", "train", "--config", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = tmp_path / "killed" / CHECKPOINT
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, facts = checkpoint.load(mark)
    assert facts["images"] < 12, "the run must be killed before its end"
    train(load(TrainConfig, file))
    logs = [
        [json.loads(line)["l1"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    expected, found = (load_file(tmp_path / name / RESULT) for name in ("whole", "killed"))
    for key, tensor in expected.items():
        assert torch.equal(tensor, found[key]), key


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path, pairs: Path) -> None:
    train(load(TrainConfig, settings(pairs, tmp_path / "run"), ["schedule.images=4"]))
    with pytest.raises(ConfigError, match="another schedule"):
        train(load(TrainConfig, settings(pairs, tmp_path / "run")))


def test_a_loss_that_is_no_number_stops_with_a_sentence(tmp_path: Path, pairs: Path) -> None:
    config = load(TrainConfig, settings(pairs, tmp_path / "run"), ["loss.l1=.inf"])
    with pytest.raises(TrainingError, match=r"became nan|became inf"):
        train(config)


def test_a_crop_that_does_not_fit_the_attention_is_refused(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(ConfigError, match="crop is 100: this generator needs a multiple of 128 px"):
        load(TrainConfig, settings(pairs, tmp_path), ["crop=100"])


def test_calibrated_statistics_make_evaluation_equal_training_on_the_same_batch(tmp_path: Path, pairs: Path) -> None:
    generator = StainingRecipe(load(TrainConfig, settings(pairs, tmp_path)), torch.device("cpu")).generator
    he = torch.rand(4, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        trained = generator.train()(he)
        far = (generator.eval()(he) - trained).abs().mean()
        calibrate(generator, [he])
        near = (generator.eval()(he) - trained).abs().mean()
    assert near < 1e-3 < far / 10  # all that is left is n / (n - 1) of the variance


def test_freezing_does_not_throw_the_network_off(tmp_path: Path, pairs: Path) -> None:
    """Frozen as they run, statistics of a few noisy steps once turned a trained network white."""
    config = load(TrainConfig, settings(pairs, tmp_path / "run"), ["schedule.images=80", "schedule.lr=0.003"])
    train(config)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    before = np.mean([x["l1"] for x in log if 40 <= x["images"] <= 68])
    after = np.mean([x["l1"] for x in log if x["images"] > 68])
    assert after < 1.3 * before
