import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.geometry import Size
from wsi_stain.tiling.blend import Blender, window
from wsi_stain.tiling.grid import TileGrid

settings.register_profile("wsi_stain", deadline=None)
settings.load_profile("wsi_stain")


@st.composite
def cases(draw):
    """A grid and one of its blocks, at edges and inside."""
    overlap = draw(st.integers(0, 20))
    tile = 2 * overlap + draw(st.integers(8, 40))
    size = Size(draw(st.integers(1, 150)), draw(st.integers(1, 150)))
    grid = TileGrid(size, tile, overlap, block=draw(st.integers(1, 90)))
    return grid, draw(st.sampled_from(grid.blocks()))


def blend(grid, block, outputs):
    blender = Blender(block.write, window(grid.tile, grid.overlap))
    for tile in block.tiles:
        blender.add(tile, outputs[tile])
    return blender.result()


def naive(grid, block, outputs):
    """The weighted mean in float64, pixel by pixel over whole arrays; no trick."""
    weights = window(grid.tile, grid.overlap).astype(np.float64)
    total, divisor = np.zeros((*block.write.size, 3)), np.zeros((*block.write.size, 1))
    for tile in block.tiles:
        inside = tile & block.write
        here = inside.shift(-block.write.y0, -block.write.x0).slices()
        there = inside.shift(-tile.y0, -tile.x0).slices()
        weight = np.outer(weights, weights)[there][..., None]
        total[here] += weight * outputs[tile][there]
        divisor[here] += weight
    return total / divisor


@given(cases(), st.integers(0, 2**32 - 1))
def test_equals_the_naive_mean(case, seed):
    grid, block = case
    rng = np.random.default_rng(seed)
    outputs = {t: rng.integers(0, 256, (grid.tile, grid.tile, 3), dtype=np.uint8) for t in block.tiles}
    got, exact = blend(grid, block, outputs), naive(grid, block, outputs)
    # float32 may fall on the other side of a half, never further.
    assert np.abs(got - exact).max() <= 0.5 + 1e-3


@given(cases(), st.integers(0, 2**32 - 1))
def test_identity_in_is_identity_out(case, seed):
    grid, block = case
    read = block.read
    image = np.random.default_rng(seed).integers(0, 256, (*read.size, 3), dtype=np.uint8)
    outputs = {t: image[t.shift(-read.y0, -read.x0).slices()] for t in block.tiles}
    assert np.array_equal(blend(grid, block, outputs), image[block.write.shift(-read.y0, -read.x0).slices()])


@pytest.mark.parametrize(("tile", "overlap"), [(512, 256), (512, 255), (1024, 512), (512, 1), (512, 128)])
def test_identity_holds_where_the_weights_are_smallest(tile, overlap):
    grid = TileGrid(Size(3 * tile, 3 * tile), tile, overlap)
    values = np.arange(256, dtype=np.uint8)
    image = np.resize(values, (4 * tile, 4 * tile))[..., None].repeat(3, axis=2)
    block = grid.blocks()[0]
    outputs = {t: image[t.slices()] for t in block.tiles}
    # The image's first corner has one tile with a weight of 1/65536.
    assert np.array_equal(blend(grid, block, outputs), image[: 3 * tile, : 3 * tile])


def test_constant_stays_constant_up_to_the_corner():
    grid = TileGrid(Size(100, 100), 64, 32)
    block = grid.blocks()[0]
    outputs = {t: np.full((64, 64, 3), 100, np.uint8) for t in block.tiles}
    assert (blend(grid, block, outputs) == 100).all()


@pytest.mark.parametrize("overlap", [20, 128, 255])
def test_order_of_the_tiles_does_not_change_a_pixel(overlap):
    # Which tile comes first is a matter of threads, caches and resumes, and the bytes must not be.
    grid = TileGrid(Size(1100, 1100), 512, overlap, block=1024)
    rng = np.random.default_rng(0)
    block = grid.blocks()[0]
    outputs = {t: rng.integers(0, 256, (512, 512, 3), dtype=np.uint8) for t in block.tiles}
    forwards, backwards = (Blender(block.write, window(512, overlap)) for _ in range(2))
    for tile in block.tiles:
        forwards.add(tile, outputs[tile])
    for tile in reversed(block.tiles):
        backwards.add(tile, outputs[tile])
    assert np.array_equal(forwards.result(), backwards.result())


@given(st.integers(0, 300).flatmap(lambda o: st.tuples(st.integers(max(1, 2 * o), 2 * o + 300), st.just(o))))
def test_window_is_positive_symmetric_and_sums_to_one_with_its_neighbour(case):
    tile, overlap = case
    weights = window(tile, overlap)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    assert np.array_equal(weights, weights[::-1])
    if overlap:
        assert (weights[:overlap] + weights[tile - overlap :] == 1).all()
        cosine = np.sin(np.pi * (np.arange(overlap) + 0.5) / (2 * overlap)) ** 2
        assert np.abs(weights[:overlap] - cosine).max() <= 1 / 256
    assert (weights[overlap : tile - overlap] == 1).all()


def test_a_forgotten_tile_is_our_mistake_and_not_a_wrong_pixel():
    grid = TileGrid(Size(200, 200), 64, 20)
    block = grid.blocks()[0]
    blender = Blender(block.write, window(64, 20))
    for tile in block.tiles[:-1]:
        blender.add(tile, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(AssertionError, match="every tile"):
        blender.result()


def test_blending_a_block_costs_little():
    grid = TileGrid(Size(8192, 8192), 512, 128, block=2048)
    block = grid.blocks()[5]
    pixels = np.full((512, 512, 3), 90, np.uint8)
    times = []
    for _ in range(3):
        start = time.thread_time()
        blend(grid, block, dict.fromkeys(block.tiles, pixels))
        times.append(time.thread_time() - start)
    assert min(times) < 0.4  # 0.05 s on a current core; a fall back to an inner axis of three costs 1 s
