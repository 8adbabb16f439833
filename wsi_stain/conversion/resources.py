"""Disk and memory that a conversion needs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wsi_stain.cluster.threads import thread_count
from wsi_stain.conversion.job import Job
from wsi_stain.errors import OutputError

BYTES_PER_PIXEL = {"jpeg": 0.6, "deflate": 2.4, "zarr": 2.4}
"""Bytes per px of stained tissue at level 0, with a margin: H&E takes 0.2 to 0.4 as JPEG of quality 90."""

BACKGROUND_BYTES_PER_PIXEL = 0.01
"""Bytes per px of background, which is encoded once and repeated in the file."""


def disk_bytes(job: Job, tissue: float) -> int:
    """Bytes still to be written if the share `tissue` of the tiles is stained: the blocks and, for TIFF, the file.

    The blocks are kept until the TIFF assembled from them is complete.
    """
    each = BYTES_PER_PIXEL["zarr" if job.kind == "zarr" else job.canvas.encoding.compression]
    pixels = job.grid.region.area * 4 / 3  # with all lower levels
    pixels *= len(job.canvas.background) / 3
    copies = 1 if job.kind == "zarr" else 2
    return int(pixels * (tissue * each + BACKGROUND_BYTES_PER_PIXEL) * copies) + (1 << 20)


def disk_free(output: Path) -> int:
    """Free bytes on the disk of the output.

    Raises:
        OutputError: the folder does not exist or cannot be written to.
    """
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it, or choose another output with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} cannot be written to; choose another output with -o")
    return shutil.disk_usage(folder).free


def memory_bytes(job: Job, workers: int | None) -> int:
    """Bytes of blocks in work, without the model: per thread input tiles, their sum and the result; plus the cache."""
    side = min(job.canvas.block, max(job.grid.region.size))
    values = len(job.canvas.background)  # of a pixel: bytes of the tiles, and of the result with its sum in float32
    each = (3 + values) * (side + 2 * job.grid.tile) ** 2 + 5 * values * side**2
    return thread_count(workers) * each + (job.cache_mib << 20) + (128 << 20)
