"""How many threads a process uses: one rule for conversions, cohorts, checks of pairs, and trainings."""

from __future__ import annotations

MOST_THREADS = 8
"""Default limit: reading, blending and encoding take about 150 MiB per thread; fewer than eight saturate a device."""


def thread_count(requested: int | None = None) -> int:
    """Threads of a pool: as many as requested and at least one; by default one per processor, at most eight."""
    return min(MOST_THREADS, processors()) if requested is None else max(1, requested)


def processors() -> int:
    """Processors that this process may use, by its affinity and by the limits of its container."""
    from dask.system import cpu_count  # here, since importing Dask takes a while

    return cpu_count()
