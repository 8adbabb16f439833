"""A bundle of ours becomes a model folder that BioImage.IO's software checks and runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.bioimageio import CARD, own_bundle
from click.testing import CliRunner
from PIL import Image

from wsi_stain.cli import group
from wsi_stain.errors import BundleError
from wsi_stain.model import bioimageio_export, facts
from wsi_stain.model.bioimageio_export import export_folder
from wsi_stain.model.bundle import DEFAULT, Bundle, sha256_of
from wsi_stain.model.graph_export import MOST_TILE
from wsi_stain.model.tile_tolerance import field

AUTHORS = ["A. Author", "B. Author"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder; its bundle is beside it."""
    place = tmp_path_factory.mktemp("export")
    export_folder(own_bundle(place / "small"), place / "folder", authors=AUTHORS)
    return place / "folder"


@pytest.mark.slow
def test_the_description_states_scale_halo_and_hashes(folder: Path) -> None:
    text = (folder / "rdf.yaml").read_text()
    description = yaml.safe_load(text)
    (source,), (target,) = description["inputs"], description["outputs"]
    assert [axis.get("size") for axis in source["axes"]] == [1, None, 64, 64]
    for tensor in (source, target):
        for axis in tensor["axes"][2:]:
            assert (axis["unit"], axis["scale"]) == ("micrometer", 0.5)
        for key in ("test_tensor", "sample_tensor"):
            assert tensor[key]["sha256"] == sha256_of(folder / tensor[key]["source"])
    assert [axis.get("halo") for axis in target["axes"]] == [None, None, 16, 16], "half of the overlap on each side"
    assert description["weights"]["onnx"]["sha256"] == sha256_of(folder / "generator.onnx")
    assert (description["license"], description["version"]) == ("CC-BY-4.0", "1.2.0")
    assert description["authors"] == [{"name": name} for name in AUTHORS]
    assert "2502.20156" in description["cite"][0]["doi"]
    assert "RESEARCH USE ONLY" in description["description"]
    assert "&id" not in text, "YAML without aliases"


@pytest.mark.slow
def test_the_test_tensors_are_drawn_tissue_and_what_the_network_makes_of_it(folder: Path) -> None:
    bundle = Bundle.open(folder.parent / "small")
    pixels = field(bundle, 64)
    stained = bundle.generator("cpu", precision="fp32")(pixels[None])[0]
    assert stained.std() > 1
    for name, image in (("test_input", pixels), ("test_output", stained)):
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), image.transpose(2, 0, 1)[None])
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}.png")), image)
    cover = np.asarray(Image.open(folder / "cover.png"))
    np.testing.assert_array_equal(cover, np.hstack([pixels, stained]))


def test_the_documentation_is_the_card_with_a_validation(folder: Path) -> None:
    text = (folder / "documentation.md").read_text()
    assert "## Validation\n\nr = 0.5" in text
    assert "RESEARCH USE ONLY" in text
    assert "See [the site](https://example.org), the docs," in text, "links to other files lead nowhere"
    assert "field.jpg" not in text


def test_what_the_format_requires_is_required(tmp_path: Path) -> None:
    def refusal(name: str, authors: list[str] = AUTHORS, tile: int | None = None, **options: object) -> str:
        bundle = own_bundle(tmp_path / name, **options)
        with pytest.raises(BundleError) as failure:
            export_folder(bundle, tmp_path / "out", authors=authors, tile=tile)
        assert not (tmp_path / "out").exists()
        return str(failure.value)

    assert "pass --author NAME" in refusal("a", authors=[])
    assert "without slashes" in refusal("b", authors=["A/B"])
    assert "one SPDX identifier only" in refusal("c", licence="MIT OR Apache-2.0")
    assert "no µm/px" in refusal("d", mpp=None)
    assert "complete it first" in refusal("e", card="# x\n")
    assert "complete it first" in refusal("f", card=f"{CARD}\nTO COMPLETE: more\n")
    assert "larger than the overlap" in refusal("g", tile=32)
    assert "a multiple of 16 px" in refusal("h", tile=40)
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="already exists"):
        export_folder(tmp_path / "a", tmp_path / "out", authors=AUTHORS)


@pytest.fixture
def _same_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of `folder` for every bundle: tracing takes seconds, and the weights are the same."""
    graph = (folder / "generator.onnx").read_bytes()
    monkeypatch.setattr(bioimageio_export, "graph_of", lambda bundle, side: graph)


@pytest.mark.usefixtures("_same_graph")
def test_a_graph_that_does_not_agree_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bioimageio_export, "_run", lambda graph, pixels, multiple: pixels)
    with pytest.raises(BundleError, match=r"agrees with its network only to \d+\.\d dB"):
        export_folder(own_bundle(tmp_path / "small"), tmp_path / "out", authors=AUTHORS)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_same_graph")
def test_the_command_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    bundle = own_bundle(tmp_path / "small")
    call = ["models", "export", str(bundle)]
    for both in ([], [str(tmp_path / "x.onnx"), "--bioimageio", str(tmp_path / "out")]):
        assert "Pass FILE or --bioimageio DIR" in CliRunner().invoke(group, [*call, *both]).output
    result = CliRunner().invoke(group, [*call, "--bioimageio", str(tmp_path / "out"), "--author", "A"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "out")
    assert (tmp_path / "out" / "rdf.yaml").is_file()


def test_the_default_tile_is_small_enough_for_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object, side: int) -> bytes:
        raise BundleError(f"side {side}")

    monkeypatch.setattr(bioimageio_export, "graph_of", stop)
    assert Bundle.open(DEFAULT).tile > MOST_TILE
    with pytest.raises(BundleError, match="side 512"):
        export_folder(DEFAULT, tmp_path / "out")


CHECKS = """
import sys
from bioimageio.core import test_description
from bioimageio.spec import load_description_and_validate_format_only

for check, status in ((load_description_and_validate_format_only, "valid-format"), (test_description, "passed")):
    summary = check(sys.argv[1])
    print(summary.format(), *(detail.name for detail in summary.details), sep="\\n")
    assert summary.status == status, summary.status
"""


def checked(folder: Path) -> None:
    """Run the format check and the run test of BioImage.IO's packages, in a process of their own."""
    pytest.importorskip("bioimageio.core", reason="needs the extra [bioimageio]")
    result = subprocess.run([sys.executable, "-c", CHECKS, str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Reproduce test outputs from test inputs (onnx)" in result.stdout.splitlines()
    assert "FAIR" not in result.stdout, "no field is recommended that it lacks"


@pytest.mark.slow
def test_their_packages_check_and_run_it(folder: Path) -> None:
    checked(folder)


@pytest.mark.slow
def test_the_shipped_model_agrees_and_passes(tmp_path: Path) -> None:
    result = export_folder(DEFAULT, tmp_path / "out", tile=256)
    assert result >= 60
    assert result <= facts.SAME_DB
    checked(tmp_path / "out")
