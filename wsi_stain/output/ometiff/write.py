"""Writes encoded tiles into a pyramidal OME-TIFF, in file order."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, Protocol

import tifffile

from wsi_stain import __version__
from wsi_stain.errors import OutputError
from wsi_stain.geometry import Size
from wsi_stain.output.encoding import TILE_PX, Encoding
from wsi_stain.output.ometiff import xml, xmp
from wsi_stain.output.ometiff.tiff import SUB_IFDS, Tiff


class TileSource(Protocol):
    """The source of the tiles: the canvas's spool."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of every level, each half of the previous one, until the longer side is at most one tile."""
        ...

    @property
    def encoding(self) -> Encoding:
        """How the tiles are encoded."""
        ...

    def tiles(self, level: int, plane: int = 0) -> Iterator[bytes]:
        """The encoded tiles of one level, row by row: all colours, or the channel `plane`."""
        ...


def write(path: Path, source: TileSource, metadata: xml.OmeMetadata, *, compat_openslide: bool = False) -> None:
    """Write an OME-TIFF at exactly `path`; the caller checks and renames it.

    Memory bound: one tile, and 32 bytes per tile of one level. Equal arguments give equal bytes.

    Args:
        path: the file to write, usually `….ome.tiff.part`.
        source: the tiles of every level.
        metadata: the metadata of the file; `metadata.name` is its final name.
        compat_openslide: also link the reduced levels as pages, so that OpenSlide finds the pyramid.

    Raises:
        OutputError: `source` has too few or too many tiles.
        OSError: the file cannot be written (disk full, no permission).
    """
    assert _is_pyramid(source.sizes), f"levels of {source.sizes}: each must be half of the previous one"
    # Sets everything that tifffile would otherwise derive from the machine, the clock or the file name.
    with tifffile.TiffWriter(path, bigtiff=True, byteorder="<", ome=False, shaped=False) as writer:
        for plane, (level, size) in product(range(len(metadata.channels) or 1), enumerate(source.sizes)):
            tiles = counted(source, level, plane)
            shape = size if metadata.channels else (*size, 3)
            options = _options(source, metadata, level, plane)
            # tifffile takes as many tiles as it needs, closes its iterator, and does not notice surplus tiles.
            writer.write(islice(tiles, None), shape=shape, dtype="uint8", **options)
            next(tiles, None)
    if compat_openslide:
        _link_levels_as_pages(path)


def _options(source: TileSource, metadata: xml.OmeMetadata, level: int, plane: int) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` for one level of a plane."""
    options = source.encoding.tifffile_options() | {"tile": (TILE_PX, TILE_PX), "metadata": None}
    if metadata.mpp is not None:
        px_per_cm = 1e4 / (metadata.mpp * 2**level)
        options |= {"resolution": (px_per_cm, px_per_cm), "resolutionunit": "centimeter"}
    if level:
        return options | {"subfiletype": 1}
    options |= {"subifds": len(source.sizes) - 1}
    if plane:
        return options
    return options | {
        "description": xml.build(metadata, source.sizes[0]),
        "extratags": [_xmp_tag(metadata)],
        "software": f"wsi-stain {__version__}",
    }


def _xmp_tag(metadata: xml.OmeMetadata) -> tuple[int, int, int, bytes, bool]:
    """The tag of the XMP packet, of type BYTE, as tifffile takes it."""
    packet = xmp.build({**metadata.annotations, "stain": metadata.stain, "notice": metadata.notice})
    return xmp.TAG, 1, len(packet), packet, True


def counted(source: TileSource, level: int, plane: int) -> Iterator[bytes]:
    """The level's tiles, checked for their number: a wrong number would shift all subsequent tiles."""
    grid = source.sizes[level].ceil_div(TILE_PX)
    expected, count = grid.h * grid.w, 0
    for tile in source.tiles(level, plane):
        count += 1
        if count > expected:
            break
        yield tile
    if count != expected:
        number = f"more than {expected}" if count > expected else f"only {count} of {expected}"
        raise OutputError(f"level {level} has {number} tiles; painted blocks are incomplete; convert with --restart")


def _is_pyramid(sizes: tuple[Size, ...]) -> bool:
    halved = all(lower == upper.halved() for upper, lower in pairwise(sizes))
    return halved and max(sizes[-1]) <= TILE_PX and all(max(size) > TILE_PX for size in sizes[:-1])


def _link_levels_as_pages(path: Path) -> None:
    """Point the "next IFD" of the first IFD at the first SubIFD; the SubIFDs already form a chain.

    OpenSlide 4 and geotiff.js follow only that pointer. The TIFF supplement specifies that SubIFDs are outside the
    chain; Bio-Formats, tifffile, tiffslide, libvips and Pillow accept both.
    """
    with Tiff.open(path) as tiff:
        first = tiff.pages[0]
        levels = first.whole(SUB_IFDS)
        if not levels.size:
            return
        pointer = first.next_pointer
    with path.open("r+b") as file:
        file.seek(pointer)
        file.write(struct.pack("<Q", int(levels[0])))
