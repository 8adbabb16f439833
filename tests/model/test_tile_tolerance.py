"""The distance of tiles from one pass: known answers, and agreement with blending written down anew."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders.runs import STAINER, restless
from hypothesis import given
from hypothesis import strategies as st

from wsi_stain.config.model import GeneratorConfig, TileTolerance
from wsi_stain.model.bundle import IDENTITY, Bundle, IdentityGenerator
from wsi_stain.model.tile_tolerance import MARGIN, field, measure, tolerance
from wsi_stain.nn.generator import Generator
from wsi_stain.nn.inference import TorchGenerator
from wsi_stain.tiling.blend import window


def bundle(tile: int, overlap: int, mpp: float | None = 1.0) -> Bundle:
    return Bundle(replace(IDENTITY, input=replace(IDENTITY.input, tile=tile, overlap=overlap, mpp=mpp)), None)


class Framing:
    """Paints the outermost pixels of whatever it gets black or white, ten grey levels away from the rest."""

    multiple = 1

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        out = np.full_like(tiles, 100)
        out[:, [0, -1]] = out[:, :, [0, -1]] = 110
        return out


class Averaging:
    """Paints a tile in its own mean colour: all depends on the tile."""

    multiple = 1

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        return np.broadcast_to(tiles.mean((1, 2), keepdims=True), tiles.shape).astype(np.uint8)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (96, 32), (64, 32)])
def test_a_generator_that_looks_at_single_pixels_has_no_seams(tile: int, overlap: int) -> None:
    assert measure(bundle(tile, overlap), IdentityGenerator()) == TileTolerance(0, 0, 0)


def test_without_overlap_a_frame_shows_on_two_lines_per_period() -> None:
    actual = measure(bundle(64, 0), Framing())
    share = 1 - (1 - 2 / 64) ** 2
    assert actual.mean == pytest.approx(10 * share)
    assert (actual.p99, actual.max) == (10, 10)
    assert measure(bundle(512, 0), Framing()).p99 == 0, "a seam of two pixels is no percentile: so there is a maximum"
    assert measure(bundle(512, 0), Framing()).max == 10


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (64, 32), (48, 10)])
def test_tiles_are_blended_as_a_weighted_mean_over_the_slide(tile: int, overlap: int) -> None:
    stride, weights = tile - overlap, window(tile, overlap).astype(np.float64)
    side = tile + 3 * stride  # more tiles than are needed, of the same grid
    pixels, painted, weight = field(bundle(tile, overlap), side), np.zeros((side, side, 3)), np.zeros((side, side, 1))
    both = np.multiply.outer(weights, weights)[..., None]
    for y in range(0, side - tile + 1, stride):
        for x in range(0, side - tile + 1, stride):
            place = slice(y, y + tile), slice(x, x + tile)
            painted[place] += both * Averaging()(pixels[place][None])[0]
            weight[place] += both
    inner = slice(tile // 2, tile // 2 + stride)
    tiled = np.rint(painted / weight)[inner, inner]
    apart = np.abs(tiled - Averaging()(pixels[None, : tile + stride, : tile + stride])[0, 0, 0])
    actual = measure(bundle(tile, overlap), Averaging())
    assert actual.mean == pytest.approx(apart.mean())
    assert actual.max == apart.max()
    assert apart.max() > 3, "the field must not be the same everywhere"


def test_overlap_brings_a_real_network_nearer_to_one_pass() -> None:
    torch.manual_seed(0)
    generator = TorchGenerator(restless(Generator(GeneratorConfig(**STAINER))), "cpu")  # type: ignore[arg-type]
    cut, blended = (measure(bundle(256, overlap), generator) for overlap in (0, 128))
    assert 0 < blended.mean < cut.mean / 2
    assert blended.max < cut.max / 2


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.05, 0.25, 1.0, None, 10.0])
def test_the_field_is_tissue_and_always_the_same(mpp: float | None) -> None:
    pixels = field(bundle(64, 0, mpp), 96)
    np.testing.assert_array_equal(pixels[:64, :64], field(bundle(64, 0, mpp), 64))
    assert pixels.std() > 8
    assert pixels.mean() < 235


@given(st.floats(0, 255), st.floats(0, 1), st.floats(0, 1))
def test_a_tolerance_covers_what_was_measured_with_its_margin_and_little_more(
    most: float, p99: float, mean: float
) -> None:
    measured = TileTolerance(mean * p99 * most, math.floor(p99 * most), most)
    tolerated = tolerance(measured)
    assert MARGIN * measured.mean <= tolerated.mean < MARGIN * measured.mean + 0.010001
    for name in ("p99", "max"):
        exact = MARGIN * getattr(measured, name)
        assert exact <= getattr(tolerated, name) <= exact + 1
        assert getattr(tolerated, name) >= 1, "another machine may round one pixel otherwise"
