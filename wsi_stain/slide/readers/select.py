"""Which image of a file is the slide, and which plane of it: the largest RGB image, in its middle plane.

Label and macro images are never taken. A file can hold several images of slide scale (regions of one glass), and an
image several focal planes or times; what is read is stated in `SlideMetadata.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from wsi_stain.config.ranges import MAX_MPP
from wsi_stain.errors import SlideError
from wsi_stain.geometry import Size

NOT_A_SLIDE = re.compile(r"\b(label|macro|overview|barcode|thumbnail)\b", re.IGNORECASE)
COARSER = 8
"""An image this many times coarser than the finest one is an overview, not a region."""


@dataclass(frozen=True, slots=True)
class ImageCandidate:
    """One image of a file."""

    number: int
    name: str
    size: Size
    mpp: tuple[float, float] | None
    """µm per px along (x, y), if known."""
    is_colour: bool

    @property
    def is_other(self) -> bool:
        """Whether its name is that of a label or a macro image."""
        return bool(NOT_A_SLIDE.search(self.name))

    def __str__(self) -> str:
        return f"{self.number} ({self.size.w} × {self.size.h} px)"


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of an image; without focal planes and times, the only one."""

    index: int = 0
    """Among all planes, in the order of the axes."""
    number: int | None = None
    """Along the focal axis, or else along the first; `None` if there is one plane."""
    position: tuple[tuple[str, int], ...] = ()
    """Its index along every axis that has more than one."""
    notes: tuple[str, ...] = ()


def of_slide_scale(images: Sequence[ImageCandidate]) -> list[ImageCandidate]:
    """The images that can be the slide; without any, the first image, which is refused where its pixels are checked."""
    colours = [image for image in images if image.is_colour and not image.is_other]
    known = [max(image.mpp) for image in colours if image.mpp]
    limit = min(MAX_MPP, COARSER * min(known)) if known else MAX_MPP
    return [i for i in colours if not i.mpp or max(i.mpp) <= limit] or colours or list(images[:1])


def choose_image(
    name: str, images: Sequence[ImageCandidate], slides: Sequence[ImageCandidate], number: int | None
) -> tuple[ImageCandidate, tuple[str, ...]]:
    """The image to read, and what to tell the user of it.

    Args:
        name: the file's name.
        images: every image of the file.
        slides: those of slide scale.
        number: the one asked for; `None` stands for the largest.

    Raises:
        SlideError: the file has no such image, or it is a label or macro.
    """
    listed = ", ".join(map(str, slides))
    if number is None:
        best = max(slides, key=lambda i: i.size.h * i.size.w)
    else:
        best = next((i for i in images if i.number == number), None)
        if best is None:
            raise SlideError(f"{name} has no image {number}; pass --image with one of: {listed}")
        if best.is_other:
            raise SlideError(f"image {number} of {name} is a label or macro image; pass --image with one of: {listed}")
    if len(slides) < 2:
        return best, ()
    return best, (f"{name} holds {len(slides)} images: {listed}; reading image {best.number}, see --image",)


def choose_plane(name: str, axes: str, shape: Sequence[int], z: int | None) -> Plane:
    """Which plane of an image to read.

    Args:
        name: the file's name.
        axes: the axes of the array, such as ZYXS; Y, X, S and C are not planes.
        shape: its shape.
        z: the plane asked for; `None` takes the middle one.

    Raises:
        SlideError: there is no such plane.
    """
    lengths = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in "YXSC" and n > 1}
    if not lengths:
        if z not in (None, 0):
            raise SlideError(f"{name} has one focal plane, not a plane {z}; omit --z")
        return Plane()
    main = "Z" if "Z" in lengths else next(iter(lengths))
    n = lengths[main]
    if z is not None and not 0 <= z < n:
        raise SlideError(f"{name} has no plane {z}; pass --z between 0 and {n - 1}")
    position = {axis: length // 2 for axis, length in lengths.items()}
    position[main] = n // 2 if z is None else z
    index = 0
    for axis, length in lengths.items():
        index = index * length + position[axis]
    return Plane(index, position[main], tuple(position.items()), (_note(name, main, lengths, position, z),))


def _note(name: str, main: str, lengths: dict[str, int], position: dict[str, int], z: int | None) -> str:
    n = lengths[main]
    kind = {"Z": "focal planes", "T": "times"}.get(main, "planes")
    which = "the middle one, is read; pass --z for another" if z is None else "is read"
    note = f"{name} holds {n} {kind}, 0 to {n - 1}: {position[main]}, {which}"
    if prod(lengths.values()) == n:
        return note
    others = ", ".join(f"{axis} {position[axis]} of {length}" for axis, length in lengths.items() if axis != main)
    return f"{note} (of the other axes: {others})"
