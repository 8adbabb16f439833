"""Retirement of a worker: at SIGTERM and before its walltime, the scheduler reassigns its task at once.

Loaded by `dask worker --preload`. The running task must stop by itself at its next block: it calls `is_retiring()` and
leaves its output to the worker that resumes it.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any


def is_retiring() -> bool:
    """Whether the Dask worker that runs this task is retiring; false outside a worker.

    def on_progress(progress):
        if is_retiring():
            raise Retired("another worker resumes this slide")
    """
    from distributed import get_worker
    from distributed.core import Status

    try:
        return get_worker().status not in (Status.init, Status.running, Status.paused)
    except ValueError:  # not within a task of a worker
        return False


def dask_setup(worker: Any) -> None:
    """Called by Dask in a new worker. Batch systems send SIGTERM before they kill (scancel, preemption, walltime).

    By default Dask then drops the connection, which counts as a death of the task's worker.
    """

    def leave() -> None:
        leaving.append(asyncio.ensure_future(worker.close_gracefully(reason="SIGTERM")))

    leaving: list[asyncio.Future[None]] = []  # keeps references: an unreferenced task may be garbage-collected
    with suppress(NotImplementedError):  # Windows has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
