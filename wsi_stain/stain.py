"""What a worker does with one block: read, generate, blend, paint.

A worker gets a small `Job` and a `Block`. What is slow to open (slide, generator, canvas) is opened once per process
and job, and shared by its threads; one lock guards the device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_stain.blend import Blender, window
from wsi_stain.bundle import Bundle
from wsi_stain.canvas import Canvas, CanvasSpec
from wsi_stain.config import Precision
from wsi_stain.errors import DeviceError, UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.grid import Block, TileGrid
from wsi_stain.slide import Slide
from wsi_stain.spool import TileSpool
from wsi_stain.tissue import TissueMask
from wsi_stain.zarr_canvas import ZarrCanvas

log = logging.getLogger(__name__)

Kind = Literal["tiff", "zarr"]

CANVASES: dict[Kind, type[TileSpool] | type[ZarrCanvas]] = {"tiff": TileSpool, "zarr": ZarrCanvas}


@dataclass(frozen=True, slots=True)
class Job:
    """Everything a worker needs to paint blocks of one conversion; small, hashable, picklable."""

    slide: Path
    slide_mpp: float | None
    """µm per px of the slide's level 0, where the user says so."""
    view_mpp: float | None
    """µm per px at which the generator works; None is level 0."""
    allow_upsampling: bool
    model: str
    """Name or folder of the bundle."""
    device: str
    precision: Precision
    tile: int
    overlap: int
    region: Box
    """What is converted, in the view's px; the canvas's origin is its first pixel."""
    batch: int | None
    """Tiles per call of the generator; None is what suits its device."""
    cache_mb: int
    canvas: CanvasSpec
    kind: Kind
    mask: Path | None
    """File of `save_mask`; None takes every tile for tissue."""

    def open_canvas(self) -> Canvas:
        """The canvas of this job."""
        return CANVASES[self.kind](self.canvas)

    def owns(self, block: Block, tile: Box) -> bool:
        """Whether the tile counts as this block's: each tile is counted once, where its first pixel lies."""
        y, x = max(tile.y0, self.region.y0), max(tile.x0, self.region.x0)
        return block.write.y0 <= y < block.write.y1 and block.write.x0 <= x < block.write.x1

    def uses(self, tile: Box) -> int:
        """How many blocks need the tile."""
        inside, side = (tile & self.region).shift(-self.region.y0, -self.region.x0), self.canvas.block
        rows = (inside.y1 - 1) // side - inside.y0 // side + 1
        return rows * ((inside.x1 - 1) // side - inside.x0 // side + 1)


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What became of a block; tiles are counted once over all blocks."""

    index: tuple[int, int]
    tiles: int
    tissue: int
    generated: int
    """Tiles that the generator made for this block, repeats included."""
    unreadable: tuple[Box, ...]
    """Tiles that could not be read and became glass; a tile of two blocks is told by both."""
    seconds: dict[str, float] = field(hash=False)
    """Time in the stages read, generate, blend and write."""


def stain_block(job: Job, block: Block) -> BlockReport:
    """Paint one block; what a task runs."""
    return painter(job).paint(block)


def save_mask(mask: TissueMask, file: Any) -> None:
    """Write a mask for the workers to `file` (open for writing)."""
    np.savez_compressed(file, array=mask.array, scale=np.array([mask.scale.numerator, mask.scale.denominator]))


def load_mask(path: Path) -> TissueMask:
    """Read what `save_mask` wrote."""
    with np.load(path) as content:
        return TissueMask(content["array"], Fraction(*content["scale"].tolist()))


class TileCache:
    """Generated tiles that other blocks still need, the least recently used dropped first.

    Memory bound: `limit_bytes`. Not for several threads at once: the holder of the device uses it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._held = limit_bytes, 0
        self._tiles: OrderedDict[Box, tuple[np.ndarray, int]] = OrderedDict()

    def take(self, tile: Box) -> np.ndarray | None:
        """The tile's pixels if they are here; the last block that needs them takes them away."""
        pixels, uses = self._tiles.pop(tile, (None, 0))
        if pixels is not None:
            self._held -= pixels.nbytes
            self.keep(tile, pixels, uses - 1)
        return pixels

    def keep(self, tile: Box, pixels: np.ndarray, uses: int) -> None:
        """Keep a tile that `uses` more blocks need."""
        if uses < 1 or pixels.nbytes > self._limit:
            return
        self._tiles[tile] = pixels, uses
        self._held += pixels.nbytes
        while self._held > self._limit:
            self._held -= self._tiles.popitem(last=False)[1][0].nbytes


class Painter:
    """Paints blocks of one job; shared by the threads of a process."""

    def __init__(self, job: Job) -> None:
        bundle = Bundle.open(job.model)
        self.job = job
        self._slide = Slide.open(job.slide, mpp=job.slide_mpp)
        self._view = self._slide.at(job.view_mpp, allow_upsampling=job.allow_upsampling)
        self._mask = None if job.mask is None else load_mask(job.mask)
        self._canvas = job.open_canvas()
        self._generator = bundle.generator(job.device, precision=job.precision)
        self.device = str(getattr(self._generator, "device", job.device))
        TileGrid(
            self._view.size, job.tile, job.overlap, self._generator.multiple
        )  # refuses what does not fit the model
        self._window = window(job.tile, job.overlap)
        self._glass = np.full((job.tile, job.tile, 3), job.canvas.glass, np.uint8)
        self._cache = TileCache(job.cache_mb << 20)
        self._batch = job.batch or self._generator.batch

    def close(self) -> None:
        """Close the slide; the generator goes with the painter."""
        self._slide.close()

    def is_tissue(self, tile: Box) -> bool:
        """Whether the tile is read and stained."""
        return self._mask is None or self._mask.touches(tile & Box.of(self._view.size), self._view.scale)

    def paint(self, block: Block) -> BlockReport:
        """Read, generate, blend and paint one block."""
        clock = _Clock()
        tissue = [tile for tile in block.tiles if self.is_tissue(tile)]
        pixels, unreadable, generated = None, (), 0
        if tissue:
            with clock("read"):
                inputs = self._read(tissue, block)
            unreadable = tuple(tile for tile in tissue if tile not in inputs)
            pixels, generated = self._blend(block, inputs, clock)
        owned = [tile for tile in block.tiles if self.job.owns(block, tile)]
        tissue_owned = len(set(owned).intersection(tissue))
        notes = {"tiles": len(owned), "tissue": tissue_owned, "unreadable": [list(box) for box in unreadable]}
        with clock("write"):
            self._canvas.put(block, pixels, notes)
        return BlockReport(block.index, len(owned), tissue_owned, generated, unreadable, clock.seconds)

    def _read(self, tiles: list[Box], block: Block) -> dict[Box, np.ndarray]:
        """The pixels of the tiles, without those that cannot be read.

        In one read where nothing but these tiles lies in the box around them; else tile by tile, so that a tile without
        tissue is never read.
        """
        around = tiles[0]
        for tile in tiles[1:]:
            around |= tile
        if sum(around.contains(tile) for tile in block.tiles) > len(tiles):
            return dict(self._read_each(tiles))
        try:
            pixels = self._view.read(around)
        except UnreadableRegion:
            return dict(self._read_each(tiles))
        return {tile: pixels[tile.shift(-around.y0, -around.x0).slices()] for tile in tiles}

    def _read_each(self, tiles: list[Box]) -> Iterator[tuple[Box, np.ndarray]]:
        for tile in tiles:
            try:
                yield tile, self._view.read(tile)
            except UnreadableRegion as err:
                log.warning("%s; it becomes glass", err)

    def _blend(self, block: Block, inputs: dict[Box, np.ndarray], clock: _Clock) -> tuple[np.ndarray, int]:
        """The block's pixels, and how many tiles were generated for it."""
        with clock("blend"):
            blender = Blender(block.write, self._window)
            for tile in block.tiles:
                if tile not in inputs:
                    blender.add(tile, self._glass)
        waiting, generated = list(inputs), 0
        while waiting:
            ready, made = self._generate(waiting, inputs, clock)
            generated += made
            with clock("blend"):
                for tile, pixels in ready:
                    blender.add(tile, pixels)
        with clock("blend"):
            return blender.result(), generated

    def _generate(
        self, waiting: list[Box], inputs: dict[Box, np.ndarray], clock: _Clock
    ) -> tuple[list[tuple[Box, np.ndarray]], int]:
        """Takes tiles out of `waiting`: those in the cache, and one batch of new ones (and how many)."""
        ready: list[tuple[Box, np.ndarray]] = []
        batch: list[Box] = []
        with _device, clock("generate"):
            # Looked up while holding the device: what another thread just made is there, and nobody makes it twice.
            while waiting and len(batch) < self._batch:
                tile = waiting.pop(0)
                known = self._cache.take(tile)
                if known is None:
                    batch.append(tile)
                else:
                    ready.append((tile, known))
            if batch:
                outputs = self._run(np.stack([inputs[tile] for tile in batch]))
                for tile, pixels in zip(batch, outputs, strict=True):
                    if (uses := self.job.uses(tile)) > 1:
                        self._cache.keep(tile, pixels.copy(), uses - 1)  # a copy: a view would hold the whole batch
                    ready.append((tile, pixels))
        return ready, len(batch)

    def _run(self, tiles: np.ndarray) -> np.ndarray:
        """The generator's output; the batch is halved, now and from now on, where the device's memory is too small."""
        try:
            return self._generator(tiles)
        except (RuntimeError, MemoryError) as err:
            # torch.OutOfMemoryError is a RuntimeError; torch itself is not known here.
            if not isinstance(err, MemoryError) and "out of memory" not in str(err).lower():
                raise
            if len(tiles) == 1:
                raise DeviceError(
                    f"the memory of {self.device} is too small for one tile of {self.job.tile} px: "
                    "use another device (--device cpu) or a smaller tile (--set grid.tile=256)"
                ) from err
        half = -(-len(tiles) // 2)
        self._batch = min(self._batch, half)
        log.warning("the memory of %s is full with %d tiles: going on with %d at a time", self.device, len(tiles), half)
        return np.concatenate([self._run(tiles[:half]), self._run(tiles[half:])])


class _Clock:
    """Adds up the time spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


_painters: dict[Job, Painter] = {}
_opening = threading.Lock()
_device = threading.Lock()
"""Held by the one thread that generates: a device that two feed at once is no faster and may run out of memory."""


def painter(job: Job) -> Painter:
    """This process's painter of the job, opened by the first who asks.

    A cluster's workers outlive a job: all but the last two painters are forgotten, and go when their blocks are done.
    """
    with _opening:
        if job not in _painters:
            for old in list(_painters)[:-1]:
                del _painters[old]
            _painters[job] = Painter(job)
        return _painters[job]


def release(job: Job) -> None:
    """Close this process's painter of the job."""
    with _opening:
        found = _painters.pop(job, None)
    if found is not None:
        found.close()
