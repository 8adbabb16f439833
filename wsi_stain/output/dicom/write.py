"""Writes encoded tiles as the frames of DICOM instances, one file per level of the pyramid."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from wsi_stain.errors import OutputError
from wsi_stain.output.dicom import header
from wsi_stain.output.dicom.encoding import DicomEncoding
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.output.ometiff.write import TileSource, counted
from wsi_stain.output.ometiff.xml import OmeMetadata

PIXEL_DATA = struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
"""Tag, type and undefined length (PS3.5, A.4)."""
ITEM, END = struct.Struct("<HHI"), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
MOST_BYTES = 2**32 - 2
"""Of one frame."""


def write(folder: Path, source: TileSource, metadata: OmeMetadata) -> None:
    """Write `level_<n>.dcm` for every level into an existing folder; the caller checks and renames it.

    Memory bound: one tile, and 16 bytes per tile of a level. Equal arguments give equal bytes.

    Args:
        folder: where to write.
        source: the tiles of every level, in a `DicomEncoding`.
        metadata: the metadata of the output; `mpp` is given, and there are no channels.

    Raises:
        OutputError: `source` has too few or too many tiles.
        OSError: a file cannot be written (disk full, no permission).
    """
    for level in range(len(source.sizes)):
        _write_level(folder / f"level_{level}.dcm", source, metadata, level)


def _write_level(path: Path, source: TileSource, metadata: OmeMetadata, level: int) -> None:
    encoding = source.encoding
    assert isinstance(encoding, DicomEncoding), "frames of DICOM have an encoding of their own"
    grid = source.sizes[level].ceil_div(TILE_PX)
    lengths = np.zeros(grid.h * grid.w, np.int64)
    with path.open("wb") as file:
        head = header.build(metadata, source.sizes, level, encoding, lengths)
        file.write(head)
        file.write(PIXEL_DATA + ITEM.pack(0xFFFE, 0xE000, 0))  # an empty table: offsets of 64 bits are in the header
        for number, tile in enumerate(counted(source, level, 0)):
            frame = tile + bytes(len(tile) % 2)
            if len(frame) > MOST_BYTES:
                raise OutputError(f"tile {number} of level {level} is too large for DICOM; please report this")
            file.write(ITEM.pack(0xFFFE, 0xE000, len(frame)))
            file.write(frame)
            lengths[number] = len(frame)
        file.write(END)
        file.seek(0)
        final = header.build(metadata, source.sizes, level, encoding, lengths)
        assert len(final) == len(head), "the length of a header depends on the frames"
        file.write(final)
        file.flush()
        os.fsync(file.fileno())
