"""A mask drawn by hand is exact to the pixel: inside the model's output, outside background, whatever the tiles."""

import json

import numpy as np
import pytest
from builders.conversions import InvertAndBlur, digest, noise, pixels_of, request_of, write_slide

from wsi_stain.conversion import painter
from wsi_stain.conversion.certificate import boundaries
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.survey import Survey

SIDE = 1200
OUTER = [[100, 90], [1100, 200], [900, 1100], [500, 700], [150, 1000]]
HOLE = [[400, 300], [600, 300], [600, 500], [400, 500]]
IGNORED = [[700, 250], [800, 250], [800, 350], [700, 350]]


@pytest.fixture
def mask(tmp_path):
    def feature(*rings, name="Tissue"):
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}
        return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}

    path = tmp_path / "mask.geojson"
    features = [feature(OUTER, HOLE), feature(IGNORED, name="Ignore*")]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def contains(ring, y, x):
    inside = np.zeros(np.broadcast(y, x).shape, bool)
    for (xa, ya), (xb, yb) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if ya != yb:
            inside ^= ((ya < y) != (yb < y)) & (xa + (y - ya) / (yb - ya) * (xb - xa) <= x)
    return inside


def expected_inside(scale=1.0):
    side = round(SIDE / scale)
    y, x = (np.mgrid[:side, :side] + 0.5) * scale
    return contains(OUTER, y, x) & ~contains(HOLE, y, x) & ~contains(IGNORED, y, x)


@pytest.mark.parametrize("keys", [(), ("grid.tile=200", "grid.overlap=60"), ("grid.block=1024", "grid.tile=97")])
@pytest.mark.parametrize("name", ["x.ome.tiff", "x.ome.zarr"])
def test_identity_is_the_slide_inside_and_background_outside(tmp_path, mask, keys, name):
    image = noise(SIDE, SIDE)
    result = convert(request_of(write_slide(tmp_path / "s.tif", image), tmp_path / name, *keys, mask=mask))
    inside = expected_inside()
    pixels = pixels_of(result.output)
    assert np.array_equal(pixels[inside], image[inside])
    assert np.unique(pixels[~inside], axis=0).tolist() == [[243, 243, 243]]
    again = tmp_path / "x.tissue.geojson"
    other = convert(request_of(tmp_path / "s.tif", tmp_path / f"again{name}", *keys, mask=again))
    assert np.array_equal(pixels_of(other.output), pixels), "the mask beside the output is the mask"


def test_a_model_at_another_scale_keeps_to_the_outline(tmp_path, mask, use):
    use(InvertAndBlur, mpp=1.0)
    slide = write_slide(tmp_path / "s.tif", noise(SIDE, SIDE))
    whole = pixels_of(convert(request_of(slide, tmp_path / "whole.ome.tiff")).output)
    pixels = pixels_of(convert(request_of(slide, tmp_path / "x.ome.tiff", mask=mask)).output)
    inside = expected_inside(2.0)
    assert np.array_equal(pixels[inside], whole[inside])
    assert np.unique(pixels[~inside], axis=0).tolist() == [[240, 241, 242]]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, mask, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(SIDE, SIDE))
    whole = digest(convert(request_of(slide, tmp_path / "x.ome.tiff", mask=mask)).output)
    (tmp_path / "x.ome.tiff").unlink()
    (tmp_path / "x.ome.tiff.run.json").unlink()
    paint, done = painter.Painter.paint, []

    def failing(self, block):
        done.append(block)
        return paint(self, block) if len(done) < 5 else 1 // 0

    with monkeypatch.context() as patch:
        patch.setattr(painter.Painter, "paint", failing)
        with pytest.raises(ZeroDivisionError):
            convert(request_of(slide, tmp_path / "x.ome.tiff", mask=mask))
    result = convert(request_of(slide, tmp_path / "x.ome.tiff", mask=mask))
    assert result.record["blocks"]["painted_in_this_run"] == 5
    assert digest(result.output) == whole


def test_the_outline_is_no_seam(tmp_path, use):
    """A rectangle whose sides lie on tile lines: the step there is the user's."""
    use(InvertAndBlur, tile=128, overlap=32)
    corner = [[96, 96], [960, 96], [960, 960], [96, 960], [96, 96]]
    mask = tmp_path / "m.geojson"
    mask.write_text(json.dumps({"type": "Polygon", "coordinates": [corner]}))
    slide = write_slide(tmp_path / "s.tif", noise(SIDE, SIDE))
    survey = Survey.of(request_of(slide, tmp_path / "x.ome.tiff", mask=mask))
    lines = boundaries(survey, Job.of(survey).seed)
    assert lines
    assert all(line.box.y0 >= 96 and line.box.y1 <= 960 for line in lines)
    assert convert(survey.request).record["seams"]["verdict"] == "pass"
