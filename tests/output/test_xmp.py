"""XMP of outputs, as software that knows no OME-XML reads it."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import tifffile
from builders.conversions import noise, request_of, write_slide
from builders.pyramids import ArraySource, metadata, paint
from click.testing import CliRunner
from PIL import Image

from wsi_stain.cli import group
from wsi_stain.conversion.engine import convert
from wsi_stain.geometry import Size
from wsi_stain.output.encoding import Encoding
from wsi_stain.output.ometiff import NOTICE, describe, problems, write, xmp

ANNOTATIONS = {"model": "he2x", "model_version": "2.1.0", "model_sha256": "ab" * 32, "source_sha256": "cd" * 32}


def written(path, **annotations):
    source = ArraySource(paint(Size(600, 700)), Encoding("deflate"))
    write(path, source, metadata(path.name, **({"annotations": annotations} if annotations else {})))
    return path, source


def test_other_software_reads_that_a_model_made_the_image(tmp_path) -> None:
    path, source = written(tmp_path / "v.ome.tiff", **ANNOTATIONS)
    with Image.open(path) as image:
        packet = image.info["xmp"]
    about = {key.rpartition("}")[2]: text for key, text in ET.fromstring(packet)[0][0].attrib.items()}
    assert about["DigitalSourceType"] == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert about["AISystemUsed"] == "he2x"
    assert about["AISystemVersionUsed"] == "2.1.0"
    assert about["model_sha256"] == "ab" * 32
    assert NOTICE.encode() in packet
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].tags[700].dtype == tifffile.DATATYPE.BYTE
        np.testing.assert_array_equal(file.asarray(), source.levels[0])
        assert all(700 not in page.tags for page in file.pages[0].pages)


def test_it_breaks_no_rule_and_is_described(tmp_path) -> None:
    path, _ = written(tmp_path / "v.ome.tiff", **ANNOTATIONS)
    assert problems(path) == []
    facts = describe(path)
    assert facts["xmp"]["DigitalSourceType"] == xmp.TRAINED
    assert facts["annotations"]["digital_source_type"] == xmp.TRAINED


def test_equal_annotations_give_equal_bytes_and_text_is_escaped() -> None:
    packet = xmp.build({**ANNOTATIONS, "stain": 'a & b < "c"'})
    assert packet == xmp.build({**ANNOTATIONS, "stain": 'a & b < "c"'})
    assert xmp.read(packet)["stain"] == 'a & b < "c"'


def test_a_broken_packet_is_ignored() -> None:
    assert xmp.read(b"") == xmp.read(b"<x") == xmp.read(b"<!DOCTYPE a><a/>") == {}


def test_a_copy_is_not_called_the_work_of_a_trained_model(tmp_path) -> None:
    slide = write_slide(tmp_path / "he.tif", noise(600, 700))
    for name in ("v.ome.tiff", "v.ome.zarr", "v.dcm"):
        output = convert(request_of(slide, tmp_path / name)).output
        result = CliRunner().invoke(group, ["info", str(output), "--json"])
        assert json.loads(result.output)["annotations"]["digital_source_type"] == xmp.ENHANCED
