"""Bundles: found, verified, packed, refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from wsi_stain.bundle import DEFAULT, Bundle, check, pack, shipped
from wsi_stain.config import GeneratorConfig
from wsi_stain.errors import BundleError
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import TorchGenerator

GENERATOR = {"channels": 4, "blocks": 4}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished training leaves."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(Generator(GeneratorConfig(**GENERATOR)).state_dict(), folder / "generator.safetensors")
    config = {
        "pairs": "p",
        "run": str(folder),
        "input": {"stain": "H&E", "mpp": 1.0, "tile": 256, "overlap": 128},
        "output": {"stain": "CAM5.2", "glass": [1, 2, 3]},
        "generator": GENERATOR,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A packed bundle."""
    pack(run, tmp_path / "he2x")
    return tmp_path / "he2x"


def test_a_packed_bundle_stains_as_the_trained_network(run: Path, folder: Path) -> None:
    from safetensors.torch import load_file

    network = Generator(GeneratorConfig(**GENERATOR))
    network.load_state_dict(load_file(run / "generator.safetensors"))
    tiles = np.random.default_rng(0).integers(0, 255, (1, 256, 256, 3), dtype=np.uint8)
    expected = TorchGenerator(network, "cpu")(tiles).astype(int)
    found = Bundle.open(folder).generator("cpu")(tiles)
    assert np.abs(found - expected).max() <= 2


def test_a_bundle_knows_its_name_stain_and_scale(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert (bundle.name, bundle.stain, bundle.stain_slug) == ("he2x", "CAM5.2", "cam52")
    assert (bundle.mpp, bundle.tile, bundle.overlap, bundle.glass) == (1.0, 256, 128, (1, 2, 3))


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_altered_byte_of_the_weights_is_refused(folder: Path, position: int) -> None:
    weights = bytearray((folder / "generator.safetensors").read_bytes())
    weights[position] ^= 1
    (folder / "generator.safetensors").write_bytes(weights)
    with pytest.raises(BundleError, match="are not what its hash says"):
        Bundle.open(folder)


def test_missing_weights_and_specs_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "generator.safetensors").unlink()
    with pytest.raises(BundleError, match="install it again"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match=f"unknown model 'he2none': .* one of .*{DEFAULT}"):
        Bundle.open("he2none")
    with pytest.raises(BundleError, match="unknown model"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(("section", "key"), [("weights", "file"), (None, "card")])
def test_files_must_lie_in_the_bundle(folder: Path, section: str | None, key: str) -> None:
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    (spec[section] if section else spec)[key] = "../secret"
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match=rf"{key} is '../secret': it must lie in the bundle's own folder"):
        Bundle.open(folder)


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    import hashlib

    torch.save({"a": torch.ones(1)}, folder / "generator.safetensors")
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    spec["weights"]["sha256"] = hashlib.sha256((folder / "generator.safetensors").read_bytes()).hexdigest()
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(BundleError, match="not a safetensors file"):
        Bundle.open(folder).generator("cpu")


def test_check_asks_for_the_card_to_be_completed(folder: Path) -> None:
    assert check(folder) == ["the card still has parts marked TO COMPLETE"]
    (folder / "card.md").write_text("complete")
    assert check(folder) == ["the card does not say RESEARCH USE ONLY"]
    (folder / "card.md").write_text("RESEARCH USE ONLY")
    assert check(folder) == []


def test_check_finds_a_grid_that_the_attention_cannot_have(folder: Path) -> None:
    (folder / "card.md").write_text("RESEARCH USE ONLY")
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    spec["input"]["overlap"] = 100
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))
    assert check(folder) == ["tile 256 and overlap 100 do not fit multiples of 128 px"]


def test_pack_never_overwrites_a_bundle_and_needs_a_finished_run(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds a bundle already"):
        pack(run, folder)
    shutil.rmtree(run)
    with pytest.raises(BundleError, match="holds no finished training"):
        pack(run, tmp_path / "other")


def test_identity_returns_its_input() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (2, 7, 9, 3), dtype=np.uint8)
    bundle = Bundle.open("identity")
    np.testing.assert_array_equal(bundle.generator("cpu")(tiles), tiles)
    assert bundle.mpp is None
    assert "identity" in shipped()
