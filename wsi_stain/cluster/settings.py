"""Dask's settings for tasks that take minutes to hours and return next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Started: TypeAlias = tuple[Any, Callable[[], str | None]]
"""A cluster object of Dask, and what says why none of its workers can come."""

WORKER_SETTINGS: dict[str, Any] = {
    # Tasks return names and figures: there is nothing to spill, and a worker that holds a model's weights would be
    # paused for ever. Whoever gave the memory watches it: the batch system, the pod, or the nanny at the whole limit.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    # The profiler asks for all threads' frames a hundred times a second, which stops a process for ever now and then
    # (python/cpython#106883, mended in 3.11.9 and 3.12.3).
    "distributed.worker.profile.enabled": False,
}
"""Dask's settings in the workers."""

SETTINGS: dict[str, Any] = WORKER_SETTINGS | {
    # A node that reads from a busy file system, or whose process loads a model, is slow to answer and not dead.
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    # A lost worker may come back on the same connection within this time; then its job is replaced.
    "distributed.deploy.lost-worker-timeout": "5s",
}
"""Dask's settings in this process, while the cluster is open."""


def worker_environment(cores: int) -> dict[str, str]:
    """Environment of a worker elsewhere: its processors, and Dask's settings, which do not travel by themselves."""
    settings = {f"DASK_{key.upper().replace('.', '__')}": str(value) for key, value in WORKER_SETTINGS.items()}
    return {"OMP_NUM_THREADS": str(cores)} | settings
