"""The header of an instance: VL Whole Slide Microscopy Image (DICOM PS3.3, A.32.8), of a virtual stain.

No value comes from the source's metadata. Attributes that identify a patient, an order or a specimen are empty; where
the standard demands a value, it is made from the hashes in the provenance. Dates that must have a value are `NO_DATE`.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Sequence

import numpy as np
from PIL import ImageCms
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage
from pydicom.valuerep import format_number_as_ds

from wsi_stain import __version__
from wsi_stain.files.notice import RESEARCH_USE
from wsi_stain.geometry import Size
from wsi_stain.output.dicom.encoding import DicomEncoding
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.output.ometiff.xml import OmeMetadata
from wsi_stain.output.ometiff.xmp import source_type

MANUFACTURER = "wsi-stain"
PRIVATE_GROUP, PRIVATE_CREATOR, PROVENANCE = 0x0077, "WSI-STAIN PROVENANCE", 0x01
"""The private element with the provenance: JSON, text → text."""
NO_DATE = "19000101"
"""Where the standard demands a date: the conversion records none, so that equal settings give equal bytes."""
DEPTH_MM = 0.001
"""Thickness of the imaged volume, which a virtual stain does not know; wsidicom writes the same."""
LONG, SHORT_TEXT = 64, 1024
"""Most characters of the types LO and ST (PS3.5, 6.2)."""


def build(
    metadata: OmeMetadata, sizes: Sequence[Size], level: int, encoding: DicomEncoding, frames: np.ndarray
) -> bytes:
    """The beginning of an instance, up to its pixel data.

    Its length does not depend on the lengths of the frames.

    Args:
        metadata: of the output.
        sizes: of all levels.
        level: the level of this instance.
        encoding: of the frames.
        frames: bytes of each frame, int64 (n,).
    """
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    data.SOPInstanceUID = uid_of(metadata, f"level {level}")
    _add_study(data, metadata, level)
    _add_equipment(data, metadata)
    _add_specimen(data, metadata)
    _add_image(data, metadata, level)
    _add_pixels(data, encoding, frames)
    _add_geometry(data, metadata, sizes[level], level, len(frames))
    _add_optics(data, metadata)
    _add_provenance(data, metadata)
    _add_offsets(data, frames)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(encoding.syntax)
    data.file_meta.ImplementationClassUID = UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'wsi-stain').int}")
    data.file_meta.ImplementationVersionName = f"WSI-STAIN {__version__}"[:16]
    buffer = io.BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def uid_of(metadata: OmeMetadata, name: str) -> str:
    """A UID that is equal for equal settings and names (PS3.5, B.2: made of a UUID)."""
    return f"2.25.{uuid.uuid5(uuid.UUID(metadata.uuid), name).int}"


def _add_study(data: Dataset, metadata: OmeMetadata, level: int) -> None:
    """Patient, study, series and frame of reference; all stains of one slide are series of one study."""
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(data, name, "")
    for name in ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"):
        setattr(data, name, "")
    source = metadata.annotations.get("source_sha256", metadata.uuid)
    data.StudyInstanceUID = f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'wsi-stain study of ' + source).int}"
    data.SeriesInstanceUID = uid_of(metadata, "series")
    data.FrameOfReferenceUID = uid_of(metadata, "frame of reference")
    data.PyramidUID = uid_of(metadata, "pyramid")
    data.Modality, data.SeriesNumber, data.InstanceNumber = "SM", 1, level + 1
    data.SeriesDescription = long_text(f"VIRTUAL STAIN {metadata.stain}: {RESEARCH_USE.lower()}")
    data.PositionReferenceIndicator = "SLIDE_CORNER"


def _add_equipment(data: Dataset, metadata: OmeMetadata) -> None:
    facts = metadata.annotations
    model = f"{facts.get('model', '')} {facts.get('model_version', '')}".strip()
    data.Manufacturer = MANUFACTURER
    data.ManufacturerModelName = long_text(f"virtual stain: {model or metadata.stain}")
    data.DeviceSerialNumber = long_text(facts.get("model_sha256") or "no weights")
    data.SoftwareVersions = [long_text(text) for text in (f"wsi-stain {__version__}", model) if text]
    equipment = Dataset()
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName, equipment.DeviceSerialNumber = data.ManufacturerModelName, data.DeviceSerialNumber
    equipment.SoftwareVersions = data.SoftwareVersions
    equipment.ContributionDescription = derivation(metadata)
    equipment.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    data.ContributingEquipmentSequence = [equipment]


def derivation(metadata: OmeMetadata) -> str:
    """How the image was made, in words, at most 1024 characters."""
    facts = metadata.annotations
    parts = [
        f"{metadata.notice}. {RESEARCH_USE}. Stain: {metadata.stain}",
        f"Computed from an H&E slide (SHA-256 {facts.get('source_sha256', 'unknown')})",
        f"by the model {facts.get('model', 'unknown')} {facts.get('model_version', '')}"
        f" (SHA-256 {facts.get('model_sha256') or 'none: no weights'}) with wsi-stain {__version__}",
    ]
    return _clean(f"{parts[0]}. {parts[1]} {parts[2]}.")[:SHORT_TEXT]


def _add_specimen(data: Dataset, metadata: OmeMetadata) -> None:
    """The glass and the tissue, which the source's metadata could name and this file does not."""
    data.ContainerIdentifier = f"VIRTUAL-{metadata.uuid[:8]}"
    data.IssuerOfTheContainerIdentifierSequence = []
    data.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    specimen = Dataset()
    specimen.SpecimenIdentifier = data.ContainerIdentifier
    specimen.SpecimenUID = uid_of(metadata, "specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenShortDescription = long_text(f"Virtual stain {metadata.stain}; the tissue was stained with H&E")
    specimen.SpecimenPreparationSequence = []
    data.SpecimenDescriptionSequence = [specimen]
    data.AcquisitionContextSequence = []


def _add_image(data: Dataset, metadata: OmeMetadata, level: int) -> None:
    data.ImageType = image_type(level)
    data.ContentDate, data.ContentTime, data.AcquisitionDateTime = NO_DATE, "000000", f"{NO_DATE}000000"
    data.DerivationDescription = derivation(metadata)
    data.SyntheticData, data.ContentQualification = "YES", "RESEARCH"
    data.BurnedInAnnotation = data.RecognizableVisualFeatures = data.SpecimenLabelInImage = "NO"
    data.FocusMethod, data.ExtendedDepthOfField, data.VolumetricProperties = "AUTO", "NO", "VOLUME"


def image_type(level: int) -> list[str]:
    """Derived from another image, of the tissue; lower levels are resampled from level 0."""
    return ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED" if level else "NONE"]


def _add_pixels(data: Dataset, encoding: DicomEncoding, frames: np.ndarray) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, encoding.photometric, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.Rows = data.Columns = TILE_PX
    data.NumberOfFrames = len(frames)
    if encoding.is_lossless:
        data.LossyImageCompression = "00"
        return
    ratio = len(frames) * 3 * TILE_PX**2 / max(1, int(frames.sum()))
    data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
    data.LossyImageCompressionRatio = f"{min(ratio, 99999):010.4f}"  # of a fixed length


def _add_geometry(data: Dataset, metadata: OmeMetadata, size: Size, level: int, frames: int) -> None:
    assert metadata.mpp is not None, "DICOM needs a pixel size"
    mm = metadata.mpp * 2**level / 1000
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = size
    data.TotalPixelMatrixFocalPlanes = 1
    data.ImagedVolumeHeight, data.ImagedVolumeWidth = size.h * mm, size.w * mm
    data.ImagedVolumeDepth = DEPTH_MM * 1000  # in µm
    data.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    data.TotalPixelMatrixOriginSequence = [origin]
    data.DimensionOrganizationType = "TILED_FULL"
    organization = Dataset()
    organization.DimensionOrganizationUID = uid_of(metadata, "dimensions")
    data.DimensionOrganizationSequence = [organization]
    measures, kind, path, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [_decimal(mm)] * 2, DEPTH_MM
    kind.FrameType = image_type(level)
    path.OpticalPathIdentifier = "1"
    shared.PixelMeasuresSequence = [measures]
    shared.WholeSlideMicroscopyImageFrameTypeSequence = [kind]
    shared.OpticalPathIdentificationSequence = [path]
    data.SharedFunctionalGroupsSequence = [shared]


def _add_optics(data: Dataset, metadata: OmeMetadata) -> None:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.OpticalPathDescription = long_text(f"Virtual stain {metadata.stain}, computed")
    path.IlluminationTypeCodeSequence = [_code("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [_code("414298005", "SCT", "Full Spectrum")]
    path.ICCProfile, path.ColorSpace = srgb_profile(), "SRGB"
    if metadata.magnification is not None:
        path.ObjectiveLensPower = _decimal(metadata.magnification)
    data.NumberOfOpticalPaths = 1
    data.OpticalPathSequence = [path]


def srgb_profile() -> bytes:
    """An ICC profile of sRGB, with a fixed date instead of the time of its making (ICC.1, 7.2)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = np.array([2000, 1, 1, 0, 0, 0], ">u2").tobytes()
    return bytes(profile) + bytes(len(profile) % 2)


def _add_provenance(data: Dataset, metadata: OmeMetadata) -> None:
    facts = {
        **metadata.annotations,
        "digital_source_type": source_type(metadata.annotations),
        "notice": metadata.notice,
        "use": RESEARCH_USE,
        "stain": metadata.stain,
    }
    if metadata.rois:
        boxes = [[roi.box.x0, roi.box.y0, roi.box.size.w, roi.box.size.h] for roi in metadata.rois]
        facts["unreadable"] = json.dumps(boxes)
    block = data.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    block.add_new(PROVENANCE, "UT", json.dumps(facts, ensure_ascii=False, sort_keys=True))


def _add_offsets(data: Dataset, frames: np.ndarray) -> None:
    """Where each frame begins, counted from the first item behind the empty table, and its bytes (PS3.5, A.4)."""
    offsets = np.concatenate([[0], np.cumsum(frames + 8)[:-1]])
    data.ExtendedOffsetTable = offsets.astype("<u8").tobytes()
    data.ExtendedOffsetTableLengths = frames.astype("<u8").tobytes()


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _decimal(value: float) -> str:
    """A number of at most 16 characters (type DS)."""
    return format_number_as_ds(float(value))


def long_text(text: str) -> str:
    """`text` as the type LO takes it."""
    return _clean(text)[:LONG].strip()


def _clean(text: str) -> str:
    """`text` without control characters and backslashes, which separate values."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text).replace("\\", "/")
