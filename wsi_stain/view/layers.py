"""The layers of a page: tiles of an H&E, of a finished stain, of one that is being painted, and of its DAB."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import Any, Protocol

import cv2
import numpy as np

from wsi_stain.geometry import Box, Size
from wsi_stain.measure.composite import composite
from wsi_stain.measure.deconvolution import POSITIVE_OD, Background, dab
from wsi_stain.output.channel_file import ChannelFile
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile
from wsi_stain.slide.slide import Slide, View
from wsi_stain.view.painting import Painting
from wsi_stain.view.shown import Shown, tile_box
from wsi_stain.view.tiff_tiles import StoredTiles

CACHE_BYTES = 32 << 20
"""Memory for encoded tiles of a layer: both pictures and the overview ask for the coarse ones."""
JPEG = Encoding("jpeg", 90, "420")
DAB_BGRA = (255, 0, 190, 150)
"""Colour of the DAB overlay: a violet that neither stain has."""
MIME = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png"}


@dataclass(frozen=True, slots=True)
class LayerLevel:
    """One level as the page addresses it."""

    size: Size
    tile: Size
    downsample: int
    """Px of the layer's level 0 per px."""

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {"size": self.size, "tile": self.tile, "grid": self.grid, "downsample": self.downsample}

    @property
    def grid(self) -> Size:
        """Rows and columns of tiles."""
        return Size(-(-self.size.h // self.tile.h), -(-self.size.w // self.tile.w))


class Layer(Protocol):
    """Tiles of one picture."""

    levels: tuple[LayerLevel, ...]
    """Finest first."""

    def tile(self, level: int, row: int, column: int) -> bytes:
        """A JPEG or PNG of a tile inside the layer; padded at the edges."""
        ...


class Pixels(Layer, Protocol):
    """A layer whose pixels can be measured."""

    def pixels(self, level: int, row: int, column: int) -> np.ndarray:
        """The tile's pixels, uint8 (h, w, 3), clipped to the layer; background where nothing is stained."""
        ...


class FileLayer:
    """A slide's file: its own tiles where a browser can decode them, else tiles of 512 px made from its pixels."""

    def __init__(self, slide: Slide) -> None:
        self.slide, self._stored, self._cache = slide, StoredTiles(slide), Encoded()
        own = {level.downsample: index for index, level in enumerate(slide.levels) if index in self._stored.levels}
        levels: list[LayerLevel] = []
        self._own: list[int | None] = []
        while not levels or max(levels[-1].size) > TILE_PX:
            downsample = 1 << len(levels)
            index = own.get(Fraction(downsample))
            self._own.append(index)
            size, tile = Size(*(-(-n // downsample) for n in slide.size)), Size(TILE_PX, TILE_PX)
            if index is not None:
                size, tile = self._stored.levels[index].size, self._stored.levels[index].tile
            levels.append(LayerLevel(size, tile, downsample))
        self.levels = tuple(levels)

    def tile(self, level: int, row: int, column: int) -> bytes:
        """A stored tile, or one made from pixels; what cannot be decoded is hatched."""
        own = self._own[level]
        data = None if own is None else self._stored.read(own, row, column)
        return data or self._cache.get((level, row, column), lambda: jpeg(self.pixels(level, row, column)))

    def pixels(self, level: int, row: int, column: int) -> np.ndarray:
        """uint8 (h, w, 3); what cannot be decoded is hatched."""
        at = self.levels[level]
        box = Box.at(row * at.tile.h, column * at.tile.w, at.tile) & Box.of(at.size)
        pixels, lost = View(self.slide, at.size, None, Fraction(at.downsample)).read_and_damage(box)
        if lost.any():
            pixels[lost] = hatched(box.size)[lost]
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._stored.close()
        self.slide.close()


class LiveLayer:
    """A virtual stain that is being painted, over a pale H&E."""

    def __init__(self, painting: Painting, shown: Shown) -> None:
        self._painting, self._shown = painting, shown
        side = Size(TILE_PX, TILE_PX)
        sizes = painting.canvas.store.pyramid.sizes
        self.levels = tuple(LayerLevel(size, side, 1 << n) for n, size in enumerate(sizes))

    def tile(self, level: int, row: int, column: int) -> bytes:
        """The encoded tile of a painted block, or a picture of what there is."""
        canvas, pyramid = self._painting.canvas, self._painting.canvas.store.pyramid
        each = max(1, pyramid.block // TILE_PX >> level)
        stored = None
        if level <= pyramid.depth and (row // each, column // each) in self._painting.painted:
            stored = canvas.jpeg(level, row, column)
        return stored or jpeg(self._shown.over_pale(level, tile_box(self.levels[level].size, row, column)))

    def pixels(self, level: int, row: int, column: int) -> np.ndarray:
        """uint8 (h, w, 3); background where nothing is painted."""
        return self._shown.over_background(level, tile_box(self.levels[level].size, row, column))


class ChannelLayer:
    """A finished output with fluorescence channels, in colours."""

    def __init__(self, file: ChannelFile) -> None:
        self.file, self._cache = file, Encoded()
        tile = Size(TILE_PX, TILE_PX)
        self.levels = tuple(LayerLevel(size, tile, 1 << number) for number, size in enumerate(file.levels))

    def tile(self, level: int, row: int, column: int) -> bytes:
        """A JPEG of the composite."""
        return self._cache.get((level, row, column), lambda: jpeg(self.pixels(level, row, column)))

    def pixels(self, level: int, row: int, column: int) -> np.ndarray:
        """uint8 (h, w, 3)."""
        box = tile_box(self.levels[level].size, row, column)
        return composite(self.file.read(level, box), self.file.channels)

    def close(self) -> None:
        """Nothing is open between tiles."""


class DabLayer:
    """Where DAB is above the threshold for positive pixels; transparent elsewhere.

    Args:
        stain: the layer of the stain.
        background: colour of its background.
    """

    def __init__(self, stain: Pixels, background: Background) -> None:
        self._stain, self._background, self.levels = stain, background, stain.levels

    def tile(self, level: int, row: int, column: int) -> bytes:
        """A PNG with transparency."""
        positive = dab(self._stain.pixels(level, row, column), self._background) > POSITIVE_OD
        out = np.zeros((*self.levels[level].tile, 4), np.uint8)
        out[: positive.shape[0], : positive.shape[1]][positive] = DAB_BGRA
        return cv2.imencode(".png", out, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


class Encoded:
    """LRU cache of encoded tiles, at most `CACHE_BYTES`; thread-safe."""

    def __init__(self) -> None:
        self._tiles: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def get(self, key: Hashable, encode: Callable[[], bytes]) -> bytes:
        """The tile of `key`, encoded if it is not cached."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        data = encode()
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = data
                self._bytes += len(data)
            while self._bytes > CACHE_BYTES:
                self._bytes -= len(self._tiles.popitem(last=False)[1])
        return data


def jpeg(pixels: np.ndarray) -> bytes:
    """A tile of 512 px as JPEG; smaller ones are padded. Tiles of other sizes keep theirs."""
    return JPEG.encode(pad_tile(pixels)) if max(pixels.shape[:2]) <= TILE_PX else picture(pixels)


def picture(pixels: np.ndarray) -> bytes:
    """An image of any size, uint8 (h, w, 3), as JPEG."""
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def hatched(size: Size) -> np.ndarray:
    """Grey stripes, which no slide shows: uint8 (h, w, 3)."""
    y, x = np.indices(size)
    stripes = np.where((x + y) // 16 % 2, 205, 225).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, axis=2)
