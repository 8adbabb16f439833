"""Rules about the content of tiles: 1 (completeness), 9, 10, 14 to 16. Only a few tiles are decoded."""

from __future__ import annotations

from collections.abc import Iterator

import imagecodecs
import numpy as np

from wsi_stain.output.ometiff import tiff as t
from wsi_stain.output.ometiff.jpeg import JpegHeader, read_header
from wsi_stain.output.ometiff.rules_pages import DEFLATE, JPEG, LZW, PLAIN, YCBCR
from wsi_stain.output.ometiff.subject import Problem, Subject, error, warning
from wsi_stain.output.ometiff.tiff import BrokenTiff, Page

_SAMPLED = 5
_MOST_TILE_PX = 4096**2
_MOST_TILES = 16
_DARK = 24
"""Grey value below which a pixel is not background in any stain."""
_OTHER_PICTURE = 40
"""Mean difference in grey values that no JPEG quality explains."""
_FRINGE_PX = 8
"""Side of a JPEG block: the distance that padding can bleed into the image."""


def completeness(subject: Subject) -> Iterator[Problem]:
    """Rule 1: every tile has bytes, and they are within the file."""
    for where, page in subject.pages():
        offsets, lengths = page.extents()
        planes = page.number(t.SAMPLES, 1) if page.number(t.PLANAR, 1) == 2 else 1
        expected = page.grid.h * page.grid.w * planes if page.tile else len(offsets)
        if not expected or len(offsets) != expected or len(lengths) != expected:
            yield error(
                1, f"{where} lists {len(offsets)} of {expected or 'its'} tiles: it is incomplete; write it again"
            )
            continue
        empty = int(np.count_nonzero((lengths <= 0) | (offsets <= 0)))
        if empty:
            yield error(1, f"{where} has {empty} empty tiles of {expected}: it is incomplete; write it again")
        beyond = int(np.count_nonzero(offsets > subject.tiff.bytes - lengths))
        if beyond:
            yield error(
                1,
                f"{beyond} of {expected} tiles of {where} are beyond its end: it is truncated; write it again",
            )


def streams(subject: Subject) -> Iterator[Problem]:
    """Rules 9 and 10: the headers of the JPEG streams; and rule 1: sampled tiles can be decoded."""
    for where, page in subject.pages():
        unique: dict[tuple[int, str], Problem] = {}
        for index in _sample(page, _SAMPLED if page is subject.first else 2):
            for problem in _tile_problems(page, where, index, subject.samples):
                unique.setdefault((problem.rule, problem.message), problem)
        yield from unique.values()


def _tile_problems(page: Page, level: str, index: int, samples: int) -> Iterator[Problem]:
    where = f"a tile of {level}"
    try:
        if page.number(t.COMPRESSION) == JPEG:
            stream = page.stored(index)
            yield from _header_problems(page, read_header(stream), where, samples)
            if not stream.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # decoders silently fill up with grey
                yield error(1, f"{where} is a JPEG without an end marker: the file is damaged; copy or write it again")
        decode(page, index, samples)
    except (ValueError, RuntimeError):  # raised by the codecs of imagecodecs
        yield error(1, f"{where} cannot be decoded: the file is damaged; copy or write it again")


def _header_problems(page: Page, header: JpegHeader, where: str, samples: int) -> Iterator[Problem]:
    tag = "grey" if samples == 1 else "ycbcr" if page.number(t.PHOTOMETRIC) == YCBCR else "rgb"
    if header.size != page.tile or header.bits != 8:
        stored = f"{header.size.w}×{header.size.h} px and {header.bits} bits"
        yield error(10, f"{where} is a JPEG of {stored}, which contradicts its tags: re-encode it")
    elif header.colours not in (tag, "unmarked"):
        yield error(10, f"{where} is a JPEG in {header.colours}, its tag is {tag}: it opens purple; correct the tag")
    elif header.colours == "unmarked" and tag == "rgb":
        yield warning(10, f"{where} is an RGB JPEG without a colour marker: some readers show it purple; re-encode it")
    elif tag == "ycbcr" and header.chroma == (1, 1):
        yield error(9, f"{where} is a YCbCr JPEG in 4:4:4: it opens pink in QuPath; use 4:2:0, 4:2:2 or RGB")
    elif tag == "ycbcr" and header.chroma != (tuple(page.whole(t.CHROMA).tolist()) or (2, 2)):
        tagged = "×".join(map(str, page.whole(t.CHROMA))) or "2×2"
        across, down = header.chroma
        yield error(10, f"{where} has chroma {across}×{down} under YCbCrSubSampling {tagged}: correct the tag")


def padding(subject: Subject) -> Iterator[Problem]:
    """Rule 15: padding outside the image repeats its last pixels."""
    for level, page in enumerate(subject.levels):
        tile = _decoded(page, page.grid.h * page.grid.w - 1, subject.samples)
        if tile is None or page.tile is None:
            continue
        h = page.size.h - (page.grid.h - 1) * page.tile.h
        w = page.size.w - (page.grid.w - 1) * page.tile.w
        right = np.abs(tile[:h, w : w + _FRINGE_PX] - tile[:h, w - 1 : w])
        below = np.abs(tile[h : h + _FRINGE_PX, :w] - tile[h - 1 : h, :w])
        if max(part.mean() if part.size else 0 for part in (right, below)) > _DARK:
            yield warning(
                15,
                f"the edge tiles of level {level} have padding that bleeds into the image: repeat the last px",
            )
            return


def background(subject: Subject) -> Iterator[Problem]:
    """Rule 14: background is bright; checked on the border of the smallest level, unless it is fluorescence."""
    picture = None if subject.channels else _assembled(subject.levels[-1], 3)
    if picture is None:
        return
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    share = float((border.max(axis=1) < _DARK).mean())
    if share > 0.2:
        yield warning(
            14,
            f"{share:.0%} of its border is black: QuPath treats it as fluorescence; fill it with background",
        )


def means(subject: Subject) -> Iterator[Problem]:
    """Rule 16: the smallest level is the 2×2 mean of the one above."""
    if len(subject.levels) < 2 or subject.levels[-1].size != subject.levels[-2].size.halved():
        return
    upper, lower = (_assembled(page, subject.samples) for page in subject.levels[-2:])
    if upper is None or lower is None:
        return
    h, w = upper.shape[:2]
    even = np.pad(upper, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    corners = [even[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    off = _distance((np.sum(corners, axis=0) + 2) // 4, lower)
    if any(page.number(t.COMPRESSION) == JPEG for page in subject.levels[-2:]):
        # Low-quality JPEG differs anyway; a decimated level is closer to one pixel of four than to their mean.
        is_off = off > _OTHER_PICTURE or (off > 6 and min(_distance(corner, lower) for corner in corners) < off)
    else:
        is_off = off > 1
    if is_off:
        yield warning(
            16, f"its smallest level differs from the 2×2 mean of the one above by {off:.1f} grey values: average it"
        )


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def decode(page: Page, index: int, samples: int = 3) -> np.ndarray | None:
    """One tile as int16 (h, w, samples), RGB or a channel; None if it does not conform to rules 4, 7, 8 and 10.

    Raises:
        ValueError: bytes are missing, or too few.
        RuntimeError: the codec rejects them.
    """
    tile, code = page.tile, page.number(t.COMPRESSION, PLAIN)
    if tile is None or not 0 < tile.h * tile.w <= _MOST_TILE_PX or page.numbers(t.BITS) != (8,) * samples:
        return None
    if page.number(t.SAMPLES, 1) != samples or page.number(t.PLANAR, 1) != 1:
        return None
    data, n_bytes = page.stored(index), tile.h * tile.w * samples
    if code == JPEG:
        header = read_header(data)
        if (
            header.size != tile or len(header.ids) != samples
        ):  # rule 10 reports this; a giant tile would fill the memory
            return None
        if samples == 1:
            return imagecodecs.jpeg8_decode(data, tables=page.raw(t.JPEG_TABLES) or None)[..., None].astype(np.int16)
        colours = "YCBCR" if page.number(t.PHOTOMETRIC) == YCBCR else "RGB"
        tables = page.raw(t.JPEG_TABLES) or None
        return imagecodecs.jpeg8_decode(data, tables=tables, colorspace=colours, outcolorspace="RGB").astype(np.int16)
    if code in DEFLATE:
        data = bytes(imagecodecs.zlib_decode(data, out=n_bytes))
    elif code == LZW:
        data = bytes(imagecodecs.lzw_decode(data, out=n_bytes))
    elif code != PLAIN:
        return None
    pixels = np.frombuffer(data, np.uint8)
    if pixels.size != n_bytes:
        raise BrokenTiff(f"holds {pixels.size} of {n_bytes} bytes in tile {index}")
    pixels = pixels.reshape(tile.h, tile.w, samples)
    if page.number(t.PREDICTOR, 1) == 2:
        pixels = np.cumsum(pixels, axis=1, dtype=np.uint8)
    return pixels.astype(np.int16)


def _decoded(page: Page, index: int, samples: int) -> np.ndarray | None:
    """A tile, or None also if it is damaged: rule 1 reports that."""
    try:
        tile = decode(page, index, samples)
    except (ValueError, RuntimeError):
        return None
    return tile if tile is not None and page.tile == tile.shape[:2] else None


def _assembled(page: Page, samples: int) -> np.ndarray | None:
    """All pixels of a small page, int16 (h, w, samples)."""
    grid = page.grid
    if not 0 < grid.h * grid.w <= _MOST_TILES:
        return None
    tiles = [tile for index in range(grid.h * grid.w) if (tile := _decoded(page, index, samples)) is not None]
    if len(tiles) < grid.h * grid.w:
        return None
    rows = [np.concatenate(tiles[y * grid.w : (y + 1) * grid.w], axis=1) for y in range(grid.h)]
    return np.concatenate(rows)[: page.size.h, : page.size.w]


def _sample(page: Page, most: int) -> list[int]:
    """Indices of the first tile, the last tile and some in between."""
    last = page.grid.h * page.grid.w - 1
    return sorted({round(i * last / (most - 1)) for i in range(most)}) if last >= 0 else []
