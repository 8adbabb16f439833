"""DICOM series whose frames and header are as asked, also where they contradict one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage, generate_uid

TILE = 128
BASELINE, JPEG_LS, HTJ2K, J2K = (UID(f"1.2.840.10008.1.2.4.{n}") for n in (50, 80, 201, 90))
RAW = UID("1.2.840.10008.1.2.1")
MPP = 0.5


def write_frames(
    folder: Path,
    levels: Iterable[np.ndarray],
    encode: Callable[[np.ndarray], bytes],
    *,
    syntax: UID = BASELINE,
    photometric: str = "RGB",
    missing: Iterable[int] = (),
    prefix: str = "level",
) -> list[Path]:
    """A series; returns its files, level 0 first.

    Args:
        folder: where to write.
        levels: uint8 (h, w, 3), or (planes, h, w, 3) for several focal planes.
        encode: a frame of 128 × 128 px to bytes.
        syntax: transfer syntax of the frames.
        photometric: what the header declares.
        missing: numbers of tiles that were not scanned, at every level.
        prefix: of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    paths, first = [], None
    for number, level in enumerate(levels):
        planes = level if level.ndim == 4 else level[None]
        first = first or planes.shape[2]
        data = _head(uids, number, syntax, photometric)
        _geometry(data, planes.shape, MPP * first / planes.shape[2])
        frames = [
            (n, encode(tile)) for plane in planes for n, tile in enumerate(_tiles(plane)) if n not in set(missing)
        ]
        if missing:
            data.DimensionOrganizationType = "TILED_SPARSE"
            across = -(-planes.shape[2] // TILE)
            data.PerFrameFunctionalGroupsSequence = Sequence([_place(n, across) for n, _ in frames])
        data.NumberOfFrames = len(frames)
        bodies = [body for _, body in frames]
        data.PixelData = b"".join(bodies) if syntax == RAW else encapsulate(bodies)
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = syntax != RAW
        paths.append(folder / f"{prefix}{number}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def _tiles(plane: np.ndarray) -> list[np.ndarray]:
    h, w = plane.shape[:2]
    padded = np.pad(plane, ((0, -h % TILE), (0, -w % TILE), (0, 0)), mode="edge")
    corners = [(y, x) for y in range(0, h, TILE) for x in range(0, w, TILE)]
    return [np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]) for y, x in corners]


def _head(uids: dict[str, str], number: int, syntax: UID, photometric: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for name, uid in uids.items():
        setattr(data, name, uid)
    data.PatientID = data.PatientName = data.ContainerIdentifier = data.PositionReferenceIndicator = "test"
    data.ContentDate, data.ContentTime, data.AcquisitionDateTime = "20200101", "000000", "20200101000000"
    data.Modality, data.SeriesNumber, data.InstanceNumber = "SM", 1, number + 1
    derived = number > 0
    data.ImageType = ["DERIVED" if derived else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if derived else "NONE"]
    data.VolumetricProperties, data.SpecimenLabelInImage, data.BurnedInAnnotation = "VOLUME", "NO", "NO"
    data.FocusMethod, data.ExtendedDepthOfField, data.LossyImageCompression = "AUTO", "NO", "00"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.NumberOfOpticalPaths = 7, 0, 1
    return data


def _geometry(data: FileDataset, shape: tuple[int, ...], mpp: float) -> None:
    planes, h, w = shape[:3]
    data.DimensionOrganizationType, data.TotalPixelMatrixFocalPlanes = "TILED_FULL", planes
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = h, w
    data.Rows = data.Columns = TILE
    data.ImagedVolumeHeight, data.ImagedVolumeWidth = h * mpp / 1000, w * mpp / 1000
    data.ImagedVolumeDepth = 0.001
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin, path, measures, shared = Dataset(), Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    data.TotalPixelMatrixOriginSequence = Sequence([origin])
    path.OpticalPathIdentifier, path.ObjectiveLensPower = "0", 20
    data.OpticalPathSequence = Sequence([path])
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = measures.SpacingBetweenSlices = 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])


def _place(number: int, across: int) -> Dataset:
    plane, frame = Dataset(), Dataset()
    plane.ColumnPositionInTotalImagePixelMatrix = number % across * TILE + 1
    plane.RowPositionInTotalImagePixelMatrix = number // across * TILE + 1
    plane.ZOffsetInSlideCoordinateSystem = 0
    frame.PlanePositionSlideSequence = Sequence([plane])
    return frame
