"""Packing never overwrites and fills the card; checking finds each thing that can be wrong with a bundle."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.runs import REGRESSOR, make_run
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from wsi_stain.cli import group
from wsi_stain.config.loader import dump, load
from wsi_stain.config.model import TileTolerance
from wsi_stain.config.train import TrainConfig
from wsi_stain.errors import BundleError, TrainingError
from wsi_stain.model import export
from wsi_stain.model.bundle import Bundle, sha256_of
from wsi_stain.model.export import check, in_words, pack
from wsi_stain.nn.inference import load_generator

INCOMPLETE = "the card still has parts marked TO COMPLETE"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def packed(run: Path) -> Path:
    folder = run.parent / "he2x"
    pack(run, folder, version="2.0.0", licence="CC-BY-4.0 OR Apache-2.0")
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A bundle that can be shipped, for a test to spoil."""
    folder = Path(shutil.copytree(packed, tmp_path / "he2x"))
    card = (folder / "card.md").read_text()
    (folder / "card.md").write_text(card.replace("TO COMPLETE", "done"))
    return folder


def change(folder: Path, **sections: object) -> None:
    """Overwrite keys of bundle.yaml, in sections where the value is a mapping."""
    spec = yaml.safe_load((folder / "bundle.yaml").read_text())
    for key, value in sections.items():
        spec[key] = spec[key] | value if isinstance(value, dict) else value
    (folder / "bundle.yaml").write_text(yaml.safe_dump(spec))


def swap(folder: Path, old: str, new: str) -> None:
    """Change the card."""
    text = (folder / "card.md").read_text()
    assert old in text
    (folder / "card.md").write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_packed_bundle_lacks_nothing_but_words_in_its_card(packed: Path, folder: Path) -> None:
    assert check(packed) == [INCOMPLETE]
    assert check(folder) == []


def test_the_card_says_what_the_run_knows(run: Path, packed: Path) -> None:
    bundle, text = Bundle.open(packed), (packed / "card.md").read_text()
    learned = sum(p.numel() for p in load_generator(bundle.config.generator, bundle.weights_path).parameters())
    for fact in ("# he2x 2.0.0", "RESEARCH USE ONLY", "1,234 crops", f"{learned:,} weights", "CC-BY-4.0 OR Apache-2.0"):
        assert fact in text
    assert bundle.config.tile_tolerance
    assert in_words(bundle.config.tile_tolerance) in text
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    config = load(TrainConfig, run / "config.yaml")
    assert settings["loss"] == dump(config.loss)
    assert settings["pretrain"] == dump(config.pretrain)
    assert settings["crop"] == config.crop
    assert "/somewhere" not in text, "paths of the training's machine"
    assert str(run) not in text


def test_the_tolerance_is_what_was_measured_with_a_margin(packed: Path) -> None:
    bundle, text = Bundle.open(packed), " ".join((packed / "card.md").read_text().split())
    measured = export.measure(bundle, bundle.generator("cpu", precision=export.PACKED))
    assert bundle.config.tile_tolerance == export.tolerance(measured)
    assert f"procedural histology by: {in_words(measured)}. The tile tolerance of the bundle is 2 times that" in text


def test_a_stain_head_with_small_windows_is_packed_and_checked(tmp_path: Path) -> None:
    generator = {"channels": 4, "blocks": 4, "head": "stain", "window": 64}
    run = make_run(tmp_path / "run", generator)
    spec = yaml.safe_load((run / "config.yaml").read_text())
    spec["input"] |= {"tile": 192, "overlap": 64}
    (run / "config.yaml").write_text(yaml.safe_dump(spec))
    bundle = pack(run, tmp_path / "he2x")
    assert (bundle.tile, bundle.overlap, bundle.multiple) == (192, 64, 64)
    assert check(tmp_path / "he2x") == [INCOMPLETE]
    packed, trained = (load_file(path / "generator.safetensors") for path in (tmp_path / "he2x", run))
    palette = [key for key in trained if key.startswith("head.")]
    assert len(palette) == 6
    for key in palette:
        assert packed[key].equal(trained[key]), f"{key} must not be rounded to half precision"


def test_an_unknown_length_of_training_is_said(tmp_path: Path) -> None:
    pack(make_run(tmp_path / "run", images=None), tmp_path / "x")
    assert "crops (number unknown) of 512² px" in (tmp_path / "x/card.md").read_text()


@pytest.mark.parametrize("name", ["bundle.yaml", "generator.safetensors"])
def test_packing_never_overwrites(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(BundleError, match=rf"already contains a bundle \({name}\)"):
        pack(run, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.slow
def test_a_card_that_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("1.0.0, RESEARCH USE ONLY, Apache-2.0")
    bundle = pack(run, tmp_path)
    assert bundle.config.tile_tolerance
    words = in_words(bundle.config.tile_tolerance)
    assert check(tmp_path) == [f"the card lacks the tile tolerance of bundle.yaml; add {words!r}"]
    (tmp_path / "card.md").write_text(f"1.0.0, RESEARCH USE ONLY, Apache-2.0; {words.replace(' ', chr(10), 1)}")
    assert check(tmp_path) == []
    (tmp_path / "card.md").write_text(f"0.9.0, RESEARCH USE ONLY, Apache-2.0; {words}\n1.0.0")
    assert check(tmp_path) == ["the first line of the card does not name the version of bundle.yaml, 1.0.0; add it"]


def test_what_cannot_be_packed_leaves_no_bundle(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"direct regressor .* pass it to wsi-stain evaluate --regressor"):
        pack(make_run(tmp_path / "regressor", REGRESSOR), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    crooked = Path(shutil.copytree(run, tmp_path / "crooked"))
    text = (crooked / "config.yaml").read_text()
    (crooked / "config.yaml").write_text(text.replace("overlap: 128", "overlap: 100"))
    with pytest.raises(BundleError, match=r"multiples of 128 px; set input\.tile"):
        pack(crooked, tmp_path / "x")
    assert list((tmp_path / "x").iterdir()) == []


def test_check_reads_the_card(folder: Path) -> None:
    swap(folder, "RESEARCH USE ONLY", "use it")
    swap(folder, "CC-BY-4.0 OR Apache-2.0", "free")
    assert check(folder, tiles=False) == [
        "the card does not contain RESEARCH USE ONLY; add it",
        "the card does not contain the licence of bundle.yaml, CC-BY-4.0 OR Apache-2.0; add it",
    ]
    (folder / "card.md").unlink()
    assert check(folder, tiles=False) == ["card.md is missing; write it"]


@pytest.mark.parametrize(
    ("licence", "is_fine"),
    [
        ("MIT", True),
        ("(MIT OR Apache-2.0) AND CC0-1.0", True),
        ("LicenseRef-ours", True),
        ("", False),
        ("as is", False),
    ],
)
def test_check_wants_an_spdx_expression(folder: Path, licence: str, is_fine: bool) -> None:
    change(folder, licence=licence)
    swap(folder, "CC-BY-4.0 OR Apache-2.0", licence)
    wrong = f"bundle.yaml has the licence {licence!r}; it must be an SPDX expression such as Apache-2.0"
    assert check(folder, tiles=False) == ([] if is_fine else [wrong])


def test_check_finds_altered_weights_and_a_broken_specification(folder: Path) -> None:
    change(folder, input={"overlap": "much"})
    (problem,) = check(folder)
    assert "input.overlap is 'much'" in problem
    change(folder, input={"overlap": 128}, weights={"sha256": "0" * 64})
    (problem,) = check(folder)
    assert "do not match its hash" in problem


def test_check_finds_weights_that_are_no_numbers(folder: Path) -> None:
    tensors = load_file(folder / "generator.safetensors")
    key = "decoder.7.bias"
    tensors[key] = tensors[key] * float("nan")
    save_file(tensors, folder / "generator.safetensors")
    change(folder, weights={"sha256": sha256_of(folder / "generator.safetensors")})
    assert check(folder, tiles=False) == [f"the weights contain non-finite numbers, first in {key}; train again"]


@pytest.mark.parametrize(
    ("tile", "overlap", "problem"),
    [
        (256, 100, "tile 256 and overlap 100 must be multiples of 128 px"),
        (128, 128, "overlap 128 must be between 0 and half of tile 128"),
    ],
)
def test_check_finds_a_grid_that_cannot_be(folder: Path, tile: int, overlap: int, problem: str) -> None:
    change(folder, input={"tile": tile, "overlap": overlap})
    assert check(folder) == [problem]


def test_check_holds_the_bundle_to_its_tolerance(folder: Path) -> None:
    tolerated = TileTolerance(0.0, 0.0, 0.0)
    old = Bundle.open(folder).config.tile_tolerance
    assert old
    change(folder, tile_tolerance=dump(tolerated))
    swap(folder, in_words(old), in_words(tolerated))
    (problem,) = check(folder)
    assert re.fullmatch(
        r"tiles differ from one pass by mean .*, but bundle.yaml allows mean 0, 99 % 0, largest 0 grey levels; .*",
        problem,
    )


def test_check_asks_for_a_tolerance_and_says_which(folder: Path) -> None:
    old = Bundle.open(folder).config.tile_tolerance
    assert old
    change(folder, tile_tolerance=None)
    (problem,) = check(folder)
    assert problem.startswith("bundle.yaml has no tile_tolerance (measured against one pass: mean ")
    added = yaml.safe_load(re.search(r"or add (.*)", problem)[1])  # type: ignore[index]
    assert added == {"tile_tolerance": dump(old)}


class Moody:
    """Adds 1 at every call, or as many as there are tiles."""

    multiple = 1

    def __init__(self, by: str) -> None:
        self.by, self.calls = by, 0

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.calls += 1
        return tiles // 2 + np.uint8(self.calls if self.by == "call" else len(tiles))


@pytest.mark.parametrize("by", ["call", "company"])
def test_check_finds_a_network_whose_answer_depends_on_more_than_the_tile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(Bundle, "generator", lambda self, device, precision: Moody(by))
    assert check(folder) == ["the same tile gives different pixels when stained alone and in a batch with another tile"]


def test_check_finds_another_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halving(Moody):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            return tiles[:, ::2, ::2]

    monkeypatch.setattr(Bundle, "generator", lambda self, device, precision: Halving("call"))
    assert check(folder) == ["the generator returns uint8 (1, 128, 128, 3) for uint8 (1, 256, 256, 3)"]


def test_identity_needs_no_tolerance() -> None:
    assert check("identity") == []


def test_commands_pack_and_check(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "he2y"
    result = CliRunner().invoke(group, ["models", "pack", str(run), str(folder)])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(folder)
    assert Bundle.open(folder).sha256 in result.stderr
    result = CliRunner().invoke(group, ["models", "check", str(folder)], standalone_mode=False)
    assert (result.return_value, result.stdout.strip()) == (1, INCOMPLETE)
