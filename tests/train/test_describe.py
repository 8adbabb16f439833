"""What a training says it will need, before it starts."""

from pathlib import Path

import pytest
import torch
from builders.pairs import config, placed_pairs
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.config.loader import load
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import TrainingError
from wsi_stain.nn.encoder import Encoder
from wsi_stain.train.describe import _saved_numbers, contrast_needs, staining_needs

CONFIGS = Path(__file__).parents[2] / "configs/train"


def test_parameters_at_width_64_are_the_papers(tmp_path: Path) -> None:
    needs = staining_needs(config(tmp_path, tmp_path, "generator={channels: 64}"))
    assert needs.trained["generator"] == 14_123_267
    assert needs.frozen == {"encoders": 2 * 18_740_288}
    joint = staining_needs(
        config(tmp_path, tmp_path, "generator={channels: 64}", "encoders.source=joint", "loss.adaptive=false")
    )
    assert joint.trained["generator"] > 14_123_267
    assert joint.frozen == {}


def test_counting_without_data_is_counting_with_data() -> None:
    torch.manual_seed(0)
    encoder = Encoder(4)
    real = _saved_numbers(encoder, (torch.rand(2, 3, 64, 64),))
    with torch.device("meta"):
        counted = _saved_numbers(Encoder(4), (torch.empty(2, 3, 64, 64),))
    assert counted == pytest.approx(real, rel=0.02)


def test_memory_grows_with_the_batch_and_not_with_the_batch_in_chunks(tmp_path: Path) -> None:
    def memory(*changes: str) -> int:
        return contrast_needs(config(tmp_path, tmp_path, *changes)).memory_bytes

    two, four, eight = (memory(f"pretrain.schedule.batch={n}") for n in (2, 4, 8))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.02)
    assert memory("pretrain.schedule.batch=64", "pretrain.chunk=8") == eight


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_dry_run_prints_settings_and_needs_and_leaves_nothing(tmp_path: Path, command: str) -> None:
    pairs, run = placed_pairs(tmp_path / "pairs", side=512), tmp_path / "run"
    arguments = [
        command,
        "--config",
        str(CONFIGS / "paper-mist.yaml"),
        "--set",
        f"pairs={pairs}",
        "--set",
        f"run={run}",
    ]
    result = CliRunner().invoke(group, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "alpha: 50.0" in result.stdout
    assert "mpp: 0.5" in result.stdout  # of paper-mist.yaml itself
    assert "channels: 64" in result.stdout  # of its base
    assert "3 images per epoch" in result.stderr
    assert f"{900 if command == 'pretrain' else 300} images in total" in result.stderr
    assert "37,480,576 parameters" in result.stderr
    assert not run.exists()


@pytest.mark.parametrize("command", ["train", "pretrain"])
@pytest.mark.parametrize("fault", ["scale", "crop"])
def test_a_dry_run_refuses_what_the_training_refuses(tmp_path: Path, command: str, fault: str) -> None:
    pairs = placed_pairs(tmp_path / "pairs")
    setting = "input.mpp=0.25" if fault == "scale" else f"{'pretrain.' * (command == 'pretrain')}crop=1024"
    if fault == "scale":
        rows = (pairs / "pairs.csv").read_text().splitlines()
        (pairs / "pairs.csv").write_text("\n".join([f"{rows[0]},mpp", *(f"{row},0.5" for row in rows[1:])]))
    config_file = str(CONFIGS / "paper-mist.yaml")
    arguments = [command, "--config", config_file, "--set", f"pairs={pairs}", "--set", f"run={tmp_path / 'run'}"]
    messages = []
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(group, [*arguments, "--set", setting, *more])
        assert isinstance(result.exception, TrainingError), result.output
        messages.append(str(result.exception))
    assert messages[0] == messages[1]
    expected = {"scale": "was cut at 0.5 µm/px, but input.mpp is 0.25", "crop": "smaller than the crop of 1024 px"}
    assert expected[fault] in messages[0]


def test_the_stain_recipe_needs_hardly_more_than_the_papers_head() -> None:
    config_file = CONFIGS / "he2cam52-small.yaml"
    stain, rgb = (
        staining_needs(load(TrainConfig, config_file, [f"generator.head={head}"])) for head in ("stain", "rgb")
    )
    assert stain.trained["generator"] - rgb.trained["generator"] == 2 * (16 * 49 + 1)
    assert rgb.memory_bytes < stain.memory_bytes < 1.1 * rgb.memory_bytes
