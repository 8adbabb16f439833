"""Estimates of time and memory of a conversion, from a two-second sample on its device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil

from wsi_stain.cluster.workers import MOST_THREADS, processors
from wsi_stain.conversion.plan import Plan
from wsi_stain.errors import UnreadableRegion
from wsi_stain.geometry import Box
from wsi_stain.model.bundle import Bundle
from wsi_stain.output.encoding import TILE_PX, Encoding, pad_tile
from wsi_stain.slide.slide import View

SAMPLE_S = 2.0
"""Duration of the sample in s, after the first batch, which warms up the device."""
BLOCKS = 64
"""Number of blocks, spread over the slide, from which tiles are sampled."""
HASH_BYTES_PER_S, ASSEMBLE_PX_PER_S = 1e9, 1e9
"""Speed of hashing the slide and of copying its encoded tiles into the file, on a current disk."""


@dataclass(frozen=True, slots=True)
class Sample:
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


def sample(plan: Plan, seconds: float = SAMPLE_S) -> Sample | None:
    """Stain a few tissue tiles of the planned slide and discard them; None without tissue.

    Raises:
        DeviceError: the device is missing, or its memory is too small for one tile.
    """
    job, start, before = plan.job, time.perf_counter(), _memory()
    generator = Bundle.open(job.model).generator(job.device, precision=job.precision)
    with job.open_slide() as slide:
        view = slide.at(job.view_mpp, allow_upsampling=job.allow_upsampling)
        tiles = list(_tissue(plan, view))
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
            _encode(plan, outputs)
            end = time.perf_counter()
            done, generate = done + len(inputs), generate + generated - read
            other += read - begin + end - generated
            if end - started > seconds:
                break
    each = max(1, done)
    device = str(getattr(generator, "device", "cpu"))
    return Sample(device, done, started - start, generate / each, other / each, before, max(0, _memory() - before))


def seconds(plan: Plan, of: Sample | None, threads: int | None = None) -> float:
    """Duration of the conversion in s: the slower of device and threads, plus loading and copying.

    Args:
        plan: what will be converted.
        of: a sample of the same model on the same device.
        threads: number of threads that read and encode; by default that of the plan.
    """
    if plan.is_done:
        return 0.0
    requested = plan.request.workers if threads is None else threads
    threads = min(MOST_THREADS, processors()) if requested is None else max(1, requested)
    copying = plan.fingerprint["source_bytes"] / HASH_BYTES_PER_S + plan.job.region.area / ASSEMBLE_PX_PER_S
    if of is None:
        return copying
    return copying + of.start_s + plan.tissue_tiles_todo * max(of.generate_s, of.other_s / threads)


def memory_bytes(plan: Plan, of: Sample | None) -> int:
    """Peak memory of the process in bytes: Python and libraries, the model, and the blocks in work."""
    return plan.memory_bytes + (_memory() if of is None else of.base_bytes + of.model_bytes)


def _tissue(plan: Plan, view: View) -> Iterator[Box]:
    """Tissue tiles of blocks that are spread over the remaining work."""
    image, blocks = Box.of(view.size), plan.todo or plan.blocks
    for block in blocks[:: max(1, len(blocks) // BLOCKS)]:
        for tile in block.tiles:
            if plan.job.owns(block, tile) and plan.mask.touches(tile & image, view.scale):
                yield tile


def _read(view: View, boxes: list[Box]) -> np.ndarray:
    """The readable tiles: uint8 (N, h, w, 3)."""
    tiles = []
    for box in boxes:
        try:
            tiles.append(view.read(box))
        except UnreadableRegion:
            continue
    return np.stack(tiles) if tiles else np.empty((0, 0, 0, 3), np.uint8)


def _encode(plan: Plan, tiles: np.ndarray) -> None:
    """Encode as many pixels as these tiles add to the output at level 0."""
    encoding = Encoding.of(plan.job.canvas.encoding)
    stride = plan.job.tile - plan.job.overlap
    for tile in tiles:
        kept = tile[:stride, :stride]
        for y in range(0, kept.shape[0], TILE_PX):
            for x in range(0, kept.shape[1], TILE_PX):
                encoding.encode(pad_tile(kept[y : y + TILE_PX, x : x + TILE_PX]))


def _memory() -> int:
    return psutil.Process().memory_info().rss
