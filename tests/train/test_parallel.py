"""Several processes train what one would: two of them on this machine's CPU, joined by gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from builders.pairs import blobs, config, settings, write_pairs
from safetensors.torch import load_file

from wsi_stain.errors import ConfigError
from wsi_stain.model.bundle import WEIGHTS
from wsi_stain.train import parallel
from wsi_stain.train.stages import pretrain, train


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", [(he, 255 - he) for he in blobs(6, 160)], held_out=2)


def torchrun(command: str, pairs: Path, run: Path, *changes: str) -> None:
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(settings(pairs, run)))
    flags = [word for change in changes for word in ("--set", change)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    result = subprocess.run(
        [*launcher, "wsi_stain", command, "--config", str(file), *flags], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


def losses(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_the_generator_that_one_does(tmp_path: Path, pairs: Path) -> None:
    """With frozen statistics nothing depends on who has which crop, so losses and weights are those of one process."""
    changes = (
        "schedule.freeze_from=0",
        "schedule.batch=4",
        "loss.gan=0",
        "generator.attention=global",
        "crop=64",
        "schedule.images=8",
        "schedule.save_images=8",
    )
    train(config(pairs, tmp_path / "one", *changes))
    torchrun("train", pairs, tmp_path / "two", *changes)
    for name in ("l1", "weighted_l1", "similarity"):
        assert losses(tmp_path / "two", name) == pytest.approx(losses(tmp_path / "one", name), rel=1e-3)
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=0, atol=2e-3, msg=key)


@pytest.mark.slow
def test_two_processes_contrast_the_whole_batch(tmp_path: Path, pairs: Path) -> None:
    """The loss is that of all crops of all processes; the first step has seen no other statistics yet."""
    changes = ("pretrain.schedule.images=4", "pretrain.schedule.save_images=4")
    pretrain(config(pairs, tmp_path / "one", *changes, "pretrain.chunk=2"))
    torchrun("pretrain", pairs, tmp_path / "two", *changes)
    # Chunks of two crops have just the batch statistics that two processes with two crops each have.
    for name in ("loss", "top1"):
        assert losses(tmp_path / "two/encoders", name) == pytest.approx(
            losses(tmp_path / "one/encoders", name), rel=1e-4
        )
    one, two = (load_file(tmp_path / name / "encoders/encoders.safetensors") for name in ("one", "two"))
    for key, tensor in one.items():
        if "running" not in key:
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=5e-4, msg=key)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(parallel.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend: calls.append(backend))
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: calls.append("end"))
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    with (
        pytest.raises(ConfigError, match=r"schedule\.batch is 3: it must be a multiple of the 2 processes"),
        parallel.join_processes("cpu", 3),
    ):
        pass
    assert calls == ["gloo", "end"]
