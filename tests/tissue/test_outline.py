"""Outlines to the pixel: beside a naive twin, in any box, for any number of polygons."""

import gzip
import json
import pickle
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.errors import MaskError
from wsi_stain.geometry import Box, Size
from wsi_stain.tissue import outline as module
from wsi_stain.tissue.mask import from_geojson, to_geojson
from wsi_stain.tissue.outline import Polygons

points = st.tuples(st.floats(-5, 35), st.floats(-5, 35))
polygons = st.lists(st.lists(st.lists(points, min_size=3, max_size=6), min_size=1, max_size=3), min_size=1, max_size=5)


def naive(shapes, y: float, x: float) -> bool:
    """Whether a point is in one of the polygons, by counting crossings to its left."""
    for rings in shapes:
        crossings = 0
        for ring in rings:
            for (xa, ya), (xb, yb) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if (ya < y) != (yb < y):
                    (xl, yl), (xh, yh) = ((xa, ya), (xb, yb)) if ya <= yb else ((xb, yb), (xa, ya))
                    crossings += xl + (y - yl) / (yh - yl) * (xh - xl) <= x
        if crossings % 2:
            return True
    return False


@settings(deadline=None)
@given(polygons, st.sampled_from([Fraction(1), Fraction(2), Fraction(3, 2), Fraction(5, 7)]), st.integers(1, 40))
def test_a_cell_is_inside_when_its_centre_is(shapes, cell, at_once):
    area = Polygons.of([[np.array(ring) for ring in rings] for rings in shapes])
    old, module.AT_ONCE = module.AT_ONCE, at_once
    try:
        actual = area.inside(Box(2, 3, 22, 25), cell)
    finally:
        module.AT_ONCE = old
    scaled = [[[(x / float(cell), y / float(cell)) for x, y in ring] for ring in rings] for rings in shapes]
    expected = [[naive(scaled, row + 0.5, column + 0.5) for column in range(3, 25)] for row in range(2, 22)]
    assert np.array_equal(actual, expected)


@given(polygons, st.integers(0, 15), st.integers(0, 15))
def test_a_cell_has_one_answer_in_every_box(shapes, y, x):
    area = Polygons.of([[np.array(ring) for ring in rings] for rings in shapes])
    for function in (area.inside, area.border):
        whole = function(Box(0, 0, 30, 30), Fraction(3, 2))
        part = function(Box(y, x, y + 9, x + 12), Fraction(3, 2))
        assert np.array_equal(part, whole[y : y + 9, x : x + 12])


def test_without_polygons_nothing_is_inside():
    assert not Polygons.of([]).inside(Box(0, 0, 3, 4), Fraction(1)).any()


# Files ---------------------------------------------------------------------------------------------------------------

SIZE = Size(100, 100)


def rectangle(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(*rings, name=None):
    properties = {} if name is None else {"classification": name}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": list(rings)}, "properties": properties}


def collection(*features):
    return json.dumps({"type": "FeatureCollection", "features": features})


def filled(*parts, without=()):
    expected = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in parts:
        expected[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in without:
        expected[y0:y1, x0:x1] = False
    return expected


@pytest.mark.parametrize(
    "ignored", [{"name": "Ignore*"}, {"name": "Ignore"}, {"names": ["ignore*"]}, "Ignore*", {"name": "Ignore*: pen"}]
)
def test_ignored_classes_are_not_tissue_also_within_it(tmp_path, ignored):
    path = tmp_path / "m.geojson"
    tissue = feature(rectangle(10, 20, 60, 70), name={"name": "Region*"})
    path.write_text(collection(tissue, feature(rectangle(30, 30, 50, 50), name=ignored)))
    mask = from_geojson(path, SIZE)
    assert np.array_equal(mask.inside(Box.of(SIZE), Fraction(1)), filled((10, 20, 60, 70), without=[(30, 30, 50, 50)]))
    assert not mask.touches(Box(30, 30, 50, 50), Fraction(1)), "what is ignored is not stained"
    assert mask.touches(Box(29, 30, 50, 50), Fraction(1))
    path.write_text(collection(feature(rectangle(30, 30, 50, 50), name=ignored)))
    with pytest.raises(MaskError, match="no polygon that is tissue"):
        from_geojson(path, SIZE)


def test_holes_and_overlaps(tmp_path):
    path = tmp_path / "m.geojson"
    path.write_text(
        collection(feature(rectangle(10, 10, 50, 50), rectangle(20, 20, 40, 40)), feature(rectangle(30, 30, 60, 60)))
    )
    expected = filled((10, 10, 50, 50), without=[(20, 20, 40, 40)]) | filled((30, 30, 60, 60))
    assert np.array_equal(from_geojson(path, SIZE).inside(Box.of(SIZE), Fraction(1)), expected)


@pytest.mark.parametrize("empty", [[], [[]], [[[5, 5]]], [[[5, 5], [6, 6]]]], ids=str)
def test_empty_polygons_are_skipped_and_counted(tmp_path, caplog, empty):
    path = tmp_path / "m.geojson"
    path.write_text(collection(feature(*empty), feature(rectangle(1, 2, 30, 40)), feature(*empty)))
    mask = from_geojson(path, SIZE)
    assert np.array_equal(mask.inside(Box.of(SIZE), Fraction(1)), filled((1, 2, 30, 40)))
    assert "skipped 2 empty polygons" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gzip"])
def test_files_of_other_programs_are_read(tmp_path, encoding):
    text = collection(feature(rectangle(1, 2, 30, 40)))
    path = tmp_path / "m.geojson"
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    assert np.array_equal(from_geojson(path, SIZE).inside(Box.of(SIZE), Fraction(1)), filled((1, 2, 30, 40)))


def test_an_outline_survives_a_file_and_a_journey(tmp_path):
    path = tmp_path / "m.geojson"
    rings = [[[10.25, 10], [50.125, 12.3], [33.1, 60.7]], [[20, 20], [30, 20], [25, 30]]]
    path.write_text(collection(feature(*rings), feature(rectangle(0, 0, 20, 20), name={"name": "Ignore*"})))
    mask = from_geojson(path, SIZE)
    to_geojson(mask, tmp_path / "again.geojson")
    again = from_geojson(tmp_path / "again.geojson", SIZE)
    for copy in (again, pickle.loads(pickle.dumps(mask))):
        for scale in (Fraction(1), Fraction(1, 3)):
            box = Box(0, 0, 90, 90)
            assert np.array_equal(copy.inside(box, scale), mask.inside(box, scale))
    assert pickle.loads(pickle.dumps(mask)) == mask
    path.write_text(collection(feature(rings[0])))
    assert from_geojson(path, SIZE) != mask


@pytest.mark.slow
def test_many_polygons_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    shape = 12 * np.stack([np.cos(angles), np.sin(angles)], 1)
    features = [feature((shape + centre).round(2).tolist()) for centre in rng.uniform(0, 40000, (20_000, 2))]
    path = tmp_path / "cells.geojson"
    path.write_text(collection(*features))
    start = time.process_time()
    mask = from_geojson(path, Size(40000, 40000))
    assert time.process_time() - start < 20, "1,000 times as long when every polygon is drawn on the whole grid"
    share = mask.inside(Box(0, 0, 4000, 4000), Fraction(10)).mean()
    assert share == pytest.approx(20_000 * np.pi * 12**2 / 40000**2, rel=0.05)
