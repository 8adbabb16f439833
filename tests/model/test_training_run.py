"""The one reading of a run folder, and what it refuses."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from builders.runs import REGRESSOR, make_run
from safetensors.torch import load_file, save_file

from wsi_stain.errors import TrainingError
from wsi_stain.model.bundle import sha256_of
from wsi_stain.model.training_run import TrainingRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_states_what_is_in_its_files(run: Path) -> None:
    training = TrainingRun.open(run)
    assert (training.images, training.config.input.mpp) == (1234, 1.0)
    learned = [tensor for key, tensor in load_file(run / "generator.safetensors").items() if "running" not in key]
    assert training.parameters == sum(tensor.numel() for tensor in learned if tensor.is_floating_point())


def test_a_run_is_a_bundle_that_is_not_packed(run: Path) -> None:
    bundle = TrainingRun.open(run, "ceff").as_bundle()
    assert (bundle.name, bundle.version, bundle.sha256) == (run.name, "unpacked", sha256_of(run / bundle.weights_path))
    assert bundle.background == (1, 2, 3)


def test_unknown_numbers_of_images_stay_unknown(tmp_path: Path) -> None:
    assert TrainingRun.open(make_run(tmp_path / "run", images=None)).images is None


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.yaml", None, "copy is not the folder of a training (config.yaml is missing): pass a run folder"),
        ("config.yaml", b"crop: [", "the settings of the run are damaged: "),
        ("config.yaml", b"crop: 100", "the settings of the run are damaged: "),
        ("config.yaml", b"\xff\xfe", "the settings of the run are damaged: "),
        (
            "generator.safetensors",
            None,
            "copy has no result yet (generator.safetensors is missing): run wsi-stain train first",
        ),
        ("generator.safetensors", b"PK\3\4 a pickle in a zip", "generator.safetensors is damaged ("),
        ("generator.safetensors", b"", "generator.safetensors is damaged ("),
    ],
)
def test_missing_and_damaged_files_are_refused_in_one_sentence(
    copy: Path, file: str, content: bytes | None, sentence: str
) -> None:
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(TrainingError, match=re.escape(sentence)) as error:
        TrainingRun.open(copy)
    assert "\n" not in str(error.value)


def test_a_truncated_result_is_refused(copy: Path) -> None:
    file = copy / "generator.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TrainingError, match="is damaged"):
        TrainingRun.open(copy)


def test_facts_that_are_not_json_are_refused(copy: Path) -> None:
    save_file({"a.weight": torch.zeros(1)}, copy / "generator.safetensors", {"facts": "{"})
    with pytest.raises(TrainingError, match="is damaged"):
        TrainingRun.open(copy)


def test_folders_without_a_training_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no run folder at .*nowhere: pass the run folder of wsi-stain train"):
        TrainingRun.open(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="is not the folder of a training"):
        TrainingRun.open(tmp_path)


def test_a_run_of_another_kind_is_refused_with_the_option_that_takes_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"trained a generator that stains, .*: pass it to wsi-stain evaluate --run"
    ):
        TrainingRun.open(run, "unet")
    regressor = make_run(tmp_path / "regressor", REGRESSOR)
    with pytest.raises(TrainingError, match="produces no image: pass it to wsi-stain evaluate --regressor"):
        TrainingRun.open(regressor, "ceff")
    assert TrainingRun.open(regressor, "unet").config.generator.kind == "unet"
