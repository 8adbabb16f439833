"""Which slides the viewer shows, and the command that completes what it stained."""

from pathlib import Path

import pytest
from builders.cohorts import request_of, write_slides

from wsi_stain.cli.convert import command as convert_command
from wsi_stain.cli.view import _resume, command
from wsi_stain.cohort.check import checked
from wsi_stain.cohort.files import Folder
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.errors import SlideError
from wsi_stain.files import record
from wsi_stain.view.catalogue import sources_of


def test_the_finished_slides_of_a_cohort_are_listed(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    request = request_of(write_slides(tmp_path / "slides", 3), folder)
    rows, files = checked(request), Folder(folder)
    files.begin(request, rows)
    with pytest.raises(SlideError, match="no finished slide"):
        sources_of(ConvertRequest(folder))
    for row in (rows[0], rows[2]):
        files.output(row).write_bytes(b"a stain")
        record.write(record.path_of(files.output(row)), {"seconds": {"all": 1.0}})
    sources = sources_of(ConvertRequest(folder))
    assert [source.name for source in sources] == [rows[0].slide_id, rows[2].slide_id]
    assert [source.virtual for source in sources] == [files.output(rows[0]), files.output(rows[2])]
    assert [source.request.slide for source in sources] == [rows[0].slide, rows[2].slide]


def test_the_command_to_resume_has_the_same_options():
    words = [
        "my slide.svs",
        "-o",
        "x.ome.tiff",
        "--region",
        "1,2,30,40",
        "--set",
        "a=1",
        "--set",
        "b=2",
        "--port",
        "80",
    ]
    words += ["--port", "80", "--allow-upsampling", "--model", "identity", "--no-browser"]
    resume = _resume(command.make_context("view", words))
    assert resume.startswith("wsi-stain convert 'my slide.svs' ")
    import shlex

    parsed = convert_command.make_context("convert", shlex.split(resume)[2:]).params
    assert parsed["slide"] == Path("my slide.svs")
    assert (parsed["output"], parsed["models"], parsed["region"]) == (Path("x.ome.tiff"), ("identity",), (1, 2, 30, 40))
    assert (parsed["settings"], parsed["allow_upsampling"]) == (("a=1", "b=2"), True)
