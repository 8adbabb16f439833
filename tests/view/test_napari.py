"""The plugin of napari: two layers with physical scale, and only the finest level of the stain is computed."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from builders.cohorts import write_tiff
from builders.conversions import noise, request_of, write_slide

import wsi_stain
from wsi_stain import Slide, convert
from wsi_stain.geometry import Box
from wsi_stain.view import napari as plugin
from wsi_stain.view.virtual import virtual_slide

NEEDS_NAPARI = pytest.mark.skipif(find_spec("napari") is None, reason="needs pip install 'wsi-stain[napari]'")


@pytest.fixture
def slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A slide whose virtual stain is a copy in blocks of 512 px."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugin, "virtual_slide", lambda path: virtual_slide(path, **COPY))
    return write_slide(tmp_path / "slide.tif", noise(1100, 1300))


COPY = {name: getattr(request_of(Path(), Path()), name) for name in ("model", "mask", "workers", "config")}


def test_a_slide_opens_as_its_he_and_a_stain_in_the_same_place(slide: Path) -> None:
    (he, he_facts, he_kind), (stain, facts, kind) = plugin.read(str(slide))
    assert he_kind == kind == "image"
    assert facts["name"] == "virtual identity, research use only"
    for arrays, about in ((he, he_facts), (stain, facts)):
        assert about["units"] == ("um", "um")
        corner = np.subtract(about["translate"], np.multiply(0.5, about["scale"]))
        assert corner.tolist() == [0, 0]
        assert np.multiply(arrays[0].shape[:2], about["scale"]) == pytest.approx((550, 650))
    with Slide.open(slide) as opened:
        assert np.array_equal(he[0].compute(scheduler="synchronous"), opened.at(None).read(Box.of(opened.size)))
    assert np.array_equal(stain[0].compute(scheduler="synchronous"), he[0].compute(scheduler="synchronous"))


def test_coarse_levels_stain_nothing_and_the_finest_stains_what_is_read(slide: Path) -> None:
    opened: list[wsi_stain.VirtualSlide] = []
    original = plugin.virtual_slide
    plugin.virtual_slide = lambda path: opened.append(original(path)) or opened[-1]  # type: ignore[func-returns-value]
    (_, (stain, _, _)) = plugin.read(str(slide))
    for array in stain[1:]:
        array.compute(scheduler="synchronous")
    assert opened[0].share_painted == 0
    stain[0][:400, :400].compute(scheduler="synchronous")
    assert 0 < opened[0].share_painted < 0.3
    after = stain[1][:200, :200].compute(scheduler="synchronous")
    assert np.abs(after.astype(int) - stain[0][:400, :400].compute(scheduler="synchronous")[::2, ::2]).mean() < 40


def test_a_virtual_stain_opens_as_one_layer(slide: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = convert(request_of(slide, slide.with_name("copy.ome.tiff"))).output
    assert len(plugin.read(str(output))) == 1
    assert "without a virtual stain" in caplog.text


def test_what_is_no_slide_is_left_to_other_readers(tmp_path: Path) -> None:
    (tmp_path / "notes.tif").write_text("not an image")
    assert plugin.reader(str(tmp_path / "notes.tif")) is None
    assert plugin.reader([str(tmp_path / "a.svs"), str(tmp_path / "b.svs")]) is None
    assert plugin.reader(str(write_tiff(tmp_path / "b.tif"))) is plugin.read


def test_the_manifest_names_a_function_that_exists() -> None:
    import yaml

    manifest = yaml.safe_load(Path(plugin.__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    (command,) = manifest["contributions"]["commands"]
    assert command["python_name"] == f"{plugin.__name__}:{plugin.reader.__name__}"
    assert manifest["contributions"]["readers"][0]["command"] == command["id"]


@NEEDS_NAPARI
@pytest.mark.filterwarnings("default")  # of napari and its libraries
def test_napari_shows_both_layers(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "QT_QPA_PLATFORM", "offscreen")
    from napari.components import ViewerModel
    from npe2 import PluginManifest

    assert PluginManifest.from_file(Path(plugin.__file__).with_suffix(".yaml")).name == "wsi-stain"
    viewer = ViewerModel()
    for data, facts, _ in plugin.read(str(slide)):
        viewer.add_image(data, **facts)
    he, stain = viewer.layers
    assert he.multiscale
    assert stain.multiscale
    assert np.allclose(he.extent.world, stain.extent.world)
    assert [str(unit) for unit in stain.units] == ["micrometer"] * 2
