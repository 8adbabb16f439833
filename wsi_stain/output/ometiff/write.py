"""Writing: encoded tiles, copied into a pyramidal OME-TIFF in file order."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import tifffile

from wsi_stain import __version__
from wsi_stain.errors import OutputError
from wsi_stain.geometry import Size
from wsi_stain.output.encoding import TILE_PX, Encoding
from wsi_stain.output.ometiff import xml
from wsi_stain.output.ometiff.tiff import SUB_IFDS, Tiff


class TileSource(Protocol):
    """Where the tiles come from: the canvas's spool."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Size of every level, each the half of the one before, until the longer side is at most one tile."""
        ...

    @property
    def encoding(self) -> Encoding:
        """How the tiles are encoded."""
        ...

    def tiles(self, level: int) -> Iterator[bytes]:
        """The encoded tiles of one level, row by row."""
        ...


def write(path: Path, source: TileSource, metadata: xml.OmeMetadata, *, compat_openslide: bool = False) -> None:
    """Write an OME-TIFF at exactly `path`; the caller checks and renames it.

    Memory bound: one tile, and 32 bytes per tile of one level. Equal arguments give equal bytes.

    Args:
        path: the file to make, usually `….ome.tiff.part`.
        source: the tiles of every level.
        metadata: what the file says about itself; `metadata.name` is the name it will have when finished.
        compat_openslide: link the reduced levels as pages too, so that OpenSlide sees the pyramid.

    Raises:
        OutputError: `source` has too few or too many tiles.
        OSError: the file cannot be written (disk full, no permission).
    """
    assert _is_pyramid(source.sizes), f"levels of {source.sizes}: each must be the half of the one before"
    # Everything is named that tifffile would else take from the machine, the clock or the file's name.
    with tifffile.TiffWriter(path, bigtiff=True, byteorder="<", ome=False, shaped=False) as writer:
        for level, size in enumerate(source.sizes):
            tiles = _counted(source, level)
            # tifffile takes as many as it needs, closes what it took them from, and never sees one too many.
            writer.write(islice(tiles, None), shape=(*size, 3), dtype="uint8", **_options(source, metadata, level))
            next(tiles, None)
    if compat_openslide:
        _link_levels_as_pages(path)


def _options(source: TileSource, metadata: xml.OmeMetadata, level: int) -> dict[str, Any]:
    """Arguments of `TiffWriter.write` for one level."""
    options = source.encoding.tifffile_options() | {"tile": (TILE_PX, TILE_PX), "metadata": None}
    if metadata.mpp is not None:
        px_per_cm = 1e4 / (metadata.mpp * 2**level)
        options |= {"resolution": (px_per_cm, px_per_cm), "resolutionunit": "centimeter"}
    if level:
        return options | {"subfiletype": 1}
    return options | {
        "subifds": len(source.sizes) - 1,
        "description": xml.build(metadata, source.sizes[0]),
        "software": f"wsi-stain {__version__}",
    }


def _counted(source: TileSource, level: int) -> Iterator[bytes]:
    """The level's tiles, exactly as many as the level needs: a wrong number would shift all that follow."""
    grid = source.sizes[level].ceil_div(TILE_PX)
    expected, found = grid.h * grid.w, 0
    for tile in source.tiles(level):
        found += 1
        if found > expected:
            break
        yield tile
    if found != expected:
        number = f"more than {expected}" if found > expected else f"only {found} of {expected}"
        raise OutputError(f"level {level} has {number} tiles: what was painted is incomplete; convert with --restart")


def _is_pyramid(sizes: tuple[Size, ...]) -> bool:
    halved = all(lower == upper.halved() for upper, lower in pairwise(sizes))
    return halved and max(sizes[-1]) <= TILE_PX and all(max(size) > TILE_PX for size in sizes[:-1])


def _link_levels_as_pages(path: Path) -> None:
    """Point the "next IFD" of the first IFD at the first SubIFD; the SubIFDs are a chain already.

    OpenSlide 4 and geotiff.js follow only that pointer. The TIFF supplement says that SubIFDs stand outside the chain;
    Bio-Formats, tifffile, tiffslide, libvips and Pillow do not mind.
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
