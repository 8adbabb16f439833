"""Rules about names and OME-XML: 1, 3, 11 to 13, 19 to 22."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from wsi_stain.config.ranges import MAX_MPP, MIN_MPP
from wsi_stain.files.notice import NOTICE, RESEARCH_USE
from wsi_stain.output.ometiff import tiff as t
from wsi_stain.output.ometiff import xml
from wsi_stain.output.ometiff.subject import Problem, Subject, error, warning

_UM_PER_UNIT = {2: 25400.0, 3: 10000.0}
_PRIVATE = ("Experimenter", "ExperimenterGroup", "Project", "Dataset", "Experiment")


def file_name(subject: Subject) -> Iterator[Problem]:
    """Rule 1: the file name extension, and no file name in the OME-XML."""
    if not subject.name.lower().endswith((".ome.tiff", ".ome.tif")):
        yield error(1, f"its name, {subject.name}, does not end in .ome.tiff: rename it")
    names = (
        [e.get("FileName") for e in subject.ome.iter("UUID") if e.get("FileName")] if subject.ome is not None else []
    )
    wrong = [name for name in names if name != subject.name]
    if wrong:
        yield error(1, f"its OME-XML references the pixels in {wrong[0]}: rename it back, or remove FileName from UUID")
    elif names:
        yield warning(1, "its OME-XML contains its own file name: renaming breaks it; remove FileName from UUID")


def image(subject: Subject) -> Iterator[Problem]:
    """Rule 3: one image of one channel with three samples, in the first page; or a page for each named channel."""
    if subject.ome is None:
        defect = "invalid OME-XML" if "<OME" in subject.description else "no OME-XML"
        yield error(3, f"its first page has {defect}: it opens without scale and name; write it as OME-TIFF")
        return
    if subject.ome.get("xmlns") != xml.SCHEMA:
        yield warning(3, f"its OME-XML uses {subject.ome.get('xmlns') or 'no schema'}: use schema 2016-06")
    if re.search(r'Unit="[^"]*&#', subject.description):
        yield error(3, "a unit in its OME-XML is a character reference, which Bio-Formats corrupts: write µm in UTF-8")
    images = subject.ome.findall("Image")
    if len(images) != 1:
        yield error(3, f"its OME-XML has {len(images)} images: a slide must have exactly one; write one file per image")
    elif subject.pixels is None:
        yield error(3, "the Image of its OME-XML has no Pixels element: add it")
    else:
        yield from _pixels(subject, subject.pixels)


def _pixels(subject: Subject, pixels: ET.Element) -> Iterator[Problem]:
    size, names = subject.first.size, subject.channels
    count, is_interleaved = (len(names), "false") if names else (3, "true")
    required = {
        "Type": "uint8",
        "SizeC": str(count),
        "SizeZ": "1",
        "SizeT": "1",
        "SizeX": str(size.w),
        "SizeY": str(size.h),
    }
    for key, value in required.items():
        if pixels.get(key) != value:
            yield error(3, f"Pixels@{key} is {pixels.get(key)}, but the image requires {value}: correct the OME-XML")
    for key, value in {"DimensionOrder": "XYCZT", "Interleaved": is_interleaved}.items():
        if pixels.get(key) != value:
            yield warning(3, f"Pixels@{key} is {pixels.get(key)}, but the stored data is {value}: correct the OME-XML")
    if names:
        yield from _pages_of_channels(pixels, count)
        return
    channels = pixels.findall("Channel")
    if [c.get("SamplesPerPixel", "1") for c in channels] != ["3"]:
        yield error(
            3, f"it has {len(channels)} channels, not one of three samples: it opens as fluorescence; write one Channel"
        )
    planes = [(e.get("IFD", "0"), e.get("PlaneCount", "1")) for e in pixels.findall("TiffData")]
    if planes != [("0", "1")]:
        yield error(
            3, f"its TiffData lists {len(planes)} planes instead of the first page: write only IFD 0, PlaneCount 1"
        )


def _pages_of_channels(pixels: ET.Element, count: int) -> Iterator[Problem]:
    places = [(e.get("IFD", "0"), e.get("FirstC", "0"), e.get("PlaneCount", "1")) for e in pixels.findall("TiffData")]
    if places != [(str(number), str(number), "1") for number in range(count)]:
        yield error(
            3, f"its TiffData does not list the pages of {count} channels in their order: write one for each page"
        )


def scale(subject: Subject) -> Iterator[Problem]:
    """Rule 11: µm per px along both axes, and a matching resolution of every level."""
    if subject.pixels is None:
        return
    both = [xml.physical_size(subject.pixels, axis) for axis in "XY"]
    x, y = both
    if x is None or y is None or min(x, y) <= 0:
        missing = "physical size" if both == [None, None] else "usable physical size along both axes"
        yield warning(11, f"it has no {missing}: no scale bar; write PhysicalSizeX and PhysicalSizeY in µm")
        return
    if not all(MIN_MPP <= side <= MAX_MPP for side in (x, y)):
        limits = f"{MIN_MPP:g} to {MAX_MPP:g}"
        yield warning(11, f"its pixel is {x:g}×{y:g} µm, outside {limits}: check the scale of the source (--mpp)")
    for level, page in enumerate(subject.levels):
        factor = max(subject.first.size) / max(
            1, *page.size
        )  # the short side may be rounded up to a multiple of itself
        if not _agrees(page, (x * factor, y * factor)):
            expected = f"{x * factor:.4g} µm/px"
            yield warning(11, f"the resolution of level {level} is not {expected}: OpenSlide loses the scale; write it")


def _agrees(page: t.Page, mpp: tuple[float, float]) -> bool:
    """Whether XResolution and YResolution match `mpp`, (x, y), within the rounding of the level's size."""
    unit = _UM_PER_UNIT.get(page.number(t.RESOLUTION_UNIT, 2))
    for tag, expected in zip((t.X_RESOLUTION, t.Y_RESOLUTION), mpp, strict=True):
        per_unit = (*page.numbers(tag), 0.0)[0]
        if not unit or not per_unit or abs(unit / per_unit / expected - 1) > 0.01 + 1 / max(1, *page.size):
            return False
    return True


def magnification(subject: Subject) -> Iterator[Problem]:
    """Rule 12: an objective that the image references."""
    if subject.ome is not None and subject.image is not None and not xml.magnification(subject.ome):
        yield warning(12, "it has no objective: QuPath shows no magnification; write Instrument and ObjectiveSettings")


def title(subject: Subject) -> Iterator[Problem]:
    """Rule 13: the image has the name of its file."""
    if subject.image is not None and subject.image.get("Name") != subject.name:
        yield warning(
            13,
            f"its image is named {subject.image.get('Name')}, not {subject.name}: viewers show it as the title; fix it",
        )


def privacy(subject: Subject) -> Iterator[Problem]:
    """Rule 19: no personal data, and no text copied from the source."""
    if subject.ome is None:
        return
    private = [name for name in _PRIVATE if subject.ome.find(name) is not None]
    if any("OriginalMetadata" in e.get("Namespace", "") for e in subject.ome.iter()):
        private.append("OriginalMetadata")
    if private:
        yield warning(19, f"its OME-XML contains {', '.join(private)}, possibly with patient data: remove it")


def provenance(subject: Subject) -> Iterator[Problem]:
    """Rule 20: a virtual stain is labelled as such, a resampled real stain as that; does not apply to other files."""
    if not subject.is_ours or subject.ome is None:
        return
    annotations = subject.ome.iterfind("StructuredAnnotations//Value")
    content = " ".join(text for element in annotations for text in element.itertext())
    mapped = xml.map_annotations(subject.ome)
    is_virtual = not xml.is_resampled(mapped)
    for words in (NOTICE, RESEARCH_USE) if is_virtual else (RESEARCH_USE,):
        if words not in content:
            yield error(20, f"its annotations lack {words!r}: it can be mistaken for a physical stain; convert again")
    missing = [key for key in (xml.REQUIRED if is_virtual else xml.REQUIRED_OF_RESAMPLED) if key not in mapped]
    if missing:
        yield error(20, f"its annotations lack {', '.join(missing)}: its origin is unknown; write it again")


def regions(subject: Subject) -> Iterator[Problem]:
    """Rule 21: rectangles are within the image, and the image references them."""
    if subject.ome is None or subject.image is None:
        return
    size = subject.first.size
    references = {e.get("ID") for e in subject.image.iterfind("ROIRef")}
    rois = subject.ome.findall("ROI")
    orphans = [roi.get("ID") for roi in rois if roi.get("ID") not in references]
    if orphans:
        yield warning(
            21, f"the image does not reference {len(orphans)} of {len(rois)} regions: viewers hide them; add ROIRef"
        )
    outside = [e for roi in rois for e in roi.iter("Rectangle") if not _inside(e, size.w, size.h)]
    if outside:
        yield warning(21, f"{len(outside)} regions extend beyond the image of {size.w}×{size.h} px: clip them")


def _inside(rectangle: ET.Element, width: int, height: int) -> bool:
    try:
        x, y, w, h = (float(rectangle.get(key, "")) for key in ("X", "Y", "Width", "Height"))
    except ValueError:
        return False
    return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height


def fixed_uuid(subject: Subject) -> Iterator[Problem]:
    """Rule 22: the file's UUID is derived from input and settings."""
    if not subject.is_ours or subject.ome is None:
        return
    text = subject.ome.get("UUID", "")
    try:
        is_fixed = uuid.UUID(text).version == 5
    except ValueError:
        is_fixed = False
    if not is_fixed:
        yield warning(
            22, f"its UUID, {text or 'missing'}, is not derived from input and settings (version 5): convert again"
        )
    if subject.ome.find("Image/AcquisitionDate") is not None:
        yield warning(
            22, "its OME-XML contains a date: the same run would give different bytes; write it without AcquisitionDate"
        )
