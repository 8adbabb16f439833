"""Cache of generated tiles that several blocks share, so that a worker generates each of them once."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from wsi_stain.geometry import Box


class StainedTileCache:
    """Generated tiles that other blocks still need; evicts the least recently used first.

    Memory bound: `limit_bytes`. Not thread-safe: only the thread that holds the device uses it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._tiles: OrderedDict[Box, tuple[np.ndarray, int]] = OrderedDict()

    def take(self, tile: Box) -> np.ndarray | None:
        """The tile's pixels if cached; the last block that needs them removes them."""
        pixels, uses = self._tiles.pop(tile, (None, 0))
        if pixels is not None:
            self._bytes -= pixels.nbytes
            self.keep(tile, pixels, uses - 1)
        return pixels

    def keep(self, tile: Box, pixels: np.ndarray, uses: int) -> None:
        """Keep a tile that `uses` more blocks need."""
        if uses < 1 or pixels.nbytes > self._limit:
            return
        self._tiles[tile] = pixels, uses
        self._bytes += pixels.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._tiles.popitem(last=False)[1][0].nbytes
