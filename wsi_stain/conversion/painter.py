"""The work on one block: read, generate, blend, paint.

A worker receives a small `Job` and a `Block`. Slide, generator and canvas are slow to open, so each process opens them
once per job and shares them among its threads; one lock guards each device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress

import cv2
import numpy as np

from wsi_stain.conversion.device_lock import device_lock
from wsi_stain.conversion.job import BlockReport, Job
from wsi_stain.conversion.seams import compare
from wsi_stain.conversion.timing import Clock
from wsi_stain.conversion.view import load_mask, stained
from wsi_stain.errors import DeviceError, SlideError, UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.tile_store import SLOW_S, TileStore
from wsi_stain.tiling.blend import Blender, window
from wsi_stain.tiling.cache import StainedTileCache
from wsi_stain.tiling.grid import Block
from wsi_stain.tissue.mask import everything

log = logging.getLogger(__name__)


def stain_block(job: Job, block: Block) -> BlockReport:
    """Paint one block; the function of a task. An exception names the block."""
    try:
        return painter(job).paint(block)
    except Exception as err:
        err.add_note(f"while block {block.index} of {job.output} was painted")
        raise


def measure_statistics(job: Job) -> None:
    """Measure and store the normalization statistics of the slide; the function of the task before all blocks.

    Raises:
        SlideError: none of the tiles can be read.
    """
    assert job.statistics, "only a network with per-tile statistics needs those of a slide"
    view, tiles = job.view.open(), []
    with view.slide:
        for box in job.calibration:
            with suppress(UnreadableRegion):
                tiles.append(view.read(box))
    if not tiles:
        raise SlideError(
            f"{job.view.slide} is damaged: none of the {len(job.calibration)} tiles for its statistics can be read; "
            "copy the slide again from its source"
        )
    job.open_canvas().store.write(job.statistics.name, Bundle.open(job.model).measure_statistics(tiles, job.device))


class Painter:
    """Paints blocks of one job; shared by the threads of a process."""

    def __init__(self, job: Job) -> None:
        # Blocks run in parallel, and each codec uses one thread; a thread pool in every resize would only add threads
        # that wait for each other. torch keeps all processors: the network takes 98 % of a conversion on a CPU, and
        # reserving one of two cores for other work would nearly double its time. BLAS is not used here.
        cv2.setNumThreads(1)
        bundle = Bundle.open(job.model)
        self.job = job
        self._view = job.view.open()
        self._mask = everything(self._view.slide.size) if job.mask is None else load_mask(job.mask)
        self._canvas = job.open_canvas()
        own = {} if job.statistics is None else {"statistics": job.statistics}
        self._generator = bundle.generator(job.device, precision=job.fingerprint.precision, **own)
        self.device = str(getattr(self._generator, "device", job.device))
        self._lock = device_lock(self.device)
        self._window = window(job.grid.tile, job.grid.overlap)
        values = job.canvas.background
        self._background = np.full((job.grid.tile, job.grid.tile, len(values)), values, np.uint8)
        self._cache = StainedTileCache(job.cache_mib << 20)
        self._tile_store, self._is_slow = TileStore(self._canvas.store), False
        self._batch = job.batch or self._generator.batch
        self._is_closed = False

    def close(self) -> None:
        """Close the slide; the generator is freed with the painter. Blocks not generated yet stay unpainted."""
        self._is_closed = True
        self._view.slide.close()

    def paint(self, block: Block) -> BlockReport:
        """Read, generate, blend and paint one block."""
        clock = Clock()
        tissue = stained(block.tiles, self._mask, self._view)
        pixels, unreadable, generated, comparisons = None, (), 0, []
        if tissue:
            with clock("read"):
                inputs = self._read(tissue, block)
            unreadable = tuple(tile for tile in tissue if tile not in inputs)
            outputs, generated = self._generate(inputs, clock)
            del inputs  # as large as the block; blending needs the same amount again
            with clock("blend"):
                pixels = self._blend(block, outputs)
            comparisons = list(self._stain_again(block, pixels, unreadable, clock))
            with clock("blend"):
                self._clear_outside(block, pixels)
        owned = self.job.grid.owned(block)
        tissue_owned = len(set(owned).intersection(tissue))
        notes = {
            "tiles": len(owned),
            "tissue": tissue_owned,
            "unreadable": [list(box) for box in unreadable],
            "comparisons": comparisons,
        }
        with clock("write"):
            self._canvas.put(block, pixels, notes)
            self._clear_tile_store(tissue)
        return BlockReport(
            block.index, len(owned), tissue_owned, generated, unreadable, len(comparisons), clock.seconds
        )

    def stain_ahead(self, tiles: list[Box]) -> dict[Box, np.ndarray]:
        """Stain tiles before their blocks are painted, and keep them in the canvas's folder, where `paint` finds them.

        Returns:
            The stained tiles, uint8 (tile, tile, C); those that cannot be read are left out.
        """
        outputs, _ = self._generate(dict(self._read_each(tiles)), Clock())
        if not self._is_slow:  # else `_generate` has kept them
            for tile, pixels in outputs.items():
                self._tile_store.put(tile, pixels)
        return outputs

    def _stain_again(
        self, block: Block, pixels: np.ndarray, unreadable: tuple[Box, ...], clock: Clock
    ) -> Iterator[dict[str, list[int]]]:
        """For the seam certificate: stain places of the block in tiles off the grid, and compare both results."""
        for place in self.job.offset_tiles:
            at = place.compare
            if not block.write.contains(at) or any((tile & at).area for tile in unreadable):
                continue
            try:
                with clock("certify"):
                    tile = self._view.read(place.tile)
            except UnreadableRegion:
                continue
            with clock.holding(self._lock, "generate"):
                other = self._run(tile[None])[0]
            with clock("certify"):
                painted = pixels[at.shift(-block.write.y0, -block.write.x0).slices()]
                repeated = other[at.shift(-place.tile.y0, -place.tile.x0).slices()]
                comparison = compare(painted, repeated, self.job.colour_of_background)
            yield comparison

    def _read(self, tiles: list[Box], block: Block) -> dict[Box, np.ndarray]:
        """The pixels of the readable tiles.

        They are read at once if the box around them contains no other tile; otherwise one by one, so that tiles without
        tissue are never read.
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
                log.warning("%s; it is filled with background", err)

    def _generate(self, inputs: dict[Box, np.ndarray], clock: Clock) -> tuple[dict[Box, np.ndarray], int]:
        """The generator's output for every tile, and the number of tiles that did not come from the cache.

        The device is held for the whole block. If it were released after every batch, all threads would finish their
        blocks at the same time, then read and write at the same time while the device waits.
        """
        outputs, count = {}, 0
        with clock.holding(self._lock, "generate"):
            # Look up while holding the device: tiles that another thread just stained are then not stained twice.
            waiting = []
            for tile in inputs:
                known = self._cache.take(tile)
                if known is None:
                    known = self._tile_store.take(tile, like=self._background)
                if known is None:
                    waiting.append(tile)
                else:
                    outputs[tile] = known
            while waiting:
                if self._is_closed:
                    raise CancelledError("the conversion has ended; this block is no longer needed")
                batch, waiting = waiting[: self._batch], waiting[self._batch :]
                start = time.perf_counter()
                results = self._run(np.stack([inputs[tile] for tile in batch]))
                self._is_slow = time.perf_counter() - start > SLOW_S * len(batch)
                count += len(batch)
                for tile, pixels in zip(batch, results, strict=True):
                    outputs[tile] = pixels
                    self._keep(tile, pixels)
        return outputs, count

    def _keep(self, tile: Box, pixels: np.ndarray) -> None:
        """Keep a tile in memory for other blocks of this process and, on slow devices, on disk for a resumed run."""
        if (uses := len(self.job.grid.users(tile))) > 1:
            self._cache.keep(tile, pixels.copy(), uses - 1)  # a copy: a view would hold the whole batch
        if self._is_slow:
            self._tile_store.put(tile, pixels)

    def _clear_tile_store(self, tiles: list[Box]) -> None:
        """Delete stored tiles that no other block needs; any others are deleted with the canvas folder."""
        if self._is_slow:
            is_painted = self._canvas.store.exists
            self._tile_store.clear(tile for tile in tiles if all(map(is_painted, self.job.grid.users(tile))))

    def _blend(self, block: Block, outputs: dict[Box, np.ndarray]) -> np.ndarray:
        """The block's pixels; tiles that were not generated are background."""
        blender = Blender(block.write, self._window, len(self.job.canvas.background))
        for tile in block.tiles:
            blender.add(tile, outputs.get(tile, self._background))
        return blender.result()

    def _clear_outside(self, block: Block, pixels: np.ndarray) -> None:
        """Make the pixels outside the outline of a mask drawn by hand background."""
        inside = self._mask.inside(block.write, self._view.scale)
        if inside is not None:
            pixels[~inside] = self.job.canvas.background

    def _run(self, tiles: np.ndarray) -> np.ndarray:
        """The generator's output; if device memory is too small, the batch is halved for this and all later calls."""
        try:
            return self._generator(tiles)
        except (RuntimeError, MemoryError) as err:
            # torch.OutOfMemoryError is a RuntimeError; torch is not imported here.
            if not isinstance(err, MemoryError) and "out of memory" not in str(err).lower():
                raise
            if len(tiles) == 1:
                raise DeviceError(
                    f"the memory of {self.device} is too small for one tile of {self.job.grid.tile} px; "
                    "use another device (--device cpu) or a smaller tile (--set grid.tile=256)"
                ) from err
        half = -(-len(tiles) // 2)
        self._batch = min(self._batch, half)
        log.warning(
            "the memory of %s is too small for a batch of %d tiles; continuing with %d tiles per batch",
            self.device,
            len(tiles),
            half,
        )
        return np.concatenate([self._run(tiles[:half]), self._run(tiles[half:])])


_painters: dict[Job, Painter] = {}
_opening = threading.Lock()


def painter(job: Job) -> Painter:
    """The painter of the job in this process, opened at the first call.

    Cluster workers outlive a job: only the last two painters are kept, and older ones are freed after their blocks.
    """
    with _opening:
        if job not in _painters:
            for old in list(_painters)[:-1]:
                del _painters[old]
            _painters[job] = Painter(job)
        return _painters[job]


def release(job: Job) -> None:
    """Close the painter of the job in this process."""
    with _opening:
        closing = _painters.pop(job, None)
    if closing is not None:
        closing.close()
