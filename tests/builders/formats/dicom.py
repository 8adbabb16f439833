"""DICOM whole-slide series: one instance a level, a label and an overview (PS3.3, section A.32.8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from builders.formats.picture import TILE, Built, jpeg, picture, reduced, tiles

VL_WHOLE_SLIDE = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
CODECS: dict[str, tuple[UID, str, Callable[[np.ndarray], bytes]]] = {
    "none": (ExplicitVRLittleEndian, "RGB", np.ndarray.tobytes),
    "JPEG": (JPEGBaseline8Bit, "RGB", lambda tile: jpeg(tile, keep_rgb=True)),
    "JPEG 4:2:2": (JPEGBaseline8Bit, "YBR_FULL_422", lambda tile: jpeg(tile, subsampling=1)),
}


def dicom(folder: Path, codec: str) -> Built:
    """A series in a folder; `path` is the folder."""
    folder.mkdir(parents=True)
    mpp, truth, series = 0.5, picture(900, 1300), (generate_uid(), generate_uid(), generate_uid())
    for number, factor in enumerate((1, 4, 16)):
        pixels = truth if factor == 1 else reduced(truth, factor)
        _write(folder / f"{number}.dcm", pixels, "VOLUME", codec, mpp * factor, series, number)
    _write(folder / "8.dcm", np.full((96, 64, 3), 200, np.uint8), "LABEL", "none", 50, series, 8)
    _write(folder / "9.dcm", np.full((64, 160, 3), 190, np.uint8), "OVERVIEW", "none", 90, series, 9)
    return Built(folder, truth, mpp, 20, format="DICOM", codec=codec)


def _write(
    path: Path, pixels: np.ndarray, kind: str, codec: str, mpp: float, uids: tuple[UID, UID, UID], number: int
) -> None:
    syntax, photometric, encode = CODECS[codec]
    frames = [encode(tile) for tile in tiles(pixels)] if kind == "VOLUME" else [encode(pixels)]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = VL_WHOLE_SLIDE, generate_uid()
    meta.TransferSyntaxUID = syntax
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    (height, width), side = pixels.shape[:2], (TILE, TILE) if kind == "VOLUME" else pixels.shape[:2]
    derived = ["DERIVED", "PRIMARY", kind, "RESAMPLED"] if number in (1, 2) else ["ORIGINAL", "PRIMARY", kind, "NONE"]
    measures = _item(PixelSpacing=[mpp / 1000] * 2, SliceThickness=0.001, SpacingBetweenSlices=0.001)
    origin = _item(XOffsetInSlideCoordinateSystem=20, YOffsetInSlideCoordinateSystem=40)
    light = _item(CodeValue="111744", CodingSchemeDesignator="DCM", CodeMeaning="Brightfield illumination")
    path_ = _item(OpticalPathIdentifier="1", ObjectiveLensPower=20, IlluminationTypeCodeSequence=[light])
    groups = _item(
        PixelMeasuresSequence=[measures],
        WholeSlideMicroscopyImageFrameTypeSequence=[_item(FrameType=derived)],
        OpticalPathIdentificationSequence=[_item(OpticalPathIdentifier="1")],
    )
    values: dict[str, object] = {
        "SOPClassUID": VL_WHOLE_SLIDE,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": uids[0],
        "SeriesInstanceUID": uids[1],
        "FrameOfReferenceUID": uids[2],
        **{"Modality": "SM", "PatientName": "", "PatientID": "built", "InstanceNumber": number + 1, "SeriesNumber": 1},
        "ImageType": derived,
        **{"TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height, "TotalPixelMatrixFocalPlanes": 1},
        **{"ImagedVolumeWidth": width * mpp / 1000, "ImagedVolumeHeight": height * mpp / 1000},
        **{"ImagedVolumeDepth": 0.001, "NumberOfFrames": len(frames), "Rows": side[0], "Columns": side[1]},
        **{"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0},
        **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0},
        **{"DimensionOrganizationType": "TILED_FULL", "NumberOfOpticalPaths": 1, "VolumetricProperties": "VOLUME"},
        **{"BurnedInAnnotation": "NO", "SpecimenLabelInImage": "NO", "ExtendedDepthOfField": "NO"},
        "ImageOrientationSlide": [0, -1, 0, -1, 0, 0],
        "TotalPixelMatrixOriginSequence": [origin],
        "OpticalPathSequence": [path_],
        "SharedFunctionalGroupsSequence": [groups],
        "PixelData": b"".join(frames) if codec == "none" else encapsulate(frames),
    }
    for key, value in values.items():
        setattr(file, key, value)
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = codec != "none"
    file.save_as(path, enforce_file_format=True)


def _item(**values: object) -> Dataset:
    item = Dataset()
    for key, value in values.items():
        setattr(item, key, value)
    return item
