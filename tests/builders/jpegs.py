"""JPEG streams whose colours and markers are as asked, also where they contradict one another."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np


def jpeg(
    pixels: np.ndarray, *, inside: str = "YCBCR", marker: str | None = None, subsampling: str = "444", level: int = 95
) -> bytes:
    """A stream of uint8 (h, w, 3) RGB.

    Args:
        pixels: the picture.
        inside: what the components are: RGB or YCBCR.
        marker: JFIF, Adobe (with the transform that is true), or none.
        subsampling: of the second and third component, as in 4:2:0.
        level: quality.
    """
    data = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(pixels), level=level, colorspace="RGB", outcolorspace=inside, subsampling=subsampling
    )
    segments, scan = _without_markers(data)
    if marker == "JFIF":
        segments.insert(0, b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF", 0x0101, 0, 1, 1, 0, 0))
    if marker == "Adobe":  # behind the frame's header, as some encoders write it
        segments.append(b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, int(inside == "YCBCR")))
    return b"".join([b"\xff\xd8", *segments, scan])


def _without_markers(data: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the scan without JFIF and Adobe, the components named 1, 2, 3; and the scan."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        segment = bytearray(data[at : at + 2 + length])
        if segment[1] == 0xC0:
            for n in range(3):
                segment[10 + 3 * n] = n + 1
        if segment[1] not in (0xE0, 0xEE):
            segments.append(bytes(segment))
        at += 2 + length
    scan = bytearray(data[at:])
    for n in range(3):
        scan[5 + 2 * n] = n + 1
    return segments, bytes(scan)
