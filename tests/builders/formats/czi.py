"""Zeiss CZI, written segment by segment after the public description of the format (ZISRAW 1.2).

file header · subblocks (each a tile of a level) · metadata (XML) · directory of the subblocks
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import imagecodecs
import numpy as np

from builders.formats.picture import Built, picture, reduced

Codec = Literal["none", "JPEG XR", "Zstd"]
CODES: dict[Codec, int] = {"none": 0, "JPEG XR": 4, "Zstd": 5}
BGR24 = 3
RGB_24, BGR_24 = (bytes.fromhex("24c3dd6f034efe4bb1853d77768dc9" + last) for last in ("0d", "0c"))
"""Pixel formats of JPEG XR (ISO 29199-2, table A.6): the order of the decoded bytes; CZI demands the second."""
SIDE = 256
ORIGIN = (-3000, 1200)
"""(x, y) of the first pixel: scanners count from anywhere on the glass."""


@dataclass
class _Tile:
    """A subblock: `stored` pixels that show the box (x, y, size, size) × factor of level 0."""

    x: int
    y: int
    z: int
    factor: int
    pixels: np.ndarray

    def entry(self, position: int, codec: Codec) -> bytes:
        """Its entry in the directory, and at the start of its own segment."""
        h, w = self.pixels.shape[:2]
        axes = [(b"X", self.x, w * self.factor, w), (b"Y", self.y, h * self.factor, h), (b"Z", self.z, 1, 1)]
        axes += [(name, 0, 1, 1) for name in (b"C", b"T")]
        head = struct.pack("<2siqiiB5xi", b"DV", BGR24, position, 0, CODES[codec], 2 * (self.factor > 1), len(axes))
        return head + b"".join(struct.pack("<4siifi", name, at, n, 0.0, stored) for name, at, n, stored in axes)


def czi(path: Path, *, codec: Codec = "JPEG XR", planes: int = 1, factors: tuple[int, ...] = (1, 2, 4)) -> Built:
    """A slide with a pyramid; of several planes the middle one shows the picture, the others its negative."""
    mpp, truth = 0.25, picture(1024, 1280)
    with path.open("wb") as file:
        _segment(file, b"ZISRAWFILE", bytes(512))
        entries = []
        for tile in _tiles(truth, planes, factors):
            position = file.tell()
            entries.append(tile.entry(position, codec))
            data = _encoded(tile.pixels[..., ::-1], codec)
            head = struct.pack("<iiq", 0, 0, len(data)) + entries[-1]
            _segment(file, b"ZISRAWSUBBLOCK", head.ljust(256, b"\0") + data)
        metadata = file.tell()
        xml = _xml(truth, mpp, planes).encode()
        _segment(file, b"ZISRAWMETADATA", struct.pack("<ii", len(xml), 0).ljust(256, b"\0") + xml)
        directory = file.tell()
        _segment(file, b"ZISRAWDIRECTORY", struct.pack("<i", len(entries)).ljust(128, b"\0") + b"".join(entries))
        file.seek(32)
        file.write(struct.pack("<4i16s16siqqiq", 1, 0, 0, 0, b"p" * 16, b"f" * 16, 0, directory, metadata, 0, 0))
    return Built(path, truth, mpp, 20, format="Zeiss CZI", codec=codec, planes=planes)


def _tiles(truth: np.ndarray, planes: int, factors: tuple[int, ...]) -> list[_Tile]:
    return [
        _Tile(ORIGIN[0] + x * factor, ORIGIN[1] + y * factor, z, factor, level[y : y + SIDE, x : x + SIDE])
        for factor in factors
        for z in range(planes)
        for level in [reduced(truth if z == planes // 2 else 255 - truth, factor)]
        for y in range(0, level.shape[0], SIDE)
        for x in range(0, level.shape[1], SIDE)
    ]


def _encoded(pixels: np.ndarray, codec: Codec) -> bytes:
    if codec == "JPEG XR":
        stream = imagecodecs.jpegxr_encode(np.ascontiguousarray(pixels[..., ::-1]), level=0.98, photometric="rgb")
        return bytes(stream).replace(RGB_24, BGR_24, 1)
    return imagecodecs.zstd_encode(pixels.tobytes()) if codec == "Zstd" else pixels.tobytes()


def _segment(file: BinaryIO, name: bytes, data: bytes) -> None:
    """Segments begin at multiples of 32 bytes."""
    space = -(-len(data) // 32) * 32
    file.write(struct.pack("<16sqq", name, space, len(data)) + data.ljust(space, b"\0"))


def _xml(truth: np.ndarray, mpp: float, planes: int) -> str:
    h, w = truth.shape[:2]
    scaling = "".join(f'<Distance Id="{axis}"><Value>{mpp * 1e-6!r}</Value></Distance>' for axis in "XY")
    return (
        "<ImageDocument><Metadata><Information><User><DisplayName>J. Doe</DisplayName></User>"
        f"<Image><SizeX>{w}</SizeX><SizeY>{h}</SizeY><SizeZ>{planes}</SizeZ><PixelType>Bgr24</PixelType></Image>"
        '<Instrument><Objectives><Objective Id="Objective:1"><NominalMagnification>20</NominalMagnification>'
        f"</Objective></Objectives></Instrument></Information><Scaling><Items>{scaling}</Items></Scaling></Metadata></ImageDocument>"
    )
