"""The images of a TIFF as tifffile's series, each with its part of the OME-XML, and which of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from tifffile import TiffFile

from wsi_stain.geometry import Size
from wsi_stain.slide.lengths import in_um
from wsi_stain.slide.pixel_size import can_be_level
from wsi_stain.slide.readers.select import ImageCandidate, Plane, choose_image, choose_plane, of_slide_scale


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a file."""

    what: ImageCandidate
    series: Any
    """tifffile's series."""
    ome: ElementTree.Element | None
    """Its `Image` in OME-XML."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The image and plane that are read."""

    image: Image
    plane: Plane
    is_one_of_many: bool
    notes: tuple[str, ...]


def choose(tiff: TiffFile, number: int | None, z: int | None) -> Choice:
    """The image and the plane to read; `None` stands for the largest image and the middle plane.

    Raises:
        SlideError: the file has no such image or plane.
    """
    images = list(_images(tiff))
    if images[0].series.kind == "svs":
        images = images[:1]  # thumbnail, label and macro follow
    slides = _without_levels(images, of_slide_scale([image.what for image in images]))
    best, notes = choose_image(tiff.filename, [image.what for image in images], slides, number)
    image = next(image for image in images if image.what is best)
    plane = choose_plane(tiff.filename, image.series.axes, image.series.shape, z)
    return Choice(image, plane, len(slides) > 1, notes + plane.notes)


def ome_mpp(pixels: ElementTree.Element | None) -> tuple[float, float] | None:
    """µm per px along (x, y) as `Pixels` in OME-XML gives it."""
    if pixels is None:
        return None
    x, y = (in_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY")
    return None if x is None or y is None else (x, y)


def ome_images(xml: str | None) -> list[ElementTree.Element]:
    """The `Image` elements of OME-XML; empty if there is none, or it is damaged."""
    try:
        return ElementTree.fromstring(xml or "").findall("{*}Image")
    except ElementTree.ParseError:
        return []


def _images(tiff: TiffFile) -> Iterator[Image]:
    """Every image of the file; tifffile's series follow the order of OME-XML, but leave out images without pixels."""
    described = iter(ome_images(tiff.ome_metadata if tiff.is_ome else None))
    for number, series in enumerate(tiff.series):
        size = Size(series.keyframe.imagelength, series.keyframe.imagewidth)
        ome = next((image for image in described if _is_size_of(image, size)), None)
        mpp = None if ome is None else ome_mpp(ome.find("{*}Pixels"))
        yield Image(ImageCandidate(number, str(series.name), size, mpp, _is_colour(series)), series, ome)


def _is_size_of(image: ElementTree.Element, size: Size) -> bool:
    pixels = image.find("{*}Pixels")
    return pixels is not None and (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size.w), str(size.h))


def _is_colour(series: Any) -> bool:
    lengths = dict(zip(series.axes, series.shape, strict=True))
    return lengths.get("S", lengths.get("C", 1)) in (3, 4)


def _without_levels(images: list[Image], slides: list[ImageCandidate]) -> list[ImageCandidate]:
    """The candidates without levels of the largest that tifffile does not link; OME-XML tells levels from images."""
    largest = max(slides, key=lambda i: i.size.h * i.size.w)
    if any(image.ome is not None for image in images):
        return slides
    return [i for i in slides if i is largest or not can_be_level(largest.size, i.size)]
