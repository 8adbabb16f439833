"""How fast and how large a conversion will be: two seconds of it, done on the device before it starts."""

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
from wsi_stain.slide.slide import Slide, View

SAMPLE_S = 2.0
"""How long tiles are stained for, after the first batch, which also warms the device up."""
BLOCKS = 64
"""Blocks, spread over the slide, that tiles are taken from."""
HASH_BYTES_PER_S, ASSEMBLE_PX_PER_S = 1e9, 1e9
"""Every slide is hashed, and its encoded tiles are copied into the file; a disk of today."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tile costs."""

    device: str
    tiles: int
    """How many were stained."""
    start_s: float
    """Loading the model and the first batch."""
    generate_s: float
    """Of the device, per tile."""
    other_s: float
    """Of one thread, per tile: reading and encoding."""
    base_bytes: int
    """Memory of this process before: Python and libraries."""
    model_bytes: int
    """Memory that the model and a batch of tiles add."""


def sample(made: Plan, seconds: float = SAMPLE_S) -> Sample | None:
    """Stain a few tissue tiles of a plan's slide, and keep nothing; None where it has none.

    Raises:
        DeviceError: the device is not there, or too small for one tile.
    """
    job, start, before = made.job, time.perf_counter(), _memory()
    generator = Bundle.open(job.model).generator(job.device, precision=job.precision)
    with Slide.open(job.slide, mpp=job.slide_mpp) as slide:
        view = slide.at(job.view_mpp, allow_upsampling=job.allow_upsampling)
        tiles = list(_tissue(made, view))
        batch = job.batch or generator.batch
        batches = [tiles[i : i + batch] for i in range(0, len(tiles), batch)]
        warm = next((found for boxes in batches if len(found := _read(view, boxes))), None)
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
            _encode(made, outputs)
            end = time.perf_counter()
            done, generate = done + len(inputs), generate + generated - read
            other += read - begin + end - generated
            if end - started > seconds:
                break
    each = max(1, done)
    device = str(getattr(generator, "device", "cpu"))
    return Sample(device, done, started - start, generate / each, other / each, before, max(0, _memory() - before))


def seconds(made: Plan, of: Sample | None, threads: int | None = None) -> float:
    """How long the conversion will take: the device or the threads, whichever is busy longer, and what comes before.

    Args:
        made: the plan.
        of: a sample of a slide of the same model on the same device.
        threads: that read and encode; those of the plan by default.
    """
    if made.is_done:
        return 0.0
    asked = made.request.workers if threads is None else threads
    threads = min(MOST_THREADS, processors()) if asked is None else max(1, asked)
    copying = made.fingerprint["source_bytes"] / HASH_BYTES_PER_S + made.job.region.area / ASSEMBLE_PX_PER_S
    if of is None:
        return copying
    return copying + of.start_s + made.tissue_tiles_todo * max(of.generate_s, of.other_s / threads)


def memory_bytes(made: Plan, of: Sample | None) -> int:
    """The most memory that the process will hold: what Python and libraries take, the model, and the blocks in work."""
    return made.memory_bytes + (_memory() if of is None else of.base_bytes + of.model_bytes)


def _tissue(made: Plan, view: View) -> Iterator[Box]:
    """Tiles with tissue of blocks that are spread over what is to be done."""
    image, blocks = Box.of(view.size), made.todo or made.blocks
    for block in blocks[:: max(1, len(blocks) // BLOCKS)]:
        for tile in block.tiles:
            if made.job.owns(block, tile) and made.mask.touches(tile & image, view.scale):
                yield tile


def _read(view: View, boxes: list[Box]) -> np.ndarray:
    """Those that can be read: uint8 (N, h, w, 3)."""
    found = []
    for box in boxes:
        try:
            found.append(view.read(box))
        except UnreadableRegion:
            continue
    return np.stack(found) if found else np.empty((0, 0, 0, 3), np.uint8)


def _encode(made: Plan, tiles: np.ndarray) -> None:
    """As many pixels as these tiles add to the output, at level 0."""
    encoding = Encoding.of(made.job.canvas.encoding)
    stride = made.job.tile - made.job.overlap
    for tile in tiles:
        kept = tile[:stride, :stride]
        for y in range(0, kept.shape[0], TILE_PX):
            for x in range(0, kept.shape[1], TILE_PX):
                encoding.encode(pad_tile(kept[y : y + TILE_PX, x : x + TILE_PX]))


def _memory() -> int:
    return psutil.Process().memory_info().rss
