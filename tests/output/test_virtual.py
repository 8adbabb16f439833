"""Virtual stains are known by what they say about themselves, in every kind of file."""

import json

import numpy as np
import pytest
import tifffile
from builders.conversions import noise, request_of, write_slide
from builders.slides import tissue, write_svs

from wsi_stain.conversion.engine import convert
from wsi_stain.output.virtual import virtual_stain


@pytest.mark.parametrize("name", ["v.ome.tiff", "v.ome.zarr", "v.dcm"])
def test_our_own_outputs_are_known_under_any_name(tmp_path, name):
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    output = convert(request_of(slide, tmp_path / name)).output
    assert virtual_stain(output) == "identity"
    assert virtual_stain(output.rename(tmp_path / "renamed")) == "identity"


def test_an_output_that_other_software_wrote_again_is_known(tmp_path):
    output = convert(request_of(write_slide(tmp_path / "s.tif", noise(300, 300)), tmp_path / "v.ome.tiff")).output
    with tifffile.TiffFile(output) as tiff:
        text = tiff.ome_metadata.replace("wsi-stain ", "OME Bio-Formats ")
    copy = tmp_path / "copy.ome.tiff"
    tifffile.imwrite(copy, noise(300, 300), description=text.encode(), metadata=None)
    assert virtual_stain(copy) == "identity"


@pytest.mark.parametrize(
    "text", ["Virtual stain: HER2", "virtually stained PanCK", "a VIRTUAL_STAINING of", "virtual IHC", "virtual-stain"]
)
def test_the_words_of_others_are_understood(tmp_path, text):
    tifffile.imwrite(tmp_path / "v.tif", noise(64, 64), description=text, metadata=None)
    assert virtual_stain(tmp_path / "v.tif") == ""
    (tmp_path / "v.zarr").mkdir()
    (tmp_path / "v.zarr" / ".zattrs").write_text(json.dumps({"multiscales": [{"name": text}]}))
    assert virtual_stain(tmp_path / "v.zarr") == ""


def test_slides_are_none(tmp_path):
    aperio = write_svs(tmp_path / "s.svs", tissue(300, 300))
    words = tmp_path / "w.tif"
    tifffile.imwrite(words, noise(64, 64), description="Virtual slide of a virtual microscope", metadata=None)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(aperio.read_bytes()[:200])
    text = tmp_path / "text.svs"
    text.write_text("II a virtual stain of nothing")
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "zarr.json").write_text(json.dumps({"attributes": {"ome": {"version": "0.5"}}}))
    np.save(tmp_path / "a.npy", np.zeros(3))
    for path in (aperio, words, cut, text, tmp_path / "x.zarr", tmp_path / "a.npy", tmp_path / "gone.tif", tmp_path):
        assert virtual_stain(path) is None, path
