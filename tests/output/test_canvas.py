import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
from itertools import pairwise

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.config.convert import OutputConfig
from wsi_stain.errors import OutputError
from wsi_stain.files.lock import locked
from wsi_stain.geometry import Box, Size
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.output.ometiff.xml import REQUIRED
from wsi_stain.output.pyramid import Pyramid, halve, level_sizes
from wsi_stain.output.tiff_canvas import TiffCanvas
from wsi_stain.output.zarr_canvas import ZarrCanvas
from wsi_stain.tiling.grid import TileGrid

settings.register_profile("wsi_stain", deadline=None)
settings.load_profile("wsi_stain")

BACKGROUND = (243, 242, 241)
RUN = {"source_sha256": "a", "tile": 512}


def naive_halve(pixels):
    h, w = pixels.shape[:2]
    wide = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge").astype(int)
    return ((wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2] + 2) >> 2).astype(np.uint8)


def naive_pyramid(pixels):
    levels = [pixels]
    while max(levels[-1].shape) > 512:
        levels.append(naive_halve(levels[-1]))
    return levels


def noise(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def spec_of(folder, size, block, *, name="x.ome.tiff", background=BACKGROUND, compression="deflate", mpp=0.5):
    return CanvasSpec(
        folder / name, Size(*size), block, background, OutputConfig(compression=compression), mpp, (("notice", "N"),)
    )


def blocks_of(spec):
    return TileGrid(spec.size, 512, 0, block=spec.block).blocks()


def paint(canvas, spec, image, background=()):
    """Paint all that is missing; blocks whose index is in `background` as glass."""
    for block in canvas.todo(blocks_of(spec)):
        pixels = None if block.index in background else image[block.write.slices()]
        canvas.put(block, pixels, {"n": sum(block.index)})


def with_background(image, spec, background):
    image = image.copy()
    for block in blocks_of(spec):
        if block.index in background:
            image[block.write.slices()] = spec.background
    return image


def decode(data):
    differences = np.frombuffer(imagecodecs.zlib_decode(data), np.uint8).reshape(512, 512, 3)
    return np.cumsum(differences, axis=1, dtype=np.uint8)


def levels_of(spool):
    """Every level as its tiles say, cut to its size."""
    for level, size in enumerate(spool.sizes):
        rows, columns = size.ceil_div(512)
        tiles = [decode(data) for data in spool.tiles(level)]
        assert len(tiles) == rows * columns
        whole = np.concatenate([np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])
        yield whole[: size.h, : size.w], whole


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_halving_equals_the_naive_mean(h, w, seed):
    pixels = noise(h, w, seed)
    assert np.array_equal(halve(pixels), naive_halve(pixels))


def test_halving_rounds_every_sum_of_four_as_the_naive_mean():
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = np.zeros((512, 512, 3), np.uint8)
    pixels[::2, ::2], pixels[1::2, 1::2], pixels[::2, 1::2] = a[..., None], b[..., None], 1
    assert np.array_equal(halve(pixels), naive_halve(pixels))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_levels_halve_until_one_tile_is_left(h, w):
    sizes = level_sizes(Size(h, w))
    assert sizes[0] == (h, w)
    assert max(sizes[-1]) <= 512
    assert all(max(size) > 512 and size.halved() == lower for size, lower in pairwise(sizes))


@pytest.mark.parametrize("block", [512, 1024, 2048])
@pytest.mark.parametrize(
    "size", [(2049, 2305), (513, 512), (512, 512), (1, 5000), (700, 3), (1537, 4100), (1024, 2048)]
)
def test_every_level_of_the_spool_equals_the_naive_pyramid(tmp_path, size, block):
    spec, image = spec_of(tmp_path, size, block), noise(*size)
    spool = TiffCanvas(spec)
    spool.begin(RUN)
    background = {(0, 1), (1, 1)}
    paint(spool, spec, image, background)
    spool.finish()
    expected = naive_pyramid(with_background(image, spec, background))
    assert [size[:2] for size in spool.sizes] == [level.shape[:2] for level in expected]
    for (level, padded), truth in zip(levels_of(spool), expected, strict=True):
        assert np.array_equal(level, truth)
        h, w = truth.shape[:2]
        if (w - 1) // 512 != 1:  # the last column is no block of glass
            assert (padded[:h, w:] == padded[:h, w - 1 : w]).all()


def test_coarse_levels_hold_two_rows_of_tiles_at_most():
    pyramid = Pyramid(Size(512 * 40, 1000), 512)
    strips = [noise(256, 500, seed) for seed in range(40)]
    order = [(t.level, t.row) for t in pyramid.coarse(iter(strips))]
    # Level 2's first row comes as soon as level 1 has two rows, not after all of level 1.
    assert order.index((2, 0)) == order.index((1, 1)) + 1


@pytest.mark.parametrize("canvas_type", [TiffCanvas, ZarrCanvas])
def test_the_same_blocks_in_any_order_and_in_two_sessions_are_the_same_bytes(tmp_path, canvas_type):
    name = "x.ome.zarr" if canvas_type is ZarrCanvas else "x.ome.tiff"
    image, actual = noise(1300, 1100), []
    for folder, split in (("one", 6), ("two", 3)):
        (tmp_path / folder / "x").mkdir(parents=True)
        spec = spec_of(tmp_path / folder / "x", (1300, 1100), 512, name=name, compression="jpeg")
        canvas = canvas_type(spec)
        canvas.begin(RUN)
        for block in reversed(canvas.todo(blocks_of(spec))[:split]):
            canvas.put(block, image[block.write.slices()], {"n": sum(block.index)})
        again = canvas_type(spec)
        again.begin(RUN)
        assert len(again.todo(blocks_of(spec))) == 9 - split
        paint(again, spec, image)
        assert [notes["n"] for notes in again.store.notes()] == [r + c for r in range(3) for c in range(3)]
        again.finish()
        files = sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file())
        actual.append([(p.relative_to(tmp_path / folder), p.read_bytes()) for p in files])
    assert actual[0] == actual[1]


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "garbage"])
def test_a_damaged_block_counts_as_missing(tmp_path, harm):
    spec, image = spec_of(tmp_path, (1100, 600), 512), noise(1100, 600)
    spool = TiffCanvas(spec)
    spool.begin(RUN)
    paint(spool, spec, image)
    path = spec.spool / "b_1_0.zip"
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": data[:-30], "flip": data, "empty": b"", "garbage": b"PK" * 50}[harm])
    assert [block.index for block in spool.todo(blocks_of(spec))] == [(1, 0)]
    paint(spool, spec, image)
    spool.finish()
    assert np.array_equal(next(levels_of(spool))[0], image)


def test_every_cut_of_a_block_file_is_noticed(tmp_path):
    spec, image = spec_of(tmp_path, (520, 20), 512), noise(520, 20)
    spool = TiffCanvas(spec)
    spool.begin(RUN)
    paint(spool, spec, image)
    path = spec.spool / "b_0_0.zip"
    whole = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:length])
        assert [block.index for block in spool.todo(blocks_of(spec))] == [(0, 0)]
        assert path.stat().st_size == length, "looking deletes nothing"


def test_background_is_encoded_once_and_takes_no_room(tmp_path):
    spec = spec_of(tmp_path, (5000, 5000), 1024, compression="jpeg")
    spool = TiffCanvas(spec)
    spool.begin(RUN)
    paint(spool, spec, None, {block.index for block in blocks_of(spec)})
    spool.finish()
    assert len({id(tile) for tile in spool.tiles(0)}) == 1
    assert sum(path.stat().st_size for path in spec.spool.glob("b_*")) < 25 * 400


def test_what_killed_writers_left_is_swept_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    spec = spec_of(tmp_path, (600, 600), 512)
    spool = TiffCanvas(spec)
    spool.begin(RUN)
    for name in ("tmp-123", ".b_0_0.zip.0123abcd.part"):  # of version 0.1, and of this one
        (spec.spool / name).write_bytes(b"half")
    spool.begin(RUN)
    assert [path.name for path in spec.spool.iterdir()] == ["run.json"]

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        spool.put(blocks_of(spec)[0], noise(512, 512), {})
    assert [path.name for path in spec.spool.iterdir()] == ["run.json"]


@pytest.mark.parametrize("canvas_type", [TiffCanvas, ZarrCanvas])
def test_another_runs_canvas_is_refused_and_restart_clears_it(tmp_path, canvas_type):
    spec, image = spec_of(tmp_path, (600, 600), 512), noise(600, 600)
    canvas = canvas_type(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    with pytest.raises(OutputError, match=r"other settings \(tile\).*--restart"):
        canvas_type(spec).begin({**RUN, "tile": 256})
    assert canvas.todo(blocks_of(spec)) == []
    canvas.begin({**RUN, "tile": 256}, restart=True)
    assert len(canvas.todo(blocks_of(spec))) == 4


@pytest.mark.parametrize(
    ("background", "size"), [(BACKGROUND, (1300, 1100)), ((243, 243, 243), (1301, 2047)), (BACKGROUND, (1, 600))]
)
def test_zarr_opens_in_ome_zarrs_reader_and_equals_the_naive_pyramid(tmp_path, background, size):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    spec, image = spec_of(tmp_path, size, 512, name="x.ome.zarr", background=background), noise(*size)
    canvas = ZarrCanvas(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image, {(0, 1)})
    canvas.finish()
    shutil.rmtree(spec.spool)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ome.zarr"]
    node = next(iter(Reader(parse_url(tmp_path / "x.ome.zarr", mode="r"))()))
    expected = naive_pyramid(with_background(image, spec, {(0, 1)}))
    assert len(node.data) == len(expected)
    for array, truth in zip(node.data, expected, strict=True):
        assert np.array_equal(np.moveaxis(np.asarray(array), 0, -1), truth)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "y", "x"]
    assert node.metadata["axes"][1]["unit"] == "micrometer"
    scales = [t[0]["scale"] for t in node.metadata["coordinateTransformations"]]
    assert scales == [[1.0, 0.5 * 2**i, 0.5 * 2**i] for i in range(len(expected))]


def test_zarr_metadata_satisfies_the_specification(tmp_path):
    from ome_zarr_models.v05.image import ImageAttrs

    spec = spec_of(tmp_path, (1300, 1100), 512, name="x.ome.zarr", mpp=None)
    ZarrCanvas(spec).begin(RUN)
    attributes = json.loads((tmp_path / "x.ome.zarr.part" / "zarr.json").read_text())["attributes"]
    assert ImageAttrs.model_validate(attributes["ome"]).multiscales[0].datasets[1].path == "1"
    assert attributes["wsi_stain"].pop("digital_source_type").endswith("/algorithmicallyEnhanced"), "no model is known"
    assert attributes["wsi_stain"] == {"notice": "N"}
    assert "unit" not in attributes["ome"]["multiscales"][0]["axes"][1]


def test_a_lost_or_torn_chunk_is_painted_again(tmp_path):
    spec, image = spec_of(tmp_path, (1300, 1100), 512, name="x.ome.zarr"), noise(1300, 1100)
    canvas = ZarrCanvas(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    (tmp_path / "x.ome.zarr.part/0/c/0/0/1").unlink()
    torn = tmp_path / "x.ome.zarr.part/0/c/0/2/2"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert [block.index for block in canvas.todo(blocks_of(spec))] == [(0, 1), (2, 2)]


def test_zarr_killed_after_its_last_rename_is_found_complete(tmp_path):
    spec, image = spec_of(tmp_path, (600, 600), 512, name="x.ome.zarr"), noise(600, 600)
    canvas = ZarrCanvas(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    canvas.finish()
    again = ZarrCanvas(spec)
    again.begin(RUN)
    assert again.todo(blocks_of(spec)) == []
    again.finish()
    assert (tmp_path / "x.ome.zarr" / "zarr.json").exists()


def test_zarr_of_which_the_part_was_deleted_and_not_the_spool_is_begun_again(tmp_path):
    spec, image = spec_of(tmp_path, (700, 1300), 512, name="x.ome.zarr"), noise(700, 1300)
    canvas = ZarrCanvas(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    shutil.rmtree(spec.part)
    again = ZarrCanvas(spec)
    again.begin(RUN)
    paint(again, spec, image)
    again.finish()
    assert np.array_equal(np.moveaxis(zarr.open_group(spec.output, mode="r")["0"][:], 0, -1), image)


def test_zarr_replaces_an_output_though_a_killed_run_left_an_older_one(tmp_path):
    spec, image = spec_of(tmp_path, (60, 60), 512, name="x.ome.zarr"), noise(60, 60)
    for folder in (spec.output, tmp_path / "x.ome.zarr.old"):
        folder.mkdir()
        (folder / "older").write_text("")
    canvas = ZarrCanvas(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    canvas.finish()
    assert {p.name for p in tmp_path.iterdir()} == {"x.ome.zarr", "x.ome.zarr.spool"}
    assert not (spec.output / "older").exists()


def test_lock_keeps_a_second_run_out_and_a_dead_ones_is_broken(tmp_path):
    path = tmp_path / "lock"
    code = (
        f"import os, pathlib, wsi_stain.files.lock as lock\nwith lock.locked(pathlib.Path({str(path)!r})): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.exists()
    with locked(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(OutputError, match=f"in use by process {os.getpid()} on"), locked(path):
            pass
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"started": 1.0}])
def test_lock_of_another_host_stands_and_of_a_reused_process_id_falls(tmp_path, change):
    path = tmp_path / "lock"
    with locked(path):
        owner = json.loads(path.read_text()) | change
    path.write_text(json.dumps(owner))
    if "host" in change:
        with pytest.raises(OutputError, match=f"on elsewhere.*delete {path}"), locked(path):
            pass
    else:
        with locked(path):
            pass


def test_spans_cover_every_tile_once():
    for length in (1, 2, 3, 7, 8):
        pyramid = Pyramid(Size(512 * length, 512), 2048)
        for level in range(pyramid.depth + 1):
            tiles = pyramid.sizes[level].ceil_div(512).h
            assert [t for b in range(pyramid.blocks.h) for t in pyramid.spans(level, b, tiles)] == list(range(tiles))


# Looking and publishing ----------------------------------------------------------------------------------------------


def listing(folder):
    """Names, times and contents of everything in a folder."""
    paths = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths]


@pytest.mark.parametrize("canvas_type", [TiffCanvas, ZarrCanvas])
def test_todo_only_looks_and_discard_deletes(tmp_path, canvas_type):
    name = "x.ome.zarr" if canvas_type is ZarrCanvas else "x.ome.tiff"
    spec, image = spec_of(tmp_path, (1000, 600), 512, name=name), noise(1000, 600)
    assert len(canvas_type(spec).todo(blocks_of(spec))) == 4
    assert listing(tmp_path) == []
    canvas = canvas_type(spec)
    canvas.begin(RUN)
    paint(canvas, spec, image)
    path = spec.spool / "b_1_0.zip"
    path.write_bytes(path.read_bytes()[:-20])
    before = listing(tmp_path)
    assert [block.index for block in canvas.todo(blocks_of(spec))] == [(1, 0)]
    assert listing(tmp_path) == before
    canvas.store.discard((1, 0))
    canvas.store.discard((1, 0))
    assert not path.exists()
    paint(canvas, spec, image)
    assert canvas.todo(blocks_of(spec)) == []


def publishable(tmp_path, name):
    spec = dataclasses.replace(
        spec_of(tmp_path, (1000, 600), 512, name=name),
        stain="CK",
        magnification=20.0,
        uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, "test")),
        provenance=tuple({"notice": "N", "use": "U", **dict.fromkeys(REQUIRED, "0" * 64)}.items()),
    )
    canvas = (ZarrCanvas if name.endswith("zarr") else TiffCanvas)(spec)
    canvas.begin(RUN)
    paint(canvas, spec, noise(1000, 600))
    return spec, canvas


def test_a_tiff_is_checked_under_its_temporary_name_and_published_with_the_facts(tmp_path):
    spec, canvas = publishable(tmp_path, "x.ome.tiff")
    seen = []
    canvas.publish(
        {"seams": "pass: all is well"},
        [Box(10, 20, 30, 40)],
        lambda: seen.append((spec.part.exists(), spec.output.exists())),
    )
    assert seen == [(True, False)]
    assert (spec.part.exists(), spec.output.exists()) == (False, True)
    assert ometiff.problems(spec.output) == []
    with tifffile.TiffFile(spec.output) as file:
        xml = file.pages[0].description
    texts = "pass: all is well", "unreadable in the source", 'X="20" Y="10" Width="20"', spec.uuid, 'Magnification="20'
    assert [text for text in texts if text not in xml] == []
    assert ">N<" not in xml, "the notice has its own place"


def test_a_tiff_that_fails_its_check_is_not_published(tmp_path, monkeypatch):
    spec, canvas = publishable(tmp_path, "x.ome.tiff")
    spec.output.write_bytes(b"the output of an earlier run")
    problem = ometiff.Problem("error", 3, "the pyramid is crooked")
    monkeypatch.setattr(ometiff, "problems", lambda path, name: [problem])
    with pytest.raises(OutputError, match=r"fails its check .*rule 3: the pyramid is crooked"):
        canvas.publish({})
    assert spec.output.read_bytes() == b"the output of an earlier run"


def test_a_zarr_is_published_with_the_facts(tmp_path):
    spec, canvas = publishable(tmp_path, "x.ome.zarr")
    canvas.publish({"seams": "pass"}, [Box(0, 0, 1, 1)], lambda: pytest.fail("an OME-Zarr has no check"))
    attributes = json.loads((spec.output / "zarr.json").read_text())["attributes"]
    assert attributes["wsi_stain"].pop("digital_source_type").endswith("/trainedAlgorithmicMedia")
    assert attributes["wsi_stain"] == {**dict(spec.provenance), "seams": "pass"}
    assert not spec.part.exists()
