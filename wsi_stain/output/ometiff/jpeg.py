"""Parses the header of a JPEG stream: size, sampling, and the colour space of the stored pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsi_stain.geometry import Size

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_SCAN, _JFIF, _ADOBE, _END = 0xDA, 0xE0, 0xEE, 0xD9


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The part of a JPEG stream before the pixels."""

    size: Size
    bits: int
    ids: tuple[int, ...]
    """Identifier of every component."""
    factors: tuple[tuple[int, int], ...]
    """Sampling of every component, (across, down)."""
    has_jfif: bool
    adobe_transform: int | None
    """0: RGB, 1: YCbCr; None without an Adobe marker."""

    @property
    def colours(self) -> Literal["grey", "rgb", "ycbcr", "unmarked"]:
        """The colour space that a decoder infers from the stream alone (libjpeg's rules)."""
        if len(self.ids) != 3:
            return "grey"
        if self.has_jfif:
            return "ycbcr"
        if self.adobe_transform is not None:
            return "ycbcr" if self.adobe_transform else "rgb"
        if self.ids == (1, 2, 3):
            return "ycbcr"
        return "rgb" if self.ids == tuple(b"RGB") else "unmarked"

    @property
    def chroma(self) -> tuple[int, int]:
        """Subsampling of the second component relative to the first, (across, down)."""
        if len(self.factors) < 2 or 0 in self.factors[1]:
            return (1, 1)
        (across, down), (a, d) = self.factors[:2]
        return across // a, down // d


def read_header(stream: bytes) -> JpegHeader:
    """The header of a JPEG stream.

    Raises:
        ValueError: it is not a JPEG, or it ends before the pixels.
    """
    if stream[:2] != b"\xff\xd8":
        raise ValueError("is not a JPEG stream")
    frame, has_jfif, adobe, at = None, False, None, 2
    while True:
        marker, body, at = _segment(stream, at)
        if marker in _FRAMES:
            frame = body
        elif marker == _JFIF and body[:4] == b"JFIF":
            has_jfif = True
        elif marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker in (_SCAN, _END):
            break
    if frame is None or len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise ValueError("is a JPEG stream without a complete frame header")
    parts = [frame[6 + 3 * i : 9 + 3 * i] for i in range(frame[5])]
    size = Size(int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"))
    factors = tuple((part[1] >> 4, part[1] & 15) for part in parts)
    return JpegHeader(size, frame[0], tuple(part[0] for part in parts), factors, has_jfif, adobe)


def _segment(stream: bytes, at: int) -> tuple[int, bytes, int]:
    """Marker and body of the segment at `at`, and the offset of the next one."""
    while at + 1 < len(stream) and stream[at] == 0xFF and stream[at + 1] == 0xFF:  # fill bytes are allowed
        at += 1
    if at + 1 >= len(stream) or stream[at] != 0xFF:
        raise ValueError("is a JPEG stream that ends within its header")
    marker = stream[at + 1]
    if marker in _ALONE or marker == _END:
        return marker, b"", at + 2
    length = int.from_bytes(stream[at + 2 : at + 4], "big")
    if length < 2 or at + 2 + length > len(stream):
        raise ValueError("is a JPEG stream that ends within its header")
    return marker, stream[at + 4 : at + 2 + length], at + 2 + length
