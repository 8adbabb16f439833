"""What a worker does with one block: read, generate, blend, paint.

A worker gets a small `Job` and a `Block`. What is slow to open (slide, generator, canvas) is opened once per process
and job, and shared by its threads; one lock guards the device.
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

from wsi_stain.conversion.job import BlockReport, Job, load_mask
from wsi_stain.conversion.seams import compare
from wsi_stain.conversion.timing import Clock
from wsi_stain.errors import DeviceError, SlideError, UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.tile_store import SLOW_S, Shelf
from wsi_stain.slide.slide import Slide
from wsi_stain.tiling.blend import Blender, window
from wsi_stain.tiling.cache import TileCache
from wsi_stain.tiling.grid import Block, TileGrid

log = logging.getLogger(__name__)


def stain_block(job: Job, block: Block) -> BlockReport:
    """Paint one block; what a task runs."""
    return painter(job).paint(block)


def measure_statistics(job: Job) -> None:
    """Measure the normalisation statistics of the job's slide and keep them; what a task runs before all blocks.

    Raises:
        SlideError: none of the tiles can be read.
    """
    assert job.statistics, "only a network with statistics per tile needs a slide's"
    with Slide.open(job.slide, mpp=job.slide_mpp) as slide:
        view, tiles = slide.at(job.view_mpp, allow_upsampling=job.allow_upsampling), []
        for box in job.calibration:
            with suppress(UnreadableRegion):
                tiles.append(view.read(box))
    if not tiles:
        raise SlideError(
            f"{job.slide} is damaged: none of the {len(job.calibration)} tiles for its statistics can be read: copy "
            "the slide again from its source"
        )
    job.open_canvas().store.write(job.statistics.name, Bundle.open(job.model).measure_statistics(tiles, job.device))


class Painter:
    """Paints blocks of one job; shared by the threads of a process."""

    def __init__(self, job: Job) -> None:
        # Blocks run side by side, and the codecs use one thread each; a pool inside every resize would only add threads
        # that wait for each other. torch keeps all processors: the network is 98 % of a conversion on a CPU, and to
        # set one of two cores aside for the rest would nearly double its time. BLAS has no part in any of this.
        cv2.setNumThreads(1)
        bundle = Bundle.open(job.model)
        self.job = job
        self._slide = Slide.open(job.slide, mpp=job.slide_mpp)
        self._view = self._slide.at(job.view_mpp, allow_upsampling=job.allow_upsampling)
        self._mask = None if job.mask is None else load_mask(job.mask)
        self._canvas = job.open_canvas()
        own = {} if job.statistics is None else {"statistics": job.statistics}
        self._generator = bundle.generator(job.device, precision=job.precision, **own)
        self.device = str(getattr(self._generator, "device", job.device))
        TileGrid(
            self._view.size, job.tile, job.overlap, self._generator.multiple
        )  # refuses what does not fit the model
        self._window = window(job.tile, job.overlap)
        self._glass = np.full((job.tile, job.tile, 3), job.canvas.glass, np.uint8)
        self._cache = TileCache(job.cache_mb << 20)
        self._shelf, self._is_slow = Shelf(self._canvas.store), False
        self._batch = job.batch or self._generator.batch
        self._is_closed = False

    def close(self) -> None:
        """Close the slide; the generator goes with the painter. Blocks that are not generated yet end unpainted."""
        self._is_closed = True
        self._slide.close()

    def is_tissue(self, tile: Box) -> bool:
        """Whether the tile is read and stained."""
        return self._mask is None or self._mask.touches(tile & Box.of(self._view.size), self._view.scale)

    def paint(self, block: Block) -> BlockReport:
        """Read, generate, blend and paint one block."""
        clock = Clock()
        tissue = [tile for tile in block.tiles if self.is_tissue(tile)]
        pixels, unreadable, generated, again = None, (), 0, []
        if tissue:
            with clock("read"):
                inputs = self._read(tissue, block)
            unreadable = tuple(tile for tile in tissue if tile not in inputs)
            outputs, generated = self._generate(inputs, clock)
            del inputs  # as large as the block, and blending takes as much again
            with clock("blend"):
                pixels = self._blend(block, outputs)
            again = list(self._stain_again(block, pixels, unreadable, clock))
        owned = [tile for tile in block.tiles if self.job.owns(block, tile)]
        tissue_owned = len(set(owned).intersection(tissue))
        notes = {
            "tiles": len(owned),
            "tissue": tissue_owned,
            "unreadable": [list(box) for box in unreadable],
            "again": again,
        }
        with clock("write"):
            self._canvas.put(block, pixels, notes)
            self._clear_shelf(tissue)
        return BlockReport(block.index, len(owned), tissue_owned, generated, unreadable, len(again), clock.seconds)

    def _stain_again(
        self, block: Block, pixels: np.ndarray, unreadable: tuple[Box, ...], clock: Clock
    ) -> Iterator[dict[str, list[int]]]:
        """For the seam certificate: the block's places, stained as part of a tile off the grid, against its pixels."""
        for place in self.job.again:
            at = place.compare
            if not block.write.contains(at) or any((tile & at).area for tile in unreadable):
                continue
            try:
                with clock("certify"):
                    tile = self._view.read(place.tile)
            except UnreadableRegion:
                continue
            with clock.holding(_device, "generate"):
                other = self._run(tile[None])[0]
            with clock("certify"):
                painted = pixels[at.shift(-block.write.y0, -block.write.x0).slices()]
                stained = other[at.shift(-place.tile.y0, -place.tile.x0).slices()]
                found = compare(painted, stained, self.job.canvas.glass)
            yield found

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

    def _generate(self, inputs: dict[Box, np.ndarray], clock: Clock) -> tuple[dict[Box, np.ndarray], int]:
        """The generator's output for every tile, and how many were made for this block and not taken from the cache.

        The device is held for the whole block. Were it given away after every batch, the threads would finish their
        blocks at the same time, and all read and write at the same time while the device waits.
        """
        outputs, made = {}, 0
        with clock.holding(_device, "generate"):
            # Looked up while holding the device: what another thread just made is there, and nobody makes it twice.
            waiting = []
            for tile in inputs:
                known = self._cache.take(tile)
                if known is None:
                    known = self._shelf.take(tile, like=self._glass)
                if known is None:
                    waiting.append(tile)
                else:
                    outputs[tile] = known
            while waiting:
                if self._is_closed:
                    raise CancelledError("the conversion has ended: nobody waits for this block")
                batch, waiting = waiting[: self._batch], waiting[self._batch :]
                start = time.perf_counter()
                results = self._run(np.stack([inputs[tile] for tile in batch]))
                self._is_slow = time.perf_counter() - start > SLOW_S * len(batch)
                made += len(batch)
                for tile, pixels in zip(batch, results, strict=True):
                    outputs[tile] = pixels
                    self._keep(tile, pixels)
        return outputs, made

    def _keep(self, tile: Box, pixels: np.ndarray) -> None:
        """In memory for this process's other blocks; on disk, where it is worth it, in case that the run is killed."""
        if (uses := len(self.job.blocks_of(tile))) > 1:
            self._cache.keep(tile, pixels.copy(), uses - 1)  # a copy: a view would hold the whole batch
        if self._is_slow:
            self._shelf.put(tile, pixels)

    def _clear_shelf(self, tiles: list[Box]) -> None:
        """Throw away the tiles that no other block waits for; what is forgotten goes with the canvas's folder."""
        if self._is_slow:
            is_painted = self._canvas.store.exists
            self._shelf.clear(tile for tile in tiles if all(map(is_painted, self.job.blocks_of(tile))))

    def _blend(self, block: Block, outputs: dict[Box, np.ndarray]) -> np.ndarray:
        """The block's pixels; tiles that were not generated are glass."""
        blender = Blender(block.write, self._window)
        for tile in block.tiles:
            blender.add(tile, outputs.get(tile, self._glass))
        return blender.result()

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
