"""Stores generated tiles of blocks that are not painted yet on disk, for resumed runs and other workers.

Without this store an interrupted run loses the tiles generated for unfinished blocks, and all tiles on the border
between painted and unpainted blocks: on a section of 1,911 tiles, 51 tiles per interruption.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsi_stain.geometry import Box
from wsi_stain.output.canvas import BlockStore, pack_remains, unpack_remains

SLOW_S = 0.2
"""Minimum seconds per tile for storing to pay off: packing and writing one takes 1 to 2 % of that."""


class TileStore:
    """Files `t_<y>_<x>` in a canvas's folder: a tile's CRC-32 and its pixels, lossless; damaged files count as missing.

    store = TileStore(canvas.store)
    store.put(tile, pixels)
    store.take(tile, like=pixels)  # in any process
    store.clear([tile])
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def put(self, tile: Box, pixels: np.ndarray) -> None:
        """Keep a tile, uint8 (h, w, 3)."""
        data = pack_remains(pixels)
        self._store.write(_name(tile), zlib.crc32(data).to_bytes(4, "little") + data, sync=False)

    def holds(self, tile: Box) -> bool:
        """Whether there is a file of this tile; `take` also verifies it."""
        return self._path(tile).exists()

    def take(self, tile: Box, like: np.ndarray) -> np.ndarray | None:
        """The tile's pixels in the shape of `like`, if stored."""
        try:
            content = self._path(tile).read_bytes()
        except FileNotFoundError:
            return None
        if len(content) < 4 or zlib.crc32(content[4:]).to_bytes(4, "little") != content[:4]:
            return None  # a power cut may leave a file without its content
        return unpack_remains(content[4:], like)

    def clear(self, tiles: Iterable[Box]) -> None:
        """Delete tiles whose blocks are all painted."""
        for tile in tiles:
            self._path(tile).unlink(missing_ok=True)

    def _path(self, tile: Box) -> Path:
        return self._store.folder / _name(tile)


def _name(tile: Box) -> str:
    return f"t_{tile.y0}_{tile.x0}"
