"""Messages for lost Dask workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOPIC = "worker-restart-memory"
"""Event topic on which Dask nannies report that they end a worker at its memory limit."""
MEMORY_BLAMED = 0.8
"""Share of the memory limit at the last heartbeat above which memory counts as the cause of a lost worker."""


def death(slide_id: str, worker: Any, events: Any, lease: Mapping[str, Any]) -> str:
    """Reason for the death of a worker, without a full stop.

    Args:
        slide_id: slide that the worker was converting.
        worker: its Dask `WorkerState`.
        events: events on `TOPIC`, pairs of time and content.
        lease: lease of the slide, with the last heartbeat.
    """
    limit = getattr(worker, "memory_limit", 0) or 0
    used = lease.get("memory", 0) if lease.get("worker") == worker.address else 0
    is_reported = any(event.get("worker") == worker.address for _, event in events or ())
    if limit and (is_reported or used > MEMORY_BLAMED * limit):
        return (
            f"worker killed by the memory limit {limit / 1e9:.3g} GB on slide {slide_id}: raise `memory` in the "
            "cluster file, or lower its `cores`"
        )
    return (
        f"the worker at {worker.address} was lost on slide {slide_id}: its process was killed (often for lack of "
        "memory), or its machine was lost; see the log of the worker"
    )
