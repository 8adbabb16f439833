"""The canvas of an OME-TIFF: every block's tiles, already encoded, so that assembling the file only copies bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_stain.errors import OutputError
from wsi_stain.files.atomic import publish, replacing
from wsi_stain.files.notice import NOTICE, RESAMPLED
from wsi_stain.geometry import Box
from wsi_stain.output import ometiff
from wsi_stain.output.canvas import REMAINS, BlockStore, CanvasSpec, claim, gather, nothing, pack_remains
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile
from wsi_stain.output.pyramid import Pyramid
from wsi_stain.tiling.grid import Block


class TiffCanvas:
    """Painted blocks of an OME-TIFF, in `<output>.spool`.

    A block's file holds its tiles of all levels it owns, encoded as in the TIFF; a block of background holds none. The
    coarse levels are `level_<n>.zip`, written by `finish()`.

        canvas = TiffCanvas(spec)
        canvas.begin(fingerprint)
        for block in canvas.todo(blocks):
            canvas.put(block, paint(block), {})
        canvas.publish(facts)
    """

    ENCODING = Encoding

    def __init__(self, spec: CanvasSpec) -> None:
        self.pyramid = Pyramid(spec.size, spec.block)
        self.sizes = self.pyramid.sizes
        self.encoding = self.ENCODING.of(spec.encoding, spec.samples)
        self._names = [""] if len(spec.channels) < 2 else [f"/{plane}" for plane in range(len(spec.channels))]
        """Endings of the names of a tile's planes."""
        self.store = BlockStore(spec.spool, self.pyramid, spec.background)
        self.spec = spec

    def begin(self, fingerprint: Mapping[str, Any], restart: bool = False) -> None:
        """Start, or resume a run of the same fingerprint; raises `OutputError` if the folder belongs to another run."""
        if not claim(self.store, fingerprint, restart=restart):
            self._discard(self.spec.part)
            self.store.begin(fingerprint)

    @staticmethod
    def _discard(part: Path) -> None:
        """Delete what an interrupted run left under the temporary name of the output."""
        part.unlink(missing_ok=True)

    def put(self, block: Block, pixels: np.ndarray | None, notes: Mapping[str, Any]) -> None:
        """Encode a block at all its levels and keep it."""
        self.store.put(block.index, () if pixels is None else self._members(block.index, pixels), notes)

    def todo(self, blocks: Iterable[Block]) -> list[Block]:
        """The blocks that are not painted, or whose file is damaged; only looks."""
        return [block for block in blocks if not self.store.is_painted(block.index)]

    def read(self, box: Box) -> np.ndarray:
        """A box of the finest level, in the output's frame, as a viewer decodes it."""
        return gather(box, partial(self.tile, 0), len(self.store.background))

    def tile(self, level: int, row: int, column: int) -> np.ndarray:
        """A tile of a painted block, uint8 (512, 512, C) as a viewer decodes it; `level` is at most `pyramid.depth`."""
        return np.concatenate([self.encoding.decode(data) for data in self._encoded(level, row, column)], axis=2)

    def jpeg(self, level: int, row: int, column: int) -> bytes | None:
        """The same tile as the file will hold it; None if that is not a JPEG of colours."""
        if self.encoding.compression != "jpeg" or self.spec.channels:
            return None
        return self._encoded(level, row, column)[0]

    def _encoded(self, level: int, row: int, column: int) -> list[bytes]:
        each = self.pyramid.block // TILE_PX >> level
        with self.store.open((row // each, column // each)) as file:
            return [self._tile(file, f"{level}/{row}/{column}", plane) for plane in range(len(self._names))]

    def publish(
        self, facts: Mapping[str, str], unreadable: Sequence[Box] = (), on_check: Callable[[], None] = nothing
    ) -> None:
        """Write the OME-TIFF under its temporary name, check it, then give it its final name.

        Raises:
            OutputError: the file fails its check.
        """
        self.finish()
        spec, part = self.spec, self.spec.part
        ometiff.write(part, self, self.metadata(facts, unreadable), compat_openslide=spec.encoding.compat_openslide)
        on_check()
        errors = [p for p in ometiff.problems(part, name=spec.output.name) if p.severity == "error"]
        if errors:
            message = "; ".join(f"rule {p.rule}: {p.message}" for p in errors)
            raise OutputError(f"{part} was written but fails its check ({message}); please report this")
        publish(part, spec.output)  # on the disk: the blocks are deleted next

    def finish(self) -> None:
        """Encode the coarse levels."""
        if not self.pyramid.is_deep:
            return
        with ExitStack() as stack:
            files: dict[int, zipfile.ZipFile] = {}
            for level in range(self.pyramid.depth + 1, len(self.sizes)):
                temporary = stack.enter_context(replacing(self.store.folder / f"level_{level}.zip", sole=True))
                files[level] = stack.enter_context(zipfile.ZipFile(temporary, "w"))
            for level, row, column, pixels in self.pyramid.coarse(self.store.strips()):
                for name, data in self._planes(f"{row}/{column}", pixels):
                    files[level].writestr(zipfile.ZipInfo(name), data)

    def tiles(self, level: int, plane: int = 0) -> Iterator[bytes]:
        """Encoded 512×512 tiles of a level and a plane, row by row."""
        if level > self.pyramid.depth:
            with zipfile.ZipFile(self.store.folder / f"level_{level}.zip") as file:
                yield from (file.read(info) for info in file.infolist()[plane :: len(self._names)])
            return
        grid = self.sizes[level].ceil_div(TILE_PX)
        rows, columns = self.pyramid.blocks
        for block_row in range(rows):
            with ExitStack() as stack:
                files = [stack.enter_context(self.store.open((block_row, column))) for column in range(columns)]
                for row in self.pyramid.spans(level, block_row, grid.h):
                    for block_column, file in enumerate(files):
                        for column in self.pyramid.spans(level, block_column, grid.w):
                            yield self._tile(file, f"{level}/{row}/{column}", plane)

    def metadata(self, facts: Mapping[str, str], unreadable: Sequence[Box]) -> ometiff.OmeMetadata:
        """What the header of the output states."""
        spec = self.spec
        return ometiff.OmeMetadata(
            name=spec.output.name,
            mpp=spec.mpp,
            magnification=spec.magnification,
            stain=spec.stain,
            annotations={k: v for k, v in spec.provenance if k not in ("notice", "use")} | dict(facts),
            rois=tuple(ometiff.Roi("unreadable in the source", box) for box in unreadable),
            uuid=spec.uuid,
            channels=spec.channels,
            notice=RESAMPLED if ("notice", RESAMPLED) in spec.provenance else NOTICE,
        )

    def _tile(self, file: zipfile.ZipFile, tile: str, plane: int) -> bytes:
        name = tile + self._names[plane]
        return file.read(name) if name in file.NameToInfo else self._background[plane]

    def _members(self, index: tuple[int, int], pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
        for level, row, column, tile in self.pyramid.cut(index, pixels):
            if level > self.pyramid.depth:
                yield REMAINS, pack_remains(tile)
            else:
                yield from self._planes(f"{level}/{row}/{column}", tile)

    def _planes(self, tile: str, pixels: np.ndarray) -> Iterator[tuple[str, bytes]]:
        """Name and encoded bytes of every plane of a tile."""
        for name, plane in zip(self._names, self.encoding.planes(pad_tile(pixels)), strict=True):
            yield tile + name, self.encoding.encode(plane)

    @cached_property
    def _background(self) -> list[bytes]:
        values = self.store.background
        tile = np.full((TILE_PX, TILE_PX, len(values)), values, np.uint8)
        return [self.encoding.encode(plane) for plane in self.encoding.planes(tile)]
