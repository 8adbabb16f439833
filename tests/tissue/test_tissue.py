import json
import pickle
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_stain import phantom
from wsi_stain.errors import MaskError
from wsi_stain.geometry import Box, Size
from wsi_stain.tissue import geojson
from wsi_stain.tissue.detect import find_tissue, tissue_in
from wsi_stain.tissue.mask import TissueMask, everything, from_geojson, to_geojson
from wsi_stain.tissue.outline import TOLERANCE_PX, Polygons

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
BACKGROUND = 243


class FakeSlide:
    """A slide of one picture."""

    def __init__(self, pixels: np.ndarray, mpp: float | None) -> None:
        self.pixels, self.mpp_or_none = pixels, mpp
        self.size = Size(*pixels.shape[:2])

    def thumbnail_and_damage(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        share = longest / max(self.size)
        size = tuple(max(1, round(n * share)) for n in reversed(self.size))
        return cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), np.zeros(size[::-1], bool)


def touched(rings: list[np.ndarray], grid: Size) -> np.ndarray:
    """The cells of 1 px that a polygon touches."""
    polygons = Polygons.of([rings])
    return polygons.inside(Box.of(grid), Fraction(1)) | polygons.border(Box.of(grid), Fraction(1))


def background(h: int = 300, w: int = 400) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1.0, (h, w, 3))
    return np.clip(BACKGROUND + noise, 0, 255).astype(np.uint8)


def with_tissue(pixels: np.ndarray, centre: tuple[int, int] = (200, 150), radius: int = 60) -> np.ndarray:
    cv2.circle(pixels, centre, radius, (205, 150, 195), -1)
    return pixels


# The mask


@settings(deadline=None)
@given(
    masks,
    st.fractions("1/3", 9, max_denominator=40),
    st.fractions("1/5", 40, max_denominator=40),
    st.tuples(*[st.integers(-40, 40)] * 4),
)
def test_touches_says_whether_any_overlapped_cell_holds_tissue(array, cell, scale, corners):
    y0, x0, h, w = corners[0], corners[1], abs(corners[2]), abs(corners[3])
    box = Box(y0, x0, y0 + h, x0 + w)
    top, left, bottom, right = (n * scale / cell for n in box)
    cells = np.argwhere(array).tolist() if box.area else []
    naive = any(top < r + 1 and bottom > r and left < c + 1 and right > c for r, c in cells)
    assert TissueMask(array, cell).touches(box, scale) == naive


def test_a_box_that_only_meets_a_tissue_cell_at_its_border_does_not_touch_it():
    mask = TissueMask(np.array([[False, True]]), Fraction(75, 2))
    assert not mask.touches(Box(0, 0, 10, 25), Fraction(3, 2))
    assert mask.touches(Box(0, 0, 10, 26), Fraction(3, 2))


def test_everything_touches_all_of_the_slide_and_nothing_beyond():
    mask = everything(Size(100, 300))
    assert mask.fraction == 1
    assert mask.touches(Box(99, 299, 100, 300), Fraction(1))
    assert not mask.touches(Box(0, 300, 10, 310), Fraction(1))


@given(masks)
def test_a_mask_travels_and_keeps_its_identity(array):
    mask = TissueMask(array, Fraction(7, 3), Size(10, 10))
    again = pickle.loads(pickle.dumps(mask))
    assert again == mask
    assert hash(again) == hash(mask)
    assert np.array_equal(again.array, array)
    other = array.copy()
    other[0, 0] ^= True
    assert TissueMask(other, mask.scale).sha256 != mask.sha256
    assert TissueMask(array, Fraction(2)).sha256 != mask.sha256


def test_a_pickled_mask_is_small_even_after_use():
    mask = TissueMask(np.random.default_rng(0).random((1000, 1000)) > 0.5, Fraction(10))
    mask.touches(Box(0, 0, 9, 9), Fraction(1))
    assert len(pickle.dumps(mask)) < 130_000


# GeoJSON


@settings(deadline=None)
@given(masks, st.sampled_from([Fraction(1), Fraction(10), Fraction(75, 7), Fraction(1183, 64)]), st.booleans())
def test_a_written_mask_comes_back_as_the_same_mask(tmp_path_factory, array, cell, ragged):
    array[0, 0] = True
    whole = Size(*(int(n * cell) for n in array.shape))
    size = Size(*(max(1, int(n - cell / 2)) for n in whole)) if ragged else whole
    if Size(*(-(-n * cell.denominator // cell.numerator) for n in size)) != array.shape:
        return
    path = tmp_path_factory.mktemp("mask") / "tissue.geojson"
    to_geojson(TissueMask(array, cell, size), path)
    again = from_geojson(path, size)
    assert again.scale == cell
    assert np.array_equal(again.array, array)


@given(masks)
def test_outlines_enclose_just_the_cells(array):
    filled = np.zeros(array.shape, int)
    n_rings = 0
    for rings in geojson.outlines(array):
        n_rings += len(rings)
        filled += touched([r.astype(float) for r in rings], Size(*array.shape))
        signs = {np.sign(_area(r)) for r in rings[1:]}
        assert not signs & {np.sign(_area(rings[0]))}, "holes run the other way round"
    assert np.array_equal(filled, array.astype(int)), "every cell in one polygon, and no other"
    assert n_rings or not array.any()


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 15), st.floats(-3, 15)), min_size=3, max_size=7))
def test_a_cell_counts_when_the_polygon_touches_it(points):
    polygon = np.array(points)
    actual = touched([polygon], Size(12, 12))
    for row, col in np.ndindex(12, 12):
        if actual[row, col]:
            assert _centre_in(polygon, row, col) or _border_in(polygon, row, col, -1e-6)
        else:
            assert not _centre_in(polygon, row, col)
            assert not _border_in(polygon, row, col, 3 * TOLERANCE_PX)


def _centre_in(polygon: np.ndarray, row: int, col: int) -> bool:
    crossings = 0
    for (xa, ya), (xb, yb) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (ya < row + 0.5) != (yb < row + 0.5):
            crossings += xa + (row + 0.5 - ya) / (yb - ya) * (xb - xa) <= col + 0.5
    return crossings % 2 == 1


def _border_in(polygon: np.ndarray, row: int, col: int, inset: float) -> bool:
    """Whether an edge passes through the cell's inside, `inset` from its sides (Liang and Barsky 1984)."""
    for (xa, ya), (xb, yb) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        near, far = 0.0, 1.0
        for start, step, low in ((xa, xb - xa, col), (ya, yb - ya, row)):
            first, last = low + inset, low + 1 - inset
            if abs(step) < 1e-12:
                near, far = (near, far) if first < start < last else (1.0, 0.0)
                continue
            enter, leave = sorted(((first - start) / step, (last - start) / step))
            near, far = max(near, enter), min(far, leave)
        if near < far or (near == far and inset < 0):
            return True
    return False


SQUARE = [[10, 20], [30, 20], [30, 50], [10, 50], [10, 20]]
HOLE = [[15, 25], [25, 25], [25, 45], [15, 45], [15, 25]]


@pytest.mark.parametrize(
    "data",
    [
        {"type": "Polygon", "coordinates": [SQUARE, HOLE]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]}, "properties": {}},
        [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]}}],
        {
            "type": "FeatureCollection",
            "features": [
                {"type": "Feature", "geometry": {"type": "Point", "coordinates": [90, 90]}},
                {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[60, 60], [90, 90]]}},
                {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [SQUARE, HOLE]}},
            ],
        },
    ],
    ids=["polygon", "multipolygon", "feature", "list", "collection"],
)
def test_every_shape_of_an_export_gives_the_same_area(tmp_path, data):
    path = tmp_path / "export.geojson"
    path.write_text(json.dumps(data))
    mask = from_geojson(path, Size(100, 100))
    expected = np.zeros((100, 100), bool)
    expected[20:50, 10:30] = True
    expected[25:45, 15:25] = False
    assert np.array_equal(mask.array, expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "check the path"),
        ("not json", "not JSON"),
        ("\x80", "not JSON"),
        ('{"hello": 1}', "not GeoJSON"),
        ("3", "not GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, "a"], [1, 1], [2, 2]]]}', "not GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "no polygon"),
        ('{"type": "Polygon", "coordinates": []}', "no polygon"),
        ('{"type": "Polygon", "coordinates": [0, 1, 2]}', "not GeoJSON"),
        ("\x1f\x8b\x08\x00broken", "damaged gzip"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, NaN]]]}', "not GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon"),
        ('{"type": "Point", "coordinates": [5, 5]}', "no polygon"),
        ('{"type": "Polygon", "coordinates": [[[200, 0], [210, 0], [210, 9], [200, 0]]]}', "outside the slide"),
        ('{"type": "Polygon", "coordinates": [[[0, -20], [9, -20], [9, -2], [0, -20]]]}', "outside the slide"),
    ],
)
def test_a_file_that_is_no_mask_is_refused_in_a_sentence(tmp_path, text, words):
    path = tmp_path / "mask.geojson"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(MaskError, match=words) as caught:
        from_geojson(path, Size(100, 100))
    assert str(path) in str(caught.value)


def test_qupath_finds_a_tissue_annotation_with_closed_rings_within_the_slide(tmp_path):
    array = np.ones((4, 5), bool)
    array[1, 2] = False
    path = tmp_path / "tissue.geojson"
    to_geojson(TissueMask(array, Fraction(10), Size(38, 47)), path)
    (feature,) = json.loads(path.read_text())["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tissue"
    outer, hole = feature["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert sorted(map(tuple, outer[1:])) == [(0, 0), (0, 38), (47, 0), (47, 38)]
    assert sorted(map(tuple, hole[1:])) == [(20, 10), (20, 20), (30, 10), (30, 20)]


def test_an_empty_mask_is_written_as_an_empty_collection(tmp_path):
    path = tmp_path / "tissue.geojson"
    to_geojson(TissueMask(np.zeros((3, 3), bool), Fraction(10)), path)
    assert json.loads(path.read_text())["features"] == []


# Finding


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("side", "mpp"), [(1536, 2.0)])
def test_nearly_all_of_a_phantom_is_found_and_most_of_its_background_is_not(seed, side, mpp):
    size = Size(side, side)
    slide = FakeSlide(phantom.render(Box.of(size), size=size, mpp=mpp, seed=seed), mpp)
    truth = phantom.tissue(Box.of(size), size=size, mpp=mpp, seed=seed)
    mask = find_tissue(slide)
    cells = np.minimum((np.arange(side) / float(mask.scale)).astype(int), max(mask.array.shape) - 1)
    actual = mask.array[np.ix_(cells, cells)]
    assert actual[truth].mean() >= 0.995
    far = cv2.dilate(truth.astype(np.uint8), np.ones((3, 3)), iterations=round(100 / mpp)) == 0
    assert actual[far].mean() <= 0.01, "glass more than 100 µm from the tissue"
    assert truth.sum() / actual.sum() >= 0.75


def test_a_blank_slide_has_no_tissue():
    mask = find_tissue(FakeSlide(background(), 8.0))
    assert not mask.array.any()
    assert mask.fraction == 0


@pytest.mark.parametrize("colour", [(255, 255, 255), (243, 243, 243), (0, 0, 0)])
def test_a_slide_of_one_colour_has_no_tissue(colour):
    assert not tissue_in(np.full((64, 64, 3), colour, np.uint8), 10).any()


def test_a_slide_covered_by_tissue_is_nearly_all_in():
    size = Size(2048, 2048)
    pixels = phantom.render(Box(1024, 1024, 1500, 1500), size=size, mpp=2.0, seed=1)
    assert find_tissue(FakeSlide(pixels, 2.0)).fraction > 0.97


INKS = {
    "blue": (30, 50, 170),
    "green": (20, 130, 70),
    "black": (25, 25, 28),
    "red": (215, 25, 40),
    "cyan": (40, 160, 200),
}


@pytest.mark.parametrize("ink", INKS)
def test_pen_marks_stay_out_and_the_tissue_beside_them_in(ink):
    pixels = with_tissue(background())
    cv2.line(pixels, (20, 20), (380, 30), INKS[ink], 7, cv2.LINE_AA)
    cv2.circle(pixels, (200, 150), 100, INKS[ink], 5, cv2.LINE_AA)
    actual = tissue_in(cv2.GaussianBlur(pixels, (3, 3), 0), 10.0)
    tissue = cv2.circle(np.zeros(actual.shape, np.uint8), (200, 150), 60, 1, -1) > 0
    assert actual[tissue].all()
    assert actual[~tissue].mean() < 0.06
    assert not actual[15:40, 20:380].any()
    assert not actual[150, 296:304].any()


def test_the_black_outside_of_a_scan_stays_out():
    pixels = with_tissue(background())
    pixels[:, :60] = 0
    pixels[250:] = 5
    actual = tissue_in(cv2.GaussianBlur(pixels, (3, 3), 0), 10.0)
    assert actual[150, 200]
    assert not actual[:, :70].any()
    assert not actual[245:].any()


def test_white_filling_beside_greyer_glass_is_background_too():
    pixels = with_tissue(background())
    pixels[:, :180] = 255
    pixels = with_tissue(pixels, (300, 150), 40)
    actual = tissue_in(pixels, 10.0)
    assert actual[150, 300]
    assert actual.mean() < 0.35


def test_pale_tissue_is_in():
    pixels = background()
    cv2.circle(pixels, (200, 150), 60, (236, 226, 235), -1)
    actual = tissue_in(pixels, 10.0)
    assert actual[150, 150:250].all()
    assert actual.mean() < 0.2


def test_dust_is_out_and_a_small_biopsy_in():
    pixels = background()
    cv2.circle(pixels, (60, 60), 1, (120, 110, 120), -1)
    cv2.line(pixels, (100, 200), (300, 220), (205, 140, 190), 6)
    actual = tissue_in(pixels, 10.0)
    assert not actual[40:80, 40:80].any()
    assert actual[205:210, 150].all()


def test_the_grid_covers_slides_that_no_thumbnail_divides():
    for h, w in ((1001, 777), (350, 2999), (5, 4), (1, 1)):
        mask = find_tissue(FakeSlide(background(h, w), None))
        assert mask.array.shape[0] * mask.scale >= h
        assert mask.array.shape[1] * mask.scale >= w
        assert (mask.array.shape[0] - 1) * mask.scale < h
        assert (mask.array.shape[1] - 1) * mask.scale < w


# Real slides


def _opened(data, name, mpp):
    openslide = pytest.importorskip("openslide")

    class Real:
        def __init__(self):
            self.file = openslide.OpenSlide(data / "slides" / name)
            self.size, self.mpp_or_none = Size(*reversed(self.file.dimensions)), mpp

        def thumbnail_and_damage(self, longest):
            thumbnail = np.array(self.file.get_thumbnail((longest, longest)).convert("RGB"))
            return thumbnail, np.zeros(thumbnail.shape[:2], bool)

    return Real()


@pytest.mark.parametrize(
    ("name", "mpp", "share", "inside", "outside"),
    [
        # Points are (x, y) as shares of the slide: pale tissue, fat, tissue; then glass.
        (
            "whole_pancreas_HE.tif",
            1.0,
            (0.42, 0.58),
            [(0.40, 0.45), (0.255, 0.704), (0.7016, 0.8507), (0.893, 0.6637), (0.93, 0.91), (0.30, 0.55)],
            [(0.05, 0.05), (0.20, 0.95), (0.97, 0.20), (0.03, 0.80), (0.55, 0.755)],
        ),
        (
            "whole_stomach_HE.tif",
            0.2528,
            (0.55, 0.75),
            [(0.20, 0.50), (0.55, 0.55), (0.80, 0.60), (0.60, 0.10)],
            [(0.03, 0.05), (0.97, 0.95), (0.97, 0.05), (0.03, 0.95)],
        ),
        (
            "CMU-1-Small-Region.svs",
            0.499,
            (0.40, 0.62),
            [(0.45, 0.5), (0.1, 0.38), (0.45, 0.9)],
            [(0.1, 0.1), (0.1, 0.7)],
        ),
    ],
)
def test_real_slides(data, name, mpp, share, inside, outside):
    slide = _opened(data, name, mpp)
    mask = find_tissue(slide)
    assert share[0] < mask.fraction < share[1]

    def at(x, y):
        return Box.at(int(y * slide.size.h), int(x * slide.size.w), Size(1, 1))

    assert [p for p in inside if not mask.touches(at(*p), Fraction(1))] == []
    assert [p for p in outside if mask.touches(at(*p), Fraction(1))] == []
