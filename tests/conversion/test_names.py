"""A name that is too long is refused before painting; the longest that passes can be written."""

import pytest
from builders.conversions import noise, request_of, write_slide

from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.names import check_name
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import OutputError


def test_the_longest_name_that_passes_can_be_written_and_one_more_letter_is_refused(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    ending = "ü.ome.tiff"
    longest = max(n for n in range(100, 255) if _passes(tmp_path / ("a" * n + ending)))
    assert 190 < longest < 254
    assert convert(request_of(slide, tmp_path / ("a" * longest + ending), mask="auto")).output.exists()
    with pytest.raises(OutputError, match=r"at most \d+ fit .*shorter name with -o"):
        Job.of(Survey.of(request_of(slide, tmp_path / ("a" * (longest + 1) + ending))))


def _passes(path):
    try:
        check_name(path)
    except OutputError:
        return False
    return True
