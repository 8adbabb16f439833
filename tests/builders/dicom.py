"""DICOM whole-slide series of uncompressed RGB, complete enough for OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

TILE = 128


def write_series(
    folder: Path, pixels: np.ndarray, *, ending: str = ".dcm", mpp: float = 0.5, prefix: str = "", label: bool = True
) -> list[Path]:
    """A series of one slide: two levels, a label and an overview; returns their files, level 0 first.

    Args:
        folder: where to write.
        pixels: level 0, uint8 (h, w, 3).
        ending: of the file names; archives export files without one.
        mpp: µm per px of level 0.
        prefix: of the file names, so that two series fit into one folder.
        label: whether to write a label and an overview.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    images = [("level0", pixels, "VOLUME", mpp), ("level1", pixels[::4, ::4], "VOLUME", 4 * mpp)]
    if label:
        images += [("label", np.full((60, 90, 3), 7, np.uint8), "LABEL", 40.0)]
        images += [("overview", np.full((40, 80, 3), 200, np.uint8), "OVERVIEW", 100.0)]
    paths = []
    for number, (name, image, flavour, scale) in enumerate(images):
        data = _instance(image, flavour, scale, number, uids)
        paths.append(folder / f"{prefix}{name}{ending}")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _instance(pixels: np.ndarray, flavour: str, mpp: float, number: int, uids: dict[str, str]) -> FileDataset:
    h, w = pixels.shape[:2]
    tile = (TILE, TILE) if flavour == "VOLUME" else (h, w)
    data = _head(uids, number)
    derived = flavour == "VOLUME" and number > 0
    data.ImageType = [
        "DERIVED" if derived else "ORIGINAL", "PRIMARY", flavour, "RESAMPLED" if derived else "NONE"
    ]  # fmt: skip
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = h, w
    data.Rows, data.Columns = tile
    data.ImagedVolumeHeight, data.ImagedVolumeWidth, data.ImagedVolumeDepth = h * mpp / 1000, w * mpp / 1000, 0.001
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = [
        np.pad(part, ((0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1]), (0, 0)))
        for y in range(0, h, tile[0])
        for x in range(0, w, tile[1])
        for part in [pixels[y : y + tile[0], x : x + tile[1]]]
    ]
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames)
    data["PixelData"].VR = "OB"
    return data


def _head(uids: dict[str, str], number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name, uid in uids.items():
        setattr(data, name, uid)
    data.Modality, data.SeriesNumber, data.InstanceNumber = "SM", 1, number + 1
    data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.NumberOfOpticalPaths = 7, 0, 1
    origin, path = Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    data.TotalPixelMatrixOriginSequence = Sequence([origin])
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    path.OpticalPathIdentifier, path.ObjectiveLensPower = "0", 20
    data.OpticalPathSequence = Sequence([path])
    return data
