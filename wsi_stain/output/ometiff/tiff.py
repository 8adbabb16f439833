"""The on-disk structure of a TIFF: its pages, their tags, and the position of each tile.

Not for reading images (tifffile does that): this exposes the stored structure, also of broken files, and reports every
defect with one exception.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from wsi_stain.geometry import Size

NEW_SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 254, 256, 257, 258, 259, 262, 270
SAMPLES, X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, DATE_TIME, PREDICTOR = 277, 282, 283, 284, 296, 306, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUB_IFDS, JPEG_TABLES = 322, 323, 324, 325, 330, 347
STRIP_OFFSETS, STRIP_BYTES, SAMPLE_FORMAT, CHROMA, ICC_PROFILE = 273, 279, 339, 530, 34675

_FORMATS = {
    **{1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4", 12: "f8"},
    **{13: "u4", 16: "u8", 17: "i8", 18: "u8"},
}
_RATIONALS = {5, 10}
_MOST_PAGES = 10_000


class BrokenTiff(ValueError):  # noqa: N818 - named after the state of the file
    """The file is not a TIFF, or references data outside itself; `str()` is a predicate whose subject is the file."""


class NotATiff(BrokenTiff):
    """The file does not start with a TIFF header."""


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    place: int
    """Offset of the values in the file."""


class Page:
    """One image of the file: an IFD and its tags."""

    def __init__(self, tiff: Tiff, offset: int) -> None:
        self.tiff = tiff
        self.offset = offset
        self._entries = tiff._entries(offset)
        self.next_pointer = tiff._pointer_after(offset)
        """Position in the file of the offset of the next IFD."""

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    @property
    def next(self) -> int:
        """Offset of the next IFD; 0 if this is the last."""
        return self.tiff._word(self.next_pointer, self.tiff.offset_bytes)

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag's values; empty if the tag is missing."""
        entry = self._entries.get(tag)
        if entry is None:
            return b""
        return self.tiff.read(entry.place, _width(entry.kind) * entry.count, f"tag {tag}")

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The values of a tag; empty if the tag is missing. Rationals are returned as quotients."""
        return tuple(self.array(tag).tolist())

    def array(self, tag: int) -> np.ndarray:
        """The values of a tag as an array (n,)."""
        entry = self._entries.get(tag)
        if entry is None:
            return np.zeros(0, np.uint64)
        values = np.frombuffer(self.raw(tag), self.tiff.order + _FORMATS.get(entry.kind, "u1"))
        if entry.kind not in _RATIONALS:
            return values
        over, under = values[0::2].astype(float), values[1::2].astype(float)
        return np.divide(over, under, out=np.zeros_like(over), where=under != 0)

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag as an integer."""
        values = self.array(tag)[:1]
        return int(values[0]) if values.size and np.isfinite(values[0]) else default

    def text(self, tag: int) -> str:
        """The value of a text tag."""
        return self.raw(tag).rstrip(b"\0").decode("utf-8", "replace")

    @property
    def size(self) -> Size:
        """Height and width in px."""
        return Size(self.number(HEIGHT), self.number(WIDTH))

    @property
    def tile(self) -> Size | None:
        """Height and width of a tile; None if the page has strips."""
        return Size(self.number(TILE_HEIGHT), self.number(TILE_WIDTH)) if TILE_WIDTH in self else None

    @property
    def grid(self) -> Size:
        """Number of tiles, down and across; empty if the page has strips."""
        if self.tile is None or not min(self.tile):
            return Size(0, 0)
        return Size(-(-self.size.h // self.tile.h), -(-self.size.w // self.tile.w))

    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths in bytes of all tiles or strips, each int64 (n,)."""
        tiled = self.tile is not None
        offsets, lengths = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
        return self.whole(offsets), self.whole(lengths)

    def whole(self, tag: int) -> np.ndarray:
        """The values of a tag that must be integers, int64 (n,); raises `BrokenTiff` otherwise."""
        values = self.array(tag)
        if values.dtype.kind not in "iu":
            raise BrokenTiff(f"has non-integer values in tag {tag}")
        return values.astype(np.int64)

    def stored(self, index: int) -> bytes:
        """The encoded bytes of one tile."""
        offsets, lengths = self.extents()
        if index >= min(len(offsets), len(lengths)):
            raise BrokenTiff(f"has no tile {index} of {self.grid.h * self.grid.w}")
        return self.tiff.read(int(offsets[index]), int(lengths[index]), f"tile {index}")


class Tiff:
    """A classic TIFF or BigTIFF, open for reading.

    with Tiff.open(path) as tiff:
        tiff.pages[0].size
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = file.seek(0, 2)
        head = self.read(0, 8, "the header")
        magic = head[:2]
        if magic not in (b"II", b"MM"):
            raise NotATiff("is not a TIFF (it does not start with II or MM)")
        self.order = "<" if magic == b"II" else ">"
        version = struct.unpack(self.order + "H", head[2:4])[0]
        if version not in (42, 43):
            raise NotATiff(f"is not a TIFF (its version is {version}, not 42 or 43)")
        self.is_big = version == 43
        self.offset_bytes = 8 if self.is_big else 4
        first = self._word(8, 8) if self.is_big else self._word(4, 4)
        self.pages = tuple(self._chain(first))

    @classmethod
    def open(cls, path: Path) -> Tiff:
        """Open a file.

        Raises:
            BrokenTiff: it is not a TIFF, or its list of pages references data outside it.
            OSError: it cannot be read.
        """
        file = path.open("rb")
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Tiff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, offset: int, n_bytes: int, what: str) -> bytes:
        """Exactly `n_bytes` from `offset`."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.bytes:
            raise BrokenTiff(f"ends at byte {self.bytes}, but {what} extends to byte {offset + n_bytes}")
        self._file.seek(offset)
        return self._file.read(n_bytes)

    def reduced(self, page: Page) -> tuple[Page, ...]:
        """The pages listed in the page's SubIFDs tag, in that order."""
        return tuple(Page(self, int(offset)) for offset in page.whole(SUB_IFDS)[:_MOST_PAGES])

    def _chain(self, offset: int) -> Iterator[Page]:
        seen: set[int] = set()
        while offset:
            if offset in seen or len(seen) >= _MOST_PAGES:
                raise BrokenTiff("has an endless list of pages")
            seen.add(offset)
            page = Page(self, offset)
            yield page
            offset = page.next
        if not seen:
            raise BrokenTiff("has no page, because writing did not finish")

    def _word(self, offset: int, n_bytes: int) -> int:
        return int.from_bytes(self.read(offset, n_bytes, "an offset"), "little" if self.order == "<" else "big")

    def _count(self, offset: int) -> tuple[int, int, int]:
        """Number of entries of the IFD at `offset`, their start, and the bytes per entry."""
        width, each = (8, 20) if self.is_big else (2, 12)
        return self._word(offset, width), offset + width, each

    def _pointer_after(self, offset: int) -> int:
        count, start, each = self._count(offset)
        return start + count * each

    def _entries(self, offset: int) -> dict[int, _Entry]:
        count, start, each = self._count(offset)
        table = self.read(start, count * each, f"the page at byte {offset}")
        entries = {}
        for i in range(count):
            tag, kind, n = struct.unpack_from(self.order + ("HHQ" if self.is_big else "HHI"), table, i * each)
            inline = start + i * each + each - self.offset_bytes
            fits = _width(kind) * n <= self.offset_bytes
            entries[tag] = _Entry(kind, n, inline if fits else self._word(inline, self.offset_bytes))
        return entries


def _width(kind: int) -> int:
    """Bytes per value of a TIFF type."""
    return int(_FORMATS.get(kind, "u1")[1]) * (2 if kind in _RATIONALS else 1)
