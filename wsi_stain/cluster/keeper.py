"""`Keeper`: Dask's adaptive scaling that also notices jobs which are gone. Imported only by `jobs`: it imports Dask."""

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
"""Jobs that end at once are asked for again after 2, 4, 8 … seconds, and at last so many."""


class Keeper(Adaptive):
    """As many workers as there are slides, and others in the place of those that were lost.

    As it is (distributed 2026.8), Dask asks for workers by the duration that it expects of a task, which nobody knows
    of a slide; a worker that was lost keeps its place in the plan; and a job that ended before its worker came is
    waited for for ever.

    Args:
        cluster: of dask-jobqueue.
        demand: how many workers could be used, beside the tasks that Dask has.
        options: of Dask's `Adaptive`.

    Attributes:
        failure: why the first job that brought no worker ended.
    """

    def __init__(self, cluster: Any, demand: Callable[[], int], **options: Any) -> None:
        super().__init__(cluster, **options)
        self._demand = demand
        self.failure: str | None = None
        self._seen: set[Any] = set()
        self._failures = 0
        self._resume = 0.0

    async def adapt(self) -> None:
        """One pulse."""
        await self._forget()
        if time.monotonic() >= self._resume:
            await super().adapt()

    async def target(self) -> int:
        """Workers that could be used now: a slide is a task, and can use a whole worker."""
        cluster: Any = self.cluster
        scheduler = cluster.scheduler
        tasks = len(scheduler.unrunnable) + len(scheduler.queued)
        return max(self._demand(), tasks + sum(len(worker.processing) for worker in scheduler.workers.values()))

    async def _forget(self) -> None:
        """Remove from the plan the workers whose jobs are gone."""
        cluster: Any = self.cluster
        if cluster._lock.locked() or cluster._correct_state_waiting:  # jobs are being submitted or cancelled right now
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
            # Dask cancels the job of a lost worker by its name, some seconds later: that must not be another's by then.
            cluster._i = max(cluster._i, int(name.rpartition("-")[2]) + 1)

    async def _queued(self) -> set[str] | None:
        """Ids of this user's jobs that wait or run; `None` where the batch system cannot be asked."""
        cluster: Any = self.cluster
        if cluster.job_cls.submit_command != "sbatch":
            return None
        try:
            return set((await cluster.job_cls._call(["squeue", "-h", "-u", getpass.getuser(), "-o", "%A"])).split())
        except RuntimeError as err:  # a scheduler that restarts: asked again with the next pulse
            logger.warning("squeue does not answer: %s", " ".join(str(err).split()))
            return None

    def _note(self, name: Any, job: Any) -> None:
        """A job that ended; if its worker never came, the environment of the nodes is at fault."""
        if name in self._seen:
            return
        self._failures += 1
        self._resume = time.monotonic() + min(2**self._failures, LONGEST_PAUSE_S)
        log = Path(job.log_directory) / f"{job.job_name}-{job.job_id}.err"
        sentence = (
            f"job {job.job_id} ended before its worker came: {_last_line(log)} ({log}); run its commands on a node"
        )
        if job.job_id is None:
            sentence = "a job could not be submitted; see what the batch system said above, and your limits there"
        logger.error("%s", sentence)
        self.failure = self.failure or sentence


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
