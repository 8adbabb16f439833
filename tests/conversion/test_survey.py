"""Survey, Job and Estimate: they look, travel and count, and change nothing on the disk."""

import dataclasses
import hashlib
import json
import pickle
import uuid

import numpy as np
import pytest
import tifffile
import zarr
from builders.conversions import InvertAndBlur, noise, pixels_of, request_of, write_slide
from builders.formats.omezarr import pyramid

from wsi_stain import __version__
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.estimate import Estimate, sample
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.provenance import Fingerprint
from wsi_stain.conversion.survey import Survey
from wsi_stain.conversion.view import stained
from wsi_stain.errors import OutputError
from wsi_stain.geometry import Box, Size
from wsi_stain.model.bundle import IdentityGenerator
from wsi_stain.tissue.mask import from_geojson

TILES = "grid.tile=256", "grid.overlap=64", "cache_mib=0"


def listing(folder):
    """Names, times and contents of a folder and of everything in it."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths]


def look(request):
    """All that --dry-run does."""
    survey = Survey.of(request)
    job = Job.of(survey)
    left = Estimate.of(survey, job)
    return survey, job, left.with_sample(survey, None if left.is_done else sample(survey, job, seconds=0.01))


def half_done(request):
    """Convert two blocks or so; a block of 512 px takes three batches of four tiles of 256 px."""
    calls = []

    def generate(self, tiles):
        calls.append(1)
        return tiles if len(calls) < 8 else 1 // 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdentityGenerator, "__call__", generate)
        with pytest.raises(ZeroDivisionError):
            convert(request)


def square(path, x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr"])
def test_looking_writes_and_deletes_nothing_at_any_stage_of_a_run(tmp_path, ending):
    slide, output = write_slide(tmp_path / "s.tif", noise(1100, 900)), tmp_path / f"x.{ending}"
    mask = square(tmp_path / "m.geojson", 0, 0, 900, 1100)
    request = request_of(slide, output, *TILES, mask=mask)
    before = listing(tmp_path)
    assert len(look(request)[2].todo) == 6
    assert listing(tmp_path) == before, "nothing exists yet"
    half_done(request)
    first, *_ = sorted((tmp_path / f"x.{ending}.spool").glob("b_*"))
    left = len(look(request)[2].todo)
    assert 0 < left < 6
    first.write_bytes(first.read_bytes()[:-9])
    (tmp_path / f"x.{ending}.spool" / "tmp-of-a-killed-writer").write_bytes(b"x")
    before = listing(tmp_path)
    assert len(look(request)[2].todo) == left + 1
    assert len(look(dataclasses.replace(request, restart=True))[2].todo) == 6
    assert listing(tmp_path) == before, "a run is half done, and one block is damaged"
    convert(request)
    assert np.array_equal(pixels_of(output), noise(1100, 900))
    before = listing(tmp_path)
    assert look(request)[2].is_done
    with pytest.raises(OutputError, match="other settings"):
        look(dataclasses.replace(request, region=(0, 0, 300, 300)))
    assert listing(tmp_path) == before, "it is done"


def test_a_survey_counts_everything(tmp_path, use):
    use(InvertAndBlur, mpp=1.0)
    slide = write_slide(tmp_path / "s.tif", noise(3000, 2600))
    survey, job, left = look(request_of(slide, tmp_path / "x.ome.tiff"))
    assert (survey.grid.size, survey.scale, survey.magnification) == (Size(1500, 1300), 2, 10)
    assert survey.tiles == survey.tissue_tiles == left.tissue_tiles == 16 * 14
    assert left.todo == survey.blocks
    assert len(survey.blocks) == 9
    written = convert(survey.request)
    assert left.disk_bytes > written.output.stat().st_size
    assert Estimate.of(survey, job).is_done
    assert Estimate.of(survey, job).seconds == 0


@pytest.mark.slow
def test_the_tissue_tiles_of_blocks_are_those_of_the_naive_twin(tmp_path, use):
    use(InvertAndBlur, mpp=1.0)
    slide = write_slide(tmp_path / "s.tif", noise(3000, 2600))
    mask = square(tmp_path / "m.geojson", 333, 444, 1777, 2111)
    survey = Survey.of(request_of(slide, tmp_path / "x.ome.tiff", mask=mask, region=(301, 77, 2000, 2500)))
    cells = from_geojson(mask, Size(3000, 2600))
    drawn = np.zeros((1500, 1300), bool)  # in the view's frame: every px that a cell of the mask touches
    for y, x in np.argwhere(cells.array):
        n = int(cells.scale)
        drawn[y * n // 2 : -(-(y + 1) * n // 2), x * n // 2 : -(-(x + 1) * n // 2)] = True
    expected = {block.index: [] for block in survey.blocks}
    for tile in survey.grid.tiles(survey.grid.region):
        if drawn[tile.y0 : tile.y1, tile.x0 : tile.x1].any():
            expected[survey.grid.owner(tile)].append(tile)
    assert {index: list(tiles) for index, tiles in survey.tissue.items()} == expected
    assert 0 < survey.tissue_tiles < survey.tiles
    view = survey.view.open()
    with view.slide:
        of_blocks = {tile for block in survey.blocks for tile in stained(block.tiles, survey.mask, view)}
    assert of_blocks == {tile for tiles in expected.values() for tile in tiles}, "the painter stains the same tiles"


def test_a_job_travels_and_a_survey_cannot_be_changed(tmp_path, use):
    use(InvertAndBlur)
    slide = write_slide(tmp_path / "s.tif", noise(700, 600))
    request = request_of(slide, tmp_path / "x.ome.tiff", mpp=0.25)
    survey = Survey.of(request)
    job = Job.of(survey)
    sent = pickle.loads(pickle.dumps(job))
    assert sent == job == Job.of(Survey.of(request))
    assert hash(sent) == hash(job)
    assert len(pickle.dumps(job)) < 20_000
    assert (request.mpp, job.view.mpp) == (0.25, 0.25)
    for value, field in ((survey, "norm"), (job, "device"), (job.fingerprint, "tile"), (job.view, "mpp")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_the_fingerprint_on_disk_has_these_keys(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(1100, 900))
    request = request_of(slide, tmp_path / "x.ome.tiff", "grid.tile=256", "grid.overlap=32", region=(10, 20, 300, 200))
    survey = Survey.of(request)
    expected = {
        "source_sha256": hashlib.sha256(slide.read_bytes()).hexdigest(),
        "source_bytes": slide.stat().st_size,
        "mpp": 0.5,
        "scale": "1",
        "region": [10, 20, 300, 200],
        "region_order": "x, y, w, h",
        "model": "identity",
        "model_version": survey.bundle.version,
        "model_sha256": "",
        "background": list(survey.bundle.background),
        "tile": 256,
        "overlap": 32,
        "block": 512,
        "mask_sha256": survey.mask.sha256,
        "output": {"compression": "deflate", "quality": 90, "subsampling": "420", "compat_openslide": False},
        "norm": "frozen",
        "certificate": True,
        "wsi_stain": __version__,
        "precision": "fp32",
        "icc_profile": "none: pixels as stored",
    }
    fingerprint = Fingerprint.of(survey)
    assert json.loads(json.dumps(fingerprint.as_dict())) == fingerprint.as_dict() == expected
    name = "wsi-stain:" + json.dumps(expected, sort_keys=True)
    assert fingerprint.uuid == str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    half_done(request_of(slide, tmp_path / "y.ome.tiff", *TILES))
    stored = json.loads((tmp_path / "y.ome.tiff.spool" / "run.json").read_text())
    assert list(stored) == sorted(expected)


def test_a_run_of_other_settings_is_refused_in_one_sentence(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(1100, 900))
    request = request_of(slide, tmp_path / "x.ome.tiff", *TILES)
    half_done(request)
    path = tmp_path / "x.ome.tiff.spool" / "run.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"wsi_stain": "0.0.9", "a key of another version": 1}))
    with pytest.raises(OutputError, match=r"other settings \(a key of another version, wsi_stain\).*--restart"):
        convert(request)
    path.write_text(json.dumps(stored))
    assert convert(request).record["blocks"]["painted_in_this_run"] < 6


def test_a_region_is_rounded_outwards_into_the_frame_of_the_view(tmp_path, use):
    use(InvertAndBlur, mpp=1.0)
    slide = write_slide(tmp_path / "s.tif", noise(701, 601))
    survey = Survey.of(request_of(slide, tmp_path / "x.ome.tiff", region=(3, 5, 4, 7)))
    assert survey.grid.region == Box(2, 1, 6, 4)


def test_a_slide_without_a_pixel_size_is_surveyed_for_a_model_that_needs_none(tmp_path):
    slide = tmp_path / "s.tif"
    tifffile.imwrite(slide, noise(700, 600), tile=(256, 256), photometric="rgb")
    survey = Survey.of(request_of(slide, tmp_path / "x.ome.tiff", *TILES))
    assert (survey.view_mpp, survey.reading.stored_mpp) == (None, None)


def test_replaced_pixels_of_an_ome_zarr_are_another_source(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    pyramid(group, noise(700, 600), 0.5, version="0.5")
    request = request_of(tmp_path / "a.zarr", tmp_path / "x.ome.tiff", *TILES)
    convert(request)
    assert convert(request).already_done
    first, second = sorted(
        path for path in (tmp_path / "a.zarr" / "0").rglob("*") if path.is_file() and "c" in path.parts
    )[:2]
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])  # the same bytes at other places
    with pytest.raises(OutputError, match="other settings"):
        convert(request)
