"""The estimate of a conversion: what is left to do, and the disk, memory and time that it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from wsi_stain.cluster.threads import thread_count
from wsi_stain.conversion import resources
from wsi_stain.conversion.job import Job
from wsi_stain.conversion.provenance import is_done
from wsi_stain.conversion.survey import Survey
from wsi_stain.errors import InsufficientResources, UnreadableRegion
from wsi_stain.files.full_disk import gib
from wsi_stain.geometry import Box
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile
from wsi_stain.slide.slide import View
from wsi_stain.tiling.grid import Block

SAMPLE_S = 2.0
"""Duration of the sample in s, after the first batch, which warms up the device."""
BLOCKS = 64
"""Number of blocks, spread over the slide, from which tiles are sampled."""
HASH_BYTES_PER_S, ASSEMBLE_PX_PER_S = 1e9, 1e9
"""Speed of hashing the slide and of copying its encoded tiles into the file, on a current disk."""


@dataclass(frozen=True, slots=True)
class TimingSample:
    """Measured cost of a tile."""

    device: str
    tiles: int
    """Number of stained tiles."""
    start_s: float
    """Time to load the model and to stain the first batch."""
    generate_s: float
    """Time of the device per tile."""
    other_s: float
    """Time of one thread per tile, for reading and encoding."""
    base_bytes: int
    """Memory of this process before the sample: Python and libraries."""
    model_bytes: int
    """Memory that the model and a batch of tiles add."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left of a conversion, and what it takes. Estimating looks; it writes and deletes nothing."""

    output: Path
    is_done: bool
    """Whether the finished output of the same settings already exists."""
    todo: tuple[Block, ...]
    """The blocks that are not painted yet."""
    tissue_tiles: int
    """Tissue tiles of those blocks, each counted for its owner."""
    disk_bytes: int
    """Bytes still to be written, an upper bound for usual slides."""
    disk_free_bytes: int
    blocks_bytes: int
    """Memory of the blocks in work, without the model."""
    memory_bytes: int
    """Peak memory of the process; the model is included only with a sample."""
    seconds: float
    """Duration: the slower of device and threads, plus loading and copying; without a sample, copying alone."""

    @classmethod
    def of(cls, survey: Survey, job: Job) -> Estimate:
        """Estimate what a job takes, without a sample of its model.

        Raises:
            OutputError: the output exists with other settings, or its folder is missing or cannot be written to.
        """
        done = is_done(job.canvas, job.fingerprint, job.grid.region, restart=survey.request.restart)
        todo = () if done else _todo(survey, job)
        tiles = sum(len(survey.tissue[block.index]) for block in todo)
        blocks_bytes = resources.memory_bytes(job, survey.request.workers)
        return cls(
            output=job.output,
            is_done=done,
            todo=todo,
            tissue_tiles=tiles,
            disk_bytes=0 if done else resources.disk_bytes(job, tiles / max(1, survey.tiles)),
            disk_free_bytes=resources.disk_free(job.output),
            blocks_bytes=blocks_bytes,
            memory_bytes=blocks_bytes + _memory(),
            seconds=0.0 if done else _copying_s(survey),
        )

    def with_sample(self, survey: Survey, cost: TimingSample | None) -> Estimate:
        """The estimate with the time and the memory of the model.

        Args:
            survey: what the estimate was made from.
            cost: of the same model on the same device; None if there is no tissue to sample.
        """
        if cost is None or self.is_done:
            return self
        threads = max(1, thread_count(survey.request.workers))
        staining_s = self.tissue_tiles * max(cost.generate_s, cost.other_s / threads)
        return replace(
            self,
            memory_bytes=self.blocks_bytes + cost.base_bytes + cost.model_bytes,
            seconds=_copying_s(survey) + cost.start_s + staining_s,
        )


def check_resources(estimate: Estimate) -> None:
    """Check that disk and memory suffice.

    Raises:
        InsufficientResources: the disk or the memory is too small; the message gives both numbers.
    """
    if estimate.disk_bytes > estimate.disk_free_bytes:
        raise InsufficientResources(
            f"{estimate.output} needs about {gib(estimate.disk_bytes)} until it is finished, but its disk has only "
            f"{gib(estimate.disk_free_bytes)} free; free some space, or choose another output with -o"
        )
    free = psutil.virtual_memory().available
    if estimate.blocks_bytes > free:
        raise InsufficientResources(
            f"the conversion needs about {gib(estimate.blocks_bytes)} of memory in addition to the model, "
            f"but only {gib(free)} are free; use fewer --workers or smaller blocks (--set grid.block=1024)"
        )


def sample(survey: Survey, job: Job, seconds: float = SAMPLE_S) -> TimingSample | None:
    """Stain a few tissue tiles of the slide and discard them; None without tissue.

    Raises:
        DeviceError: the device is missing, or its memory is too small for one tile.
    """
    start, before = time.perf_counter(), _memory()
    generator = survey.bundle.generator(job.device, precision=job.fingerprint.precision)
    view = job.view.open()
    with view.slide:
        tiles = list(_spread(survey))
        batch = job.batch or generator.batch
        batches = [tiles[i : i + batch] for i in range(0, len(tiles), batch)]
        warm = next((pixels for boxes in batches if len(pixels := _read(view, boxes))), None)
        if warm is None:
            return None
        generator(warm)
        started = time.perf_counter()
        generate = other = done = 0
        for boxes in batches:
            begin = time.perf_counter()
            inputs = _read(view, boxes)
            read = time.perf_counter()
            outputs = generator(inputs) if len(inputs) else inputs
            generated = time.perf_counter()
            _encode(job, outputs)
            end = time.perf_counter()
            done, generate = done + len(inputs), generate + generated - read
            other += read - begin + end - generated
            if end - started > seconds:
                break
    each = max(1, done)
    device = str(getattr(generator, "device", "cpu"))
    return TimingSample(
        device, done, started - start, generate / each, other / each, before, max(0, _memory() - before)
    )


def _todo(survey: Survey, job: Job) -> tuple[Block, ...]:
    canvas = job.open_canvas()
    if survey.request.restart or canvas.store.fingerprint != job.fingerprint.as_dict():
        return survey.blocks
    return tuple(canvas.todo(survey.blocks))


def _copying_s(survey: Survey) -> float:
    """Time to hash the slide and to assemble the file."""
    return survey.source_bytes / HASH_BYTES_PER_S + survey.grid.region.area / ASSEMBLE_PX_PER_S


def _spread(survey: Survey) -> Iterator[Box]:
    """Tissue tiles of blocks that are spread over the region."""
    for block in survey.blocks[:: max(1, len(survey.blocks) // BLOCKS)]:
        yield from survey.tissue[block.index]


def _read(view: View, boxes: list[Box]) -> np.ndarray:
    """The readable tiles: uint8 (N, h, w, 3)."""
    tiles = []
    for box in boxes:
        try:
            tiles.append(view.read(box))
        except UnreadableRegion:
            continue
    return np.stack(tiles) if tiles else np.empty((0, 0, 0, 3), np.uint8)


def _encode(job: Job, tiles: np.ndarray) -> None:
    """Encode as many pixels as these tiles add to the output at level 0."""
    encoding = Encoding.of(job.canvas.encoding, job.canvas.samples)
    for tile in tiles:
        kept = tile[: job.grid.stride, : job.grid.stride]
        for y in range(0, kept.shape[0], TILE_PX):
            for x in range(0, kept.shape[1], TILE_PX):
                for plane in encoding.planes(pad_tile(kept[y : y + TILE_PX, x : x + TILE_PX])):
                    encoding.encode(plane)


def _memory() -> int:
    return psutil.Process().memory_info().rss
