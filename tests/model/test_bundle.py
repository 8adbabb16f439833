"""Bundles: found, verified, refused."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders.runs import STAINER, make_run
from safetensors.torch import load_file

from wsi_stain.config.model import GeneratorConfig
from wsi_stain.errors import BundleError, ConfigError
from wsi_stain.model.bundle import DEFAULT, Bundle, shipped
from wsi_stain.model.export import pack
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import TorchGenerator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def packed(run: Path) -> Path:
    folder = run.parent / "he2x"
    pack(run, folder)
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A packed bundle that a test may spoil."""
    return Path(shutil.copytree(packed, tmp_path / "he2x"))


def test_a_packed_bundle_stains_as_the_trained_network(run: Path, folder: Path) -> None:
    network = Generator(GeneratorConfig(**STAINER))
    network.load_state_dict(load_file(run / "generator.safetensors"))
    tiles = np.random.default_rng(0).integers(0, 255, (1, 256, 256, 3), dtype=np.uint8)
    expected = TorchGenerator(network, "cpu")(tiles).astype(int)
    actual = Bundle.open(folder).generator("cpu")(tiles)
    assert np.abs(actual - expected).max() <= 2


def test_a_bundle_knows_its_name_stain_and_scale(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.stain, bundle.stain_slug) == ("he2x", "CAM5.2", "cam52")
    assert (bundle.mpp, bundle.tile, bundle.overlap, bundle.background) == (1.0, 256, 128, (1, 2, 3))


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_altered_byte_of_the_weights_is_refused(folder: Path, position: int) -> None:
    weights = bytearray((folder / "generator.safetensors").read_bytes())
    weights[position] ^= 1
    (folder / "generator.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="do not match its hash"):
        Bundle.open(folder)


def test_missing_weights_and_specs_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "generator.safetensors").unlink()
    with pytest.raises(BundleError, match="install it again"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match=f"unknown model 'he2none'; .* one of .*{DEFAULT}"):
        Bundle.open("he2none")
    with pytest.raises(BundleError, match="unknown model"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(("section", "key"), [("weights", "file"), (None, "card")])
def test_files_must_lie_in_the_bundle(folder: Path, section: str | None, key: str) -> None:
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    (spec[section] if section else spec)[key] = "../secret"
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match=rf"{key} is '../secret'; it must be in the bundle's own folder"):
        Bundle.open(folder)


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "generator.safetensors")
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    spec["weights"]["sha256"] = hashlib.sha256((folder / "generator.safetensors").read_bytes()).hexdigest()
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match="not a safetensors file"):
        Bundle.open(folder).generator("cpu")


def test_a_direct_regressor_is_no_bundle(folder: Path) -> None:
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    spec["generator"]["kind"] = "unet"
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match="a bundle requires a network that stains"):
        Bundle.open(folder)


def test_a_bundle_from_before_tolerances_still_opens(folder: Path) -> None:
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    assert set(spec.pop("tile_tolerance")) == {"mean", "p99", "max"}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    assert Bundle.open(folder).config.tile_tolerance is None


@pytest.mark.parametrize("figures", [{"mean": 3, "p99": 1, "max": 2}, {"mean": 0, "p99": 3, "max": 2}])
def test_a_tolerance_that_cannot_be_is_refused(folder: Path, figures: dict) -> None:
    spec = yaml.safe_load((folder / "bundle.yaml").read_text()) | {"tile_tolerance": figures}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(ConfigError, match="none may exceed max"):
        Bundle.open(folder)


def test_identity_returns_its_input() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (2, 7, 9, 3), dtype=np.uint8)
    bundle = Bundle.open("identity")
    np.testing.assert_array_equal(bundle.generator("cpu")(tiles), tiles)
    assert bundle.mpp is None
    assert "identity" in shipped()
