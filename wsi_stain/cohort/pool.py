"""Where slides run: worker processes of this machine, a cluster that a file describes, or a scheduler's address."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wsi_stain.cluster import ClusterConfig, open_cluster
from wsi_stain.cluster.workers import MOST_THREADS, processors
from wsi_stain.cohort.request import CohortRequest
from wsi_stain.config.loader import load


@dataclass(frozen=True, slots=True)
class Pool:
    """A Dask client, and what it can do."""

    client: Any
    config: ClusterConfig

    @property
    def threads(self) -> list[int]:
        """Of every worker that is there now."""
        return list(self.client.nthreads().values())

    @property
    def scheduler(self) -> str:
        """Identity of the scheduler."""
        return str(self.client.scheduler_info()["id"])

    @property
    def address(self) -> str:
        """Where the scheduler answers."""
        return str(self.client.scheduler.address)


@contextmanager
def pool(config: ClusterConfig, demand: Callable[[], int]) -> Generator[Pool]:
    """The workers of a cluster; what is started here ends here.

    Args:
        config: from `cluster_of`.
        demand: how many workers could be used now.

    Raises:
        ConfigError: no scheduler answers.
    """
    from dask import config as dask_config

    from wsi_stain.cohort.interrupt import IgnoreInterrupt

    # The first death of a worker is told at once: the coordinator decides what is tried again, and how.
    with dask_config.set({"distributed.scheduler.allowed-failures": 0}), open_cluster(config, demand) as client:
        if config.scheduler is None:
            client.register_plugin(IgnoreInterrupt())
        yield Pool(client, config)


def cluster_of(request: CohortRequest) -> ClusterConfig:
    """The cluster that a request names; without one, processes of this machine that share all its processors.

    Raises:
        ConfigError: the cluster file is not there, or wrong.
    """
    if request.scheduler is not None:
        return ClusterConfig(scheduler=request.scheduler)
    if request.cluster is not None:
        return load(ClusterConfig, request.cluster)
    return ClusterConfig(cores=min(MOST_THREADS, processors()))
