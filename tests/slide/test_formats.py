"""Every format at every scale: pixels, place, µm/px, magnification, bounds; the same by every way of reading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from builders.formats.all import FORMATS
from builders.formats.picture import Built, displacement, picture, reduced
from builders.formats.table import HEAD, REAL
from click.testing import CliRunner

from wsi_stain.cli import group
from wsi_stain.geometry import Box
from wsi_stain.slide.slide import Slide

pytestmark = pytest.mark.formats
HALF = 0.5
"""Largest displacement of a level from level 0, in level-0 px."""


@pytest.fixture(scope="module", params=FORMATS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return FORMATS[request.param](tmp_path_factory.mktemp("slide"))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_every_scale_shows_the_same_place_with_the_same_colours(built: Built, factor: int) -> None:
    with Slide.open(built.path) as slide:
        view = slide.at(built.mpp * factor)
        pixels = view.read(Box.of(view.size))
        truth = reduced(built.truth, factor)
        h, w = truth.shape[:2]
        assert (view.size.h - h) in (0, 1)  # a view covers the last pixels, of which a scanner may drop a part
        assert (view.size.w - w) in (0, 1)
        scanned = (truth < 250).any(axis=2) | (pixels[:h, :w] < 250).any(axis=2)
        assert np.abs(pixels[:h, :w].astype(int) - truth)[scanned].mean() <= built.tolerance
        assert displacement(pixels, built.truth, factor) <= HALF


def test_every_level_of_the_file_lies_where_level_0_does(built: Built) -> None:
    with Slide.open(built.path) as slide:
        for level in slide.levels:
            if level.downsample.denominator == 1 and level.downsample <= 16:
                view = slide.at(built.mpp * int(level.downsample))
                pixels = view.read(Box.of(view.size))
                assert displacement(pixels, built.truth, int(level.downsample)) <= HALF


def test_scale_magnification_and_bounds_are_those_of_the_scanner(built: Built) -> None:
    with Slide.open(built.path) as slide:
        assert slide.mpp == pytest.approx(built.mpp, rel=1e-6)
        assert slide.magnification == built.magnification
        assert slide.bounds == built.bounds
        assert tuple(slide.size) == built.truth.shape[:2]
        assert (slide.plane is not None) == (built.planes > 1 and built.format in ("OME-TIFF", "Zeiss CZI"))


def test_info_and_an_identity_conversion_agree_with_the_slide(built: Built, tmp_path: Path) -> None:
    output = tmp_path / "a.ome.zarr"
    run = CliRunner()
    metadata = json.loads(run.invoke(group, ["info", str(built.path), "--json"], catch_exceptions=False).stdout)
    h, w = built.truth.shape[:2]
    assert metadata["size_px"] == f"{w} × {h}"
    assert metadata["mpp"] == pytest.approx(built.mpp)
    command = ["convert", str(built.path), "--model", "identity", "--mask", "none", "-o", str(output), "--workers", "0"]
    run.invoke(group, command, catch_exceptions=False)
    array = zarr.open_array(output / "0", mode="r")
    with Slide.open(built.path) as slide:
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), slide.at(None).read(Box.of(slide.size)))
    record = json.loads((tmp_path / "a.ome.zarr.run.json").read_text())
    assert record["fingerprint"]["region"] == [0, 0, w, h]
    assert record["slide"].get("bounds") == (None if built.bounds is None else list(built.bounds))


def test_the_page_of_formats_has_a_line_for_each() -> None:
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text()
    assert page.startswith(HEAD)
    assert page.count("\n| ") - 1 == len(FORMATS)  # without the heading
    assert " not " not in page[len(HEAD) : page.index(REAL)]


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_the_measure_finds_a_displacement(factor: int) -> None:
    moved = picture(1032, 1032)[3:1027, 2:1026]
    assert displacement(reduced(moved, factor), picture(1032, 1032)[:1024, :1024], factor) == pytest.approx(3, abs=0.1)
