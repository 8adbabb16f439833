"""The keeper with jobs that are processes of this machine: lost ones are replaced, refused ones are reported."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from wsi_stain.cluster.keeper import Keeper

local = pytest.importorskip("dask_jobqueue.local")


class Process(local.LocalJob):
    """A process of this machine; like with a batch system, one that has ended may be cancelled."""

    @classmethod
    async def _close_job(cls, job_id: str | None, cancel_command: str | None) -> None:
        if job_id is not None:
            with suppress(ProcessLookupError):
                os.kill(int(job_id), 9)


class Refused(Process):
    """A job that the batch system does not take."""

    async def start(self) -> None:
        raise RuntimeError("Command exited with non-zero exit code.\nstderr:\nsbatch: error: job submit limit\n")


@contextmanager
def kept(logs: Path, job: type, demand: Callable[[], int]) -> Iterator[tuple[Any, Keeper]]:
    """A cluster of such jobs, at most two, with its keeper."""
    options = {"cores": 1, "memory": "1GB", "processes": 1, "nanny": False, "log_directory": str(logs)}
    scheduler = {"dashboard_address": ":0", "host": "127.0.0.1"}
    with local.LocalCluster(job_cls=job, name="kept", scheduler_options=scheduler, **options) as cluster:
        keeper = cluster.adapt(Adaptive=Keeper, demand=demand, minimum=1, maximum=2, interval="200ms", wait_count=3)
        yield cluster, keeper


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def names(client: Client) -> set[str]:
    return {worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}


@pytest.mark.slow
# dask_jobqueue.local leaves the pipes of its processes open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_follow_the_demand_and_a_lost_one_is_replaced_under_a_new_name(tmp_path: Path) -> None:
    demand = [2]
    with kept(tmp_path, Process, lambda: demand[0]) as (cluster, keeper), Client(cluster) as client:
        wait_for(lambda: names(client) == {"kept-0", "kept-1"})
        worker = next(w for w in cluster.scheduler.workers.values() if w.name == "kept-0")
        pid = client.run(os.getpid, workers=[worker.address])[worker.address]
        os.kill(pid, 9)
        wait_for(lambda: names(client) == {"kept-1", "kept-2"})
        demand[0] = 0
        wait_for(lambda: len(names(client)) == len(cluster.worker_spec) == len(cluster.workers) == 1)
        assert keeper.failure is None


def test_a_refused_submission_is_reported_once_and_tried_again_after_a_pause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with kept(tmp_path, Refused, lambda: 2) as (cluster, keeper):
        wait_for(lambda: keeper.failure is not None)
        assert keeper.failure == (
            "a job could not be submitted: sbatch: error: job submit limit; check your limits in the batch system"
        )
        wait_for(lambda: not cluster.workers)
        assert not cluster.worker_spec, "the refused job is not waited for"
        wait_for(lambda: len([r for r in caplog.records if "could not be submitted" in r.message]) == 2)
