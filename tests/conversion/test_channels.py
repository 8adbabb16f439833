"""Conversions to fluorescence channels: pixels, certificate, resume, refusals, pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from builders.conversions import digest, noise, pixels_of, request_of, write_slide
from builders.published import config_of, graph_of, network_of, node, save, serialized
from click.testing import CliRunner

from wsi_stain import virtual_slide
from wsi_stain.cli import group
from wsi_stain.cohort.account import account_of
from wsi_stain.cohort.request import Row
from wsi_stain.conversion import engine
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import BundleError, ConfigError, WsiStainError
from wsi_stain.geometry import Box
from wsi_stain.measure.composite import composite
from wsi_stain.model.bundle import Bundle
from wsi_stain.model.export import check
from wsi_stain.model.importing import import_model, settings
from wsi_stain.output import ometiff
from wsi_stain.output.channel_file import ChannelFile
from wsi_stain.view.layers import ChannelLayer
from wsi_stain.view.scene import Scene, Source

NAMES = [f"marker {n}" for n in range(18)]
GIVEN = {
    **{"mpp": 1.0, "stain": "panel", "licence": "CC0-1.0", "values_in": [0, 1], "values_out": [0, 1], "colours": "rgb"},
    **{"tile": 64, "multiple": 1, "overlap": 16, "kind": "onnx"},
}


def weights(count: int) -> np.ndarray:
    """A 1×1 convolution: every channel is another mean of red, green and blue."""
    matrix = np.random.default_rng(count).random((count, 3)).astype(np.float32)
    return matrix / matrix.sum(1, keepdims=True)


def channels(count: int) -> list[dict]:
    return [{"name": name, "colour": [255, 10 * n, 0]} for n, name in enumerate(NAMES[:count])]


@pytest.fixture(scope="module")
def panels(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Pointwise networks of 1, 3 and 18 named channels."""
    folder, panels = tmp_path_factory.mktemp("panels"), {}
    for count in (1, 3, 18):
        graph = graph_of(node("Conv", ["x", "k"], ["y"]), k=weights(count)[..., None, None])
        (folder / "x.onnx").write_bytes(serialized(graph))
        panels[count] = folder / f"panel{count}"
        import_model(folder / "x.onnx", panels[count], settings({**GIVEN, "channels": channels(count)}))
    return panels


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "s.tif", noise(700, 1100))


def expected(count: int) -> np.ndarray:
    unit = noise(700, 1100).astype(np.float32) / 127.5 - 1
    stain = (unit + 1) / 2 @ weights(count).T
    return np.rint(stain * 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 18])
@pytest.mark.parametrize("ending", [".ome.tiff", ".ome.zarr"])
def test_a_pointwise_network_gives_every_channel_exactly(panels, slide, tmp_path, count, ending):
    output = tmp_path / f"x{ending}"
    result = convert(request_of(slide, output, model=str(panels[count]), mpp=1.0))
    file = ChannelFile.open(output)
    assert file
    assert [channel.name for channel in file.channels] == NAMES[:count]
    seen = file.read(0, Box.of(file.size)).astype(int)
    errors = np.abs(seen - expected(count))
    assert errors.max() <= 1, "float32 rounds in another order"
    assert (errors > 0).mean() < 0.001
    seams = result.record["seams"]
    assert (seams["verdict"], seams["dab_change"]) == ("pass", None)
    assert seams["places"] > 0
    if ending == ".ome.tiff":
        assert ometiff.problems(output) == []
    else:
        group_ = zarr.open_group(output, mode="r")
        assert group_["0"].chunks == (1, 512, 512)
        labels = [c["label"] for c in group_.attrs["ome"]["omero"]["channels"]]
        assert labels == NAMES[:count]
        assert np.array_equal(np.moveaxis(group_["0"][:], 0, -1), seen)


def test_a_background_of_its_own_for_each_channel(panels, slide, tmp_path):
    bundle = Bundle.open(panels[3])
    assert bundle.background == (245, 245, 245), "a mean of the colours of an empty slide"
    outside = tmp_path / "nothing.geojson"
    ring = [[0, 0], [300, 0], [300, 300], [0, 300], [0, 0]]
    outside.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for ending in (".ome.tiff", ".ome.zarr"):
        output = tmp_path / f"x{ending}"
        convert(request_of(slide, output, model=str(panels[3]), mpp=1.0, mask=outside))
        file = ChannelFile.open(output)
        assert file
        pixels = file.read(0, Box.of(file.size))
        assert (pixels[:, 600:] == 245).all()
        assert pixels[:290, :290].std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".ome.tiff", ".ome.zarr"])
def test_an_interrupted_run_ends_in_the_same_bytes(panels, slide, tmp_path, monkeypatch, ending):
    request = request_of(slide, tmp_path / f"a{ending}", model=str(panels[18]), mpp=1.0)
    convert(request)
    whole = digest(tmp_path / f"a{ending}")
    other = tmp_path / "other"
    other.mkdir()
    request = request_of(slide, other / f"a{ending}", model=str(panels[18]), mpp=1.0)
    paint, count = engine.stain_block, 0

    def fails(job, block):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return paint(job, block)

    monkeypatch.setattr(engine, "stain_block", fails)
    with pytest.raises(KeyboardInterrupt):
        convert(request)
    monkeypatch.setattr(engine, "stain_block", paint)
    result = convert(request)
    assert 0 < result.record["blocks"]["painted_in_this_run"] < result.record["blocks"]["all"]
    assert digest(other / f"a{ending}") == whole


def test_other_names_of_channels_do_not_resume(panels, slide, tmp_path):
    import shutil

    model = Path(shutil.copytree(panels[3], tmp_path / "panel3"))
    request = request_of(slide, tmp_path / "x.ome.tiff", model=str(model), mpp=1.0)
    convert(request)
    assert convert(request).already_done
    spec = yaml.safe_load((model / "bundle.yaml").read_text())
    spec["output"]["channels"][0]["name"] = "another"
    (model / "bundle.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(WsiStainError, match="made with other settings"):
        convert(request)


@pytest.mark.slow
def test_networks_of_torch_have_channels_too(slide, tmp_path):
    network = network_of(config_of(outputs=5, norm="batch"))
    file = save(network, tmp_path / "x.pth")
    given = {**GIVEN, "kind": "resnet-6", "values_in": [-1, 1], "values_out": [-1, 1], "multiple": 4}
    bundle = import_model(file, tmp_path / "m", settings({**given, "channels": channels(5), "overlap": 32}))
    assert bundle.config.measured
    assert bundle.config.measured.agreement_db >= 60
    assert len(bundle.background) == 5
    tile = noise(64, 64)
    with torch.no_grad():
        x = torch.from_numpy(tile.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
        source = ((network(x)[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    assert np.abs(bundle.generator("cpu")(tile[None])[0] - source).max() <= 1
    result = convert(request_of(slide, tmp_path / "x.ome.tiff", model=str(tmp_path / "m"), mpp=1.0))
    assert result.record["seams"]["verdict"] in ("pass", "fail")
    assert pixels_of(tmp_path / "x.ome.tiff").shape == (5, 700, 1100)
    assert check(tmp_path / "m") == ["the card still has parts marked TO COMPLETE"]


def test_channels_must_be_named_and_fit(tmp_path):
    graph = graph_of(node("Conv", ["x", "k"], ["y"]), k=weights(4)[..., None, None])
    (tmp_path / "x.onnx").write_bytes(serialized(graph))
    with pytest.raises(BundleError, match=r"4 outputs, neither colours .* name them with --channels"):
        import_model(tmp_path / "x.onnx", tmp_path / "m", settings(GIVEN))
    with pytest.raises(BundleError, match="4 outputs, but --channels names 2"):
        import_model(tmp_path / "x.onnx", tmp_path / "m", settings({**GIVEN, "channels": channels(2)}))
    with pytest.raises(ConfigError, match="one for each of the 4 channels"):
        settings({**GIVEN, "channels": channels(4), "background": [1, 2, 3]})


def test_what_needs_colours_refuses_channels_by_name(panels, slide, tmp_path):
    model = str(panels[3])
    with pytest.raises(ConfigError, match="OpenSlide reads colours only"):
        convert(request_of(slide, tmp_path / "x.ome.tiff", "output.compat_openslide=true", model=model, mpp=1.0))
    with pytest.raises(BundleError, match="a virtual slide has colours only"):
        virtual_slide(slide, model=model, mpp=1.0, mask="none", output=tmp_path / "x.ome.tiff")
    assert not (tmp_path / "x.ome.tiff.spool").exists()
    convert(request_of(slide, tmp_path / "x.ome.tiff", model=model, mpp=1.0))
    with pytest.raises(WsiStainError):
        convert(request_of(tmp_path / "x.ome.tiff", tmp_path / "y.ome.tiff", mpp=1.0, allow_virtual=True))


@pytest.mark.slow
def test_commands_name_the_channels(panels, slide, tmp_path):
    for ending in (".ome.tiff", ".ome.zarr"):
        output = tmp_path / f"x{ending}"
        convert(request_of(slide, output, model=str(panels[3]), mpp=1.0))
        facts = json.loads(CliRunner().invoke(group, ["info", "--json", str(output)]).stdout)
        assert facts["channels"] == NAMES[:3]
        assert facts["annotations"]["stain"] == "panel"
    done = CliRunner().invoke(group, ["validate", str(tmp_path / "x.ome.tiff")])
    assert done.output.endswith("0 errors, 0 warnings\n")


def test_the_viewer_shows_a_composite_while_and_after_staining(panels, slide, tmp_path):
    request = request_of(slide, tmp_path / "x.ome.tiff", model=str(panels[3]), mpp=1.0)
    scene = Scene(Source("s", request))
    try:
        assert not scene.describe()["dab"]
        assert scene.layer("dab") is None
        scene.stainer.painting.ensure([(0, 0)])
        live = scene.stain.tile(0, 0, 0)
        coarse = scene.stain.tile(len(scene.stain.levels) - 1, 0, 0)
    finally:
        scene.close()
    convert(request)
    scene = Scene(Source("s", request, tmp_path / "x.ome.tiff"))
    try:
        assert isinstance(scene.stain, ChannelLayer)
        assert scene.place.scale == 1.0
        assert scene.stain.tile(0, 0, 0) == live
        assert coarse.startswith(b"\xff\xd8")
        shown = scene.stain.pixels(0, 1, 2)
    finally:
        scene.close()
    file = ChannelFile.open(tmp_path / "x.ome.tiff")
    assert np.array_equal(shown, composite(file.read(0, Box(512, 1024, 700, 1100)), file.channels))


@pytest.mark.slow
def test_a_cohort_accounts_for_channels_without_a_positive_area(panels, slide, tmp_path):
    request = request_of(slide, tmp_path / "x.ome.tiff", model=str(panels[18]), mpp=1.0)
    convert(request)
    account = account_of(Row(1, "s", slide, 1.0, str(panels[18]), "none"), request)
    assert account["positive"] is None
    assert account["channels"] == NAMES
    assert account["thumbnails"]["stain"]
