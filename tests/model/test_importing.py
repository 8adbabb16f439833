"""An imported network becomes a bundle with measured facts, and runs whole slides without seams."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from builders.conversions import noise, request_of, write_slide
from builders.published import config_of, graph_of, network_of, node, save, serialized
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import BundleError, ConfigError, OutputError
from wsi_stain.model import facts
from wsi_stain.model.bundle import Bundle
from wsi_stain.model.export import check
from wsi_stain.model.importing import import_model, settings
from wsi_stain.nn.inference import PlainGenerator, load_published

GIVEN = {
    "mpp": 1.0,
    "stain": "HER2",
    "licence": "CC0-1.0",
    "values_in": [-1, 1],
    "values_out": [-1, 1],
    "colours": "rgb",
    "tile": 64,
}
OPTIONS = "--mpp 1.0 --stain HER2 --licence CC0-1.0 --values-in=-1,1 --values-out=-1,1 --colours rgb --tile 64"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with instance norm, as state dict and as ONNX, both imported."""
    folder, network = tmp_path_factory.mktemp("imports"), network_of(config_of())
    for name, options in (("torch", {"kind": "resnet-6"}), ("graph", {"kind": "onnx", "multiple": 4})):
        file = save(network, folder / ("x.pth" if name == "torch" else "x.onnx"), side=256)
        import_model(file, folder / name, settings({**GIVEN, "tile": 256, **options}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "graph"])
def test_a_bundle_states_what_was_measured(folder: Path, name: str) -> None:
    bundle = Bundle.open(folder / name)
    measured = bundle.config.measured
    assert measured
    assert measured.tile_statistics
    assert measured.agreement_db >= 60
    assert 40 <= measured.reach <= 70, "six blocks at quarter resolution, and five other layers"
    assert bundle.overlap == min(128, -(-2 * measured.reach // 4) * 4)
    assert bundle.has_tile_statistics
    assert bundle.config.tile_tolerance
    assert bundle.config.tile_tolerance.mean < 1
    assert check(folder / name) == ["the card still has parts marked TO COMPLETE"]
    assert yaml.safe_load((folder / name / "bundle.yaml").read_text())["generator"] == {"kind": "imported"}


@pytest.mark.slow
def test_both_forms_are_the_same_network(folder: Path) -> None:
    tile = noise(256, 256)[None]
    torch_, graph = (Bundle.open(folder / name).generator("cpu")(tile) for name in ("torch", "graph"))
    assert facts.psnr(torch_, graph) > 60
    plain = PlainGenerator(load_published(config_of(), folder / "torch" / "generator.safetensors"))
    assert facts.psnr(plain(tile), torch_) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "graph"])
def test_slide_statistics_pass_where_tile_statistics_fail(folder: Path, tmp_path: Path, name: str) -> None:
    image = noise(640, 640)
    image[:, 320:] = image[:, 320:] // 3 + 160  # pale tissue beside dark tissue: statistics of tiles differ
    slide = write_slide(tmp_path / "s.tif", image)
    records = {}
    for norm in ("tile", "slide"):
        output = tmp_path / f"{norm}.ome.tiff"
        request = request_of(slide, output, model=str(folder / name), mpp=1.0, norm=norm)
        records[norm] = convert(request).record["seams"]
    assert records["tile"]["verdict"] == "fail"
    assert records["tile"]["difference_mean"] > 5 * records["slide"]["difference_mean"]
    assert records["slide"]["verdict"] == "pass", records["slide"]["reasons"]


def test_other_settings_of_a_network_do_not_resume_its_output(folder: Path, tmp_path: Path) -> None:
    slide, output = write_slide(tmp_path / "s.tif", noise(128, 128)), tmp_path / "x.ome.tiff"
    import shutil

    other = Path(shutil.copytree(folder / "torch", tmp_path / "torch"))
    request = request_of(slide, output, model=str(other), mpp=1.0)
    convert(request)
    assert convert(request).already_done
    spec = yaml.safe_load((other / "bundle.yaml").read_text())
    spec["network"]["values_out"] = [-1.0, 2.0]
    (other / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(OutputError, match="made with other settings"):
        convert(request)


def test_facts_that_no_file_states_are_required() -> None:
    with pytest.raises(ConfigError) as failure:
        settings({"kind": "onnx", "mpp": 1.0, "values_in": [-1, 1]})
    message = str(failure.value)
    assert message.endswith("pass --stain, --licence, --values-out, --colours, --tile, --multiple")
    for key in GIVEN:
        given = {k: v for k, v in GIVEN.items() if k != key}
        with pytest.raises(ConfigError, match=f"does not state {key} "):
            settings({"kind": "resnet-9", **given})
    assert settings({"kind": "unet-256", **GIVEN, "tile": 512}).multiple == 256
    with pytest.raises(ConfigError, match="must be a multiple of 128 px"):
        settings({"kind": "unet-128", **GIVEN, "tile": 64})
    with pytest.raises(ConfigError, match="the first must be below the second"):
        import_model(Path(__file__), Path("x"), settings({"kind": "resnet-6", **GIVEN, "values_out": [1, -1]}))


def test_the_command_imports(tmp_path: Path) -> None:
    save(network_of(config_of("resnet-6", norm="batch")), tmp_path / "x.pth")
    call = ["models", "import", str(tmp_path / "x.pth"), "--kind", "resnet-6", "-o", str(tmp_path / "he2x")]
    result = CliRunner().invoke(group, [*call, *OPTIONS.split()])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "he2x")
    bundle = Bundle.open(tmp_path / "he2x")
    assert (bundle.has_tile_statistics, bundle.mpp, bundle.stain, bundle.multiple) == (False, 1.0, "HER2", 4)
    again = CliRunner().invoke(group, [*call, *OPTIONS.split()])
    assert isinstance(again.exception, BundleError)
    assert "already contains a bundle" in str(again.exception)


def test_grey_is_shown_as_grey(tmp_path: Path) -> None:
    file = save(network_of(config_of(outputs=1, norm="batch")), tmp_path / "x.pth")
    bundle = import_model(file, tmp_path / "grey", settings({"kind": "resnet-6", **GIVEN}))
    stained = bundle.generator("cpu")(noise(64, 64)[None])
    assert stained.std() > 5
    assert (stained == stained[..., :1]).all()


def test_a_reach_is_measured(tmp_path: Path) -> None:
    """A blur over 2 · 3 + 1 px looks 3 px far."""
    kernel = np.zeros((3, 3, 7, 7), np.float32)
    for c in range(3):
        kernel[c, c] = 1 / 49
    blur = graph_of(node("Conv", ["x", "kernel"], ["y"], pads=[3] * 4), kernel=kernel)
    (tmp_path / "x.onnx").write_bytes(serialized(blur))
    options = {"kind": "onnx", "multiple": 1, **GIVEN, "background": [1, 2, 3]}
    bundle = import_model(tmp_path / "x.onnx", tmp_path / "blur", settings(options))
    assert bundle.config.measured
    assert bundle.config.measured.reach == 3
    assert not bundle.config.measured.tile_statistics
    assert (bundle.overlap, bundle.background) == (6, (1, 2, 3))


def test_a_graph_of_one_size_promises_nothing(tmp_path: Path) -> None:
    fixed = graph_of(node("Reshape", ["x", "shape"], ["a"]), node("Relu", ["a"], ["y"]), shape=np.array([1, 3, 64, 64]))
    (tmp_path / "x.onnx").write_bytes(serialized(fixed))
    options = {"kind": "onnx", "multiple": 64, **GIVEN, "overlap": 0}
    bundle = import_model(tmp_path / "x.onnx", tmp_path / "fixed", settings(options))
    assert bundle.config.tile_tolerance is None
    assert check(tmp_path / "fixed") == ["the card still has parts marked TO COMPLETE"]
