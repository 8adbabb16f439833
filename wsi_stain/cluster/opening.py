"""`open_cluster`: from a configuration to a Dask client with a connected worker."""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from wsi_stain.cluster.settings import SETTINGS, Started
from wsi_stain.cluster.workers import connect
from wsi_stain.config.cluster import ClusterConfig
from wsi_stain.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

PULSE_S = 0.2
"""Interval of checks for the first worker, s."""


@contextmanager
def open_cluster(config: ClusterConfig, demand: Callable[[], int] = lambda: 0) -> Generator[Client]:
    """Start the workers of `config`; they and their jobs end with the context. Workers of a running scheduler remain.

    Returns after the first worker has connected, so that a broken environment on the nodes raises an error here.
    Waiting in a queue may take hours; further workers start and end with the number of tasks.

    Args:
        config: kind and number of workers.
        demand: returns how many workers could be used now, independent of the tasks in Dask; called every two seconds.
            A caller that submits its tasks gradually returns the number of unfinished tasks.

    Raises:
        ConfigError: the batch system is missing or refuses the job, a package is missing, no scheduler answers, or
            the first job ended before its worker connected.
    """
    from dask import config as dask_config

    name = f"wsi-stain-{uuid.uuid4().hex[:8]}"
    with dask_config.set(SETTINGS), warnings.catch_warnings(), ExitStack() as stack:
        # Without a network, Dask warns that it cannot detect the address of this machine, but still works.
        warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
        if config.scheduler is not None:
            yield stack.enter_context(connect(config.scheduler))
            return
        cluster, failure = _started(config, name, demand)
        stack.enter_context(cluster)
        client = stack.enter_context(connect(cluster))
        _await_first(client, failure)
        yield client


def _started(config: ClusterConfig, name: str, demand: Callable[[], int]) -> Started:
    """Start the cluster of the configured class; its packages are imported only here."""
    match config.class_:
        case "local":
            from wsi_stain.cluster import local

            return local.start(config, name)
        case "kubernetes":
            from wsi_stain.cluster import kubernetes

            return kubernetes.start(config, name)
        case _:
            from wsi_stain.cluster import jobs

            return jobs.start(config, name, demand)


def _await_first(client: Client, failure: Callable[[], str | None]) -> None:
    """Wait until one worker is connected."""
    start = last_log = time.monotonic()
    while not client.nthreads():
        if reason := failure():
            raise ConfigError(reason)
        now = time.monotonic()
        if now - last_log > 60:
            last_log = now
            logger.info("no worker after %.0f min: its job is waiting in the queue", (now - start) / 60)
        time.sleep(PULSE_S)
