"""Small slides, requests to convert them, and models made of a function."""

import dataclasses
import hashlib

import cv2
import numpy as np
import tifffile
import zarr

from wsi_stain.config.convert import ConvertConfig
from wsi_stain.config.loader import load
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.model.bundle import IdentityGenerator


def noise(h, w, seed=0):
    """Smooth noise: compresses a little, and no two places are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC).reshape(h, w, 3))


def write_slide(path, image):
    resolution = {"resolution": (20000, 20000), "resolutionunit": "centimeter"}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="zlib", **resolution)
    return path


def request_of(slide, output, *keys, **fields):
    config = load(ConvertConfig, None, ["grid.block=512", "output.compression=deflate", *keys])
    return ConvertRequest(
        slide, output, **{"model": "identity", "mask": "none", "workers": 0, "config": config, **fields}
    )


def pixels_of(output, level=0):
    if output.name.endswith(".zarr"):
        array = zarr.open_group(output, mode="r")[str(level)]
        return np.moveaxis(array[:], 0, -1)
    with tifffile.TiffFile(output) as file:
        return file.series[0].levels[level].asarray()


def digest(output):
    """One hash over a file, or over all names and files of a folder."""
    files = sorted(p for p in output.rglob("*") if p.is_file()) if output.is_dir() else [output]
    total = hashlib.sha256()
    for path in files:
        total.update(str(path.relative_to(output)).encode() + path.read_bytes())
    return total.hexdigest()


@dataclasses.dataclass
class FakeBundle:
    """A model made of a function."""

    make: object
    tile: int = 128
    overlap: int = 32
    mpp: float | None = None
    background: tuple = (240, 241, 242)
    name, version, stain, stain_slug, sha256 = "fake", "1", "Fake", "fake", "f"
    multiple, tolerance, is_pointwise, has_tile_statistics, network_sha256 = 1, None, False, False, None
    expects, trust, channels = "any", None, ()

    @property
    def background_colour(self):
        return self.background

    def precision(self, device, choice):
        """A function has none."""
        return "fp32"

    def generator(self, device, *, precision):
        return self.make()


class InvertAndBlur(IdentityGenerator):
    """Not the identity, and it looks 2 px around."""

    def __call__(self, tiles):
        return np.stack([cv2.blur(255 - tile, (5, 5), borderType=cv2.BORDER_REPLICATE) for tile in tiles])
