"""PNG and JPEG images: one level, held in memory, without a pixel size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import Facts, over_white
from wsi_stain.slide.readers.turned import TAG

MAX_PX = 100_000_000
"""Largest image, in pixels: the whole image is held in memory (300 MB)."""


class ImageBackend:
    """An ordinary image, decoded when it is opened."""

    name = "image"

    def __init__(self, path: Path) -> None:
        try:
            self._pixels, self.facts = _load(path)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as err:  # raised by Pillow for broken files
            reason = str(err).replace(str(path), path.name)
            raise SlideError(
                f"{path.name} cannot be decoded ({reason}); the file is damaged or truncated; copy it again"
            ) from err
        self.sizes = (Size(*self._pixels.shape[:2]),)

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the image."""
        return self._pixels[box.slices()].copy()

    def renew(self) -> None:
        """Nothing to renew: the pixels are in memory."""

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)


def _load(path: Path) -> tuple[np.ndarray, Facts]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below raises a clearer error
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as err:
            raise SlideError(_too_large(path.name)) from err
    with image:
        if image.width * image.height > MAX_PX:
            raise SlideError(_too_large(path.name))
        if image.mode not in ("RGB", "RGBA", "P"):
            raise SlideError(f"{path.name} has image mode {image.mode}; a brightfield slide must be 8-bit RGB")
        pixels = np.asarray(image.convert("RGB") if image.mode == "RGB" else image.convert("RGBA"))
        codec = image.format or ""
        icc = image.info.get("icc_profile")
        orientation = image.getexif().get(TAG, 1)
    pixels = pixels.copy() if pixels.shape[2] == 3 else over_white(pixels)
    facts = Facts(vendor="generic", format=codec, mpp=None, mpp_from="", codec=codec, icc=icc, orientation=orientation)
    return pixels, facts


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PX / 1e6:.0f} million pixels; convert it to a tiled TIFF, for example with vips"
