"""Slides that tests make themselves: in memory, and as files of the formats that can be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import ImageCms

from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import SlideMetadata

SVS_TEXT = (
    "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = {mpp}"
    "|Patient = DOE^JANE|User = secret|Date = 12/29/09"
)


class ComputedBackend:
    """A reader whose pixels are a function of (level, rows, columns): any size, no file."""

    name = "computed"

    def __init__(
        self, sizes: list[Size], pixels: Callable[[int, np.ndarray, np.ndarray], np.ndarray], **facts: object
    ) -> None:
        self.sizes = tuple(sizes)
        self.pixels = pixels
        known: dict = {"vendor": "test", "format": "test", "mpp": (0.25, 0.25), "mpp_from": "test.mpp"} | facts
        self.metadata = SlideMetadata(**known)
        self.boxes: list[Box] = []

    def read(self, level: int, box: Box) -> np.ndarray:
        """The computed pixels; a box that reaches outside is the caller's mistake."""
        assert Box.of(self.sizes[level]).contains(box)
        assert box.area
        self.boxes.append(box)
        y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(np.uint64)
        return self.pixels(level, y, x)

    def renew(self) -> None:
        """Nothing to renew."""

    def close(self) -> None:
        """Nothing to close."""


def hashed(level: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Noise that every pixel of every level has of its own."""
    n = (y * np.uint64(0x9E3779B97F4A7C15)) ^ (x * np.uint64(0xC2B2AE3D27D4EB4F)) ^ np.uint64(level * 7919)
    n ^= n >> np.uint64(29)
    n *= np.uint64(0xBF58476D1CE4E5B9)
    return np.stack([(n >> np.uint64(shift)).astype(np.uint8) for shift in (20, 30, 40)], axis=-1)


def tissue(h: int, w: int, seed: int = 0) -> np.ndarray:
    """A smooth pink and violet picture, kind to JPEG: uint8 (h, w, 3)."""
    y, x = np.mgrid[0:h, 0:w]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(y / (17 + 5 * c) + phase[c]) * np.cos(x / (23 - 4 * c)) for c in range(3)]
    return np.stack([185 + 50 * w for w in waves], axis=-1).astype(np.uint8)


def write_svs(path: Path, pixels: np.ndarray, *, mpp: float = 0.25, tile: int = 128, quality: int = 90) -> Path:
    """An Aperio slide with one level at a quarter of the scale, the index in front of the pixels."""
    h, w = pixels.shape[:2]
    options: dict = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "metadata": None,
    }
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(tile, tile), description=SVS_TEXT.format(h=h, w=w, mpp=mpp), **options)
        tiff.write(pixels[::8, ::8], rowsperstrip=16, description="Aperio Image Library", **options)
        tiff.write(
            pixels[: h // 4 * 4 : 4, : w // 4 * 4 : 4], tile=(tile, tile), description="Aperio Image Library", **options
        )
    return path


def damage(path: Path, tile: int, *, page: int = 0) -> None:
    """Overwrite one tile of a TIFF with zeros."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[page].dataoffsets[tile], tiff.pages[page].databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))


def profile(gamma: float) -> bytes:
    """An RGB profile that is not sRGB: one of Pillow's own with its curves bent."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for n in range(count):
        tag, offset = data[132 + 12 * n : 136 + 12 * n], int.from_bytes(data[136 + 12 * n : 140 + 12 * n], "big")
        if tag == b"rTRC":  # a parametric curve: its first number is gamma, as s15Fixed16
            data[offset + 12 : offset + 16] = int(gamma * 65536).to_bytes(4, "big")
    return bytes(data)
