"""Where the frames of an encapsulated instance lie, and whether their JPEG streams are whole."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from wsi_stain.geometry import Size
from wsi_stain.output.ometiff.jpeg import read_header
from wsi_stain.slide.readers.dicom import ITEM, PIXEL_DATA

END = b"\xfe\xff\xdd\xe0"
HEAD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Frames:
    """The items of the pixel data."""

    extents: tuple[tuple[int, int], ...]
    """Offset in the file, and bytes, of every fragment behind the table of offsets."""
    is_complete: bool
    """Whether the file ends with the delimiter of the sequence."""


def frames_of(instance: Path) -> Frames | None:
    """The frames of an instance; `None` if its pixels are not encapsulated."""
    with instance.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(PIXEL_DATA)
        if start < 0:
            return None
        at, extents = start + len(PIXEL_DATA), []
        while data[at : at + 4] == ITEM:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            if at + 8 + length > len(data):
                return Frames(tuple(extents[1:]), False)
            extents.append((at + 8, length))
            at += 8 + length
        return Frames(tuple(extents[1:]), data[at : at + 8] == END + bytes(4))


def broken_frame(instance: Path, frames: Frames, tile: Size) -> tuple[int, str] | None:
    """Number and fault of the first frame that is no whole JPEG of a tile; `None` if all are."""
    with instance.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, (at, length) in enumerate(frames.extents):
            try:
                size = read_header(data[at : at + min(length, HEAD_BYTES)]).size
            except ValueError as err:
                return number, str(err)
            if size != tile:
                return number, f"has {size.h} × {size.w} px, but the header states {tile.h} × {tile.w}"
            if not data[at + max(0, length - 3) : at + length].rstrip(b"\0").endswith(b"\xff\xd9"):
                return number, "is a JPEG stream that ends too early"
    return None
