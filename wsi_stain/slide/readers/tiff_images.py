"""Which image of a TIFF is the slide, and which plane of it: the largest RGB image, in its middle plane.

Label and macro images are never taken. A file can hold several images of slide scale (regions of one glass), and an
image several focal planes or times; what is read is stated in `Facts.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from xml.etree import ElementTree

from tifffile import TiffFile

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Size
from wsi_stain.slide.lengths import MAX_MPP, in_um
from wsi_stain.slide.pixel_size import can_be_level

NOT_A_SLIDE = re.compile(r"\b(label|macro|overview|barcode|thumbnail)\b", re.IGNORECASE)
COARSER = 8
"""An image this many times coarser than the finest one is an overview, not a region."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a file."""

    number: int
    series: Any
    """tifffile's series."""
    size: Size
    ome: ElementTree.Element | None
    """Its `Image` in OME-XML."""

    @property
    def pixels(self) -> ElementTree.Element | None:
        """Its `Pixels` in OME-XML."""
        return None if self.ome is None else self.ome.find("{*}Pixels")

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm per px along (x, y) as OME-XML gives it."""
        if self.pixels is None:
            return None
        x, y = (
            in_um(self.pixels.get(f"PhysicalSize{axis}"), self.pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XY"
        )
        return None if x is None or y is None else (x, y)

    @property
    def is_other(self) -> bool:
        """Whether its name is that of a label or a macro image."""
        return bool(NOT_A_SLIDE.search(str(self.series.name)))

    def __str__(self) -> str:
        return f"{self.number} ({self.size.w} × {self.size.h} px)"


@dataclass(frozen=True, slots=True)
class Choice:
    """The image and plane that are read."""

    image: Image
    page: int
    """The plane's index among the pages of the series."""
    plane: int | None
    """The plane's number along the focal axis, or else along the time axis; `None` if there is one plane."""
    is_one_of_many: bool
    notes: tuple[str, ...]


def choose_image(tiff: TiffFile, image: int | None, z: int | None) -> Choice:
    """The image and the plane to read; `None` stands for the largest image and the middle plane.

    Raises:
        SlideError: the file has no such image or plane.
    """
    images = list(_images(tiff))
    slides = _of_slide_scale(images)
    if image is None:
        best = max(slides, key=lambda i: i.size.h * i.size.w)
    else:
        best = _numbered(tiff.filename, images, slides, image)
    notes = ()
    if len(slides) > 1:
        listed = ", ".join(map(str, slides))
        notes = (f"{tiff.filename} holds {len(slides)} images: {listed}; reading image {best.number}, see --image",)
    page, plane, more = choose_plane(tiff.filename, best.series.axes, best.series.shape, z)
    return Choice(best, page, plane, len(slides) > 1, notes + more)


def choose_plane(name: str, axes: str, shape: Sequence[int], z: int | None) -> tuple[int, int | None, tuple[str, ...]]:
    """Which plane of an image to read.

    Args:
        name: the file's name, for messages.
        axes: the axes of the array, such as ZYXS.
        shape: its shape.
        z: the plane asked for; `None` takes the middle one.

    Returns:
        its index among the planes in the order of the axes, its number along the focal (else the first) axis, and
        notes. Index and number are 0 and `None` if there is one plane.

    Raises:
        SlideError: there is no such plane.
    """
    lengths = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in "YXSC" and n > 1}
    if not lengths:
        if z not in (None, 0):
            raise SlideError(f"{name} has one focal plane, not a plane {z}; omit --z")
        return 0, None, ()
    main = "Z" if "Z" in lengths else next(iter(lengths))
    n = lengths[main]
    if z is not None and not 0 <= z < n:
        raise SlideError(f"{name} has no plane {z}; pass --z between 0 and {n - 1}")
    position = {axis: length // 2 for axis, length in lengths.items()}
    position[main] = n // 2 if z is None else z
    index = 0
    for axis, length in lengths.items():
        index = index * length + position[axis]
    kind = {"Z": "focal planes", "T": "times"}.get(main, "planes")
    which = "the middle one, is read; pass --z for another" if z is None else "is read"
    note = f"{name} holds {n} {kind}, 0 to {n - 1}: {position[main]}, {which}"
    if prod(lengths.values()) > n:
        others = ", ".join(f"{axis} {position[axis]} of {length}" for axis, length in lengths.items() if axis != main)
        note += f" (of the other axes: {others})"
    return index, position[main], (note,)


def _images(tiff: TiffFile) -> Iterator[Image]:
    """Every image of the file; tifffile's series follow the order of OME-XML, but leave out images without pixels."""
    described = iter(ome_images(tiff))
    for number, series in enumerate(tiff.series):
        size = Size(series.keyframe.imagelength, series.keyframe.imagewidth)
        ome = next((image for image in described if _is_size_of(image, size)), None)
        yield Image(number, series, size, ome)


def ome_images(tiff: TiffFile) -> list[ElementTree.Element]:
    """The `Image` elements of OME-XML; empty if there is none, or it is damaged."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return []
    try:
        return ElementTree.fromstring(tiff.ome_metadata).findall("{*}Image")
    except ElementTree.ParseError:
        return []


def _is_size_of(image: ElementTree.Element, size: Size) -> bool:
    pixels = image.find("{*}Pixels")
    return pixels is not None and (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size.w), str(size.h))


def _of_slide_scale(images: list[Image]) -> list[Image]:
    """The images that can be the slide; without any, the first image, which is refused where its pixels are checked."""
    if images[0].series.kind == "svs":
        return images[:1]  # thumbnail, label and macro follow
    colours = [image for image in images if _is_colour(image.series)]
    named = [image for image in colours if not image.is_other]
    known = [max(image.mpp) for image in named if image.mpp]
    limit = min([MAX_MPP, *(COARSER * min(known) for _ in known[:1])])
    fine = [image for image in named if not image.mpp or max(image.mpp) <= limit] or named
    largest = max(fine, key=lambda i: i.size.h * i.size.w, default=None)
    if largest is None:
        return images[:1]
    if largest.ome is not None:
        return fine
    return [i for i in fine if i is largest or not can_be_level(largest.size, i.size)]  # a level that tifffile misses


def _is_colour(series: Any) -> bool:
    lengths = dict(zip(series.axes, series.shape, strict=True))
    return (lengths.get("S", 1) if "S" in lengths else lengths.get("C", 1)) in (3, 4)


def _numbered(name: str, images: list[Image], slides: list[Image], number: int) -> Image:
    image = next((i for i in images if i.number == number), None)
    listed = ", ".join(map(str, slides))
    if image is None:
        raise SlideError(f"{name} has no image {number}; pass --image with one of: {listed}")
    if image.is_other or (image.series.kind == "svs" and number):
        raise SlideError(f"image {number} of {name} is a label or macro image; pass --image with one of: {listed}")
    return image
