"""Stage 2: its losses, what stays frozen, and that killing it changes nothing."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders.pairs import ALONE, config, placed_pairs, settings
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from torch import nn

from wsi_stain.config.loader import dump, load
from wsi_stain.config.model import GeneratorConfig
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import ConfigError, OutputError, TrainingError
from wsi_stain.model.bundle import WEIGHTS
from wsi_stain.model.training_run import CHECKPOINT, TrainingRun
from wsi_stain.nn.encoder import Encoder
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import load_generator
from wsi_stain.nn.stain_head import CHANNELS, StainHead
from wsi_stain.train import checkpoint, loop
from wsi_stain.train.encoders import Encoders
from wsi_stain.train.log import RunLog
from wsi_stain.train.losses import adversarial, patches, weighted_l1
from wsi_stain.train.optimize import calibrate
from wsi_stain.train.palette import palette_of
from wsi_stain.train.recipe import StainingRecipe
from wsi_stain.train.stages import train

ONE = torch.ones(1, 1, 1)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return placed_pairs(tmp_path / "pairs")


@pytest.fixture(autouse=True)
def brief_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are measured on 16 crops instead of 64, at every checkpoint."""
    monkeypatch.setattr(loop, "CALIBRATION_IMAGES", 16)


def made_recipe(pairs: Path, run: Path, *changes: str) -> StainingRecipe:
    return StainingRecipe(config(pairs, run, *changes), 12, ALONE)


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_weighted_l1_forgives_displacement_at_coarse_scales() -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[..., 4:8, 4:8] = 1
    shifted, removed = torch.roll(real, 4, dims=3), torch.zeros_like(real)
    plain = (shifted - real).abs().mean().item()
    assert weighted_l1(shifted, real, ONE, 1).item() == pytest.approx(plain)
    # At a scale of 16 px both squares fall into one pixel: only there the shifted one is no error at all.
    assert weighted_l1(shifted, real, ONE, 5).item() == pytest.approx(
        4 / 5 * 2 * weighted_l1(removed, real, ONE, 5).item()
    )


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_weighted_l1_is_the_papers_mean_over_patches(grid: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 16, 16, generator=generator).unbind(0)
    weights = torch.rand(3, grid, grid, generator=generator)
    parts = zip(weights.flatten(), patches(a, grid), patches(b, grid), strict=True)
    expected = torch.stack([w * (x - y).abs().mean() for w, x, y in parts]).mean()
    assert weighted_l1(a, b, weights, 1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_l1_may_begin_at_a_coarser_scale() -> None:
    real = torch.zeros(1, 3, 32, 32)
    real[..., 4:5, 4:5] = 1
    shifted = torch.roll(real, 2, dims=3)  # within the same pixel of 4 px
    assert weighted_l1(shifted, real, ONE, 1).item() > 0
    assert weighted_l1(shifted, real, ONE, 3, first=2).item() == 0
    a, b = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).unbind(0)
    coarse = [torch.nn.functional.avg_pool2d(x, 4) for x in (a, b)]
    assert weighted_l1(a, b, ONE, 2, first=2).item() == pytest.approx(weighted_l1(*coarse, ONE, 2).item(), rel=1e-5)


def test_adversarial_loss_is_cross_entropy() -> None:
    logits = torch.tensor([0.0, 2.0])
    expected = -np.log([0.5, 1 / (1 + np.exp(-2.0))]).mean()
    assert adversarial(logits, is_real=True).item() == pytest.approx(expected, rel=1e-6)


def pretrained(folder: Path, channels: int = 4) -> Path:
    """Encoders with statistics of their own, so that any drift would show."""
    torch.manual_seed(3)
    encoders = Encoders(channels)
    for name, buffer in encoders.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(encoders.state_dict(), folder / "encoders.safetensors")
    return folder / "encoders.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [8, 16])
def test_a_step_is_the_same_whatever_the_order_of_axes_in_memory(
    tmp_path: Path, pairs: Path, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Width 8 in channels last ended in a segmentation fault of oneDNN."""
    he, ihc = torch.rand(2, 2, 3, 128, 128, generator=torch.Generator().manual_seed(0)).unbind(0)
    losses = []
    for run in ("fast", "plain"):
        changes = [f"generator.channels={channels}", "encoders.source=joint", "loss.adaptive=false", "precision=fp32"]
        recipe = made_recipe(pairs, tmp_path / run, *changes)
        losses.append([recipe.step(he, ihc, 2 * i) for i in range(2)])
        monkeypatch.setattr("wsi_stain.train.recipe.memory_format", lambda *_: torch.contiguous_format)
    for fast, plain in zip(*losses, strict=True):
        assert fast == pytest.approx(plain, rel=1e-3)


def test_encoders_are_those_of_the_file_to_the_last_bit_after_training(tmp_path: Path, pairs: Path) -> None:
    """The paper's code re-drew them after loading, and let their statistics drift."""
    file = pretrained(tmp_path)
    recipe = made_recipe(pairs, tmp_path / "run", "encoders.source=pretrained", f"encoders.file={file}")
    he, ihc = torch.rand(2, 2, 3, 128, 128).unbind(0)
    before = [p.clone() for p in recipe.generator.trunk.parameters()]
    for i in range(3):
        recipe.step(he, ihc, 2 * i)
    recipe.freeze([(he, ihc)])
    result = recipe.results(12, [(he, ihc)])[WEIGHTS]
    expected = load_file(file)
    assert recipe.encoders is not None
    assert recipe.generator.encoder is not None
    for key, tensor in recipe.encoders.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    for holder in (recipe.generator, recipe.average, result):
        for key, tensor in holder.encoder.state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(tensor, expected[f"he.trunk.{key}"]), key
    assert any(not torch.equal(a, b) for a, b in zip(before, recipe.generator.trunk.parameters(), strict=True))


def test_joint_encoders_learn(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "encoders.source=joint", "loss.adaptive=false")
    assert recipe.generator.encoder is not None
    before = [p.clone() for p in recipe.generator.encoder.parameters()]
    recipe.step(*torch.rand(2, 2, 3, 128, 128).unbind(0), images=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, recipe.generator.encoder.parameters(), strict=True))


def test_tuned_encoders_begin_at_the_file_and_only_the_generators_own_learns(tmp_path: Path, pairs: Path) -> None:
    file = pretrained(tmp_path)
    recipe = made_recipe(pairs, tmp_path / "run", "encoders.source=tuned", f"encoders.file={file}")
    expected = load_file(file)
    own = recipe.generator.encoder
    assert own is not None
    assert all(torch.equal(tensor, expected[f"he.trunk.{key}"]) for key, tensor in own.state_dict().items())
    recipe.step(*torch.rand(2, 2, 3, 128, 128).unbind(0), images=0)
    assert all(not torch.equal(p, expected[f"he.trunk.{key}"]) for key, p in own.named_parameters())
    assert recipe.encoders is not None
    for key, tensor in recipe.encoders.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", ["", WEIGHTS])
def test_a_training_starts_from_the_result_of_another(tmp_path: Path, pairs: Path, name: str) -> None:
    """Its first step sees the weights and statistics that the other one ended with, the encoder's among them."""
    joint = ("encoders.source=joint", "loss.adaptive=false")
    file = train(config(pairs, tmp_path / "first", *joint, "schedule.images=4"))
    assert file is not None
    recipe = made_recipe(pairs, tmp_path / "second", *joint, "seed=1", f"start={tmp_path / 'first' / name}")
    expected = load_file(file)
    for network in (recipe.generator, recipe.average):
        state = network.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    tuned = ("encoders.source=tuned", f"encoders.file={pretrained(tmp_path)}")
    own = made_recipe(pairs, tmp_path / "third", *tuned, f"start={tmp_path / 'first'}").generator.encoder
    assert own is not None
    assert all(torch.equal(tensor, expected[f"encoder.{key}"]) for key, tensor in own.state_dict().items())
    assert all(p.requires_grad for p in own.parameters())


def test_a_wrong_start_is_refused(tmp_path: Path, pairs: Path) -> None:
    joint = ("encoders.source=joint", "loss.adaptive=false")
    with pytest.raises(TrainingError, match=r"no weights to start from at .*nowhere"):
        made_recipe(pairs, tmp_path / "run", *joint, f"start={tmp_path / 'nowhere'}")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match="a different network than the one to train"):
        made_recipe(pairs, tmp_path / "run", *joint, f"start={tmp_path / 'other.safetensors'}")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match="is not a weights file"):
        made_recipe(pairs, tmp_path / "run", *joint, f"start={tmp_path / 'broken.safetensors'}")
    with pytest.raises(ConfigError, match=r"set encoders\.source=tuned"):
        config(pairs, tmp_path / "run", "encoders.source=pretrained", f"start={tmp_path / 'first'}")


def test_inference_needs_the_he_alone(small_run: TrainingRun) -> None:
    """The paper's code asks for the real stain at inference; ours writes a generator that cannot take one."""
    assert not [key for key in load_file(small_run.weights) if "ihc" in key]
    generator = load_generator(small_run.config.generator, small_run.weights)
    with torch.no_grad():
        dark, light = (generator(torch.full((1, 3, 128, 128), value)) for value in (-0.8, 0.8))
    assert not torch.equal(dark, light)


def test_the_encoder_sees_whole_crops_without_a_seam_in_the_middle() -> None:
    """The paper's code embeds four quadrants, whose padding draws a cross through every crop."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels=4, blocks=4, attention="global")).eval()
    assert generator.encoder is not None
    contexts: list[torch.Tensor] = []
    generator.encoder.register_forward_hook(lambda module, inputs, output: contexts.append(output))
    he = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        generator(he)
        around_the_middle = generator.encoder.body(he[..., 64:192, 64:192])
    assert len(contexts) == 1
    torch.testing.assert_close(contexts[0][..., 31:33, 31:33], around_the_middle[..., 15:17, 15:17], rtol=0, atol=1e-5)


def test_similarity_is_that_of_patches_embedded_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoders = Encoders(4).eval()
    a, b = torch.rand(2, 2, 3, 128, 128).unbind(0)
    actual = encoders.similarity(a, b, 2)
    for n, y, x in np.ndindex(2, 2, 2):
        window = (slice(n, n + 1), slice(None), slice(64 * y, 64 * y + 64), slice(64 * x, 64 * x + 64))
        with torch.no_grad():
            expected = nn.functional.cosine_similarity(encoders.ihc(a[window]), encoders.ihc(b[window]))
        assert actual[n, y, x].item() == pytest.approx(expected.item(), abs=1e-5)


def test_no_gradient_flows_through_the_weights(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "loss.gan=0")
    generated = torch.rand(2, 3, 128, 128, requires_grad=True)
    weights, figures = recipe._weights(generated, torch.rand(2, 3, 128, 128))
    assert not weights.requires_grad
    assert weights.shape == (2, 2, 2)
    assert figures["weight"] == pytest.approx(50 + 50 * figures["similarity"], rel=1e-5)


def test_rescaled_weights_have_the_mean_of_a_fixed_l1(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "loss.rescaled=true", "loss.l1=30", "loss.gan=0")
    generator = torch.Generator().manual_seed(0)
    means = [recipe._weights(*torch.rand(2, 2, 3, 128, 128, generator=generator).unbind(0))[0].mean() for _ in range(6)]
    assert torch.stack(means).mean().item() == pytest.approx(30, rel=0.02)
    restored = made_recipe(pairs, tmp_path, "loss.rescaled=true", "loss.l1=30", "loss.gan=0")
    restored.load_state(recipe.state())
    a, b = torch.rand(2, 2, 3, 128, 128, generator=generator).unbind(0)
    assert torch.equal(recipe._weights(a, b)[0], restored._weights(a, b)[0])


def test_fixed_l1_weighs_everything_alike(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "loss.adaptive=false", "loss.l1=30")
    weights, _ = recipe._weights(*torch.rand(2, 2, 3, 128, 128).unbind(0))
    assert (weights == 30).all()


def test_epochs_count_the_training_split(tmp_path: Path, pairs: Path) -> None:
    train(config(pairs, tmp_path / "run", "schedule.epochs=2"))
    assert read_log(tmp_path / "run")[-1]["images"] == 6  # three training pairs


def test_frozen_statistics_stay_and_unfrozen_ones_move(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "schedule.freeze_from=0.5")
    he = torch.rand(2, 3, 128, 128)

    def statistics() -> torch.Tensor:
        return torch.cat([m.running_mean.clone() for m in recipe.generator.modules() if isinstance(m, nn.BatchNorm2d)])  # type: ignore[union-attr]

    start = statistics()
    recipe.step(he, -he, images=0)
    moved = statistics()
    recipe.step(he, -he, images=6)
    assert not torch.equal(start, moved)
    assert torch.equal(moved, statistics())


@pytest.mark.slow
def test_killed_and_resumed_training_ends_in_the_same_weights_and_log(tmp_path: Path, pairs: Path) -> None:
    whole = config(pairs, tmp_path / "whole", "loss.rescaled=true", "threads=1")  # those of the process may be others
    train(whole)
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(settings(pairs, tmp_path / "killed") | {"loss": dump(whole.loss), "threads": 1}))
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
    logs = [[line["l1"] for line in read_log(tmp_path / name)] for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    expected, actual = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    for key, tensor in expected.items():
        assert torch.equal(tensor, actual[key]), key


def test_a_run_keeps_a_plain_log_curves_and_samples(small_run: TrainingRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = small_run.folder
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    log = read_log(run)
    assert {"images", "images_per_s", "waiting", "l1", "weighted_l1", "weight", "similarity", "d", "gan"} <= set(log[0])
    assert [e.step for e in events.Scalars("l1")] == [line["images"] for line in log] == [4, 8, 12]
    assert [e.value for e in events.Scalars("l1")] == pytest.approx([line["l1"] for line in log], rel=1e-5)
    samples = sorted(p.name for p in (run / "samples").iterdir())
    assert samples == ["000000004.png", "000000008.png", "000000012.png"]
    with Image.open(run / "samples" / samples[0]) as sample:
        picture = np.asarray(sample)
    np.testing.assert_array_equal(picture[:, 256:], 255 - picture[:, :128])  # the stain is the H&E's complement


def test_two_trainings_never_share_a_run_folder(tmp_path: Path, pairs: Path) -> None:
    settings_of_run = config(pairs, tmp_path / "run")
    refused = []

    def start_another(step: loop.Step) -> None:
        if step.images == 2:
            with pytest.raises(OutputError, match="is in use by process") as error:
                train(settings_of_run)
            refused.append(error)

    train(settings_of_run, start_another)
    assert len(refused) == 1
    assert read_log(tmp_path / "run")[-1]["images"] == 12


def test_a_run_folder_of_other_settings_is_refused(small_run: TrainingRun) -> None:
    files = {path: path.stat().st_mtime_ns for path in small_run.folder.rglob("*")}
    with pytest.raises(ConfigError, match=r"different settings \(schedule\)"):
        train(config(small_run.config.pairs, small_run.folder, "schedule.images=16"))
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_run_of_an_earlier_version_is_resumed(tmp_path: Path, small_run: TrainingRun) -> None:
    """Its checkpoint holds `output.glass`, the earlier name of `output.background`."""
    run = tmp_path / "run"
    shutil.copytree(small_run.folder, run)
    tensors, facts = checkpoint.load(run / CHECKPOINT)
    facts["settings"]["output"]["glass"] = facts["settings"]["output"].pop("background")
    checkpoint.save(run / CHECKPOINT, tensors, facts)
    train(dataclasses.replace(small_run.config, run=run))  # a finished run: nothing is left to do


@pytest.mark.parametrize(("value", "loss"), [("3.4e+38", "inf"), ("1.0e+9", r"\d.*")])
def test_a_lost_training_stops_with_a_sentence_and_its_last_good_state(
    tmp_path: Path, pairs: Path, value: str, loss: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=rf"the loss 'weighted_l1' became {loss} after .* no checkpoint exists yet: lower"
    ):
        train(config(pairs, run, f"loss.l1={value}", "loss.adaptive=false"))
    assert not (run / CHECKPOINT).exists()


def test_broken_weights_never_replace_a_good_checkpoint(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of_run = config(pairs, tmp_path / "run")
    step = StainingRecipe.step

    def breaks_at_the_end(self: StainingRecipe, he: torch.Tensor, ihc: torch.Tensor, images: int) -> dict[str, float]:
        losses = step(self, he, ihc, images)
        if images == 6:  # the step that the second checkpoint follows: its losses are still finite
            next(self.generator.trunk.parameters()).data.fill_(float("nan"))
        return losses

    monkeypatch.setattr(StainingRecipe, "step", breaks_at_the_end)
    with pytest.raises(TrainingError, match=r"no longer finite after 8 images; the last valid checkpoint is .*check"):
        train(settings_of_run)
    tensors, facts = checkpoint.load(tmp_path / "run" / CHECKPOINT)
    assert facts["images"] == 4
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_unusable_pairs_are_named_before_training(tmp_path: Path, pairs: Path) -> None:
    Image.new("RGB", (160, 150)).save(pairs / "ihc1.png")
    with pytest.raises(TrainingError, match=r"ihc1\.png"):
        train(config(pairs, tmp_path / "run"))
    (pairs / "ihc1.png").write_bytes(b"no image")
    with pytest.raises(TrainingError, match=r"ihc1\.png"):
        train(config(pairs, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_crop_that_does_not_fit_the_network_is_refused(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(ConfigError, match="crop is 100: it must be a multiple of 128 px for this generator"):
        config(pairs, tmp_path, "crop=100")
    with pytest.raises(ConfigError, match="cannot be cut into 3×3 patches"):
        config(pairs, tmp_path, "loss.patches=3")


def test_calibrated_statistics_make_evaluation_equal_training_on_the_same_batch(tmp_path: Path, pairs: Path) -> None:
    generator = made_recipe(pairs, tmp_path, "encoders.source=joint", "loss.adaptive=false").generator
    he = torch.rand(4, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        trained = generator.train()(he)
        far = (generator.eval()(he) - trained).abs().mean()
        calibrate(generator, [he])
        near = (generator.eval()(he) - trained).abs().mean()
    assert near < 1e-3 < far / 10  # all that is left is n / (n - 1) of the variance


@pytest.mark.slow
def test_training_lowers_the_loss_and_freezing_does_not_throw_the_network_off(tmp_path: Path, pairs: Path) -> None:
    """Frozen as they run, statistics of a few noisy steps once turned a trained network white."""
    train(config(pairs, tmp_path / "run", "schedule.images=80", "schedule.save_images=80", "schedule.lr=0.003"))
    log = read_log(tmp_path / "run")
    before = np.mean([x["l1"] for x in log if 40 <= x["images"] <= 68])
    after = np.mean([x["l1"] for x in log if x["images"] > 68])
    assert log[-1]["images"] == 80
    assert log[-1]["l1"] < 0.6 * log[0]["l1"]
    assert after < 1.3 * before


def test_rates_fall_at_the_end_and_at_the_freeze(tmp_path: Path, pairs: Path) -> None:
    """Frozen at full speed, a deep network diverged within twenty steps."""
    changes = ("schedule.lr=0.001", "schedule.decay_from=0.5", "schedule.freeze_from=0.75", "schedule.frozen_rate=0.2")
    recipe = made_recipe(pairs, tmp_path, *changes)
    rates = []
    for images in (0, 6, 8, 9, 11):  # of 12
        recipe.step(*torch.rand(2, 2, 3, 128, 128).unbind(0), images=images)
        rates.append(recipe.opt_g.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3 * 4 / 6, 0.2e-3 * 3 / 6, 0.2e-3 / 6])


def test_resize_convolutions_leave_no_checkerboard() -> None:
    """On a constant input, transposed convolutions paint a grid; enlarged pixels do not."""
    spreads = {}
    for kind in ("transposed", "resize"):
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(channels=8, coa=False, upsample=kind)).eval()  # type: ignore[arg-type]
        features = torch.randn(1, 32, 1, 1).expand(1, 32, 32, 32)
        with torch.no_grad():
            inside = generator.decoder(features)[..., 40:88, 40:88]
        spreads[kind] = inside.std(dim=(2, 3)).max().item()
    assert spreads["resize"] < 1e-5
    assert spreads["transposed"] > 0.01


def test_encoders_have_one_shape_and_separate_weights() -> None:
    encoders = Encoders(4)
    assert isinstance(encoders.he, Encoder)
    shapes = [{k: v.shape for k, v in part.state_dict().items()} for part in (encoders.he, encoders.ihc)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(encoders.he.head[-1].weight, encoders.ihc.head[-1].weight)  # type: ignore[arg-type]


def test_the_discriminator_waits_for_its_images(tmp_path: Path, pairs: Path) -> None:
    recipe = made_recipe(pairs, tmp_path, "loss.gan_from=4")
    before = [p.clone() for p in recipe.discriminator.parameters()]
    he, ihc = torch.rand(2, 2, 3, 128, 128).unbind(0)
    assert not {"d", "gan"} & set(recipe.step(he, ihc, images=2))
    assert all(torch.equal(a, b) for a, b in zip(before, recipe.discriminator.parameters(), strict=True))
    assert {"d", "gan"} <= set(recipe.step(he, ihc, images=4))
    assert any(not torch.equal(a, b) for a, b in zip(before, recipe.discriminator.parameters(), strict=True))


def test_a_discriminator_that_waits_is_logged_from_its_beginning(tmp_path: Path, pairs: Path) -> None:
    train(config(pairs, tmp_path / "run", "loss.gan_from=6", "schedule.save_images=12"))
    (line,) = read_log(tmp_path / "run")
    assert line["d"] > 0.1, "the mean is over the steps that have it"
    assert line["l1"] > 0


def test_a_stain_head_takes_its_colours_from_the_training_split(tmp_path: Path, pairs: Path) -> None:
    changes = ("generator.head=stain", "output.background=[240, 241, 242]", "counterstain=2")
    recipe = made_recipe(pairs, tmp_path, *changes)
    palette = palette_of(config(pairs, tmp_path, *changes))
    for module in (recipe.generator, recipe.average, recipe.results(12, [])[WEIGHTS]):
        head = module.head
        assert isinstance(head, StainHead)
        assert head.get_buffer("background").tolist() == [240, 241, 242]
        assert head.get_buffer("dab").tolist() == pytest.approx(palette.dab)
        assert head.get_buffer("strength").item() == pytest.approx(2 * palette.strength)


def test_a_stain_head_starts_from_a_network_with_the_papers_head(tmp_path: Path, pairs: Path) -> None:
    first = made_recipe(pairs, tmp_path, "encoders.source=joint", "loss.adaptive=false").generator
    save_file(first.state_dict(), tmp_path / "generator.safetensors")
    changes = ("encoders.source=joint", "loss.adaptive=false", "generator.head=stain", f"start={tmp_path}", "seed=5")
    new, fresh = made_recipe(pairs, tmp_path, *changes), made_recipe(pairs, tmp_path, *changes[:3], changes[4])
    last = max(int(key.split(".")[1]) for key in new.generator.state_dict() if key.startswith("decoder."))
    assert new.generator.state_dict()[f"decoder.{last}.weight"].shape[0] == CHANNELS
    for key, tensor in new.generator.state_dict().items():
        is_own = key.startswith(("head.", f"decoder.{last}."))
        expected = (fresh.generator if is_own else first).state_dict()[key]
        assert torch.equal(tensor, expected), key


@pytest.fixture
def copy(small_run: TrainingRun, tmp_path: Path) -> TrainConfig:
    """The settings of a copy of the small run, to be damaged."""
    shutil.copytree(small_run.folder, tmp_path / "run")
    return dataclasses.replace(small_run.config, run=tmp_path / "run")


def test_damaged_pieces_of_a_run_are_refused_in_one_sentence(copy: TrainConfig) -> None:
    state = copy.run / CHECKPOINT
    good = state.read_bytes()
    tensors, facts = checkpoint.load(state)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}  # they are mapped from the file
    state.write_bytes(good[:-1])
    with pytest.raises(TrainingError, match=r"is not a checkpoint of wsi-stain train .*; remove it to start again"):
        train(copy)
    state.write_bytes((copy.run / WEIGHTS).read_bytes())  # a weight file, but no state
    with pytest.raises(TrainingError, match="is not a checkpoint of wsi-stain train: remove it"):
        train(copy)
    checkpoint.save(state, {key: tensor for key, tensor in tensors.items() if "trunk.0" not in key}, facts)
    with pytest.raises(TrainingError, match=r"lacks a part of the training \(.*trunk\.0.*\): remove it") as error:
        train(copy)
    assert "\n" not in str(error.value)
    (copy.run / "log.jsonl").write_text("no JSON\n")
    with pytest.raises(TrainingError, match=r"log\.jsonl has a damaged line \('no JSON'\): remove the file to resume"):
        RunLog(copy.run, 4)


def test_removed_pieces_of_a_finished_run_are_written_again(copy: TrainConfig) -> None:
    before = [(path, path.read_bytes()) for path in (copy.run / WEIGHTS, copy.run / "config.yaml")]
    for path, _ in before:
        path.unlink()
    train(copy)
    result, settings_of_run = ((path, content) for path, content in before)
    for key, tensor in load_file(result[0]).items():
        torch.testing.assert_close(tensor, load_tensors(result[1])[key], rtol=0, atol=0, msg=key)
    assert yaml.safe_load(settings_of_run[0].read_text()) == yaml.safe_load(settings_of_run[1]) | {"run": str(copy.run)}
