"""How much disk and memory a conversion needs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wsi_stain.cluster.workers import MOST_THREADS, processors
from wsi_stain.conversion.job import Job
from wsi_stain.errors import OutputError

BYTES_PER_PIXEL = {"jpeg": 0.6, "deflate": 2.4, "zarr": 2.4}
"""Of stained tissue at level 0, with a margin: H&E takes 0.2 to 0.4 as JPEG of quality 90."""

GLASS_BYTES_PER_PIXEL = 0.01
"""Glass is encoded once and repeated in the file."""


def disk_bytes(job: Job, tissue: float) -> int:
    """What is still to be written, for the `tissue` share of the output's tiles: the blocks, and a TIFF's own bytes.

    The blocks stay until the TIFF that is assembled from them is complete.
    """
    each = BYTES_PER_PIXEL["zarr" if job.kind == "zarr" else job.canvas.encoding.compression]
    pixels = job.region.area * 4 / 3  # with all lower levels
    copies = 1 if job.kind == "zarr" else 2
    return int(pixels * (tissue * each + GLASS_BYTES_PER_PIXEL) * copies) + (1 << 20)


def disk_free(output: Path) -> int:
    """Free bytes where the output goes.

    Raises:
        OutputError: the folder is not there or cannot be written to.
    """
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist: make it, or write elsewhere with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} cannot be written to: write elsewhere with -o")
    return shutil.disk_usage(folder).free


def memory_bytes(job: Job, workers: int | None) -> int:
    """What blocks in work take besides the model: per thread the tiles read, their sum, the result; and the cache."""
    threads = min(MOST_THREADS, processors()) if workers is None else max(1, workers)
    side = min(job.canvas.block, max(job.region.size))
    each = 2 * 3 * (side + 2 * job.tile) ** 2 + 15 * side**2
    return threads * each + (job.cache_mb << 20) + (128 << 20)


def gib(n_bytes: float) -> str:
    """A number of bytes for people."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
