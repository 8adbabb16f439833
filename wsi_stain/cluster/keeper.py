"""`Keeper`: Dask's adaptive scaling that also detects lost jobs. Imported only by `jobs`, since it imports Dask."""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed.deploy.adaptive import Adaptive

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 600
"""Longest pause before a job that ended at once is requested again; pauses are 2, 4, 8 … seconds."""


class Keeper(Adaptive):
    """Keeps as many workers as there are slides, and replaces lost ones.

    Dask itself (distributed 2026.8) requests workers by the expected duration of a task, which is unknown for a slide;
    it counts lost workers as planned; and it waits forever for a job that ended before its worker connected.

    Args:
        cluster: of dask-jobqueue.
        demand: returns how many workers could be used, in addition to the tasks in Dask.
        options: of Dask's `Adaptive`.

    Attributes:
        failure: reason why the first job without a worker ended; None if there was none.
    """

    def __init__(self, cluster: Any, demand: Callable[[], int], **options: Any) -> None:
        super().__init__(cluster, **options)
        self._demand = demand
        self.failure: str | None = None
        self._seen: set[Any] = set()
        self._failures = 0
        self._resume = 0.0

    async def adapt(self) -> None:
        """Adapt once per pulse."""
        await self._forget()
        if time.monotonic() >= self._resume:
            await super().adapt()

    async def target(self) -> int:
        """Number of workers that could be used now; each slide is a task and can use a whole worker."""
        cluster: Any = self.cluster
        scheduler = cluster.scheduler
        tasks = len(scheduler.unrunnable) + len(scheduler.queued)
        return max(self._demand(), tasks + sum(len(worker.processing) for worker in scheduler.workers.values()))

    async def _forget(self) -> None:
        """Remove workers whose jobs ended from the plan."""
        cluster: Any = self.cluster
        if cluster._lock.locked() or cluster._correct_state_waiting:  # jobs are being submitted or cancelled
            return
        here = {worker["name"] for worker in cluster.scheduler_info["workers"].values()}
        self._seen |= here
        if here:
            self._failures = 0
        missing = {name: job for name, job in cluster.workers.items() if name not in here}
        queued = await self._queued() if missing else set()
        for name, job in missing.items():
            if job.job_id is None or (queued is not None and job.job_id not in queued):
                self._note(name, job)
                cluster.workers.pop(name, None)
        for name in set(cluster.worker_spec) - set(cluster.workers):
            del cluster.worker_spec[name]
            # Dask cancels the job of a lost worker by name some seconds later, so a new worker must not reuse the name.
            cluster._i = max(cluster._i, int(name.rpartition("-")[2]) + 1)

    async def _queued(self) -> set[str] | None:
        """Ids of this user's pending and running jobs; `None` if the batch system cannot be queried."""
        cluster: Any = self.cluster
        if cluster.job_cls.submit_command != "sbatch":
            return None
        try:
            return set((await cluster.job_cls._call(["squeue", "-h", "-u", getpass.getuser(), "-o", "%A"])).split())
        except RuntimeError as err:  # for example a restarting SLURM controller; retried at the next pulse
            logger.warning("squeue failed: %s", " ".join(str(err).split()))
            return None

    def _note(self, name: Any, job: Any) -> None:
        """Record a job that ended before its worker connected, usually due to the environment of the node."""
        if name in self._seen:
            return
        self._failures += 1
        self._resume = time.monotonic() + min(2**self._failures, LONGEST_PAUSE_S)
        log = Path(job.log_directory) / f"{job.job_name}-{job.job_id}.err"
        message = (
            f"job {job.job_id} ended before its worker connected: {_last_line(log)} ({log}); run its commands on a node"
        )
        if job.job_id is None:
            message = "a job could not be submitted; see the batch system's message above, and your limits there"
        logger.error("%s", message)
        self.failure = self.failure or message


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
