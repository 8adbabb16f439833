"""A search over bytes: outputs hold nothing of a slide's label, texts and names, nor the user's home folder."""

import json
import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from builders.cohorts import request_of as cohort_request_of
from builders.dicom_frames import write_frames
from builders.he import tile
from builders.jpegs import jpeg
from distributed import LocalCluster
from PIL import Image, PngImagePlugin

from wsi_stain.cli import main
from wsi_stain.cohort.qupath import write_script
from wsi_stain.cohort.run import run
from wsi_stain.conversion.engine import convert
from wsi_stain.files.paths import without_home

SECRETS = ("Zyxwvut-Jane", "MRN-77120345", "Dr-Quackenbush", "BC0815-4711", "1931-02-29", "St-Elsewhere")
NAME, NUMBER, DOCTOR, BARCODE, BORN, PLACE = SECRETS
HOME = "hieronymus-user"
PIXELS = np.ascontiguousarray(np.tile(tile(seed=1), (2, 2, 1)))
SCALE = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def svs(path: Path) -> Path:
    """Aperio with names in every text, a label, a macro, and an EXIF-like set of tags."""
    text = (
        f"Aperio Image Library v11.2.1 \r\n512x512 [0,0 512x512] (128x128) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
        f"|Patient = {NAME}|MRN = {NUMBER}|User = {DOCTOR}|Barcode = {BARCODE}|Born = {BORN}|Title = {PLACE}"
    )
    tags = [(315, "s", 0, DOCTOR, True), (316, "s", 0, PLACE, True), (269, "s", 0, f"{NAME} {BORN}", True)]
    tags += [(700, "B", 0, f"<x:xmpmeta>{NAME} {NUMBER}</x:xmpmeta>".encode(), True)]
    common = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PIXELS, tile=(128, 128), description=text, extratags=tags, **common)
        for kind in ("label", "macro"):
            small = np.full((64, 96, 3), 200, np.uint8)
            tiff.write(small, description=f"Aperio Image Library\r\n{kind} {BARCODE} {NAME}", rowsperstrip=64, **common)
    return path


def ome(path: Path) -> Path:
    """OME-XML with an experimenter, dates and annotations."""
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Experimenter ID="Experimenter:0" FirstName="{DOCTOR}" Institution="{PLACE}"/>'
        f'<Image ID="Image:0" Name="{NAME}"><AcquisitionDate>1931-02-28T00:00:00</AcquisitionDate>'
        f'<Description>{NUMBER} {BARCODE}</Description><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="512" SizeY="512" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5" '
        'Interleaved="true"><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image>'
        '<StructuredAnnotations><CommentAnnotation ID="Annotation:0"><Value>'
        f"{BORN}</Value></CommentAnnotation></StructuredAnnotations></OME>"
    )
    tifffile.imwrite(path, PIXELS, tile=(128, 128), photometric="rgb", description=xml, metadata=None, **SCALE)
    return path


def dicom(path: Path) -> Path:
    """Attributes of patient, physician and institution."""
    (file,) = write_frames(path.parent / "made", [PIXELS], lambda t: jpeg(t, marker="JFIF"), photometric="YBR_FULL_422")
    data = pydicom.dcmread(file)
    data.PatientName, data.PatientID, data.ContainerIdentifier = NAME, NUMBER, BARCODE
    data.ReferringPhysicianName, data.InstitutionName, data.StudyDescription = DOCTOR, PLACE, BORN
    data.save_as(path)
    return path


def png(path: Path) -> Path:
    """Text chunks and EXIF."""
    texts, exif = PngImagePlugin.PngInfo(), Image.Exif()
    for key, value in zip(("Author", "Title", "Comment"), SECRETS, strict=False):
        texts.add_text(key, value)
    exif[315], exif[270], exif[306] = DOCTOR, f"{NAME} {NUMBER} {BARCODE} {PLACE}", BORN
    Image.fromarray(PIXELS).save(path, pnginfo=texts, exif=exif)
    return path


SLIDES = {"svs": svs, "ome.tif": ome, "dcm": dicom, "png": png}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder whose name must not be found."""
    folder = tmp_path / HOME
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def leaks(folder: Path, *texts: str | bytes) -> list[str]:
    """Where a secret or the home folder is found, in any file of a folder, its name, or a text."""
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {f"text {n}": t.encode() if isinstance(t, str) else t for n, t in enumerate(texts)}
    assert contents
    needles = [form for secret in (*SECRETS, HOME) for form in (secret.encode(), secret.encode("utf-16-le"))]
    return [f"{needle!r} in {name}" for name, content in contents.items() for needle in needles if needle in content]


@pytest.mark.parametrize("ending", ["ome.tiff", "ome.zarr", "dcm"])
@pytest.mark.parametrize("kind", SLIDES)
def test_no_text_of_the_slide_is_in_an_output_its_record_or_what_is_printed(home, kind, ending, capfd, caplog):
    slide = SLIDES[kind](home / f"slide.{kind}")
    assert leaks(home), "the search finds the secrets of the slide itself"
    out = home / "out"
    out.mkdir()
    arguments = [
        str(slide),
        "--model",
        "identity",
        "-o",
        str(out / f"x.{ending}"),
        *(("--mpp", "0.5") if kind == "png" else ()),
    ]
    with caplog.at_level(logging.DEBUG, logger="wsi_stain"), pytest.raises(SystemExit) as code:
        main(["convert", *arguments])
    assert code.value.code == 0
    printed = capfd.readouterr()
    shown = (printed.out + printed.err + caplog.text).replace(str(home), "")  # the output's path, as it was given
    assert leaks(out, shown) == []
    for command in (["info", str(slide), "--json"], ["info", str(out / f"x.{ending}"), "--json"]):
        with pytest.raises(SystemExit):
            main(command)
        assert leaks(out, capfd.readouterr().out.replace(str(home), "")) == []


def test_the_home_folder_is_recorded_only_if_asked_for(home, capfd):
    slide = svs(home / "slide.svs")
    for flags in ((), ("--keep-paths",)):
        with pytest.raises(SystemExit):
            main(["convert", str(slide), "--model", "identity", "-o", str(home / "x.ome.tiff"), "--restart", *flags])
        content = (home / "x.ome.tiff.run.json").read_text()
        assert (str(home) in content) == bool(flags)
        assert json.loads(content)["arguments"]["slide"] == (str(slide) if flags else "~/slide.svs")


def test_texts_without_the_home_folder_stay_as_they_are(home):
    assert without_home({"a": [str(home / "x"), 1, None], "b": "/home"}) == {"a": ["~/x", 1, None], "b": "/home"}


def test_a_cohort_page_script_accounts_and_failures_tell_nothing(home, monkeypatch):
    slides = home / "slides"
    slides.mkdir()
    svs(slides / "a.svs")
    (slides / "broken.svs").write_bytes((slides / "a.svs").read_bytes()[:30_000])
    out = home / "out"
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        run(cohort_request_of(slides, out, scheduler=cluster.scheduler_address))
    write_script(out)
    assert {"summary.html", "a.run.json"} & {p.name for p in out.iterdir()}
    needed = {"cohort.json", "qupath.groovy", "rows.json"}  # they name the slides for later runs, and QuPath's project
    found = [leak for leak in leaks(out) if not (HOME in leak and leak.rpartition(" ")[2] in needed)]
    assert found == []


def test_the_viewer_s_responses_tell_nothing(home):
    from view.test_server import serving

    from wsi_stain.conversion.request import ConvertRequest
    from wsi_stain.view.scene import Source

    request = ConvertRequest(svs(home / "slide.svs"), home / "x.ome.tiff", model="identity", workers=0)
    convert(request)
    with serving(Source("slide.svs", request, home / "x.ome.tiff")) as (page, _):
        paths = ["/", "/slides", "/slides/0", "/slides/0/he/0/0/0", "/slides/0/stain/0/0/0", "/slides/0/thumbnail"]
        paths += ["/slides/0/outlines/tissue", "/slides/0/outlines/unreadable", "/page/app.js"]
        answers = [page.raw("GET", path) for path in paths]
        assert [response.status for response, _ in answers[:6]] == [200] * 6
        assert (
            leaks(home / "nothing", *(content + str(response.headers).encode() for response, content in answers)) == []
        )
