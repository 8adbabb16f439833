"""Encodes a tile of pixels as the bytes stored in a TIFF, with the matching tags.

Stream and tags are defined together because they must agree: a JPEG with RGB markers under a YCbCr tag opens purple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np

from wsi_stain.config.convert import Compression, OutputConfig, Subsampling

TILE_PX = 512
"""Side of every tile of every level: QuPath requests tiles in the tile size of level 0, so all levels share it."""

DEFLATE_LEVEL = 1
"""On stained tissue libdeflate's level 6 saves 5 % of the bytes and takes 1.7 times as long."""

_CHROMA: dict[Subsampling, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "rgb": (1, 1)}


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tile encoding that Bio-Formats, OpenSlide, tiffslide, libvips and tifffile all read correctly.

    Equal pixels give equal bytes. `encode` may run in many threads at once; the codecs release the interpreter lock.

        encoding = Encoding.of(OutputConfig(quality=90))
        tiles = (encoding.encode(pad_tile(pixels)) for pixels in ...)
        TiffWriter.write(tiles, tile=(TILE_PX, TILE_PX), **encoding.tifffile_options())
    """

    compression: Compression = "jpeg"
    """`jpeg`, or `deflate`: lossless, with the horizontal predictor."""
    quality: int = 90
    """JPEG quality, 1–100; ignored for `deflate`."""
    subsampling: Subsampling = "420"
    """Chroma of the JPEG: YCbCr `420` or `422`, or true `rgb`; ignored for `deflate`."""
    samples: Literal[1, 3] = 3
    """Values of a pixel: 3 for colours, 1 for a fluorescence channel."""

    @classmethod
    def of(cls, config: OutputConfig, samples: Literal[1, 3] = 3) -> Encoding:
        """The encoding given by the configuration."""
        return cls(config.compression, config.quality, config.subsampling, samples)

    def planes(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Pixels, uint8 (h, w, C), in the parts that are encoded on their own: all colours, or each channel."""
        return split(pixels, self.samples)

    def encode(self, tile: np.ndarray) -> bytes:
        """Encode one tile.

        Args:
            tile: uint8 (512, 512, samples), colours in sRGB; see `pad_tile` for tiles at the edge.
        """
        assert tile.shape == (TILE_PX, TILE_PX, self.samples), f"a tile of shape {tile.shape}; pad it first"
        assert tile.dtype == np.uint8, f"a tile of {tile.dtype}; pixels must be uint8"
        tile = np.ascontiguousarray(tile)
        if self.compression == "deflate":
            return _deflate(tile)
        if self.samples == 1:
            return bytes(imagecodecs.jpeg8_encode(tile[..., 0], level=self.quality))
        stream = imagecodecs.jpeg8_encode(
            tile,
            level=self.quality,
            colorspace="RGB",
            outcolorspace=self._colours,
            subsampling=_CHROMA[self.subsampling],
        )
        return bytes(stream)

    def decode(self, data: bytes) -> np.ndarray:
        """Decode the bytes of `encode` as a viewer does: uint8 (512, 512, samples)."""
        if self.compression == "deflate":
            differences = np.frombuffer(imagecodecs.deflate_decode(data), np.uint8)
            return differences.reshape(TILE_PX, TILE_PX, self.samples).cumsum(1, dtype=np.uint8)
        if self.samples == 1:
            return imagecodecs.jpeg8_decode(data)[..., None]
        return imagecodecs.jpeg8_decode(data, colorspace=self._colours, outcolorspace="RGB")

    @property
    def _colours(self) -> str:
        return "RGB" if self.subsampling == "rgb" else "YCBCR"

    def tifffile_options(self) -> dict[str, Any]:
        """Arguments of `TiffWriter.write` that describe the output of `encode`."""
        photometric = "rgb" if self.samples == 3 else "minisblack"
        if self.compression == "deflate":
            return {"photometric": photometric, "compression": "adobe_deflate", "predictor": True}
        if self.samples == 1:
            return {"photometric": photometric, "compression": "jpeg"}
        return {
            "photometric": "rgb",
            "compression": "jpeg",
            "compressionargs": {"outcolorspace": self._colours},
            "subsampling": _CHROMA[self.subsampling],
        }


def pad_tile(pixels: np.ndarray, side: int = TILE_PX) -> np.ndarray:
    """`pixels`, uint8 (h, w, C), padded at the right and bottom to (side, side, C) by repeating the last pixels.

    Padding of any other colour would bleed into the image through JPEG's 8×8 and 16×16 blocks.
    """
    h, w = pixels.shape[:2]
    assert 1 <= min(h, w) <= max(h, w) <= side, f"{h}×{w} px cannot be padded to {side}×{side}"
    if (h, w) == (side, side):
        return pixels
    if pixels.shape[2] != 3:  # cv2 takes at most four channels, and drops a single one
        return np.pad(pixels, ((0, side - h), (0, side - w), (0, 0)), "edge")
    return cv2.copyMakeBorder(pixels, 0, side - h, 0, side - w, cv2.BORDER_REPLICATE)


def split(pixels: np.ndarray, samples: int) -> list[np.ndarray]:
    """Views of `pixels`, uint8 (h, w, C), with `samples` channels each."""
    return [pixels[..., start : start + samples] for start in range(0, pixels.shape[2], samples)]


def _deflate(tile: np.ndarray) -> bytes:
    """Zlib stream of the differences between horizontal neighbours (TIFF 6.0, section 14: predictor 2)."""
    differences = tile.copy()
    differences[:, 1:] -= tile[:, :-1]
    return bytes(imagecodecs.deflate_encode(differences.tobytes(), level=DEFLATE_LEVEL))
