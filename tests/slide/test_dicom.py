"""DICOM series: one is one slide, whatever its files are called."""

import numpy as np
import pytest
from builders.dicom import write_series
from builders.slides import tissue

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box
from wsi_stain.slide.dicom import is_dicom, only_series, series_in, series_of
from wsi_stain.slide.slide import Slide


@pytest.mark.parametrize("ending", [".dcm", "", ".ima"])
def test_a_folder_is_the_slide_of_its_only_series(tmp_path, ending):
    pixels = tissue(300, 400)
    write_series(tmp_path / "deep" / "er", pixels, ending=ending)
    (tmp_path / "deep" / "readme").write_text("not DICOM")
    with Slide.open(tmp_path) as slide:
        assert slide.size == (300, 400)
        assert len(slide.levels) == 2
        assert np.array_equal(slide.at(None).read(Box(0, 0, 300, 400)), pixels)


def test_a_folder_with_two_series_is_refused_by_name(tmp_path):
    write_series(tmp_path, tissue(200, 200))
    write_series(tmp_path, tissue(200, 200, seed=1), prefix="b_")
    with pytest.raises(SlideError, match=r"holds 2 DICOM series.*b_level0\.dcm, level0\.dcm"):
        Slide.open(tmp_path)


def test_a_series_of_a_label_alone_is_no_slide(tmp_path):
    files = write_series(tmp_path, tissue(200, 200))
    for path in files[:2]:
        path.unlink()
    assert [series.levels for series in series_in(tmp_path)] == [()]
    with pytest.raises(SlideError, match="without DICOM instances of a slide"):
        only_series(tmp_path)


def test_levels_come_largest_first_and_labels_never(tmp_path):
    files = write_series(tmp_path, tissue(200, 200))
    (series,) = series_in(tmp_path)
    assert series.levels == tuple(files[:2])
    assert set(series.files) == set(files)
    assert series_of(files[3]) == series


def test_damaged_headers_are_no_series(tmp_path):
    whole = write_series(tmp_path, tissue(100, 100), label=False)[0].read_bytes()
    for n, length in enumerate((132, 140, 300, 500)):
        path = tmp_path / f"cut{n}"
        path.write_bytes(whole[:length])
        assert is_dicom(path)
    (tmp_path / "noise").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(999))
    assert len(series_in(tmp_path)) == 1
