"""What a conversion does once and not twice: decode, generate, own the device."""

import json
import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from builders.conversions import InvertAndBlur, pixels_of, request_of
from builders.slides import tissue, write_svs

from wsi_stain.config.convert import ConvertConfig
from wsi_stain.conversion import painter
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.survey import Survey
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import IdentityGenerator
from wsi_stain.output.canvas import BlockStore
from wsi_stain.output.pyramid import Pyramid
from wsi_stain.output.tile_store import TileStore
from wsi_stain.slide.readers.tiff import TiffBackend
from wsi_stain.tiling.cache import StainedTileCache
from wsi_stain.tiling.grid import TileGrid, painting_order

MOST_REPEATED = 0.03
"""Tiles computed more than once, as a share of all (the design's promise)."""


# Decoding ------------------------------------------------------------------------------------------------------------

VIEWS = {
    "the slide's own pixels": (None, []),
    "tiles across the slide's tiles": (None, ["grid.tile=300", "grid.overlap=50"]),
    "half the scale": (0.5, []),
    "an odd scale": (0.61, ["grid.tile=320", "grid.overlap=64"]),
}


def islands(path):
    """A mask of two parts of one block, far apart."""
    corners = [[[[x, y], [x + 250, y], [x + 250, y + 90], [x, y + 90], [x, y]]] for x, y in ((20, 20), (600, 800))]
    path.write_text(json.dumps({"type": "MultiPolygon", "coordinates": corners}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["all", "two islands"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_block_decodes_each_tile_of_the_slide_once(tmp_path, use, monkeypatch, view, masked):
    mpp, keys = VIEWS[view]
    use(InvertAndBlur, mpp=mpp)
    decoded, most = Counter(), []
    decode, paint = TiffBackend._decode, painter.Painter.paint

    def counting(self, source, level, index):
        decoded[level, index] += 1
        return decode(self, source, level, index)

    def painting(self, block):
        decoded.clear()
        report = paint(self, block)
        most.append(max(decoded.values(), default=0))
        return report

    slide = write_svs(tmp_path / "s.svs", tissue(1700, 1500))
    mask = islands(tmp_path / "m.geojson") if masked else "none"
    request = request_of(slide, tmp_path / "x.ome.tiff", "grid.block=1024", *keys, mask=mask)
    monkeypatch.setattr(TiffBackend, "_decode", counting)
    monkeypatch.setattr(painter.Painter, "paint", painting)
    convert(request)
    assert max(most) == 1


# Generating ----------------------------------------------------------------------------------------------------------


def repeated(size: Size, tile: int, overlap: int, order) -> float:
    """Tiles generated more than once, as a share of all, by a worker with the default cache; no pixel is touched."""
    config = ConvertConfig()
    grid, cache = TileGrid(size, tile, overlap, block=config.grid.block), StainedTileCache(config.cache_mib << 20)
    pixels = np.broadcast_to(np.uint8(0), (tile, tile, 3))
    generated = 0
    for block in order(grid.blocks()):
        for box in block.tiles:
            if cache.take(box) is None:
                generated += 1
                cache.keep(box, pixels, len(grid.users(box)) - 1)
    return generated / grid.count(Box.of(size)) - 1


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "overlap"), [(512, 128), (512, 256), (1024, 256)])
@pytest.mark.parametrize("size", [Size(50_000, 150_000), Size(150_000, 50_000), Size(45_000, 45_000)])
def test_tiles_between_blocks_are_kept_on_slides_of_any_shape(size, tile, overlap):
    assert repeated(size, tile, overlap, painting_order) <= MOST_REPEATED


def test_rows_of_a_wide_slide_would_not_fit_into_the_cache():
    assert repeated(Size(50_000, 150_000), 512, 256, list) > 2 * MOST_REPEATED


def test_the_order_of_painting_runs_along_the_shorter_side_and_loses_no_block():
    wide, tall = (TileGrid(size, 512, 128, block=512).blocks() for size in (Size(1500, 3000), Size(3000, 1500)))
    assert [block.index for block in painting_order(wide)][:4] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert painting_order(tall) == tall
    assert sorted(painting_order(wide), key=lambda block: block.index) == wide
    assert painting_order([]) == []


class Killed(IdentityGenerator):
    """Fails at one of its calls, for good; counts the tiles that it made."""

    at, calls, made = 0, 0, 0

    def __call__(self, tiles):
        Killed.calls += 1
        if Killed.calls == Killed.at:
            raise ValueError("killed")
        Killed.made += len(tiles)
        return 255 - tiles


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_generator_makes_no_tile_again_after_an_interruption(tmp_path, use, monkeypatch, workers):
    use(Killed)
    slide = write_svs(tmp_path / "s.svs", tissue(1500, 1300))
    monkeypatch.setattr(Killed, "at", 0)
    whole = convert(request_of(slide, tmp_path / "whole.ome.zarr"))
    monkeypatch.setattr(painter, "SLOW_S", 0.0)
    monkeypatch.setattr(Killed, "made", 0)
    request = request_of(slide, tmp_path / "x.ome.zarr", "batch=1", "certificate=false", workers=workers)
    for at in (50, 7, 61):
        monkeypatch.setattr(Killed, "calls", 0)
        monkeypatch.setattr(Killed, "at", at)
        with pytest.raises(ValueError, match="killed"):
            convert(request)
    shelved = sorted((tmp_path / "x.ome.zarr.spool").glob("t_*"))
    assert 0 < len(shelved) < 100  # those of unpainted blocks, and no others
    monkeypatch.setattr(Killed, "at", 0)
    resumed = convert(request)
    assert Killed.made == resumed.record["tiles"]["all"] > 200
    assert np.array_equal(pixels_of(resumed.output), pixels_of(whole.output))
    assert not (tmp_path / "x.ome.zarr.spool").exists()


def test_a_damaged_tile_on_the_shelf_is_generated_again(tmp_path):
    store = BlockStore(tmp_path, Pyramid(Size(512, 512), 512), (243, 243, 243))
    tile_store, pixels, box = TileStore(store), tissue(64, 64), Box(384, 768, 448, 832)
    assert tile_store.take(box, like=pixels) is None
    tile_store.put(box, pixels)
    assert np.array_equal(TileStore(store).take(box, like=pixels), pixels)
    path = tmp_path / "t_384_768"
    content = path.read_bytes()
    for damaged in (b"", content[:3], content[:-1], content[:50] + bytes([content[50] ^ 1]) + content[51:]):
        path.write_bytes(damaged)
        assert tile_store.take(box, like=pixels) is None
    tile_store.clear([box, box])
    assert not path.exists()


# The device ----------------------------------------------------------------------------------------------------------


def test_a_thread_holds_the_device_for_its_whole_block(tmp_path, use):
    calls = []

    class Noting(InvertAndBlur):
        def __call__(self, tiles):
            calls.append(threading.get_ident())
            return super().__call__(tiles)

    use(Noting)
    slide = write_svs(tmp_path / "s.svs", tissue(1500, 1300))
    result = convert(request_of(slide, tmp_path / "x.ome.tiff", "batch=1", "certificate=false", workers=3))
    changes = sum(a != b for a, b in pairwise(calls))
    assert len(calls) == result.record["tiles"]["all"] > 100
    assert changes < result.record["blocks"]["all"]


def test_what_is_under_way_when_a_run_fails_ends_before_its_next_batch(tmp_path, use):
    calls = []

    class Failing(IdentityGenerator):
        def __call__(self, tiles):
            calls.append(len(tiles))
            if len(calls) == 3:
                painter.release(job)
            return tiles

    use(Failing)
    slide = write_svs(tmp_path / "s.svs", tissue(700, 600))
    job = Job.of(Survey.of(request_of(slide, tmp_path / "x.ome.tiff", "batch=1")))
    block = job.grid.blocks()[0]
    (tmp_path / "x.ome.tiff.spool").mkdir()
    with pytest.raises(painter.CancelledError):
        painter.stain_block(job, block)
    assert len(calls) == 3 < len(block.tiles)
    assert list((tmp_path / "x.ome.tiff.spool").iterdir()) == []


def test_the_record_and_the_events_tell_who_was_busy(tmp_path, use):
    use(InvertAndBlur)
    events = []
    slide = write_svs(tmp_path / "s.svs", tissue(1500, 1300))
    record = convert(request_of(slide, tmp_path / "x.ome.tiff", workers=2), events.append).record
    assert 1 <= record["threads"] <= 2
    assert set(record["shares"]) == {"read", "wait", "generate", "blend", "certify", "write"}
    assert 0.5 < sum(record["shares"].values()) <= 1.01
    assert 0 < record["device_busy"] <= 1
    assert record["device_busy"] == pytest.approx(record["seconds"]["threads"]["generate"] / record["seconds"]["stain"])
    last = [event for event in events if event.stage == "stain"][-1]
    assert last.shares["generate"] == pytest.approx(record["shares"]["generate"], rel=0.2)
    assert last.device_busy == pytest.approx(record["device_busy"], rel=0.2)
