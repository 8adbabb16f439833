"""Plans: what a slide and a cohort will take, from a sample."""

import time

import numpy as np
import pytest
import tifffile
from builders.cohorts import names, request_of, write_large, write_slides

from wsi_stain.cohort import plan as module
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.plan import check_resources, plan
from wsi_stain.cohort.request import to_convert
from wsi_stain.conversion import estimate
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.estimate import Estimate
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import InsufficientResources
from wsi_stain.geometry import Size
from wsi_stain.model.bundle import IdentityGenerator


def slow(monkeypatch, seconds: float = 0.02):
    def generate(self, tiles):
        time.sleep(seconds * len(tiles))
        return tiles

    monkeypatch.setattr(IdentityGenerator, "__call__", generate)


def test_a_plan_names_every_slide_and_the_totals_and_writes_nothing(tmp_path):
    slides = write_slides(tmp_path / "slides", 2)
    write_large(slides / "s2.tif", 4, 3)
    result = plan(request_of(slides, tmp_path / "out"))
    assert [slide.size for slide in result.slides] == [Size(300, 320), Size(300, 320), Size(2048, 1536)]
    assert [slide.tissue_tiles for slide in result.slides] == [1, 1, 12]
    assert result.disk_bytes == pytest.approx(
        sum(slide.kept_bytes for slide in result.slides) + result.slides[2].disk_bytes - result.slides[2].kept_bytes
    )
    assert result.memory_bytes == max(slide.memory_bytes for slide in result.slides)
    assert result.problems() == []
    assert names(tmp_path) == ["slides"]


def test_what_is_done_costs_nothing_and_what_is_painted_costs_less(tmp_path, monkeypatch):
    slides, out = write_slides(tmp_path / "slides", 1), tmp_path / "out"
    write_large(slides / "s1.tif", 4, 3)
    out.mkdir()
    request = request_of(slides, out)
    done, half = checked(request)
    convert(to_convert(request, done, 0))
    calls = []

    def generate(self, tiles):
        calls.append(1)
        return tiles if len(calls) < 6 else 1 // 0

    with monkeypatch.context() as patch:
        patch.setattr(IdentityGenerator, "__call__", generate)
        with pytest.raises(ZeroDivisionError):
            convert(to_convert(request, half, 0))
    result = plan(request)
    assert result.done == 1
    assert [slide.row.slide_id for slide in result.slides] == ["s1"]
    assert result.slides[0].tissue_tiles == 12 - len(list(out.glob("*.spool/b_*"))) < 12


def test_what_cannot_fit_is_refused_with_both_numbers(tmp_path, monkeypatch):
    request = request_of(write_slides(tmp_path / "slides", 2), tmp_path / "out")
    monkeypatch.setattr(module, "disk_free", lambda output: 1000)
    result = plan(request)
    with pytest.raises(InsufficientResources, match=r"needs about .* MiB of disk and 0.0 MiB are free"):
        check_resources(result)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_time_is_that_of_the_device_where_the_device_is_slow(tmp_path, monkeypatch, threads):
    slide = write_large(tmp_path / "s.tif", 5, 5)
    survey = Survey.of(to_convert(request_of(slide, tmp_path), checked(request_of(slide, tmp_path))[0], threads))
    job = Job.of(survey)
    slow(monkeypatch)
    actual = estimate.sample(survey, job, seconds=0.3)
    assert actual
    assert 1 <= actual.tiles < 25, "it stops after its time"
    assert actual.generate_s == pytest.approx(0.02, rel=0.5)
    assert Estimate.of(survey, job).with_sample(survey, actual).seconds >= 25 * 0.02


def test_background_is_planned_without_a_sample(tmp_path):
    scale = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "glass.tif", np.full((1500, 1500, 3), 243, np.uint8), tile=(128, 128), **scale)
    request = request_of(tmp_path / "glass.tif", tmp_path / "out", mask="auto")
    result = plan(request)
    assert result.samples == ()
    assert result.slides[0].tissue_tiles == 0
    assert result.seconds < 0.1


def test_a_hash_that_is_known_is_not_made_again(tmp_path):
    slide = write_slides(tmp_path / "slides", 1) / "s0.tif"
    request = request_of(slide, tmp_path)
    requested = to_convert(request, checked(request)[0], 0)
    slow_way = Survey.of(requested)
    quick = Survey.of(requested, source=(slow_way.source_sha256, slide.stat().st_size))
    assert Job.of(quick) == Job.of(slow_way)
    assert Job.of(Survey.of(requested, source=("", 1))).fingerprint.source_bytes == 1
