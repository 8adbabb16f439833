"""Dask settings for tasks that take minutes to hours and return little data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Started: TypeAlias = tuple[Any, Callable[[], str | None]]
"""A Dask cluster object, and a function that returns why none of its workers can start (None if unknown)."""

WORKER_SETTINGS: dict[str, Any] = {
    # Tasks return names and figures, so there is nothing to spill, and a worker that holds model weights would stay
    # paused forever. The memory limit is enforced by the batch system, the pod, or the nanny (at the full limit).
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 1.0,
    # The profiler reads the frames of all threads a hundred times a second, which occasionally deadlocks a process
    # (python/cpython#106883, fixed in 3.11.9 and 3.12.3).
    "distributed.worker.profile.enabled": False,
}
"""Dask settings of the workers."""

SETTINGS: dict[str, Any] = WORKER_SETTINGS | {
    # A worker on a busy file system, or one that is loading a model, answers slowly but is not dead.
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    # A lost worker may reconnect within this time; after it, its job is replaced.
    "distributed.deploy.lost-worker-timeout": "5s",
}
"""Dask settings of this process while the cluster is open."""


def worker_environment(cores: int) -> dict[str, str]:
    """Environment of a remote worker: its processors, and the Dask settings, which Dask does not send to workers."""
    settings = {f"DASK_{key.upper().replace('.', '__')}": str(value) for key, value in WORKER_SETTINGS.items()}
    return {"OMP_NUM_THREADS": str(cores)} | settings
