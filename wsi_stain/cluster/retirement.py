"""How a worker leaves: at SIGTERM and before its walltime, the scheduler gives its task to another at once.

A module that `dask worker --preload` loads. The task that the worker still runs must end by itself, at its next block:
it asks `is_retiring()`, and leaves its output to the worker that goes on with it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any


def is_retiring() -> bool:
    """Whether the Dask worker that runs this task was told to leave; false outside of a worker.

    def tell(progress):
        if is_retiring():
            raise Retired("another worker goes on with this slide")
    """
    from distributed import get_worker
    from distributed.core import Status

    try:
        return get_worker().status not in (Status.init, Status.running, Status.paused)
    except ValueError:  # not a task of a worker
        return False


def dask_setup(worker: Any) -> None:
    """Called by Dask in a new worker: batch systems send SIGTERM before they kill (scancel, preemption, walltime).

    Dask's own answer is to drop the connection, which counts against the task as a death.
    """

    def leave() -> None:
        leaving.append(asyncio.ensure_future(worker.close_gracefully(reason="SIGTERM")))

    leaving: list[asyncio.Future[None]] = []  # a task without a reference may be collected before it has run
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
