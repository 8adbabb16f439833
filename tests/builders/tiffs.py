"""TIFFs whose samples, tags and tiles are as asked, also where they contradict one another."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

TILE = 128
SCALE = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 µm per px
APERIO = "Aperio Image Library v12.0.15 \r\n{w}x{h} [0,0 {w}x{h}] (128x128) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5"
PHOTOMETRIC, TILE_COUNTS = 262, 325


def tiles(pixels: np.ndarray) -> Iterable[np.ndarray]:
    """The tiles of a picture, row by row, padded by their border."""
    h, w = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -h % TILE), (0, -w % TILE), (0, 0)), mode="edge")
    return [
        np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]) for y in range(0, h, TILE) for x in range(0, w, TILE)
    ]


def write_tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """A tiled TIFF of one level at 0.5 µm per px, without loss."""
    known = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "deflate", "metadata": None, **SCALE}
    tifffile.imwrite(path, pixels, **{**known, **options})
    return path


def write_encoded(path: Path, pixels: np.ndarray, streams: Iterable[bytes], **options: object) -> Path:
    """A tiled TIFF of the size of `pixels` whose tiles hold these streams."""
    tifffile.imwrite(
        path, iter(streams), shape=pixels.shape, dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", metadata=None,
        **{**SCALE, **options},
    )  # fmt: skip
    return path


def write_aperio_j2k(path: Path, pixels: np.ndarray, *, code: int, photometric: int) -> Path:
    """An Aperio slide in JPEG 2000: code 33003 holds YCbCr samples, 33005 RGB, whatever the photometric tag says."""
    stored = pixels if code == 33005 else np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    streams = [
        imagecodecs.jpeg2k_encode(t, level=0, codecformat="j2k", mct=False, reversible=True) for t in tiles(stored)
    ]
    h, w = pixels.shape[:2]
    write_encoded(path, pixels, streams, compression=code, description=APERIO.format(h=h, w=w))
    return set_tag(path, PHOTOMETRIC, photometric)


def write_pyramid(path: Path, levels: list[np.ndarray], *, absent: dict[int, list[int]] | None = None) -> Path:
    """A generic pyramid; `absent` lists the tiles of a level that get no data."""
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            gone = set((absent or {}).get(number, ()))
            data = [b"" if n in gone else imagecodecs.deflate_encode(t) for n, t in enumerate(tiles(level))]
            per_cm = 20_000 * level.shape[1] / levels[0].shape[1]
            tiff.write(
                iter(data), shape=level.shape, dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", metadata=None,
                compression="deflate", subfiletype=int(number > 0), resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path


def set_tag(path: Path, tag: int, value: int) -> Path:
    """Overwrite a number in the first page of a TIFF."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)
    return path
