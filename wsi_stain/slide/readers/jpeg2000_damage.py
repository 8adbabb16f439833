"""Damage inside JPEG 2000 codestreams that the decoder passes over: it shows what is lost as blurred or wrong pixels.

The compressed data carry no check sum. They cannot hold the code of a marker, and hardly a long run of zeros. Sections
and tables are those of ITU-T T.800 (ISO/IEC 15444-1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

START = b"\xff\x4f\xff\x51"
"""The beginning of a codestream, also inside a JP2 file: SOC and SIZ (A.4.1, A.5.1)."""
END = b"\xff\xd9"
SIZE, STYLE, COMPONENT_STYLE, PROGRESSION, TILE_PART, DATA = 0x51, 0x52, 0x53, 0x5F, 0x90, 0x93
FORBIDDEN = re.compile(rb"\xff[\x90\x93-\xff]")
"""Behind 0xFF, packets hold at most 0x8F (B.10.1, D.4.1). SOP and EPH, 0xFF91 and 0xFF92, may stand between them."""
HIGH_THROUGHPUT = 0x40
"""Bit of the code-block style: another coder (T.814), whose data can hold zeros."""
ZEROS = 320
"""Zero bytes in a row that arithmetic coding does not give. Periodic pictures, such as edges that were repeated to fill
a tile, give 221 in a code-block of 64², whatever the size of the tile."""


def check_jpeg2000(data: bytes) -> None:
    """Examine a JPEG 2000 stream that a decoder accepts.

    Damage that leaves neither the code of a marker nor a run of zeros is not found, nor any in high-throughput streams.

    Raises:
        RuntimeError: the stream is damaged.
    """
    if (start := data.find(START)) >= 0 and (damage := _damage_in(data, start)) is not None:
        raise RuntimeError(damage)


def _damage_in(data: bytes, start: int) -> str | None:
    header, first = _segments(data, start + 2)
    size, style = header.get(SIZE, b""), header.get(STYLE, b"")
    if len(size) < 36 or len(style) < 10 or style[8] & HIGH_THROUGHPUT:
        return None
    zeros = None if {COMPONENT_STYLE, PROGRESSION} & header.keys() else bytes(_longest_zeros(size, style) + 1)
    for begin, end in _packets(data, first):
        if marker := FORBIDDEN.search(data, begin, end):
            return f"the data contain the marker 0x{data[marker.start() + 1]:02x}, which cannot be there"
        if zeros is not None and data.find(zeros, begin, end) >= 0:
            return "a part of the stream is zero"
    return None


def _segments(data: bytes, at: int) -> tuple[dict[int, bytes], int]:
    """Content of the marker segments from `at` on, and the position of the first marker that ends a header (A.3)."""
    segments: dict[int, bytes] = {}
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (TILE_PART, DATA):
        length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        segments[data[at + 1]] = data[at + 4 : at + 2 + length]
        at += 2 + length
    return segments, at


def _packets(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Start and end of the packets of every tile-part (A.4.2); what does not start like one ends the search."""
    while data[at : at + 4] == bytes([0xFF, TILE_PART, 0, 10]):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        _, begin = _segments(data, at + 12)
        if data[begin : begin + 2] != bytes([0xFF, DATA]):
            return
        end = min(at + length, len(data)) if length else data.rfind(END, begin)  # 0: up to the end
        yield begin + 2, end
        at = max(end, begin + 2)


def _longest_zeros(size: bytes, style: bytes) -> int:
    """Zero bytes in a row that a whole stream can hold.

    An empty packet is one zero byte, and a code-block that a packet leaves out is a zero bit (B.10.3, B.10.4).

    Args:
        size: content of SIZ (table A.9).
        style: content of COD (tables A.12 to A.21).
    """
    width, height, x0, y0, tile_width, tile_height = (int.from_bytes(size[n : n + 4], "big") for n in range(2, 26, 4))
    w, h = min(width, tile_width), min(height, tile_height)
    is_cut = width > tile_width or height > tile_height or x0 > 0 or y0 > 0
    levels, precincts = style[5], style[10:]
    packets = 0
    for resolution in range(levels + 1):
        exponents = precincts[resolution] if resolution < len(precincts) else 0xFF
        across, down = (
            -(-side // 2 ** (levels - resolution + exponent)) + is_cut
            for side, exponent in ((w, exponents & 15), (h, exponents >> 4))
        )
        packets += across * down
    code_blocks = 2 * -(-w // 2 ** (style[6] + 2)) * -(-h // 2 ** (style[7] + 2))
    copies = int.from_bytes(style[2:4], "big") * int.from_bytes(size[34:36], "big")  # layers of every component
    return ZEROS + copies * (packets + code_blocks // 8)
