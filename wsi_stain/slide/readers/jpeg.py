"""Colours of JPEG streams: the stream's own markers are believed before the header of the file around it."""

from __future__ import annotations

from typing import Any, Literal

import imagecodecs
import numpy as np

from wsi_stain.slide.readers.jpeg_damage import damage_in

Colours = Literal["RGB", "YCBCR"]

START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
APP0, ADOBE, START_OF_SCAN = 0xE0, 0xEE, 0xDA


def stream_colours(data: bytes) -> Colours | None:
    """What the three components of a JPEG stream are; `None` if the stream does not tell.

    The order is libjpeg's (jdapimin.c, `default_decompress_parms`): JFIF is YCbCr, then the transform of an Adobe
    marker counts. Components named R, G and B are RGB. Subsampled components are YCbCr: red and blue never are.
    """
    segments = _segments(data)  # Adobe's marker may stand behind the frame's header
    frame = next((segment for marker, segment in segments if marker in START_OF_FRAME), b"")
    components = [frame[at : at + 3] for at in range(6, len(frame) - 2, 3)]
    if len(components) != 3:
        return None
    if bytes(component[0] for component in components) == b"RGB":
        return "RGB"
    if any(marker == APP0 and segment[:5] == b"JFIF\0" for marker, segment in segments):
        return "YCBCR"
    transform = _adobe_transform(segments)
    if transform is not None:
        return "YCBCR" if transform else "RGB"
    return "YCBCR" if len({component[1] for component in components}) > 1 else None


def _adobe_transform(segments: list[tuple[int, bytes]]) -> int | None:
    transforms = [
        segment[11] for marker, segment in segments if marker == ADOBE and segment[:5] == b"Adobe" and segment[11:]
    ]
    return transforms[-1] if transforms else None


def decode_jpeg(data: bytes, *, otherwise: Colours, tables: bytes | None = None) -> np.ndarray:
    """uint8 (h, w, 3) RGB of a stream of three components.

    Args:
        data: the stream.
        otherwise: what the components are if the stream does not tell: what the file's header says.
        tables: quantisation and Huffman tables that the stream lacks (TIFF's JPEGTables).

    Raises:
        RuntimeError: the stream is damaged.
    """
    colours = stream_colours(data) or otherwise

    def decode(stream: bytes) -> Any:
        return imagecodecs.jpeg8_decode(stream, tables=tables, colorspace=colours, outcolorspace="RGB")

    pixels = decode(data)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise RuntimeError(f"the JPEG has the shape {pixels.shape}, not three components")
    header = _segments(tables or b"") + _segments(data)
    if (damage := damage_in(data, header, pixels, decode)) is not None:
        raise RuntimeError(damage)
    return pixels


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """Marker and content of every segment before the first scan; what follows damage is left out."""
    segments: list[tuple[int, bytes]] = []
    at = 2
    while data[:2] == b"\xff\xd8" and at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + length]))
        at += 2 + max(2, length)
    return segments
