"""Dask's words about lost workers, in the user's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOPIC = "worker-restart-memory"
"""Where Dask's nannies tell that they end a worker whose memory is used up."""
NEAR = 0.8
"""Share of its memory limit at the last heartbeat from which a lost worker's death is put down to memory."""


def death(slide_id: str, worker: Any, events: Any, lease: Mapping[str, Any]) -> str:
    """Why a worker died, as a sentence without its end.

    Args:
        slide_id: the slide that it converted.
        worker: Dask's `WorkerState` of it.
        events: what was told on `TOPIC`, pairs of time and content.
        lease: the slide's, with the last heartbeat.
    """
    limit = getattr(worker, "memory_limit", 0) or 0
    used = lease.get("memory", 0) if lease.get("worker") == worker.address else 0
    told = any(event.get("worker") == worker.address for _, event in events or ())
    if limit and (told or used > NEAR * limit):
        return (
            f"worker killed by the memory limit {limit / 1e9:.3g} GB on slide {slide_id}: raise `memory` in the "
            "cluster file, or lower its `cores`"
        )
    return (
        f"the worker at {worker.address} was lost on slide {slide_id}: its process was killed (often for want of "
        "memory), or its machine went away; its own log says more"
    )
