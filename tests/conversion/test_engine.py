import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from builders.conversions import FakeBundle, InvertAndBlur, digest, noise, pixels_of, request_of, write_slide
from builders.slides import damage, tissue, write_svs
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_stain.conversion import engine, estimate, resources, survey
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.job import CANVASES, Job
from wsi_stain.errors import ConfigError, DeviceError, OutputError, SlideError, UnreadableRegion
from wsi_stain.files import record
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import IdentityGenerator
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import BlockStore
from wsi_stain.slide.slide import View
from wsi_stain.tiling.blend import window
from wsi_stain.tiling.grid import TileGrid

settings.register_profile("wsi_stain", deadline=None)
settings.load_profile("wsi_stain")


def job_of(request):
    return Job.of(survey.Survey.of(request))


def test_auto_is_one_precision_before_anything_is_written(tmp_path, use, monkeypatch):
    use(InvertAndBlur)
    monkeypatch.setattr(FakeBundle, "precision", lambda self, device, choice: "bf16" if choice == "auto" else choice)
    slide = write_slide(tmp_path / "s.tif", noise(200, 300))
    auto = job_of(request_of(slide, tmp_path / "a.ome.tiff"))
    assert auto.fingerprint.precision == "bf16"
    named = job_of(request_of(slide, tmp_path / "a.ome.tiff", precision="bf16"))
    assert named == auto, "the same work, asked for in other words, is resumed"
    assert job_of(request_of(slide, tmp_path / "a.ome.tiff", precision="fp32")).fingerprint != auto.fingerprint


def test_a_cluster_s_workers_say_what_auto_is_and_must_agree(tmp_path, use, monkeypatch):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(200, 300))
    request = request_of(slide, tmp_path / "a.ome.tiff", scheduler="tcp://there:1")
    monkeypatch.setattr(survey, "ask", lambda scheduler, func: ["fp16", "fp16"])
    assert job_of(request).fingerprint.precision == "fp16"
    monkeypatch.setattr(survey, "ask", lambda scheduler, func: ["fp32", "bf16"])
    with pytest.raises(ConfigError, match=r"different precisions \(bf16, fp32\).*for example --precision fp32"):
        job_of(request)
    chosen = dataclasses.replace(request, precision="bf16")
    assert job_of(chosen).fingerprint.precision == "bf16"


@pytest.mark.slow
def test_a_cluster_s_workers_in_another_folder_give_the_same_bytes(tmp_path, monkeypatch):
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    elsewhere.mkdir()
    home.mkdir()
    write_slide(home / "s.tif", noise(700, 900))
    local = convert(request_of(home / "s.tif", elsewhere / "x.ome.zarr"))
    monkeypatch.chdir(elsewhere)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster:
        monkeypatch.chdir(home)
        request = request_of(Path("s.tif"), Path("x.ome.zarr"), scheduler=cluster.scheduler_address)
        assert digest(convert(request).output) == digest(local.output)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_the_same_graph_gives_the_same_bytes_on_threads_and_on_a_scheduler(tmp_path, use, ending):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1100, 1300))
    with LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0", protocol="tcp"
    ) as cluster:
        kinds = {
            "serial": {"workers": 0},
            "threads": {"workers": 3},
            "cluster": {"scheduler": cluster.scheduler_address},
        }
        records, digests = [], set()
        for name, fields in kinds.items():
            (tmp_path / name).mkdir()
            result = convert(request_of(slide, tmp_path / name / f"x.{ending}", **fields))
            digests.add(digest(result.output))
            records.append(result.record)
    assert len(digests) == 1
    assert [record["blocks"]["painted_in_this_run"] for record in records] == [9, 9, 9]
    assert len({json.dumps(record["fingerprint"]) for record in records}) == 1
    assert len({json.dumps(record["seams"]) for record in records}) == 1


@pytest.mark.slow
def test_a_cluster_from_a_file_gives_the_same_bytes(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(1100, 900))
    (tmp_path / "cluster.yaml").write_text("class: local\nworkers: [2, 2]\ncores: 1\n")
    (tmp_path / "local").mkdir()
    local = convert(request_of(slide, tmp_path / "local" / "x.ome.tiff"))
    result = convert(request_of(slide, tmp_path / "x.ome.tiff", cluster=tmp_path / "cluster.yaml"))
    assert digest(result.output) == digest(local.output)
    assert result.record["threads"] >= 1
    with pytest.raises(ConfigError, match="--cluster and --scheduler exclude each other"):
        request_of(slide, tmp_path / "x.ome.tiff", cluster=tmp_path / "cluster.yaml", scheduler="tcp://there:1")


@pytest.mark.parametrize("kind", ["serial", "threads", "cluster"])
def test_a_failing_block_is_named_and_what_was_painted_stays(tmp_path, use, kind):
    class Failing(InvertAndBlur):
        def __call__(self, tiles):
            is_begun = any((tmp_path / "x.ome.tiff.spool").glob("b_*"))
            return 1 // 0 if is_begun else super().__call__(tiles)

    use(Failing)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    with contextlib.ExitStack() as stack:
        if kind == "cluster":
            options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": ":0"}
            cluster = stack.enter_context(LocalCluster(protocol="tcp", **options))
            fields = {"scheduler": cluster.scheduler_address}
        else:
            fields = {"workers": 2 if kind == "threads" else 0}
        with pytest.raises(ZeroDivisionError) as caught:
            convert(request_of(slide, tmp_path / "x.ome.tiff", **fields))
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"while block \(\d, \d\) of .*x\.ome\.tiff was painted", note)
    painted = {path.name for path in (tmp_path / "x.ome.tiff.spool").glob("b_*")}
    row, column = re.findall(r"\d", note)[:2]
    assert painted
    assert f"b_{row}_{column}.zip" not in painted


# Identity ------------------------------------------------------------------------------------------------------------

edges = st.one_of(st.integers(1, 1400), st.sampled_from([1, 511, 512, 513, 1024, 1025]))


@settings(max_examples=15)
@given(st.data())
def test_identity_gives_the_slides_pixels_bit_for_bit(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("identity")
    h, w = data.draw(edges), data.draw(edges)
    overlap = data.draw(st.integers(0, 100))
    tile = 2 * overlap + data.draw(st.integers(60, 600))
    block, workers = data.draw(st.sampled_from([512, 1024])), data.draw(st.sampled_from([0, 2]))
    ending = data.draw(st.sampled_from(["ome.zarr", "ome.tiff"]))
    image = noise(h, w)
    keys = f"grid.tile={tile}", f"grid.overlap={overlap}", f"grid.block={block}"
    conversion = convert(
        request_of(write_slide(folder / "s.tif", image), folder / f"x.{ending}", *keys, workers=workers)
    )
    assert np.array_equal(pixels_of(conversion.output), image)


@pytest.mark.parametrize("size", [(40, 30), (1, 5000), (5000, 1), (1, 1), (512, 512)])
@pytest.mark.parametrize("ending", ["ome.zarr", "ome.tiff"])
def test_identity_of_odd_shapes(tmp_path, size, ending):
    image = noise(*size)
    conversion = convert(request_of(write_slide(tmp_path / "s.tif", image), tmp_path / f"x.{ending}"))
    assert np.array_equal(pixels_of(conversion.output), image)


def test_an_ome_tiff_follows_every_rule_and_says_what_it_is(tmp_path):
    conversion = convert(request_of(write_slide(tmp_path / "s.tif", noise(1300, 1700)), tmp_path / "x.ome.tiff"))
    assert ometiff.problems(conversion.output) == []
    message = json.dumps(ometiff.describe(conversion.output), default=str)
    assert conversion.record["fingerprint"]["source_sha256"] in message
    assert {p.name for p in tmp_path.iterdir()} == {"s.tif", "x.ome.tiff", "x.ome.tiff.run.json"}
    assert str(tmp_path) not in (tmp_path / "x.ome.tiff").read_bytes().decode("latin-1")


def test_default_output_is_named_for_slide_and_stain_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    slide = write_slide(tmp_path / "in" / "case 1.tif", noise(60, 60))
    conversion = convert(request_of(slide, None))
    assert conversion.output == Path("case 1.identity.ome.tiff")
    assert conversion.output.is_file()


# A generator that is not the identity --------------------------------------------------------------------------------


def naive_stain(image, tile, overlap, generator):
    """All tiles of the whole image, float64 sums: no block, no cache, no trick."""
    h, w = image.shape[:2]
    weights = np.outer(*[window(tile, overlap).astype(float)] * 2)[..., None]
    total, divisor = np.zeros((h + tile, w + tile, 3)), np.zeros((h + tile, w + tile, 1))
    padded = np.pad(image, ((0, tile), (0, tile), (0, 0)), mode="edge")
    for box in TileGrid(Size(h, w), tile, overlap).tiles(Box(0, 0, h, w)):
        total[box.slices()] += weights * generator(padded[box.slices()][None])[0]
        divisor[box.slices()] += weights
    return total[:h, :w] / divisor[:h, :w]


@pytest.mark.parametrize(("block", "batch"), [(512, 4), (1024, 1)])
def test_a_blur_equals_the_naive_twin_and_shows_no_seam(tmp_path, use, block, batch):
    use(InvertAndBlur)
    image = noise(1100, 901)
    request = request_of(
        write_slide(tmp_path / "s.tif", image), tmp_path / "x.ome.zarr", f"grid.block={block}", f"batch={batch}"
    )
    got = pixels_of(convert(request).output)
    assert np.abs(got - naive_stain(image, 128, 32, InvertAndBlur())).max() <= 0.5 + 1e-3
    whole = cv2.blur(255 - image, (5, 5), borderType=cv2.BORDER_REPLICATE)
    assert np.abs(got.astype(int) - whole).max() <= 1  # tiles are wrong in their outer 2 px, which count 1 %


def test_workers_and_blocks_and_batches_do_not_change_the_pixels(tmp_path, use):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    settings_of = [(0, 512, 4), (1, 512, 1), (2, 512, 3), (4, 512, 4), (2, 1024, 2)]
    digests, pixels = set(), []
    for i, (workers, block, batch) in enumerate(settings_of):
        (tmp_path / str(i)).mkdir()
        keys = f"grid.block={block}", f"batch={batch}"
        for ending in ("ome.tiff", "ome.zarr"):
            conversion = convert(request_of(slide, tmp_path / str(i) / f"x.{ending}", *keys, workers=workers))
            pixels.append(pixels_of(conversion.output))
            if block == 512:
                digests.add(digest(conversion.output))
    assert all(np.array_equal(pixels[0], other) for other in pixels)
    assert len(digests) == 2  # one TIFF, one Zarr


@pytest.mark.parametrize("workers", [0, 3])
def test_no_tile_is_generated_twice(tmp_path, use, workers):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    conversion = convert(request_of(slide, tmp_path / "x.ome.zarr", workers=workers))
    tiles = conversion.record["tiles"]
    assert tiles["generated_in_this_run"] == tiles["tissue"] == tiles["all"] == 16 * 14


def test_without_a_cache_the_pixels_are_the_same(tmp_path, use):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1100, 700))
    with_cache = convert(request_of(slide, tmp_path / "a.ome.zarr"))
    without = convert(request_of(slide, tmp_path / "b.ome.zarr", "cache_mib=0"))
    assert without.record["tiles"]["generated_in_this_run"] > with_cache.record["tiles"]["generated_in_this_run"]
    assert np.array_equal(pixels_of(with_cache.output), pixels_of(without.output))


def test_a_region_is_the_same_part_of_the_whole(tmp_path, use):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    whole = convert(request_of(slide, tmp_path / "a.ome.zarr"))
    part = convert(request_of(slide, tmp_path / "b.ome.zarr", region=(333, 77, 701, 900)))
    assert np.array_equal(pixels_of(part.output), pixels_of(whole.output)[77:977, 333:1034])


def test_a_full_device_memory_halves_the_batch_and_changes_nothing(tmp_path, use):
    class Small(InvertAndBlur):
        def __call__(self, tiles):
            if len(tiles) > limit:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(tiles)

    slide = write_slide(tmp_path / "s.tif", noise(700, 700))
    limit = 100
    use(Small)
    whole = convert(request_of(slide, tmp_path / "a.ome.zarr", "batch=8"))
    limit = 1
    halved = convert(request_of(slide, tmp_path / "b.ome.zarr", "batch=8"))
    assert np.array_equal(pixels_of(whole.output), pixels_of(halved.output))
    limit = 0
    with pytest.raises(DeviceError, match="too small for one tile of 128 px"):
        convert(request_of(slide, tmp_path / "c.ome.zarr"))


# Glass ---------------------------------------------------------------------------------------------------------------


def square(folder, x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    path = folder / "mask.geojson"
    path.write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}})
    )
    return path


def test_tiles_without_tissue_are_neither_read_nor_stained(tmp_path, use, monkeypatch):
    seen, boxes, read = [], [], View.read

    class Counting(InvertAndBlur):
        def __call__(self, tiles):
            seen.append(len(tiles))
            return super().__call__(tiles)

    def recording(self, box):
        boxes.append(box)
        return read(self, box)

    monkeypatch.setattr(View, "read", recording)
    bundle = use(Counting)
    image = noise(2100, 2100)
    slide = write_slide(tmp_path / "s.tif", image)
    mask = square(tmp_path, 600, 1100, 900, 1300)
    conversion = convert(request_of(slide, tmp_path / "x.ome.zarr", mask=mask, force_brightfield=True))  # not looked at
    grid = TileGrid(Size(2100, 2100), 128, 32)
    tissue = list(grid.tiles(Box(1100, 600, 1300, 900)))
    around = Box(
        min(t.y0 for t in tissue), min(t.x0 for t in tissue), max(t.y1 for t in tissue), max(t.x1 for t in tissue)
    )
    margin = Box(around.y0 - 128, around.x0 - 128, around.y1 + 128, around.x1 + 128)  # the mask's cells may reach out
    assert boxes
    assert all(margin.contains(box) for box in boxes)
    tiles = conversion.record["tiles"]
    assert sum(seen) == tiles["tissue"] + tiles["stained_again_in_this_run"] < tiles["all"] / 10
    got = pixels_of(conversion.output)
    assert (got[:900] == bundle.background).all()
    inside = (slice(1150, 1250), slice(700, 850))
    whole = cv2.blur(255 - image, (5, 5), borderType=cv2.BORDER_REPLICATE)
    assert np.abs(got[inside].astype(int) - whole[inside]).max() <= 1
    assert json.loads((tmp_path / "x.tissue.geojson").read_text())


def test_nothing_is_read_between_two_islands_of_one_block(tmp_path, use, monkeypatch):
    boxes, read = [], View.read

    def recording(self, box):
        boxes.append(box)
        return read(self, box)

    monkeypatch.setattr(View, "read", recording)
    use(InvertAndBlur)
    image = noise(1000, 1000)
    corners = [[[[x, y], [x + 60, y], [x + 60, y + 60], [x, y + 60], [x, y]]] for x, y in ((20, 20), (900, 900))]
    mask = tmp_path / "m.geojson"
    mask.write_text(json.dumps({"type": "MultiPolygon", "coordinates": corners}))
    slide = write_slide(tmp_path / "s.tif", image)
    conversion = convert(
        request_of(slide, tmp_path / "x.ome.zarr", "grid.block=1024", mask=mask, force_brightfield=True)
    )
    assert boxes
    middle = Box(300, 300, 700, 700)
    assert not any((box & middle).area for box in boxes)
    whole = cv2.blur(255 - image, (5, 5), borderType=cv2.BORDER_REPLICATE)
    got = pixels_of(conversion.output)
    for part in (np.s_[30:70, 30:70], np.s_[910:950, 910:950]):
        assert np.abs(got[part].astype(int) - whole[part]).max() <= 1


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(monkeypatch):
    """Make every read that touches a box fail."""
    read = View.read

    def put(bad):
        def reading(self, box):
            if (box & bad).area:
                raise UnreadableRegion(f"{box} cannot be decoded", box, 0)
            return read(self, box)

        monkeypatch.setattr(View, "read", reading)

    return put


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_tile_becomes_background_and_is_told(tmp_path, use, damaged, workers):
    bundle = use(IdentityGenerator, tile=128, overlap=0)
    damaged(Box(500, 500, 501, 501))  # in the tile of 384…512, which lies in one block
    image = noise(1500, 1300)
    slide = write_slide(tmp_path / "s.tif", image)
    conversion = convert(request_of(slide, tmp_path / "x.ome.tiff", workers=workers))
    expected = image.copy()
    expected[384:512, 384:512] = bundle.background
    assert np.array_equal(pixels_of(conversion.output), expected)
    assert conversion.unreadable == (Box(384, 384, 512, 512),)
    assert conversion.record["unreadable"] == [[384, 384, 128, 128]]  # x, y, w, h
    assert b"unreadable in the source" in conversion.output.read_bytes()


@pytest.mark.slow
def test_an_unreadable_tile_of_several_blocks_is_told_once_and_survives_a_resume(tmp_path, use, damaged):
    class Failing(IdentityGenerator):
        def __call__(self, tiles):
            nonlocal left
            left -= len(tiles)
            if left < 0:
                raise RuntimeError("the device fell off")
            return tiles

    use(Failing, tile=128, overlap=32)
    damaged(Box(500, 500, 501, 501))
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    left = 10**9
    whole = convert(request_of(slide, tmp_path / "x.ome.tiff", "max_unreadable=0.1"))
    first, count = digest(whole.output), len(whole.unreadable)
    assert 1 <= count <= 4
    assert len(set(whole.unreadable)) == count
    whole.output.unlink()
    left = 110
    with pytest.raises(RuntimeError, match="fell off"):
        convert(request_of(slide, tmp_path / "x.ome.tiff", "max_unreadable=0.1"))
    left = 10**9
    resumed = convert(request_of(slide, tmp_path / "x.ome.tiff", "max_unreadable=0.1"))
    assert resumed.record["blocks"]["painted_in_this_run"] < resumed.record["blocks"]["all"]
    assert resumed.unreadable == whole.unreadable
    assert digest(resumed.output) == first


def test_too_much_damage_fails_and_keeps_what_was_painted(tmp_path, use, damaged):
    use(IdentityGenerator)
    damaged(Box(600, 0, 900, 900))
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    with pytest.raises(OutputError, match=r"\d+ of 224 tiles with tissue .* 1.0% are allowed"):
        convert(request_of(slide, tmp_path / "x.ome.tiff"))
    assert list((tmp_path / "x.ome.tiff.spool").glob("b_*.zip"))
    assert not (tmp_path / "x.ome.tiff").exists()


# Interruptions -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_generator_is_heard_and_the_same_call_goes_on(tmp_path, use, workers):
    class Failing(InvertAndBlur):
        def __call__(self, tiles):
            nonlocal left
            left -= 1
            if left == 0:
                raise ValueError("no luck")
            return super().__call__(tiles)

    use(Failing)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    left = -1
    whole = convert(request_of(slide, tmp_path / "x.ome.tiff"))
    expected = digest(whole.output)
    whole.output.unlink()
    for left in (12, 1):  # noqa: B007 - the generator counts it down
        with pytest.raises(ValueError, match="no luck"):
            convert(request_of(slide, tmp_path / "x.ome.tiff", workers=workers))
    resumed = convert(request_of(slide, tmp_path / "x.ome.tiff", workers=workers))
    assert 0 < resumed.record["blocks"]["painted_in_this_run"] < 9
    assert digest(resumed.output) == expected
    assert not (tmp_path / "x.ome.tiff.spool").exists()


CHILD = """
import sys, time
import numpy as np
from pathlib import Path
from wsi_stain.model.bundle import IdentityGenerator
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.conversion.engine import ConvertRequest, convert

def slow(self, tiles):
    time.sleep(0.004)
    return 255 - tiles

IdentityGenerator.__call__ = slow
config = load(ConvertConfig, None, ["grid.block=512", "grid.tile=256", "grid.overlap=32"])
slide, output, workers = sys.argv[1:]
request = ConvertRequest(Path(slide), Path(output), "identity", mask="none", workers=int(workers), config=config)
print("ready", flush=True)
convert(request, lambda event: print(event.stage, flush=True))
"""


def spawn(slide, output, workers):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(slide), str(output), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_and_kill(slide, output, workers, lines, delay):
    """Run, and kill it some time after so many events; True if it was still alive."""
    with spawn(slide, output, workers) as child:
        for _ in range(lines):
            if not child.stdout.readline():
                break
        time.sleep(delay)
        alive = child.poll() is None
        child.kill()
    return alive


@pytest.mark.parametrize(
    ("ending", "workers"),
    [
        ("ome.tiff", 2),
        pytest.param("ome.zarr", 0, marks=pytest.mark.slow),
        pytest.param("dcm", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path, ending, workers):
    rng = random.Random(ending)
    slide = write_slide(tmp_path / "s.tif", noise(2500, 3000))
    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()
    whole, torn = tmp_path / "whole" / f"x.{ending}", tmp_path / "torn" / f"x.{ending}"
    with spawn(slide, whole, 0) as child:
        assert "done" in child.stdout.read()
    kills = sum(run_and_kill(slide, torn, workers, rng.randint(2, 7), rng.random() * 0.05) for _ in range(3))
    assert kills == 3
    run_and_kill(slide, torn, workers, 33, rng.random() * 0.1)  # near its end
    with spawn(slide, torn, workers) as child:
        child.stdout.read()
    assert child.returncode == 0
    assert digest(torn) == digest(whole)
    assert sorted(p.name for p in torn.parent.iterdir()) == [f"x.{ending}", f"x.{ending}.run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_keeps_what_was_painted(tmp_path, workers):
    slide = write_slide(tmp_path / "s.tif", noise(2500, 3000))
    (tmp_path / "whole").mkdir()
    whole, torn = tmp_path / "whole" / "x.ome.tiff", tmp_path / "x.ome.tiff"
    with spawn(slide, whole, 0) as child:
        child.stdout.read()
    with spawn(slide, torn, workers) as child:
        for _ in range(6):
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.stdout.read()
    assert child.returncode != 0
    painted = len(list(Path(f"{torn}.spool").glob("b_*")))
    assert painted >= 3
    assert not list(Path(f"{torn}.spool").glob("lock")), "the lock is given back"
    with spawn(slide, torn, workers) as child:
        assert child.stdout.read().split().count("stain") == 30 - painted + 1
    assert digest(torn) == digest(whole)


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
@pytest.mark.parametrize("step", ["finish", "write", "remove"])
def test_stopped_between_any_two_of_the_last_steps_it_ends_in_the_same_bytes(tmp_path, monkeypatch, ending, step):
    slide = write_slide(tmp_path / "s.tif", noise(700, 1300))
    (tmp_path / "whole").mkdir()
    whole = convert(request_of(slide, tmp_path / "whole" / f"x.{ending}"))

    class Power(BaseException):
        """Not an Exception: nothing may catch it and tidy up."""

    def cut(*_, **__):
        raise Power

    kind = CANVASES["zarr" if ending == "ome.zarr" else "tiff"]
    place = {"finish": (kind, "finish"), "write": (engine.record, "write"), "remove": (BlockStore, "remove")}
    monkeypatch.setattr(*place[step], cut)
    with pytest.raises(Power):
        convert(request_of(slide, tmp_path / f"x.{ending}"))
    monkeypatch.undo()
    conversion = convert(request_of(slide, tmp_path / f"x.{ending}"))
    assert conversion.already_done == (step == "remove")
    assert digest(conversion.output) == digest(whole.output)
    left = {p.name for p in tmp_path.iterdir()} - {"s.tif", "whole"}
    assert left == {f"x.{ending}", f"x.{ending}.run.json"}


# What exists already, what cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_a_finished_output_is_left_alone_and_anothers_is_never_overwritten(tmp_path, monkeypatch, ending):
    slide = write_slide(tmp_path / "s.tif", noise(700, 600))
    output = tmp_path / f"x.{ending}"
    made = convert(request_of(slide, output))
    before = digest(output)
    again = convert(request_of(slide, output))
    assert (made.already_done, again.already_done) == (False, True)
    assert again.record == made.record
    with pytest.raises(OutputError, match=r"exists and was made with other settings.*--restart"):
        convert(request_of(slide, output, "grid.tile=100"))
    assert digest(output) == before
    with monkeypatch.context() as patch:
        patch.setattr(IdentityGenerator, "__call__", lambda self, tiles: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            convert(request_of(slide, output, "grid.tile=100", restart=True))
    assert digest(output) == before  # the old output stays until the new one is complete
    other = convert(request_of(slide, output, "grid.tile=100"))  # permission was given with --restart
    assert other.record["fingerprint"]["tile"] == 100
    assert np.array_equal(pixels_of(output), noise(700, 600))
    (tmp_path / f"x.{ending}.run.json").unlink()
    with pytest.raises(OutputError, match="exists and was made with other settings"):
        convert(request_of(slide, output))


@pytest.mark.parametrize("name", ["x.tif", "x.zarr", "x", ".ome.tiff", "x.ome.tiff.gz"])
def test_an_output_of_another_ending_is_refused_with_the_rule(tmp_path, name):
    slide = write_slide(tmp_path / "s.tif", noise(60, 60))
    with pytest.raises(OutputError, match=r"must end in .ome.tiff, .ome.tif, .ome.zarr or .dcm"):
        convert(request_of(slide, tmp_path / name))


def test_calls_that_cannot_work_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(600, 600))
    with pytest.raises(OutputError, match=r"the folder .*nowhere does not exist"):
        convert(request_of(slide, tmp_path / "nowhere" / "x.ome.tiff"))
    for region in [(0, 0, 601, 10), (-1, 0, 5, 5), (0, 0, 0, 5), (600, 600, 1, 1)]:
        with pytest.raises(SlideError, match=r"is not inside the slide, which is 600 × 600 px"):
            convert(request_of(slide, tmp_path / "x.ome.tiff", region=region))
    with pytest.raises(ConfigError, match="between 0 and 50"):
        convert(request_of(slide, tmp_path / "x.ome.tiff", "grid.tile=100", "grid.overlap=60"))
    with pytest.raises(ConfigError, match="--workers is -1"):
        convert(request_of(slide, tmp_path / "x.ome.tiff", workers=-1))
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"needs about \d+\.\d MiB .* 1\.0 MiB free"):
        convert(request_of(slide, tmp_path / "x.ome.tiff"))
    monkeypatch.undo()
    memory = type("Memory", (), {"available": 1 << 20})
    monkeypatch.setattr(estimate.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(OutputError, match=r"of memory in addition to the model, but only 1\.0 MiB are free"):
        convert(request_of(slide, tmp_path / "x.ome.tiff"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(60, 60))
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written to"):
        convert(request_of(slide, tmp_path / "locked" / "x.ome.tiff"))


def test_a_disk_that_fills_is_a_sentence_and_what_was_painted_stays(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    whole = convert(request_of(slide, tmp_path / "y.ome.tiff"))
    write, left = Path.write_bytes, 4

    def filling(self, data):
        nonlocal left
        left -= self.name.startswith(".b_")  # the temporary of a block
        if left < 0:
            raise OSError(28, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(OutputError, match=r"is full: about .* were needed .* free now"):
        convert(request_of(slide, tmp_path / "x.ome.tiff"))
    monkeypatch.undo()
    painted = len(list((tmp_path / "x.ome.tiff.spool").glob("b_*.zip")))
    assert painted == 4
    resumed = convert(request_of(slide, tmp_path / "x.ome.tiff"))
    assert resumed.record["blocks"]["painted_in_this_run"] == 9 - painted
    assert np.array_equal(pixels_of(resumed.output), pixels_of(whole.output))


def test_a_second_run_on_the_same_output_is_kept_out(tmp_path, use):
    refused = []

    class Meddling(IdentityGenerator):
        def __call__(self, tiles):
            if not refused:
                with pytest.raises(OutputError, match="in use by process"):
                    convert(request_of(slide, tmp_path / "x.ome.tiff"))
                refused.append(True)
            return tiles

    use(Meddling)
    slide = write_slide(tmp_path / "s.tif", noise(600, 600))
    conversion = convert(request_of(slide, tmp_path / "x.ome.tiff"))
    assert refused
    assert np.array_equal(pixels_of(conversion.output), noise(600, 600))


def test_a_second_run_does_not_take_a_restart_for_done(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(600, 600))
    convert(request_of(slide, tmp_path / "x.ome.tiff"))
    refused = []

    def meddling(self, tiles):
        if not refused:
            with pytest.raises(OutputError, match="in use by process"):
                convert(request_of(slide, tmp_path / "x.ome.tiff"))  # the old output is there, of these settings
            refused.append(True)
        return tiles

    monkeypatch.setattr(IdentityGenerator, "__call__", meddling)
    conversion = convert(request_of(slide, tmp_path / "x.ome.tiff", restart=True))
    assert refused
    assert np.array_equal(pixels_of(conversion.output), noise(600, 600))


def test_a_restart_of_the_same_settings_goes_on_without_the_flag(tmp_path, monkeypatch):
    slide = write_slide(tmp_path / "s.tif", noise(600, 600))
    convert(request_of(slide, tmp_path / "x.ome.tiff"))
    with monkeypatch.context() as patch:
        patch.setattr(IdentityGenerator, "__call__", lambda self, tiles: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            convert(request_of(slide, tmp_path / "x.ome.tiff", restart=True))
    assert not convert(request_of(slide, tmp_path / "x.ome.tiff")).already_done


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_resuming_after_an_upgrade_tells_the_package_and_records_both_versions(tmp_path, monkeypatch, caplog, ending):
    slide, output, count = write_slide(tmp_path / "s.tif", noise(1000, 500)), tmp_path / f"x.{ending}", []
    now = record.versions()

    def fail_at_the_second(self, tiles):
        count.append(1)
        return tiles if len(count) < 2 else 1 // 0

    monkeypatch.setattr(record, "versions", lambda: now | {"imagecodecs": "2020.1.1"})
    with monkeypatch.context() as patch:
        patch.setattr(IdentityGenerator, "__call__", fail_at_the_second)
        with pytest.raises(ZeroDivisionError):
            convert(request_of(slide, output))
    assert caplog.text == ""
    monkeypatch.setattr(record, "versions", lambda: now)
    resumed = convert(request_of(slide, output))
    assert f"imagecodecs 2020.1.1 → {now['imagecodecs']}" in caplog.text
    assert resumed.record["blocks"] == {"all": 2, "painted_in_this_run": 1}
    assert resumed.record["versions"] == now
    assert resumed.record["earlier_versions"] == [now | {"imagecodecs": "2020.1.1"}]
    assert np.array_equal(pixels_of(output), noise(1000, 500))
    whole = convert(request_of(slide, output, restart=True))
    assert whole.record["earlier_versions"] == []


@pytest.mark.parametrize(("devices", "meets"), [(("cuda:0", "cuda:1"), True), (("cuda", "cuda:0"), False)])
def test_only_threads_of_one_device_wait_for_each_other(tmp_path, use, devices, meets):
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    names, meeting, met = iter(devices), threading.Barrier(2), []

    class Meeting(IdentityGenerator):
        def __init__(self):
            self.device = next(names)

        def __call__(self, tiles):
            with suppress(threading.BrokenBarrierError):
                meeting.wait(20 if meets else 0.5)
                met.append(self.device)
            return tiles

    use(Meeting)
    outputs = [tmp_path / f"{n}.ome.tiff" for n in range(2)]
    runs = [threading.Thread(target=convert, args=[request_of(slide, output)]) for output in outputs]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert set(met) == (set(devices) if meets else set())
    for output in outputs:
        assert np.array_equal(pixels_of(output), noise(300, 300))


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_what_another_run_does_between_the_plan_and_the_lock_is_seen(tmp_path, monkeypatch, ending):
    slide, output = write_slide(tmp_path / "s.tif", noise(1000, 500)), tmp_path / f"x.{ending}"

    def after_the_plan(act):
        def estimated(survey, job):
            monkeypatch.undo()
            result = estimate.Estimate.of(survey, job)
            act()
            return result

        monkeypatch.setattr(engine, "Estimate", type("Estimated", (), {"of": staticmethod(estimated)}))

    def fail_at_the_second(self, tiles):
        calls.append(1)
        return tiles if len(calls) < 2 else 1 // 0

    calls = []
    monkeypatch.setattr(IdentityGenerator, "__call__", fail_at_the_second)
    request = request_of(slide, output, "cache_mib=0", "grid.tile=256")
    with pytest.raises(ZeroDivisionError):
        convert(request)
    monkeypatch.undo()
    painted = next((tmp_path / f"x.{ending}.spool").glob("b_*.zip"))
    after_the_plan(painted.unlink)  # as a restart that was killed leaves it
    conversion = convert(request)
    assert np.array_equal(pixels_of(conversion.output), noise(1000, 500))
    conversion.output.rename(tmp_path / "away")
    after_the_plan(lambda: convert(request))
    assert convert(request).already_done


@pytest.mark.parametrize(("ending", "kind"), [("ome.tiff", "folder"), ("ome.zarr", "file")])
def test_an_output_of_the_wrong_kind_is_refused_even_with_restart(tmp_path, ending, kind):
    slide, output = write_slide(tmp_path / "s.tif", noise(60, 60)), tmp_path / f"x.{ending}"
    output.mkdir() if kind == "folder" else output.write_text("mine")
    with pytest.raises(OutputError, match=f"is a {kind}, but the output would be a"):
        convert(request_of(slide, output, restart=True))


def test_the_users_own_mask_beside_the_output_is_not_overwritten(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(600, 600))
    mask = square(tmp_path, 10, 10, 77, 77).rename(tmp_path / "x.tissue.geojson")
    before = mask.read_bytes()
    convert(request_of(slide, tmp_path / "x.ome.tiff", mask=mask))
    assert mask.read_bytes() == before


# Record, progress ----------------------------------------------------------------------------------------------------


def test_progress_counts_every_block_and_tile_once(tmp_path, use):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(1500, 1300))
    events = []
    conversion = convert(request_of(slide, tmp_path / "x.ome.tiff", workers=2), events.append)
    painting = [event for event in events if event.stage == "stain"]
    assert [event.done_blocks for event in painting] == list(range(10))
    assert painting[-1].done_tiles == painting[-1].tiles == conversion.record["tiles"]["tissue"]
    assert list(dict.fromkeys(event.stage for event in events)) == [
        "plan",
        "stain",
        "assemble",
        "check",
        "done",
    ]
    assert set(painting[-1].busy) == {"read", "wait", "generate", "blend", "certify", "write"}


def test_the_record_tells_how_the_output_was_made(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(700, 600))
    conversion = convert(request_of(slide, tmp_path / "x.ome.tiff"))
    written = json.loads((tmp_path / "x.ome.tiff.run.json").read_text())
    assert written == conversion.record
    assert written["fingerprint"]["source_sha256"] == hashlib.sha256(slide.read_bytes()).hexdigest()
    assert written["size_px"] == [700, 600]
    assert written["config"]["grid"]["block"] == 512
    assert written["notice"] == "VIRTUAL STAIN - NOT A PHYSICAL IHC"
    assert written["peak_memory_bytes"] > 50 << 20
    assert math.isclose(sum(written["seconds"]["threads"].values()), written["seconds"]["stain"], rel_tol=0.9)


# Memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from wsi_stain.files import record
from wsi_stain.conversion.engine import ConvertRequest, convert
import distributed, zarr, tifffile, openslide
start = record.peak_memory_bytes()
convert(ConvertRequest(Path(sys.argv[1]), Path(sys.argv[2]), "identity", mask="none", workers=2))
print(record.peak_memory_bytes() - start)
"""


def write_large_slide(path, rows, columns):
    """A tiled JPEG slide of repeated tiles, in no time."""
    source = path.with_suffix(".one.tif")
    options = {"tile": (512, 512), "photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
    tifffile.imwrite(source, noise(512, 512), **options)
    with tifffile.TiffFile(source) as file:
        data = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    tile = source.read_bytes()[data[0] : sum(data)]
    shape = (512 * rows, 512 * columns, 3)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write((tile for _ in range(rows * columns)), shape=shape, dtype="uint8", **options)
    return path


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(tmp_path):
    peaks = []
    for side in (20, 62):  # 0.1 gigapixels and 1
        slide = write_large_slide(tmp_path / f"{side}.tif", side, side)
        command = [sys.executable, "-c", MEASURE, str(slide), str(tmp_path / f"{side}.ome.tiff")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert max(peaks) < 1.5 * 2**30
    assert peaks[1] < 1.25 * peaks[0] + (32 << 20)


@pytest.mark.parametrize("mask", ["auto", "none"])
def test_a_damaged_tile_is_reported_whatever_finds_the_tissue(tmp_path, mask):
    # The overview shows lost tiles white: without care they would be background, and never read, counted or marked.
    pixels = np.full((1024, 1024, 3), 243, np.uint8)
    pixels[128:256, 128:256] = tissue(128, 128)  # one tile of the file
    path = write_svs(tmp_path / "a.svs", pixels)
    damage(path, 9, page=0)
    damage(path, 0, page=2)
    result = convert(request_of(path, tmp_path / "x.ome.tiff", "max_unreadable=1", mask=mask, mpp=8.0))
    assert result.unreadable
    lost = Box(128, 128, 256, 256)
    assert any((lost & box).area == lost.area for box in result.unreadable)
