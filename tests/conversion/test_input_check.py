"""What a conversion says about a slide that its model does not know, and what it refuses."""

import dataclasses
import logging

import numpy as np
import pytest
from builders.conversions import FakeBundle, InvertAndBlur, pixels_of, request_of, write_slide
from builders.he import tile
from skimage.color import rgb_from_hed

from wsi_stain.cohort.account import _warnings
from wsi_stain.conversion.engine import convert
from wsi_stain.errors import SlideError
from wsi_stain.model.bundle import Bundle
from wsi_stain.output import ometiff
from wsi_stain.output.origin import provenance


@dataclasses.dataclass
class HeBundle(FakeBundle):
    """A model of H&E, made of a function."""

    expects = "H&E"


@pytest.fixture
def model(monkeypatch) -> None:
    bundle = HeBundle(InvertAndBlur)
    monkeypatch.setattr(Bundle, "open", classmethod(lambda cls, name=None: bundle))


@pytest.fixture
def slides(tmp_path):
    brown = rgb_from_hed[[0, 2]]
    return {
        "he": write_slide(tmp_path / "he.tif", tile(600)),
        "ihc": write_slide(tmp_path / "ihc.tif", tile(600, vectors=brown)),
    }


def test_h_and_e_is_converted_without_a_word(model, slides, tmp_path, caplog) -> None:
    result = convert(request_of(slides["he"], tmp_path / "v.ome.tiff"))
    assert result.record["input"]["verdict"] == "ok"
    assert provenance(result.output)["input_verdict"] == "ok"
    assert not [r for r in caplog.records if "he.tif" in r.message]


def test_an_immunostain_is_marked_everywhere(model, slides, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        result = convert(request_of(slides["ihc"], tmp_path / "v.ome.tiff"))
    assert "ihc.tif is brown" in caplog.text
    assert "not to be trusted" in caplog.text
    assert result.record["input"]["verdict"] == "bad"
    assert result.record["input"]["figures"]["brown"] > 0.5
    annotations = ometiff.describe(result.output)["annotations"]
    assert annotations["input_verdict"] == "bad"
    assert "brown" in annotations["input_reasons"]
    assert any("is brown" in warning for warning in _warnings(result.record))


@pytest.mark.parametrize(("mpp", "is_marked"), [(0.5, False), (0.55, False), (0.75, True)])
def test_a_slide_that_is_enlarged_to_the_model_is_marked(model, slides, tmp_path, caplog, mpp, is_marked) -> None:
    Bundle.open().mpp = 0.5
    with caplog.at_level(logging.WARNING):
        result = convert(request_of(slides["he"], tmp_path / "v.ome.tiff", mpp=mpp, allow_upsampling=True))
    assert ("he.tif is enlarged 1.5-fold" in caplog.text) == is_marked
    assert result.record["input"]["verdict"] == ("unlike" if is_marked else "ok")


def test_strict_refuses_it_and_writes_nothing(model, slides, tmp_path) -> None:
    output = tmp_path / "v.ome.tiff"
    with pytest.raises(SlideError, match=r"ihc\.tif is brown.*omit --strict"):
        convert(request_of(slides["ihc"], output, strict=True))
    assert not list(tmp_path.glob("v.ome*"))
    assert convert(request_of(slides["he"], output, strict=True)).output.exists()


def test_the_check_changes_no_pixel_and_can_be_disabled(model, slides, tmp_path) -> None:
    one = convert(request_of(slides["ihc"], tmp_path / "a.ome.tiff"))
    two = convert(request_of(slides["ihc"], tmp_path / "b.ome.tiff", "check_input=false"))
    np.testing.assert_array_equal(pixels_of(one.output), pixels_of(two.output))
    assert two.record["input"] is None
    assert "input_verdict" not in provenance(two.output)


def test_a_zarr_is_marked_too(model, slides, tmp_path) -> None:
    result = convert(request_of(slides["ihc"], tmp_path / "v.ome.zarr"))
    assert provenance(result.output)["input_verdict"] == "bad"


def test_a_model_that_takes_any_stain_does_not_look(slides, tmp_path) -> None:
    result = convert(request_of(slides["ihc"], tmp_path / "v.ome.tiff", strict=True))
    assert result.record["input"] is None
