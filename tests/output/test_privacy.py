"""`validate --privacy` lists what a TIFF may tell about a person, and nothing of our own outputs."""

import json

import numpy as np
import pytest
import tifffile
from conversion.test_privacy import BARCODE, BORN, DOCTOR, NAME, NUMBER, PLACE, ome, svs

from wsi_stain.cli import main
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import SlideError
from wsi_stain.output.ometiff import hints


def texts(path):
    return " ".join(f"{hint.what} {hint.text}" for hint in hints(path))


def test_every_kind_of_text_is_listed(tmp_path):
    found = texts(svs(tmp_path / "a.svs"))
    assert all(secret in found for secret in (NAME, NUMBER, DOCTOR, BARCODE, BORN, PLACE))
    assert "label" in found
    found = texts(ome(tmp_path / "a.ome.tif"))
    assert all(secret in found for secret in (DOCTOR, PLACE, NUMBER, BORN))


def test_home_folders_and_keys_are_found_anywhere_in_a_file(tmp_path):
    path = tmp_path / "a.ome.tiff"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb", metadata=None)
    assert hints(path) == []
    path.write_bytes(path.read_bytes() + b"\0source=/Users/roe/slides/x.svs\0 'Patient': \0Operator = X. Roe\0")
    assert {hint.what for hint in hints(path)} == {"a home folder", "a key"}
    assert "/Users/roe" in texts(path)


def test_an_output_of_ours_has_nothing_to_look_at(tmp_path, capsys):
    result = convert(ConvertRequest(svs(tmp_path / "a.svs"), tmp_path / "x.ome.tiff", model="identity", workers=0))
    assert hints(result.output) == []
    with pytest.raises(SystemExit) as code:
        main(["validate", "--privacy", str(result.output)])
    assert code.value.code == 0
    assert "0 places to look at" in capsys.readouterr().err
    with pytest.raises(SystemExit) as code:
        main(["validate", "--privacy", "--json", str(tmp_path / "a.svs")])
    assert code.value.code == 1
    assert {"where", "what", "text"} == set(json.loads(capsys.readouterr().out)[0])


def test_entities_are_not_expanded_and_other_files_are_a_sentence(tmp_path):
    bomb = '<!DOCTYPE OME [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><OME>&b;</OME>'
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((16, 16, 3), np.uint8), photometric="rgb", description=bomb, metadata=None)
    assert "document type" in texts(path)
    for content in (b"", b"II*\0", b"not a TIFF"):
        path.write_bytes(content)
        with pytest.raises(SlideError, match="TIFF"):
            hints(path)
    with pytest.raises(SlideError, match="check the path"):
        hints(tmp_path / "none.tif")
