"""A painted picture and the pyramid made from it: what the engine's spool hands to the writer, in memory."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsi_stain.geometry import Size
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile, split
from wsi_stain.output.ometiff.xml import REQUIRED, OmeMetadata


def paint(size: Size) -> np.ndarray:
    """Smooth brown and blue blobs on glass, uint8 (h, w, 3); no two corners, axes or channels are alike."""
    y, x = np.ogrid[: size.h, : size.w]
    brown = np.clip(np.sin(y / 67 + 0.6) + np.cos(x / 93) - 0.3, 0, 1)[..., None]
    blue = np.clip(np.sin(x / 59 + 0.9) + np.cos(y / 101 + x / 157) - 0.5, 0, 1)[..., None]
    picture = 243 - brown * (243 - np.array([150, 96, 48])) - blue * (243 - np.array([110, 120, 190])) * (1 - brown)
    ramp = 12 * (y / max(1, size.h - 1))[..., None] * np.array([1, 0, 0]) + 12 * (x / max(1, size.w - 1))[..., None] * [
        0,
        0,
        1,
    ]
    return np.clip(picture - ramp, 0, 255).round().astype(np.uint8)


def halve(pixels: np.ndarray) -> np.ndarray:
    """2×2 mean, rounded half up; an odd last row or column counts twice."""
    h, w = pixels.shape[:2]
    even = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge").astype(np.uint16)
    return ((even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2] + 2) // 4).astype(np.uint8)


class ArraySource:
    """A `TileSource` made from an array."""

    def __init__(self, pixels: np.ndarray, encoding: Encoding) -> None:
        self.encoding = encoding
        self.levels = [pixels]
        while max(self.levels[-1].shape[:2]) > TILE_PX:
            self.levels.append(halve(self.levels[-1]))

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(Size(*level.shape[:2]) for level in self.levels)

    def tiles(self, level: int, plane: int = 0) -> Iterator[bytes]:
        pixels = self.levels[level]
        for y in range(0, pixels.shape[0], TILE_PX):
            for x in range(0, pixels.shape[1], TILE_PX):
                tile = pad_tile(pixels[y : y + TILE_PX, x : x + TILE_PX])
                yield self.encoding.encode(split(tile, self.encoding.samples)[plane])


def metadata(name: str, **changes: Any) -> OmeMetadata:
    """Metadata as the engine gives it, for a file of that name."""
    annotations = dict.fromkeys(REQUIRED, "0" * 64) | {"model": "he2her2", "model_version": "1.0.0"}
    plain = OmeMetadata(name, 0.5, 20, "HER2", annotations, uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, name)))
    return dataclasses.replace(plain, **changes)
