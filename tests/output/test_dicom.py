"""DICOM series of virtual stains: the pixels of the OME-TIFF, no patient, and a header that other software accepts."""

import json
import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import openslide
import pydicom
import pytest
import wsidicom
from builders.conversions import digest, noise, pixels_of, request_of, write_slide
from builders.dicom import write_series
from builders.slides import tissue
from click.testing import CliRunner
from PIL import Image
from pydicom.encaps import generate_frames

from wsi_stain.cli import group
from wsi_stain.conversion.engine import convert
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import OutputError
from wsi_stain.files import atomic
from wsi_stain.files.notice import NOTICE
from wsi_stain.geometry import Box
from wsi_stain.output import dicom, dicom_canvas
from wsi_stain.output.dicom import header
from wsi_stain.output.ometiff.subject import error
from wsi_stain.output.ometiff.tiff import Tiff
from wsi_stain.output.virtual import virtual_stain
from wsi_stain.slide.slide import Slide

TESTS = Path(__file__).parent.parent

ENCODINGS = {
    "420": ["output.compression=jpeg"],
    "422": ["output.compression=jpeg", "output.subsampling=422"],
    "rgb": ["output.compression=jpeg", "output.subsampling=rgb"],
    "lossless": [],
}
EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyID"),
)
REQUIRED = (
    *EMPTY,
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "FrameOfReferenceUID", "InstanceNumber"),
    *("PositionReferenceIndicator", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    *("ContentDate", "ContentTime", "AcquisitionDateTime", "ImageType", "BurnedInAnnotation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "NumberOfFrames", "SharedFunctionalGroupsSequence", "DimensionOrganizationSequence"),
    *("AcquisitionContextSequence", "ContainerIdentifier", "IssuerOfTheContainerIdentifierSequence"),
    *("ContainerTypeCodeSequence", "SpecimenDescriptionSequence", "ImagedVolumeWidth", "ImagedVolumeHeight"),
    *("ImagedVolumeDepth", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixOriginSequence"),
    *("ImageOrientationSlide", "FocusMethod", "ExtendedDepthOfField", "VolumetricProperties", "SpecimenLabelInImage"),
    *("LossyImageCompression", "NumberOfOpticalPaths", "OpticalPathSequence", "SOPClassUID", "SOPInstanceUID"),
)
"""The attributes of types 1 and 2 of the modules of a VL Whole Slide Microscopy Image (PS3.3, A.32.8)."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Image, and an OME-TIFF and a DICOM series of it in every encoding."""
    folder = tmp_path_factory.mktemp("dicom")
    slide = write_slide(folder / "s.tif", noise(700, 601))
    made = {}
    for name, keys in ENCODINGS.items():
        tiff = convert(request_of(slide, folder / f"{name}.ome.tiff", *keys)).output
        made[name] = tiff, convert(request_of(slide, folder / f"{name}.dcm", *keys)).output
    return made


@pytest.mark.parametrize("name", ENCODINGS)
def test_openslide_wsidicom_and_our_reader_show_the_pixels_of_the_ome_tiff(outputs, name):
    tiff, series = outputs[name]
    levels = [pixels_of(tiff, level) for level in range(2)]
    with openslide.OpenSlide(series / "level_0.dcm") as slide:
        assert slide.level_dimensions == tuple(pixels.shape[1::-1] for pixels in levels)
        for level, pixels in enumerate(levels):
            region = slide.read_region((0, 0), level, slide.level_dimensions[level])
            assert np.array_equal(np.asarray(region.convert("RGB")), pixels), f"OpenSlide, level {level}"
    with wsidicom.WsiDicom.open(series) as slide:
        for level, pixels in zip(slide.levels, levels, strict=True):
            region = np.asarray(slide.read_region((0, 0), level.level, (level.size.width, level.size.height)))
            error = np.abs(region.astype(int) - pixels).max()
            assert error == 0 or (name != "lossless" and error <= 3), f"wsidicom, level {level.level}: {error}"
    with Slide.open(series) as slide:
        assert slide.icc is None, "sRGB is not converted"
        assert np.array_equal(slide.at(slide.mpp).read(Box.of(slide.size)), levels[0])


def test_lossless_gives_the_slide_back_bit_for_bit(outputs, tmp_path):
    _, series = outputs["lossless"]
    with openslide.OpenSlide(series / "level_0.dcm") as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    assert np.array_equal(pixels, noise(700, 601))
    again = convert(request_of(series, tmp_path / "x.ome.tiff", allow_virtual=True))
    assert np.array_equal(pixels_of(again.output), noise(700, 601))


@pytest.mark.parametrize("name", ["420", "422", "rgb"])
def test_frames_are_the_encoded_tiles_of_the_ome_tiff(outputs, name):
    tiff, series = outputs[name]
    with Tiff.open(tiff) as file:
        pages = (file.pages[0], *file.reduced(file.pages[0]))
        for level, page in enumerate(pages):
            data = pydicom.dcmread(series / f"level_{level}.dcm")
            frames = generate_frames(
                data.PixelData,
                number_of_frames=data.NumberOfFrames,
                extended_offsets=(data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths),
            )
            tiles = [page.stored(n) for n in range(page.grid.h * page.grid.w)]
            assert [frame[: len(tile)] for frame, tile in zip(frames, tiles, strict=True)] == tiles
            walked = generate_frames(data.PixelData, number_of_frames=data.NumberOfFrames)
            assert [frame[: len(tile)] for frame, tile in zip(walked, tiles, strict=True)] == tiles, "without the table"


@pytest.mark.parametrize("name", ENCODINGS)
def test_scale_magnification_and_profile_are_right(outputs, name):
    _, series = outputs[name]
    with openslide.OpenSlide(series / "level_0.dcm") as slide:
        properties = slide.properties
        assert float(properties["openslide.mpp-x"]) == float(properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert float(properties["openslide.objective-power"]) == 20
        assert "sRGB" in slide.color_profile.profile.profile_description
    for level in range(2):
        data = pydicom.dcmread(series / f"level_{level}.dcm")
        spacing = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        assert list(map(float, spacing)) == [0.0005 * 2**level] * 2
        assert data.ImagedVolumeWidth == pytest.approx(data.TotalPixelMatrixColumns * float(spacing[1]))
        assert data.ImagedVolumeHeight == pytest.approx(data.TotalPixelMatrixRows * float(spacing[0]))
        stored = sum(np.frombuffer(data.ExtendedOffsetTableLengths, "<u8"))
        if name != "lossless":
            ratio = data.NumberOfFrames * 3 * 512 * 512 / stored
            assert float(data.LossyImageCompressionRatio) == pytest.approx(ratio, abs=1e-3)
        assert data.LossyImageCompression == ("00" if name == "lossless" else "01")


def test_the_header_is_complete_marks_a_virtual_stain_and_names_no_patient(outputs):
    tiff, series = outputs["420"]
    annotations = json.loads(CliRunner().invoke(group, ["info", str(tiff), "--json"]).output)["annotations"]
    for level in range(2):
        data = pydicom.dcmread(series / f"level_{level}.dcm")
        assert [name for name in REQUIRED if name not in data] == []
        assert [name for name in EMPTY if data.get(name)] == []
        assert list(data.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]
        assert (data.BurnedInAnnotation, data.SyntheticData, data.ContentQualification) == ("NO", "YES", "RESEARCH")
        equipment = data.ContributingEquipmentSequence[0]
        for text in (data.DerivationDescription, equipment.ContributionDescription):
            assert text.startswith(NOTICE)
            assert all(word in text for word in ("Research use only", "identity 1.0.0", annotations["source_sha256"]))
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert dict(dicom.provenance(data)) == annotations
        assert data.ContentDate == header.NO_DATE


def test_instances_share_the_series_and_stains_of_a_slide_share_the_study(outputs):
    files = [pydicom.dcmread(series / f"level_{n}.dcm") for _, series in outputs.values() for n in range(2)]
    uids = {name: {str(data.get(name)) for data in files} for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    assert {name: len(values) for name, values in uids.items()} == {"StudyInstanceUID": 1, "SeriesInstanceUID": 4}
    assert len({str(data.SOPInstanceUID) for data in files}) == 8
    for data in files:
        assert all(pydicom.uid.UID(uid).is_valid for uid in (data.SOPInstanceUID, data.StudyInstanceUID))
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID


def test_other_validators_find_no_error(outputs):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    for _, series in outputs.values():
        for file in series.iterdir():
            found = subprocess.run([program, file], capture_output=True, text=True, check=False)
            errors = [x for x in (found.stdout + found.stderr).splitlines() if x.startswith("Error")]
            # The program of 2022 does not know Synthetic Data (0008,001C), of 2023.
            assert [line for line in errors if "(0x0008,0x001c)" not in line] == []


def test_equal_settings_give_equal_bytes_and_an_existing_output_is_kept(tmp_path):
    slide = write_slide(tmp_path / "s.tif", noise(700, 900))
    (tmp_path / "a").mkdir()
    one = convert(request_of(slide, tmp_path / "a" / "x.dcm"))
    other = convert(request_of(slide, tmp_path / "x.dcm", workers=2))
    assert digest(one.output) == digest(other.output)
    assert sorted(path.name for path in one.output.iterdir()) == ["level_0.dcm", "level_1.dcm"]
    assert convert(request_of(slide, tmp_path / "x.dcm")).already_done
    with pytest.raises(OutputError, match="made with other settings"):
        convert(request_of(slide, tmp_path / "x.dcm", "grid.tile=256"))
    (tmp_path / "x.dcm" / "mine.txt").write_text("")
    replaced = convert(request_of(slide, tmp_path / "x.dcm", restart=True))
    assert digest(replaced.output) == digest(one.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "s.tif", "x.dcm", "x.dcm.run.json"]


def test_what_dicom_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "y.dcm").write_bytes(b"a file")
    slide = write_slide(tmp_path / "s.tif", noise(60, 60))
    with pytest.raises(OutputError, match="is a file, but the output would be a folder"):
        convert(request_of(slide, tmp_path / "y.dcm"))
    Image.fromarray(tissue(200, 200)).save(tmp_path / "s.png")
    with pytest.raises(OutputError, match=r"has no pixel size, which DICOM requires; pass --mpp"):
        Job.of(Survey.of(request_of(tmp_path / "s.png", tmp_path / "x.dcm")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.png", "s.tif", "y.dcm"]


CHILD = """
import os, sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from builders.conversions import request_of
from wsi_stain.conversion.engine import convert
from wsi_stain.files import atomic
from wsi_stain.output import dicom_canvas

write = sys.modules["wsi_stain.output.dicom.write"]
count, at = [0], sys.argv[3]

def counted(*args, original=write.counted):
    for tile in original(*args):
        count[0] += 1
        if at == "frames" and count[0] == 3:
            os.kill(os.getpid(), 9)
        yield tile

def replace(part, output, original=dicom_canvas.replace_folder):
    if at == "renamed":
        original(part, output)
    os.kill(os.getpid(), 9)

write.counted, dicom_canvas.replace_folder = counted, replace
convert(request_of(Path(sys.argv[1]), Path(sys.argv[2]), "output.compression=jpeg"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["frames", "complete", "renamed"])
def test_killed_while_it_is_written_nothing_half_has_the_final_name_and_the_run_resumes(tmp_path, at):
    slide = write_slide(tmp_path / "s.tif", noise(700, 601))
    whole = convert(request_of(slide, tmp_path / "whole.dcm", "output.compression=jpeg")).output
    (tmp_path / "torn").mkdir()
    torn = tmp_path / "torn" / "x.dcm"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(slide), str(torn), at, str(TESTS)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    assert torn.exists() == (at == "renamed")
    assert at != "renamed" or digest(torn) == digest(whole)
    result = convert(request_of(slide, torn, "output.compression=jpeg"))
    assert result.record["blocks"]["painted_in_this_run"] == 0
    assert sorted(path.name for path in torn.parent.iterdir()) == ["x.dcm", "x.dcm.run.json"]
    assert digest(torn) == digest(whole)


def test_a_folder_killed_between_its_renames_is_replaced_by_the_next_run(tmp_path):
    new, path = tmp_path / "x.part", tmp_path / "x"
    for folder in (new, tmp_path / "x.old"):
        folder.mkdir()
    (new / "a").write_text("new")
    atomic.replace_folder(new, path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (path / "a").read_text() == "new"


def test_validate_and_info_tell_what_is_in_a_series(outputs, tmp_path):
    for _, series in outputs.values():
        assert dicom.problems(series) == dicom.problems(series / "level_1.dcm") == []
        assert dicom.hints(series) == []
    run = CliRunner().invoke
    assert run(group, ["validate", str(series)], standalone_mode=False).return_value == 0
    facts = json.loads(run(group, ["info", str(outputs["420"][1]), "--json"]).output)
    assert (facts["width"], facts["height"], facts["mpp"], facts["magnification"]) == (601, 700, 0.5, 20)
    assert (facts["virtual"], facts["stain"], facts["compression"]) == (True, "identity", "JPEG")
    scan = write_series(tmp_path / "scan", tissue(200, 300), label=False)[0]
    assert dicom.describe(scan) == {}
    assert json.loads(run(group, ["info", str(scan), "--json"]).output)["size_px"] == "300 × 200"


def broken(series, folder, name, change):
    """A copy of a series with one attribute of one file changed."""
    copy = folder / name
    shutil.copytree(series, copy)
    file = copy / "level_1.dcm"
    data = pydicom.dcmread(file)
    change(data)
    data.save_as(file)
    return copy


def spacing(data):
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0005, 0.0005]


CHANGES = {
    "a frame is missing": (31, lambda data: setattr(data, "NumberOfFrames", data.NumberOfFrames + 1)),
    "another series": (31, lambda data: setattr(data, "SeriesInstanceUID", "1.2.3")),
    "another patient": (32, lambda data: setattr(data, "PatientID", "7")),
    "wrong spacing": (33, spacing),
    "no spacing": (34, lambda data: data.__delattr__("SharedFunctionalGroupsSequence")),
    "no profile": (35, lambda data: data.OpticalPathSequence[0].__delattr__("ICCProfile")),
    "false colours": (36, lambda data: setattr(data, "PhotometricInterpretation", "RGB")),
    "burned in": (37, lambda data: setattr(data, "BurnedInAnnotation", "YES")),
    "not marked": (38, lambda data: setattr(data, "DerivationDescription", "a slide")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_rule_finds_what_breaks_it(outputs, tmp_path, name):
    rule, change = CHANGES[name]
    assert rule in {problem.rule for problem in dicom.problems(broken(outputs["420"][1], tmp_path, "x", change))}


def test_a_series_that_is_cut_off_is_found_at_any_length(outputs, tmp_path):
    series = tmp_path / "x"
    shutil.copytree(outputs["420"][1], series)
    whole = (series / "level_0.dcm").read_bytes()
    for length in (len(whole) - 1, len(whole) - 8, len(whole) // 2, len(whole) // 20, 1000, 500, 140):
        (series / "level_0.dcm").write_bytes(whole[:length])
        found = dicom.problems(series)
        assert any(problem.severity == "error" for problem in found), length


def test_privacy_lists_what_a_user_added(outputs, tmp_path):
    def name(data):
        data.PatientName, data.StudyDate, data.InstitutionName = "Doe^Jane", "20260101", "A hospital"

    found = dicom.hints(broken(outputs["420"][1], tmp_path, "x", name))
    assert {hint.what for hint in found} == {"PatientName", "StudyDate", "InstitutionName"}


def test_a_virtual_stain_without_its_private_data_is_still_known(outputs, tmp_path):
    def strip(data):
        data.remove_private_tags()
        for name in ("DerivationDescription", "ContributingEquipmentSequence", "SeriesDescription"):
            delattr(data, name)

    assert virtual_stain(broken(outputs["420"][1], tmp_path, "x", strip) / "level_1.dcm") == ""


@pytest.mark.parametrize("text", ["Virtual stain: HER2", "virtual IHC"])
def test_virtual_stains_of_others_are_known_by_their_words(tmp_path, text):
    file = write_series(tmp_path / "s", tissue(200, 300), label=False)[0]
    assert virtual_stain(file) is None
    assert virtual_stain(tmp_path / "s") is None
    data = pydicom.dcmread(file)
    data.SeriesDescription = text
    data.save_as(file)
    assert virtual_stain(file) == virtual_stain(tmp_path / "s") == ""


def test_a_series_that_fails_its_check_gets_no_final_name(tmp_path, monkeypatch, caplog):
    slide = write_slide(tmp_path / "s.tif", noise(300, 300))
    monkeypatch.setattr(dicom_canvas.dicom, "problems", lambda _: [error(31, "is broken")])
    with caplog.at_level(logging.ERROR), pytest.raises(OutputError, match="rule 31: is broken"):
        convert(request_of(slide, tmp_path / "x.dcm"))
    assert not (tmp_path / "x.dcm").exists()
    monkeypatch.undo()
    assert convert(request_of(slide, tmp_path / "x.dcm")).record["blocks"]["painted_in_this_run"] == 0
