"""Mutations of bytes: general ones, and those that know TIFF, XML, JSON and numbers in text."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from random import Random

EXTREMES = (0, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = (b"nan", b"inf", b"-1", b"0", b"1e308", b"-1e-308", b"99999999999999999999", b"2147483648", b"", b"1,5", b"x")
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
TAGS = (254, 256, 257, 258, 259, 262, 277, 284, 322, 323, 324, 325, 347)
"""Of a TIFF: sizes, samples, codec, tiles and tables."""
BOMB = b"".join(b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10 if n else b"ha") for n in range(12))
TEXT = (b"<?xml", b"<OME", b"{", b"[", b"|MPP", b"version:", b"input:", b"image")


def mutated(data: bytes, random: Random) -> bytes:
    """The bytes with one to four mutations."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        if not out:
            break
        random.choice(_fitting(bytes(out[:4096])))(out, random)
    return bytes(out)


def _fitting(head: bytes) -> list[Callable[[bytearray, Random], None]]:
    """The mutations for a file with this beginning; structure is hit more often than its share."""
    general = [_flip, _zero, _noise, _cut, _splice, _repeat, _extreme, _extreme_in_head]
    if head[:4] in (b"II*\0", b"II+\0"):
        return [*general, *[_tiff_tag] * 10, _tiff_loop, _text_number, _xml]
    if any(word in head for word in TEXT):
        return [*general, *[_text_number] * 6, _xml, _nest, _line]
    return [*general, _extreme_in_head, _text_number]


def _flip(out: bytearray, random: Random) -> None:
    for _ in range(random.randint(1, 8)):
        out[random.randrange(len(out))] ^= 1 << random.randrange(8)


def _span(out: bytearray, random: Random, most: int = 600) -> slice:
    start = random.randrange(len(out))
    return slice(start, min(len(out), start + random.randint(1, most)))


def _zero(out: bytearray, random: Random) -> None:
    part = _span(out, random)
    out[part] = bytes(part.stop - part.start)


def _noise(out: bytearray, random: Random) -> None:
    part = _span(out, random)
    out[part] = random.randbytes(part.stop - part.start)


def _cut(out: bytearray, random: Random) -> None:
    del out[random.randrange(len(out)) :]


def _splice(out: bytearray, random: Random) -> None:
    del out[_span(out, random)]


def _repeat(out: bytearray, random: Random) -> None:
    part = bytes(out[_span(out, random)])
    at = random.randrange(len(out))
    out[at:at] = part


def _extreme(out: bytearray, random: Random, reach: int | None = None) -> None:
    at, size = random.randrange(min(len(out), reach or len(out))), random.choice((1, 2, 4, 8))
    order = random.choice(("little", "big"))
    out[at : at + size] = (random.choice(EXTREMES) % 256**size).to_bytes(size, order)


def _extreme_in_head(out: bytearray, random: Random) -> None:
    _extreme(out, random, 1500)


def _directories(out: bytearray) -> list[tuple[int, int, bool]]:
    """(offset of the first entry, number of entries, whether it is a BigTIFF) of every directory."""
    big = out[2] == 43
    found: list[tuple[int, int, bool]] = []
    (at,) = struct.unpack_from("<Q" if big else "<I", out, 8 if big else 4)
    while at and len(found) < 20 and at + 8 < len(out):
        (n,) = struct.unpack_from("<Q" if big else "<H", out, at)
        first = at + (8 if big else 2)
        following = first + n * (20 if big else 12)
        if n > 200 or following + 8 > len(out) or (first, n, big) in found:
            break
        found.append((first, n, big))
        (at,) = struct.unpack_from("<Q" if big else "<I", out, following)
    return found


def _tiff_tag(out: bytearray, random: Random) -> None:
    """Another type, count or value of a tag, or of an element of its list."""
    directories = _directories(out) if len(out) > 16 else []
    if not directories:
        return _extreme(out, random)
    first, n, big = random.choice(directories)
    if not n:
        return None
    width, field = (20, 8) if big else (12, 4)
    at = first + width * random.randrange(n)
    form = "<Q" if big else "<I"
    kind = random.randrange(5)
    if kind == 0:
        struct.pack_into("<H", out, at + 2, random.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 99)))
    elif kind == 1:
        struct.pack_into(form, out, at + 4, random.choice(EXTREMES))
    elif kind == 2:
        value = random.choice((*EXTREMES, len(out), len(out) - 1, at, first, 8))
        struct.pack_into(form, out, at + 4 + field, value)
    elif kind == 3:
        struct.pack_into(
            "<H", out, at, random.choice((254, 256, 257, 258, 259, 262, 277, 284, 322, 323, 324, 325, 347))
        )
    else:
        (count,) = struct.unpack_from(form, out, at + 4)
        (offset,) = struct.unpack_from(form, out, at + 4 + field)
        if 1 < count < len(out) and offset + 4 * count < len(out):
            value = random.choice((*EXTREMES, len(out), at, offset))
            struct.pack_into("<I", out, offset + 4 * random.randrange(count), value)
    return None


def _tiff_loop(out: bytearray, random: Random) -> None:
    """The next directory is an earlier one, itself, or not a directory."""
    directories = _directories(out) if len(out) > 16 else []
    if directories:
        first, n, big = random.choice(directories)
        start = random.choice(directories)[0] - (8 if big else 2)
        target = random.choice((start, start, 8, 1, len(out), len(out) - 3, 2**32 - 1))
        struct.pack_into("<Q" if big else "<I", out, first + n * (20 if big else 12), target)


def _text_number(out: bytearray, random: Random) -> None:
    """Another number in a text."""
    begin = random.choice((0, 0, random.randrange(len(out))))
    found = [match.span() for match in NUMBER.finditer(out, begin, begin + 20_000)]
    if found:
        start, end = random.choice(found)
        out[start:end] = random.choice(NUMBERS)


def _xml(out: bytearray, random: Random) -> None:
    """Entities that expand to gigabytes, deep nesting, or a tag that is lost; without moving what follows in a TIFF."""
    at = out.find(b"<OME")
    if at < 0:
        at = max(0, out.find(b"?>") + 2)
    end = out.find(b"\0", at) if out[:2] == b"II" else len(out)
    inside = bytes(out[at:end])
    doctype = b"<!DOCTYPE OME [" + BOMB + b"]>"
    new = random.choice(
        (doctype + inside.replace(b'Name="', b'Name="&e11;', 1), b"<a>" * 5000 + inside, inside.replace(b">", b"", 1))
    )
    out[at:end] = new[: end - at] if out[:2] == b"II" else new


def _nest(out: bytearray, random: Random) -> None:
    """Brackets in brackets."""
    n = random.choice((500, 5_000, 100_000))
    out[:] = random.choice((b"[" * n + bytes(out) + b"]" * n, b'{"a":' * n + bytes(out) + b"}" * n))


def _line(out: bytearray, random: Random) -> None:
    """A line that is lost, doubled, or very long."""
    lines = bytes(out).split(b"\n")
    at = random.randrange(len(lines))
    lines[at : at + 1] = random.choice(([], [lines[at]] * 2, [lines[at] * 1000], [b"\xff\xfe\0" + lines[at]]))
    out[:] = b"\n".join(lines)
