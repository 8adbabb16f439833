"""`Keeper`: Dask's adaptive scaling that also detects lost jobs. Imported only by `jobs`, since it imports Dask."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.core import Status
from distributed.deploy.adaptive import Adaptive

from wsi_stain.cluster import slurm

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 600
"""Longest pause before a job that ended at once is requested again; pauses are 2, 4, 8 … seconds."""


class Keeper(Adaptive):
    """Keeps as many workers as there are slides, and replaces lost ones.

    Dask itself (distributed 2026.8) requests workers by the expected duration of a task, which is unknown for a slide,
    and waits forever for a job that ended before its worker connected.

    Args:
        cluster: of dask-jobqueue.
        demand: returns how many workers could be used, in addition to the tasks in Dask.
        options: of Dask's `Adaptive`.

    Attributes:
        failure: reason why the first job without a worker ended; None if there was none.
    """

    def __init__(self, cluster: Any, demand: Callable[[], int], **options: Any) -> None:
        super().__init__(cluster, **options)
        self._jobs, self._demand = cluster, demand
        self.failure: str | None = None
        self._numbers = itertools.count()
        self._seen: set[str] = set()
        self._failures = 0
        self._resume = 0.0

    async def adapt(self) -> None:
        """Adapt once per pulse."""
        await self._forget()
        if time.monotonic() >= self._resume:
            await super().adapt()

    async def target(self) -> int:
        """Number of workers that could be used now; each slide is a task and can use a whole worker."""
        scheduler = self._jobs.scheduler
        tasks = len(scheduler.unrunnable) + len(scheduler.queued)
        return max(self._demand(), tasks + sum(len(worker.processing) for worker in scheduler.workers.values()))

    async def scale_up(self, n: int) -> None:
        """Submit jobs until there are `n`; returns when all are submitted.

        Dask cancels the job of a lost worker by name some seconds later, so no name is used twice.
        """
        names = [f"{self._jobs.name}-{next(self._numbers)}" for _ in range(n - len(self._jobs.worker_spec))]
        self._jobs.worker_spec.update(dict.fromkeys(names, self._jobs.new_spec))
        try:
            await self._jobs
        except (RuntimeError, ValueError, OSError) as err:
            refused = {name: job for name, job in self._jobs.workers.items() if job.job_id is None}
            if not refused:
                raise
            for job in refused.values():
                job.status = Status.failed  # otherwise Dask's `close` takes it for one that still starts
            await self._jobs.scale_down(refused)
            reason = " ".join(str(err).rpartition("stderr:")[2].split())
            self._note(f"a job could not be submitted: {reason}; check your limits in the batch system")

    async def _forget(self) -> None:
        """Remove workers whose jobs ended from Dask's plan. No job is being submitted: `scale_up` waits for that."""
        here = {str(name) for name in self.observed}
        self._seen |= here
        if here:
            self._failures = 0
        missing = {name: job for name, job in self._jobs.workers.items() if name not in here}
        queued = await self._queued() if missing else set()
        ended = {name: job for name, job in missing.items() if queued is not None and job.job_id not in queued}
        for name, job in ended.items():
            if name not in self._seen:
                log = Path(job.log_directory) / f"{job.job_name}-{job.job_id}.err"
                self._note(
                    f"job {job.job_id} ended before its worker connected: {_last_line(log)} ({log}); run its commands "
                    "on a node"
                )
        if lost := ended.keys() | (self._jobs.worker_spec.keys() - self._jobs.workers.keys()):
            await self._jobs.scale_down(lost)

    async def _queued(self) -> set[str] | None:
        """Ids of this user's pending and running jobs; `None` if unknown."""
        is_slurm = self._jobs.job_cls.submit_command == "sbatch"
        return await asyncio.to_thread(slurm.queued) if is_slurm else None

    def _note(self, message: str) -> None:
        """Record a job without a worker, usually due to the environment of the node, and wait before the next."""
        self._failures += 1
        self._resume = time.monotonic() + min(2**self._failures, LONGEST_PAUSE_S)
        logger.error("%s", message)
        self.failure = self.failure or message


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
