"""Regions are x, y, w, h in level-0 px of the file: in the request, in the record, and in the output's annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.conversions import noise, pixels_of, request_of, write_slide

from wsi_stain.conversion.engine import convert
from wsi_stain.errors import MaskError, OutputError
from wsi_stain.files import record
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.slide.slide import Slide

REGION = (130, 40, 300, 200)  # x, y, w, h


def identity(slide: Path, output: Path, **options):
    return convert(request_of(slide, output, model="identity", workers=0, **{"mask": "none", **options}))


def test_a_region_is_x_y_w_h_everywhere(tmp_path: Path) -> None:
    image = noise(500, 700)
    result = identity(write_slide(tmp_path / "s.tif", image), tmp_path / "x.ome.tiff", region=REGION)
    x, y, w, h = REGION
    np.testing.assert_array_equal(pixels_of(result.output), image[y : y + h, x : x + w])
    fingerprint = result.record["fingerprint"]
    assert (fingerprint["region"], fingerprint["region_order"]) == (list(REGION), "x, y, w, h")
    assert list(result.record["arguments"]["region"]) == list(REGION)
    assert ometiff.describe(result.output)["annotations"]["region"] == "130,40,300,200"


def test_without_a_region_the_record_has_the_whole_slide(tmp_path: Path) -> None:
    result = identity(write_slide(tmp_path / "s.tif", noise(300, 400)), tmp_path / "x.ome.tiff")
    assert result.record["fingerprint"]["region"] == [0, 0, 400, 300]


def test_a_record_in_the_old_order_is_still_known(tmp_path: Path) -> None:
    slide, output = write_slide(tmp_path / "s.tif", noise(500, 700)), tmp_path / "x.ome.tiff"
    identity(slide, output, region=REGION)
    path = record.path_of(output)
    content = json.loads(path.read_text())
    x, y, w, h = REGION
    old = {key: value for key, value in content["fingerprint"].items() if key != "region_order"}
    old["region"] = [y, x, y + h, x + w]  # until 0.1.0: y0, x0, y1, x1 in the view's px
    path.write_text(json.dumps({**content, "fingerprint": old}))
    assert identity(slide, output, region=REGION).already_done
    with pytest.raises(OutputError, match="made with other settings"):
        identity(slide, output, region=(40, 130, 340, 300))  # the same four numbers read in today's order


def test_a_record_with_the_old_name_of_the_background_is_still_known(tmp_path: Path) -> None:
    slide, output = write_slide(tmp_path / "s.tif", noise(300, 400)), tmp_path / "x.ome.tiff"
    fingerprint = identity(slide, output).record["fingerprint"]
    content = json.loads(record.path_of(output).read_text())
    content["fingerprint"] = {"glass" if key == "background" else key: value for key, value in fingerprint.items()}
    record.path_of(output).write_text(json.dumps(content))
    assert identity(slide, output).already_done


def oblong(path: Path) -> Path:
    tifffile.imwrite(
        path, noise(200, 600), tile=(128, 128), photometric="rgb", metadata=None,
        resolution=(40_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def test_a_region_of_oblong_pixels_is_in_stored_pixels(tmp_path: Path) -> None:
    path = oblong(tmp_path / "s.tif")  # 0.25 µm wide, 0.5 µm high
    result = identity(path, tmp_path / "x.ome.zarr", region=(100, 50, 60, 40))
    pixels = pixels_of(result.output)
    assert pixels.shape == (80, 60, 3)
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(pixels, slide.at(None).read(Box(100, 100, 180, 160)))
    assert result.record["slide"]["stored_mpp"] == [0.25, 0.5]
    assert result.record["fingerprint"]["mpp"] == 0.25
    assert "square" in result.record["slide"]["notes"][0]


def test_a_drawn_mask_is_not_laid_on_oblong_pixels(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"the pixels of s\.tif are not square"):
        identity(oblong(tmp_path / "s.tif"), tmp_path / "x.ome.tiff", mask=tmp_path / "m.geojson")
