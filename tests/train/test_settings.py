"""Accepted settings run their first step; those that are refused for a size cannot run."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.pairs import ALONE, config, settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wsi_stain.config.loader import load
from wsi_stain.config.model import GeneratorConfig
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import ConfigError
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.unet import UNet
from wsi_stain.train.encoders import Encoders
from wsi_stain.train.recipe import StainingRecipe
from wsi_stain.train.regressor import RegressorRecipe

NETWORKS = [
    {"kind": "unet"},
    {"coa": False},
    {"coa": False, "wavelet": False},
    {"coa": False, "norm": "instance"},
    {"attention": "global"},
    {"attention": "global", "wavelet": False, "upsample": "resize"},
    {"attention": "windowed"},
]


def unchecked(changes: dict[str, Any]) -> TrainConfig:
    """The settings of a training with these changes, without any check."""
    plain = load(TrainConfig, settings(Path("pairs"), Path("run")))
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = value
    top = sections.pop("", {})
    top |= {name: _replaced(getattr(plain, name), values) for name, values in sections.items()}
    return _replaced(plain, top)


def _replaced(old: Any, values: dict[str, Any]) -> Any:
    new = object.__new__(type(old))
    for field in dataclasses.fields(old):
        object.__setattr__(new, field.name, values.get(field.name, getattr(old, field.name)))
    return new


def step(settings_of_run: TrainConfig) -> None:
    """The first step of a training, and its result on one crop; raises whatever goes wrong."""
    kind = RegressorRecipe if settings_of_run.generator.kind == "unet" else StainingRecipe
    recipe = kind(settings_of_run, 100, ALONE)
    n, side = settings_of_run.schedule.batch, settings_of_run.crop
    he, ihc = torch.rand(2, n, 3, side, side).unbind(0)
    losses = recipe.step(he, ihc, 0)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values()), losses
    (network,) = recipe.results(100, [(he, ihc)]).values()
    assert network(he).shape[2:] == he.shape[2:], "the result has another size than the crop"


@st.composite
def trainings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings with sizes at and around every limit; some can run, some cannot."""
    network = {"channels": draw(st.integers(1, 5)), "blocks": 4} | draw(st.sampled_from(NETWORKS))
    sides = (128, 192) if network.get("attention") == "windowed" else (4, 8, 12, 16, 24, 28, 32, 40, 136)
    return {f"generator.{name}": value for name, value in network.items()} | {
        "crop": draw(st.sampled_from(sides)),
        "schedule.batch": draw(st.integers(1, 2)),
        "encoders.source": draw(st.sampled_from(["random", "joint"])),
        "loss.adaptive": draw(st.booleans()),
        "loss.patches": draw(st.integers(1, 4)),
        "loss.l1_levels": draw(st.integers(1, 5)),
        "loss.gan": draw(st.sampled_from([0.0, 1.0])),
        "loss.discriminator_filters": draw(st.integers(1, 2)),
    }


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(trainings())
def test_settings_are_refused_exactly_when_the_first_step_cannot_run(changes: dict[str, Any]) -> None:
    try:
        accepted = config(Path("pairs"), Path("run"), *(f"{key}={value}" for key, value in changes.items()))
    except ConfigError:
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            step(unchecked(changes))
    else:
        step(accepted)


@pytest.mark.parametrize(
    ("changes", "accepted", "message"),
    [
        (["generator.kind=unet", "crop=448"], True, ""),
        (["generator.kind=unet", "generator.coa=false", "crop=136"], False, "crop is 136: .* multiple of 16 px"),
        (["generator.kind=unet", "crop=16", "schedule.batch=1"], False, "at least 32 px"),
        (["generator.coa=false", "crop=136"], True, ""),
        (["generator.wavelet=false", "generator.attention=global", "crop=132"], True, ""),
        (["crop=192"], False, "crop is 192: it must be a multiple of 128 px for this generator"),
        (["loss.l1_levels=9"], False, "crop is 128: with these settings it must be at least 256 px"),
        (["loss.patches=32"], False, r"cannot be cut into 32×32 patches of at least 5 px; change loss\.patches"),
        (["generator.kind=identity"], False, "which cannot be trained: choose ceff or unet"),
        (["generator.norm=instance"], False, r"batch statistics: set encoders\.source=joint"),
        (["loss.rescaled=true", "loss.alpha=0", "loss.beta=0"], False, "cannot be rescaled"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(changes: list[str], accepted: bool, message: str) -> None:
    if accepted:
        config(Path("pairs"), Path("run"), *changes)
        return
    with pytest.raises(ConfigError, match=message):
        config(Path("pairs"), Path("run"), *changes)


def test_encoders_accept_the_smallest_crop_of_the_settings() -> None:
    encoders = Encoders(1)
    assert encoders.he(torch.rand(2, 3, 5, 5)).shape == (2, 16)
    with pytest.raises(RuntimeError, match=r"[Pp]adding size"):
        encoders.he(torch.rand(2, 3, 4, 4))
    with pytest.raises(ConfigError, match=r"pretrain\.crop is 4: it must be at least 5"):
        config(Path("pairs"), Path("run"), "pretrain.crop=4")


@pytest.mark.slow
@pytest.mark.parametrize("shape", NETWORKS)
def test_the_multiple_is_the_coarsest_grid_of_the_network(shape: dict[str, Any]) -> None:
    """A shift by the multiple moves the result along; a shift by half of it changes it."""
    torch.manual_seed(0)
    generator = GeneratorConfig(**{"channels": 2, "blocks": 4} | shape)
    network = (UNet if generator.kind == "unet" else Generator)(generator).double().eval()
    multiple, side = generator.multiple, {128: 640, 16: 448}.get(generator.multiple, 336)
    if generator.attention == "global" and generator.coa and generator.kind == "ceff":
        network.coa = None  # the whole crop is its field of view; what remains has a grid
    image = torch.rand(1, 3, side, side, dtype=torch.float64) * 2 - 1
    middle = slice(side // 2 - 8, side // 2 + 8)
    with torch.inference_mode():
        whole = network(image)
        for shift, is_equal in ((multiple, True), (multiple // 2, False)):
            moved = torch.roll(network(torch.roll(image, shift, 3)), -shift, 3)
            difference = (moved - whole)[..., middle, middle].abs().max().item()
            if generator.norm == "batch":  # statistics of the tile change with any shift
                assert (difference < 1e-13) == is_equal, (shift, difference)


def test_combinations_of_switches_run_at_the_smallest_multiple() -> None:
    for coa, wavelet, attention, upsample in itertools.product(
        (True, False), (True, False), ("global", "windowed"), ("transposed", "resize")
    ):
        generator = GeneratorConfig(
            channels=1,
            blocks=4,
            coa=coa,
            wavelet=wavelet,
            attention=attention,
            upsample=upsample,  # type: ignore[arg-type]
        )
        side = max(generator.multiple, 8)
        assert Generator(generator).eval()(torch.rand(1, 3, side, side)).shape == (1, 3, side, side)
