"""Damage inside JPEG streams that the decoder passes over: it fills what is lost with grey or wrong blocks.

libjpeg only warns of corrupt data, and imagecodecs drops the warning. A stream is suspicious if a marker stands where
none can be, its end is missing, or it holds a run of zeros (a lost sector). A suspicious stream is decoded again with
other bytes around its end: a whole stream uses its last bytes and no more than those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

MARKER = re.compile(rb"\xff[^\x00\xff]")
"""Within a scan, 0xFF is followed by 0 (ITU-T T.81, B.1.1.5), by 0xFF (a fill byte), or by the code of a marker."""
END, SCAN, TABLES, RESTART = 0xD9, 0xDA, 0xC4, range(0xD0, 0xD8)
END_OF_BLOCK = 0
SEQUENTIAL = frozenset({0xC0, 0xC1})
ZEROS = bytes(32)
"""Blank parts of a stream with Huffman tables of its own can be zero, too: a run is not yet damage."""
OTHER, USED = bytes(37 * n % 251 for n in range(1, 65)), 8
"""Bytes without a pattern; and how many of the last ones hold more bits than blocks outside the picture."""


def damage_in(
    data: bytes, header: list[tuple[int, bytes]], pixels: np.ndarray, decode: Callable[[bytes], np.ndarray]
) -> str | None:
    """What is wrong with a JPEG stream that was decoded; `None` if nothing is known to be.

    Progressive streams are not examined. Damage that leaves a valid stream of the same length is not found.

    Args:
        data: the stream.
        header: marker and content of the segments before its first scan, those of shared tables first.
        pixels: what it was decoded to.
        decode: decodes another stream of the same kind.
    """
    start = data.find(bytes([0xFF, SCAN]))
    if start < 0 or SEQUENTIAL.isdisjoint(marker for marker, _ in header):
        return None
    first, expected = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), 0
    can_be_zero = _blank_is_zero(header, data[start + 6 : start + 7])
    for begin, end, marker in _parts(data, first):
        if marker in RESTART:
            if marker != RESTART[expected % 8]:
                return "a part of the stream is missing"
            expected += 1
        elif marker not in (END, SCAN, None):
            return f"the data contain the marker 0x{marker:02x}, which cannot be there"
        has_zeros = data.find(ZEROS, begin, end) >= 0
        if has_zeros and not can_be_zero:
            return "a part of the stream is zero"
        if (has_zeros or marker is None) and not _is_used_up(data, begin, end, pixels, decode):
            return "the stream is damaged or cut off"
        if marker == SCAN:  # each component has its own scan
            return None
    return None


def _blank_is_zero(header: list[tuple[int, bytes]], selectors: bytes) -> bool:
    """Whether zero bits can stand for blocks without detail: otherwise they are blocks that no picture has.

    Args:
        header: of the stream, with its Huffman tables (T.81, B.2.4.2).
        selectors: the byte of the scan's header that names the tables of the first component.
    """
    first, table = {}, 0x10 | (selectors[0] & 15 if selectors else 0)
    for content in (content for marker, content in header if marker == TABLES):
        at = 0
        while at + 17 < len(content):
            first[content[at]] = content[at + 17]  # the value of the shortest code, all of whose bits are zero
            at += 17 + sum(content[at + 1 : at + 17])
    return first.get(table, END_OF_BLOCK) == END_OF_BLOCK


def _parts(data: bytes, begin: int) -> Iterator[tuple[int, int, int | None]]:
    """Start, end and following marker of every part of the scan; no marker if the data end without one."""
    for found in MARKER.finditer(data, begin):
        marker = data[found.start() + 1]
        yield begin, found.start(), marker
        if marker not in RESTART:
            return
        begin = found.end()
    yield begin, len(data), None


def _is_used_up(data: bytes, begin: int, end: int, pixels: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> bool:
    """Whether the decoder needs all bytes of a part of the stream, and none behind it."""
    rest = data[end:] or bytes([0xFF, END])
    needs_more = decode(data[:end] + OTHER + rest)
    last = max(begin, end - USED)
    last -= data[last - 1] == 0xFF  # not between 0xFF and the 0 behind it
    needs_all = decode(data[:last] + OTHER[: end - last] + rest)
    return np.array_equal(needs_more, pixels) and not np.array_equal(needs_all, pixels)
