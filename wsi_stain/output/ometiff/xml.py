"""OME-XML (schema 2016-06) of one image, brightfield or fluorescence: built for our files, parsed from any file."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

from wsi_stain import __version__
from wsi_stain.config.channels import Channel
from wsi_stain.files.notice import NOTICE, RESAMPLED, RESEARCH_USE
from wsi_stain.geometry import Box, Size
from wsi_stain.output.ometiff.xmp import source_type
from wsi_stain.slide.lengths import in_um

SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
PROVENANCE = "wsi-stain/provenance"
"""Namespace of the annotations that describe how the image was made."""

REQUIRED = ("model", "model_version", "model_sha256", "source_sha256")
"""Annotations required to identify the origin of a virtual stain (rule 20)."""
REQUIRED_OF_RESAMPLED = ("case", "source_sha256", "frame_sha256", "registration_sha256")
"""The same of a real stain in the frame of another slide."""

_ILLEGAL = re.compile("[^\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RED = str(0xFF0000FF - 2**32)  # the schema's colours are signed 32-bit RGBA


@dataclass(frozen=True, slots=True)
class Roi:
    """A rectangle that viewers show as an annotation."""

    label: str
    box: Box
    """In pixels of the output's level 0, end excluded."""


@dataclass(frozen=True, slots=True)
class OmeMetadata:
    """All metadata of an output; nothing else is copied from the source."""

    name: str
    """Name of the finished file: viewers show it as the title (rule 13)."""
    mpp: float | None
    """µm per px of level 0; None leaves the physical size out."""
    magnification: float | None
    """Nominal magnification of the objective; None leaves the objective out."""
    stain: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    """An allowlist: at least `REQUIRED`, and the settings; never text from the source."""
    rois: tuple[Roi, ...] = ()
    channels: tuple[Channel, ...] = ()
    """Fluorescence channels, each a page of its own; empty for colours."""
    notice: str = NOTICE
    """`NOTICE` of a virtual stain, or `RESAMPLED`."""
    uuid: str = field(kw_only=True)
    """uuid5 of the input and the settings, so that the same run gives the same bytes (rule 22)."""


def build(metadata: OmeMetadata, size: Size) -> bytes:
    """The complete OME-XML of an image of `size`, in UTF-8.

    Elements are in schema order: validating readers reject any other. The text has no character references (`&#181;`),
    not even for line breaks: Bio-Formats corrupts them before parsing and then does not recognise the OME-TIFF.
    """
    root = ET.Element(
        "OME",
        {
            "xmlns": SCHEMA,
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": f"{SCHEMA} {SCHEMA}/ome.xsd",
            "Creator": f"wsi-stain {__version__}",
            "UUID": uuid.UUID(metadata.uuid).urn,
        },
    )
    if metadata.magnification is not None:
        instrument = ET.SubElement(root, "Instrument", ID="Instrument:0")
        magnification = _number(metadata.magnification)
        ET.SubElement(instrument, "Objective", ID="Objective:0:0", NominalMagnification=magnification)
    _add_image(root, metadata, size)
    _add_annotations(root, metadata)
    for number, roi in enumerate(metadata.rois):
        _add_roi(root, number, roi)
    for element in root.iter():
        element.text = element.text and _clean(element.text)
        element.attrib = {key: _clean(value) for key, value in element.attrib.items()}
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ET.tostring(root, encoding="utf-8", xml_declaration=False)


def _add_image(root: ET.Element, metadata: OmeMetadata, size: Size) -> None:
    image = ET.SubElement(root, "Image", ID="Image:0", Name=metadata.name)
    ET.SubElement(image, "Description").text = f"{metadata.notice}. {RESEARCH_USE}. Stain: {metadata.stain}"
    if metadata.magnification is not None:
        ET.SubElement(image, "InstrumentRef", ID="Instrument:0")
        ET.SubElement(image, "ObjectiveSettings", ID="Objective:0:0")
    pixels = ET.SubElement(
        image,
        "Pixels",
        {
            "ID": "Pixels:0",
            "DimensionOrder": "XYCZT",
            "Type": "uint8",
            "SignificantBits": "8",
            "Interleaved": "false" if metadata.channels else "true",
            "BigEndian": "false",
            "SizeX": str(size.w),
            "SizeY": str(size.h),
            "SizeZ": "1",
            "SizeC": str(len(metadata.channels) or 3),
            "SizeT": "1",
        },
    )
    for axis in "XY" if metadata.mpp is not None else "":
        pixels.set(f"PhysicalSize{axis}", _number(metadata.mpp or 0))
        pixels.set(f"PhysicalSize{axis}Unit", "µm")
    _add_channels(pixels, metadata.channels)
    for number in range(len(metadata.rois)):
        ET.SubElement(image, "ROIRef", ID=f"ROI:{number}")
    for number in range(2):
        ET.SubElement(image, "AnnotationRef", ID=f"Annotation:{number}")


def _add_channels(pixels: ET.Element, channels: tuple[Channel, ...]) -> None:
    if not channels:
        # One channel of three samples: three channels of one sample would open as fluorescence.
        ET.SubElement(pixels, "Channel", ID="Channel:0:0", SamplesPerPixel="3")
        ET.SubElement(pixels, "TiffData", IFD="0", PlaneCount="1")
        return
    for number, channel in enumerate(channels):
        colour = str(int.from_bytes(bytes((*channel.colour, 255)), "big", signed=True))
        names = {"ID": f"Channel:0:{number}", "Name": channel.name}
        ET.SubElement(pixels, "Channel", names, SamplesPerPixel="1", Color=colour)
    for number in range(len(channels)):
        place = {"FirstC": str(number), "FirstT": "0", "FirstZ": "0"}
        ET.SubElement(pixels, "TiffData", place, IFD=str(number), PlaneCount="1")


def _add_annotations(root: ET.Element, metadata: OmeMetadata) -> None:
    annotations = ET.SubElement(root, "StructuredAnnotations")
    comment = ET.SubElement(annotations, "CommentAnnotation", ID="Annotation:0", Namespace=PROVENANCE)
    ET.SubElement(comment, "Value").text = f"{metadata.notice}. {RESEARCH_USE}."
    mapped = ET.SubElement(annotations, "MapAnnotation", ID="Annotation:1", Namespace=PROVENANCE)
    value = ET.SubElement(mapped, "Value")
    # Ours come last, so that no annotation of the caller can replace them.
    made_by = {"digital_source_type": source_type(metadata.annotations)}
    pairs = {**metadata.annotations, **made_by, "notice": metadata.notice, "use": RESEARCH_USE, "stain": metadata.stain}
    for key, text in pairs.items():
        ET.SubElement(value, "M", K=key).text = text


def _add_roi(root: ET.Element, number: int, roi: Roi) -> None:
    element = ET.SubElement(root, "ROI", ID=f"ROI:{number}", Name=roi.label)
    union = ET.SubElement(element, "Union")
    size = roi.box.size
    ET.SubElement(
        union,
        "Rectangle",
        {
            "ID": f"Shape:{number}:0",
            "StrokeColor": _RED,
            "Text": roi.label,
            "X": str(roi.box.x0),
            "Y": str(roi.box.y0),
            "Width": str(size.w),
            "Height": str(size.h),
        },
    )


def _clean(text: str) -> str:
    """`text` reduced to characters that XML can hold without escaping."""
    return _ILLEGAL.sub("\ufffd", re.sub(r"[\t\r\n]", " ", text))


def _number(value: float) -> str:
    """Shortest text that parses back to the same number: 20, 0.499."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def parse(description: str) -> ET.Element | None:
    """The OME element of an ImageDescription, with namespaces stripped from all names; None if it is not OME-XML.

    Text with a document type is rejected: OME-XML has none, and entities can exhaust a parser's memory.
    """
    if "<!DOCTYPE" in description:
        return None
    try:
        root = ET.fromstring(description.encode("utf-8", "replace"))
    except (ET.ParseError, ValueError, LookupError):
        return None
    namespace = root.tag.rpartition("}")[0].lstrip("{")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    root.set("xmlns", namespace)
    return root if root.tag == "OME" else None


def physical_size(pixels: ET.Element, axis: str) -> float | None:
    """µm per px along `axis` ("X" or "Y"); None if it is missing or in an unknown unit."""
    return in_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))


def magnification(root: ET.Element) -> float | None:
    """Nominal magnification of the objective that the first Image references."""
    settings = root.find("Image/ObjectiveSettings")
    for objective in root.iterfind("Instrument/Objective"):
        if settings is not None and objective.get("ID") == settings.get("ID"):
            try:
                return float(objective.get("NominalMagnification", ""))
            except ValueError:
                return None
    return None


def is_resampled(annotations: Mapping[str, str]) -> bool:
    """Whether annotations are those of a real stain that was resampled into the frame of another slide."""
    return annotations.get("notice") == RESAMPLED


def map_annotations(root: ET.Element) -> dict[str, str]:
    """Key and text of every map annotation."""
    pairs = root.iterfind("StructuredAnnotations/MapAnnotation/Value/M")
    return {pair.get("K", ""): pair.text or "" for pair in pairs}
