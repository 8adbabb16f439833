"""The lazy virtual slide: right pixels, each block stained once, in the canvas of `convert`."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from builders.conversions import InvertAndBlur, digest, noise, pixels_of, request_of, write_slide

from wsi_stain.conversion.engine import convert
from wsi_stain.errors import InUse, OutputError, SlideError
from wsi_stain.geometry import Box
from wsi_stain.view.virtual import VirtualSlide


def slide_of(folder, h=1300, w=1700):
    return write_slide(folder / "s.tif", noise(h, w))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
@pytest.mark.parametrize("block", [512, 1024])
def test_every_level_is_that_of_a_conversion(tmp_path, use, ending, block):
    use(InvertAndBlur)
    slide = slide_of(tmp_path, 2300, 2700)
    keys = [f"grid.block={block}"]
    output = convert(request_of(slide, tmp_path / f"a.{ending}", *keys)).output
    with VirtualSlide(request_of(slide, tmp_path / f"b.{ending}", *keys)) as virtual:
        assert [level.size for level in virtual.levels][-1].h <= 512
        for level in reversed(range(len(virtual.levels))):
            expected = pixels_of(output, level)
            size = virtual.levels[level].size
            assert expected.shape == (*size, 3)
            np.testing.assert_array_equal(virtual.read(level, Box.of(size)), expected)
            part = Box(size.h // 3, size.w // 4, size.h - 5, size.w - 7)
            np.testing.assert_array_equal(virtual.read(level, part), expected[part.slices()])


def test_a_block_is_stained_once_whoever_asks(tmp_path, use, painted):
    use(InvertAndBlur)
    with VirtualSlide(request_of(slide_of(tmp_path), tmp_path / "a.ome.tiff")) as virtual:
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(lambda _: virtual.read(0, Box(100, 100, 700, 400)), range(6)))
        assert sorted(painted) == [(0, 0), (1, 0)]
        assert all(np.array_equal(results[0], other) for other in results)
        assert virtual.share_painted == pytest.approx(2 / 12)
    with VirtualSlide(request_of(tmp_path / "s.tif", tmp_path / "a.ome.tiff")) as virtual:
        virtual.read(0, Box(0, 0, 512, 600))
    assert sorted(painted) == [(0, 0), (0, 1), (1, 0)], "a block of an earlier session is not stained again"


@pytest.mark.slow
def test_one_chunk_of_dask_stains_one_block(tmp_path, use, painted):
    use(InvertAndBlur)
    slide = slide_of(tmp_path)
    with VirtualSlide(request_of(slide, tmp_path / "a.ome.tiff")) as virtual:
        arrays = virtual.dask()
        assert painted == [], "making the arrays stains nothing"
        chunk = arrays[0].blocks[1, 2].compute()
        assert painted == [(1, 2)]
        np.testing.assert_array_equal(chunk, virtual.read(0, Box(512, 1024, 1024, 1536)))
        assert [a.shape for a in arrays] == [(*level.size, 3) for level in virtual.levels]
        whole = arrays[1].compute()
    np.testing.assert_array_equal(whole, pixels_of(convert(request_of(slide, tmp_path / "b.ome.tiff")).output, 1))


def test_the_graph_of_a_large_slide_is_small(tmp_path):
    class Huge:
        """A virtual slide of ten gigapixels."""

        levels = (type("Level", (), {"size": (100_000, 100_000)})(),)

    from wsi_stain.view.arrays import arrays

    [array] = arrays(Huge(), 2048)
    assert array.numblocks == (49, 49, 1)
    assert all(len(layer) <= 49 * 49 for layer in array.dask.layers.values())
    assert sum(type(layer).__name__ == "MaterializedLayer" for layer in array.dask.layers.values()) <= 1
    [small] = dask.optimize(array.blocks[3, 4])
    assert len(dict(small.__dask_graph__())) < 10


@pytest.mark.slow
def test_a_restarted_slide_replaces_the_output_when_it_is_saved(tmp_path, use):
    use(InvertAndBlur)
    slide = slide_of(tmp_path)
    output = tmp_path / "a.ome.tiff"
    stained = pixels_of(convert(request_of(slide, output)).output)
    slide = write_slide(tmp_path / "s.tif", 255 - pixels_of(slide))
    with VirtualSlide(request_of(slide, output, restart=True)) as virtual:
        read = virtual.read(0, Box(0, 0, 64, 64))
        assert not virtual.save().already_done
    assert not np.array_equal(pixels_of(output), stained)
    np.testing.assert_array_equal(pixels_of(output)[:64, :64], read)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_save_completes_what_was_read_to_the_same_bytes(tmp_path, use, painted, ending):
    use(InvertAndBlur)
    slide = slide_of(tmp_path)
    expected = digest(convert(request_of(slide, tmp_path / f"a.{ending}")).output)
    first = len(painted)
    (tmp_path / "b").mkdir()
    with VirtualSlide(request_of(slide, tmp_path / "b" / f"a.{ending}")) as virtual:
        before = virtual.read(0, Box(600, 600, 700, 700))
        assert virtual.save().output == tmp_path / "b" / f"a.{ending}"
        assert digest(virtual.output) == expected
        assert len(painted) - first == first, "what was read is not stained again"
        np.testing.assert_array_equal(virtual.read(0, Box(600, 600, 700, 700)), before)
        assert virtual.share_painted == 1


@pytest.mark.slow
def test_save_under_another_name(tmp_path, use, painted):
    use(InvertAndBlur)
    slide = slide_of(tmp_path)
    with VirtualSlide(request_of(slide, tmp_path / "a.ome.tiff")) as virtual:
        virtual.read(0, Box(0, 0, 10, 10))
        with pytest.raises(OutputError, match="cannot become"):
            virtual.save(tmp_path / "c.ome.zarr")
        virtual.save(tmp_path / "b.ome.tiff")
        assert virtual.output == tmp_path / "b.ome.tiff"
    assert len(painted) == 12
    assert sorted(p.name for p in tmp_path.iterdir() if "a.ome" in p.name) == []


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_the_store_is_an_ome_zarr_that_stains_what_is_read(tmp_path, use, painted, ending):
    use(InvertAndBlur)
    with VirtualSlide(request_of(slide_of(tmp_path), tmp_path / f"a.{ending}")) as virtual:
        group = zarr.open_group(virtual.store(), mode="r")
        scales = group.attrs["ome"]["multiscales"][0]
        assert [dataset["path"] for dataset in scales["datasets"]] == [str(n) for n in range(len(virtual.levels))]
        assert scales["axes"][1] == {"name": "y", "type": "space", "unit": "micrometer"}
        assert painted == []
        pixels = group["0"][:, 1100:1200, 1100:1500]
        assert painted == [(2, 2)]
        np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), virtual.read(0, Box(1100, 1100, 1200, 1500)))
        assert sorted(group.array_keys()) == [str(n) for n in range(len(virtual.levels))]
        with pytest.raises(ValueError, match="read-only"):
            asyncio.run(virtual.store().delete("0/zarr.json"))
        assert da.from_zarr(group["1"]).shape == (3, *virtual.levels[1].size)


@pytest.mark.slow
def test_a_second_one_reads_what_is_painted_and_says_who_paints(tmp_path, use, painted):
    use(InvertAndBlur)
    request = request_of(slide_of(tmp_path), tmp_path / "a.ome.tiff")
    with VirtualSlide(request) as first:
        pixels = first.read(0, Box(0, 0, 512, 512))
        with VirtualSlide(request) as second:
            assert "is in use by process" in second.blocked
            np.testing.assert_array_equal(second.read(0, Box(0, 0, 512, 512)), pixels)
            with pytest.raises(InUse, match="in use by process"):
                second.read(0, Box(0, 600, 10, 700))
            first.read(0, Box(0, 600, 10, 700))
            assert second.read(0, Box(0, 600, 10, 700)).shape == (10, 100, 3), "painted by the first meanwhile"
        with pytest.raises(InUse):
            convert(request)
        first.read(0, Box(0, 1100, 10, 1200))
    assert not (tmp_path / "a.ome.tiff.spool" / "lock").exists()
    assert convert(request).output.exists()
    assert len(painted) == len(set(painted)) == 12


def test_a_thumbnail_stains_nothing_and_shows_what_is_painted(tmp_path, use, painted):
    use(InvertAndBlur)
    with VirtualSlide(request_of(slide_of(tmp_path), tmp_path / "a.ome.tiff")) as virtual:
        pale = virtual.thumbnail(170)
        assert pale.shape == (130, 170, 3)
        assert pale.min() >= 2 * 235 // 3
        assert painted == []
        virtual.read(0, Box(0, 0, 512, 512))
        shown = virtual.thumbnail(170)
    assert painted == [(0, 0)]
    np.testing.assert_array_equal(shown[60:], pale[60:])
    assert np.abs(shown[:50, :50].astype(int) - pale[:50, :50]).mean() > 10


def test_looking_without_staining_leaves_nothing(tmp_path):
    request = request_of(slide_of(tmp_path), tmp_path / "a.ome.zarr")
    before = sorted(tmp_path.iterdir())
    with VirtualSlide(request) as virtual:
        virtual.thumbnail(100)
    assert sorted(tmp_path.iterdir()) == before


def test_boxes_and_levels_outside_are_refused(tmp_path):
    with VirtualSlide(request_of(slide_of(tmp_path), tmp_path / "a.ome.tiff")) as virtual:
        with pytest.raises(SlideError, match="levels 0 to 2"):
            virtual.read(3, Box(0, 0, 1, 1))
        for box in (Box(0, 0, 1301, 10), Box(-1, 0, 5, 5), Box(5, 5, 5, 9)):
            with pytest.raises(SlideError, match="is not inside level 0"):
                virtual.read(0, box)
    with pytest.raises(SlideError, match="is closed; open it again"):
        virtual.read(0, Box(0, 0, 5, 5))


def test_the_size_and_scale_are_the_model_s(tmp_path, use):
    use(InvertAndBlur, mpp=1.0)  # the slide has 0.5 µm/px
    with VirtualSlide(request_of(slide_of(tmp_path), tmp_path / "a.ome.tiff")) as virtual:
        assert (virtual.mpp, virtual.levels[0].size) == (1.0, (650, 850))


def test_tiles_stained_ahead_are_used_by_the_block(tmp_path, use):
    calls = []

    class Counted(InvertAndBlur):
        def __call__(self, tiles):
            calls.append((threading.current_thread().name, len(tiles)))
            return super().__call__(tiles)

    use(Counted)
    slide = slide_of(tmp_path)
    request = request_of(slide, tmp_path / "a.ome.tiff", "certificate=false")
    with VirtualSlide(request) as virtual:
        painting = virtual._painting
        block = painting.blocks[0, 0]
        tiles = painting.tiles_of(block)
        painting.stain_ahead(tiles[:3]).result()
        assert painting.is_ahead(tiles[0])
        assert not painting.is_ahead(tiles[3])
        painting.ensure([(0, 0)])
        assert sum(n for _, n in calls) == len(tiles), "no tile is generated twice"
        assert len({name for name, _ in calls}) == 1, "one thread alone runs the network"
        pixels = virtual.read(0, Box(0, 0, 512, 512))
    whole = pixels_of(convert(request_of(slide, tmp_path / "b.ome.tiff")).output)
    np.testing.assert_array_equal(pixels, whole[:512, :512])
