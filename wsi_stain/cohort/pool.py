"""Workers for slides: processes of this machine, a cluster from a file, or a running scheduler."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wsi_stain.cluster import ClusterConfig, open_cluster
from wsi_stain.cluster.threads import thread_count
from wsi_stain.cohort.request import CohortRequest
from wsi_stain.config.loader import load


@dataclass(frozen=True, slots=True)
class Pool:
    """A Dask client and its capacity."""

    client: Any
    config: ClusterConfig

    @property
    def threads(self) -> list[int]:
        """Thread count of every current worker."""
        return list(self.client.nthreads().values())

    @property
    def scheduler(self) -> str:
        """Identity of the scheduler."""
        return str(self.client.scheduler_info()["id"])

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(self.client.scheduler.address)


@contextmanager
def pool(config: ClusterConfig, demand: Callable[[], int]) -> Generator[Pool]:
    """Open the workers of a cluster; workers started here end with the context.

    Args:
        config: from `cluster_of`.
        demand: returns how many workers could be used now.

    Raises:
        ConfigError: no scheduler answers.
    """
    from dask import config as dask_config

    from wsi_stain.cohort.interrupt import IgnoreInterrupt

    # Dask reports the first death of a worker at once: the coordinator decides on retries.
    with dask_config.set({"distributed.scheduler.allowed-failures": 0}), open_cluster(config, demand) as client:
        if config.scheduler is None:
            client.register_plugin(IgnoreInterrupt())
        yield Pool(client, config)


def cluster_of(request: CohortRequest) -> ClusterConfig:
    """The cluster of a request; by default, processes of this machine that share all its processors.

    Raises:
        ConfigError: the cluster file is missing or invalid.
    """
    if request.scheduler is not None:
        return ClusterConfig(scheduler=request.scheduler)
    if request.cluster is not None:
        return load(ClusterConfig, request.cluster)
    return ClusterConfig(cores=thread_count())
