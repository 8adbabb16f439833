"""Augmentation of training crops: other stains, scanners and compressions of the same tissue.

Colours change in optical density, where the amount of a stain is a factor and its hue a direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from wsi_stain.config.train import AugmentConfig

WHITE = 255.0
"""Reference of the optical density: a constant factor, which leaves the background of a slide where it is."""


@dataclass(frozen=True, slots=True)
class Change:
    """One random change of a crop; the default changes nothing.

    Example:
        >>> pale = Change(intensity=0.5)
    """

    hue: float = 0.0
    """Rotation of the colours around grey in optical density, radians."""
    saturation: float = 1.0
    """Factor of the distance from grey in optical density."""
    intensity: float = 1.0
    """Factor of the optical density."""
    scale: float = 1.0
    """Factor of the size."""
    blur_px: float = 0.0
    """σ of a Gaussian."""
    jpeg: int | None = None
    """Quality of a JPEG compression."""
    coarser: float = 1.0
    """Factor by which the crop is reduced and enlarged again, as a slide that is coarser than the network."""

    def window(self, side: int, most: int) -> int:
        """Side in px of the window that becomes a crop of `side` px; at most `most`, the side of the tile."""
        return min(round(side / self.scale), most)

    def resized(self, crop: np.ndarray, side: int) -> np.ndarray:
        """A window, uint8 (n, n, 3), as a crop of `side` px."""
        if len(crop) == side:
            return crop
        how = cv2.INTER_AREA if len(crop) > side else cv2.INTER_CUBIC
        return cv2.resize(np.ascontiguousarray(crop), (side, side), interpolation=how)

    def applied(self, he: np.ndarray) -> np.ndarray:
        """The H&E with other colours, blurred and compressed: uint8 (h, w, 3) → the same shape."""
        if (self.hue, self.saturation, self.intensity) != (0.0, 1.0, 1.0):
            he = recolour(he, self)
        if self.coarser > 1:
            he = enlarged(he, self.coarser)
        if self.blur_px:
            he = cv2.GaussianBlur(np.ascontiguousarray(he), (0, 0), self.blur_px, borderType=cv2.BORDER_REFLECT_101)
        if self.jpeg is not None:
            _, data = cv2.imencode(".jpg", he[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            assert decoded is not None, "it was encoded a line above"
            he = decoded[..., ::-1]
        return he


def draw_change(config: AugmentConfig, rng: np.random.Generator) -> Change:
    """A random change within the ranges of `config`; each of its numbers is drawn whether it is used or not."""
    hue, saturation, intensity, scale, blur, jpeg, coarser = rng.uniform(-1, 1, 7)
    return Change(
        hue=math.radians(config.hue * hue),
        saturation=1 + config.saturation * saturation,
        intensity=(1 + config.intensity) ** intensity,
        scale=1 + config.scale * scale,
        blur_px=config.blur * max(blur, 0.0),
        jpeg=round(config.jpeg + (95 - config.jpeg) * jpeg) if config.jpeg and jpeg > 0 else None,
        coarser=1 + (config.coarser - 1) * max(coarser, 0.0),
    )


def enlarged(he: np.ndarray, factor: float) -> np.ndarray:
    """Reduce an image by a factor and enlarge it to its size again: uint8 (h, w, 3) → the same shape."""
    h, w = he.shape[:2]
    small = (max(1, round(w / factor)), max(1, round(h / factor)))
    reduced = cv2.resize(np.ascontiguousarray(he), small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (w, h), interpolation=cv2.INTER_CUBIC)


def recolour(he: np.ndarray, change: Change) -> np.ndarray:
    """Rotate and scale the colours of an image in optical density: uint8 (h, w, 3) → the same shape.

    The axis of the rotation is grey; `saturation` scales the distance from it, `intensity` everything.
    Values from a table: an image has 256 levels per channel.
    """
    table = -np.log10(np.maximum(np.arange(256), 1) / WHITE).astype(np.float32)
    cosine, sine = math.cos(change.hue), math.sin(change.hue)
    grey = np.full((3, 3), 1 / 3)
    around = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # the cross product with the grey axis
    rotation = cosine * (np.eye(3) - grey) + sine * around
    mixed = table[he] @ (change.intensity * (grey + change.saturation * rotation)).T.astype(np.float32)
    return np.rint(np.clip(WHITE * 10**-mixed, 0, 255)).astype(np.uint8)
