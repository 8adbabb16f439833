import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.errors import ConfigError
from wsi_stain.geometry import Box, Size
from wsi_stain.tiling.grid import TileGrid

settings.register_profile("wsi_stain", deadline=None)
settings.load_profile("wsi_stain")

sizes = st.builds(Size, st.integers(1, 120), st.integers(1, 120))


@st.composite
def grids(draw):
    multiple = draw(st.sampled_from([1, 2, 8]))
    overlap = multiple * draw(st.integers(0, 6))
    tile = 2 * overlap + multiple * draw(st.integers(8 // multiple, 40))
    return TileGrid(draw(sizes), tile, overlap, multiple), multiple


@st.composite
def parts(draw, size: Size) -> Box:
    y0, x0 = draw(st.integers(0, size.h - 1)), draw(st.integers(0, size.w - 1))
    return Box(y0, x0, draw(st.integers(y0 + 1, size.h)), draw(st.integers(x0 + 1, size.w)))


@given(grids())
def test_every_pixel_is_covered_by_one_to_four_tiles(made):
    grid, _ = made
    covered = np.zeros(grid.size, int)
    for tile in grid.tiles(Box.of(grid.size)):
        covered[(tile & Box.of(grid.size)).slices()] += 1
    assert covered.min() >= 1
    assert covered.max() <= 4


@given(grids())
def test_tiles_begin_at_multiples_and_each_is_needed(made):
    grid, multiple = made
    tiles = list(grid.tiles(Box.of(grid.size)))
    assert len(set(tiles)) == len(tiles) == grid.count(Box.of(grid.size))
    for tile in tiles:
        assert tile.size == (grid.tile, grid.tile)
        assert tile.y0 % grid.stride == tile.x0 % grid.stride == tile.y0 % multiple == tile.x0 % multiple == 0
        assert (tile & Box.of(grid.size)).area
        # A last tile whose pixels the one before it has all would be work for nothing.
        assert tile.y0 == 0 or tile.y0 + grid.overlap < grid.size.h
        assert tile.x0 == 0 or tile.x0 + grid.overlap < grid.size.w


@given(st.data())
def test_tiles_over_a_part_are_those_of_the_whole_that_touch_it(data):
    grid, _ = data.draw(grids())
    part = data.draw(parts(grid.size))
    assert list(grid.tiles(part)) == [t for t in grid.tiles(Box.of(grid.size)) if (t & part).area]
    assert grid.count(part) == len(list(grid.tiles(part)))


@st.composite
def partitions(draw):
    """A grid whose blocks partition a part of the image."""
    whole, multiple = draw(grids())
    region, block = draw(parts(whole.size)), draw(st.sampled_from([16, 64, 512]))
    return TileGrid(whole.size, whole.tile, whole.overlap, multiple, region=region, block=block)


@given(partitions())
def test_blocks_own_every_pixel_of_the_region_once(grid):
    region = grid.region
    owned = np.zeros(grid.size, int)
    for block in grid.blocks():
        owned[block.write.slices()] += 1
        assert block.write.y0 == region.y0 + block.index[0] * grid.block
        assert block.write.x0 == region.x0 + block.index[1] * grid.block
        assert block.tiles == tuple(grid.tiles(block.write))
        assert all(block.read.contains(tile) for tile in block.tiles)
        assert block.read.contains(block.write)
    assert (owned[region.slices()] == 1).all()
    assert owned.sum() == region.area


@given(partitions())
def test_every_tile_has_the_owner_and_the_users_of_its_naive_twin(grid):
    blocks, owned = grid.blocks(), []
    for tile in grid.tiles(grid.region):
        users = [block.index for block in blocks if (block.write & tile).area]  # row by row
        first = next(
            (y, x)
            for y in range(tile.y0, tile.y1)
            for x in range(tile.x0, tile.x1)
            if grid.region.contains(Box(y, x, y + 1, x + 1))
        )
        owner = next(block for block in blocks if block.write.contains(Box.at(*first, Size(1, 1))))
        assert grid.users(tile) == users
        assert grid.owner(tile) == owner.index == users[0]
        assert tile in grid.owned(owner)
        owned.append(tile)
    assert sorted(tile for block in blocks for tile in grid.owned(block)) == sorted(owned)
    assert len(owned) == grid.count(grid.region)


@given(partitions())
def test_the_frame_of_the_output_begins_at_the_region(grid):
    assert grid.in_output(grid.region) == Box.of(grid.region.size)
    for block in grid.blocks():
        inside = grid.in_output(block.write)
        assert Box.of(grid.region.size).contains(inside)
        assert (inside.y0, inside.x0) == (block.index[0] * grid.block, block.index[1] * grid.block)


def test_without_a_region_one_block_covers_the_image():
    (block,) = TileGrid(Size(300, 70), 64, 16).blocks()
    assert (block.index, block.write) == ((0, 0), Box(0, 0, 300, 70))


def test_a_grid_is_a_value():
    grid = TileGrid(Size(300, 70), 64, 16, region=Box(1, 2, 30, 40), block=16)
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert hash(grid) == hash(TileGrid(Size(300, 70), 64, 16, region=Box(1, 2, 30, 40), block=16))
    assert grid != TileGrid(Size(300, 70), 64, 16, region=Box(1, 2, 30, 40), block=32)
    with pytest.raises(AttributeError):
        grid.tile = 32


def test_a_slide_smaller_than_a_tile_has_one_that_reaches_outside():
    assert list(TileGrid(Size(3, 5), 512, 128).tiles(Box(0, 0, 3, 5))) == [Box(0, 0, 512, 512)]


@pytest.mark.parametrize(
    ("tile", "overlap", "multiple", "says"),
    [
        (512, 257, 1, "between 0 and 256"),
        (512, -1, 1, "between 0 and 256"),
        (500, 128, 32, "multiples of 32"),
        (512, 100, 32, "multiples of 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_rule(tile, overlap, multiple, says):
    with pytest.raises(ConfigError, match=says):
        TileGrid(Size(1000, 1000), tile, overlap, multiple)
