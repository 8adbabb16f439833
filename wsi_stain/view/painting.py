"""A canvas that is painted on demand: the blocks that somebody asks for, by the painter of `convert`.

VirtualSlide ─┐
viewer ───────┼─ Painting ── painter ── canvas ── convert resumes it, publish
dask, zarr ───┘   one thread paints; whoever asks for a painted block only reads it
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cached_property, partial

import numpy as np

from wsi_stain.conversion.begin import begin
from wsi_stain.conversion.estimate import Estimate, check_resources
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.painter import measure_statistics, painter, release, stain_block
from wsi_stain.conversion.provenance import is_done
from wsi_stain.conversion.request import ConvertRequest
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import InUse, OutputError, SlideError
from wsi_stain.files.lock import locked
from wsi_stain.geometry import Box
from wsi_stain.output.canvas import Canvas
from wsi_stain.output.tile_store import TileStore
from wsi_stain.slide.readers.base import DecodedTileCache
from wsi_stain.tiling.grid import Block

Index = tuple[int, int]
"""Row and column of a block."""
AHEAD_BYTES = 64 << 20
"""Memory for tiles that were stained before their blocks."""


class Painting:
    """The canvas of one request: which blocks are painted, and a thread that paints more of them.

    It holds the lock of the output, like a conversion. If another process holds it, `blocked` gives the reason, and the
    blocks that the other process paints can be read. Thread-safe.

        with Painting(request) as painting:
            painting.ensure([(0, 0)])
            painting.canvas.tile(0, 0, 0)

    Raises:
        WsiStainError: the slide, the model or the output cannot be used.
    """

    def __init__(self, request: ConvertRequest) -> None:
        self.request = request
        self.survey = Survey.of(request)
        self.job = Job.of(self.survey)
        self.canvas: Canvas = self.job.open_canvas()
        self.blocks = {block.index: block for block in self.survey.blocks}
        self.painted: set[Index] = set()
        self.blocked = ""
        """Why this process only reads; empty if it paints."""
        self.version = 0
        """Grows with every block that is painted."""
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._futures: dict[Index, Future[None]] = {}
        self._ahead = DecodedTileCache(AHEAD_BYTES)
        self._tile_store = TileStore(self.canvas.store)
        self._is_closed = False
        self.is_done = is_done(self.job.canvas, self.job.fingerprint, self.job.grid.region, restart=request.restart)
        if not self.is_done:
            self._open()

    def __enter__(self) -> Painting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the batch in work and give the lock back; the painted blocks stay for `convert`."""
        if self._is_closed:
            return
        self._is_closed = True
        release(self.job)
        self._stack.close()

    @cached_property
    def tissue(self) -> frozenset[Box]:
        """All tissue tiles, in the view's frame."""
        return frozenset(tile for tiles in self.survey.tissue.values() for tile in tiles)

    def tiles_of(self, block: Block) -> list[Box]:
        """The tiles that must be stained for a block, in the view's frame."""
        return [tile for tile in block.tiles if tile in self.tissue]

    def touching(self, box: Box) -> list[Block]:
        """The blocks that touch a box of the output, row by row."""
        side, inside = self.job.grid.block, box & Box.of(self.job.grid.region.size)
        if not inside.area:
            return []
        return [
            self.blocks[row, column]
            for row in range(inside.y0 // side, (inside.y1 - 1) // side + 1)
            for column in range(inside.x0 // side, (inside.x1 - 1) // side + 1)
        ]

    def ensure(self, indices: Iterable[Index]) -> None:
        """Paint blocks that are not painted yet, and wait for them; each is painted once, whoever asks.

        Raises:
            InUse: a block is not painted, and another process holds the lock.
        """
        missing = [index for index in indices if index not in self.painted]
        if self.blocked and missing:
            self.refresh()
            missing = [index for index in missing if index not in self.painted]
        for future in [self.paint(index) for index in missing]:
            future.result()

    def paint(self, index: Index) -> Future[None]:
        """Paint a block in the painting thread."""
        with self._lock:
            self._check_open()
            if index not in self._futures:
                self._futures[index] = self._pool.submit(self._paint, index)
            return self._futures[index]

    def stain_ahead(self, tiles: list[Box]) -> Future[None]:
        """Stain tiles of the view before their blocks, in the painting thread; `ahead` gives their pixels."""
        with self._lock:
            self._check_open()
            return self._pool.submit(self._stain_ahead, tiles)

    def load(self) -> Future[str]:
        """Open slide and model in the painting thread; gives the device."""
        with self._lock:
            self._check_open()
            return self._pool.submit(self._load)

    def is_ahead(self, tile: Box) -> bool:
        """Whether a tile was stained before its block."""
        return self._tile_store.holds(tile)

    def ahead(self, tile: Box) -> np.ndarray | None:
        """The pixels of a tile that was stained before its block, uint8 (tile, tile, C)."""
        with suppress(KeyError):
            return self._ahead.get(tile, partial(self._from_tile_store, tile))
        return None

    def refresh(self) -> list[Index]:
        """The blocks that another process has painted since the last look."""
        exists = self.canvas.store.exists
        new = [index for index in self.blocks if index not in self.painted and exists(index)]
        self._note(new)
        return new

    def is_finished_elsewhere(self) -> bool:
        """Whether the process that holds the lock has finished the output."""
        if not self.blocked or self.canvas.store.folder.exists() or not self.job.output.exists():
            return False
        self.is_done = is_done(self.job.canvas, self.job.fingerprint, self.job.grid.region, restart=False)
        return self.is_done

    def discard_if_empty(self) -> None:
        """Remove the canvas if nothing was stained; only for the holder of the lock."""
        if not any(path.name.startswith(("b_", "t_")) for path in self.canvas.store.folder.iterdir()):
            self.canvas.store.remove()
            if self.job.kind == "zarr":
                shutil.rmtree(self.job.canvas.part, ignore_errors=True)

    def _open(self) -> None:
        folder = self.canvas.store.folder
        check_resources(Estimate.of(self.survey, self.job))
        try:
            folder.mkdir(exist_ok=True)
        except OSError as err:
            raise OutputError(f"{folder} cannot be created: {err.strerror}; choose another output with -o") from err
        try:
            self._stack.enter_context(locked(folder / "lock"))
        except InUse as err:
            if self.canvas.store.fingerprint != self.job.fingerprint.as_dict():
                raise
            self.blocked = str(err)
            self.refresh()
            return
        try:
            begin(self.survey, self.job, self.canvas)
            todo = self.canvas.todo(self.survey.blocks)
            for block in todo:
                self.canvas.store.discard(block.index)  # a damaged file must not be taken for a painted block
            self._note(set(self.blocks) - {block.index for block in todo})
            self._stack.callback(self.discard_if_empty)
            # One thread: once several threads have called torch, it is slower for the rest of the process.
            self._pool = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="painting"))
            self._stack.callback(self._pool.shutdown, wait=False, cancel_futures=True)
        except BaseException:
            self._stack.close()
            with suppress(OSError):  # it holds blocks
                folder.rmdir()
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise SlideError(f"the virtual slide of {self.request.slide} is closed; open it again")
        if self.blocked:
            raise InUse(self.blocked)

    def _from_tile_store(self, tile: Box) -> np.ndarray:
        side, values = self.job.grid.tile, len(self.job.canvas.background)
        pixels = self._tile_store.take(tile, np.empty((side, side, values), np.uint8))
        if pixels is None:
            raise KeyError(tile)
        return pixels

    def _load(self) -> str:
        if self._is_closed:
            raise CancelledError("the virtual slide was closed")
        statistics = self.job.statistics
        if statistics is not None and not statistics.exists():
            measure_statistics(self.job)
        return painter(self.job).device

    def _paint(self, index: Index) -> None:
        if index in self.painted:
            return
        self._load()
        try:
            stain_block(self.job, self.blocks[index])
        except BaseException:
            with self._lock:
                self._futures.pop(index, None)  # may be asked for again
            raise
        self._note([index])

    def _stain_ahead(self, tiles: list[Box]) -> None:
        self._load()
        for tile, pixels in painter(self.job).stain_ahead(tiles).items():
            self._ahead.get(tile, lambda pixels=pixels: pixels)

    def _note(self, indices: Iterable[Index]) -> None:
        with self._lock:
            self.painted.update(indices)
            self.version += 1
            for index in list(self._futures):
                if index in self.painted:
                    del self._futures[index]
