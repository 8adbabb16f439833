"""Networks of the CycleGAN family: published layouts, their meaning against plain torch, and reading their files."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from builders.published import VALUES, config_of, network_of, save
from safetensors.torch import save_file
from torch import nn

from wsi_stain.config.network import NetworkConfig
from wsi_stain.errors import BundleError
from wsi_stain.nn.inference import PlainGenerator, TorchGenerator
from wsi_stain.nn.norm import freeze, measure
from wsi_stain.nn.published import Published, build
from wsi_stain.nn.state_dict import read

UNKNOWN = NetworkConfig(kind="resnet-6", multiple=4, norm="none", **VALUES)
KINDS = [
    ("resnet-6", {}),
    ("resnet-9", {"norm": "batch"}),
    ("resnet-6", {"antialias": (True, True)}),
    ("resnet-6", {"antialias": (True, False), "affine": True}),
    ("resnet-6", {"norm": "none", "outputs": 1}),
    ("unet-128", {"norm": "batch", "multiple": 128}),
    ("unet-128", {"multiple": 128, "outputs": 1}),
]


def named(case: object) -> str:
    return re.sub(r"[^\w-]+", "-", str(case))


@pytest.mark.parametrize(
    ("kind", "fields", "parameters", "tensors"),
    [
        # Facts of the published networks: learned numbers, and entries of the state dict.
        ("resnet-9", {}, 11_378_179, 48),
        ("resnet-9", {"norm": "batch"}, 11_383_427, 24 + 1 + 23 * 5),
        ("resnet-6", {}, 7_837_699, 36),
        ("unet-256", {"norm": "batch"}, 54_413_955, 17 + 13 * 5),
        ("unet-128", {"norm": "batch"}, 41_828_995, 15 + 11 * 5),
    ],
)
def test_the_published_sizes(kind: str, fields: dict, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        network = build(config_of(kind, width=64, **fields))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors


def test_the_published_names() -> None:
    keys = set(build(config_of("resnet-9")).state_dict())
    blocks = [f"model.{i}.conv_block.{j}" for i in range(10, 19) for j in (1, 5)]
    layers = ["model.1", "model.4", "model.7", *blocks, "model.19", "model.22", "model.26"]
    assert keys == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    blurred = set(build(config_of("resnet-6", antialias=(True, True))).state_dict())
    assert {"model.7.filt", "model.11.filt", "model.18.filt", "model.22.filt", "model.27.weight"} <= blurred
    unet = set(build(config_of("unet-128", norm="batch")).state_dict())
    inside = "model.model.1.model"
    assert {f"{inside}.1.weight", f"{inside}.2.running_mean", f"{inside}.5.weight", f"{inside}.6.weight"} <= unet
    deepest = "model." + "model.1." + "model.3." * 5 + "model"
    assert {f"{deepest}.1.weight", f"{deepest}.3.weight", f"{deepest}.4.weight", "model.model.3.bias"} <= unet


def naive_resnet(state: dict, config: NetworkConfig, x: torch.Tensor) -> torch.Tensor:
    """The network from its description, by functions; layers are taken from the state dict in its order."""
    layers: dict[str, dict] = {}
    for key, value in state.items():
        name, _, kind = key.rpartition(".")
        layers.setdefault(name, {})[kind] = value
    names = iter(layers)

    def norm(y: torch.Tensor) -> torch.Tensor:
        if config.norm == "none":
            return y
        own = layers[next(names)] if config.norm == "batch" or config.affine else {}
        if config.norm == "batch":
            mean, var = own["running_mean"].view(1, -1, 1, 1), own["running_var"].view(1, -1, 1, 1)
        else:
            mean, var = y.mean((2, 3), keepdim=True), y.var((2, 3), unbiased=False, keepdim=True)
        y = (y - mean) / torch.sqrt(var + 1e-5)
        return y * own["weight"].view(1, -1, 1, 1) + own["bias"].view(1, -1, 1, 1) if own else y

    def conv(y: torch.Tensor, **options: int) -> torch.Tensor:
        own = layers[next(names)]
        return F.conv2d(y, own["weight"], own.get("bias"), **options)

    def reflect(y: torch.Tensor, n: int) -> torch.Tensor:
        return F.pad(y, [n] * 4, mode="reflect")

    y = norm(conv(reflect(x, 3))).relu()
    for _ in range(2):
        y = norm(conv(y, padding=1, stride=1 if config.antialias[0] else 2)).relu()
        if config.antialias[0]:
            next(names)
            row = torch.tensor([1.0, 2, 1]).double() / 4
            each = (row[:, None] * row).expand(y.shape[1], 1, 3, 3)
            y = F.conv2d(reflect(y, 1), each, groups=y.shape[1])[:, :, ::2, ::2]
    for _ in range(int(config.kind[-1])):
        y = y + norm(conv(reflect(norm(conv(reflect(y, 1))).relu(), 1)))
    for _ in range(2):
        if config.antialias[1]:
            next(names)
            # Doubled by pixels in between: 3/4 of the nearer and 1/4 of the farther neighbour along both axes.
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            y = norm(conv(y, padding=1)).relu()
        else:
            own = layers[next(names)]
            y = F.conv_transpose2d(y, own["weight"], own.get("bias"), stride=2, padding=1, output_padding=1)
            y = norm(y).relu()
    return torch.tanh(conv(reflect(y, 3)))


@pytest.mark.parametrize(("kind", "fields"), [case for case in KINDS if case[0].startswith("resnet")], ids=named)
def test_a_resnet_is_what_its_paper_describes(kind: str, fields: dict) -> None:
    config = config_of(kind, **fields)
    network, x = network_of(config).double(), torch.rand(2, 3, 32, 24).double() * 2 - 1
    with torch.no_grad():
        assert torch.allclose(network(x), naive_resnet(network.state_dict(), config, x), atol=1e-5)


def test_a_unet_is_what_its_paper_describes() -> None:
    network, x = network_of(config_of("unet-128", norm="batch")).double(), torch.rand(1, 3, 128, 256).double() * 2 - 1
    state = network.state_dict()

    def norm(y: torch.Tensor, name: str) -> torch.Tensor:
        own = {kind: state[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(y, *own.values())

    def scale(y: torch.Tensor, name: str, depth: int) -> torch.Tensor:
        down = F.conv2d(F.leaky_relu(y, 0.2), state[f"{name}.1.weight"], stride=2, padding=1)
        if depth == 1:
            up, last = down, f"{name}.4"
            kernel = state[f"{name}.3.weight"]
        else:
            up, last = scale(norm(down, f"{name}.2"), f"{name}.3.model", depth - 1), f"{name}.6"
            kernel = state[f"{name}.5.weight"]
        return torch.cat([y, norm(F.conv_transpose2d(up.relu(), kernel, stride=2, padding=1), last)], 1)

    with torch.no_grad():
        first = F.conv2d(x, state["model.model.0.weight"], stride=2, padding=1)
        y = scale(first, "model.model.1.model", 6).relu()
        y = F.conv_transpose2d(y, state["model.model.3.weight"], state["model.model.3.bias"], stride=2, padding=1)
        assert torch.allclose(network(x), torch.tanh(y), atol=1e-5)


def published(config: NetworkConfig) -> Published:
    module = Published(config)
    module.network.load_state_dict(network_of(config).state_dict())
    return module.eval()


def pixels(side: int = 128, n: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "fields"), KINDS, ids=named)
def test_the_fast_form_is_the_same_function(kind: str, fields: dict) -> None:
    module, tiles = published(config_of(kind, **fields)), pixels()
    ours, plain = TorchGenerator(module, "cpu")(tiles), PlainGenerator(module)(tiles)
    assert plain.std() > 10
    assert np.abs(ours.astype(int) - plain).max() <= 1
    assert (ours != plain).mean() < 0.01


@pytest.mark.parametrize("affine", [False, True])
def test_frozen_statistics_of_the_same_tiles_reproduce_instance_norm(tmp_path: Path, affine: bool) -> None:
    # With one tile, statistics of the slide are those of the tile, except for the variance's n - 1.
    module, tiles = published(config_of(affine=affine)), pixels()
    (tmp_path / "norm").write_bytes(measure(copy.deepcopy(module), list(tiles), "cpu"))
    before = PlainGenerator(module)(tiles)
    freeze(module, tmp_path / "norm")
    assert not any(isinstance(part, nn.InstanceNorm2d) for part in module.modules())
    assert np.abs(TorchGenerator(module, "cpu")(tiles).astype(int) - before).max() <= 2


def test_values_and_colours_are_translated_at_both_ends() -> None:
    class Halves(nn.Module):
        """Takes BGR in [0, 1]; returns BGR in [0, 255], half as bright."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert 0 <= x.min() <= x.max() <= 1
            assert torch.allclose(x[0, 0], torch.full((8, 8), 30 / 255))
            return x * 255 / 2

    module = Published(config_of(values_in=(0.0, 1.0), values_out=(0.0, 255.0), colours="bgr"))
    module.network = Halves()
    tile = np.full((1, 8, 8, 3), (200, 100, 30), np.uint8)
    assert (PlainGenerator(module)(tile) == (100, 50, 15)).all()


@pytest.mark.parametrize(("kind", "fields"), KINDS, ids=named)
def test_a_state_dict_shows_its_network(tmp_path: Path, kind: str, fields: dict) -> None:
    config = config_of(kind, **fields)
    network = network_of(config)
    told = NetworkConfig(kind=kind, multiple=config.multiple, norm="none", **VALUES)
    for name in ("x.pth", "x.safetensors"):
        if name == "x.pth":
            save(network, tmp_path / name)
        else:
            save_file(network.state_dict(), tmp_path / name)
        shown, tensors = read(tmp_path / name, told)
        assert shown == config
        assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items())


def test_variants_of_training_codes_are_read(tmp_path: Path) -> None:
    config = config_of()
    state = network_of(config).state_dict()

    def renamed(key: str) -> str:
        return "module." + key.replace("conv_block.5.", "conv_block.6.")  # DataParallel, and dropout in the blocks

    variant = {renamed(key): value.double() for key, value in state.items()}
    variant["module.model.2.running_mean"] = torch.zeros(4)  # of torch before 0.4
    variant["module.model.2.num_batches_tracked"] = torch.tensor(0)
    torch.save({"epoch": 3, "G": variant, "lr": [0.1]}, tmp_path / "x.pth")
    shown, tensors = read(tmp_path / "x.pth", UNKNOWN)
    assert shown == config
    assert all(torch.equal(tensors[key], value) for key, value in state.items())


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = network_of(config_of()).state_dict()
    del state["model.12.conv_block.1.weight"]
    state["model.99.odd"] = torch.zeros(3)
    state["model.4.weight"] = torch.zeros(8, 4, 5, 5)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(BundleError) as failure:
        read(tmp_path / "x.pth", UNKNOWN)
    message = str(failure.value)
    assert "missing model.12.conv_block.1.weight" in message
    assert "not expected model.99.odd" in message
    assert "model.4.weight (8, 4, 5, 5) instead of (8, 4, 3, 3)" in message


def test_nine_blocks_are_not_six(tmp_path: Path) -> None:
    save(network_of(config_of("resnet-9")), tmp_path / "x.pth")
    with pytest.raises(BundleError, match=r"does not fit resnet-6: .*model\.1[0-9]"):
        read(tmp_path / "x.pth", UNKNOWN)


def test_several_networks_in_a_file_are_named(tmp_path: Path) -> None:
    state = network_of(config_of()).state_dict()
    torch.save({"netG_A": state, "netG_B": state}, tmp_path / "x.pth")
    with pytest.raises(BundleError, match="several networks \\(netG_A, netG_B\\)"):
        read(tmp_path / "x.pth", UNKNOWN)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    state = network_of(config_of()).state_dict()
    state["model.4.bias"][1] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(BundleError, match=r"not finite, first in model\.4\.bias"):
        read(tmp_path / "x.pth", UNKNOWN)


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("/tmp/wsi-stain-was-here"),)


def test_programs_and_pickles_are_refused_unopened(tmp_path: Path) -> None:
    marker = Path("/tmp/wsi-stain-was-here")
    marker.unlink(missing_ok=True)
    torch.save({"model.1.weight": torch.zeros(1), "trap": Trap()}, tmp_path / "trap.pth")
    torch.save(network_of(config_of()), tmp_path / "whole.pth")
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        torch.jit.trace(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8)).save(tmp_path / "script.pt")
    for name, words in (("trap.pth", "more than tensors"), ("whole.pth", "state_dict"), ("script.pt", "TorchScript")):
        with pytest.raises(BundleError, match=words):
            read(tmp_path / name, UNKNOWN)
    assert not marker.exists()
