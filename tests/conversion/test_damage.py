"""One damaged tile of a slide's file costs one tile of the output, with default settings, wherever it lies."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from builders.cohorts import request_of as cohort_request_of
from builders.conversions import pixels_of
from builders.he import tile
from builders.slides import write_svs
from builders.tiffs import write_aperio_j2k, write_pyramid, write_tiff
from distributed import LocalCluster

from wsi_stain.cohort.run import run
from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import WsiStainError
from wsi_stain.slide.slide import Slide
from wsi_stain.view.layers import FileLayer

SIDE = 1280
HOWS = {
    "zeros": lambda data: bytes(len(data)),
    "second half zero": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "ones": lambda data: b"\xff" * len(data),
    "random": lambda data: np.random.default_rng(0).bytes(len(data)),
}

SHOWN = {("WEBP", "second half zero")}
"""What decoders show as a picture and nothing in the stream tells: docs/reliability.md lists it."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Tissue without background: every tile is stained."""
    one = tile(3)
    n = -(-SIDE // one.shape[0])
    return np.ascontiguousarray(np.tile(one, (n, n, 1))[:SIDE, :SIDE])


def half(pixels: np.ndarray) -> np.ndarray:
    return pixels[::2, ::2]


KINDS = {
    "jpeg.svs": lambda path, pixels: write_svs(path, pixels, mpp=0.5),
    "deflate.tif": lambda path, pixels: write_tiff(path, pixels),
    "jpeg.tif": lambda path, pixels: write_tiff(path, pixels, compression="jpeg", photometric="ycbcr"),
    "pyramid.tif": lambda path, pixels: write_pyramid(path, [pixels, half(pixels), half(half(pixels))]),
    "j2k.svs": lambda path, pixels: write_aperio_j2k(path, pixels, code=33005, photometric=2),
}


def of_levels(path: Path) -> list:
    """Offsets and lengths of the tiles of every level."""
    with tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if page.is_tiled]
        return [list(zip(page.dataoffsets, page.databytecounts, strict=True)) for page in pages]


def codec_of(path: Path) -> str:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].compression.name


def damage(path: Path, extent: tuple[int, int], how: str) -> None:
    offset, count = extent
    with path.open("r+b") as file:
        file.seek(offset)
        data = file.read(count)
        file.seek(offset)
        file.write(HOWS[how](data))


def converted(slide: Path, output: Path, max_unreadable: float = 0.2):
    """With default settings, save the model, the compression, and the allowed share: there are only 25 tiles."""
    config = load(ConvertConfig, None, ["output.compression=deflate", f"max_unreadable={max_unreadable}"])
    return convert(ConvertRequest(slide, output, model="identity", workers=0, config=config))


def outside(result) -> np.ndarray:
    """The pixels outside the regions that are reported as unreadable."""
    keep = np.ones(pixels_of(result.output).shape[:2], bool)
    for box in result.unreadable:
        keep[box.slices()] = False
    return keep


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_reported_is_as_without_damage_at_every_level(tmp_path, pixels, name):
    path = tmp_path / name
    KINDS[name](path, pixels)
    expected = pixels_of(converted(path, tmp_path / "whole.ome.tiff").output)
    good = path.read_bytes()
    for level, tiles in enumerate(of_levels(path)):
        path.write_bytes(good)
        damage(path, tiles[len(tiles) // 2], "second half zero")
        result = converted(path, tmp_path / f"{level}.ome.tiff")
        keep = outside(result)
        assert (level == 0) == (not keep.all()), "the identity model reads level 0 alone"
        assert keep.mean() > 0.8
        np.testing.assert_array_equal(pixels_of(result.output)[keep], expected[keep])
        if level == 0:
            assert b"unreadable in the source" in result.output.read_bytes()
            assert result.record["unreadable"]


def test_a_cohort_converts_a_damaged_slide_and_its_account_tells_it(tmp_path, pixels):
    slides = tmp_path / "slides"
    slides.mkdir()
    path = write_svs(slides / "a.svs", pixels, mpp=0.5)
    for tiles in of_levels(path):
        damage(path, tiles[len(tiles) // 2], "second half zero")
    request = cohort_request_of(slides, tmp_path / "out", "convert.max_unreadable=0.2", mask="auto")
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        result = run(dataclasses.replace(request, scheduler=cluster.scheduler_address))
    assert not result.failed
    (account,) = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.account.json")]
    assert any("could not be read" in warning for warning in account["warnings"])


def test_the_viewer_hatches_what_is_lost_and_shows_the_rest(tmp_path, pixels):
    path = write_svs(tmp_path / "a.svs", pixels, mpp=0.5)
    with Slide.open(path) as slide:
        layer = FileLayer(slide)
        whole = layer.pixels(2, 0, 0)
        assert layer._own[0] is not None, "the browser gets the tiles of the file"
        stored = layer.tile(0, 5, 5)
        layer.close()
    damage(path, of_levels(path)[0][55], "second half zero")  # row 5, column 5 of 10: px 640–768
    damage(path, of_levels(path)[1][0], "second half zero")  # px 0–512 of the quarter
    with Slide.open(path) as slide:
        layer = FileLayer(slide)
        assert layer.tile(0, 5, 5) != stored, "a browser would show a damaged stream as a picture"
        at = layer.pixels(0, 5, 5)
        assert set(np.unique(at)) <= {205, 225}
        # A coarse tile: what the coarse level has lost comes from level 0, apart from the part that this has lost, too.
        coarse = layer.pixels(2, 0, 0)
        is_hatched = np.isin(coarse, (205, 225)).all(2) & ~np.isin(whole, (205, 225)).all(2)
        assert is_hatched[:120].sum() == 0
        mean = pixels[:512, :512].reshape(128, 4, 128, 4, 3).mean((1, 3))
        assert np.abs(coarse - mean)[:120].mean() < 3
        layer.close()


@pytest.mark.slow
def test_lost_tables_and_a_lost_end_are_a_sentence_or_reported(tmp_path, pixels):
    for name in ("jpeg.tif", "pyramid.tif", "jpeg.svs"):
        path = tmp_path / name
        KINDS[name](path, pixels)
        expected = pixels_of(converted(path, tmp_path / f"{name}.ome.tiff").output)
        good = path.read_bytes()
        last = max(offset for tiles in of_levels(path) for offset, _ in tiles)
        for case, data in {
            "cut": good[:-700],
            "head": bytes(8) + good[8:],
            "index": good[:8] + bytes(400) + good[408:],
            "end": good[: last + 10] + bytes(len(good) - last - 10),
        }.items():
            path.write_bytes(data)
            output = tmp_path / f"{name}.{case}.ome.tiff"
            sentences = []
            try:
                result = converted(path, output)
            except WsiStainError as err:
                sentences.append(str(err))
            if sentences:
                assert "\n" not in sentences[0]
                assert not output.exists()
            else:
                keep = outside(result)
                np.testing.assert_array_equal(pixels_of(result.output)[keep], expected[keep], err_msg=f"{name} {case}")


@pytest.mark.slow
def test_damaged_tiles_of_real_slides_cost_the_tiles_that_are_reported(data, tmp_path):
    tried = []
    for source in sorted((data / "slides").iterdir()):
        if not source.is_file() or source.stat().st_size > int(os.environ.get("WSI_STAIN_LARGEST", "4000000")):
            continue
        try:
            levels, codec = of_levels(source), codec_of(source)
            whole = converted(source, tmp_path / f"{source.name}.whole.ome.tiff", max_unreadable=0)
        except (WsiStainError, tifffile.TiffFileError):
            continue  # refused also without damage
        if not levels or len(levels[0]) < 100:  # no TIFF, or so small that all of it is lost
            continue
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        hows = [how for how in HOWS if (codec, how) not in SHOWN]
        for n, how in enumerate(hows):
            part = slice(len(levels[0]) * n // len(hows), len(levels[0]) * (n + 1) // len(hows))
            damage(path, max(levels[0][part], key=lambda tile: tile[1]), how)
        result = converted(path, tmp_path / f"{source.name}.ome.tiff", max_unreadable=1)
        keep = outside(result)
        assert keep.mean() > 0.5
        changed = (pixels_of(result.output)[keep] != pixels_of(whole.output)[keep]).any(1).sum()
        assert changed == 0, f"{source.name}: {changed} px differ and are not reported"
        tried.append(codec)
    assert "JPEG" in tried
