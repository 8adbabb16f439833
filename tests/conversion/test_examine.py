"""Seams of any tool are found at their period and offset; tissue, JPEG and the scan are not taken for seams."""

import json

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from wsi_stain import phantom
from wsi_stain.cli import group
from wsi_stain.conversion import examine as module
from wsi_stain.conversion.examine import examine
from wsi_stain.conversion.grid_search import LUMA, PIECE, Lines, at_grid, search
from wsi_stain.conversion.seams import REACH, SHIFTS, TileBoundary, sharpness, steps
from wsi_stain.errors import ConfigError, SlideError
from wsi_stain.geometry import Box, Size

SIDE = 1792


@pytest.fixture(scope="module")
def field():
    """Drawn tissue, uint8 (SIDE, SIDE, 3)."""
    return phantom.render(Box.at(1024, 1024, Size(SIDE, SIDE)), size=Size(4096, 4096), mpp=1.0, seed=2)


def with_steps(image, period, offset, step):
    """Every other column of tiles is brighter by `step` grey levels, dithered if that is no whole number."""
    columns = (np.arange(image.shape[1]) + period - offset) // period % 2
    dither = np.random.default_rng(1).random(image.shape[:2])[..., None]
    return np.clip(image + step * columns[:, None] + dither, 0, 255).astype(np.uint8)


def jpeg(image, tile):
    """Decoded JPEG tiles, 4:2:0."""
    out = np.empty_like(image)
    for y in range(0, image.shape[0], tile):
        for x in range(0, image.shape[1], tile):
            part = np.ascontiguousarray(image[y : y + tile, x : x + tile])
            data = imagecodecs.jpeg8_encode(part, level=75, colorspace="RGB", outcolorspace="YCBCR", subsampling=(2, 2))
            out[y : y + tile, x : x + tile] = imagecodecs.jpeg8_decode(data, colorspace="YCBCR", outcolorspace="RGB")
    return out


def columns_of(image):
    """The steps between the columns of an image that is tissue everywhere."""
    lines = Lines(image.shape[1])
    pieces = np.ones((image.shape[0] // PIECE, image.shape[1] - 2 * REACH), bool)
    lines.add(image @ LUMA, REACH, pieces)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(("period", "offset"), [(256, 0), (448, 37), (512, 100)])
def test_period_offset_and_size_of_seams_are_found(field, period, offset):
    result = search(columns_of(with_steps(field, period, offset, 8)))
    assert result.is_seam
    assert (result.period, result.offset) == (period, offset)
    assert result.step == pytest.approx(8, rel=0.25)


def test_small_seams_are_found_where_lines_are_many(field):
    result = search(columns_of(with_steps(field, 256, 0, 2)))
    assert (result.is_seam, result.period, result.offset) == (True, 256, 0)
    assert result.step == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("tile", [None, 256, 512])
def test_tissue_without_seams_gives_no_alarm_as_it_is_and_as_jpeg(field, tile):
    image = field if tile is None else jpeg(field, tile)
    lines = columns_of(image)
    assert not search(lines).is_seam
    assert not at_grid(lines, 256, 256, 2).is_seam, "not at the borders of the JPEG tiles, either"


def test_a_step_of_half_a_level_is_below_the_texture_of_tissue_and_found_where_it_is_smooth(field):
    assert not search(columns_of(with_steps(field, 256, 0, 0.5))).is_seam
    smooth = cv2.GaussianBlur(field, (0, 0), 16)
    result = search(columns_of(with_steps(smooth, 256, 0, 0.5)))
    assert (result.is_seam, result.period, result.offset) == (True, 256, 0)
    assert result.step == pytest.approx(0.5, rel=0.25)


def test_seams_are_found_through_jpeg(field):
    result = search(columns_of(jpeg(with_steps(field, 448, 36, 8), 256)))
    assert (result.is_seam, result.period, result.offset) == (True, 448, 36)


def test_a_few_lines_that_are_not_periodic_are_no_grid(field):
    image = field.copy()
    image[:, 700:] = np.clip(image[:, 700:].astype(int) - 25, 0, 255)  # the edge of a fold
    image[:, 1203:1204] = 40  # a scratch
    assert not search(columns_of(image)).is_seam


def test_a_known_grid_needs_less_than_an_unknown_one(field):
    lines = columns_of(with_steps(field, 448, 64, 2))
    known, unknown = at_grid(lines, 448, 64, 2), search(lines)
    assert known.is_seam
    assert known.limit < unknown.limit


@pytest.mark.parametrize("offset", [0, 100])
def test_a_known_period_is_found_wherever_it_begins(slides, field, tmp_path, offset):
    stain = write(tmp_path / "x.tif", with_steps(255 - (255 - field[..., ::-1]) // 2, 256, offset, 8))
    columns, rows = examine(stain, slides["he"], tile=320, overlap=64).axes
    assert (columns.is_seam, columns.virtual.period, columns.virtual.offset % 256) == (True, 256, offset)
    assert not rows.is_seam


def test_the_certificate_and_the_search_measure_the_same_step(field):
    line = TileBoundary(1, 512, 256, 256 + 640)
    pixels = field[line.box.slices()]
    along = sharpness(pixels, 64).mean((0, 2))
    assert steps(pixels, line, SHIFTS) == [pytest.approx(along[REACH + s - 2]) for s in (0, *SHIFTS)]


def write(path, image):
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", resolution=(10000, 10000), resolutionunit=3)
    return path


@pytest.fixture
def slides(field, tmp_path):
    """An H&E; a stain with seams between columns; one without; and an H&E with the same seams."""
    stain = 255 - (255 - field[..., ::-1]) // 2
    return {
        "he": write(tmp_path / "he.tif", field),
        "seams": write(tmp_path / "seams.tif", with_steps(stain, 448, 64, 6)),
        "clean": write(tmp_path / "clean.tif", stain),
        "striped": write(tmp_path / "striped.tif", with_steps(field, 448, 64, 6)),
    }


@pytest.mark.slow
def test_the_command_names_the_grid_and_draws_it(slides, tmp_path):
    run = CliRunner().invoke
    picture = tmp_path / "p.png"
    arguments = ["seams", str(slides["seams"]), "--he", str(slides["he"])]
    result = run(group, [*arguments, "-o", str(picture)], standalone_mode=False)
    assert result.return_value == 1
    columns, rows, verdict = result.output.splitlines()
    assert columns.startswith("columns: SEAMS every 448 px from 64")
    assert rows.startswith("rows: no seams")
    assert verdict == "seams.tif: SEAMS"
    assert cv2.imread(str(picture)).shape[1] > 800
    again = run(group, [*arguments, "-o", str(picture)], standalone_mode=False)
    assert "already exists" in str(again.exception)
    result = run(group, [*arguments, "--tile", "512", "--overlap", "64", "--json"], standalone_mode=False)
    assert (result.return_value, json.loads(result.output)["axes"][0]["virtual"]["period"]) == (1, 448)
    clean = run(group, ["seams", str(slides["clean"]), "--he", str(slides["he"])], standalone_mode=False)
    assert clean.return_value == 0
    assert "SEAMS" not in clean.output


def test_steps_of_the_scan_are_not_those_of_the_stain(slides):
    report = examine(slides["seams"], slides["striped"]).axes[0]
    assert (report.virtual.is_seam, report.he.is_seam, report.is_seam) == (True, True, False)
    assert "the H&E has them, too" in report.sentence


@pytest.mark.parametrize("cut", [(1024 + 76, 1400), (1400, 1024 + 76)])
def test_boxes_at_the_edge_of_a_slide_may_be_narrow(field, tmp_path, cut):
    part = field[: cut[0], : cut[1]]
    he, stain = write(tmp_path / "he.tif", part), write(tmp_path / "x.tif", with_steps(part, 256, 0, 8))
    columns, rows = examine(stain, he, tile=256).axes
    assert (columns.is_seam, rows.is_seam) == (True, False)
    small = write(tmp_path / "small.tif", field[:90, :300])
    with pytest.raises(SlideError, match="too little tissue"):
        examine(small, small)


def test_what_cannot_be_judged_is_refused(slides, tmp_path, field, monkeypatch):
    with pytest.raises(ConfigError, match="--overlap needs --tile"):
        examine(slides["seams"], slides["he"], overlap=3)
    with pytest.raises(ConfigError, match="must be at least 0 and smaller"):
        examine(slides["seams"], slides["he"], tile=64, overlap=64)
    with pytest.raises(SlideError, match="no line of a grid with --tile 4096"):
        examine(slides["seams"], slides["he"], tile=4096)
    with monkeypatch.context() as patch:
        patch.setattr(module, "provenance", lambda path: {"region": "100,100,1792,1792"})
        with pytest.raises(SlideError, match=r"was made from a region that lies outside of he\.tif"):
            examine(slides["seams"], slides["he"])
    with pytest.raises(SlideError, match="has another shape"):
        examine(slides["seams"], write(tmp_path / "cut.tif", field[:1000]))
    glass = write(tmp_path / "glass.tif", np.full_like(field, 240))
    with pytest.raises(SlideError, match="too little tissue"):
        examine(slides["seams"], glass)
