"""The direct regressor: what it learns from, that it learns it, and that any picture goes through it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.runs import REGRESSOR, STAINER, make_run, settings
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_stain.config.loader import load
from wsi_stain.config.model import GeneratorConfig
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import TrainingError
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.nn.unet import UNet
from wsi_stain.train.parallel import DistributedContext
from wsi_stain.train.positive import BLOCKS_PX, positive
from wsi_stain.train.regressor import RegressorRecipe, load_regressor

SHIPPED = Path(__file__).parents[2] / "configs/train/regressor.yaml"
ALONE = DistributedContext(0, 1, torch.device("cpu"))
TOTAL = 400


def recipe(*overrides: str, total: int = TOTAL) -> RegressorRecipe:
    fast = ("schedule.lr=0.01", "schedule.batch=4", "schedule.ema=0.8", "output.background=[243,243,243]", "crop=128")
    return RegressorRecipe(load(TrainConfig, settings(Path("run"), REGRESSOR), [*fast, *overrides]), total, ALONE)


def toy(seed: int, n: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
    """H&E of two colours in patches; the stain is brown where the H&E is purple, but moved by four pixels."""
    rng = np.random.default_rng(seed)
    purple = np.kron(rng.random((n, side // 16, side // 16)) < rng.random((n, 1, 1)), np.ones((1, 16, 16), bool))
    he = np.where(purple[..., None], [120, 60, 150], [235, 170, 200]) + rng.integers(-9, 10, (n, side, side, 3))
    brown = np.where(np.roll(purple, 4, axis=2)[..., None], [110, 70, 40], [225, 225, 235])
    return to_tensor(he.astype(np.uint8)), to_tensor(brown.astype(np.uint8))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_shipped_settings_make_a_network_of_about_0_6_million_weights() -> None:
    config = load(TrainConfig, SHIPPED)
    assert config.generator.kind == "unet"
    assert 0.55e6 < parameters(UNet(config.generator)) < 0.65e6
    assert config.crop % config.generator.multiple == 0
    assert config.crop >= max(BLOCKS_PX)


def test_an_untrained_network_says_that_little_is_positive() -> None:
    torch.manual_seed(0)
    probability = UNet(GeneratorConfig(channels=8)).eval()(torch.zeros(1, 3, 64, 64)).sigmoid()
    assert 0.01 < probability.mean().item() < 0.2


def test_every_weight_takes_part_and_every_scale_is_looked_up() -> None:
    torch.manual_seed(0)
    network = UNet(GeneratorConfig(channels=4))
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_whole_steps_of_the_multiple_move_the_answer_along() -> None:
    shift = (16, 48)
    torch.manual_seed(0)
    network = UNet(GeneratorConfig(channels=4)).double().eval()
    image = torch.rand(1, 3, 448, 448, dtype=torch.float64)
    with torch.inference_mode():
        whole, moved = network(image), network(torch.roll(image, shift, (2, 3)))
    inner = slice(208, 240)  # beyond the reach of what the rolling brought in
    torch.testing.assert_close(torch.roll(whole, shift, (2, 3))[..., inner, inner], moved[..., inner, inner])


@pytest.mark.slow
def test_it_learns_a_toy_share_in_seconds() -> None:
    torch.manual_seed(0)
    learner = recipe()
    for images in range(0, TOTAL, 4):
        if images == TOTAL * 0.85:
            learner.freeze(toy(1000 + i) for i in range(8))
        losses = learner.step(*toy(images), images)
    assert losses["error_16"] < 0.1
    he, ihc = toy(5000, n=16)
    network = learner.results(TOTAL, [])["generator.safetensors"]
    with torch.inference_mode():
        share = network(he).sigmoid().mean((1, 2, 3))
    truth = positive(ihc, (243, 243, 243)).mean((1, 2, 3))
    assert np.corrcoef(share, truth)[0, 1] > 0.98
    assert (share - truth).abs().mean() < 0.06


def test_a_restored_state_goes_on_identically() -> None:
    unbroken = recipe()
    for step in range(3):
        unbroken.step(*toy(step), 4 * step)
    restored = recipe("seed=1")
    restored.load_state({key: tensor.clone() for key, tensor in unbroken.state().items()})
    for step in range(3, 6):
        assert unbroken.step(*toy(step), 4 * step) == restored.step(*toy(step), 4 * step)
    ours, theirs = unbroken.state(), restored.state()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def test_statistics_are_frozen_and_rates_fall_as_the_schedule_says() -> None:
    learner = recipe("schedule.freeze_from=0.5", "schedule.decay_from=0.5", "schedule.frozen_rate=0.2")

    def statistics() -> Tensor:
        return torch.cat([m.running_mean.clone() for m in learner.network.modules() if isinstance(m, nn.BatchNorm2d)])

    start = statistics()
    learner.step(*toy(0), images=0)
    moved = statistics()
    assert learner.optimizer.param_groups[0]["lr"] == 0.01
    learner.step(*toy(1), images=300)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5 * 0.2)
    assert not torch.equal(start, moved)
    assert torch.equal(moved, statistics())


def test_freezing_gives_both_networks_the_statistics_of_the_batches() -> None:
    learner = recipe()
    learner.step(*toy(0), 0)
    he, ihc = toy(1)
    learner.freeze([(he, ihc)])
    twin = copy.deepcopy(learner.network)
    first = twin.stem[0](he)
    norm = learner.network.stem[1]
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    for ours, kept in zip(learner.network.buffers(), learner.average.buffers(), strict=True):
        assert torch.equal(ours, kept)


def test_results_before_the_freezing_are_calibrated_and_leave_the_training_alone() -> None:
    learner = recipe()
    for step in range(8):
        learner.step(*toy(step), 4 * step)
    before = {key: tensor.clone() for key, tensor in learner.state().items()}
    he, ihc = toy(100, n=16)
    calibrated = learner.results(80, [(he, ihc)])["generator.safetensors"]
    assert not calibrated.training
    with torch.inference_mode():
        as_trained = copy.deepcopy(learner.average).train()(he)
        raw = (learner.average(he) - as_trained).abs().mean()
        near = (calibrated(he) - as_trained).abs().mean()
    assert near < raw / 10
    for key, tensor in learner.state().items():
        assert torch.equal(tensor, before[key]), key


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "regressor", REGRESSOR)


@pytest.mark.parametrize(("h", "w"), [(64, 96), (50, 97), (5, 3), (1, 1), (17, 160)])
def test_pictures_of_any_size_are_padded_by_reflection_and_cropped(run: Path, h: int, w: int) -> None:
    he = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    given = he.copy()
    probability = load_regressor(run, "cpu")(he)
    assert (probability.shape, probability.dtype) == ((h, w), np.float32)
    np.testing.assert_array_equal(he, given)

    def mirrored(n: int) -> list[int]:
        """Indices that run to the end and back, without repeating the ends."""
        there_and_back = [*range(n), *range(n - 2, 0, -1)]
        return [there_and_back[i % len(there_and_back)] for i in range(-(-n // 16) * 16)]

    padded = to_tensor(he[mirrored(h)][:, mirrored(w)][None])
    network = UNet(GeneratorConfig(**REGRESSOR)).eval()
    network.load_state_dict(load_file(run / "generator.safetensors"))
    with torch.inference_mode():
        expected = network(padded).sigmoid()[0, 0, :h, :w]
    np.testing.assert_allclose(probability, expected.numpy(), atol=1e-5)
    assert probability.min() >= 0
    assert probability.max() <= 1


def test_what_is_no_regressor_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not the folder of a training"):
        load_regressor(tmp_path)
    with pytest.raises(TrainingError, match="trained a generator that stains, not a direct regressor"):
        load_regressor(make_run(tmp_path / "stainer", STAINER))
    other = make_run(tmp_path / "other", REGRESSOR)
    save_file(UNet(GeneratorConfig(channels=8)).state_dict(), other / "generator.safetensors")
    with pytest.raises(TrainingError, match=r"does not match the U-Net in config.yaml"):
        load_regressor(other)
