"""PNG, JPEG and small TIFF images: `decode` for all purposes, and the reader of images that serve as slides.

`decode` is not for the tiles of a slide, which its reader decodes.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wsi_stain.errors import SlideError
from wsi_stain.geometry import Box, Size
from wsi_stain.slide.readers.base import SlideMetadata, UnsupportedFormat, over_white
from wsi_stain.slide.readers.turned import TAG, notes

MAX_PX = 100_000_000
"""Largest image, in pixels: the whole image is held in memory (300 MB)."""
MODES = ("RGB", "RGBA", "L", "LA", "P", "PA")
"""Pillow modes with 8 bits per channel whose colours are sRGB or grey."""
COLOUR_MODES = ("RGB", "RGBA", "P")
"""Modes of images in colour: the models expect H&E, and the result for a grey image would be meaningless."""


class ImageBackend:
    """An ordinary image, decoded when it is opened."""

    name = "image"

    def __init__(self, path: Path) -> None:
        try:
            image = decode(path)
        except UnsupportedFormat as err:
            raise SlideError(f"{path.name} {err}") from err
        if image.mode not in COLOUR_MODES:
            raise SlideError(f"{path.name} has image mode {image.mode}; a brightfield slide must be 8-bit RGB")
        self._pixels = image.pixels
        self.metadata = SlideMetadata(
            vendor="generic",
            format=image.format,
            mpp=None,
            mpp_from="",
            codec=image.format,
            icc=image.icc,
            notes=notes(image.orientation, path.name),
        )
        self.sizes = (Size(*self._pixels.shape[:2]),)

    def read(self, level: int, box: Box) -> np.ndarray:
        """uint8 (h, w, 3) of a box inside the image."""
        return self._pixels[box.slices()].copy()

    def renew(self) -> None:
        """Nothing to renew: the pixels are in memory."""

    def close(self) -> None:
        """Free the pixels."""
        self._pixels = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image in memory."""

    pixels: np.ndarray
    """uint8 (h, w, 3) sRGB, upright, read-only."""
    format: str
    """Name of the file format, for example `PNG`."""
    mode: str
    """Pillow's name of the pixels in the file, for example `L` for grey."""
    icc: bytes | None
    """Embedded colour profile, not applied."""
    orientation: int
    """Number of the EXIF orientation of the file; the pixels are turned already."""


def decode(path: Path) -> DecodedImage:
    """Decode an image the same way for every purpose.

    Grey becomes RGB, a palette is looked up, transparent pixels are composited over white, and the EXIF orientation is
    applied, as image viewers do.

    Raises:
        UnsupportedFormat: the file is damaged or too large, has 16 bits per channel, or colours other than RGB. The
            text is a predicate whose subject is the file name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below gives a clearer message
            with Image.open(path) as image:
                return _decoded(image)
    except Image.DecompressionBombError as err:
        raise UnsupportedFormat(_too_large()) from err
    except (OSError, SyntaxError, ValueError, struct.error) as err:  # what Pillow raises for broken files
        reason = str(err).replace(str(path), path.name)
        raise UnsupportedFormat(
            f"cannot be decoded ({reason}); the file is damaged or truncated; copy it again"
        ) from err


def _decoded(image: Image.Image) -> DecodedImage:
    if image.width * image.height > MAX_PX:
        raise UnsupportedFormat(_too_large())
    # Pillow would silently keep the upper 8 of 16 bits; only the raw mode of the file's data tells.
    if any(";16" in str(part) for part in getattr(image, "tile", ())):
        raise UnsupportedFormat("has 16 bits per channel; save it with 8 bits per channel")
    if image.mode not in MODES:
        raise UnsupportedFormat(f"has pixel mode {image.mode}; save it as RGB with 8 bits per channel")
    icc, mode, kind = image.info.get("icc_profile"), image.mode, image.format or ""
    orientation = image.getexif().get(TAG, 1)
    upright = ImageOps.exif_transpose(image)
    pixels = over_white(np.asarray(upright.convert("RGBA"))) if upright.has_transparency_data else None
    pixels = np.array(upright.convert("RGB")) if pixels is None else pixels
    pixels.setflags(write=False)  # callers share it
    return DecodedImage(pixels, kind, mode, icc, orientation)


def _too_large() -> str:
    return f"has more than {MAX_PX / 1e6:.0f} million pixels; convert it to a tiled TIFF, for example with vips"
