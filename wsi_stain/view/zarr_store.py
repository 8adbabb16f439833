"""A virtual slide as a read-only Zarr 3 store: metadata of OME-Zarr 0.5, and chunks that are stained when read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import imagecodecs
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore

from wsi_stain.geometry import Box
from wsi_stain.output.canvas import CanvasSpec
from wsi_stain.output.encoding import TILE_PX, pad_tile
from wsi_stain.output.zarr_canvas import ZSTD_LEVEL, ZarrCanvas
from wsi_stain.view.shown import tile_box

if TYPE_CHECKING:
    from wsi_stain.view.virtual import VirtualSlide

CHUNK = re.compile(r"(\d+)/c/0/(\d+)/(\d+)")
"""Key of a chunk: level, row and column of a pyramid tile."""


class VirtualStore(Store):
    """The store that `VirtualSlide.store` returns.

    Args:
        virtual: the slide, which must stay open.
        spec: of its canvas.
    """

    def __init__(self, virtual: VirtualSlide, spec: CanvasSpec) -> None:
        super().__init__(read_only=True)
        self._virtual = virtual
        self._metadata: dict[str, Buffer] = {}
        ZarrCanvas(spec).create_group(MemoryStore(self._metadata))

    @property
    def supports_writes(self) -> bool:
        """No."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """No."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Yes."""
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VirtualStore) and other._virtual is self._virtual

    __hash__ = None  # pyright: ignore[reportAssignmentType] - like zarr's own stores

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Metadata, or a chunk: 3 × 512 × 512, zstd; None for other keys."""
        if key in self._metadata:
            data = self._metadata[key].to_bytes()
        elif (box := self._box(key)) is not None:
            data = await asyncio.to_thread(self._chunk, *box)
        else:
            return None
        return prototype.buffer.from_bytes(data[_part(byte_range, len(data))])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several values; see zarr."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._metadata or self._box(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: the store is read-only."""
        raise ValueError("this store is read-only")

    async def delete(self, key: str) -> None:
        """Refused: the store is read-only."""
        raise ValueError("this store is read-only")

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in self._metadata:
            yield key
        for level, at in enumerate(self._virtual.levels):
            rows, columns = at.size.ceil_div(TILE_PX)
            for row in range(rows):
                for column in range(columns):
                    yield f"{level}/c/0/{row}/{column}"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with a prefix."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below a prefix."""
        prefix = prefix.rstrip("/") + "/" if prefix else ""
        seen: set[str] = set()
        async for key in self.list_prefix(prefix):
            name = key[len(prefix) :].partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name

    def _box(self, key: str) -> tuple[int, Box] | None:
        """Level and pixels of a chunk; None if there is no such chunk."""
        match = CHUNK.fullmatch(key)
        if match is None:
            return None
        level, row, column = map(int, match.groups())
        if level >= len(self._virtual.levels):
            return None
        box = tile_box(self._virtual.levels[level].size, row, column)
        return (level, box) if box.area else None

    def _chunk(self, level: int, box: Box) -> bytes:
        planes = pad_tile(self._virtual.read(level, box)).transpose(2, 0, 1)
        return bytes(imagecodecs.zstd_encode(planes.tobytes(), level=ZSTD_LEVEL))


def _part(byte_range: ByteRequest | None, length: int) -> slice:
    match byte_range:
        case None:
            return slice(0, length)
        case RangeByteRequest(start=start, end=end):
            return slice(start, end)
        case OffsetByteRequest(offset=offset):
            return slice(offset, length)
        case SuffixByteRequest(suffix=suffix):
            return slice(max(0, length - suffix), length)
