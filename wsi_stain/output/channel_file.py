"""Reads finished outputs of ours that have fluorescence channels, which no slide has: OME-TIFF or OME-Zarr."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np

from wsi_stain.config.channels import Channel
from wsi_stain.geometry import Box, Size
from wsi_stain.output.canvas import gather
from wsi_stain.output.encoding import TILE_PX, Encoding
from wsi_stain.output.ometiff.subject import Subject
from wsi_stain.output.ometiff.tiff import COMPRESSION, BrokenTiff, Page, Tiff
from wsi_stain.output.ometiff.xml import physical_size
from wsi_stain.output.origin import provenance
from wsi_stain.output.zarr_canvas import key_of

JPEG = 7
TileAt = Callable[[int, int, int], np.ndarray]
"""Level, row, column → uint8 (512, 512, C)."""


class ChannelFile:
    """An output with fluorescence channels, open for reading; thread-safe.

    file = ChannelFile.open(path)       # None for any other file
    file.read(level, box)               # uint8 (h, w, C)
    """

    def __init__(
        self, levels: tuple[Size, ...], mpp: float | None, channels: tuple[Channel, ...], tile_at: TileAt
    ) -> None:
        self.levels, self.mpp_or_none, self.channels, self._tile_at = levels, mpp, channels, tile_at

    @classmethod
    def open(cls, path: Path) -> ChannelFile | None:
        """The channels of an output of ours; None for colours, and for any other file."""
        try:
            if not provenance(path):
                return None
            return _zarr(path) if path.is_dir() else _tiff(path)
        except (BrokenTiff, OSError, ValueError, KeyError):
            return None

    @property
    def size(self) -> Size:
        """Of level 0."""
        return self.levels[0]

    def read(self, level: int, box: Box) -> np.ndarray:
        """A box inside a level: uint8 (h, w, C)."""
        return gather(box, partial(self._tile_at, level), len(self.channels))


def _tiff(path: Path) -> ChannelFile | None:
    with Tiff.open(path) as tiff:
        subject = Subject.of(tiff, path.name)
        if not subject.channels or subject.pixels is None:
            return None
        sizes = tuple(page.size for page in subject.levels)
        channels = tuple(_channel(element) for element in subject.pixels.findall("Channel"))
        mpp = physical_size(subject.pixels, "X")
    return ChannelFile(sizes, mpp, channels, _TiffTiles(path))


def _channel(element: ET.Element) -> Channel:
    red, green, blue, _ = int(element.get("Color", "-1")).to_bytes(4, "big", signed=True)
    return Channel(element.get("Name", ""), (red, green, blue))


class _TiffTiles:
    """Decoded tiles of all channels; the file is opened again for every tile, so nothing has to be closed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, level: int, row: int, column: int) -> np.ndarray:
        with Tiff.open(self._path) as tiff:
            planes = [_levels(tiff, page)[level] for page in tiff.pages]
            index = row * planes[0].grid.w + column
            encoding = Encoding("jpeg" if planes[0].number(COMPRESSION) == JPEG else "deflate", samples=1)
            return np.concatenate([encoding.decode(plane.stored(index)) for plane in planes], axis=2)


def _levels(tiff: Tiff, page: Page) -> tuple[Page, ...]:
    return page, *tiff.reduced(page)


def _zarr(folder: Path) -> ChannelFile | None:
    ome = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]["ome"]
    scale = ome["multiscales"][0]
    arrays = [json.loads((folder / d["path"] / "zarr.json").read_text(encoding="utf-8")) for d in scale["datasets"]]
    count = arrays[0]["shape"][0]
    if arrays[0]["chunk_grid"]["configuration"]["chunk_shape"][0] != 1:
        return None  # colours
    names = ome["omero"]["channels"]
    channels = tuple(Channel(c["label"], tuple(bytes.fromhex(c["color"]))) for c in names)  # type: ignore[arg-type]
    step = scale["datasets"][0]["coordinateTransformations"][0]["scale"][1]
    mpp = float(step) if "unit" in scale["axes"][1] else None

    def tile_at(level: int, row: int, column: int) -> np.ndarray:
        out = np.full((TILE_PX, TILE_PX, count), arrays[level]["fill_value"], np.uint8)
        for plane in range(count):
            path = folder / key_of(level, row, column, plane)
            if path.exists():
                data = np.frombuffer(imagecodecs.zstd_decode(path.read_bytes()), np.uint8)
                out[..., plane] = data.reshape(TILE_PX, TILE_PX)
        return out

    return ChannelFile(tuple(Size(*array["shape"][1:]) for array in arrays), mpp, channels, tile_at)
