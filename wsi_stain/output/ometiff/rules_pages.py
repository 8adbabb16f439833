"""Rules about pages and tags: 2, 4 to 8, 17, 19, 22.

Some apply to the levels of the first page only; `alike` compares those of other channels with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from wsi_stain.geometry import Size
from wsi_stain.output.encoding import TILE_PX
from wsi_stain.output.ometiff import tiff as t
from wsi_stain.output.ometiff.subject import Problem, Subject, error, warning

JPEG = 7
BLACK_IS_ZERO, RGB, YCBCR = 1, 2, 6
DEFLATE = {8, 32946}
LZW, PLAIN = 5, 1
JPEG_2000 = {33003, 33004, 33005, 34712}
UNREADABLE = {
    50000: "ZSTD",
    34926: "ZSTD",
    50001: "WebP",
    34927: "WebP",
    50002: "JPEG-XL",
    52546: "JPEG-XL",
    34925: "LZMA",
}
_CLASSIC_LIMIT = 2**31
"""Half of the address range of a classic TIFF; beyond it one more level or annotation may not fit."""


def container(subject: Subject) -> Iterator[Problem]:
    """Rule 2: BigTIFF."""
    if not subject.tiff.is_big:
        report = error if subject.tiff.bytes > _CLASSIC_LIMIT else warning
        yield report(2, "it is a classic TIFF, which is limited to 4 GiB and unreliable near it: write it as BigTIFF")


def colours(subject: Subject) -> Iterator[Problem]:
    """Rule 4: three interleaved 8-bit samples, RGB or YCbCr; one 8-bit sample in pages of fluorescence channels."""
    if subject.channels:
        yield from _grey(subject)
        return
    for level, page in enumerate(subject.levels):
        bits, samples = page.numbers(t.BITS), page.number(t.SAMPLES, 1)
        if samples != 3 or any(b != 8 for b in bits) or page.number(t.SAMPLE_FORMAT, 1) != 1:
            depth = "/".join(f"{b:g}" for b in bits) or "1"
            yield error(
                4, f"level {level} has {samples} samples of {depth} bits: QuPath requires 8/8/8 for colour; convert it"
            )
        elif page.number(t.PHOTOMETRIC, -1) not in (RGB, YCBCR):
            code = page.number(t.PHOTOMETRIC, -1)
            yield error(4, f"level {level} has photometric interpretation {code}: write it as RGB (2) or YCbCr (6)")
        if samples > 1 and page.number(t.PLANAR, 1) != 1:
            yield error(4, f"level {level} stores its colours in separate planes: store them interleaved (contiguous)")


def _grey(subject: Subject) -> Iterator[Problem]:
    for where, page in subject.pages():
        bits, samples = page.numbers(t.BITS), page.number(t.SAMPLES, 1)
        if samples != 1 or bits != (8,) or page.number(t.SAMPLE_FORMAT, 1) != 1:
            depth = "/".join(f"{b:g}" for b in bits) or "1"
            yield error(4, f"{where} has {samples} samples of {depth} bits: a channel has one of 8 bits; convert it")
        elif page.number(t.PHOTOMETRIC, -1) != BLACK_IS_ZERO:
            code = page.number(t.PHOTOMETRIC, -1)
            yield error(4, f"{where} has photometric interpretation {code}: write a channel as BlackIsZero (1)")


def alike(subject: Subject) -> Iterator[Problem]:
    """Rule 5: every fluorescence channel is a page with the same levels, tiles and compression."""
    if len(subject.planes) < len(subject.channels):
        missing = f"{len(subject.planes)} pages for {len(subject.channels)} channels"
        yield error(5, f"it has {missing}: it is incomplete; write one page for each channel")
    shapes = [[(p.size, p.tile, p.number(t.COMPRESSION, PLAIN)) for p in levels] for levels in subject.planes]
    for name, shape in zip(subject.channels, shapes, strict=False):
        if shape != shapes[0]:
            yield error(5, f"the levels of channel {name!r} differ from those of the first: write them all alike")
            return


def pyramid(subject: Subject) -> Iterator[Problem]:
    """Rules 5 and 19: lower levels are SubIFDs of the first page, and the file contains no other image."""
    reduced = {page.offset for page in subject.levels[1:]}
    others = [page for page in subject.tiff.pages[len(subject.planes) :] if page.offset not in reduced]
    flat = [page for page in others if _same_shape(page.size, subject.first.size)]
    if flat:
        yield error(5, f"{len(flat)} levels are separate pages: they open as separate images; write them as SubIFDs")
    elif len(subject.levels) == 1 and max(subject.first.size) > TILE_PX:
        h, w = subject.first.size
        yield error(5, f"the image of {w}×{h} px has no reduced levels: viewers cannot zoom; write SubIFDs")
    if len(others) > len(flat):
        page = next(page for page in others if page not in flat)
        h, w = page.size
        yield error(19, f"it contains another image of {w}×{h} px, possibly a label with patient data: remove it")
    sizes = [page.size for page in subject.levels]
    if any(max(b) >= max(a) for a, b in pairwise(sizes)):
        yield error(5, f"the SubIFDs of sizes {_listed(sizes[1:])} do not shrink: put the largest first")
    odd = [level for level, page in enumerate(subject.levels) if level and page.number(t.NEW_SUBFILE_TYPE) != 1]
    if odd:
        yield warning(5, f"level {odd[0]} is not marked as a reduced image: set its NewSubfileType to 1")


def halving(subject: Subject) -> Iterator[Problem]:
    """Rule 6: every level is half the size of the one above, down to one tile."""
    sizes = [page.size for page in subject.levels]
    if any(max(b) >= max(a) for a, b in pairwise(sizes)):
        return  # rule 5 reports this
    for level, (upper, lower) in enumerate(pairwise(sizes), start=1):
        if lower != upper.halved():
            half = f"{upper.halved().w}×{upper.halved().h}"
            yield warning(6, f"level {level} is {lower.w}×{lower.h} px: zooming is slow; halve it to {half} px")
            return
    if len(sizes) > 1 and max(sizes[-1]) > TILE_PX:
        yield warning(6, f"the smallest level is {sizes[-1].w}×{sizes[-1].h} px: keep halving to at most {TILE_PX} px")


def tiling(subject: Subject) -> Iterator[Problem]:
    """Rule 7: tiles of 512×512 px on every level."""
    for level, page in enumerate(subject.levels):
        tile = page.tile
        if tile is None:
            yield error(
                7,
                f"level {level} is stored in strips: every view reads whole rows; tile it {TILE_PX}×{TILE_PX}",
            )
        elif not min(tile) or tile.h % 16 or tile.w % 16:
            yield error(
                7, f"level {level} has tiles of {tile.w}×{tile.h} px: TIFF allows only multiples of 16; re-tile it"
            )
        elif tile != (TILE_PX, TILE_PX):
            yield warning(
                7, f"level {level} has tiles of {tile.w}×{tile.h} px: {TILE_PX}×{TILE_PX} is fastest in QuPath"
            )


def codecs(subject: Subject) -> Iterator[Problem]:
    """Rule 8: a compression that every reader supports."""
    for level, page in enumerate(subject.levels):
        code = page.number(t.COMPRESSION, PLAIN)
        if code == PLAIN:
            yield warning(8, f"level {level} is not compressed: use JPEG or Deflate for a much smaller file")
        elif code not in {JPEG, LZW} | DEFLATE | JPEG_2000:
            name = UNREADABLE.get(code, f"method {code}")
            yield error(
                8, f"level {level} is compressed with {name}, which Bio-Formats does not read: use JPEG or Deflate"
            )


def profile(subject: Subject) -> Iterator[Problem]:
    """Rule 17: pixels are sRGB, so that no viewer needs a profile."""
    if t.ICC_PROFILE in subject.first:
        yield warning(
            17, "it contains an ICC profile, which only some viewers apply: convert the pixels to sRGB and remove it"
        )


def clock(subject: Subject) -> Iterator[Problem]:
    """Rule 22: files of wsi-stain do not depend on the time of writing."""
    if subject.is_ours and t.DATE_TIME in subject.first:
        stamp = subject.first.text(t.DATE_TIME)
        yield warning(
            22, f"it contains the time {stamp}: the same run would give different bytes; write it without DateTime"
        )


def _same_shape(page: Size, first: Size) -> bool:
    """Whether a page may be a reduced level (or another plane) of the first: same aspect ratio within rounding."""
    return abs(page.h * first.w - page.w * first.h) <= 2 * max(first)


def _listed(sizes: list[Size]) -> str:
    return ", ".join(f"{size.w}×{size.h}" for size in sizes)
