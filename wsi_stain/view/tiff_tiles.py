"""JPEG tiles of a TIFF as the file stores them, for a browser: bytes are passed on, never recoded."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_stain.geometry import Size
from wsi_stain.output.ometiff import tiff as t
from wsi_stain.output.ometiff.tiff import BrokenTiff, Page, Tiff
from wsi_stain.slide.readers.jpeg import decode_jpeg
from wsi_stain.slide.slide import Slide

JPEG, RGB, YCBCR = 7, 2, 6
ORIENTATION = 274
START, END = b"\xff\xd8", b"\xff\xd9"
IS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's marker with transform 0: three components are RGB (ITU-T T.872, 6.5.3). Without it, browsers assume YCbCr."""


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """Where the tiles of one level are in the file."""

    size: Size
    tile: Size
    offsets: np.ndarray
    lengths: np.ndarray
    head: bytes
    """What a browser needs before the tile's own stream: tables that all tiles share, and the colour space."""


class StoredTiles:
    """The tiles of a slide that a browser can decode as they are.

    Only where the file's pixels are those that `Slide` returns: no colour profile, no crop, no turn, square pixels.
    """

    def __init__(self, slide: Slide) -> None:
        self._lock = threading.Lock()
        self._tiff: Tiff | None = None
        self.levels: dict[int, StoredLevel] = {}
        """By the index of the slide's level."""
        is_whole = slide.backend == "tifffile" and slide.bounds is None and slide.stretch == (1, 1)
        if is_whole and slide.icc is None and slide.image is None and slide.plane is None:
            self._open(slide.path, [level.size for level in slide.levels])

    def read(self, level: int, row: int, column: int) -> bytes | None:
        """A whole JPEG; None if the file has no data for this tile, or damaged data, which browsers show."""
        at = self.levels[level]
        index = row * at.size.ceil_div(at.tile.w).w + column
        length = int(at.lengths[index])
        if not length or self._tiff is None:
            return None
        with self._lock:
            try:
                data = self._tiff.read(int(at.offsets[index]), length, "a tile")
            except (BrokenTiff, ValueError, OSError):
                return None  # the slide reports what is damaged
        if not data.startswith(START):
            return None
        stream = START + at.head + data[2:]
        try:
            decode_jpeg(stream, otherwise="YCBCR")
        except RuntimeError:
            return None
        return stream

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._tiff is not None:
                self._tiff.__exit__(None, None, None)
                self._tiff = None

    def _open(self, path: Path, sizes: list[Size]) -> None:
        try:
            tiff = Tiff.open(path)
        except (BrokenTiff, OSError):
            return
        self._tiff = tiff
        try:
            for page in (other for first in tiff.pages for other in (first, *tiff.reduced(first))):
                if page.size in sizes and sizes.index(page.size) not in self.levels and _is_browser_s(page):
                    self.levels[sizes.index(page.size)] = _level(page)
        except (BrokenTiff, ValueError):
            self.levels = {}


def _is_browser_s(page: Page) -> bool:
    """Whether a browser decodes the tiles of a page to the right colours."""
    return (
        page.tile is not None
        and page.number(t.COMPRESSION, 1) == JPEG
        and page.number(t.PHOTOMETRIC, -1) in (RGB, YCBCR)
        and page.number(t.SAMPLES, 1) == 3
        and page.number(t.PLANAR, 1) == 1
        and page.number(ORIENTATION, 1) == 1
        and set(page.numbers(t.BITS)) == {8}
        and t.ICC_PROFILE not in page
    )


def _level(page: Page) -> StoredLevel:
    tables = page.raw(t.JPEG_TABLES)
    inner = tables[len(START) : -len(END)] if tables.startswith(START) and tables.endswith(END) else b""
    head = (IS_RGB if page.number(t.PHOTOMETRIC) == RGB else b"") + inner
    offsets, lengths = page.extents()
    tile, grid = page.tile, page.grid
    assert tile is not None, "checked by `_is_browser_s`"
    if min(len(offsets), len(lengths)) < grid.h * grid.w:
        raise BrokenTiff("lists too few tiles")
    return StoredLevel(page.size, tile, offsets, lengths, head)
